package host_test

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/operation"
)

// byHand changes a card without gpuvirt.
func byHand(t *testing.T, h *sim.Host, id gpu.ID, change func(d mig.Device) error) {
	t.Helper()
	s, err := h.NVML.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a, err := gpu.ParseAddress(string(id))
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Device(a)
	if err == nil {
		err = change(d)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// removeFirst removes the first instance of a card, which has one compute instance.
func removeFirst(d mig.Device) error {
	all, err := d.Instances()
	if err != nil {
		return err
	}
	if err := d.DestroyCompute(all[0].ID, all[0].Compute[0].ID); err != nil {
		return err
	}
	return d.Destroy(all[0].ID)
}

// putInPlace has somebody else put an instance where there may be one.
func putInPlace(t *testing.T, h *sim.Host, id gpu.ID, profile, slot string) {
	t.Helper()
	byHand(t, h, id, func(d mig.Device) error {
		all, err := d.Instances()
		for _, in := range all {
			if number(t, slot) != in.Start {
				continue
			}
			for _, c := range in.Compute {
				if err := d.DestroyCompute(in.ID, c.ID); err != nil {
					return err
				}
			}
			return d.Destroy(in.ID)
		}
		return err
	})
	theirs := mig.NewBackend(h.NVML, h.Sysfs, mig.Options{})
	if _, err := theirs.Make(t.Context(), gpu.Partition{ID: mig.PartitionID(id, slot), GPU: id, Profile: profile, Slot: slot}); err != nil {
		t.Fatal(err)
	}
}

func (l *lab) policy(id gpu.ID, p gpu.Policy) {
	l.t.Helper()
	if _, _, err := l.PatchGPU(l.t.Context(), "test", id, gpu.GPUPatch{Policy: &p}, false); err != nil {
		l.t.Fatal(err)
	}
}

// killedAt lays out the A100, and returns the host as it would be had the daemon been
// killed before the first call of a name, or after it, and something else happened before
// its next start.
func (l *lab) killedAt(call string, after bool, layout gpu.Layout, meanwhile func(*sim.Host)) *lab {
	l.t.Helper()
	var dir string
	calls := 0 // each is told before and after
	l.sim.NVML.OnCall(func(c sim.Call) {
		if c.Name != call {
			return
		}
		if calls++; calls == 1 || calls == 2 && after {
			dir = l.image()
		}
	})
	l.lay(ampere, layout)
	l.sim.NVML.OnCall(nil)
	h, err := sim.Open(filepath.Join(dir, "sim"))
	if err != nil {
		l.t.Fatal(err)
	}
	meanwhile(h)
	if err := h.Close(); err != nil {
		l.t.Fatal(err)
	}
	return openLab(l.t, dir)
}

// What somebody else has put in the place of an instance of ours is not ours: neither
// a deletion, nor another layout, nor the policy repair removes it. Once it is named in
// a layout it is.
func TestReplacedInstanceIsForeign(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "3g.20gb@4")
	place := mig.PartitionID(ampere, "4")
	putInPlace(t, l.sim, ampere, "2g.10gb", "4")
	p, err := l.Partition(t.Context(), place)
	if err != nil || p.Origin != gpu.OriginForeign || p.Profile != "2g.10gb" || len(p.Conditions) != 1 || p.Conditions[0].Reason != "Replaced" {
		t.Errorf("%+v, %v", p, err)
	}
	_, err = l.DeletePartition(t.Context(), "test", place)
	wantCode(t, err, gpu.CodeForeignDevice)
	for _, layout := range []string{"", "3g.20gb@4", "7g.40gb"} {
		_, _, err = l.PutLayout(t.Context(), "test", ampere, cut(layout))
		if e := wantCode(t, err, gpu.CodeGPUBusy); len(e.Blockers) != 1 || !strings.Contains(e.Blockers[0].Note, "did not make it") {
			t.Errorf("%q: %+v", layout, e)
		}
	}
	l.policy(ampere, gpu.PolicyRepair)
	_, _, events := l.Events(t.Context(), 0)
	byHand(t, l.sim, hopper, func(d mig.Device) error { _, err := d.SetMode(true); return err }) // something to look for
	for e := next(t, events, "gpu.drifted"); !strings.Contains(e.Detail["message"], "cannot be put back"); {
		e = next(t, events, "gpu.drifted")
	}
	if s := l.layout(ampere); show(s) != "2g.10gb@4" {
		t.Errorf("it is %q now", show(s))
	}
	if _, err := l.restore(time.Second); err == nil {
		t.Error("a restore says that all is well")
	}
	l.mustLay(ampere, "2g.10gb@4")
	if p, err := l.Partition(t.Context(), place); err != nil || p.Origin != gpu.OriginManaged {
		t.Errorf("%+v, %v", p, err)
	}
}

// Killed just before an instance was made; somebody else makes another one there. It
// stays when the operation is undone.
func TestUndoLeavesForeignInstance_T01(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "")
	k := l.killedAt("CreateGpuInstance", false, cut("3g.20gb@4"), func(m *sim.Host) { putInPlace(t, m, ampere, "1g.5gb", "4") })
	k.settled()
	if s := k.layout(ampere); show(s) != "1g.5gb@4" || s.Partitions[0].Origin != gpu.OriginForeign {
		t.Errorf("%q, %+v", show(s), s.Partitions)
	}
}

