package p2v_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/move"
)

// beginWhole begins a move that has all there is to take back: a partition, and a passphrase. What is
// to be in its way is set by at.
func (y *yard) beginWhole(at func()) {
	y.t.Helper()
	y.encrypt()
	y.vms.fail("define", gpu.Errorf(gpu.CodeUnavailable, "libvirt is away"))
	keys := []move.Key{{Volume: "nvme0n1p1", Passphrase: "swordfish"}}
	if len(y.machine.disks) > 1 {
		keys = append(keys, move.Key{Volume: "nvme1n1", Passphrase: "marlin"})
	}
	if _, err := y.Create(y.t.Context(), "tester", y.wishWith(keys...), gpu.Idempotency{}); err != nil {
		y.t.Fatal(err)
	}
	y.stop()
	rec, err := y.store.MigrationRecord("gpu7")
	if err != nil {
		y.t.Fatal(err)
	}
	const profile = "1g.12gb"
	rec.Plan.Partitions = []assess.WishPartition{{Profile: profile}}
	rec.VM.Slices = []move.Slice{{Assignment: "gpu7", Profile: profile, GPU: card}}
	rec.Reservation = &move.Reservation{State: move.Reserving, Lease: int(y.lease.Seconds())}
	if err := y.store.Apply(operation.Put(move.RecordMigration, "gpu7", rec)); err != nil {
		y.t.Fatal(err)
	}
	y.holders.set(func(h *holders) {
		h.gpus, h.profiles = []gpu.GPU{{ID: card, Vendor: "NVIDIA", Managed: true}}, []gpu.Profile{{Name: profile, Kind: gpu.KindVF, Available: 1}}
	})
	y.vms.fail("define", nil)
	at()
	y.start()
	if _, err := y.SetKeys("gpu7", keys); err != nil {
		y.t.Fatal(err)
	}
	if len(y.InMemory("gpu7")) == 0 {
		y.t.Error("its passphrase is not held")
	}
}

func (y *yard) beginReady() {
	y.t.Helper()
	y.beginWhole(func() {})
	y.until("ready", phase(move.PhaseReady))
}

// beginBooting is beginReady with a VM that may take as long to boot as the test does.
func (y *yard) beginBooting() (asked <-chan struct{}) {
	y.t.Helper()
	y.beginWhole(func() { y.patience.Boot = time.Minute })
	y.until("ready", phase(move.PhaseReady))
	return y.boots()
}

// stall has nothing more come from the source once it is at rest; the channel is closed when somebody waits.
func (m *machine) stall() <-chan struct{} {
	up := m.up
	m.rest.set(func(r *rester) { r.still = func() { up.left.Store(0) } })
	return up.stalled
}

// waitAt has the disks' makers wait at something, until they are given up; the channel is closed then.
func (y *yard) waitAt(what string) <-chan struct{} {
	there := make(chan struct{})
	y.makers.set(func(now string, _ convert.Job) {
		if now == what {
			close(there)
		}
	})
	y.makers.fail(what, errWaits)
	return there
}

func (y *yard) try(kind move.AttemptKind) {
	y.t.Helper()
	var err error
	if kind == move.Rehearsal {
		_, err = y.Rehearse(y.t.Context(), "gpu7", "tester", move.CutWish{})
	} else {
		_, err = y.CutOver(y.t.Context(), "gpu7", "tester", move.CutWish{Unrehearsed: "a test"})
	}
	if err != nil {
		y.t.Fatal(err)
	}
}

// boots has the guest agent of what is started not answer yet; the channel is closed when it was asked.
func (y *yard) boots() <-chan struct{} {
	asked := make(chan struct{}, 1000)
	y.vms.set(func(v *vms) {
		v.agent = func(string, string) (string, error) {
			asked <- struct{}{}
			return "", gpu.Errorf(gpu.CodeUnavailable, "it boots")
		}
	})
	return asked
}

var libvirtAway = gpu.Errorf(gpu.CodeUnavailable, "libvirt is away")

