package host_test

import (
	"testing"

	"gpuvirt/operation"
)

// mixedWords are wishes that fill a card, small ones first: made in this order they leave the
// largest without a place.
func mixedWords() []string {
	return []string{"a=vm1:L40S-2Q", "b=vm2:L40S-4C", "c=vm3:L40S-16Q", "d=vm4:L40S-24Q", "e=vm5:L40S-2B"}
}

// What is missing on a card of mixed sizes is put back in an order in which each finds its
// place.
func TestPutBackMixed(t *testing.T) {
	for _, mdev := range []bool{true, false} {
		l := newMixedLab(t, mdev)
		addVMs(t, l, 8)
		if op := l.apply(mixedWords()...); op.Status != operation.Done {
			t.Fatalf("%+v", op.Problem)
		}
		if err := l.sim.Reboot(); err != nil {
			t.Fatal(err)
		}
		l.mustSetVFs(l40s, shareVFs)
		if op := l.apply(mixedWords()...); op.Status != operation.Done {
			t.Fatalf("%+v", op.Problem)
		}
		if got := l.vgpusOn(l40s); len(got) != 5 {
			t.Errorf("%q", got)
		}
	}
}

// Assignments of several sizes are converted together, as they would be one by one (T14).
func TestConvertMixed_T14(t *testing.T) {
	l := newMixedLab(t, true)
	addVMs(t, l, 8)
	if op := l.apply(mixedWords()...); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	l.switched(false)
	if plan, err := l.PlanApplyAssignments(t.Context(), wishes(mixedWords()...)); err != nil || plan.Refusal != nil {
		t.Fatalf("%+v, %v", plan.Refusal, err)
	}
	if op := l.apply(mixedWords()...); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	if got := l.vgpusOn(l40s); len(got) != 5 {
		t.Errorf("%q", got)
	}
}