// An instance that was asked for by itself, on a card whose MIG somebody else has
// turned on, comes back with the mode it takes, and is missed when it goes (T10).
func TestPartitionAloneIsKept_T10(t *testing.T) {
	l := newMIGLab(t)
	on := func(d mig.Device) error { _, err := d.SetMode(true); return err }
	byHand(t, l.sim, hopper, on)
	op := l.finish(l.CreatePartition(t.Context(), "test", gpu.PartitionWish{GPU: hopper, Profile: "1g.10gb"}, gpu.Idempotency{}))
	if op.Status != operation.Done {
		t.Fatalf("%+v", op)
	}
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.restore(time.Minute); err != nil {
		t.Error(err)
	}
	if s := l.layout(hopper); show(s) != "1g.10gb@6" || !s.Equal {
		t.Errorf("%+v", s)
	}
	_, _, events := l.Events(t.Context(), 0)
	byHand(t, l.sim, hopper, removeFirst)
	if e := next(t, events, "gpu.drifted"); e.Object != string(hopper) {
		t.Errorf("%+v", e)
	}
}

// A restore that died at any call is finished by the next one.
func TestCrashInRestore_T01_T10(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(hopper, "3g.40gb@4:1c,2c 1g.10gb@0")
	want := show(l.layout(hopper))
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	var images []string
	l.sim.NVML.OnCall(func(sim.Call) { images = append(images, l.image()) })
	if _, err := l.restore(time.Minute); err != nil {
		t.Fatal(err)
	}
	l.sim.NVML.OnCall(nil)
	if len(images) < 10 {
		t.Fatalf("%d calls were seen", len(images))
	}
	for i, dir := range images {
		k := openLab(t, dir)
		_, err := k.restore(time.Minute)
		if s := k.layout(hopper); !s.Equal || show(s) != want {
			t.Errorf("image %d: the restore says %v; it is %q, mode %+v, equal %v", i, err, show(s), s.Mode, s.Equal)
		}
	}
}

// A monitor that has a GPU open for a moment at boot does not cost its layout.
func TestRestoreWaitsForMonitor_T05(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(hopper, "3g.40gb")
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if err := l.sim.Watch(string(hopper), 812, "nv-hostengine"); err != nil {
		t.Fatal(err)
	}
	refused := 0
	l.sim.NVML.OnCall(func(c sim.Call) {
		if refused++; c.Name == "SetMigMode" && refused == 4 {
			_ = l.sim.Idle(string(hopper))
		}
	})
	if _, err := l.restore(time.Minute); err != nil {
		t.Error(err)
	}
	l.sim.NVML.OnCall(nil)
	if s := l.layout(hopper); show(s) != "3g.40gb@4" || !s.Equal {
		t.Errorf("%+v", s)
	}
}

