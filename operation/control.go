package operation

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// A StateError says that an operation is in no state for what was asked.
type StateError struct {
	ID     string
	Status Status
	Forgot bool   // it is failed, and was forgotten
	Verb   string // "abort", "retry", "forget"
}

func (e *StateError) Error() string {
	if e.Forgot {
		return fmt.Sprintf("cannot %s operation %q: it was forgotten", e.Verb, e.ID)
	}
	return fmt.Sprintf("cannot %s operation %q: it is %s", e.Verb, e.ID, e.Status)
}

// find returns the operation where it is live, else as the store has it.
func (e *Engine) find(id string) (*live, Operation, error) {
	get := func() *live {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.live[id]
	}
	for {
		if l := get(); l != nil {
			op, _ := l.look()
			return l, op, nil
		}
		op, err := e.conf.Store.Operation(id)
		if err != nil || !op.Holds() {
			return nil, op, err
		}
		// It holds keys and is not live: it is another engine's, or Add is about to
		// make it known, or it ended and was dropped between the two looks.
		e.adding.Lock()
		l := get()
		e.adding.Unlock()
		if l == nil {
			op, err = e.conf.Store.Operation(id)
			return nil, op, err
		}
	}
}

// Get returns an operation, with live progress. The error wraps ErrNotFound where
// there is none.
func (e *Engine) Get(id string) (Operation, error) {
	_, op, err := e.find(id)
	if err != nil {
		return Operation{}, fmt.Errorf("cannot get operation %q: %w", id, err)
	}
	return op, nil
}

// List returns all operations, oldest first, with live progress.
func (e *Engine) List() ([]Operation, error) {
	ops, err := e.conf.Store.Operations()
	if err != nil {
		return nil, fmt.Errorf("cannot list operations: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range ops {
		if l := e.live[ops[i].ID]; l != nil {
			ops[i], _ = l.look()
		}
	}
	return ops, nil
}

// Holder returns the operation that holds a key.
func (e *Engine) Holder(key string) (Operation, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range e.live {
		if op, _ := l.look(); op.Holds() && slices.Contains(op.Keys, key) {
			return op, true
		}
	}
	return Operation{}, false
}

// Held answers a *ConflictError where one of the keys is held now, as Add would.
func (e *Engine) Held(keys ...string) error {
	for _, k := range keys {
		if op, held := e.Holder(k); held {
			return &ConflictError{Key: k, Holder: op.ID, Summary: op.Summary}
		}
	}
	return nil
}

// Wait waits until the operation is final or waiting. If ctx ends or the engine
// stops before, it returns the operation as it is, and ctx.Err() or ErrStopped.
func (e *Engine) Wait(ctx context.Context, id string) (Operation, error) {
	e.mu.Lock()
	engine := e.ctx
	e.mu.Unlock()
	l, op, err := e.find(id)
	if err != nil {
		return Operation{}, fmt.Errorf("cannot wait for operation %q: %w", id, err)
	}
	for l != nil {
		var moved <-chan struct{}
		op, moved = l.look()
		if op.Final() || op.Status == Waiting {
			break
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return op, ctx.Err()
		case <-engine.Done():
			return op, ErrStopped
		}
	}
	if !op.Final() && op.Status != Waiting {
		return op, ErrStopped // nobody here works on it
	}
	return op, nil
}

// Abort has an unfinished operation turn round: what it did is undone. A running
// Do is canceled with the cause ErrAborted. Where the operation goes back already
// nothing changes; where it is final the error is a *StateError.
func (e *Engine) Abort(id string) (Operation, error) {
	return e.control(id, "abort", false, func(op *Operation) ([]Row, error) {
		if op.Final() {
			return nil, op.refuse("abort")
		}
		i := op.current()
		if op.Abort || i == len(op.Steps) || op.Steps[i].Status == StepUndoing {
			return nil, errNoChange
		}
		op.Abort = true
		op.Problem = &Problem{Code: CodeAborted, Detail: ErrAborted.Error(), Step: op.Steps[i].Kind}
		if op.Status == Waiting {
			return e.goBack(op), nil // nobody is at work who would
		}
		return nil, nil
	})
}

// Retry has a failed operation undo again, and a waiting one go on. In any other
// state the error is a *StateError.
func (e *Engine) Retry(id string) (Operation, error) {
	return e.control(id, "retry", true, func(op *Operation) ([]Row, error) {
		i := op.current()
		switch {
		case op.Status == Waiting:
			op.Status, op.Reason = Running, ""
			if op.Steps[i].Status == StepUndoing {
				op.Status = Undoing
			}
			return nil, nil
		case op.Status == Failed && !op.Forgot && i < len(op.Steps):
			// Where it was stranded the step may still be doing: then it is undone,
			// as everything else is from here on.
			op.Status = Undoing
			op.Steps[i].Status = StepUndoing
			return nil, nil
		default:
			return nil, op.refuse("retry")
		}
	})
}

// Forget gives a failed operation up: its keys are free, its record stays, what it
// left behind is left behind. Forgetting twice is fine; in any other state the
// error is a *StateError.
func (e *Engine) Forget(id string) (Operation, error) {
	return e.control(id, "forget", false, func(op *Operation) ([]Row, error) {
		if op.Status != Failed {
			return nil, op.refuse("forget")
		}
		if op.Forgot {
			return nil, errNoChange
		}
		op.Forgot = true
		return nil, nil
	})
}

// control changes an operation on a person's behalf, and sets it to work where the
// change calls for work that nobody is at.
func (e *Engine) control(id, verb string, resumed bool, change func(*Operation) ([]Row, error)) (Operation, error) {
	if err := e.enter(); err != nil {
		return Operation{}, fmt.Errorf("cannot %s operation %q: %w", verb, id, err)
	}
	defer e.work.Done()
	l, op, err := e.find(id)
	if err != nil {
		return Operation{}, fmt.Errorf("cannot %s operation %q: %w", verb, id, err)
	}
	var idle bool
	guarded := func(op *Operation) ([]Row, error) {
		idle = op.Final() || op.Status == Waiting
		return change(op)
	}
	if l == nil { // over and done with: change only tells why not
		_, err = guarded(&op)
	} else {
		op, err = l.save(guarded)
	}
	switch _, refused := errors.AsType[*StateError](err); {
	case errors.Is(err, errNoChange):
		return op, nil
	case refused:
		return op, err
	case err != nil:
		return op, fmt.Errorf("cannot %s operation %q: %w", verb, id, err)
	case l == nil:
		return op, fmt.Errorf("cannot %s operation %q: it is not at work here", verb, id)
	}
	e.conf.Log.Info("operation changed by request", "operation", id, "actor", op.Actor, "verb", verb)
	l.cancelDo()
	if idle && !op.Final() {
		e.spawn(l, resumed)
	}
	return op, nil
}

// cancelDo ends the context of the Do that runs, if the operation is aborted.
func (l *live) cancelDo() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.op.Abort && l.abort != nil {
		l.abort(ErrAborted)
	}
}

func (o *Operation) refuse(verb string) error {
	return &StateError{ID: o.ID, Status: o.Status, Forgot: o.Forgot, Verb: verb}
}
