package host_test

import (
	"strings"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/operation"
)

// A VM has one display: a second one is refused before anything is made, in one batch, beside
// an assignment, and beside what somebody else gave it (T52).
func TestSecondDisplay_T52(t *testing.T) {
	second := gpu.ID("0000:88:00.0")
	l := newLab(t, sim.T4(string(t4), 0), sim.T4(string(second), 0))
	l.manage(t4, second)
	addVMs(t, l, 2)
	shown := func(vm string, on gpu.ID) gpu.Wish { return gpu.Wish{VM: vm, Profile: "T4-1Q", GPU: on, Display: true} }
	n := l.wrote()
	both := []gpu.NamedWish{{Name: "a", Wish: shown("vm1", t4)}, {Name: "b", Wish: shown("vm1", second)}}
	if _, op, err := l.ApplyAssignments(t.Context(), "test", both, gpu.Idempotency{}); gpu.CodeOf(err) != gpu.CodeConflict || op != nil || l.wrote() != n {
		t.Errorf("%+v, %v", op, err)
	}
	both[1].Wish.Display = false
	_, op, err := l.ApplyAssignments(t.Context(), "test", both, gpu.Idempotency{})
	if err != nil || op == nil {
		t.Fatal(err)
	}
	if done := l.finish(*op, nil); done.Status != operation.Done {
		t.Fatalf("%+v", done.Problem)
	}
	vm, err := l.sim.Libvirt.VM(t.Context(), "vm1")
	if err != nil {
		t.Fatal(err)
	}
	displays := 0
	for _, d := range vm.Hostdevs {
		if d.Display {
			displays++
		}
	}
	if len(vm.Hostdevs) != 2 || displays != 1 {
		t.Errorf("%+v", vm.Hostdevs)
	}
	l.detach("b")
	n = l.wrote()
	_, op, err = l.PutAssignment(t.Context(), "test", "c", shown("vm1", second))
	if e := wantCode(t, err, gpu.CodeConflict); op != nil || l.wrote() != n || !strings.Contains(err.Error(), "assignment a") || e.Hint == "" {
		t.Errorf("%+v, %v", op, err)
	}
	// As part of the plan of another VM it is none of theirs.
	l.attach("d", shown("vm2", second))
}

// Only a mediated device can be a display: of another kind that is refused, also where a host
// has changed its generation (T14).
func TestDisplayOfAFunction_T14(t *testing.T) {
	l := newShareLab(t, true)
	l.attach("a", gpu.Wish{VM: "db1", Profile: "L40S-8Q", Display: true})
	l.switched(false)
	n := l.wrote()
	wish := gpu.Wish{VM: "db1", Profile: "L40S-8Q", Display: true}
	if _, op, err := l.PutAssignment(t.Context(), "test", "a", wish); gpu.CodeOf(err) != gpu.CodeInvalid || op != nil || l.wrote() != n {
		t.Errorf("%+v, %v", op, err)
	}
	l.detach("a")
	if _, op, err := l.PutAssignment(t.Context(), "test", "a", wish); gpu.CodeOf(err) != gpu.CodeInvalid || op != nil {
		t.Errorf("%+v, %v", op, err)
	}
	wish.Display = false
	l.attach("a", wish)
}
