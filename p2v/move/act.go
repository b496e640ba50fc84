package move

import "gpuvirt/gpu"

// An Act is what somebody may ask of a move.
type Act string

// The acts.
const (
	ActSync     Act = "sync"
	ActRetry    Act = "retry"
	ActChange   Act = "change" // how it copies
	ActRollback Act = "rollback"
)

// Allows tells whether an act would change anything; the error is why it would be refused,
// with gpu.CodeConflict.
func (m Migration) Allows(a Act) (changes bool, err error) {
	switch a {
	case ActSync:
		if m.Phase == PhaseSyncing || m.Phase == PhaseReady {
			return true, nil
		}
		return false, gpu.Errorf(gpu.CodeConflict, "cannot sync migration %q: it is %s", m.Name, m.Phase)
	case ActRetry:
		if !m.Abandoned && (m.Phase == PhaseWaiting || m.Phase == PhaseFailed) {
			return true, nil
		}
		return false, gpu.Errorf(gpu.CodeConflict, "cannot retry migration %q: it is %s, and waits for nobody", m.Name, m.Phase)
	case ActChange:
		if m.Ended == "" {
			return true, nil
		}
		return false, gpu.Errorf(gpu.CodeConflict, "cannot change migration %q: it is %s", m.Name, m.Ended)
	case ActRollback:
		switch {
		case m.Ended != "" || m.Phase == PhaseRollingBack:
			return false, nil
		case m.Abandoned:
			return false, gpu.Errorf(gpu.CodeConflict, "cannot roll back migration %q: its operation was forgotten", m.Name).
				WithHint("delete it, which removes its mirrors: gpuvirt migrate delete %s", m.Name)
		case m.Phase == PhaseFailed:
			return false, gpu.Errorf(gpu.CodeConflict, "cannot roll back migration %q: that has failed already", m.Name).
				WithBlockers(gpu.Blocker{Kind: "operation", ID: m.Operation}).WithHint("try it again: gpuvirt migrate retry %s", m.Name)
		}
		return true, nil
	}
	return false, gpu.Errorf(gpu.CodeInternal, "cannot %s a migration", a)
}
