package host_test

import (
	"fmt"
	"strings"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
)

// Of the GPUs that fit, one on the NUMA node of the VM's memory is taken, however full the
// others are. Where there is none, the plan says so.
func TestNearTheMemory(t *testing.T) {
	const first, second = gpu.ID("0000:08:00.0"), gpu.ID("0000:88:00.0")
	l := newLab(t, sim.T4(string(first), 0), sim.T4(string(second), 1))
	l.manage(first, second)
	for i, nodes := range [][]int{nil, {0}, {1}, {0, 1}, {5}} {
		vm := gpu.VM{UUID: fmt.Sprintf("00000000-0000-4000-8000-%012d", i), Name: []string{"none", "zero", "one", "both", "far"}[i], Persistent: true, MemoryNodes: nodes}
		if err := l.sim.Libvirt.SetVM(vm); err != nil {
			t.Fatal(err)
		}
	}
	// The second is the fuller: without a preference it would take all.
	l.attach("begin", gpu.Wish{VM: "web1", Profile: "T4-2Q", GPU: second})
	for _, c := range []struct {
		vm, profile string
		placement   gpu.Placement
		on          gpu.ID
		far         string
	}{
		{"none", "T4-2Q", gpu.Pack, second, ""},
		{"zero", "T4-2Q", gpu.Pack, first, ""},
		{"one", "T4-2Q", gpu.Spread, second, ""},
		{"both", "T4-2Q", gpu.Pack, second, ""},
		{"far", "T4-2Q", gpu.Pack, second, "attach it to vm far, whose memory is on NUMA node 5 and not on the gpu's (1)"},
		// The near one has another size on it.
		{"one", "T4-8Q", gpu.Pack, first, "attach it to vm one, whose memory is on NUMA node 1 and not on the gpu's (0)"},
	} {
		wish := gpu.Wish{VM: c.vm, Profile: c.profile, Placement: c.placement}
		plan, err := l.PlanAssignment(t.Context(), "x", wish)
		if err != nil || plan.Refusal != nil {
			t.Fatalf("%+v: %+v, %v", c, plan, err)
		}
		last := plan.Steps[len(plan.Steps)-1].Summary
		if !strings.HasSuffix(plan.Steps[0].Summary, " on "+string(c.on)) || strings.Contains(last, "NUMA") != (c.far != "") || c.far != "" && last != c.far {
			t.Errorf("%+v: %+v", c, plan.Steps)
		}
	}
	// A full node is no reason to refuse.
	l.attach("all", gpu.Wish{VM: "web2", Profile: "T4-16Q", GPU: first})
	if a := l.attach("x", gpu.Wish{VM: "zero", Profile: "T4-2Q"}); a.GPU != second {
		t.Errorf("it is on %s", a.GPU)
	}
}
