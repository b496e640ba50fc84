//go:build lab

package lab

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"gpuvirt/api"
)

// testDialects asks for what the driver refuses, in either of its dialects. The daemon
// answers the same, as it looks at what is there instead of at the error. VGPUCard is empty.
func testDialects(ctx context.Context, t *testing.T) {
	t.Helper()
	asNVIDIA := refusals(ctx, t)
	must(t, hypervisor.SetVGPU(ctx, "rfc_errors", "1"))
	asProposed := refusals(ctx, t)
	must(t, hypervisor.SetVGPU(ctx, "rfc_errors", "0"))
	want := strings.Join([]string{
		"another size came first: undone no-capacity",
		"another type came first: undone conflict",
		"the same type came first: done",
		"another size than there is: 507 no-capacity",
		"no place left: 507 no-capacity",
		"no such type: 422 profile-unknown",
	}, "\n")
	if asNVIDIA != want || asProposed != want {
		t.Errorf("as NVIDIA's driver:\n%s\nas proposed upstream:\n%s\nwant of both:\n%s", asNVIDIA, asProposed, want)
	}
}

// refusals are the daemon's answers, a line each. The card is empty again afterwards.
func refusals(ctx context.Context, t *testing.T) string {
	t.Helper()
	var says []string
	ask := func(what, profile string) {
		t.Helper()
		says = append(says, what+": "+answer(ctx, t, profile))
	}
	// Somebody is quicker than our write, after the driver has told that it would fit.
	rival := func(here, typ string) {
		t.Helper()
		must(t, hypervisor.SetVGPU(ctx, "rival_here", here))
		must(t, hypervisor.SetVGPU(ctx, "rival", typ))
	}
	rival("0", "1144")
	ask("another size came first", "LAB-8Q")
	setVGPU(ctx, t, 1, "0", "")
	rival("1", "1144")
	ask("another type came first", "LAB-8Q")
	setVGPU(ctx, t, 0, "0", "")
	rival("1", "1147")
	ask("the same type came first", "LAB-8Q")

	ask("another size than there is", "LAB-4Q")
	answer(ctx, t, "LAB-8C")
	ask("no place left", "LAB-8Q")
	ask("no such type", "LAB-3Q")
	for _, p := range list[api.Partition](ctx, t, "/v1/partitions?gpu="+VGPUCard) {
		done(ctx, t, call(ctx, t, http.MethodDelete, "/v1/partitions/"+strings.ReplaceAll(p.ID, "/", "%2F"), nil))
	}
	for n := range VFs {
		readVGPU(ctx, t, n, "current_vgpu_type", "0")
	}
	return strings.Join(says, "\n")
}

// answer asks for a vGPU and says what came of it.
func answer(ctx context.Context, t *testing.T, profile string) string {
	t.Helper()
	r := call(ctx, t, http.MethodPost, "/v1/partitions", api.PartitionRequest{GPU: VGPUCard, Profile: profile})
	if r.status != http.StatusAccepted {
		p := decode[api.Problem](t, r)
		return fmt.Sprint(r.status, " ", p.Code)
	}
	op := ended(ctx, t, r)
	if op.Problem == nil {
		return op.Status
	}
	t.Logf("%s: %s", profile, op.Problem.Detail)
	return op.Status + " " + op.Problem.Code
}