// Neither a step nor a restore touches another card in the place of ours.
func TestModeOfAnotherCard_T12(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(hopper, "1g.10gb")
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if err := l.sim.Change(string(hopper), func(c *sim.Card) { c.PCI.SubsystemDevice = "0xdead" }); err != nil {
		t.Fatal(err)
	}
	calls := len(l.sim.NVML.Calls())
	if _, err := l.restore(time.Minute); err == nil || !strings.Contains(err.Error(), "another card") {
		t.Errorf("restored: %v", err)
	}
	_, _, err := l.PutLayout(t.Context(), "test", hopper, cut("1g.10gb"))
	wantCode(t, err, gpu.CodeDrift)
	if now := l.sim.NVML.Calls(); len(now) != calls {
		t.Errorf("%v", now[calls:])
	}
}

// What was on and would be off after a reset is on again after an undo, and the card
// is not reset for that.
func TestUndoKeepsModeInForce_T36(t *testing.T) {
	l := newMIGLab(t)
	byHand(t, l.sim, ampere, func(d mig.Device) error { _, err := d.SetMode(true); return err })
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(l.sim.Watch(string(ampere), 1, "nv-hostengine"))
	byHand(t, l.sim, ampere, func(d mig.Device) error { _, err := d.SetMode(false); return err })
	must(l.sim.Idle(string(ampere)))
	if s := l.layout(ampere); s.Mode != (gpu.MIGMode{Capable: true, Current: true, Needs: "reset"}) || s.Equal {
		t.Fatalf("%+v", s)
	}
	l.sim.NVML.Fail("CreateGpuInstance", mig.ErrUnknown, 1)
	if op := l.lay(ampere, cut("3g.20gb")); op.Status != operation.Undone {
		t.Errorf("%+v", op)
	}
	if m := l.layout(ampere).Mode; !m.Current {
		t.Errorf("%+v", m)
	}
}

// A mode that waits for a reset makes the operation wait for a person; after the reset
// it goes on, and an abort takes the mode back.
func TestLayoutWaitsForReset_T36(t *testing.T) {
	l := newMIGLab(t)
	l.sim.NVML.Fail(sim.Activation, mig.ErrResetRequired, 1)
	op := l.lay(ampere, cut("3g.20gb@4"))
	if op.Status != operation.Waiting || !strings.Contains(op.Reason, "nvidia-smi --gpu-reset -i 0000:41:00.0") {
		t.Fatalf("%s: %q", op.Status, op.Reason)
	}
	if s := l.layout(ampere); s.Mode != (gpu.MIGMode{Capable: true, Pending: true, Needs: "reset"}) || s.Equal || s.Wanted == nil || len(s.Wanted.Instances) != 1 {
		t.Errorf("%+v", s)
	}
	if err := l.sim.ResetGPU(string(ampere)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.engine.Retry(op.ID); err != nil {
		t.Fatal(err)
	}
	if op = l.finish(op, nil); op.Status != operation.Done {
		t.Errorf("%+v", op)
	}
	if s := l.layout(ampere); show(s) != "3g.20gb@4" || !s.Equal {
		t.Errorf("%+v", s)
	}
	l.sim.NVML.Fail(sim.Activation, mig.ErrResetRequired, 1)
	if op = l.lay(hopper, cut("3g.40gb@4")); op.Status != operation.Waiting {
		t.Fatalf("%+v", op)
	}
	if _, err := l.engine.Abort(op.ID); err != nil {
		t.Fatal(err)
	}
	if op = l.finish(op, nil); op.Status != operation.Undone {
		t.Errorf("%+v", op)
	}
	if s := l.layout(hopper); s.Mode != (gpu.MIGMode{Capable: true}) || s.Wanted != nil {
		t.Errorf("%+v", s)
	}
}

// The instance that is free changes, not the one in use, and none that is as wanted.
func TestComputeCountsInTheChoice_R57(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "3g.20gb@0 3g.20gb@4")
	used := l.layout(ampere).Partitions[1]
	if err := l.sim.Compute(string(ampere), mig.Process{PID: 1, Instance: number(t, used.Instance)}); err != nil {
		t.Fatal(err)
	}
	l.mustLay(ampere, "3g.20gb 3g.20gb:1c,2c")
	if now := l.layout(ampere).Partitions; len(now[0].Compute) != 2 || now[1].Compute[0] != used.Compute[0] {
		t.Errorf("%+v", now)
	}
	if err := l.sim.Idle(string(ampere)); err != nil {
		t.Fatal(err)
	}
	for _, first := range []string{"3g.20gb@0:1c,2c 3g.20gb@4", "3g.20gb@4:1c,2c 3g.20gb@0"} {
		l.mustLay(ampere, first)
		if p, err := l.PlanPutLayout(t.Context(), ampere, cut("3g.20gb:1c,2c")); err != nil || len(p.Steps) != 1 {
			t.Errorf("%s: %+v, %v", first, p, err)
		}
	}
}

