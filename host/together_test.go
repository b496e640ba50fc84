package host_test

import (
	"strings"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
)

// Two vGPUs of one VM come from two cards. Where there is only one, the request is
// refused before anything is written.
func TestTwoInOneVM_T41(t *testing.T) {
	l := newLab(t, sim.T4("0000:08:00.0", 0), sim.T4("0000:88:00.0", 1), sim.Mbochs())
	l.manage("0000:08:00.0", "mbochs")
	l.attach("first", gpu.Wish{VM: "web1", Profile: "T4-4Q"})
	writes, err := l.sim.Writes()
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = l.PutAssignment(t.Context(), "test", "second", gpu.Wish{VM: "web1", Profile: "T4-4Q"})
	if gpu.CodeOf(err) != gpu.CodeProfileNotCreatable || !strings.Contains(err.Error(), "vm web1 has a vGPU of this card already (assignment first)") {
		t.Errorf("a second one of the same card: %v", err)
	}
	if plan, err := l.PlanAssignment(t.Context(), "second", gpu.Wish{VM: "web1", Profile: "T4-4Q"}); err != nil || plan.Refusal == nil {
		t.Errorf("the dry run: %+v, %v", plan, err)
	}
	if after, _ := l.sim.Writes(); len(after) != len(writes) {
		t.Errorf("a refusal wrote %+v", after[len(writes):])
	}
	// Another VM can have it, and this one can from the other card.
	l.attach("others", gpu.Wish{VM: "web2", Profile: "T4-4Q"})
	l.manage("0000:88:00.0")
	if a := l.attach("second", gpu.Wish{VM: "web1", Profile: "T4-4Q"}); a.GPU != "0000:88:00.0" {
		t.Errorf("the second one is of %s", a.GPU)
	}
	// It is NVIDIA's rule and not everybody's.
	for _, name := range []string{"third", "fourth"} {
		l.attach(name, gpu.Wish{VM: "web1", Profile: "mbochs-small"})
	}
}
