package host_test

import (
	"strconv"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/mig"
	"gpuvirt/operation"
)

// Where somebody else is in the place of the instance that a missing vGPU stood on, a plan
// says so, as the wish does, and nothing begins.
func TestPutBackWhereItsInstanceIsTaken(t *testing.T) {
	l := newSpreadLab(t, false)
	if op := l.apply("a=vm1:" + shared12); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	l.lose("a")
	slot := l.layout(hopper).Partitions[0].Slot
	byHand(t, l.sim, hopper, removeFirst)
	makeForeign(t, l, "2g.48gb", strconv.Itoa(number(t, slot)/6*6)) // each has half of the card
	before := show(l.layout(hopper))
	plan, err := l.PlanAssignment(t.Context(), "a", gpu.Wish{VM: "vm1", Profile: shared12})
	if err != nil || plan.Refusal == nil || plan.Changes {
		t.Errorf("%+v, %v", plan, err)
	}
	_, op, err := l.PutAssignment(t.Context(), "test", "a", gpu.Wish{VM: "vm1", Profile: shared12})
	if err == nil || op != nil || show(l.layout(hopper)) != before {
		t.Errorf("%+v, %v, %q", op, err, show(l.layout(hopper)))
	}
}

func makeForeign(t *testing.T, l *lab, profile, slot string) {
	t.Helper()
	theirs := mig.NewBackend(l.sim.NVML, l.sim.Sysfs, mig.Options{})
	if _, err := theirs.Make(t.Context(), gpu.Partition{ID: mig.PartitionID(hopper, slot), GPU: hopper, Profile: profile, Slot: slot}); err != nil {
		t.Fatal(err)
	}
}