// Compute instances that cannot be are refused before anything is touched.
func TestImpossibleComputeIsRefused(t *testing.T) {
	l := newMIGLab(t)
	for layout, code := range map[string]gpu.Code{
		"3g.20gb:4c": gpu.CodeProfileUnknown, "3g.20gb:3c": gpu.CodeProfileUnknown, "3g.20gb:0c": gpu.CodeProfileUnknown, "7g.40gb:5c": gpu.CodeProfileUnknown,
		"3g.20gb:02c": gpu.CodeProfileUnknown, "3g.20gb:2c,2c": gpu.CodeNoCapacity, "1g.5gb:1c": gpu.CodeProfileUnknown,
	} {
		p, err := l.PlanPutLayout(t.Context(), ampere, cut(layout))
		if err != nil || gpu.CodeOf(p.Refusal) != code {
			t.Errorf("%s: %+v, %v", layout, p, err)
		}
	}
	if n := len(l.sim.NVML.Calls()); n != 0 {
		t.Errorf("%d calls", n)
	}
	l.mustLay(ampere, "4g.20gb:1c,1c,2c 3g.20gb:2c,1c")
}

// Asking for what somebody else has made of an instance of ours is recorded.
func TestComputeByOthersIsRecorded(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "3g.20gb@4:1c,2c")
	putInPlace(t, l.sim, ampere, "3g.20gb", "4")
	if s, op, err := l.PutLayout(t.Context(), "test", ampere, cut("3g.20gb")); op != nil || err != nil || !s.Equal {
		t.Errorf("%v, %v, %+v", op, err, s)
	}
}

// A library without the functions for MIG takes nothing from cards that do without.
func TestOldLibrary(t *testing.T) {
	l := newLab(t, sim.T4("0000:08:00.0", 0), sim.A100(string(ampere), 0))
	l.manage("0000:08:00.0")
	l.sim.NVML.Fail("Init", mig.ErrFunctionNotFound, 1000)
	if op := l.finish(l.CreatePartition(t.Context(), "test", gpu.PartitionWish{Profile: "T4-4Q"}, gpu.Idempotency{})); op.Status != operation.Done {
		t.Errorf("%+v", op.Problem)
	}
}

// An operation that does not help is not begun again at each change that it makes.
func TestRepairIsTriedOnce(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "3g.20gb@4")
	l.mustLay(hopper, "3g.40gb@4")
	l.policy(ampere, gpu.PolicyRepair)
	l.sim.NVML.Fail("CreateComputeInstance", mig.ErrUnknown, 1000)
	_, _, events := l.Events(t.Context(), 0)
	byHand(t, l.sim, ampere, removeFirst)
	if e := drifts(t, events, "put back by operation"); e.Object != string(ampere) {
		t.Fatalf("%+v", e)
	}
	l.settled()
	byHand(t, l.sim, hopper, removeFirst) // told in the same look in which the other would be put back again
	for e := next(t, events, "gpu.drifted"); e.Object != string(hopper); {
		e = next(t, events, "gpu.drifted")
	}
	ops, err := l.engine.List()
	repairs := slices.DeleteFunc(ops, func(o operation.Operation) bool { return o.Actor != "gpuvirt" })
	if err != nil || len(repairs) != 1 || repairs[0].Status != operation.Undone {
		t.Errorf("%v, %+v", err, repairs)
	}
}

