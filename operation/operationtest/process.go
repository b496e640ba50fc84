package operationtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"gpuvirt/operation"
)

// errKilled is what everything returns to a process that is dead.
var errKilled = errors.New("killed")

// A kill ends a process at its nth event: a store write, or half a hardware move.
type kill struct {
	N    int
	Took bool // just after the event took effect, not just before
}

// A world is what outlives a process: the machine, and how its parts behave. Each
// cell of the machine is two halves, so that changing it is never atomic.
type world struct {
	mu     sync.Mutex
	cells  map[string][2]string
	shown  map[string]int // how often a misbehaviour was shown
	faults []string
}

func newWorld() *world {
	return &world{cells: map[string][2]string{"foreign/0": {"somebody", "somebody"}}, shown: map[string]int{}}
}

func (w *world) fault(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, fmt.Sprintf(format, args...))
}

func (w *world) cell(name string) [2]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cells[name]
}

// A process is one life of the daemon: a store that is open, hardware it can
// reach, an engine, until the kill.
type process struct {
	w       *world
	subject Subject
	store   Store
	engine  *operation.Engine
	ctx     context.Context // ends with the kill
	end     context.CancelFunc

	mu     sync.Mutex // before w.mu
	kill   kill
	events int
	dead   bool
}

// event carries f out unless the process is dead, or dies of it.
func (p *process) event(f func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return errKilled
	}
	p.events++
	struck := p.events == p.kill.N
	if struck && !p.kill.Took {
		return p.die()
	}
	err := f()
	if struck {
		return p.die()
	}
	return err
}

func (p *process) die() error {
	p.dead = true
	p.end()
	return errKilled
}

func (p *process) alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.dead
}

// AddOperation is operation.Store's.
func (p *process) AddOperation(op operation.Operation, rows []operation.Row) error {
	return p.event(func() error { return p.store.AddOperation(op, rows) })
}

// SaveOperation is operation.Store's.
func (p *process) SaveOperation(op operation.Operation, rows []operation.Row) error {
	return p.event(func() error { return p.store.SaveOperation(op, rows) })
}

// DeleteOperations is operation.Store's.
func (p *process) DeleteOperations(ids []string) error {
	return p.event(func() error { return p.store.DeleteOperations(ids) })
}

// Operation is operation.Store's.
func (p *process) Operation(id string) (operation.Operation, error) {
	if !p.alive() {
		return operation.Operation{}, errKilled
	}
	return p.store.Operation(id)
}

// Operations is operation.Store's.
func (p *process) Operations() ([]operation.Operation, error) {
	if !p.alive() {
		return nil, errKilled
	}
	return p.store.Operations()
}

// move sets half a cell to what owner wants there. What it finds there must be one
// of mine: another's value means that two operations are at one cell.
func (p *process) move(owner, cell string, half int, to string, mine ...string) error {
	return p.event(func() error {
		p.w.mu.Lock()
		defer p.w.mu.Unlock()
		halves := p.w.cells[cell]
		if !slices.Contains(mine, halves[half]) && !strings.HasPrefix(halves[half], "forgotten ") {
			p.w.faults = append(p.w.faults, fmt.Sprintf("%s found %q in half %d of %s", owner, halves[half], half, cell))
		}
		halves[half] = to
		p.w.cells[cell] = halves
		return nil
	})
}

// show reports whether a misbehaviour is to be shown once more, of limit times.
func (p *process) show(what, owner, cell string, limit int) bool {
	if !p.alive() {
		return false
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	id := what + " " + owner + " " + cell
	if p.w.shown[id] >= limit {
		return false
	}
	p.w.shown[id]++
	return true
}

// intent checks that the store says what a handler is about to do to a cell.
func (p *process) intent(id, cell string, want operation.StepStatus) {
	op, err := p.store.Operation(id)
	if err != nil {
		p.w.fault("intent of %s is not stored: %v", id, err)
		return
	}
	for _, step := range op.Steps {
		var s Step
		if err := json.Unmarshal(step.Args, &s); err != nil || s.Cell == cell && step.Status != want {
			p.w.fault("%s is about to be %s at %s, and the store says %s (%v)", id, want, cell, step.Status, err)
		}
	}
}

type note struct {
	Before string // what the cell was, so that undo can bring it back
}

// do changes a cell in two halves, having written down what it was.
func (p *process) do(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var (
		s  Step
		n  note
		id = t.Operation().ID
	)
	if err := t.Args(&s); err != nil {
		return nil, err
	}
	p.intent(id, s.Cell, operation.StepDoing)
	noted, err := t.Note(&n)
	if err != nil {
		return nil, err
	}
	if !noted {
		if n.Before = p.w.cell(s.Cell)[0]; t.SaveNote(n) != nil {
			return nil, errKilled
		}
	}
	if err := p.move(id, s.Cell, 0, id, n.Before, id); err != nil {
		return nil, err
	}
	if p.show("retry", id, s.Cell, s.Retries) {
		return nil, &operation.RetryError{Err: errors.New("not yet")}
	}
	if p.show("wait", id, s.Cell, s.Waits) {
		return nil, &operation.WaitError{Reason: "pull the lever"}
	}
	if s.DoError {
		if err := p.move(id, s.Cell, 0, n.Before, id); err != nil {
			return nil, err
		}
		return nil, errors.New("do failed")
	}
	if s.Abort != "" {
		if _, err := p.engine.Abort(id); err != nil {
			if p.alive() {
				p.w.fault("cannot abort %s: %v", id, err)
			}
			return nil, err
		}
		if p.alive() && !errors.Is(context.Cause(ctx), operation.ErrAborted) {
			p.w.fault("abort of %s did not reach its handler", id)
		}
		if s.Abort == "obey" {
			if err := p.move(id, s.Cell, 0, n.Before, id); err != nil {
				return nil, err
			}
			return nil, ctx.Err()
		}
	}
	if err := p.move(id, s.Cell, 1, id, n.Before, id); err != nil {
		return nil, err
	}
	return []operation.Row{p.subject.Row(s.Cell, id)}, nil
}

// undo brings a cell back, however far do came.
func (p *process) undo(_ context.Context, t *operation.Task) ([]operation.Row, error) {
	var (
		s  Step
		n  note
		id = t.Operation().ID
	)
	if err := t.Args(&s); err != nil {
		return nil, err
	}
	p.intent(id, s.Cell, operation.StepUndoing)
	if noted, err := t.Note(&n); err != nil || !noted {
		return nil, err // nothing was touched before the note
	}
	if p.show("undo-wait", id, s.Cell, s.UndoWaits) {
		return nil, &operation.WaitError{Reason: "push the lever"}
	}
	if err := p.move(id, s.Cell, 1, n.Before, n.Before, id); err != nil {
		return nil, err
	}
	if p.show("undo-error", id, s.Cell, s.UndoErrors) {
		return nil, errors.New("undo failed")
	}
	if err := p.move(id, s.Cell, 0, n.Before, n.Before, id); err != nil {
		return nil, err
	}
	return []operation.Row{p.subject.Row(s.Cell, n.Before)}, nil
}

// look is a step that changes nothing and has no undo.
func (p *process) look(context.Context, *operation.Task) ([]operation.Row, error) {
	if !p.alive() {
		return nil, errKilled
	}
	return nil, nil
}
