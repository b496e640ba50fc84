package p2v_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/verify"
)

// over is the last attempt when it has come to an end.
func (y *yard) over(n int) move.Attempt {
	y.t.Helper()
	v := y.until("tried", func(v move.Migration) bool {
		return len(v.Attempts) == n && v.Attempts[n-1].Over()
	})
	return v.Attempts[n-1]
}

func (y *yard) rehearse(w move.CutWish) move.Attempt {
	y.t.Helper()
	v, err := y.Rehearse(y.t.Context(), "gpu7", "tester", w)
	if err != nil {
		y.t.Fatal(err)
	}
	return y.over(len(v.Attempts))
}

func (y *yard) cutOver() {
	y.t.Helper()
	if _, err := y.CutOver(y.t.Context(), "gpu7", "tester", move.CutWish{Unrehearsed: "a test"}); err != nil {
		y.t.Fatal(err)
	}
}

// asleep fails where the machine is at rest, or off.
func (y *yard) awake() {
	y.t.Helper()
	if frozen, off := y.machine.rest.is(); frozen || off {
		y.t.Errorf("the source: frozen %v, off %v", frozen, off)
	}
}

// overlays are the disks that VMs have here.
func (y *yard) overlays() []string {
	y.t.Helper()
	all, err := filepath.Glob(filepath.Join(y.storage, "gpu7", "*.qcow2*"))
	if err != nil {
		y.t.Fatal(err)
	}
	return all
}

func (y *yard) gone4good() {
	y.t.Helper()
	y.clean()
	if left := append(y.vms.left(), y.holders.names()...); len(left) > 0 {
		y.t.Errorf("left: %q", left)
	}
}

// A server becomes a VM: what was written a moment before is on its disks, the source is off
// before it starts, and from then on the VM is nobody's but its owner's.
func TestCutover(t *testing.T) {
	m := newMachine(t, 8*mib, 4*mib)
	y := newYard(t, m)
	y.begin()
	y.until("ready", phase(move.PhaseReady))

	var v move.Migration
	// It is written until it is frozen; not tracked, so that it is found by nobody but the last pass.
	m.rest.set(func(r *rester) { r.still = func() { m.write(1, 2*mib+3, "written last of all") } })
	disk := filepath.Join(y.storage, "gpu7", "nvme0n1.qcow2")
	y.vms.set(func(v *vms) {
		v.on = func(trial *gpu.Trial) {
			if _, off := m.rest.is(); !off || trial != nil {
				t.Errorf("the VM starts, and the source is off: %v", off)
			}
			if _, err := os.Stat(disk); err != nil {
				t.Error(err)
			}
		}
	})
	y.makers.set(func(what string, job convert.Job) {
		if frozen, _ := m.rest.is(); !frozen && what == "convert" {
			t.Error("it is converted while the source runs")
		}
		if _, err := os.Stat(disk); err == nil {
			t.Error("the VM has a disk and the source runs: somebody could start it")
		}
		if what == "convert" && (job.Name != "gpu7" || len(job.Disks) != 2) {
			t.Errorf("%+v", job)
		}
	})
	y.cutOver()
	v = y.until("done", phase(move.PhaseDone))
	y.same()
	a := v.Attempts[0]
	if a.State != move.Passed || a.Kind != move.Cutover || a.Report == nil || a.Report.Verdict != verify.StateOK || a.Wish.Unrehearsed == "" || a.Rest <= 0 || a.Downtime < a.Rest {
		t.Errorf("%+v", a)
	}
	if v.Fence != move.FenceOff || v.BootID != boot || y.vms.started != 1 {
		t.Errorf("fence %q of boot %q, started %d times", v.Fence, v.BootID, y.vms.started)
	}
	if got := y.overlays(); len(got) != 2 {
		t.Errorf("its disks: %q", got)
	}

	// It is an ordinary VM now.
	if _, err := y.Rollback("gpu7"); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Errorf("a roll back of what is done: %v", err)
	}
	if _, err := y.Delete(t.Context(), "gpu7"); err != nil {
		t.Fatal(err)
	}
	if len(y.overlays()) != 2 || len(y.vms.left()) != 2 {
		t.Errorf("what is left when it is forgotten: %q, %q", y.overlays(), y.vms.left())
	}
	// Its disks are not taken for those of another move.
	if _, err := y.Create(t.Context(), "tester", move.Wish{Name: "gpu7", Assessment: "gpu7"}, gpu.Idempotency{}); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Errorf("a second one of its name: %v", err)
	}
	if data, err := os.ReadFile(y.overlays()[0]); err != nil || !bytes.HasPrefix(data, []byte("over ")) {
		t.Errorf("%q, %v", data, err)
	}
}

