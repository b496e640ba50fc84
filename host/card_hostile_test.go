package host_test

import (
	"context"
	"path"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/operation"
)

const (
	flex2 = gpu.ID("0000:91:00.0")
	rx2   = gpu.ID("0000:72:00.0")
	sound = "0000:71:00.1" // beside rx

	probePath  = "bus/pci/drivers_probe"
	takePath   = "bus/pci/drivers/vfio-pci/bind"
	givePath   = "bus/pci/drivers/amdgpu/bind"
	unbindPath = "bus/pci/drivers/vfio-pci/unbind"
)

// killedHanging starts something, waits until a write on a path hangs, and returns the
// host as it is when the daemon is killed then and something else happens before its next
// start. That write never reaches the kernel.
func (l *lab) killedHanging(pattern string, start func(), meanwhile func(*sim.Host)) *lab {
	l.t.Helper()
	l.stop()
	l.writeTimeout = time.Minute
	l.start()
	l.inject(sim.Fault{Op: "write", Path: pattern, Hang: true, Errno: syscall.EIO})
	before := l.wrote()
	start()
	l.written(pattern, before)
	dir := l.imageAtRest()
	l.clear()
	h, err := sim.Open(filepath.Join(dir, "sim"))
	if err != nil {
		l.t.Fatal(err)
	}
	if err := h.Clear(""); err != nil {
		l.t.Fatal(err)
	}
	if meanwhile != nil {
		meanwhile(h)
	}
	if err := h.Close(); err != nil {
		l.t.Fatal(err)
	}
	return openLab(l.t, dir)
}

// written waits until a path is written to, after so many writes.
func (l *lab) written(pattern string, after int) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	for {
		all, err := l.sim.Writes()
		if err != nil {
			l.t.Fatal(err)
		}
		if slices.ContainsFunc(all[after:], func(w sim.Write) bool { ok, err := path.Match(pattern, w.Path); return ok && err == nil }) {
			return
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			l.t.Fatalf("nothing is written to %s, only %+v", pattern, all[after:])
		}
	}
}

// imageAtRest is an image while the machine changes nothing.
func (l *lab) imageAtRest() (dir string) {
	l.t.Helper()
	cards, err := l.inv.GPUs(l.t.Context())
	if err != nil || len(cards) == 0 {
		l.t.Fatalf("%+v, %v", cards, err)
	}
	if err := l.sim.Change(string(cards[0].ID), func(*sim.Card) { dir = l.image() }); err != nil {
		l.t.Fatal(err)
	}
	return dir
}

// write has somebody else write into sysfs.
func write(t *testing.T, h *sim.Host, name, value string) {
	t.Helper()
	if err := h.Sysfs.Write(t.Context(), name, value); err != nil {
		t.Fatal(err)
	}
}

// turnOn has somebody else turn on virtual functions.
func turnOn(t *testing.T, h *sim.Host, id gpu.ID, n string) {
	t.Helper()
	write(t, h, "bus/pci/devices/"+string(id)+"/sriov_numvfs", n)
}

// names has somebody else give a VM that is off a device.
func (l *lab) names(vm, address string) {
	l.t.Helper()
	dev := gpu.Hostdev{Alias: "ua-theirs", Handle: gpu.Handle{PCIAddress: address}}
	if err := l.sim.Libvirt.Attach(l.t.Context(), vm, dev, gpu.Scope{Config: true}); err != nil {
		l.t.Fatal(err)
	}
}

// A driver that does not take its card back at first gets it at the next try: the card is
// not taken for given back because VFIO has it no more.
func TestCardIsGivenBackInTheEnd(t *testing.T) {
	l := newPCILab(t)
	l.attach("a", gpu.Wish{VM: "db1", Profile: rxCard})
	l.inject(sim.Fault{Op: "write", Path: probePath, Errno: syscall.EIO, Times: 2})
	l.inject(sim.Fault{Op: "write", Path: "bus/pci/drivers/amdgpu/bind", Errno: syscall.EIO, Times: 1})
	l.detach("a")
	if a, b := l.driverOf(string(rx)), l.driverOf(sound); a != "amdgpu" || b != "snd_hda_intel" {
		t.Errorf("the card is with %q, its sound with %q", a, b)
	}
}

// So does one of a virtual function.
func TestFunctionIsGivenBackInTheEnd(t *testing.T) {
	l := newPCILab(t)
	turnOn(t, l.sim, flex, "2") // by somebody else, with their driver
	vf := l.vfs(flex).Functions[0].PCIAddress
	before := l.driverOf(vf)
	l.attach("a", gpu.Wish{VM: "db1", Profile: flexVF})
	if got := l.driverOf(vf); got != "vfio-pci" || before == "" {
		t.Fatalf("the function was with %q and is with %q", before, got)
	}
	l.inject(sim.Fault{Op: "write", Path: probePath, Errno: syscall.EIO, Times: 2})
	l.inject(sim.Fault{Op: "write", Path: "bus/pci/drivers/" + before + "/bind", Errno: syscall.EIO, Times: 1})
	l.detach("a")
	if got := l.driverOf(vf); got != before {
		t.Errorf("the function was with %q and is with %q", before, got)
	}
}

