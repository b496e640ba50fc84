package p2v_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/p2v/move"
)

// updates is what was told of how far a migration is.
func (e *events) updates() []string { return e.told("migration.updated gpu7 ") }

// Each phase of a move is told, in order, and when an attempt is asked for, begins and ends; passes are not.
func TestPhasesAreTold(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.begin()
	v := y.until("ready", phase(move.PhaseReady))
	passed := v.Disks[0].Total
	if _, err := y.Sync("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("passed over", func(v move.Migration) bool { return v.Disks[0].Total > passed })
	y.rehearse(move.CutWish{})
	y.until("ready again", phase(move.PhaseReady))
	y.cutOver()
	y.until("done", phase(move.PhaseDone))
	if _, err := y.engine.Wait(t.Context(), v.Operation); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"planned", "reserved", "syncing", "ready", "ready rehearsal asked", "rehearsing rehearsal running", "ready rehearsal passed",
		"ready cutover asked", "cutting-over cutover running", "cutting-over cutover moved", "verifying cutover moved", "done cutover passed",
	}
	if got := y.events.updates(); !slices.Equal(got, want) {
		t.Errorf("told: %q\nwant: %q", got, want)
	}
}

// So is that a person must act, that it goes on, that an attempt has failed, and that a move is taken back.
func TestTroubleIsTold(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	y.makers.fail("convert", errors.New("broken for the test"))
	if a := y.rehearse(move.CutWish{}); a.State != move.Failed {
		t.Fatalf("%+v", a)
	}
	y.makers.fail("convert", nil)
	y.until("ready again", phase(move.PhaseReady))
	y.machine.server.mu.Lock()
	y.machine.visits = []visit{{dial: gpu.Errorf(gpu.CodeConflict, "it is another server now")}}
	y.machine.server.mu.Unlock()
	y.stop()
	y.start()
	y.until("waiting", phase(move.PhaseWaiting))
	y.await("it is told", func() bool { return slices.Contains(y.events.updates(), "waiting rehearsal failed") })
	y.machine.there()
	if _, err := y.Retry("gpu7"); err != nil {
		t.Fatal(err)
	}
	v := y.until("ready once more", phase(move.PhaseReady))
	y.await("that is told, too", func() bool { return strings.HasPrefix(y.events.updates()[len(y.events.updates())-1], "ready") })
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	if _, err := y.engine.Wait(t.Context(), v.Operation); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"planned", "reserved", "syncing", "ready", "ready rehearsal asked", "rehearsing rehearsal running", "ready rehearsal failed",
		"ready rehearsal failed", // by the daemon that was started anew
		"syncing rehearsal failed", "waiting rehearsal failed", "syncing rehearsal failed", "ready rehearsal failed", "rolling-back rehearsal failed", "rolled-back rehearsal failed",
	}
	if got := y.events.updates(); !slices.Equal(got, want) {
		t.Errorf("told: %q\nwant: %q", got, want)
	}
}
