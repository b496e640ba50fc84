package daemon

import (
	"net/http"
	"slices"
	"strings"

	"gpuvirt/gpu"
)

// A condition is an If-Match or If-None-Match header.
type condition struct {
	given bool
	any   bool     // "*"
	tags  []string // as sent: weak ones begin with W/
}

// parseCondition reads a list of entity tags.
func parseCondition(h http.Header, name string) (condition, error) {
	values := h.Values(name)
	if len(values) == 0 {
		return condition{}, nil
	}
	c := condition{given: true}
	rest := strings.TrimSpace(strings.Join(values, ","))
	if rest == "*" {
		c.any = true
		return c, nil
	}
	for {
		weak := strings.HasPrefix(rest, "W/")
		opaque, found := strings.CutPrefix(strings.TrimPrefix(rest, "W/"), `"`)
		end := strings.IndexByte(opaque, '"')
		if !found || end < 0 {
			return c, invalid("header %s is malformed: it must be * or a list of tags in double quotes", name)
		}
		tag := `"` + opaque[:end] + `"`
		if weak {
			tag = "W/" + tag
		}
		c.tags = append(c.tags, tag)
		rest = strings.TrimSpace(opaque[end+1:])
		if rest == "" {
			return c, nil
		}
		if rest, found = strings.CutPrefix(rest, ","); !found {
			return c, invalid("header %s is malformed: tags must be separated by commas", name)
		}
		rest = strings.TrimSpace(rest)
	}
}

// matches compares strongly: a weak tag equals nothing.
func (c condition) matches(etag string) bool {
	return etag != "" && (c.any || slices.Contains(c.tags, etag))
}

// matchesWeakly takes a weak tag for its strong one.
func (c condition) matchesWeakly(etag string) bool {
	return c.matches(etag) || etag != "" && slices.Contains(c.tags, "W/"+etag)
}

// parseConditions checks the form of both headers where they mean something.
func (q *request) parseConditions() error {
	if !q.route.conditional {
		return nil
	}
	var err error
	if q.ifMatch, err = parseCondition(q.Header, "If-Match"); err != nil {
		return err
	}
	q.ifNoneMatch, err = parseCondition(q.Header, "If-None-Match")
	return err
}

// unchanged reports whether a reader has the object already.
func (q *request) unchanged(etag string) bool {
	return q.ifNoneMatch.matchesWeakly(etag)
}

// precondition refuses a write if the object is not as the client believes.
// current returns the object as GET would, or not-found.
func (q *request) precondition(current func() (any, error)) error {
	if !q.ifMatch.given && !q.ifNoneMatch.given {
		return nil
	}
	etag := ""
	v, err := current()
	switch {
	case err == nil:
		body, err := encode(v)
		if err != nil {
			return err
		}
		etag = etagOf(body)
	case gpu.CodeOf(err) != gpu.CodeNotFound || q.Method != http.MethodPut:
		return err
	}
	if q.ifMatch.given && !q.ifMatch.matches(etag) {
		if etag == "" {
			return preconditionFailed("cannot change what does not exist: header If-Match is given")
		}
		return preconditionFailed("the object is no longer as header If-Match says: its tag is %s", etag)
	}
	if q.ifNoneMatch.matchesWeakly(etag) {
		return preconditionFailed("the object exists already, and header If-None-Match says that it must not")
	}
	return nil
}
