package host_test

import (
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// Where one of several cannot be put back the operation is undone, and what is back for a VM
// that names it stays.
func TestPutBackUndone(t *testing.T) {
	l := newShareLab(t, false)
	addVMs(t, l, 2)
	words := []string{"a=vm1:L40S-24Q", "b=vm2:L40S-24Q"}
	if op := l.apply(words...); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	l.mustSetVFs(l40s, shareVFs)
	if err := l.sim.Sysfs.Write(t.Context(), typeFile("0000:61:01.0"), "1155"); err != nil { // somebody else's
		t.Fatal(err)
	}
	if op := l.apply(words...); op.Status != operation.Undone || op.Problem == nil || op.Problem.Code != string(gpu.CodeNoCapacity) {
		t.Errorf("%s, %+v", op.Status, op.Problem)
	}
	for name, want := range map[string]gpu.AssignmentState{"a": gpu.AssignmentAttached, "b": gpu.AssignmentDrifted} {
		if a, err := l.Assignment(t.Context(), name); err != nil || a.State != want {
			t.Errorf("%+v, %v", a, err)
		}
	}
	// When there is room again the other one comes back.
	if err := l.sim.Sysfs.Write(t.Context(), typeFile("0000:61:01.0"), "0"); err != nil {
		t.Fatal(err)
	}
	if op := l.apply(words...); op.Status != operation.Done || len(op.Steps) != 1 {
		t.Errorf("%+v", op)
	}
	l.attached(2)
}