// What fails before the source is off leaves it running, and the copy goes on.
func TestCutoverFails(t *testing.T) {
	broken := errors.New("broken for the test")
	for name, c := range map[string]struct {
		set  func(y *yard)
		wish move.CutWish
		says string
	}{
		"probe":     {set: func(y *yard) { y.makers.fail("probe", broken) }, says: "broken"},
		"overlay":   {set: func(y *yard) { y.makers.fail("overlay", broken) }, says: "broken"},
		"customize": {set: func(y *yard) { y.makers.fail("convert", broken) }, says: "broken"},
		"writes below": {set: func(y *yard) {
			path := filepath.Join(y.machine.rest.tree, "sys/devices/nvme0n1/nvme0n1p1/stat")
			y.makers.set(func(what string, _ convert.Job) {
				if what == "convert" {
					_ = os.WriteFile(path, []byte("0 0 0 0 8 0 16 0 0 0 0 0 0 0 0 0 0\n"), 0o600)
				}
			})
		}, says: "not at rest"},
		"compared": {set: func(y *yard) {
			// The tracker does not tell of it, nor did it have to: that is what comparing is for.
			y.machine.rest.set(func(r *rester) { r.still = func() { y.machine.untold(0, 5*mib, "untold") } })
		}, wish: move.CutWish{Verify: true}, says: "not as the disk is"},
		"too slow": {set: func(y *yard) { // and it was not when it was rehearsed
			y.rehearse(move.CutWish{})
			y.makers.fail("convert", errWaits)
		}, wish: move.CutWish{Limit: 4}, says: "at rest for 4s"},
	} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, newMachine(t, 8*mib))
			y.begin()
			y.until("ready", phase(move.PhaseReady))
			c.set(y)
			w := c.wish
			w.Unrehearsed = "a test"
			v, err := y.CutOver(y.t.Context(), "gpu7", "tester", w)
			if err != nil {
				t.Fatal(err)
			}
			a := y.over(len(v.Attempts))
			if a.State != move.Failed || !strings.Contains(a.Problem, c.says) {
				t.Errorf("%+v", a)
			}
			y.awake()
			if got := y.overlays(); len(got) != 0 {
				t.Errorf("left: %q", got)
			}
			if y.vms.started != 0 {
				t.Error("the VM was started")
			}
			y.machine.write(0, 3*mib, "it goes on")
			before := y.until("ready again", phase(move.PhaseReady)).Disks[0].Total
			if _, err := y.Sync("gpu7"); err != nil {
				t.Fatal(err)
			}
			y.until("copied", func(v move.Migration) bool { return v.Disks[0].Total > before && v.Phase == move.PhaseReady })
			y.same()
			if _, err := y.Rollback("gpu7"); err != nil {
				t.Fatal(err)
			}
			y.until("rolled back", phase(move.PhaseRolledBack))
			y.gone4good()
		})
	}
}

// errWaits has the converter of the test wait until it is given up.
var errWaits = errors.New("waits")

// A rehearsal starts the VM on a copy and takes it down; the source is at rest for a moment.
func TestRehearsal(t *testing.T) {
	m := newMachine(t, 8*mib)
	y := newYard(t, m)
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	if _, err := y.CutOver(y.t.Context(), "gpu7", "tester", move.CutWish{}); gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), "not rehearsed") {
		t.Errorf("without a rehearsal: %v", err)
	}
	y.vms.set(func(v *vms) {
		v.on = func(trial *gpu.Trial) {
			if frozen, off := m.rest.is(); frozen || off {
				t.Errorf("the VM is tried, and the source is frozen: %v, off: %v", frozen, off)
			}
			if trial == nil || len(trial.Disks) != 1 {
				t.Errorf("%+v", trial)
			}
		}
	})
	a := y.rehearse(move.CutWish{})
	if a.State != move.Passed || a.Report == nil || m.rest.froze != 1 {
		t.Errorf("%+v, frozen %d times", a, m.rest.froze)
	}
	y.awake()
	bare := func() {
		t.Helper()
		if left := append(y.overlays(), slices.DeleteFunc(y.vms.left(), func(s string) bool { return strings.HasPrefix(s, "defined") })...); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	}
	bare()

	// One that fails says why, and forbids the cut-over.
	y.vms.set(func(v *vms) { v.agent = illGuest })
	if a := y.rehearse(move.CutWish{Live: true}); a.State != move.Failed || !strings.Contains(a.Problem, "Filesystems") || a.Report == nil || m.rest.froze != 1 {
		t.Errorf("%+v, frozen %d times", a, m.rest.froze)
	}
	bare()
	if _, err := y.CutOver(y.t.Context(), "gpu7", "tester", move.CutWish{}); gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), "rehearsal has failed") {
		t.Errorf("after one that failed: %v", err)
	}
	y.vms.set(func(v *vms) { v.agent = wellGuest })
	if a := y.rehearse(move.CutWish{}); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
	y.vms.set(func(v *vms) { v.on = nil })
	if _, err := y.CutOver(y.t.Context(), "gpu7", "tester", move.CutWish{}); err != nil {
		t.Fatal(err)
	}
	y.until("done", phase(move.PhaseDone))
}

