package p2v_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/move"
)

// abandon has a move fail to roll back, and its operation forgotten.
func (y *yard) abandon() move.Migration {
	y.t.Helper()
	v := y.begin()
	y.until("synced", passes(1))
	foreign := filepath.Join(y.storage, "gpu7", "notes.txt")
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		y.t.Fatal(err)
	}
	if _, err := y.Rollback("gpu7"); err != nil {
		y.t.Fatal(err)
	}
	y.until("failed", phase(move.PhaseFailed))
	if _, err := y.engine.Forget(v.Operation); err != nil {
		y.t.Fatal(err)
	}
	return v
}

// What somebody else has put into a move's folder is in the way of whoever takes it back, deletes it, and
// deletes it after its operation was forgotten: each says what it is, and what is to be done then.
func TestStray(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	v := y.begin()
	y.until("synced", passes(1))
	folder := filepath.Join(y.storage, "gpu7")
	notes, old := filepath.Join(folder, "notes.txt"), filepath.Join(folder, "old")
	if err := errors.Join(os.WriteFile(notes, nil, 0o600), os.MkdirAll(filepath.Join(old, "x"), 0o700)); err != nil {
		t.Fatal(err)
	}
	names := func(what, text string, more ...string) {
		t.Helper()
		for _, want := range append(more, fmt.Sprintf(`"notes.txt" and "old/" in %q are in the way`, folder)) {
			if !strings.Contains(text, want) {
				t.Errorf("%s: %q, and not %q", what, text, want)
			}
		}
		if strings.Contains(text, "directory not empty") {
			t.Errorf("%s: %q", what, text)
		}
	}
	refused := func(what string, err error, more ...string) {
		t.Helper()
		e, _ := errors.AsType[*gpu.Error](err)
		if e == nil || e.Code != gpu.CodeConflict {
			t.Fatalf("%s: %v", what, err)
		}
		names(what, e.Detail+"; "+e.Hint, more...)
	}
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	failed := y.until("failed", phase(move.PhaseFailed))
	names("reason", failed.Reason, "gpuvirt migrate retry gpu7")
	_, err := y.Rollback("gpu7")
	refused("rollback", err, "gpuvirt migrate retry gpu7")
	_, err = y.Delete(t.Context(), "gpu7")
	refused("delete", err, "gpuvirt migrate retry gpu7")

	if err := os.RemoveAll(old); err != nil {
		t.Fatal(err)
	}
	if _, err := y.Retry("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("failed again", func(v move.Migration) bool {
		return v.Phase == move.PhaseFailed && strings.Contains(v.Reason, `"notes.txt" in `)
	})
	if _, err := y.engine.Forget(v.Operation); err != nil {
		t.Fatal(err)
	}
	_, err = y.Delete(t.Context(), "gpu7")
	if e, _ := errors.AsType[*gpu.Error](err); e == nil || e.Code != gpu.CodeConflict || !strings.Contains(e.Detail, fmt.Sprintf(`"notes.txt" in %q is in the way`, folder)) || !strings.Contains(e.Hint, "gpuvirt migrate delete gpu7") {
		t.Errorf("forgotten: %+v", err)
	}
	if err := os.Remove(notes); err != nil {
		t.Fatal(err)
	}
	if _, err := y.Delete(t.Context(), "gpu7"); err != nil {
		t.Fatal(err)
	}
	y.clean()
}