// A layout that names what somebody else has made says that it becomes ours.
func TestAdoptionIsPlanned(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "3g.20gb@4")
	putInPlace(t, l.sim, ampere, "1g.5gb", "0")
	p, err := l.PlanPutLayout(t.Context(), ampere, cut("3g.20gb 1g.5gb 1g.5gb"))
	if err != nil || p.Refusal != nil || len(p.Steps) != 2 || p.Steps[0].Kind != "partition.adopt" || !strings.Contains(p.Steps[0].Summary, "1g.5gb at 0") {
		t.Errorf("%+v, %v", p, err)
	}
	p, err = l.PlanPutLayout(t.Context(), ampere, cut("3g.20gb 1g.5gb"))
	if err != nil || !p.Changes || len(p.Steps) != 1 || p.Steps[0].Kind != "partition.adopt" {
		t.Errorf("%+v, %v", p, err)
	}
	l.mustLay(ampere, "3g.20gb 1g.5gb")
	if p, err = l.PlanPutLayout(t.Context(), ampere, cut("3g.20gb 1g.5gb")); err != nil || p.Changes {
		t.Errorf("%+v, %v", p, err)
	}
}

// Nothing is removed of which it cannot be told whether somebody uses it (T23).
func TestLayoutBlind_T23(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "3g.20gb@4 1g.5gb@0")
	if err := l.sim.SetBlind(true); err != nil {
		t.Fatal(err)
	}
	_, _, err := l.PutLayout(t.Context(), "test", ampere, cut("3g.20gb"))
	if e := wantCode(t, err, gpu.CodeGPUBusy); len(e.Blockers) != 1 || !strings.Contains(e.Blockers[0].Note, "not known") {
		t.Errorf("%+v", e)
	}
	if op := l.lay(ampere, cut("3g.20gb 1g.5gb 2g.10gb")); op.Status != operation.Done {
		t.Errorf("what takes nothing away: %+v", op)
	}
}

// A layout that fails leaves the records as they were: what was missing is missing,
// not forgotten, and the mode that was asked for is the one from before.
func TestUndoKeepsRecords_T01(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "3g.20gb@4 1g.5gb@0")
	byHand(t, l.sim, ampere, removeFirst)
	before := l.layout(ampere)
	for _, layout := range []string{"3g.20gb 2g.10gb@0", "3g.20gb 2g.10gb@2", "3g.20gb 1g.5gb@0"} {
		l.sim.NVML.Fail("CreateComputeInstance", mig.ErrUnknown, 1)
		if op := l.lay(ampere, cut(layout)); op.Status != operation.Undone {
			t.Fatalf("%s: %+v", layout, op)
		}
		if now := l.layout(ampere); now.Wanted.String() != before.Wanted.String() || now.Actual.String() != before.Actual.String() {
			t.Errorf("%s: wanted %s, it is %s; before %s and %s", layout, now.Wanted, now.Actual, before.Wanted, before.Actual)
		}
	}
}