// A card of which the taking hung, and failed when it came back, has its driver again.
func TestHungTakeGivesCardBack_T44(t *testing.T) {
	l := newPCILab(t)
	l.impatient()
	l.inject(sim.Fault{Op: "write", Path: takePath, Hang: true, Errno: syscall.EIO})
	op := l.put("a", gpu.Wish{VM: "db1", Profile: rxCard})
	l.reaches(op.ID, func(op operation.Operation) bool { return op.Status == operation.Undoing })
	l.clear()
	if end := l.finish(op, nil); end.Status != operation.Undone {
		t.Errorf("operation %s, problem %+v", end.Status, end.Problem)
	}
	if got := l.driverOf(string(rx)); got != "amdgpu" {
		t.Errorf("the card is with %q", got)
	}
}

// A daemon that is killed while it gives a card back goes on with that, wherever it was.
func TestCrashWhileCardIsGivenBack_T01(t *testing.T) {
	for _, at := range []string{unbindPath, givePath} {
		l := newPCILab(t)
		l.attach("a", gpu.Wish{VM: "db1", Profile: rxCard})
		k := l.killedHanging(at, func() {
			if _, err := l.DeleteAssignment(t.Context(), "test", "a"); err != nil {
				t.Fatal(err)
			}
		}, nil)
		k.settled()
		if a, b := k.driverOf(string(rx)), k.driverOf(sound); a != "amdgpu" || b != "snd_hda_intel" {
			t.Errorf("killed at %s: the card is with %q, its sound with %q", at, a, b)
		}
		if _, err := k.Assignment(t.Context(), "a"); gpu.CodeOf(err) != gpu.CodeNotFound {
			t.Errorf("killed at %s: %v", at, err)
		}
	}
}

// One that is killed while it takes a card goes on; where that can be no more, the card
// has its driver again.
func TestCrashWhileCardIsTaken_T01(t *testing.T) {
	for _, loaded := range []bool{true, false} {
		l := newPCILab(t)
		k := l.killedHanging(takePath, func() { l.put("a", gpu.Wish{VM: "db1", Profile: rxCard}) }, func(h *sim.Host) {
			if err := h.SetLoaded("vfio-pci", loaded); err != nil {
				t.Fatal(err)
			}
		})
		k.settled()
		a, err := k.Assignment(t.Context(), "a")
		driver := k.driverOf(string(rx))
		if loaded && (err != nil || a.State != gpu.AssignmentAttached || driver != "vfio-pci") {
			t.Errorf("the card is with %q: %+v, %v", driver, a, err)
		}
		if !loaded && (gpu.CodeOf(err) != gpu.CodeNotFound || driver != "amdgpu") {
			t.Errorf("without vfio-pci the card is with %q: %+v, %v", driver, a, err)
		}
	}
}

// An operation that was killed, and whose functions somebody turned off meanwhile, ends
// and leaves nothing.
func TestUndoWhereFunctionsWent(t *testing.T) {
	l := newPCILab(t)
	l.mustSetVFs(flex, 2)
	k := l.killedHanging(takePath, func() { l.put("a", gpu.Wish{VM: "db1", Profile: flexVF}) },
		func(h *sim.Host) { turnOn(t, h, flex, "0") })
	k.settled()
	ps, err := k.Partitions(t.Context())
	if err != nil || len(ps) != 0 {
		t.Errorf("%+v, %v", ps, err)
	}
	if as, err := k.Assignments(t.Context()); err != nil || len(as) != 0 {
		t.Errorf("%+v, %v", as, err)
	}
}

// Functions that somebody else has turned on do not go for another number, until they are
// asked for.
func TestForeignFunctionsStay(t *testing.T) {
	l := newPCILab(t)
	turnOn(t, l.sim, flex, "2")
	n := l.wrote()
	for _, other := range []int{0, 4} {
		plan, err := l.PlanPutVFs(t.Context(), flex, other)
		if err != nil || gpu.CodeOf(plan.Refusal) != gpu.CodeForeignDevice {
			t.Errorf("%d: %+v, %v", other, plan, err)
		}
		_, _, err = l.PutVFs(t.Context(), "test", flex, other)
		if e := wantCode(t, err, gpu.CodeForeignDevice); e.Hint == "" {
			t.Errorf("%d: %+v", other, e)
		}
	}
	if s := l.vfs(flex); len(s.Functions) != 2 || l.wrote() != n {
		t.Errorf("%+v", s)
	}
	if _, op, err := l.PutVFs(t.Context(), "test", flex, 2); err != nil {
		t.Fatal(err)
	} else if op != nil {
		l.finish(*op, nil)
	}
	l.mustSetVFs(flex, 4)
}