// A roll back that is asked for at any moment leaves nothing here: no file, VM, network, partition, passphrase,
// no session with the source. That runs, or else it is told that it was powered off.
func TestRollbackAtAnyMoment(t *testing.T) {
	for name, c := range map[string]struct {
		phase move.Phase
		// reach brings a move there; after is done when the roll back was asked for.
		reach func(y *yard) (after func())
		off   bool // the source was told to power off
	}{
		"planned - libvirt is away": {phase: move.PhasePlanned, reach: func(y *yard) func() {
			y.beginWhole(func() { y.vms.fail("define", libvirtAway) })
			return func() { y.vms.fail("define", nil) }
		}},
		"planned - the partition is being made": {phase: move.PhasePlanned, reach: func(y *yard) func() {
			slow := make(chan struct{})
			y.beginWhole(func() { y.holders.set(func(h *holders) { h.slow = slow }) })
			y.until("asked", func(move.Migration) bool { return y.holders.asked.Load() > 0 })
			return func() { close(slow) }
		}},
		"reserved - the source is away": {phase: move.PhaseReserved, reach: func(y *yard) func() {
			y.machine.gone()
			y.beginWhole(func() {})
			y.until("asked", func(v move.Migration) bool { return v.Phase == move.PhaseReserved })
			return y.machine.there
		}},
		"syncing": {phase: move.PhaseSyncing, reach: func(y *yard) func() {
			y.machine.up.left.Store(3 * mib)
			y.beginWhole(func() {})
			<-y.machine.up.stalled
			return nil
		}},
		"ready": {phase: move.PhaseReady, reach: func(y *yard) func() { y.beginReady(); return nil }},
		"ready - partitions given back": {phase: move.PhaseReady, reach: func(y *yard) func() {
			y.lease = lease
			y.beginWhole(func() {})
			y.until("ready", func(v move.Migration) bool { return v.Phase == move.PhaseReady && !v.Reservation.Copied.IsZero() })
			y.release()
			return nil
		}},
		"ready - another pass": {phase: move.PhaseReady, reach: func(y *yard) func() {
			y.beginReady()
			y.machine.write(0, mib, "something")
			y.machine.up.left.Store(0)
			if _, err := y.Sync("gpu7"); err != nil {
				y.t.Fatal(err)
			}
			<-y.machine.up.stalled
			return nil
		}},
		"rehearsing - last pass": {phase: move.PhaseRehearsing, reach: func(y *yard) func() {
			y.beginReady()
			stalled := y.machine.stall()
			y.try(move.Rehearsal)
			<-stalled
			return nil
		}},
		"rehearsing - making disks": {phase: move.PhaseRehearsing, reach: func(y *yard) func() {
			y.beginReady()
			there := y.waitAt("overlay")
			y.try(move.Rehearsal)
			<-there
			return nil
		}},
		"rehearsing - converting": {phase: move.PhaseRehearsing, reach: func(y *yard) func() {
			y.beginReady()
			there := y.waitAt("convert")
			y.try(move.Rehearsal)
			<-there
			return nil
		}},
		"rehearsing - a pass beside it": {phase: move.PhaseRehearsing, reach: func(y *yard) func() {
			y.beginReady()
			there := y.waitAt("convert")
			y.try(move.Rehearsal)
			<-there
			for at := range int64(2) {
				y.machine.write(0, at*mib, "beside it")
				if at > 0 {
					y.machine.up.left.Store(0)
				}
				n := y.until("", func(move.Migration) bool { return true }).Disks[0].Total
				if _, err := y.Sync("gpu7"); err != nil {
					y.t.Fatal(err)
				}
				if at == 0 {
					y.until("passed over", func(v move.Migration) bool { return v.Disks[0].Total > n })
				}
			}
			<-y.machine.up.stalled
			if len(y.ahead()) == 0 {
				y.t.Errorf("ahead: %q", y.ahead())
			}
			return nil
		}},
		"rehearsing - looking at the VM": {phase: move.PhaseRehearsing, reach: func(y *yard) func() {
			asked := y.beginBooting()
			y.try(move.Rehearsal)
			<-asked
			return nil
		}},
		"rehearsing - the VM cannot be stopped at once": {phase: move.PhaseRehearsing, reach: func(y *yard) func() {
			asked := y.beginBooting()
			y.try(move.Rehearsal)
			<-asked
			y.vms.fail("stop", libvirtAway)
			return func() { y.vms.fail("stop", nil) }
		}},
		"cutting over - last pass": {phase: move.PhaseCuttingOver, reach: func(y *yard) func() {
			y.beginReady()
			stalled := y.machine.stall()
			y.try(move.Cutover)
			<-stalled
			return nil
		}},
		"cutting over - making disks": {phase: move.PhaseCuttingOver, reach: func(y *yard) func() {
			y.beginReady()
			there := y.waitAt("overlay")
			y.try(move.Cutover)
			<-there
			return nil
		}},
		"cutting over - converting": {phase: move.PhaseCuttingOver, reach: func(y *yard) func() {
			y.beginReady()
			there := y.waitAt("convert")
			y.try(move.Cutover)
			<-there
			return nil
		}},
		"cutting over - powering off": {phase: move.PhaseCuttingOver, off: true, reach: func(y *yard) func() {
			y.beginWhole(func() { y.patience.Off = time.Minute }) // it is not over before it is taken back
			y.until("ready", phase(move.PhaseReady))
			told, on := make(chan struct{}), make(chan struct{})
			y.machine.rest.set(func(r *rester) { r.gone = func() { close(told); <-on; y.machine.gone() } })
			y.try(move.Cutover)
			<-told
			return func() { close(on) }
		}},
		"cutting over - the VM does not start yet": {phase: move.PhaseCuttingOver, off: true, reach: func(y *yard) func() {
			y.beginReady()
			y.vms.fail("start", libvirtAway)
			y.try(move.Cutover)
			y.until("off", func(v move.Migration) bool { return v.Fence == move.FenceOff && v.Pending() == nil })
			return nil
		}},
		"verifying": {phase: move.PhaseVerifying, off: true, reach: func(y *yard) func() {
			asked := y.beginBooting()
			y.try(move.Cutover)
			<-asked
			y.until("looked at", phase(move.PhaseVerifying))
			return nil
		}},
		"waiting - another disk": {phase: move.PhaseWaiting, reach: func(y *yard) func() {
			y.beginWhole(func() { y.machine.disks[0].ID = "wwn:other" })
			y.until("waiting", phase(move.PhaseWaiting))
			return nil
		}},
		"waiting - is it off": {phase: move.PhaseWaiting, off: true, reach: func(y *yard) func() {
			y.beginReady()
			y.machine.rest.set(func(r *rester) { r.gone = func() {} })
			y.try(move.Cutover)
			y.until("waiting", phase(move.PhaseWaiting))
			y.machine.gone()
			return nil
		}},
		"waiting - the VM does not start": {phase: move.PhaseWaiting, off: true, reach: func(y *yard) func() {
			y.beginReady()
			y.vms.fail("start", errors.New("broken for the test"))
			y.try(move.Cutover)
			y.until("waiting", phase(move.PhaseWaiting))
			return nil
		}},
		"waiting - unverified": {phase: move.PhaseWaiting, off: true, reach: func(y *yard) func() {
			y.beginReady()
			y.try(move.Cutover) // the test's guest shows no GPU
			if v := y.until("waiting", phase(move.PhaseWaiting)); !v.Unverified || len(y.overlays()) != 2 {
				y.t.Errorf("%+v, %q", v, y.overlays())
			}
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			y := newYard(t, newMachine(t, 4*mib, 3*mib))
			after := c.reach(y)
			if v := y.until("there", func(move.Migration) bool { return true }); v.Phase != c.phase {
				t.Errorf("it is %s, and not %s: %q", v.Phase, c.phase, v.Reason)
			}
			if _, err := y.Rollback("gpu7"); err != nil {
				t.Fatal(err)
			}
			if after != nil {
				after()
			}
			v := y.until("rolled back", phase(move.PhaseRolledBack))
			ended, err := y.engine.Wait(t.Context(), v.Operation)
			if err != nil || ended.Status != operation.Undone {
				t.Errorf("its operation is %s, %v", ended.Status, err)
			}
			y.nothingLeft(v, c.off)
		})
	}
}

