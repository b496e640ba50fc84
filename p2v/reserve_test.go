package p2v_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/move"
)

const card = gpu.ID("0000:41:00.0")

// beginWith begins a move with a partition, which the test's plan does not choose.
func (y *yard) beginWith(slice move.Slice) {
	y.t.Helper()
	y.vms.fail("define", gpu.Errorf(gpu.CodeUnavailable, "libvirt is away"))
	y.begin()
	y.stop()
	rec, err := y.store.MigrationRecord("gpu7")
	if err != nil {
		y.t.Fatal(err)
	}
	rec.Plan.Partitions = []assess.WishPartition{{Profile: slice.Profile}}
	rec.VM.Slices, rec.Reservation = []move.Slice{slice}, &move.Reservation{State: move.Reserving, Lease: int(y.lease.Seconds())}
	if err := y.store.Apply(operation.Put(move.RecordMigration, "gpu7", rec)); err != nil {
		y.t.Fatal(err)
	}
	y.holders.set(func(h *holders) {
		h.gpus, h.profiles = []gpu.GPU{{ID: card, Vendor: "NVIDIA", Managed: true}}, []gpu.Profile{{Name: slice.Profile, Kind: gpu.KindVF, Available: 1}}
	})
	y.vms.fail("define", nil)
	y.start()
}

// A VM that could never start is refused to who asks for it, in a dry run as well.
func TestRefusedWithoutItsNetwork(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.vms.fail("fits", gpu.Errorf(gpu.CodeConflict, `VM gpu7 could not start: libvirt has no network "nonet"`).WithHint("virsh net-list"))
	w := y.wish()
	_, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{})
	for what, err := range map[string]error{"asked": err, "planned": y.Refusal(t.Context(), w)} {
		e, _ := errors.AsType[*gpu.Error](err)
		if e == nil || e.Code != gpu.CodeConflict || !strings.Contains(e.Detail, `cannot migrate "gpu7": VM gpu7 could not start: libvirt has no network "nonet"`) || e.Hint != "virsh net-list" {
			t.Errorf("%s: %+v", what, err)
		}
	}
	if all, err := y.Migrations.Migrations(); err != nil || len(all) != 0 || len(y.vms.left()) != 0 {
		t.Errorf("%+v %v %q", all, err, y.vms.left())
	}
	y.vms.fail("fits", nil)
	if err := y.Refusal(t.Context(), w); err != nil {
		t.Error(err)
	}
}

// Where the VM could not start any more, its source is not powered off, and not even brought
// to rest where that is known before.
func TestCutoverIsReserved(t *testing.T) {
	m := newMachine(t, 4*mib)
	y := newYard(t, m)
	y.beginWith(move.Slice{Assignment: "gpu7", Profile: "1g.12gb", GPU: card})
	y.until("ready", phase(move.PhaseReady))
	held := func(change func(*gpu.Assignment)) func() {
		return func() {
			y.holders.set(func(h *holders) { a := h.held["gpu7"]; change(&a); h.held["gpu7"] = a })
		}
	}
	vm := y.until("", func(move.Migration) bool { return true }).VM.UUID
	was, mark := y.vms.docs[vm], y.vms.marks[vm]
	tries := 0
	for says, c := range map[string]struct{ breaks, mends func() }{
		"deleted assignment": {
			func() { y.holders.set(func(h *holders) { delete(h.held, "gpu7") }) },
			held(func(a *gpu.Assignment) {
				*a = gpu.Assignment{Name: "gpu7", GPU: card, State: gpu.AssignmentAttached, Wish: gpu.Wish{VM: vm}}
			}),
		},
		"of another VM": {held(func(a *gpu.Assignment) { a.Wish.VM = "other" }), held(func(a *gpu.Assignment) { a.Wish.VM = vm })},
		"drifted: its partition is gone": {
			held(func(a *gpu.Assignment) {
				a.State, a.Conditions = gpu.AssignmentDrifted, []gpu.Condition{{Message: "its partition is gone"}}
			}),
			held(func(a *gpu.Assignment) { a.State = gpu.AssignmentAttached }),
		},
		"in quarantine": {
			func() { y.holders.set(func(h *holders) { h.gpus[0].Quarantined = true }) },
			func() { y.holders.set(func(h *holders) { h.gpus[0].Quarantined = false }) },
		},
		"cannot find GPU": {
			func() { y.holders.set(func(h *holders) { h.gpus = nil }) },
			func() { y.holders.set(func(h *holders) { h.gpus = []gpu.GPU{{ID: card}} }) },
		},
		`no network "lan"`: {
			func() { y.vms.fail("startable", gpu.Errorf(gpu.CodeConflict, `libvirt has no network "lan"`)) },
			func() { y.vms.fail("startable", nil) },
		},
		"no such VM":      {func() { y.vms.set(func(v *vms) { delete(v.docs, vm) }) }, func() { y.vms.set(func(v *vms) { v.docs[vm] = was }) }},
		"defined another": {func() { y.vms.set(func(v *vms) { v.marks[vm] = "" }) }, func() { y.vms.set(func(v *vms) { v.marks[vm] = mark }) }},
		"runs already":    {func() { y.vms.set(func(v *vms) { v.runs[vm] = true }) }, func() { y.vms.set(func(v *vms) { delete(v.runs, vm) }) }},
	} {
		for _, late := range []bool{false, true} {
			if !late && strings.Contains(says, "assignment") || !late && says == "of another VM" {
				continue // it is reserved again, or nothing is begun: see TestReservationIsTakenByHand
			}
			froze := m.rest.froze
			if late {
				y.makers.set(func(what string, _ convert.Job) {
					if what == "convert" {
						c.breaks()
					}
				})
			} else {
				c.breaks()
			}
			y.cutOver()
			tries++
			a := y.over(min(tries, move.MaxAttempts))
			if a.State != move.Failed || !strings.Contains(a.Problem, says) {
				t.Errorf("%s: %+v", says, a)
			}
			y.awake()
			if !late && m.rest.froze != froze {
				t.Errorf("%s: the source was brought to rest", says)
			}
			if got := y.overlays(); len(got) != 0 || y.vms.started != 0 {
				t.Errorf("%s: left: %q, started %d times", says, got, y.vms.started)
			}
			y.makers.set(nil)
			c.mends()
		}
	}
	if a := y.rehearse(move.CutWish{}); !strings.Contains(a.Phase, "looking") { // the test's guest shows no devices
		t.Errorf("%+v", a)
	}
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("rolled back", phase(move.PhaseRolledBack))
	y.gone4good()
}