// A card that refuses for what only a closer look shows leaves the next one to be tried.
func TestNextCardIsTried(t *testing.T) {
	second := sim.RX(string(rx2))
	second.PCI.Group = 90
	for name, tc := range map[string]struct {
		cards   []sim.Card
		profile string
		closed  func(*lab) // closes the first one
	}{
		"its definition": {[]sim.Card{sim.RX(string(rx)), second}, rxCard, func(l *lab) { l.names(sim.DB1, string(rx)) }},
		"a program": {[]sim.Card{sim.T4(string(t4), 0), sim.T4("0000:88:00.0", 1)}, "card-10de:1eb8", func(l *lab) {
			if err := l.sim.Watch(string(t4), 4711, "nvidia-smi"); err != nil {
				t.Fatal(err)
			}
		}},
		"its last function": {[]sim.Card{sim.Flex(string(flex), 0), sim.Flex(string(flex2), 1)}, flexVF, func(l *lab) {
			l.mustSetVFs(flex, 1)
			l.mustSetVFs(flex2, 4)
			l.names(sim.DB1, l.vfs(flex).Functions[0].PCIAddress)
		}},
		"one that is missing": {[]sim.Card{sim.Flex(string(flex), 0), sim.Flex(string(flex2), 1)}, flexVF, func(l *lab) {
			l.mustSetVFs(flex, 2)
			l.mustSetVFs(flex2, 4)
			p, err := l.Partition(t.Context(), l.attach("theirs", gpu.Wish{VM: "db1", Profile: flexVF, GPU: flex}).Partition)
			if err != nil {
				t.Fatal(err)
			}
			write(t, l.sim, unbindPath, p.Handle.PCIAddress)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, tc.cards...)
			first, next := gpu.ID(tc.cards[0].Name), gpu.ID(tc.cards[1].Name)
			l.manage(first, next)
			tc.closed(l)
			if plan, err := l.PlanAssignment(t.Context(), "a", gpu.Wish{VM: "web2", Profile: tc.profile, GPU: first}); err != nil || plan.Refusal == nil {
				t.Errorf("the first is not closed: %+v, %v", plan, err)
			}
			if a := l.attach("a", gpu.Wish{VM: "web2", Profile: tc.profile}); a.GPU != next {
				t.Errorf("%+v", a)
			}
		})
	}
}

// Functions that have gone from under an assignment can be turned on again, and the
// assignment that is put again has its partition again.
func TestFunctionsThatWentComeBack(t *testing.T) {
	l := newPCILab(t)
	l.mustSetVFs(flex, 4)
	w := gpu.Wish{VM: "db1", Profile: flexVF}
	was := l.attach("a", w)
	if err := l.sim.Reboot(); err != nil { // and no restore
		t.Fatal(err)
	}
	l.mustSetVFs(flex, 4)
	if a, err := l.Assignment(t.Context(), "a"); err != nil || a.State == gpu.AssignmentAttached {
		t.Fatalf("%+v, %v", a, err)
	}
	if plan, err := l.PlanAssignment(t.Context(), "a", w); err != nil || plan.Refusal != nil || len(plan.Steps) != 1 {
		t.Errorf("%+v, %v", plan, err)
	}
	if a := l.attach("a", w); a.State != gpu.AssignmentAttached || a.Partition != was.Partition {
		t.Errorf("%+v", a)
	}
	if _, op, err := l.PutAssignment(t.Context(), "test", "a", w); err != nil || op != nil {
		t.Errorf("once more: %+v, %v", op, err)
	}
}

// A device that the definition of another VM names as well is not taken from the VM that
// has it: it could not be removed, and would come back. The dry run says so.
func TestDetachAsksWhoElse(t *testing.T) {
	l := newPCILab(t)
	l.mustSetVFs(flex, 2)
	p, err := l.Partition(t.Context(), l.attach("a", gpu.Wish{VM: "web1", Profile: flexVF}).Partition)
	if err != nil {
		t.Fatal(err)
	}
	l.names(sim.DB1, p.Handle.PCIAddress)
	plan, err := l.PlanDeleteAssignment(t.Context(), "a")
	if err != nil || gpu.CodeOf(plan.Refusal) != gpu.CodeGPUBusy {
		t.Errorf("%+v, %v", plan, err)
	}
	_, err = l.DeleteAssignment(t.Context(), "test", "a")
	if e := wantCode(t, err, gpu.CodeGPUBusy); len(e.Blockers) != 1 || e.Blockers[0].Name != "db1" {
		t.Errorf("%+v", e)
	}
	if err := l.sim.Libvirt.Detach(t.Context(), sim.DB1, "ua-theirs", gpu.Scope{Config: true}); err != nil {
		t.Fatal(err)
	}
	l.detach("a")
}

