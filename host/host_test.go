package host_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"gpuvirt/gpu"
	"gpuvirt/host"
	"gpuvirt/internal/sim"
	"gpuvirt/inventory"
	"gpuvirt/mdev"
	"gpuvirt/mig"
	"gpuvirt/operation"
	"gpuvirt/sriov"
	"gpuvirt/store"
)

// lab is a whole daemon without HTTP: the real host, engine, store and backend on
// a simulated machine that outlives them.
type lab struct {
	t   *testing.T
	dir string
	sim *sim.Host

	*host.Host
	engine *operation.Engine
	store  *store.Store
	inv    *inventory.Inventory
	vms    host.VMs        // set before start: instead of the simulator's
	looked func(vm string) // hears of who is about to look at the head of a VM
	// monitor, set before start, is what stands before the library's backend.
	monitor func(*mig.Backend) gpu.Backend
	// library is NVIDIA's, set before start: instead of the simulator's.
	library mig.Library
	stop    func()

	// asked hears of a backend that asks whether a partition is in use, before it is told.
	asked func()

	patience                            host.Patience
	vanishWait, writeTimeout, clearWait time.Duration
	drain                               time.Duration // how long steps may go on once it is stopped
}

func newLab(t *testing.T, cards ...sim.Card) *lab {
	t.Helper()
	return openLab(t, t.TempDir(), cards...)
}

// openLab starts a daemon over what a folder holds.
func openLab(t *testing.T, dir string, cards ...sim.Card) *lab {
	t.Helper()
	l := &lab{t: t, dir: dir, vanishWait: -1, writeTimeout: 5 * time.Second, clearWait: -1, drain: time.Millisecond}
	l.patience = host.Patience{Pause: 5 * time.Millisecond, Unavailable: 3 * time.Second, Stuck: 20 * time.Second, Busy: 2 * time.Second}
	l.monitor = func(b *mig.Backend) gpu.Backend { return b }
	machine, err := sim.Open(filepath.Join(l.dir, "sim"), cards...)
	if err != nil {
		t.Fatal(err)
	}
	l.sim = machine
	t.Cleanup(func() { machine.Close() })
	l.start()
	t.Cleanup(func() { l.stop() })
	return l
}

// start starts the daemon's parts; stop ends them, the machine goes on.
func (l *lab) start() {
	l.t.Helper()
	db, err := store.Open(l.t.Context(), filepath.Join(l.dir, "db", "gpuvirt.db"), store.Options{NoSync: true})
	if err != nil {
		l.t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	l.store = db
	unused := func(ctx context.Context, p gpu.Partition) error {
		if l.asked != nil {
			l.asked()
		}
		return host.Unused(ctx, l.inv, p)
	}
	if l.library == nil {
		l.library = l.sim.NVML
	}
	gate := mig.NewGate(l.library)
	functions := sriov.Options{
		WriteTimeout: l.writeTimeout, Unused: unused, Run: l.sim.RunTool, CloseNVML: gate.Shut, UnbindLock: sriov.UnbindLock(l.sim.Proc),
	}
	cutter := mig.NewBackend(gate, l.sim.Sysfs, mig.Options{Unused: unused})
	l.inv = inventory.New(inventory.Config{
		Backends: map[gpu.Kind]gpu.Backend{
			gpu.KindMdev: mdev.New(l.sim.Sysfs, mdev.Options{
				VanishWait: l.vanishWait, WriteTimeout: l.writeTimeout, Unused: unused,
			}),
			gpu.KindMIG: l.monitor(cutter),
			gpu.KindVGPU: mdev.NewVendor(l.sim.Sysfs, mdev.VendorOptions{
				WriteTimeout: l.writeTimeout, ClearWait: l.clearWait, Unused: unused, Types: cutter.VGPUTypes,
			}),
			gpu.KindVF:   sriov.NewFunctions(l.sim.Sysfs, functions),
			gpu.KindCard: sriov.NewCards(l.sim.Sysfs, functions),
		},
		VMs: visited{l.sim.Libvirt, l}, Holders: l.sim, Devices: l.sim.Devices(),
	})
	if l.vms == nil {
		l.vms = l.sim.Libvirt
	}
	var h *host.Host
	l.engine = operation.New(operation.Config{
		Store: db, Log: log, Problem: host.Problem,
		Changed: func(op operation.Operation) { h.OperationChanged(op) },
	})
	h = host.New(host.Config{
		Store: db, Engine: l.engine, Inventory: l.inv, VMs: l.vms, Log: log,
		Now: time.Now, NewUUID: uuid.NewString, HostID: "host", BootID: "boot",
		DetachTimeout: 300 * time.Millisecond, DrainTimeout: l.drain, Patience: l.patience,
	})
	l.Host = h
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := h.Run(ctx); err != nil {
			l.t.Errorf("run: %v", err)
		}
	}()
	for h.Info(ctx).State != gpu.HostReady { // Add is refused before the engine has started
		<-time.After(time.Millisecond)
	}
	l.stop = func() { cancel(); <-ended; db.Close(); l.stop = func() {} }
}