// A card that was swapped while an operation stood still is not touched by it.
func TestResumedOnAnotherCard_T12(t *testing.T) {
	l := newMIGLab(t)
	var dir string
	l.sim.NVML.OnCall(func(c sim.Call) {
		if dir == "" {
			dir = l.image()
		}
	})
	l.lay(hopper, cut("1g.10gb"))
	l.sim.NVML.OnCall(nil)
	m, err := sim.Open(filepath.Join(dir, "sim"))
	if err == nil {
		err = m.Change(string(hopper), func(c *sim.Card) { c.PCI.SubsystemDevice = "0xdead" })
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	k := openLab(t, dir)
	ops, err := k.engine.List()
	if err != nil || len(ops) == 0 {
		t.Fatalf("%+v, %v", ops, err)
	}
	op, err := k.engine.Wait(t.Context(), ops[len(ops)-1].ID)
	if err != nil || op.Status == operation.Done {
		t.Errorf("%+v, %v", op, err)
	}
	if calls := k.sim.NVML.Calls(); len(calls) != 0 {
		t.Errorf("touched: %v", calls)
	}
}

// swap puts another card in the place of one, which the old instances seem to be on.
func swap(t *testing.T, h *sim.Host, id gpu.ID) {
	t.Helper()
	if err := h.Change(string(id), func(c *sim.Card) { c.PCI.SubsystemDevice = "0xdead" }); err != nil {
		t.Fatal(err)
	}
}

// The same profile in the same place of another card is somebody else's: a deletion and
// a layout leave it, until that card is under management and the layout names it.
func TestInstanceOfAnotherCardIsForeign_T12(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "3g.20gb@4")
	swap(t, l.sim, ampere)
	place := mig.PartitionID(ampere, "4")
	p, err := l.Partition(t.Context(), place)
	if err != nil || p.Origin != gpu.OriginForeign {
		t.Errorf("%+v, %v", p, err)
	}
	_, err = l.DeletePartition(t.Context(), "test", place)
	wantCode(t, err, gpu.CodeForeignDevice)
	if _, err := l.restore(time.Second); err == nil {
		t.Error("a restore takes it for ours")
	}
	l.manage(ampere)
	_, _, err = l.PutLayout(t.Context(), "test", ampere, cut("2g.10gb@0"))
	wantCode(t, err, gpu.CodeGPUBusy)
	_, _, err = l.PutLayout(t.Context(), "test", ampere, cut("3g.20gb:1c,2c"))
	wantCode(t, err, gpu.CodeGPUBusy)
	l.mustLay(ampere, "3g.20gb")
	if p, err := l.Partition(t.Context(), place); err != nil || p.Origin != gpu.OriginManaged || len(p.Conditions) > 0 {
		t.Errorf("%+v, %v", p, err)
	}
}

// The undo of an operation that was killed while it made an instance leaves what lies
// there on another card.
func TestUndoOnAnotherCard_T12(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "")
	k := l.killedAt("CreateComputeInstance", true, cut("3g.20gb@4"), func(m *sim.Host) { swap(t, m, ampere) })
	k.settled()
	if s := k.layout(ampere); show(s) != "3g.20gb@4" {
		t.Errorf("%q", show(s))
	}
}

// One more partition is not placed where one of ours is missing.
func TestNoPlaceOverMissing(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "3g.20gb@0 3g.20gb@4")
	byHand(t, l.sim, ampere, removeFirst)
	for _, profile := range []string{"3g.20gb", "1g.5gb"} {
		_, err := l.CreatePartition(t.Context(), "test", gpu.PartitionWish{GPU: ampere, Profile: profile}, gpu.Idempotency{})
		if e := wantCode(t, err, gpu.CodeDrift); len(e.Blockers) != 1 {
			t.Errorf("%+v", e)
		}
	}
	if s := l.layout(ampere); len(s.Wanted.Instances) != 2 {
		t.Errorf("%+v", s.Wanted)
	}
}