// What is asked for can be withdrawn, before it begins and in its middle.
func TestWithdraw(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	if _, err := y.Withdraw("gpu7", "boss"); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Errorf("of nothing: %v", err)
	}
	there := make(chan struct{})
	y.makers.set(func(what string, _ convert.Job) {
		if what == "convert" {
			close(there)
		}
	})
	y.makers.fail("convert", errWaits)
	y.cutOver()
	<-there
	if _, err := y.Withdraw("gpu7", "boss"); err != nil {
		t.Fatal(err)
	}
	if a := y.over(1); a.State != move.Withdrawn || !strings.Contains(a.Problem, "boss") {
		t.Errorf("%+v", a)
	}
	y.awake()
	if left := y.overlays(); len(left) > 0 || y.vms.started != 0 {
		t.Errorf("left: %q, started %d", left, y.vms.started)
	}
	y.makers.set(nil)
	y.makers.fail("convert", nil)
	y.until("ready", phase(move.PhaseReady))
	y.cutOver()
	y.until("done", phase(move.PhaseDone))
	if _, err := y.Withdraw("gpu7", "boss"); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Errorf("of what is done: %v", err)
	}
}

// A cut-over that is to come when it can waits for that, also over a restart of the daemon.
func TestCutoverWhenReady(t *testing.T) {
	m := newMachine(t, 4*mib)
	y := newYard(t, m)
	y.budget = 1e-9 // no pass is as short
	y.begin()
	y.until("passed over", passes(1))
	for range 2 {
		if _, err := y.CutOver(y.t.Context(), "gpu7", "tester", move.CutWish{Unrehearsed: "a test", WhenReady: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := y.Rehearse(y.t.Context(), "gpu7", "tester", move.CutWish{}); gpu.CodeOf(err) != gpu.CodeConflict {
			t.Errorf("a rehearsal beside it: %v", err)
		}
		if _, err := y.Sync("gpu7"); err != nil {
			t.Fatal(err)
		}
		y.stop()
		n := y.until("known", func(move.Migration) bool { return true }).Disks[0].Total
		y.start()
		v := y.until("passed over again", func(v move.Migration) bool { return v.Disks[0].Total > n && v.Forecast != nil })
		if a := v.Pending(); a == nil || a.State != move.Asked || !a.Began.IsZero() {
			t.Fatalf("%+v", v.Attempts)
		}
		if _, err := y.Withdraw("gpu7", "tester"); err != nil {
			t.Fatal(err)
		}
		if a := y.over(len(v.Attempts)); a.State != move.Withdrawn {
			t.Errorf("%+v", a)
		}
	}
	// With a longer limit it can.
	if _, err := y.CutOver(y.t.Context(), "gpu7", "tester", move.CutWish{Unrehearsed: "a test", WhenReady: true, Limit: 600}); err != nil {
		t.Fatal(err)
	}
	y.until("done", phase(move.PhaseDone))
	y.same()
}

// A VM that is not what it should be waits for a person, who takes it or rolls back.
func TestCutoverUnverified(t *testing.T) {
	for _, end := range []string{"accept", "retry", "rollback"} {
		t.Run(end, func(t *testing.T) {
			y := newYard(t, newMachine(t, 4*mib))
			y.begin()
			y.until("ready", phase(move.PhaseReady))
			y.vms.set(func(v *vms) { v.agent = illGuest })
			y.cutOver()
			v := y.until("waiting", phase(move.PhaseWaiting))
			if !v.Unverified || !strings.Contains(v.Reason, "Filesystems") || v.Attempts[0].State != move.Moved {
				t.Errorf("%+v", v)
			}
			became := map[string]move.AttemptState{"accept": move.Passed, "retry": move.Passed, "rollback": move.TakenBack}
			defer func() {
				v, err := y.Migration("gpu7")
				if a := v.Attempts[0]; err != nil || a.State != became[end] || a.Report == nil {
					t.Errorf("%+v, %v", a, err)
				}
			}()
			switch end {
			case "accept":
				if _, err := y.Accept("gpu7", "boss", "it is so there"); err != nil {
					t.Fatal(err)
				}
				if v := y.until("done", phase(move.PhaseDone)); v.Accepted != "boss: it is so there" || v.Attempts[0].Report.Verdict == verify.StateOK {
					t.Errorf("%q %+v", v.Accepted, v.Attempts[0].Report)
				}
			case "retry":
				y.vms.set(func(v *vms) { v.agent = wellGuest })
				if _, err := y.Retry("gpu7"); err != nil {
					t.Fatal(err)
				}
				y.until("done", phase(move.PhaseDone))
			case "rollback":
				y.machine.there() // somebody starts it
				if _, err := y.Rollback("gpu7"); err != nil {
					t.Fatal(err)
				}
				if v := y.until("rolled back", phase(move.PhaseRolledBack)); !strings.Contains(v.Reason, "start it again") {
					t.Errorf("%+v", v)
				}
				if left := append(y.vms.left(), y.holders.names()...); len(left) > 0 {
					t.Errorf("left: %q", left)
				}
			}
		})
	}
}

// Where it is not known whether the source is off, nothing starts until somebody says so.
func TestFenceUnknown(t *testing.T) {
	for _, end := range []string{"off", "on", "rollback"} {
		t.Run(end, func(t *testing.T) {
			m := newMachine(t, 4*mib)
			y := newYard(t, m)
			y.begin()
			y.until("ready", phase(move.PhaseReady))
			m.rest.set(func(r *rester) { r.gone = func() {} }) // it answers on
			y.cutOver()
			v := y.until("waiting", func(v move.Migration) bool { return v.Phase == move.PhaseWaiting })
			if v.Fence != move.FenceAsked || y.vms.started != 0 || !strings.Contains(v.Reason, "off") {
				t.Errorf("%+v", v)
			}
			if _, err := y.Accept("gpu7", "boss", "x"); gpu.CodeOf(err) != gpu.CodeConflict {
				t.Errorf("accepted: %v", err)
			}
			switch end {
			case "off":
				m.gone()
				if _, err := y.Fenced("gpu7", "boss"); err != nil {
					t.Fatal(err)
				}
				v := y.until("done", phase(move.PhaseDone))
				if a := v.Attempts[0]; a.State != move.Passed || !strings.Contains(a.Phase, "boss") {
					t.Errorf("%+v", a)
				}
				y.same()
			case "on":
				m.rest.set(func(r *rester) { r.off = false })
				if _, err := y.Retry("gpu7"); err != nil {
					t.Fatal(err)
				}
				v := y.until("ready", phase(move.PhaseReady))
				if v.Fence != move.FenceNone || v.Attempts[0].State != move.Failed || len(y.overlays()) != 0 {
					t.Errorf("%+v %q", v, y.overlays())
				}
			case "rollback":
				if _, err := y.Rollback("gpu7"); err != nil {
					t.Fatal(err)
				}
				y.until("rolled back", phase(move.PhaseRolledBack))
				if left := append(y.vms.left(), y.holders.names()...); len(left) > 0 {
					t.Errorf("left: %q", left)
				}
			}
		})
	}
}

// A daemon that ends in the middle of a try leaves the source awake, and clears up after its
// next start; one that ends after the source is off starts the VM.
func TestCutoverRestart(t *testing.T) {
	for _, at := range []string{"overlay", "convert", "started"} {
		t.Run(at, func(t *testing.T) {
			m := newMachine(t, 4*mib)
			y := newYard(t, m)
			y.begin()
			y.until("ready", phase(move.PhaseReady))
			there, ctx := make(chan struct{}), t.Context()
			reached := func() {
				select {
				case <-there:
				default:
					close(there)
				}
			}
			if at == "started" {
				y.vms.fail("start", gpu.Errorf(gpu.CodeUnavailable, "libvirt is away"))
				m.rest.set(func(r *rester) { r.gone = func() { m.gone(); reached() } })
			} else {
				y.makers.set(func(what string, _ convert.Job) {
					if what == at {
						reached()
					}
				})
				y.makers.fail(at, errWaits)
			}
			y.cutOver()
			select {
			case <-there:
			case <-ctx.Done():
			}
			y.stop()
			y.vms.fail("start", nil)
			y.makers.fail(at, nil)
			y.start()
			if at == "started" {
				v := y.until("known", func(v move.Migration) bool { return v.Phase == move.PhaseDone || v.Phase == move.PhaseWaiting })
				if v.Phase == move.PhaseWaiting { // it ended between the order and the look whether it was carried out
					if _, err := y.Fenced("gpu7", "tester"); err != nil {
						t.Fatal(err)
					}
					y.until("done", phase(move.PhaseDone))
				}
				y.same()
				return
			}
			a := y.over(1)
			if a.State != move.Failed {
				t.Errorf("%+v", a)
			}
			y.until("ready", phase(move.PhaseReady))
			y.awake()
			if len(y.overlays()) != 0 || y.vms.started != 0 {
				t.Errorf("left: %q, started: %d", y.overlays(), y.vms.started)
			}
			if _, err := y.Rollback("gpu7"); err != nil {
				t.Fatal(err)
			}
			y.until("rolled back", phase(move.PhaseRolledBack))
			y.gone4good()
		})
	}
}

// A roll back in the middle of a try wakes the source.
func TestCutoverRollback(t *testing.T) {
	for _, at := range []string{"overlay", "convert", "trial"} {
		t.Run(at, func(t *testing.T) {
			m := newMachine(t, 4*mib)
			y := newYard(t, m)
			y.begin()
			y.until("ready", phase(move.PhaseReady))
			there := make(chan struct{})
			if at == "trial" {
				y.vms.set(func(v *vms) {
					v.on = func(*gpu.Trial) { close(there) }
					v.agent = func(string, string) (string, error) { return "", gpu.Errorf(gpu.CodeUnavailable, "it boots") }
				})
				if _, err := y.Rehearse(y.t.Context(), "gpu7", "tester", move.CutWish{}); err != nil {
					t.Fatal(err)
				}
			} else {
				y.makers.set(func(what string, _ convert.Job) {
					if what == at {
						close(there)
					}
				})
				y.makers.fail(at, errWaits)
				y.cutOver()
			}
			<-there
			if _, err := y.Rollback("gpu7"); err != nil {
				t.Fatal(err)
			}
			y.until("rolled back", phase(move.PhaseRolledBack))
			y.awake()
			y.gone4good()
		})
	}
}

// The slice is held from the beginning; where it is not to be had nothing begins, and nothing
// is left.
func TestReserve(t *testing.T) {
	m := newMachine(t, 4*mib)
	y := newYard(t, m)
	y.vms.fail("define", gpu.Errorf(gpu.CodeConflict, "there is a VM of this name"))
	y.begin()
	y.until("rolled back", phase(move.PhaseRolledBack))
	op, err := y.engine.Get(y.until("", func(move.Migration) bool { return true }).Operation)
	if err != nil || op.Problem == nil || !strings.Contains(op.Problem.Detail, "of this name") {
		t.Errorf("%+v %v", op.Problem, err)
	}
	y.vms.fail("define", nil)
	if _, err := y.Delete(t.Context(), "gpu7"); err != nil {
		t.Fatal(err)
	}
	// libvirt is away for a while: it is waited for.
	y.vms.fail("define", gpu.Errorf(gpu.CodeUnavailable, "libvirt is away"))
	y.begin()
	y.vms.fail("define", nil)
	y.until("ready", phase(move.PhaseReady))
}

// An assessment stays as long as a move rests on it.
func TestAssessmentInUse(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.begin()
	if _, err := y.assessments.Delete("gpu7"); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Errorf("got %v", err)
	}
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("rolled back", phase(move.PhaseRolledBack))
	if _, err := y.assessments.Delete("gpu7"); err != nil {
		t.Error(err)
	}
}

// A source that is told to power off and hangs is not off: it takes connections, and lets
// nobody in.
func TestFenceHangs(t *testing.T) {
	m := newMachine(t, 4*mib)
	y := newYard(t, m)
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	m.rest.set(func(r *rester) {
		r.gone = func() {
			m.server.mu.Lock()
			defer m.server.mu.Unlock()
			m.visits = []visit{{dial: gpu.Errorf(gpu.CodeUnavailable, "cannot reach it: no answer within 3s")}}
		}
	})
	y.cutOver()
	if v := y.until("waiting", phase(move.PhaseWaiting)); v.Fence != move.FenceAsked || y.vms.started != 0 {
		t.Errorf("fence %q, started %d times", v.Fence, y.vms.started)
	}
}

// A daemon that was killed when it had told the source to power off, and is back before that is
// off, does not take it for one that goes on.
func TestFenceUnderWay(t *testing.T) {
	m := newMachine(t, 4*mib)
	y := newYard(t, m)
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	told := make(chan struct{})
	m.rest.set(func(r *rester) { r.gone = func() { close(told) } })
	y.cutOver()
	<-told
	y.life.end()
	y.stop()
	y.patience.Off = time.Minute // it is asked until it is off
	y.start()
	m.server.mu.Lock()
	dialed := m.dialed
	m.server.mu.Unlock()
	y.until("asked", func(move.Migration) bool {
		m.server.mu.Lock()
		defer m.server.mu.Unlock()
		return m.dialed > dialed
	})
	m.gone()
	if v := y.until("waiting", phase(move.PhaseWaiting)); v.Fence != move.FenceAsked {
		t.Errorf("%+v", v)
	}
	if _, err := y.Fenced("gpu7", "tester"); err != nil {
		t.Fatal(err)
	}
	y.until("done", phase(move.PhaseDone))
	y.same()
}

// A daemon that is to end leaves the source awake. What was asked for whenever it fits is done
// by the next; else who has asked is told to ask again.
func TestCutoverDrained(t *testing.T) {
	for name, w := range map[string]move.CutWish{"now": {Unrehearsed: "a test"}, "when ready": {Unrehearsed: "a test", WhenReady: true}} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, 4*mib)
			y := newYard(t, m)
			y.begin()
			y.until("ready", phase(move.PhaseReady))
			there := make(chan struct{})
			y.makers.set(func(what string, _ convert.Job) {
				if what == "convert" {
					close(there)
				}
			})
			y.makers.fail("convert", errWaits)
			if _, err := y.CutOver(y.t.Context(), "gpu7", "tester", w); err != nil {
				t.Fatal(err)
			}
			<-there
			y.engine.Drain(t.Context())
			y.awake()
			if len(y.overlays()) > 0 {
				t.Errorf("left: %q", y.overlays())
			}
			y.stop()
			y.makers.set(nil)
			y.makers.fail("convert", nil)
			y.start()
			if w.WhenReady {
				if v := y.until("done", phase(move.PhaseDone)); len(v.Attempts) != 1 || v.Attempts[0].State != move.Passed {
					t.Errorf("%+v", v.Attempts)
				}
				return
			}
			if v := y.until("ready", phase(move.PhaseReady)); v.Attempts[0].State != move.Failed || !strings.Contains(v.Attempts[0].Problem, "ask again") {
				t.Errorf("%+v", v.Attempts)
			}
		})
	}
}

