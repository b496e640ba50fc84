package host_test

import (
	"sync/atomic"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/operation"
)

// A rawLibrary has no mixed sizes for a while, as a driver that has just been bound.
type rawLibrary struct {
	mig.Library

	asked *atomic.Int32 // how often it still says no
}

type rawSession struct {
	mig.Session

	asked *atomic.Int32
}

type rawDevice struct {
	mig.Device

	asked *atomic.Int32
}

func (l rawLibrary) Open() (mig.Session, error) {
	s, err := l.Library.Open()
	return rawSession{s, l.asked}, err
}

func (s rawSession) Device(a gpu.Address) (mig.Device, error) {
	d, err := s.Session.Device(a)
	return rawDevice{d, s.asked}, err
}

func (d rawDevice) MixedSize() (mig.MixedSize, error) {
	if d.asked.Add(-1) >= 0 {
		return mig.MixedSize{}, nil
	}
	return d.Device.MixedSize()
}

// A setting that a driver has a moment later is waited for, not gone without.
func TestSettingThatComesALittleLater(t *testing.T) {
	l := newShareLab(t, false)
	l.set(l40s, mixedSize(true))
	l.mustSetVFs(l40s, 0)
	l.stop()
	asked := &atomic.Int32{}
	l.library, l.patience.Unavailable = rawLibrary{Library: l.sim.NVML, asked: asked}, time.Minute
	l.start()
	asked.Store(30)
	if op := l.setVFs(l40s, shareVFs); op.Status != operation.Done {
		t.Fatalf("%+v", op)
	}
	if s := l.settings(l40s); !s.Equal {
		t.Errorf("%+v", s.Actual.MixedSize)
	}
}

// What puts adopted instances back asks for no layout: what others make there later is
// theirs, and no boot turns MIG on for its own sake.
func TestRepairAsksForNothingNew(t *testing.T) {
	l := newMIGLab(t)
	theirs := mig.NewBackend(l.sim.NVML, l.sim.Sysfs, mig.Options{})
	if err := theirs.SetMode(t.Context(), ampere, true); err != nil {
		t.Fatal(err)
	}
	p, err := theirs.Make(t.Context(), gpu.Partition{ID: mig.PartitionID(ampere, "0"), GPU: ampere, Profile: "1g.5gb", Slot: "0"})
	if err != nil {
		t.Fatal(err)
	}
	l.adopt(p.ID)
	l.policy(ampere, gpu.PolicyRepair)
	_, _, events := l.Events(t.Context(), 0)
	if err := theirs.Remove(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	drifts(t, events, "put back by operation")
	l.settled()
	records, err := l.store.GPURecords()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if r.MIG != nil {
			t.Errorf("%s: MIG is asked for: %v", r.ID, *r.MIG)
		}
	}
	if got := show(l.layout(ampere)); got != "1g.5gb@0" {
		t.Errorf("it is not back: %q", got)
	}
}

// A hangingLibrary does not answer how sizes are mixed: in tells of the first question.
type hangingLibrary struct {
	mig.Library

	in, out chan struct{}
}

type hangingSession struct {
	mig.Session

	l hangingLibrary
}

type hangingDevice struct {
	mig.Device

	l hangingLibrary
}

func (l hangingLibrary) Open() (mig.Session, error) {
	s, err := l.Library.Open()
	return hangingSession{s, l}, err
}

func (s hangingSession) Device(a gpu.Address) (mig.Device, error) {
	d, err := s.Session.Device(a)
	return hangingDevice{d, s.l}, err
}

func (d hangingDevice) MixedSize() (mig.MixedSize, error) {
	select {
	case d.l.in <- struct{}{}:
	default:
	}
	<-d.l.out
	return d.Device.MixedSize()
}

// A daemon that ends begins nothing while a question to a driver is still open.
func TestDrainDoesNotWaitForALook(t *testing.T) {
	l := newShareLab(t, false)
	l.set(l40s, mixedSize(true))
	l.stop()
	in, out := make(chan struct{}, 1), make(chan struct{})
	l.library = hangingLibrary{Library: l.sim.NVML, in: in, out: out}
	l.start()
	<-in // it looks whether something has drifted
	engine, stop, ended := l.engine, l.stop, make(chan struct{})
	go func() { stop(); close(ended) }()
	l.stop = func() { <-ended }
	for range time.Tick(time.Millisecond) {
		_, err := engine.Add(t.Context(), operation.Plan{Kind: "x"})
		if err != nil && gpu.CodeOf(err) != gpu.CodeConflict {
			break
		}
	}
	select {
	case <-ended:
		t.Error("the look had ended")
	default:
	}
	close(out)
	<-ended
}

// Instances that were adopted one by one are repaired beside those of others, which stay as
// they are and nobody's of ours, also one without a compute instance.
func TestRepairBesideForeign(t *testing.T) {
	l := newMIGLab(t)
	theirs := mig.NewBackend(l.sim.NVML, l.sim.Sysfs, mig.Options{})
	if err := theirs.SetMode(t.Context(), ampere, true); err != nil {
		t.Fatal(err)
	}
	put := func(profile, slot string) gpu.Partition {
		p, err := theirs.Make(t.Context(), gpu.Partition{ID: mig.PartitionID(ampere, slot), GPU: ampere, Profile: profile, Slot: slot})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	put("1g.5gb", "0")
	byHand(t, l.sim, ampere, emptyFirst)
	ours := put("2g.10gb", "2")
	put("3g.20gb", "4")
	l.adopt(ours.ID)
	l.policy(ampere, gpu.PolicyRepair)
	before := show(l.layout(ampere))
	_, _, events := l.Events(t.Context(), 0)
	if err := theirs.Remove(t.Context(), ours); err != nil {
		t.Fatal(err)
	}
	drifts(t, events, "put back by operation")
	l.settled()
	if got := show(l.layout(ampere)); got != before {
		t.Errorf("%q, was %q", got, before)
	}
	if records, err := l.store.PartitionRecords(); err != nil || len(records) != 1 || records[0].ID != ours.ID {
		t.Errorf("%+v, %v", records, err)
	}
	if s := l.layout(ampere); !s.Equal {
		t.Errorf("%+v", s)
	}
}

// emptyFirst takes the compute instance out of the first instance of a card.
func emptyFirst(d mig.Device) error {
	all, err := d.Instances()
	if err != nil {
		return err
	}
	return d.DestroyCompute(all[0].ID, all[0].Compute[0].ID)
}

// A vGPU gets an instance beside one of somebody else's that has no compute instance.
func TestInstanceBesideAnEmptyOne(t *testing.T) {
	l := newInstanceLab(t, sim.H100(string(hopper), 0), 32)
	theirs := mig.NewBackend(l.sim.NVML, l.sim.Sysfs, mig.Options{})
	if _, err := theirs.Make(t.Context(), gpu.Partition{ID: mig.PartitionID(hopper, "0"), GPU: hopper, Profile: "1g.10gb", Slot: "0"}); err != nil {
		t.Fatal(err)
	}
	byHand(t, l.sim, hopper, emptyFirst)
	l.attach("a", gpu.Wish{VM: "db1", Profile: "H100XM-3-40C"})
	if got := show(l.layout(hopper)); got != "1g.10gb@0:0 3g.40gb@4" {
		t.Errorf("%q", got)
	}
}
