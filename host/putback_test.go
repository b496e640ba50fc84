package host_test

import (
	"strings"
	"syscall"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
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
	b, err := l.Assignment(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	_, function, _ := strings.Cut(b.Partition, "/vgpu/")
	path := "devices/*/*/0000:61:00." + string(function[0]+4) + "/nvidia/current_vgpu_type"
	l.inject(sim.Fault{Op: "write", Path: path, Errno: syscall.EIO, Times: 1})
	if op := l.apply(words...); op.Status != operation.Undone || op.Problem == nil || op.Problem.Code != string(gpu.CodeUnavailable) {
		t.Errorf("%s, %+v", op.Status, op.Problem)
	}
	for name, want := range map[string]gpu.AssignmentState{"a": gpu.AssignmentAttached, "b": gpu.AssignmentDrifted} {
		if a, err := l.Assignment(t.Context(), name); err != nil || a.State != want {
			t.Errorf("%+v, %v", a, err)
		}
	}
	// When the driver takes it again the other one comes back.
	if op := l.apply(words...); op.Status != operation.Done || len(op.Steps) != 1 {
		t.Errorf("%+v", op)
	}
	l.attached(2)
}

// What is put back is planned beside the rest of its batch: where that takes its room, or
// somebody else has, the batch is refused before anything is written.
func TestPutBackBesideItsBatch(t *testing.T) {
	l := newShareLab(t, false)
	addVMs(t, l, 3)
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
	n := l.wrote()
	_, op, err := l.ApplyAssignments(t.Context(), "test", wishes(words...), gpu.Idempotency{})
	if gpu.CodeOf(err) != gpu.CodeNoCapacity || op != nil || l.wrote() != n || !strings.Contains(err.Error(), `of assignment "b" back`) {
		t.Errorf("%+v, %v", op, err)
	}
	// Alone each has room.
	if plan, err := l.PlanAssignment(t.Context(), "b", gpu.Wish{VM: "vm2", Profile: "L40S-24Q"}); err != nil || plan.Refusal != nil || len(plan.Steps) != 1 {
		t.Errorf("%+v, %v", plan, err)
	}
}

// On the mdev bus a new wish of the batch can take the room of one that is missing.
func TestPutBackBesideANewOne(t *testing.T) {
	l := newLab(t, sim.T4(string(t4), 0))
	l.manage(t4)
	addVMs(t, l, 3)
	if op := l.apply("a=vm1:T4-8Q", "b=vm2:T4-8Q"); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	n := l.wrote()
	_, op, err := l.ApplyAssignments(t.Context(), "test", wishes("c=vm3:T4-8Q", "a=vm1:T4-8Q", "b=vm2:T4-8Q"), gpu.Idempotency{})
	if gpu.CodeOf(err) != gpu.CodeNoCapacity || op != nil || l.wrote() != n {
		t.Errorf("%+v, %v", op, err)
	}
	if op := l.apply("a=vm1:T4-8Q", "b=vm2:T4-8Q"); op.Status != operation.Done {
		t.Errorf("%+v", op.Problem)
	}
}
