package daemon

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A request is an HTTP request that went through the checks its route asks for.
type request struct {
	*http.Request
	writer  http.ResponseWriter // for the connection only: handlers return what to write
	control *http.ResponseController
	route   route
	who     Identity
	// stranger is one who came over the network and could not say who it is.
	stranger bool
	// muted is one from whose address too much is refused for the log to tell of it.
	muted bool
	path  map[string]string // unescaped and well-formed
	query map[string]string // known and well-formed
	body  []byte            // JSON, if the route takes a body

	ifMatch, ifNoneMatch condition
}

// A param is a query parameter of a route.
type param struct {
	name  string
	enum  []string           // if not nil, the only values
	check func(string) error // says what is wrong with a value
}

// dryRun reports whether the request only asks for a plan.
func (q *request) dryRun() bool { return q.query["dry_run"] == "true" }

// objects returns the path's parameters in the order of their names.
func (q *request) objects() []string {
	keys := make([]string, 0, len(q.path))
	for k := range q.path {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for i, k := range keys {
		keys[i] = q.path[k]
	}
	return keys
}

// parsePath unescapes what stands in the path and checks its form.
func (q *request) parsePath(vars map[string]string) error {
	q.path = make(map[string]string, len(vars))
	for name, escaped := range vars {
		v, err := url.PathUnescape(escaped)
		if err != nil {
			return invalid("%s %s in the path is not properly escaped", name, quote(escaped))
		}
		if err := checkPathParam(name, v); err != nil {
			return invalid("%s %s in the path is malformed: %w", name, quote(v), err)
		}
		q.path[name] = v
	}
	return nil
}

// parseQuery accepts each known parameter once.
func (q *request) parseQuery() error {
	values, err := url.ParseQuery(q.URL.RawQuery)
	if err != nil {
		return invalid("the query is malformed: it must be name=value pairs, separated by & and escaped with %%")
	}
	q.query = make(map[string]string, len(values))
	for name, v := range values {
		i := slices.IndexFunc(q.route.query, func(p param) bool { return p.name == name })
		if i < 0 {
			return invalid("query parameter %s is unknown here%s", quote(name), known(q.route.query))
		}
		if len(v) > 1 {
			return invalid("query parameter %q is given %d times", name, len(v))
		}
		if err := q.route.query[i].valid(v[0]); err != nil {
			return invalid("query parameter %q is malformed: %w", name, err)
		}
		q.query[name] = v[0]
	}
	return nil
}

func known(params []param) string {
	if len(params) == 0 {
		return ": there are none"
	}
	names := make([]string, len(params))
	for i, p := range params {
		names[i] = p.name
	}
	return ": there are " + strings.Join(names, ", ")
}

func (p param) valid(v string) error {
	if p.enum != nil && !slices.Contains(p.enum, v) {
		return fmt.Errorf("%s is none of %s", quote(v), strings.Join(p.enum, ", "))
	}
	if p.check != nil {
		return p.check(v)
	}
	return nil
}

// readBody reads the body of a route that takes one, and makes sure that others
// have none.
func (q *request) readBody() error {
	if !q.route.body {
		if q.ContentLength == 0 || q.Body == nil || q.Body == http.NoBody {
			return nil
		}
		if q.ContentLength < 0 {
			q.setReadDeadline(readTimeout)
			if n, err := io.ReadFull(q.Body, make([]byte, 1)); n == 0 && errors.Is(err, io.EOF) {
				q.setReadDeadline(0)
				return nil
			}
		}
		return invalid("%s takes no body here", q.Method)
	}

	if err := q.checkContentType(); err != nil {
		return err
	}
	limit := cmp.Or(q.route.limit, maxBody)
	if q.ContentLength > limit {
		return bodyTooLarge(limit)
	}
	// It stays where the body does not come to its end: the server reads on before it closes
	// the connection.
	q.setReadDeadline(readTimeout)
	body, err := io.ReadAll(http.MaxBytesReader(q.writer, q.Body, limit))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return bodyTooLarge(limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return bodyTimeout()
	case err != nil:
		return invalid("cannot read the body: it ends too early or is not properly encoded")
	}
	q.setReadDeadline(0)
	q.body = body
	return nil
}

// drain takes in what a refused request still sends: a client whose connection is
// closed while it writes never learns why. Who sends more than is reasonable, or
// waits to be asked for the body, is cut off.
func (q *request) drain() {
	if q.Body == nil || q.Body == http.NoBody {
		return
	}
	if q.Header.Get("Expect") == "" && q.ContentLength <= maxDrain {
		q.setReadDeadline(readTimeout)
		if _, err := io.CopyN(io.Discard, q.Body, maxDrain); errors.Is(err, io.EOF) {
			q.setReadDeadline(0)
			return
		}
	}
	q.setReadDeadline(strangerTimeout)
	q.writer.Header().Set("Connection", "close")
}

func (q *request) checkContentType() error {
	if enc := q.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return unsupportedMediaType("cannot read a body with Content-Encoding %s", quote(enc))
	}
	types := q.Header.Values("Content-Type")
	if len(types) != 1 {
		return unsupportedMediaType("the request needs one header Content-Type: application/json")
	}
	t, params, err := mime.ParseMediaType(types[0])
	if err != nil || t != mediaJSON {
		return unsupportedMediaType("cannot read a body of Content-Type %s: it must be application/json", quote(types[0]))
	}
	if c := params["charset"]; c != "" && !strings.EqualFold(c, "utf-8") {
		return unsupportedMediaType("cannot read a body in charset %s: it must be utf-8", quote(c))
	}
	return nil
}

// setReadDeadline bounds the reading of the body; 0 takes the bound away. Not
// every connection of a test has deadlines.
func (q *request) setReadDeadline(d time.Duration) {
	var at time.Time
	if d > 0 {
		at = time.Now().Add(d)
	}
	_ = q.control.SetReadDeadline(at)
}

// accepts reports whether an Accept header lets media pass. What it lists and we
// cannot read lets nothing pass.
func accepts(headers []string, media string) bool {
	header := strings.Join(headers, ",")
	if strings.TrimSpace(header) == "" {
		return true
	}
	major, _, _ := strings.Cut(media, "/")
	best, ok := -1, false // the most specific range decides
	for item := range strings.SplitSeq(header, ",") {
		t, params, err := mime.ParseMediaType(strings.TrimSpace(item))
		if err != nil {
			continue
		}
		rank := slices.Index([]string{"*/*", major + "/*", media}, t)
		if rank <= best {
			continue
		}
		q, err := strconv.ParseFloat(params["q"], 64)
		best, ok = rank, params["q"] == "" || err != nil || q > 0
	}
	return ok
}

// quote puts a text of the request into an error: readable, on one line, short.
func quote(v string) string { return strconv.Quote(shorten(v)) }

// shorten cuts a text for errors and the log.
func shorten(v string) string {
	const most = 120
	if len(v) <= most {
		return v
	}
	cut := most
	for cut > 0 && !utf8.RuneStart(v[cut]) {
		cut--
	}
	return v[:cut] + "…"
}