// While a source is frozen nobody connects to it anew, however many disks it has and connections are
// asked for: what takes a login may hang.
func TestNobodyConnectsToTheFrozen(t *testing.T) {
	sizes := make([]int, 9)
	for i := range sizes {
		sizes[i] = 2 * mib
	}
	m := newMachine(t, sizes...)
	var late atomic.Int32
	m.server.mu.Lock()
	m.visits = []visit{{serve: func(ctx context.Context, args []string) (io.ReadWriteCloser, error) {
		if frozen, _ := m.rest.is(); frozen && slices.Contains(args, "serve") {
			late.Add(1)
		}
		return m.serveDisks(ctx, args)
	}}}
	m.server.mu.Unlock()
	y := newYard(t, m)
	w := y.wish()
	w.Copy.Connections = 12
	if _, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{}); err != nil {
		t.Fatal(err)
	}
	y.until("ready", phase(move.PhaseReady))
	for i := range sizes {
		m.write(i, mib, "changed")
	}
	if a := y.rehearse(move.CutWish{Verify: true}); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
	if n := late.Load(); n > 0 {
		t.Errorf("%d connections were made to a frozen server", n)
	}
	y.same()
}

// What a person waits for is told while it is found out whether this host can convert.
func TestProbeIsTold(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	told := ""
	y.makers.set(func(what string, _ convert.Job) {
		if v, err := y.Migration("gpu7"); err == nil && what == "probe" && v.Pending() != nil {
			told = v.Pending().Phase
		}
	})
	if a := y.rehearse(move.CutWish{}); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
	y.makers.set(nil)
	if !strings.Contains(told, "trying what converts") {
		t.Errorf("%q", told)
	}
}