// While a layout is on its way nothing is decided about its GPU that an undo would take
// back; and an undo that has to wait for a reset waits.
func TestWaitingLayoutHoldsItsGPU_T36(t *testing.T) {
	l := newMIGLab(t)
	l.sim.NVML.Fail(sim.Activation, mig.ErrResetRequired, 1)
	op := l.lay(ampere, cut("3g.20gb@4"))
	yes, no := true, false
	for _, p := range []gpu.GPUPatch{{Quarantined: &yes}, {Managed: &no}, {Labels: &map[string]string{"a": "b"}}} {
		_, _, err := l.PatchGPU(t.Context(), "test", ampere, p, false)
		if held, ok := errors.AsType[*operation.ConflictError](err); !ok || held.Holder != op.ID {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if err := l.sim.ResetGPU(string(ampere)); err != nil {
		t.Fatal(err)
	}
	l.sim.NVML.Fail(sim.Activation, mig.ErrResetRequired, 1)
	if _, err := l.engine.Abort(op.ID); err != nil {
		t.Fatal(err)
	}
	op, err := l.engine.Wait(t.Context(), op.ID)
	if err != nil || op.Status != operation.Waiting {
		t.Fatalf("%+v, %v", op, err)
	}
	if err := l.sim.ResetGPU(string(ampere)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.engine.Retry(op.ID); err != nil {
		t.Fatal(err)
	}
	if op = l.finish(op, nil); op.Status != operation.Undone {
		t.Errorf("%+v", op)
	}
	if s := l.layout(ampere); s.Mode.Current || s.Mode.Pending || s.Wanted != nil {
		t.Errorf("%+v", s)
	}
	if _, _, err := l.PatchGPU(t.Context(), "test", ampere, gpu.GPUPatch{Quarantined: &yes}, false); err != nil {
		t.Error(err)
	}
}

// What somebody makes while a layout waits is not ours, and the mode that it needs stays.
func TestForeignMadeMeanwhile(t *testing.T) {
	l := newMIGLab(t)
	l.sim.NVML.Fail(sim.Activation, mig.ErrResetRequired, 1)
	op := l.lay(ampere, cut("3g.20gb@4"))
	if err := l.sim.ResetGPU(string(ampere)); err != nil {
		t.Fatal(err)
	}
	putInPlace(t, l.sim, ampere, "3g.20gb", "4")
	if _, err := l.engine.Retry(op.ID); err != nil {
		t.Fatal(err)
	}
	if op = l.finish(op, nil); op.Status != operation.Undone {
		t.Fatalf("%+v", op)
	}
	if s := l.layout(ampere); show(s) != "3g.20gb@4" || s.Partitions[0].Origin != gpu.OriginForeign || s.Wanted != nil {
		t.Errorf("%+v", s)
	}
}

// A place that somebody takes between our removal and our making stays theirs; what was
// ours there is not forgotten, and nothing is held.
func TestPlaceTakenAfterRemoval(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "3g.20gb@4")
	taken := false
	l.sim.NVML.OnCall(func(c sim.Call) {
		if c.Name == "DestroyGpuInstance" && c.Err == nil && !taken && len(l.instancesOf(ampere)) == 0 {
			taken = true
			putInPlace(t, l.sim, ampere, "1g.5gb", "4")
		}
	})
	op := l.lay(ampere, cut("2g.10gb@4"))
	l.sim.NVML.OnCall(nil)
	if !taken || op.Status != operation.Undone {
		t.Fatalf("taken %v: %+v", taken, op)
	}
	s := l.layout(ampere)
	if show(s) != "1g.5gb@4" || s.Partitions[0].Origin != gpu.OriginForeign || s.Wanted.String() != "3g.20gb@4" {
		t.Errorf("%+v, wanted %s", s, s.Wanted)
	}
}

// instancesOf are the instances that a card has, read beside gpuvirt.
func (l *lab) instancesOf(id gpu.ID) (out []mig.DeviceInstance) {
	l.t.Helper()
	byHand(l.t, l.sim, id, func(d mig.Device) (err error) { out, err = d.Instances(); return err })
	return out
}

// A mode that cannot be restored is asked for once, though others are still waited for.
func TestRestoreAsksOnceForMode(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(hopper, "1g.10gb")
	l.mustLay(ampere, "1g.5gb")
	if err := l.sim.Change(string(ampere), func(c *sim.Card) { c.MIG.KeepsMode = false }); err != nil {
		t.Fatal(err)
	}
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if err := l.sim.Watch(string(ampere), 812, "nv-hostengine"); err != nil {
		t.Fatal(err)
	}
	l.sim.NVML.Fail(sim.Activation, mig.ErrResetRequired, 100)
	asked := 0
	l.sim.NVML.OnCall(func(c sim.Call) {
		if c.Card == string(hopper) && c.Name == "SetMigMode" && c.Err == nil {
			asked++
		}
	})
	if _, err := l.restore(5 * time.Second); err == nil {
		t.Error("all is well")
	}
	l.sim.NVML.OnCall(nil)
	if asked > 2 { // before the call and after it
		t.Errorf("asked %d times", asked)
	}
}
