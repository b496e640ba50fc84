package host_test

import (
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// lose takes the vGPU of an assignment away, as somebody else may.
func (l *lab) lose(name string) {
	l.t.Helper()
	a, err := l.Assignment(l.t.Context(), name)
	if err != nil {
		l.t.Fatal(err)
	}
	p, err := l.Partition(l.t.Context(), a.Partition)
	if err != nil {
		l.t.Fatal(err)
	}
	write(l.t, l.sim, typeFile(p.Handle.PCIAddress), "0")
}

// Of two vGPUs that are put back together the first takes the seat that is left, and the
// second comes with its instance.
func TestPutBackBesideTheLastSeat(t *testing.T) {
	l := newSpreadLab(t, false)
	words := []string{"a=vm1:" + shared12, "b=vm2:" + shared12, "c=vm3:" + shared12}
	for _, w := range words {
		if op := l.apply(w); op.Status != operation.Done {
			t.Fatalf("%+v", op.Problem)
		}
	}
	before := show(l.layout(hopper))
	l.lose("a")
	l.lose("b")
	l.lose("c")
	byHand(t, l.sim, hopper, removeFirst)
	if op := l.apply(words[0]); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	plan, err := l.PlanApplyAssignments(t.Context(), wishes(words...))
	if err != nil || plan.Refusal != nil || len(plan.Steps) != 3 {
		t.Errorf("%+v, %v", plan, err)
	}
	if op := l.apply(words...); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	l.attached(3)
	if got := show(l.layout(hopper)); got != before {
		t.Errorf("%q, was %q", got, before)
	}
}

// A vGPU that is missing comes back also where its instance has gone with the last one that
// stood on it.
func TestPutBackAfterItsNeighbourWent(t *testing.T) {
	l := newSpreadLab(t, false)
	l.attach("a", gpu.Wish{VM: "vm1", Profile: shared12})
	l.attach("b", gpu.Wish{VM: "vm2", Profile: shared12})
	l.lose("a")
	l.detach("b")
	if got := show(l.layout(hopper)); got != "" {
		t.Logf("left %q", got)
	}
	if op := l.apply("a=vm1:" + shared12); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	l.attached(1)
	l.detach("a")
	if got := show(l.layout(hopper)); got != "" {
		t.Errorf("left: %q", got)
	}
}
