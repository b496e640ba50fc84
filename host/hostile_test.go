package host_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/operation"
)

const (
	t4         = gpu.ID("0000:08:00.0")
	removePath = "devices/virtual/mbochs/mbochs/*/remove"
)

func (l *lab) inject(f sim.Fault) {
	l.t.Helper()
	if err := l.sim.Inject(f); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) clear() {
	l.t.Helper()
	if err := l.sim.Clear(""); err != nil {
		l.t.Fatal(err)
	}
}

// reaches waits until an operation is as wanted, while it goes on.
func (l *lab) reaches(id string, ok func(operation.Operation) bool) operation.Operation {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	_, _, events := l.Events(ctx, 0)
	for {
		op, err := l.engine.Get(id)
		if err != nil {
			l.t.Fatal(err)
		}
		if ok(op) {
			return op
		}
		select {
		case <-events:
		case <-time.After(20 * time.Millisecond):
		}
		if ctx.Err() != nil {
			l.t.Fatalf("operation %+v", op)
		}
	}
}

// put starts an attach.
func (l *lab) put(name string, w gpu.Wish) operation.Operation {
	l.t.Helper()
	_, op, err := l.PutAssignment(l.t.Context(), "test", name, w)
	if err != nil {
		l.t.Fatal(err)
	}
	return *op
}

// impatient has writes that hang given up on soon. Elsewhere they get the time that a
// busy machine takes.
func (l *lab) impatient() {
	l.stop()
	l.writeTimeout = 3 * time.Second
	l.start()
}

// halfway starts an attach and stops it between its steps: the partition is made,
// and libvirt is down.
func (l *lab) halfway(name string, w gpu.Wish) operation.Operation {
	l.t.Helper()
	l.stop()
	l.writeTimeout, l.patience.Unavailable = time.Minute, time.Minute
	l.start()
	l.inject(sim.Fault{Path: createPath, Op: "write", Hang: true})
	op := l.put(name, w)
	if err := l.sim.Libvirt.SetDown(true); err != nil {
		l.t.Fatal(err)
	}
	l.clear()
	return l.reaches(op.ID, func(op operation.Operation) bool { return op.Steps[0].Status == operation.StepDone })
}

