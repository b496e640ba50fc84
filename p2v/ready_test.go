package p2v_test

import (
	"testing"

	"gpuvirt/p2v/move"
)

// A move whose source has gone is not ready: what the last pass would take is not known.
func TestMigrationIsNotReadyWithoutItsSource(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	y.machine.gone()
	y.stop()
	y.start()
	y.until("syncing again", phase(move.PhaseSyncing))
	y.machine.there()
	y.until("ready again", phase(move.PhaseReady))
}