// A source that somebody has started again while its VM could not be is not met by it.
func TestStartIsAlone(t *testing.T) {
	m := newMachine(t, 4*mib)
	y := newYard(t, m)
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	off := make(chan struct{})
	y.vms.fail("start", gpu.Errorf(gpu.CodeUnavailable, "libvirt is away"))
	m.rest.set(func(r *rester) { r.gone = func() { m.gone(); close(off) } })
	y.cutOver()
	<-off
	y.until("off", func(v move.Migration) bool { return v.Fence == move.FenceOff })
	m.there()
	y.until("waiting", phase(move.PhaseWaiting))
	y.vms.fail("start", nil)
	if _, err := y.Retry("gpu7"); err != nil {
		t.Fatal(err)
	}
	if v := y.until("waiting again", phase(move.PhaseWaiting)); !strings.Contains(v.Reason, "answers again") || y.vms.started != 0 {
		t.Errorf("%q, started %d times", v.Reason, y.vms.started)
	}
	m.gone()
	if _, err := y.Retry("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("started", func(v move.Migration) bool { return v.Phase == move.PhaseVerifying || v.Phase == move.PhaseDone })
	m.there() // as which the VM answers
	y.until("done", phase(move.PhaseDone))
}

// What a VM has said on its console goes with it, however much that is.
func TestConsolesGo(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	says := func(*gpu.Trial) {
		for _, name := range []string{"console.log", "console.log.0", "console.log.12"} {
			if err := os.WriteFile(filepath.Join(y.storage, "gpu7", name), []byte("Linux version"), 0o600); err != nil {
				t.Error(err)
			}
		}
	}
	y.vms.set(func(v *vms) { v.on = says })
	if a := y.rehearse(move.CutWish{}); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
	if left, err := filepath.Glob(filepath.Join(y.storage, "gpu7", "console*")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
	says(nil)
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("rolled back", phase(move.PhaseRolledBack))
	y.gone4good()
}

// A reservation that is undone as libvirt was away for a moment is made again.
func TestReserveAgain(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.holders.set(func(h *holders) { h.fails = gpu.Errorf(gpu.CodeUnavailable, "libvirt is away") })
	y.beginWith(move.Slice{Assignment: "gpu7", Profile: "1g.12gb", GPU: card})
	y.until("tried", func(move.Migration) bool {
		y.holders.mu.Lock()
		defer y.holders.mu.Unlock()
		return len(y.holders.begun) > 1
	})
	if v := y.until("", func(move.Migration) bool { return true }); v.Phase != move.PhasePlanned {
		t.Errorf("%s: %s", v.Phase, v.Reason)
	}
	y.holders.set(func(h *holders) { h.fails = nil })
	y.until("ready", phase(move.PhaseReady))
	if got := y.holders.names(); len(got) != 1 {
		t.Errorf("held: %q", got)
	}
}

// A rehearsal that cannot be taken down is, before its mirrors are written again.
func TestRehearsalIsTakenDown(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	broken := gpu.Errorf(gpu.CodeUnavailable, "libvirt is away")
	y.vms.set(func(v *vms) { v.on = func(*gpu.Trial) { v.fails["stop"] = broken } })
	if a := y.rehearse(move.CutWish{}); a.State != move.Failed || !strings.Contains(a.Problem, "libvirt is away") {
		t.Errorf("%+v", a)
	}
	passed := y.until("tried again", func(v move.Migration) bool { return v.Phase == move.PhaseSyncing }).Disks[0].Total
	if _, err := y.Sync("gpu7"); err != nil {
		t.Fatal(err)
	}
	<-time.After(50 * time.Millisecond)
	if v := y.until("", func(move.Migration) bool { return true }); v.Disks[0].Total != passed {
		t.Error("a mirror was written with a VM on it")
	}
	y.vms.fail("stop", nil)
	y.until("ready again", phase(move.PhaseReady))
	if left := y.vms.left(); len(left) != 1 || len(y.overlays()) > 0 {
		t.Errorf("left: %q %q", left, y.overlays())
	}
	y.vms.set(func(v *vms) { v.on = nil })
	if a := y.rehearse(move.CutWish{}); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
}

// A source does not decide how much is kept of each attempt.
func TestAttemptsAreBounded(t *testing.T) {
	m := newMachine(t, 4*mib)
	m.works = 3000
	y := newYard(t, m)
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	a := y.rehearse(move.CutWish{})
	if a.Report == nil || a.Before == nil || len(a.Report.Results) > 200 || len(a.Before.Results) > 200 {
		t.Errorf("%+v", a)
	}
	if text, err := json.Marshal(a); err != nil || len(text) > 100<<10 {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

// What stands in the way of a roll back is told, and it is not tried for ever: only what passes
// by itself is waited for.
func TestRollbackFails(t *testing.T) {
	for what, step := range map[string]string{"no network": "migration.sync", "stop": "migration.start"} {
		t.Run(what, func(t *testing.T) {
			y := newYard(t, newMachine(t, 4*mib))
			y.begin()
			y.until("ready", phase(move.PhaseReady))
			if step == "migration.start" {
				y.vms.set(func(v *vms) { v.agent = illGuest })
				y.cutOver()
				y.until("waiting", phase(move.PhaseWaiting))
			}
			y.vms.fail(what, gpu.Errorf(gpu.CodeConflict, "it is somebody else's"))
			if _, err := y.Rollback("gpu7"); err != nil {
				t.Fatal(err)
			}
			if v := y.until("failed", phase(move.PhaseFailed)); !strings.Contains(v.Reason, step) || !strings.Contains(v.Reason, "somebody else's") {
				t.Errorf("%q", v.Reason)
			}
			y.vms.fail(what, gpu.Errorf(gpu.CodeUnavailable, "libvirt is away"))
			if _, err := y.Retry("gpu7"); err != nil {
				t.Fatal(err)
			}
			y.vms.fail(what, nil)
			y.until("rolled back", phase(move.PhaseRolledBack))
			if left := append(y.vms.left(), y.holders.names()...); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// An operation that waits for a person does not hold a roll back up: one of the move's own VM is
// aborted, and of another it is said what to do.
func TestRollbackOfOneThatWaits(t *testing.T) {
	for name, own := range map[string]bool{"its own": true, "another's": false} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, newMachine(t, 4*mib))
			if own {
				y.holders.set(func(h *holders) { h.waits = &operation.WaitError{Reason: "shut the guest down"} })
				y.beginWith(move.Slice{Assignment: "gpu7", Profile: "1g.12gb", GPU: card})
				y.until("rolled back", phase(move.PhaseRolledBack)) // as it could not be reserved
				if left := append(y.vms.left(), y.holders.names()...); len(left) > 0 {
					t.Errorf("left: %q", left)
				}
				return
			}
			y.beginWith(move.Slice{Assignment: "gpu7", Profile: "1g.12gb", GPU: card})
			y.until("ready", phase(move.PhaseReady))
			y.holders.set(func(h *holders) { h.waits = &operation.WaitError{Reason: "shut the guest down"} })
			op, err := y.holders.add(t.Context(), "somebody", "other", map[string]any{"Wishes": []gpu.NamedWish{}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := y.engine.Wait(t.Context(), op.ID); err != nil {
				t.Fatal(err)
			}
			y.holders.set(func(h *holders) { h.waits = nil })
			if _, err := y.Rollback("gpu7"); err != nil {
				t.Fatal(err)
			}
			v := y.until("failed", phase(move.PhaseFailed))
			if !strings.Contains(v.Reason, op.ID) || !strings.Contains(v.Reason, "shut the guest down") {
				t.Errorf("%q", v.Reason)
			}
			if _, err := y.engine.Abort(op.ID); err != nil {
				t.Fatal(err)
			}
			if _, err := y.Retry("gpu7"); err != nil {
				t.Fatal(err)
			}
			y.until("rolled back", phase(move.PhaseRolledBack))
			y.gone4good()
		})
	}
}