// nothingLeft checks that a move that was taken back is as if it had not been.
func (y *yard) nothingLeft(v move.Migration, off bool) {
	y.t.Helper()
	if left, err := os.ReadDir(y.storage); err != nil && !errors.Is(err, os.ErrNotExist) || len(left) > 0 {
		y.t.Errorf("files: %v %v", left, err)
	}
	if left := append(y.vms.left(), y.holders.names()...); len(left) > 0 {
		y.t.Errorf("of its VM: %q", left)
	}
	if left := y.InMemory("gpu7"); len(left) > 0 {
		y.t.Errorf("in memory: %q", left)
	}
	if v.Reservation != nil || v.Forecast != nil || v.Locked != nil {
		y.t.Errorf("in its record: %+v, %+v, %q", v.Reservation, v.Forecast, v.Locked)
	}
	s := y.machine.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open != 0 {
		y.t.Errorf("%d sessions with the source", s.open)
	}
	if told := strings.Contains(v.Reason, "the source was powered off: start it again"); told != off || (v.Fence != move.FenceNone) != off {
		y.t.Errorf("it is said of the source: %q, fence %q", v.Reason, v.Fence)
	}
	frozen, is := y.machine.rest.is()
	if is != off || !off && (frozen || len(s.placed) > 0) {
		y.t.Errorf("the source: off %v, frozen %v, left there: %v", is, frozen, s.placed)
	}
}