// It is gone on with when it is taken away.
func TestStrayRemoved(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.begin()
	y.until("synced", passes(1))
	notes := filepath.Join(y.storage, "gpu7", "notes.txt")
	if err := os.WriteFile(notes, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("failed", phase(move.PhaseFailed))
	if err := os.Remove(notes); err != nil {
		t.Fatal(err)
	}
	if _, err := y.Retry("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("rolled back", phase(move.PhaseRolledBack))
	y.gone4good()
}

// A move whose operation was forgotten can be deleted, with what it left here; also when the
// operation's record is gone, which takes nothing from the others.
func TestMigrationForgotten(t *testing.T) {
	for name, prune := range map[string]bool{"forgotten": false, "pruned": true} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, newMachine(t, 4*mib))
			v := y.abandon()
			if prune {
				if err := y.store.DeleteOperations([]string{v.Operation}); err != nil {
					t.Fatal(err)
				}
			}
			all, err := y.Migrations.Migrations()
			if err != nil || len(all) != 1 || all[0].Phase != move.PhaseFailed || all[0].Reason == "" {
				t.Errorf("%+v %v", all, err)
			}
			if _, err := y.Delete(t.Context(), "gpu7"); err == nil {
				t.Error("what somebody else put there is passed over")
			}
			if err := os.Remove(filepath.Join(y.storage, "gpu7", "notes.txt")); err != nil {
				t.Fatal(err)
			}
			if _, err := y.Delete(t.Context(), "gpu7"); err != nil {
				t.Fatal(err)
			}
			y.clean()
			if _, err := y.Migration("gpu7"); gpu.CodeOf(err) != gpu.CodeNotFound {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A change of the pace that meets the end of a roll back does not bring the move back.
func TestMigrationSetCopyAtItsEnd(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.begin()
	y.until("synced", passes(1))
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := 60; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			_, _ = y.SetCopy("gpu7", move.Copy{Interval: i})
		}
	}()
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("rolled back", phase(move.PhaseRolledBack))
	<-time.After(20 * time.Millisecond)
	close(stop)
	<-ended
	if v, err := y.Migration("gpu7"); err != nil || v.Ended != move.PhaseRolledBack {
		t.Errorf("%q %v", v.Ended, err)
	}
	// As an earlier version left it.
	rec, err := y.store.MigrationRecord("gpu7")
	if err != nil {
		t.Fatal(err)
	}
	rec.Ended = ""
	if err := y.store.Apply(operation.Put(move.RecordMigration, "gpu7", rec)); err != nil {
		t.Fatal(err)
	}
	if v, err := y.Rollback("gpu7"); err != nil || v.Phase != move.PhaseRolledBack {
		t.Errorf("again: %q %v", v.Phase, err)
	}
	if _, err := y.Delete(t.Context(), "gpu7"); err != nil {
		t.Error(err)
	}
}

// A source that lets us in and does nothing does not hold up the way back.
func TestMigrationRollbackIsLimited(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.stop()
	y.patience.Undo = 50 * time.Millisecond
	y.start()
	y.begin()
	y.until("synced", passes(1))
	y.machine.server.mu.Lock()
	y.machine.visits = []visit{{holds: true}}
	y.machine.server.mu.Unlock()
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("rolled back", phase(move.PhaseRolledBack))
}

// A move that was forgotten after its source was off keeps what may be the only one of the two
// there is, until somebody has removed it.
func TestMigrationForgottenAfterFence(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	v := y.begin()
	y.until("ready", phase(move.PhaseReady))
	y.vms.set(func(v *vms) { v.agent = illGuest })
	y.cutOver()
	y.until("waiting", phase(move.PhaseWaiting))
	y.vms.fail("undefine", errors.New("broken for the test"))
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("failed", phase(move.PhaseFailed))
	folder := filepath.Join(y.storage, "gpu7")
	if err := os.Mkdir(folder, 0o700); err != nil { // as where its removal is what has failed
		t.Fatal(err)
	}
	if _, err := y.engine.Forget(v.Operation); err != nil {
		t.Fatal(err)
	}
	if _, err := y.Delete(t.Context(), "gpu7"); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Errorf("got %v", err)
	}
	y.vms.fail("undefine", nil)
	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	if _, err := y.Delete(t.Context(), "gpu7"); err != nil {
		t.Fatal(err)
	}
	y.gone4good()
}

// Who deletes a move the moment it says that it has ended leaves its operation to end.
func TestMigrationDeletedAtItsEnd(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	v := y.begin()
	y.until("ready", phase(move.PhaseReady))
	going, leave := make(chan struct{}), make(chan struct{})
	y.life.before(func(op operation.Operation) {
		if op.Status == operation.Undone && op.ID == v.Operation {
			close(going)
			<-leave
		}
	})
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	<-going
	deleted := make(chan error)
	go func() {
		_, err := y.Delete(t.Context(), "gpu7")
		deleted <- err
	}()
	select {
	case err := <-deleted:
		t.Errorf("it did not wait: %v", err)
		close(leave)
	case <-time.After(50 * time.Millisecond):
		close(leave)
		if err := <-deleted; err != nil {
			t.Error(err)
		}
	}
	if op, err := y.engine.Get(v.Operation); err != nil || op.Status != operation.Undone {
		t.Errorf("%s %v", op.Status, err)
	}
}

// A move that a version has begun which could only copy goes on, and is rolled back.
func TestMigrationOfBefore(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	rec := y.begin().Record
	y.until("ready", phase(move.PhaseReady))
	y.stop()
	id := rec.Operation
	op, err := y.store.Operation(id)
	if err != nil {
		t.Fatal(err)
	}
	op.Steps = op.Steps[1:2]
	rec.VM, rec.Wanted = nil, move.VMWish{}
	y.vms.set(func(v *vms) { clear(v.docs) })
	if err := errors.Join(y.store.SaveOperation(op, nil), y.store.Apply(operation.Put(move.RecordMigration, "gpu7", rec))); err != nil {
		t.Fatal(err)
	}
	y.start()
	y.until("ready", phase(move.PhaseReady))
	if _, err := y.Rehearse(y.t.Context(), "gpu7", "tester", move.CutWish{}); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Errorf("got %v", err)
	}
	if _, err := y.CutOver(y.t.Context(), "gpu7", "tester", move.CutWish{Unrehearsed: "a test", WhenReady: true}); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Errorf("got %v", err)
	}
	if all, err := y.Migrations.Migrations(); err != nil || len(all) != 1 {
		t.Errorf("%+v %v", all, err)
	}
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("rolled back", phase(move.PhaseRolledBack))
	y.gone4good()
}