func (l *lab) restart() { l.stop(); l.start() }

func (l *lab) manage(ids ...gpu.ID) {
	l.t.Helper()
	yes := true
	for _, id := range ids {
		if _, _, err := l.PatchGPU(l.t.Context(), "test", id, gpu.GPUPatch{Managed: &yes}, false); err != nil {
			l.t.Fatal(err)
		}
	}
}

// finish waits until an operation has come to rest.
func (l *lab) finish(op operation.Operation, err error) operation.Operation {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
	op, err = l.engine.Wait(l.t.Context(), op.ID)
	if err != nil {
		l.t.Fatal(err)
	}
	return op
}

func (l *lab) attach(name string, w gpu.Wish) gpu.Assignment {
	l.t.Helper()
	_, op, err := l.PutAssignment(l.t.Context(), "test", name, w)
	if err != nil {
		l.t.Fatal(err)
	}
	if got := l.finish(*op, nil); got.Status != operation.Done {
		l.t.Fatalf("attach %s ended %s: %+v", name, got.Status, got.Problem)
	}
	a, err := l.Assignment(l.t.Context(), name)
	if err != nil {
		l.t.Fatal(err)
	}
	return a
}

func (l *lab) mdevs() []string {
	l.t.Helper()
	names, err := l.sim.Sysfs.List("bus/mdev/devices")
	if err != nil {
		return nil
	}
	return names
}

func (l *lab) writes() int {
	l.t.Helper()
	w, err := l.sim.Writes()
	if err != nil {
		l.t.Fatal(err)
	}
	return len(w)
}

func wantCode(t *testing.T, err error, code gpu.Code) *gpu.Error {
	t.Helper()
	if err == nil || gpu.CodeOf(err) != code {
		t.Fatalf("error %v (%s), want %s", err, gpu.CodeOf(err), code)
	}
	var e *gpu.Error
	if ge, ok := err.(*gpu.Error); ok { //nolint:errorlint // the refusal itself is looked at, not its chain
		e = ge
	}
	return e
}

const (
	card = gpu.ID("mbochs")
	size = "mbochs-small"

	createPath = "devices/virtual/mbochs/mbochs/mdev_supported_types/*/create"
)

func TestUnmanagedGPUIsNotTouched(t *testing.T) {
	l := newLab(t)
	gpus, err := l.GPUs(t.Context())
	if err != nil || len(gpus) < 4 {
		t.Fatalf("gpus %+v: %v", gpus, err)
	}
	_, _, err = l.PutAssignment(t.Context(), "test", "a", gpu.Wish{VM: "web1", Profile: size})
	e := wantCode(t, err, gpu.CodeGPUUnmanaged)
	if len(e.Blockers) != 1 || e.Blockers[0].ID != string(card) || e.Hint == "" {
		t.Errorf("refusal %+v", e)
	}
	if n := l.writes(); n != 0 {
		t.Errorf("%d writes to sysfs", n)
	}
}

