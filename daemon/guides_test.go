package daemon

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"gpuvirt/test/guides"
)

// What people are told to ask for by curl, which README calls gv where it goes to the socket, is
// a route: path, method and parameters.
func TestGuides(t *testing.T) {
	seen := 0
	for _, said := range slices.Concat(guides.Commands(t, "curl"), guides.Commands(t, "gv")) {
		method, address := http.MethodGet, ""
		for i, word := range said.Words {
			switch {
			case slices.Contains([]string{"-X", "--request"}, word) && i+1 < len(said.Words):
				method = said.Words[i+1]
			case slices.Contains([]string{"-d", "--data"}, word) && method == http.MethodGet:
				method = http.MethodPost
			case strings.HasPrefix(word, "http"):
				address = word
			}
		}
		u, err := url.Parse(address)
		if err != nil {
			t.Errorf("%s: %v", said.Where, err)
			continue
		}
		if u.Path != "/metrics" && !strings.HasPrefix(u.Path, "/v1") {
			continue // not ours
		}
		seen++
		at := slices.IndexFunc(routes(), func(r route) bool { return r.method == method && asks(r.path, u.Path) })
		if at < 0 {
			t.Errorf("%s: %q: there is no such route", said.Where, said.Words)
			continue
		}
		for name, values := range u.Query() {
			known := slices.IndexFunc(routes()[at].query, func(p param) bool { return p.name == name })
			if known < 0 {
				t.Errorf("%s: there is no parameter %q", said.Where, name)
			} else if check := routes()[at].query[known].check; check != nil && check(values[0]) != nil {
				t.Errorf("%s: %s: %v", said.Where, name, check(values[0]))
			}
		}
	}
	if seen < 4 {
		t.Errorf("%d requests", seen)
	}
}

// asks says whether a path is one of those that a route's is the pattern of.
func asks(pattern, path string) bool {
	want, have := strings.Split(pattern, "/"), strings.Split(path, "/")
	return slices.EqualFunc(want, have, func(w, h string) bool { return w == h || strings.HasPrefix(w, "{") && h != "" })
}
