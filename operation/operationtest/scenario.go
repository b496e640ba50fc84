package operationtest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"

	"gpuvirt/operation"
)

// A Step of a scenario changes one cell of the machine, or none.
type Step struct {
	Cell       string `json:"cell"` // "<slot>/<part>"; empty: the step only looks
	DoError    bool   `json:"do_error,omitempty"`
	UndoErrors int    `json:"undo_errors,omitempty"` // how often undo fails
	Retries    int    `json:"retries,omitempty"`     // how often do wants another try, half done
	Waits      int    `json:"waits,omitempty"`       // how often do waits for a person, half done
	UndoWaits  int    `json:"undo_waits,omitempty"`
	Abort      string `json:"abort,omitempty"` // abort comes when do is half done: it will "obey" or "finish"
}

// An Op is an operation of a scenario, and what its client does with it.
type Op struct {
	ID        string
	Slots     []string // its keys
	Steps     []Step
	Forget    bool // a failed one is forgotten, not retried
	AbortWait bool // one that waits in its do is aborted, not retried
}

// plan returns the operation as the engine wants it.
func (o Op) plan(s Subject) operation.Plan {
	p := operation.Plan{
		ID: o.ID, Kind: "scenario", Summary: "scenario " + o.ID, Actor: "test", Keys: o.Slots,
		Rows: []operation.Row{s.Row("reserved "+o.ID, o.ID)}, Release: []operation.Row{s.Row("reserved "+o.ID, "")},
	}
	for _, step := range o.Steps {
		kind := "cell"
		if step.Cell == "" {
			kind = "look"
		}
		if o.AbortWait && step.Waits > 0 {
			step.Waits = math.MaxInt // only the abort ends it
		}
		p.Steps = append(p.Steps, operation.PlanStep{Kind: kind, Args: step})
	}
	return p
}

// turns reports whether the operation turns back, and whether an undo that fails
// may be on its way back.
func (o Op) turns() (back, mayFail bool) {
	for _, s := range o.Steps {
		mayFail = mayFail || s.UndoErrors > 0
		if s.DoError || s.Abort != "" || s.Waits > 0 && o.AbortWait {
			return true, mayFail
		}
	}
	return false, false
}

// start begins a process' life.
func start(w *world, s Subject, dir string, k kill) (*process, error) {
	store, err := s.Open(dir)
	if err != nil {
		return nil, err
	}
	p := &process{w: w, subject: s, store: store, kill: k}
	p.ctx, p.end = context.WithCancel(context.Background())
	p.engine = operation.New(operation.Config{Store: p})
	p.engine.Handle("cell", operation.Handler{Do: p.do, Undo: p.undo})
	p.engine.Handle("look", operation.Handler{Do: p.look})
	if err := p.engine.Start(context.Background()); err != nil {
		return nil, err
	}
	return p, nil
}

// live has the clients of all operations drive them to their end, or to the kill,
// and reports whether the process survived.
func (p *process) live(ops []Op) (bool, error) {
	settled := map[string]chan struct{}{}
	for _, o := range ops {
		settled[o.ID] = make(chan struct{})
	}
	var clients sync.WaitGroup
	for _, o := range ops {
		clients.Go(func() {
			defer close(settled[o.ID])
			if err := p.drive(o, settled); err != nil && p.alive() {
				p.w.fault("%s: %v", o.ID, err)
			}
		})
	}
	clients.Wait()
	p.engine.Stop()
	alive := p.alive()
	p.end()
	return alive, p.store.Close()
}

// drive is a client that wants one operation carried out.
func (p *process) drive(o Op, settled map[string]chan struct{}) error {
	for p.ctx.Err() == nil {
		op, err := p.engine.Wait(p.ctx, o.ID)
		switch {
		case errors.Is(err, operation.ErrNotFound):
			err = p.add(o, settled)
		case err != nil:
		case op.Status == operation.Waiting && o.AbortWait && op.Problem == nil:
			_, err = p.engine.Abort(o.ID)
		case op.Status == operation.Waiting:
			_, err = p.engine.Retry(o.ID)
		case op.Status == operation.Failed && !op.Forgot:
			err = p.failed(o)
		case op.Final():
			return nil
		default:
			return fmt.Errorf("came back %s", op.Status)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// add adds the operation; where another is in the way, it waits for that one.
func (p *process) add(o Op, settled map[string]chan struct{}) error {
	_, err := p.engine.Add(p.ctx, o.plan(p.subject))
	conflict, ok := errors.AsType[*operation.ConflictError](err)
	if !ok {
		return err
	}
	done := settled[conflict.Holder]
	if done == nil || conflict.Holder == o.ID {
		return fmt.Errorf("conflict with %q, which is nobody", conflict.Holder)
	}
	select {
	case <-done:
	case <-p.ctx.Done():
	}
	return nil
}

// failed checks that a failed operation holds its keys, and resolves it.
func (p *process) failed(o Op) error {
	_, err := p.engine.Add(p.ctx, operation.Plan{Kind: "probe", Keys: o.Slots})
	if conflict, ok := errors.AsType[*operation.ConflictError](err); p.alive() && (!ok || conflict.Holder != o.ID) {
		return fmt.Errorf("failed without holding its keys: %v", err) //nolint:errorlint // may be nil
	}
	if !o.Forget {
		_, err = p.engine.Retry(o.ID)
		return err
	}
	if p.alive() {
		p.w.abandon(o)
	}
	_, err = p.engine.Forget(o.ID)
	return err
}

// abandon marks the cells of a failed operation: whoever finds them later knows
// that a person has looked at what was left behind.
func (w *world) abandon(o Op) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range o.Steps {
		if s.Cell != "" {
			w.cells[s.Cell] = [2]string{"forgotten " + s.Cell, "forgotten " + s.Cell}
		}
	}
}

// play runs a scenario through processes that die at the kills, one after the
// other, and a last one that does not. It returns what that last one counted of
// events, how many kills struck, and what was wrong.
func play(s Subject, dir string, ops []Op, kills []kill) (events, struck int, err error) {
	w := newWorld()
	for i := 0; ; i++ {
		var k kill
		if i < len(kills) {
			k = kills[i]
		}
		p, err := start(w, s, dir, k)
		if err != nil {
			return 0, struck, err
		}
		alive, err := p.live(ops)
		switch {
		case err != nil:
			return 0, struck, err
		case len(w.faults) > 0:
			return 0, struck, fmt.Errorf("process %d: %v", i, w.faults)
		case alive:
			return p.events, struck, check(w, s, dir, ops)
		}
		struck++
	}
}