// The functions that a card was asked to have do not come back at a boot where the card
// has been given away whole since.
func TestGivenAwayCardHasNoFunctions(t *testing.T) {
	l := newPCILab(t)
	l.mustSetVFs(flex, 4)
	turnOn(t, l.sim, flex, "0")
	l.attach("a", gpu.Wish{VM: "db1", Profile: "card-8086:56c0"})
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.restore(10 * time.Second); err != nil {
		t.Error(err)
	}
	if got := l.driverOf(string(flex)); got != "vfio-pci" {
		t.Errorf("the card is with %q", got)
	}
}

// A card that is given away is not laid out in the time after a boot in which its driver
// has it.
func TestGivenAwayCardIsNotLaidOut(t *testing.T) {
	l := newPCILab(t)
	l.attach("all", gpu.Wish{VM: "db1", Profile: "card-10de:20f1"})
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	_, _, err := l.PutLayout(t.Context(), "test", ampere, cut("1g.5gb"))
	if e := wantCode(t, err, gpu.CodeConflict); len(e.Blockers) != 1 || e.Blockers[0].Note != "all" {
		t.Errorf("%+v", e)
	}
	if _, err := l.restore(10 * time.Second); err != nil || l.driverOf(string(ampere)) != "vfio-pci" {
		t.Errorf("the card is with %q: %v", l.driverOf(string(ampere)), err)
	}
}

// A restore does not take a card from under the instances that somebody else has made on
// it since the boot.
func TestRestoreLeavesForeignInstances(t *testing.T) {
	l := newPCILab(t)
	l.attach("all", gpu.Wish{VM: "db1", Profile: "card-10de:20f1"})
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	byHand(t, l.sim, ampere, func(d mig.Device) error { _, err := d.SetMode(true); return err })
	putInPlace(t, l.sim, ampere, "1g.5gb", "4")
	if _, err := l.restore(10 * time.Second); err == nil {
		t.Error("all is well")
	}
	if got := l.driverOf(string(ampere)); got != "nvidia" || len(l.instancesOf(ampere)) != 1 {
		t.Errorf("the card is with %q", got)
	}
}

// A restore does not wait for what cannot come: the boot waits for it.
func TestRestoreDoesNotWaitInVain(t *testing.T) {
	l := newInstanceLab(t, sim.H100(string(hopper), 0), 32)
	l.attach("a", gpu.Wish{VM: "db1", Profile: "H100XM-1-10C"})
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if err := l.sim.Change(string(hopper), func(c *sim.Card) { c.PCI.SubsystemDevice = "0xffff" }); err != nil {
		t.Fatal(err)
	}
	const wait = 10 * time.Second
	began := time.Now()
	if _, err := l.restore(wait); err == nil {
		t.Error("another card is there, and all is well")
	}
	if time.Since(began) >= wait {
		t.Error("it waited for as long as it was let")
	}
}

// What only reads and plans writes nothing, into the kernel or the store.
func TestReadsWriteNothing_T27(t *testing.T) {
	l := newPCILab(t)
	l.mustSetVFs(flex, 4)
	l.attach("a", gpu.Wish{VM: "web1", Profile: flexVF})
	n, stored, ctx := l.wrote(), l.store.Writes(), t.Context()
	for name, read := range map[string]func() error{
		"vfs":         func() error { _, err := l.VFs(ctx, flex); return err },
		"gpus":        func() error { _, err := l.GPUs(ctx); return err },
		"partitions":  func() error { _, err := l.Partitions(ctx); return err },
		"assignments": func() error { _, err := l.Assignments(ctx); return err },
		"capacity":    func() error { _, err := l.Capacity(ctx, ""); return err },
		"plan vfs":    func() error { _, err := l.PlanPutVFs(ctx, flex, 0); return err },
		"plan detach": func() error { _, err := l.PlanDeleteAssignment(ctx, "a"); return err },
		"plan apply":  func() error { _, err := l.PlanApplyAssignments(ctx, wishes("b=web2:"+flexVF)); return err },
	} {
		if err := read(); err != nil || l.wrote() != n || l.store.Writes() != stored {
			t.Errorf("%s: %v, %d and %d writes", name, err, l.wrote()-n, l.store.Writes()-stored)
		}
	}
}
