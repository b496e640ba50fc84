package daemon

import (
	"strings"
	"testing"

	"gpuvirt/api"
	"gpuvirt/gpu"
)

// An assignment by which a migration that goes on has its partition is not detached by hand; one of
// the same name that another VM has is.
func TestDetachOfMigration(t *testing.T) {
	h := newHarness(t)
	a := gpu.Assignment{Name: "gpu7", Wish: gpu.Wish{VM: "5f0c8a5e-3f0e-4b64-9a0b-8c2a4a1d9c10", Profile: "H100-2-20C"}, Created: born, State: gpu.AssignmentAttached}
	h.host.assignments["gpu7"] = a
	is := func(p *api.Problem) {
		t.Helper()
		if p == nil || !strings.Contains(p.Detail, "migration gpu7") || !strings.Contains(p.Hint, "gpuvirt migrate rollback gpu7") ||
			len(p.Blockers) != 1 || p.Blockers[0].Kind != "migration" || p.Blockers[0].ID != "gpu7" {
			t.Errorf("got %+v", p)
		}
	}
	refused := h.do(t, call{method: "DELETE", target: "/v1/assignments/gpu7"})
	if refused.status != 409 {
		t.Fatalf("got %d %s", refused.status, refused.body)
	}
	p := refused.problem(t)
	is(&p)
	plan := decodeStrictly[api.Plan](t, h.do(t, call{method: "DELETE", target: "/v1/assignments/gpu7?dry_run=true"}).body)
	is(plan.Problem)
	if h.host.writes != 0 {
		t.Errorf("%d writes", h.host.writes)
	}
	a.Wish.VM = db1
	h.host.assignments["gpu7"] = a
	if got := h.do(t, call{method: "DELETE", target: "/v1/assignments/gpu7"}); got.status != 202 {
		t.Errorf("got %d %s", got.status, got.body)
	}
}