func TestAttachLifecycle(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	w := gpu.Wish{VM: "web1", Profile: size}
	a := l.attach("gfx", w)
	if a.State != gpu.AssignmentAttached || !a.Live || !a.Config || a.RestartRequired || len(a.Conditions) != 0 {
		t.Fatalf("assignment %+v", a)
	}
	if got := l.mdevs(); !slices.Equal(got, []string{a.Partition}) {
		t.Fatalf("mdevs %q, want %s", got, a.Partition)
	}

	// The same wish, by name or UUID, is fulfilled: nothing is written.
	stored, kernel := l.store.Writes(), l.writes()
	for _, vm := range []string{"web1", a.Wish.VM} {
		b, op, err := l.PutAssignment(t.Context(), "test", "gfx", gpu.Wish{VM: vm, Profile: size})
		if err != nil || op != nil || b.Partition != a.Partition {
			t.Fatalf("again: %+v, %v, %v", b, op, err)
		}
	}
	// Another one is refused with the difference.
	_, _, err := l.PutAssignment(t.Context(), "test", "gfx", gpu.Wish{VM: "web2", Profile: "mbochs-large"})
	e := wantCode(t, err, gpu.CodeConflict)
	if e.Diff["profile"] != [2]string{size, "mbochs-large"} || e.Diff["vm"][0] != a.Wish.VM {
		t.Errorf("diff %v", e.Diff)
	}
	if l.store.Writes() != stored || l.writes() != kernel {
		t.Error("a wish that changes nothing wrote something")
	}

	// It is there after a restart of the daemon, which touches nothing (T15).
	l.restart()
	b, err := l.Assignment(t.Context(), "gfx")
	if err != nil || b.State != gpu.AssignmentAttached || b.Partition != a.Partition || l.writes() != kernel {
		t.Fatalf("after the restart: %+v, %v, %d writes", b, err, l.writes()-kernel)
	}

	// A partition that a VM has is not deleted behind its back, nor is its GPU let go.
	_, err = l.DeletePartition(t.Context(), "test", a.Partition)
	wantCode(t, err, gpu.CodeConflict)
	no := false
	_, _, err = l.PatchGPU(t.Context(), "test", card, gpu.GPUPatch{Managed: &no}, false)
	wantCode(t, err, gpu.CodeGPUBusy)

	if op := l.finish(l.DeleteAssignment(t.Context(), "test", "gfx")); op.Status != operation.Done {
		t.Fatalf("detach: %+v", op.Problem)
	}
	if got := l.mdevs(); len(got) != 0 {
		t.Errorf("mdevs %q", got)
	}
	if vm, _ := l.VM(t.Context(), "web1"); len(vm.Hostdevs) != 0 || len(vm.Assignments) != 0 {
		t.Errorf("vm %+v", vm)
	}
	_, err = l.Assignment(t.Context(), "gfx")
	wantCode(t, err, gpu.CodeNotFound)
}

func TestHotplug(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	stopped := l.attach("later", gpu.Wish{VM: "db1", Profile: size})
	if stopped.Live || !stopped.Config || stopped.RestartRequired {
		t.Errorf("a stopped vm: %+v", stopped)
	}
	never := l.attach("never", gpu.Wish{VM: "web1", Profile: size, Hotplug: gpu.HotplugNever})
	if never.Live || !never.Config || !never.RestartRequired || never.State != gpu.AssignmentAttached {
		t.Errorf("hotplug never: %+v", never)
	}
	_, _, err := l.PutAssignment(t.Context(), "test", "now", gpu.Wish{VM: "db1", Profile: size, Hotplug: gpu.HotplugRequire})
	if e := wantCode(t, err, gpu.CodeConflict); len(e.Blockers) != 1 || e.Blockers[0].Kind != "vm" {
		t.Errorf("refusal %+v", e)
	}
	if err := l.sim.Libvirt.Boot("db1"); err != nil {
		t.Fatal(err)
	}
	if a, _ := l.Assignment(t.Context(), "later"); !a.Live || a.State != gpu.AssignmentAttached {
		t.Errorf("after the start: %+v", a)
	}
}

func TestNoCapacityLeavesNothing(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	for i := range 4 {
		l.attach(fmt.Sprintf("l%d", i), gpu.Wish{VM: "db1", Profile: "mbochs-large"})
	}
	c, err := l.Capacity(t.Context(), "mbochs-large")
	if err != nil || c[0].Available != 0 || len(c[0].GPUs[0].Reasons) == 0 {
		t.Fatalf("capacity %+v: %v", c, err)
	}
	before, stored := l.mdevs(), l.store.Writes()
	plan, err := l.PlanAssignment(t.Context(), "more", gpu.Wish{VM: "db1", Profile: size})
	if err != nil || gpu.CodeOf(plan.Refusal) != gpu.CodeNoCapacity || plan.Changes {
		t.Errorf("plan %+v: %v", plan, err)
	}
	_, _, err = l.PutAssignment(t.Context(), "test", "more", gpu.Wish{VM: "db1", Profile: size})
	wantCode(t, err, gpu.CodeNoCapacity)
	if got := l.mdevs(); !slices.Equal(got, before) || l.store.Writes() != stored {
		t.Errorf("a refusal changed something: %q, were %q", got, before)
	}
}

func TestUnknownProfileNamesTheRightOne(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	_, _, err := l.PutAssignment(t.Context(), "test", "a", gpu.Wish{VM: "web1", Profile: "MBOCHS-small"})
	if e := wantCode(t, err, gpu.CodeProfileUnknown); !strings.Contains(e.Hint, size) {
		t.Errorf("hint %q (T38)", e.Hint)
	}
	_, _, err = l.PutAssignment(t.Context(), "test", "a", gpu.Wish{VM: "web1", Profile: size, GPU: "0000:ff:00.0"})
	wantCode(t, err, gpu.CodeNotFound)
	_, _, err = l.PutAssignment(t.Context(), "test", "a", gpu.Wish{VM: "nobody", Profile: size})
	wantCode(t, err, gpu.CodeVMNotFound)
}

