package daemon

import (
	"net/http"
	"strings"
	"testing"
)

// How far a pass is is in what a migration answers, and not in its ETag: who looks sees it go on, and
// who changes the rest is not refused because of it.
func TestMigrationProgressTag(t *testing.T) {
	h := newHarness(t)
	const target = "/v1/migrations/rest"
	first := h.do(t, call{method: http.MethodGet, target: target})
	tag := first.header.Get("ETag")
	if tag == "" || !strings.Contains(first.body, `"progress":{"disk":"nvme0n1"`) {
		t.Fatalf("got %q, %s", tag, first.body)
	}
	h.moves.copied.Add(1 << 20)
	again := h.do(t, call{method: http.MethodGet, target: target, header: http.Header{"If-None-Match": {tag}}})
	if again.status != http.StatusOK || again.body == first.body || again.header.Get("ETag") != tag {
		t.Errorf("while it is passed over: %d %s, tag %s and before %s", again.status, again.body, again.header.Get("ETag"), tag)
	}
	change := call{method: http.MethodPatch, target: target, body: `{"copy":{"connections":4}}`, header: http.Header{"If-Match": {tag}}}
	if a := h.do(t, change); a.status != http.StatusOK {
		t.Errorf("a change meanwhile: %d %s", a.status, a.body)
	}
}