// whole checks that assignment a is there in every place, or in none.
func (l *lab) whole(vm string) bool {
	l.t.Helper()
	as, err := l.Assignments(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	parts, err := l.Partitions(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	v, err := l.VM(l.t.Context(), vm)
	if err != nil {
		l.t.Fatal(err)
	}
	if len(as) == 0 && len(parts) == 0 && len(v.Hostdevs) == 0 && len(l.mdevs()) == 0 {
		return false
	}
	if len(as) != 1 || len(parts) != 1 || len(v.Hostdevs) != 1 || len(l.mdevs()) != 1 || as[0].State != gpu.AssignmentAttached ||
		!as[0].Live || !as[0].Config || parts[0].Origin != gpu.OriginManaged || as[0].Partition != parts[0].ID {
		l.t.Fatalf("neither none nor complete: assignments %+v, partitions %+v, hostdevs %+v", as, parts, v.Hostdevs)
	}
	return true
}

// A create that hangs marks its GPU stuck and nothing else (T44). The device that
// appears when the write comes back is not forgotten: it is removed.
func TestHungCreateLeavesNothing_T44(t *testing.T) {
	l := newLab(t)
	l.manage(card, t4)
	l.impatient()
	l.inject(sim.Fault{Path: createPath, Op: "write", Hang: true})
	op := l.put("gfx", gpu.Wish{VM: "web2", Profile: size})
	l.reaches(op.ID, func(op operation.Operation) bool { return op.Status == operation.Undoing })
	if info := l.Info(t.Context()); info.State != gpu.HostDegraded {
		t.Errorf("info %+v", info)
	}
	l.attach("other", gpu.Wish{VM: "web1", Profile: "T4-1Q"})
	if end := l.finish(l.DeleteAssignment(t.Context(), "test", "other")); end.Status != operation.Done {
		t.Fatalf("another gpu: %+v", end.Problem)
	}
	l.clear()
	if end := l.finish(op, nil); end.Status != operation.Undone || end.Problem.Code != string(gpu.CodeStuck) {
		t.Fatalf("operation %s, problem %+v", end.Status, end.Problem)
	}
	if l.whole("web2") {
		t.Error("something is left")
	}
}

// An attach that is aborted at any moment leaves none or all of it.
func TestAbortedAttach(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	for range 25 {
		op := l.put("a", gpu.Wish{VM: "web1", Profile: size})
		<-time.After(rand.N(15 * time.Millisecond))
		_, err := l.engine.Abort(op.ID)
		if state, _ := errors.AsType[*operation.StateError](err); err != nil && state == nil {
			t.Fatal(err)
		}
		if end := l.finish(op, nil); end.Status == operation.Failed {
			t.Fatalf("failed: %+v", end)
		}
		if l.whole("web1") {
			l.finish(l.DeleteAssignment(t.Context(), "test", "a"))
		}
	}
}

// So does a detach.
func TestAbortedDetach(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	for range 25 {
		if !l.whole("web1") {
			l.attach("a", gpu.Wish{VM: "web1", Profile: size})
		}
		op, err := l.DeleteAssignment(t.Context(), "test", "a")
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(rand.N(20 * time.Millisecond))
		_, err = l.engine.Abort(op.ID)
		if state, _ := errors.AsType[*operation.StateError](err); err != nil && state == nil {
			t.Fatal(err)
		}
		if end := l.finish(op, nil); end.Status == operation.Failed {
			t.Fatalf("failed: %+v", end)
		}
	}
	l.whole("web1")
}

// A device whose removal hangs is never given back to the VM: the detach goes on
// when the kernel does.
func TestHungRemoveGoesForward(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	l.attach("a", gpu.Wish{VM: "web1", Profile: size})
	l.impatient()
	l.inject(sim.Fault{Path: removePath, Op: "write", Hang: true})
	op, err := l.DeleteAssignment(t.Context(), "test", "a")
	if err != nil {
		t.Fatal(err)
	}
	l.reaches(op.ID, func(op operation.Operation) bool {
		return len(op.Steps) == 2 && strings.Contains(logOf(op.Steps[1]), "trying again")
	})
	if vm, _ := l.VM(t.Context(), "web1"); len(vm.Hostdevs) != 0 {
		t.Fatalf("the doomed device is back: %+v", vm.Hostdevs)
	}
	l.clear()
	if end := l.finish(op, nil); end.Status != operation.Done {
		t.Fatalf("operation %s, problem %+v", end.Status, end.Problem)
	}
	if l.whole("web1") {
		t.Error("something is left")
	}
}

func logOf(s operation.Step) string {
	var b strings.Builder
	for _, line := range s.Log {
		b.WriteString(line.Text)
	}
	return b.String()
}

// A holder that lets go a moment later does not turn a detach round; one that stays
// does, and the VM has its device back (T17).
func TestPassingHolder(t *testing.T) {
	l := newLab(t)
	has := func(patience time.Duration) { l.stop(); l.patience.Busy = patience; l.start() }
	has(time.Minute)
	l.manage(card)
	a := l.attach("a", gpu.Wish{VM: "web1", Profile: size})
	if err := l.sim.Hold(a.Partition, 999, "slow"); err != nil {
		t.Fatal(err)
	}
	op, err := l.DeleteAssignment(t.Context(), "test", "a")
	if err != nil {
		t.Fatal(err)
	}
	l.reaches(op.ID, func(op operation.Operation) bool { return strings.Contains(logOf(op.Steps[1]), "trying again") })
	if err := l.sim.Release(a.Partition); err != nil {
		t.Fatal(err)
	}
	if end := l.finish(op, nil); end.Status != operation.Done {
		t.Fatalf("operation %s, problem %+v", end.Status, end.Problem)
	}
	has(time.Second)
	b := l.attach("b", gpu.Wish{VM: "web1", Profile: size})
	if err := l.sim.Hold(b.Partition, 999, "stays"); err != nil {
		t.Fatal(err)
	}
	end := l.finish(l.DeleteAssignment(t.Context(), "test", "b"))
	if end.Status != operation.Undone || end.Problem.Code != string(gpu.CodeGPUBusy) || len(end.Problem.Blockers) == 0 {
		t.Fatalf("operation %s, problem %+v", end.Status, end.Problem)
	}
	if !l.whole("web1") {
		t.Error("it is gone")
	}
}

// Somebody takes the device while the backend waits for the driver to remove it:
// the last look before the write sees that (T17, T19).
func TestTakenWhileRemovalWaits(t *testing.T) {
	l := newLab(t)
	l.stop()
	l.vanishWait = 50 * time.Millisecond
	l.start()
	l.manage(t4)
	l.finish(l.CreatePartition(t.Context(), "test", gpu.PartitionWish{Profile: "T4-4Q"}, gpu.Idempotency{}))
	id := l.mdevs()[0]
	before := l.writes()
	l.asked = sync.OnceFunc(func() { // which it is when the wait is over
		dev := gpu.Hostdev{Alias: "ua-somebody", Handle: gpu.Handle{MdevUUID: id}, Model: "vfio-pci"}
		if err := l.sim.Libvirt.Attach(t.Context(), sim.Web1, dev, gpu.Scope{Live: true}); err != nil {
			t.Error(err)
		}
	})
	op, err := l.DeletePartition(t.Context(), "test", id)
	if err != nil {
		t.Fatal(err)
	}
	if end := l.finish(op, nil); end.Status != operation.Undone || end.Problem.Code != string(gpu.CodeGPUBusy) {
		t.Fatalf("operation %s, problem %+v", end.Status, end.Problem)
	}
	if n := l.writes() - before; n != 0 {
		t.Errorf("%d writes to a device in use", n)
	}
}

// What was given up is not carried out again over what it left; deleting it is the
// way out.
func TestForgottenAttach(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	op := l.halfway("a", gpu.Wish{VM: "web1", Profile: size})
	l.inject(sim.Fault{Path: removePath, Op: "write", Errno: syscall.EACCES})
	if _, err := l.engine.Abort(op.ID); err != nil {
		t.Fatal(err)
	}
	if err := l.sim.Libvirt.SetDown(false); err != nil {
		t.Fatal(err)
	}
	if end := l.finish(op, nil); end.Status != operation.Failed {
		t.Fatalf("operation %s, problem %+v", end.Status, end.Problem)
	}
	if _, err := l.engine.Forget(op.ID); err != nil {
		t.Fatal(err)
	}
	l.clear()
	_, _, err := l.PutAssignment(t.Context(), "test", "a", gpu.Wish{VM: "web1", Profile: size})
	if e := wantCode(t, err, gpu.CodeConflict); e.Hint == "" {
		t.Errorf("refusal %+v", e)
	}
	if end := l.finish(l.DeleteAssignment(t.Context(), "test", "a")); end.Status != operation.Done {
		t.Fatalf("delete: %+v", end.Problem)
	}
	if l.whole("web1") {
		t.Error("something is left")
	}
}

// Labels and quarantine say nothing about which card is meant (T12).
func TestPatchDoesNotAcceptAnotherCard(t *testing.T) {
	l := newLab(t)
	l.manage(t4)
	if err := l.sim.Change(string(t4), func(c *sim.Card) { c.PCI.SubsystemDevice = "0xdead" }); err != nil {
		t.Fatal(err)
	}
	labels, yes := map[string]string{"rack": "7"}, true
	g, _, err := l.PatchGPU(t.Context(), "test", t4, gpu.GPUPatch{Labels: &labels}, false)
	if err != nil || g.Labels["rack"] != "7" {
		t.Fatalf("gpu %+v: %v", g, err)
	}
	_, _, err = l.PutAssignment(t.Context(), "test", "a", gpu.Wish{VM: "web1", Profile: "T4-4Q"})
	wantCode(t, err, gpu.CodeDrift)
	if _, _, err := l.PatchGPU(t.Context(), "test", t4, gpu.GPUPatch{Managed: &yes}, false); err != nil {
		t.Fatal(err)
	}
	l.attach("a", gpu.Wish{VM: "web1", Profile: "T4-4Q"})
}

// A resumed operation does not go on with another card (T12).
func TestResumeRefusesAnotherCard(t *testing.T) {
	l := newLab(t)
	l.manage(t4)
	l.inject(sim.Fault{Path: "devices/*/*/" + string(t4) + "/mdev_supported_types/*/create", Op: "write", Hang: true})
	op := l.put("a", gpu.Wish{VM: "db1", Profile: "T4-4Q"})
	l.stop()
	if err := errors.Join(l.sim.Clear(""), l.sim.Reboot(), l.sim.Change(string(t4), func(c *sim.Card) { c.PCI.SubsystemDevice = "0xdead" })); err != nil {
		t.Fatal(err)
	}
	l.start()
	end := l.finish(op, nil)
	if end.Status != operation.Undone {
		t.Fatalf("operation %s, problem %+v", end.Status, end.Problem)
	}
	if len(l.mdevs()) != 0 {
		t.Errorf("mdevs %q", l.mdevs())
	}
}

// A GPU that is gone for good does not keep its assignments for ever: who deletes
// one gets it deleted, since what is not in the kernel is in nobody's hands.
func TestDeleteOnAGPUThatIsGone(t *testing.T) {
	l := newLab(t)
	l.manage(t4)
	l.attach("a", gpu.Wish{VM: "db1", Profile: "T4-4Q"})
	if err := errors.Join(l.sim.Reboot(), l.sim.Change(string(t4), func(c *sim.Card) { c.Hidden = true })); err != nil {
		t.Fatal(err)
	}
	if a, err := l.Assignment(t.Context(), "a"); err != nil || a.State != gpu.AssignmentDrifted {
		t.Errorf("assignment %+v: %v", a, err)
	}
	if end := l.finish(l.DeleteAssignment(t.Context(), "test", "a")); end.Status != operation.Done {
		t.Fatalf("operation %s, problem %+v", end.Status, end.Problem)
	}
	if l.whole("db1") {
		t.Error("something is left")
	}
}

// One sick GPU hides nothing of the others.
func TestSickGPU(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	l.inject(sim.Fault{Path: "devices/*/*/0000:88:00.0/mdev_supported_types/*/name", Op: "read", Errno: syscall.EIO})
	a := l.attach("a", gpu.Wish{VM: "web1", Profile: size})
	if a.State != gpu.AssignmentAttached {
		t.Errorf("assignment %+v", a)
	}
	if parts, err := l.Partitions(t.Context()); err != nil || len(parts) != 1 {
		t.Errorf("partitions %+v: %v", parts, err)
	}
	if end := l.finish(l.DeleteAssignment(t.Context(), "test", "a")); end.Status != operation.Done {
		t.Errorf("delete: %+v", end.Problem)
	}
}

// A device under our alias that is another one is not touched (T48).
func TestOtherDeviceUnderOurAlias(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	a := l.attach("a", gpu.Wish{VM: "db1", Profile: size})
	other := gpu.Hostdev{Alias: gpu.Alias(a.Partition), Handle: gpu.Handle{MdevUUID: "0b6e5c5e-9f3d-4c62-8f0e-111111111111"}, Model: "vfio-pci"}
	ctx := t.Context()
	if err := l.sim.Libvirt.Detach(ctx, sim.DB1, other.Alias, gpu.Scope{Config: true}); err != nil {
		t.Fatal(err)
	}
	if err := l.sim.Libvirt.Attach(ctx, sim.DB1, other, gpu.Scope{Config: true}); err != nil {
		t.Fatal(err)
	}
	if b, err := l.Assignment(ctx, "a"); err != nil || b.State != gpu.AssignmentDrifted {
		t.Errorf("assignment %+v: %v", b, err)
	}
	end := l.finish(l.DeleteAssignment(ctx, "test", "a"))
	if end.Status != operation.Undone || end.Problem.Code != string(gpu.CodeForeignDevice) {
		t.Errorf("operation %s, problem %+v", end.Status, end.Problem)
	}
	if vm, _ := l.VM(ctx, "db1"); len(vm.Hostdevs) != 1 || vm.Hostdevs[0].Handle != other.Handle {
		t.Errorf("vm %+v", vm)
	}
}

// A reboot in the middle of an attach: what is attached is there.
func TestRebootDuringAttach(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	op := l.halfway("a", gpu.Wish{VM: "db1", Profile: size})
	l.stop()
	if err := errors.Join(l.sim.Reboot(), l.sim.Libvirt.SetDown(false)); err != nil {
		t.Fatal(err)
	}
	l.start()
	if end := l.finish(op, nil); end.Status != operation.Done {
		t.Fatalf("operation %s, problem %+v", end.Status, end.Problem)
	}
	a, err := l.Assignment(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if len(l.mdevs()) != 1 || a.State != gpu.AssignmentAttached || !a.Config {
		t.Errorf("mdevs %q, assignment %+v", l.mdevs(), a)
	}
}
