package host_test

import (
	"slices"
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

// Where somebody else has taken the room of a missing partition, the same wish again is
// refused with who has it, dry or not, and nothing is written. Beside it one whose partition
// is there is as asked.
func TestPutBackWithoutRoom(t *testing.T) {
	l := newLab(t, sim.T4(string(t4), 0))
	l.manage(t4)
	addVMs(t, l, 2)
	if op := l.apply("a=vm1:T4-8Q", "b=vm2:T4-8Q"); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	a, err := l.Assignment(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	write(t, l.sim, "bus/mdev/devices/"+a.Partition+"/remove", "1")
	const theirs = "0b6e5c5e-9f3d-4c62-8f0e-111111111111"
	write(t, l.sim, "bus/pci/devices/"+string(t4)+"/mdev_supported_types/nvidia-"+nativeOf(t, l, t4, "T4-8Q")+"/create", theirs)
	n := l.wrote()
	wish := gpu.Wish{VM: "vm1", Profile: "T4-8Q"}
	_, op, err := l.PutAssignment(t.Context(), "test", "a", wish)
	e := wantCode(t, err, gpu.CodeNoCapacity)
	if op != nil || !slices.ContainsFunc(e.Blockers, func(b gpu.Blocker) bool { return b.ID == theirs }) || !strings.Contains(err.Error(), `of assignment "a" back`) || e.Hint == "" {
		t.Errorf("%+v, %v, %+v", op, err, e)
	}
	plan, err := l.PlanAssignment(t.Context(), "a", wish)
	if err != nil || gpu.CodeOf(plan.Refusal) != gpu.CodeNoCapacity || plan.Changes {
		t.Errorf("%+v, %v", plan, err)
	}
	b, op, err := l.PutAssignment(t.Context(), "test", "b", gpu.Wish{VM: "vm2", Profile: "T4-8Q"})
	if err != nil || op != nil || b.State != gpu.AssignmentAttached || l.wrote() != n {
		t.Errorf("%+v, %+v, %v", b, op, err)
	}
	write(t, l.sim, "bus/mdev/devices/"+theirs+"/remove", "1")
	if op := l.apply("a=vm1:T4-8Q"); op.Status != operation.Done {
		t.Errorf("%+v", op.Problem)
	}
	l.attached(2)
}

// Where another type is on the function of a vGPU the same wish again says so, instead of all
// being well; it is not touched.
func TestPutBackWhereAnotherIs(t *testing.T) {
	l := newShareLab(t, false)
	addVMs(t, l, 1)
	if op := l.apply("a=vm1:L40S-24Q"); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	a, err := l.Assignment(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.Partition(t.Context(), a.Partition)
	if err != nil {
		t.Fatal(err)
	}
	write(t, l.sim, typeFile(p.Handle.PCIAddress), "0")
	write(t, l.sim, typeFile(p.Handle.PCIAddress), nativeOf(t, l, l40s, "L40S-8Q"))
	n := l.wrote()
	_, op, err := l.PutAssignment(t.Context(), "test", "a", gpu.Wish{VM: "vm1", Profile: "L40S-24Q"})
	if e := wantCode(t, err, gpu.CodeConflict); op != nil || len(e.Blockers) != 1 || e.Blockers[0].Name != "L40S-8Q" || l.wrote() != n {
		t.Errorf("%+v, %v", op, err)
	}
}

// A card without its virtual functions says what is to be done before a vGPU comes back.
func TestPutBackWithoutFunctions(t *testing.T) {
	l := newShareLab(t, false)
	addVMs(t, l, 1)
	if op := l.apply("a=vm1:L40S-24Q"); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	_, _, err := l.PutAssignment(t.Context(), "test", "a", gpu.Wish{VM: "vm1", Profile: "L40S-24Q"})
	if e := wantCode(t, err, gpu.CodeProfileUnknown); !strings.Contains(e.Hint, "gpuvirt sriov set") {
		t.Errorf("%v, %+v", err, e)
	}
}

// A vGPU whose MIG instance went as well comes back with it, and the one beside it on that.
func TestPutBackWithItsInstance(t *testing.T) {
	l := newInstanceLab(t, sim.RTXPro6000(string(hopper), 0), 48)
	addVMs(t, l, 2)
	words := []string{"a=vm1:DC-1-12QGFX", "b=vm2:DC-1-12QGFX"}
	if op := l.apply(words...); op.Status != operation.Done || len(op.Steps) != 5 {
		t.Fatalf("%+v", op)
	}
	for _, name := range []string{"a", "b"} {
		a, err := l.Assignment(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		p, err := l.Partition(t.Context(), a.Partition)
		if err != nil {
			t.Fatal(err)
		}
		write(t, l.sim, typeFile(p.Handle.PCIAddress), "0")
	}
	before := show(l.layout(hopper))
	byHand(t, l.sim, hopper, removeFirst)
	plan, err := l.PlanApplyAssignments(t.Context(), wishes(words...))
	if err != nil || plan.Refusal != nil || len(plan.Steps) != 3 {
		t.Fatalf("%+v, %v", plan, err)
	}
	// The second alone brings the instance, and the first finds it.
	if op := l.apply(words[1]); op.Status != operation.Done || len(op.Steps) != 2 {
		t.Fatalf("%+v, %+v", op, op.Problem)
	}
	if op := l.apply(words...); op.Status != operation.Done || len(op.Steps) != 1 {
		t.Fatalf("%+v, %+v", op, op.Problem)
	}
	l.attached(2)
	if got := show(l.layout(hopper)); got != before {
		t.Errorf("%q, was %q", got, before)
	}
	l.detach("b")
	l.detach("a")
	if got := show(l.layout(hopper)); got != "" {
		t.Errorf("left: %q", got)
	}
}

// nativeOf is the number of a profile's type.
func nativeOf(t *testing.T, l *lab, id gpu.ID, profile string) string {
	t.Helper()
	ps, _, err := l.Profiles(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	p, _ := findProfile(ps, profile)
	return strings.TrimPrefix(p.NativeID, "nvidia-")
}
