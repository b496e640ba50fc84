//go:build lab

package lab

import (
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"gpuvirt/api"
)

// Bad input on every route of the daemon's own description: a 4xx problem with a
// code, never a 5xx, and nothing made. Each route gets some of it in turn: the tests of daemon
// send all of it to all routes.
func TestBadInputOnEveryRoute(t *testing.T) {
	ctx := begin(t, 4*time.Minute, "mbochs")
	doc, err := openapi3.NewLoader().LoadFromData(call(ctx, t, http.MethodGet, "/v1/openapi.yaml", nil).want(t, http.StatusOK).body)
	must(t, err)

	names := []string{
		"..%2F..%2Fetc%2Fpasswd", "a%2Fb", "a%0Ab", "%00", "%ff%fe", "UPPER", "-dash", strings.Repeat("x", 10000),
		"0000:00:00.0'%20OR%201=1", "not-a-uuid", "00000000-0000-0000-0000-00000000000g", "%F0%9F%92%A5",
	}
	bodies := []string{
		"", "{", "[]", "null", "42", `"x"`, `{"unknown_field":1}`, `{"vm":1,"profile":[]}`, `{"vm":"a","profile":"b"} trailing`,
		`{"vm":"a","vm":"b","profile":"c"}`, `{"managed":"yes"}`, `{"vm":"","profile":""}`, `{"profile":"x","gpu":{"a":1}}`,
		`{"vm":"web1","profile":"mbochs-small","placement":"sideways"}`, strings.Repeat("[", 100000), "\x00\xff\xfe",
		`{"vm":"` + strings.Repeat("a", 10<<20) + `"}`,
	}
	queries := []string{
		"?limit=-1", "?limit=0", "?limit=ten", "?limit=99999999999999999999", "?cursor=%00garbage", "?nonsense=1",
		"?dry_run=maybe", "?timeout=forever", "?dry_run=true&dry_run=false",
	}
	methods := []string{"TRACE", "BREW", http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch}
	param := regexp.MustCompile(`\{[a-z_]+\}`)
	sent := 0
	check := func(method, path string, body any) {
		t.Helper()
		sent++
		r := call(ctx, t, method, path, body)
		what := fmt.Sprintf("%s %.120s with body %.60q", method, path, fmt.Sprint(body))
		if r.status < 400 || r.status > 499 {
			t.Errorf("%s: %d, want a 4xx: %.200s", what, r.status, r.body)
			return
		}
		if p := decode[api.Problem](t, r); p.Code == "" || p.Status != r.status {
			t.Errorf("%s: problem %+v", what, p)
		}
	}
	name, body, query, other := inTurn(names), inTurn(bodies), inTurn(queries), inTurn(methods)
	for _, path := range slices.Sorted(maps.Keys(doc.Paths.Map())) {
		item := doc.Paths.Value(path)
		full := "/v1" + strings.TrimPrefix(path, "/v1")
		legal := param.ReplaceAllString(full, "none")
		for _, method := range slices.Sorted(maps.Keys(item.Operations())) {
			if full != legal {
				for _, n := range name(3) {
					check(method, param.ReplaceAllLiteralString(full, n), bodyFor(method))
				}
			}
			if item.GetOperation(method).RequestBody != nil {
				for _, b := range body(4) {
					check(method, legal, b)
				}
			}
			for _, q := range query(2) {
				check(method, legal+q, bodyFor(method))
			}
		}
		for _, method := range other(3) {
			if item.GetOperation(method) == nil {
				check(method, legal, bodyFor(method))
			}
		}
	}
	for _, path := range []string{"/", "/v2", "/v1/", "/v1/nothing", "/v1//gpus", "/v1/gpus/../../etc", "/v1/%2e%2e/x", "/" + strings.Repeat("a/", 2000)} {
		check(http.MethodGet, path, nil)
	}
	t.Logf("%d bad requests", sent)
	if got := mdevs(ctx, t); len(got) != 0 {
		t.Errorf("bad requests made %q", got)
	}
	for _, path := range []string{"/v1/assignments", "/v1/operations"} {
		if items := list[map[string]any](ctx, t, path); len(items) != 0 {
			t.Errorf("bad requests left something under %s: %v", path, items)
		}
	}
	if ids := gpuIDs(list[api.GPU](ctx, t, "/v1/gpus?managed=true")); !slices.Equal(ids, []string{"mbochs"}) {
		t.Errorf("managed gpus %q", ids)
	}
}

// inTurn gives the next n of all.
func inTurn(all []string) func(n int) []string {
	given := 0
	return func(n int) (out []string) {
		for range n {
			out = append(out, all[given%len(all)])
			given++
		}
		return out
	}
}

// bodyFor is a body that a method may have and that is refused everywhere.
func bodyFor(method string) any {
	switch method {
	case http.MethodPut, http.MethodPost, http.MethodPatch:
		return `{"unknown_field":true}`
	}
	return nil
}

func gpuIDs(gpus []api.GPU) []string {
	var ids []string
	for _, g := range gpus {
		ids = append(ids, g.ID)
	}
	return ids
}