// A failed attach leaves nothing behind (T21, T34).
func TestFailedAttachLeavesNothing(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	if err := l.sim.Inject(sim.Fault{Path: createPath, Op: "write", Errno: syscall.EIO}); err != nil {
		t.Fatal(err)
	}
	_, op, err := l.PutAssignment(t.Context(), "test", "a", gpu.Wish{VM: "web1", Profile: size})
	if err != nil {
		t.Fatal(err)
	}
	if got := l.finish(*op, nil); got.Status != operation.Undone || got.Problem == nil || got.Problem.Step != "partition.make" {
		t.Fatalf("operation %+v", got)
	}
	_, err = l.Assignment(t.Context(), "a")
	wantCode(t, err, gpu.CodeNotFound)
	if parts, err := l.Partitions(t.Context()); err != nil || len(parts) != 0 {
		t.Errorf("partitions %+v: %v", parts, err)
	}
}

// A guest that never lets go: a clear end, and all is as it was.
func TestStubbornGuest(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	a := l.attach("gfx", gpu.Wish{VM: "web1", Profile: size})
	if err := l.sim.Libvirt.SetStubborn("web1", true); err != nil {
		t.Fatal(err)
	}
	op := l.finish(l.DeleteAssignment(t.Context(), "test", "gfx"))
	if op.Status != operation.Undone || op.Problem == nil || op.Problem.Code != string(gpu.CodeStuck) {
		t.Fatalf("operation %s, problem %+v", op.Status, op.Problem)
	}
	b, err := l.Assignment(t.Context(), "gfx")
	if err != nil || b.State != gpu.AssignmentAttached || !b.Live || !b.Config || !slices.Equal(l.mdevs(), []string{a.Partition}) {
		t.Fatalf("assignment %+v: %v", b, err)
	}
}

// While libvirt is down nothing is freed, reads answer, writes are refused (T23).
func TestLibvirtDown(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	a := l.attach("gfx", gpu.Wish{VM: "web1", Profile: size})
	if err := l.sim.Libvirt.SetDown(true); err != nil {
		t.Fatal(err)
	}
	b, err := l.Assignment(t.Context(), "gfx")
	if err != nil || b.State != gpu.AssignmentUnknown || b.Conditions[0].Type != gpu.Unknown {
		t.Errorf("assignment %+v: %v", b, err)
	}
	if all, err := l.Assignments(t.Context()); err != nil || len(all) != 1 || all[0].State != gpu.AssignmentUnknown {
		t.Errorf("assignments %+v: %v", all, err)
	}
	if p, err := l.Partition(t.Context(), a.Partition); err != nil || p.State != gpu.PartitionMade {
		t.Errorf("partition %+v: %v", p, err)
	}
	if info := l.Info(t.Context()); info.State != gpu.HostDegraded || len(info.Reasons) == 0 {
		t.Errorf("info %+v", info)
	}
	_, _, err = l.PutAssignment(t.Context(), "test", "other", gpu.Wish{VM: "web1", Profile: size})
	wantCode(t, err, gpu.CodeUnavailable)
	_, err = l.DeleteAssignment(t.Context(), "test", "gfx")
	wantCode(t, err, gpu.CodeUnavailable)
	if got := l.mdevs(); !slices.Equal(got, []string{a.Partition}) {
		t.Errorf("mdevs %q", got)
	}
	if err := l.sim.Libvirt.SetDown(false); err != nil {
		t.Fatal(err)
	}
	if b, err := l.Assignment(t.Context(), "gfx"); err != nil || b.State != gpu.AssignmentAttached {
		t.Errorf("afterwards: %+v: %v", b, err)
	}
}

// A VM that is shut down while its partition is being made gets the device into its
// persistent definition, as one that did not run from the beginning.
func TestVMStopsWhileItsPartitionIsMade(t *testing.T) {
	l := newLab(t)
	l.manage(card)
	l.writeTimeout = time.Minute
	l.restart()
	if err := l.sim.Inject(sim.Fault{Op: "write", Path: createPath, Hang: true}); err != nil {
		t.Fatal(err)
	}
	_, op, err := l.PutAssignment(t.Context(), "test", "a", gpu.Wish{VM: "web1", Profile: size})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.sim.Libvirt.Shutdown("web1"); err != nil {
		t.Fatal(err)
	}
	if err := l.sim.Clear(createPath); err != nil {
		t.Fatal(err)
	}
	if end := l.finish(*op, nil); end.Status != operation.Done {
		t.Fatalf("attach ended %s: %+v", end.Status, end.Problem)
	}
	a, err := l.Assignment(t.Context(), "a")
	if err != nil || a.Live || !a.Config || a.RestartRequired || a.State != gpu.AssignmentAttached {
		t.Errorf("assignment %+v: %v", a, err)
	}
}
