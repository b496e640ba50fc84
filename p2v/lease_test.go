package p2v_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/move"
)

const lease = 20 * 24 * time.Hour // which is told of 5 days before

// leased begins a move whose partitions are leased, and waits until it is ready.
func leased(t *testing.T, m *machine) *yard {
	y := newYard(t, m)
	y.lease = lease
	y.beginWith(move.Slice{Assignment: "gpu7", Profile: "1g.12gb", GPU: card})
	y.until("ready", func(v move.Migration) bool { return v.Phase == move.PhaseReady && !v.Reservation.Copied.IsZero() })
	return y
}

func reservation(s move.ReservationState) func(move.Migration) bool {
	return func(v move.Migration) bool { return v.Reservation != nil && v.Reservation.State == s }
}

// release has the lease end, after that was told.
func (y *yard) release() move.Migration {
	y.t.Helper()
	y.later(lease)
	y.until("ending", reservation(move.Ending))
	y.later(lease / 4)
	return y.until("released", reservation(move.Released))
}

// holds checks whether the VM has its partition.
func (y *yard) holds(want bool) {
	y.t.Helper()
	if got := y.holders.names(); (len(got) == 1) != want {
		y.t.Errorf("held: %q", got)
	}
}

// A move that nobody does anything with gives its partitions back, after that was told. Its copy and
// its VM stay, and it goes on: who rehearses it has them again.
func TestLeaseEnds(t *testing.T) {
	y := leased(t, newMachine(t, 4*mib))
	v := y.until("reserved", reservation(move.Reserved))
	if left := v.Reservation.Until.Sub(y.now()); v.Reservation.Lease != int(lease.Seconds()) || left < lease-time.Minute || left > lease {
		t.Errorf("%+v", v.Reservation)
	}
	y.later(lease*3/4 + time.Second)
	v = y.until("ending", reservation(move.Ending))
	if left := v.Reservation.Until.Sub(y.now()); left < lease/4-time.Minute {
		t.Errorf("it ends in %s", left)
	}
	y.holds(true)
	y.later(lease / 4)
	v = y.until("released", reservation(move.Released))
	y.holds(false)
	if len(y.vms.left()) != 1 || v.Phase != move.PhaseReady {
		t.Errorf("%s, %q", v.Phase, y.vms.left())
	}
	passed := v.Disks[0].Total
	if _, err := y.Sync("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("passed over", func(v move.Migration) bool { return v.Disks[0].Total > passed })
	y.same()
	y.holds(false) // as nobody has asked for it
	y.rehearse(move.CutWish{})
	y.holds(true)
	if v = y.until("reserved", reservation(move.Reserved)); v.Reservation.Until.Sub(y.now()) < lease-time.Minute {
		t.Errorf("%+v", v.Reservation)
	}
	if len(y.vms.trials) != 1 {
		t.Errorf("%d trials", len(y.vms.trials))
	}
	want := []string{"reserved", "ending", "releasing", "released", "reserved"}
	told := func() []string { return y.events.told("migration.reservation gpu7 ") }
	y.await("all is told", func() bool { return len(told()) >= len(want) })
	if got := told(); !slices.Equal(got, want) {
		t.Errorf("told: %q, want %q", got, want)
	}
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("rolled back", phase(move.PhaseRolledBack))
	y.gone4good()
}

// Whatever somebody asks for begins the lease anew.
func TestLeaseIsRenewed(t *testing.T) {
	y := leased(t, newMachine(t, 4*mib))
	y.slow(time.Hour, 0) // so that no cut-over fits that is to take a second
	forever, day := 0, 24*3600
	for what, ask := range map[string]func() error{
		"sync":     func() error { _, err := y.Sync("gpu7"); return err },
		"set":      func() error { _, err := y.SetCopy("gpu7", move.Copy{Interval: 700}); return err },
		"reserve":  func() error { _, err := y.Reserve(t.Context(), "gpu7", nil); return err },
		"rehearse": func() error { y.rehearse(move.CutWish{}); return nil },
		"cut over, when it is ready": func() error {
			_, err := y.CutOver(t.Context(), "gpu7", "tester", move.CutWish{Unrehearsed: "a test", WhenReady: true, Limit: 1})
			return errors.Join(err, y.takeBack())
		},
	} {
		y.later(lease*3/4 + time.Minute)
		y.until("ending", reservation(move.Ending))
		if err := ask(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		v := y.until("renewed after "+what, reservation(move.Reserved))
		if left := v.Reservation.Until.Sub(y.now()); left < lease-time.Minute {
			t.Errorf("%s: it ends in %s", what, left)
		}
	}
	if _, err := y.Reserve(t.Context(), "gpu7", &day); err != nil {
		t.Fatal(err)
	}
	if v := y.until("", func(move.Migration) bool { return true }); v.Reservation.Until.Sub(y.now()) > 24*time.Hour {
		t.Errorf("%+v", v.Reservation)
	}
	if v, err := y.Reserve(t.Context(), "gpu7", &forever); err != nil || !v.Reservation.Until.IsZero() {
		t.Errorf("%+v, %v", v.Reservation, err)
	}
	y.later(100 * lease)
	<-time.After(50 * time.Millisecond)
	y.holds(true)
	short := 5
	if _, err := y.Reserve(t.Context(), "gpu7", &short); gpu.CodeOf(err) != gpu.CodeInvalid {
		t.Errorf("got %v", err)
	}
}

// takeBack withdraws what is asked for, if it has not failed by then.
func (y *yard) takeBack() error {
	_, err := y.Withdraw("gpu7", "tester")
	y.until("over", func(v move.Migration) bool { return v.Pending() == nil })
	if gpu.CodeOf(err) == gpu.CodeConflict {
		return nil
	}
	return err
}

// A partition that somebody else has by then: who asks for a try is told what is in the way, and
// nothing is begun. Where it is taken in the same moment, the try fails, and the server goes on.
func TestLeaseIsTaken(t *testing.T) {
	m := newMachine(t, 4*mib)
	y := leased(t, m)
	y.release()
	taken := gpu.Errorf(gpu.CodeNoCapacity, "no GPU has room").WithBlockers(gpu.Blocker{Kind: "assignment", ID: "other"})
	y.holders.set(func(h *holders) { h.taken = taken })
	for what, ask := range map[string]func() error{
		"rehearse": func() error { _, err := y.Rehearse(t.Context(), "gpu7", "tester", move.CutWish{}); return err },
		"cut over": func() error {
			_, err := y.CutOver(t.Context(), "gpu7", "tester", move.CutWish{Unrehearsed: "a test"})
			return err
		},
		"reserve": func() error { _, err := y.Reserve(t.Context(), "gpu7", nil); return err },
	} {
		err := ask()
		e, is := errors.AsType[*gpu.Error](err)
		if !is || e.Code != gpu.CodeNoCapacity || len(e.Blockers) != 1 || e.Hint == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	if v := y.until("", func(move.Migration) bool { return true }); len(v.Attempts) != 0 || v.Reservation.State != move.Released {
		t.Errorf("%+v", v.Record)
	}
	// It is taken between the question and the doing.
	y.holders.set(func(h *holders) { h.late = true })
	y.cutOver()
	v := y.until("over", func(v move.Migration) bool { return len(v.Attempts) == 1 && v.Attempts[0].Over() })
	if a := v.Attempts[0]; a.State != move.Failed || !strings.Contains(a.Problem, "no GPU has room") || m.rest.froze != 0 {
		t.Errorf("%+v", a)
	}
	if v.Reservation.State != move.Released || !strings.Contains(v.Reservation.Problem, "no GPU has room") {
		t.Errorf("%+v", v.Reservation)
	}
	y.holders.set(func(h *holders) { h.taken, h.late = nil, false })
	if _, err := y.Reserve(t.Context(), "gpu7", nil); err != nil {
		t.Fatal(err)
	}
	y.until("reserved", reservation(move.Reserved))
	y.holds(true)
	y.vms.set(func(v *vms) { v.agent = illGuest }) // the test's guest shows no devices
	y.cutOver()
	y.until("off", func(v move.Migration) bool { return v.Fence == move.FenceOff })
	y.later(10 * lease)
	<-time.After(50 * time.Millisecond)
	y.holds(true) // its VM runs with it
}

// Nothing is taken while disks are copied for the first time, from a VM that runs, and from a move
// that waits to be cut over.
func TestLeaseIsKept(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.lease = lease
	y.machine.server.mu.Lock()
	y.machine.visits = []visit{{holds: true}}
	y.machine.server.mu.Unlock()
	y.beginWith(move.Slice{Assignment: "gpu7", Profile: "1g.12gb", GPU: card})
	v := y.until("syncing", func(v move.Migration) bool { return v.Phase == move.PhaseSyncing && reservation(move.Reserved)(v) })
	y.later(3 * lease)
	<-time.After(50 * time.Millisecond)
	if v := y.until("", func(move.Migration) bool { return true }); v.Reservation.State != move.Reserved {
		t.Errorf("%+v", v.Reservation)
	}
	y.stop()
	y.machine.there()
	y.start()
	v = y.until("ready", func(v move.Migration) bool { return v.Phase == move.PhaseReady && !v.Reservation.Copied.IsZero() })
	if left := v.Reservation.Until.Sub(y.now()); left < lease-time.Minute {
		t.Errorf("it ends in %s", left)
	}
	y.vms.set(func(vms *vms) { vms.runs[v.VM.UUID] = true })
	y.later(lease)
	y.until("ending", reservation(move.Ending))
	y.later(lease)
	v = y.until("told", func(v move.Migration) bool { return v.Reservation.Problem != "" })
	if v.Reservation.State != move.Releasing || !strings.Contains(v.Reservation.Problem, "runs") {
		t.Errorf("%+v", v.Reservation)
	}
	y.holds(true)
	y.vms.set(func(vms *vms) { delete(vms.runs, v.VM.UUID) })
	if _, err := y.Reserve(t.Context(), "gpu7", nil); err != nil {
		t.Fatal(err)
	}
	y.until("reserved", reservation(move.Reserved))
	y.makers.fail("convert", errWaits)
	y.cutOver()
	y.until("converting", func(v move.Migration) bool { return v.Phase == move.PhaseCuttingOver })
	y.later(10 * lease)
	<-time.After(50 * time.Millisecond)
	y.holds(true)
	if _, err := y.Withdraw("gpu7", "tester"); err != nil {
		t.Fatal(err)
	}
	v = y.until("over", func(v move.Migration) bool { return v.Pending() == nil })
	if left := v.Reservation.Until.Sub(y.now()); left < lease-time.Minute {
		t.Errorf("it ends in %s", left)
	}
}

// One that waits for a person gives them back as well, and they are reserved again while it waits.
func TestLeaseOfOneThatWaits(t *testing.T) {
	y := leased(t, newMachine(t, 4*mib))
	y.stop()
	y.patience.Sync = time.Millisecond
	y.machine.gone()
	y.start()
	y.until("waiting", phase(move.PhaseWaiting))
	y.release()
	y.holds(false)
	if _, err := y.Reserve(t.Context(), "gpu7", nil); err != nil {
		t.Fatal(err)
	}
	if v := y.until("reserved", reservation(move.Reserved)); v.Phase != move.PhaseWaiting {
		t.Errorf("%s", v.Phase)
	}
	y.holds(true)
	y.release()
	y.holds(false)
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("rolled back", phase(move.PhaseRolledBack))
	y.gone4good()
}

// A lease that ended while the daemon was down is ended when it starts, where that had been told;
// else it is told first.
func TestLeaseWhileDown(t *testing.T) {
	for name, told := range map[string]bool{"it was told": true, "it was not": false} {
		t.Run(name, func(t *testing.T) {
			y := leased(t, newMachine(t, 4*mib))
			if told {
				y.later(lease*3/4 + time.Minute)
				y.until("ending", reservation(move.Ending))
			}
			y.stop()
			y.later(lease)
			y.start()
			if !told {
				v := y.until("ending", reservation(move.Ending))
				if left := v.Reservation.Until.Sub(y.now()); left < lease/4-time.Minute {
					t.Errorf("it ends in %s", left)
				}
				y.holds(true)
				return
			}
			y.until("released", reservation(move.Released))
			y.holds(false)
		})
	}
}

// One of a version before keeps its partitions until it ends, or until somebody gives it a lease.
func TestLeaseOfBefore(t *testing.T) {
	y := leased(t, newMachine(t, 4*mib))
	y.stop()
	rec, err := y.store.MigrationRecord("gpu7")
	if err != nil {
		t.Fatal(err)
	}
	rec.Reservation = nil
	if err := y.store.Apply(operation.Put(move.RecordMigration, "gpu7", rec)); err != nil {
		t.Fatal(err)
	}
	y.start()
	y.later(10 * lease)
	y.until("ready", func(v move.Migration) bool {
		return v.Phase == move.PhaseReady && v.Disks[0].Total > rec.Disks[0].Total
	})
	y.rehearse(move.CutWish{})
	y.holds(true)
	if v, err := y.Reserve(t.Context(), "gpu7", nil); err != nil || v.Reservation.Lease != int(lease.Seconds()) || v.Reservation.Until.IsZero() {
		t.Errorf("%+v, %v", v.Reservation, err)
	}
	y.release()
	y.holds(false)
}

// The daemon is killed at every write of a lease that ends, and of what has it reserved again. No
// partition is left to nobody, and none is lost that somebody wants.
func TestLeaseKilled(t *testing.T) {
	everyWrite(t, 4, func(t *testing.T, n int, stored bool) int {
		y := leased(t, newMachine(t, 2*mib))
		y.later(lease*3/4 + time.Minute)
		y.until("ending", reservation(move.Ending))
		killed := y.killed(n, stored, func() error { y.later(lease); return nil }, reservation(move.Released))
		y.until("released", reservation(move.Released))
		y.holds(false)
		return killed
	})
}

func TestLeaseAgainKilled(t *testing.T) {
	everyWrite(t, 4, func(t *testing.T, n int, stored bool) int {
		y := leased(t, newMachine(t, 2*mib))
		y.release()
		killed := y.killed(n, stored, func() error {
			_, err := y.Reserve(t.Context(), "gpu7", nil)
			return err
		}, reservation(move.Reserved))
		y.until("settled", func(v move.Migration) bool {
			return v.Reservation.State == move.Reserved || v.Reservation.State == move.Released
		})
		if _, err := y.Reserve(t.Context(), "gpu7", nil); err != nil { // where the wish was lost
			t.Fatal(err)
		}
		y.until("reserved", reservation(move.Reserved))
		y.holds(true)
		if _, err := y.Rollback("gpu7"); err != nil {
			t.Fatal(err)
		}
		y.until("rolled back", phase(move.PhaseRolledBack))
		y.until("gone", func(move.Migration) bool { return len(y.vms.left())+len(y.holders.names()) == 0 })
		return killed
	})
}

// A roll back that meets the reserving leaves nothing.
func TestLeaseRollback(t *testing.T) {
	y := leased(t, newMachine(t, 4*mib))
	y.release()
	y.holders.set(func(h *holders) { h.slow = make(chan struct{}) })
	if _, err := y.Reserve(t.Context(), "gpu7", nil); err != nil {
		t.Fatal(err)
	}
	y.until("begun", func(move.Migration) bool {
		_, held := y.engine.Holder("gpu/test")
		return held
	})
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	close(y.holders.slow)
	y.until("rolled back", phase(move.PhaseRolledBack))
	y.gone4good()
}

// Where partitions cannot be reserved again now, that is tried as often after a while as at first,
// and the server is copied at its pace.
func TestLeaseIsTriedAgain(t *testing.T) {
	y := leased(t, newMachine(t, 4*mib))
	y.release()
	y.stop()
	was := y.until("", func(move.Migration) bool { return true })
	y.patience.Lease, y.patience.Pause = 20*time.Millisecond, 200*time.Millisecond
	y.start()
	y.until("ready", func(v move.Migration) bool {
		return v.Phase == move.PhaseReady && v.Disks[0].Total > was.Disks[0].Total
	})
	y.holders.set(func(h *holders) { h.taken, h.late = gpu.Errorf(gpu.CodeUnavailable, "libvirt is away"), true })
	y.cutOver()
	y.until("told", func(v move.Migration) bool { return v.Reservation.Problem != "" })
	<-time.After(2 * time.Second)
	began, asked := time.Now(), y.holders.asked.Load()
	<-time.After(400 * time.Millisecond)
	n, took := y.holders.asked.Load()-asked, time.Since(began)
	// As often as it is looked, and what has failed is tried again; and one more of each that were due before.
	if most := int64(took/y.patience.Lease+took/y.patience.Pause) + 4; n > most {
		t.Errorf("it was tried %d times in %s, and %d at most", n, took, most)
	}
	if n := y.until("", func(move.Migration) bool { return true }).Disks[0].Total - was.Disks[0].Total; n > 2 {
		t.Errorf("%d passes were made while it waited", n)
	}
	y.holders.set(func(h *holders) { h.taken = nil })
	y.until("off", func(v move.Migration) bool { return v.Fence == move.FenceOff })
}

// Whoever looks at a move in the moment in which its partitions are given back is not told that somebody
// has deleted them.
func TestLeaseEndsAsSomebodyLooks(t *testing.T) {
	y := leased(t, newMachine(t, 4*mib))
	y.stop()
	passed := y.until("known", func(move.Migration) bool { return true }).Disks[0].Total
	y.patience.Lease = time.Hour // nothing else looks at it
	y.start()
	y.until("ready", func(v move.Migration) bool { // and nothing else is written of it
		return v.Phase == move.PhaseReady && v.Disks[0].Total > passed && reservation(move.Reserved)(v)
	})
	y.holders.set(func(h *holders) {
		h.wish = sync.OnceFunc(func() { // its record was read
			rec, err := y.store.MigrationRecord("gpu7")
			rec.Reservation.State, rec.Reservation.Until = move.Releasing, time.Time{}
			if err = errors.Join(err, y.store.Apply(operation.Put(move.RecordMigration, "gpu7", rec))); err != nil {
				t.Error(err)
			}
			y.takenByHand()
		})
	})
	v, err := y.Migration("gpu7")
	if err != nil || v.Reservation.Held() || v.Reservation.Problem != "" {
		t.Errorf("%+v, %v", v.Reservation, err)
	}
}

// Somebody rehearses, or rolls back, while partitions are being given back.
func TestLeaseIsWantedAsItEnds(t *testing.T) {
	releasing := func(t *testing.T) *yard {
		y := leased(t, newMachine(t, 4*mib))
		y.later(lease)
		y.until("ending", reservation(move.Ending))
		y.holders.set(func(h *holders) { h.slow = make(chan struct{}) })
		y.later(lease / 4)
		y.until("begun", func(move.Migration) bool {
			_, held := y.engine.Holder("gpu/test")
			return held
		})
		return y
	}
	t.Run("rehearse", func(t *testing.T) {
		y := releasing(t)
		if _, err := y.Rehearse(t.Context(), "gpu7", "tester", move.CutWish{}); err != nil {
			t.Fatal(err)
		}
		y.until("asked for", reservation(move.Reserving))
		close(y.holders.slow)
		if a := y.over(1); len(y.vms.trials) != 1 { // the test's guest shows no devices
			t.Errorf("%+v", a)
		}
		y.holds(true)
	})
	t.Run("cut over and withdraw", func(t *testing.T) {
		y := releasing(t)
		y.cutOver()
		if _, err := y.Withdraw("gpu7", "tester"); err != nil {
			t.Fatal(err)
		}
		close(y.holders.slow)
		y.until("reserved", reservation(move.Reserved))
		y.holds(true)
	})
	t.Run("roll back", func(t *testing.T) {
		y := releasing(t)
		if _, err := y.Rollback("gpu7"); err != nil {
			t.Fatal(err)
		}
		close(y.holders.slow)
		y.until("rolled back", phase(move.PhaseRolledBack))
		y.gone4good()
	})
	t.Run("rehearse and roll back", func(t *testing.T) {
		y := releasing(t)
		if _, err := y.Rehearse(t.Context(), "gpu7", "tester", move.CutWish{}); err != nil {
			t.Fatal(err)
		}
		if _, err := y.Rollback("gpu7"); err != nil {
			t.Fatal(err)
		}
		close(y.holders.slow)
		y.until("rolled back", phase(move.PhaseRolledBack))
		y.gone4good()
	})
	t.Run("the daemon ends", func(t *testing.T) {
		y := releasing(t)
		if _, err := y.Rehearse(t.Context(), "gpu7", "tester", move.CutWish{}); err != nil {
			t.Fatal(err)
		}
		y.life.end()
		close(y.holders.slow)
		y.stop()
		y.start()
		y.until("reserved", reservation(move.Reserved))
		y.holds(true)
		if _, err := y.Rollback("gpu7"); err != nil {
			t.Fatal(err)
		}
		y.until("rolled back", phase(move.PhaseRolledBack))
		y.gone4good()
	})
}

// What was reserved again in part, or waits for a person, is not told to be given back before it is.
func TestLeaseIsHeldInPart(t *testing.T) {
	y := leased(t, newMachine(t, 4*mib))
	y.release()
	y.holders.set(func(h *holders) { h.waits = &operation.WaitError{Reason: "the card is busy"} })
	y.cutOver()
	a := y.over(1)
	if a.State != move.Failed || !strings.Contains(a.Problem, "the card is busy") {
		t.Errorf("%+v", a)
	}
	v := y.until("told", func(v move.Migration) bool { return v.Reservation.Problem != "" })
	if v.Reservation.State != move.Releasing {
		t.Errorf("it holds %q: %+v", y.holders.names(), v.Reservation)
	}
	op, held := y.engine.Holder("gpu/test")
	if !held {
		t.Fatal("nothing waits")
	}
	y.holders.set(func(h *holders) { h.waits = nil }) // before anything of it is tried again
	if _, err := y.engine.Abort(op.ID); err != nil {
		t.Fatal(err)
	}
	y.until("released", reservation(move.Released))
	y.holds(false)
	y.rehearse(move.CutWish{})
	y.holds(true)
}

// takenByHand removes the assignment of the move, as somebody does who detaches it by hand.
func (y *yard) takenByHand() {
	y.holders.set(func(h *holders) { delete(h.held, "gpu7") })
}

// An assignment of a move that somebody has deleted by hand is not held: the move says so, and who
// keeps or tries it has it again, as after the end of a lease.
func TestReservationIsTakenByHand(t *testing.T) {
	for what, ask := range map[string]func(*yard) error{
		"reserve":  func(y *yard) error { _, err := y.Reserve(t.Context(), "gpu7", nil); return err },
		"rehearse": func(y *yard) error { y.rehearse(move.CutWish{}); return nil },
	} {
		y := leased(t, newMachine(t, 4*mib))
		y.until("reserved", reservation(move.Reserved))
		y.takenByHand()
		v := y.until("", func(move.Migration) bool { return true })
		if v.Reservation.State != move.Released || !strings.Contains(v.Reservation.Problem, `"gpu7"`) || !strings.Contains(v.Reservation.Problem, "gpuvirt migrate reserve gpu7") || !v.Ends().IsZero() {
			t.Errorf("%s: it says %+v", what, v.Reservation)
		}
		if all, err := y.Migrations.Migrations(); err != nil || all[0].Reservation.State != move.Released {
			t.Errorf("%s: the list says %+v, %v", what, all, err)
		}
		if err := ask(y); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		v = y.until("reserved again after "+what, reservation(move.Reserved))
		y.holds(true)
		if v.Reservation.Problem != "" || v.Reservation.Until.Sub(y.now()) < lease-time.Minute {
			t.Errorf("%s: %+v", what, v.Reservation)
		}
	}
}

// Where another VM has it by then, who asks is told of what is in the way, and that nothing is held.
func TestReservationIsAnothers(t *testing.T) {
	y := leased(t, newMachine(t, 4*mib))
	y.until("reserved", reservation(move.Reserved))
	taken := gpu.Errorf(gpu.CodeConflict, "assignment gpu7 is of another VM").WithBlockers(gpu.Blocker{Kind: "assignment", ID: "gpu7"})
	y.holders.set(func(h *holders) {
		a := h.held["gpu7"]
		a.Wish.VM = "another"
		h.held["gpu7"], h.taken = a, taken
	})
	v := y.until("", func(move.Migration) bool { return true })
	if v.Reservation.State != move.Released || !strings.Contains(v.Reservation.Problem, "another VM") {
		t.Errorf("it says %+v", v.Reservation)
	}
	_, err := y.Reserve(t.Context(), "gpu7", nil)
	if e, is := errors.AsType[*gpu.Error](err); !is || len(e.Blockers) != 2 || e.Hint == "" {
		t.Errorf("got %v", err)
	}
	if _, err := y.PlanReserve(t.Context(), "gpu7", nil); err == nil {
		t.Error("the dry run allows it")
	}
}

// A try that was asked for before the assignment was deleted has it taken again before it begins.
func TestReservationIsMissedByATry(t *testing.T) {
	y := leased(t, newMachine(t, 4*mib))
	y.until("reserved", reservation(move.Reserved))
	converts := func(seconds float64, is func(move.Migration) bool) {
		t.Helper()
		y.policy.ConversionSeconds = seconds
		if _, err := y.Sync("gpu7"); err != nil {
			t.Fatal(err)
		}
		y.until(fmt.Sprintf("forecast with %.0f s", seconds), is)
	}
	converts(1000, phase(move.PhaseSyncing)) // which does not fit: it waits
	if _, err := y.CutOver(t.Context(), "gpu7", "tester", move.CutWish{Unrehearsed: "a test", WhenReady: true, Limit: 600}); err != nil {
		t.Fatal(err)
	}
	y.takenByHand()
	y.vms.set(func(v *vms) { v.agent = illGuest }) // the test's guest shows no devices
	converts(30, func(v move.Migration) bool { return v.Fence == move.FenceOff })
	y.holds(true)
}
