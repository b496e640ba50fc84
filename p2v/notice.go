package p2v

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/move"
)

// eventMigration is the type of events that tell how far a move is.
const eventMigration = "migration.updated"

// notices are what everybody was told last of each move, by name.
type notices struct {
	mu   sync.Mutex // held while it is told: what comes later is told later
	last map[string]notice
}

// A notice is what is told of a move, of how far it is.
type notice struct {
	phase move.Phase
	// of the last attempt; zero: there was none
	kind  move.AttemptKind
	state move.AttemptState
	asked time.Time
	vain  bool // it waits for what does not come by waiting
}

// OperationChanged is the engine's hook: the phase of a move is told by its operation, too.
func (m *Migrations) OperationChanged(op operation.Operation) {
	var args syncArgs
	if op.Kind == kindMigrate && len(op.Steps) > 0 && json.Unmarshal(op.Steps[0].Args, &args) == nil {
		m.notice(args.Name)
	}
}

// telling has everybody told how far the move is when a step of it begins, or begins to be undone: the hook
// may come when that is over.
func (m *Migrations) telling(step func(context.Context, *operation.Task) ([]operation.Row, error)) func(context.Context, *operation.Task) ([]operation.Row, error) {
	return func(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
		var args syncArgs
		if err := t.Args(&args); err == nil { // else the step says so
			m.notice(args.Name)
		}
		return step(ctx, t)
	}
}

// notice tells everybody how far a move is, if that is not what they were told last. What a pass has done is no
// reason to. It takes no lock that who saves a move could hold.
func (m *Migrations) notice(name string) {
	if m.cfg.Tell == nil {
		return
	}
	m.notices.mu.Lock()
	defer m.notices.mu.Unlock()
	v, err := m.Migration(name)
	if gpu.CodeOf(err) == gpu.CodeNotFound {
		delete(m.notices.last, name)
		return
	}
	if err != nil {
		m.cfg.Log.Warn("cannot tell how far a migration is", "migration", name, "err", err)
		return
	}
	is := notice{phase: v.Phase}
	detail := map[string]string{"phase": string(v.Phase)}
	if n := len(v.Attempts); n > 0 {
		a := v.Attempts[n-1]
		is.kind, is.state, is.asked, is.vain = a.Kind, a.State, a.Asked, v.WaitsInVain() != ""
		detail["attempt"], detail["attempt_state"] = string(a.Kind), string(a.State)
	}
	if is == m.notices.last[name] {
		return
	}
	if v.Reason != "" {
		detail["reason"] = v.Reason
	}
	m.notices.last[name] = is
	m.cfg.Tell(eventMigration, name, detail)
}
