package operation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// An end is how the call of a handler ended.
type end int

const (
	// succeeded: what the step is for is so.
	succeeded end = iota
	// failed: a Do has cleaned up after itself; an Undo could not do its work.
	failed
	// broken off: a Do that will not be called again, and may have happened, half
	// or not at all. Only its Undo can tell.
	brokenOff
	// waits: a person must act.
	waits
	// stranded: the step cannot be run by this binary at all.
	stranded
)

// An outcome is what came of a step.
type outcome struct {
	end  end
	rows []Row // of succeeded
	err  error // of all others
}

// run carries the operation out until it is final, waits, or the engine stops.
// resumed says that the handler of the current step may have been called before.
func (l *live) run(ctx context.Context, resumed bool) {
	defer l.e.work.Done()
	if op, _ := l.look(); op.Status == Ready {
		op, ok := l.commit(ctx, func(op *Operation) []Row { l.e.proceed(op); return nil })
		if !ok || op.Final() {
			return
		}
	}
	for {
		out, ok := l.attempt(ctx, resumed)
		if !ok {
			return
		}
		op, ok := l.commit(ctx, func(op *Operation) []Row { return l.e.advance(op, out) })
		if !ok {
			return
		}
		if op.Final() || op.Status == Waiting {
			l.e.report(op)
			return
		}
		resumed = false
	}
}

// report logs how an operation came to rest.
func (e *Engine) report(op Operation) {
	args := []any{"operation", op.ID, "actor", op.Actor, "kind", op.Kind, "status", op.Status}
	switch {
	case op.Status == Failed:
		e.conf.Log.Error("operation failed: its keys are held until retry or forget", append(args, "err", op.Problem.Detail)...)
	case op.Status == Undone:
		e.conf.Log.Warn("operation undone", append(args, "err", op.Problem.Detail)...)
	case op.Status == Waiting:
		e.conf.Log.Warn("operation waits for a person", append(args, "reason", op.Reason)...)
	default:
		e.conf.Log.Info("operation ended", args...)
	}
}

// attempt calls the handler of the current step until that comes to an end. It
// reports false if the engine stopped, or was drained, first.
func (l *live) attempt(ctx context.Context, resumed bool) (outcome, bool) {
	for ; ; resumed = true {
		if ctx.Err() != nil || l.e.isDraining() {
			return outcome{}, false
		}
		call, out := l.begin(ctx, resumed)
		if call == nil {
			return out, true
		}
		out, again, ok := call.result(ctx)
		l.leave(call)
		if !ok || !again {
			return out, ok
		}
	}
}

// A call is one call of a handler.
type call struct {
	task   *Task
	ctx    context.Context // canceled by Abort, if it is a Do
	cancel context.CancelCauseFunc
	f      func(context.Context, *Task) ([]Row, error)
}

// begin prepares the call of the current step's handler, or tells the outcome
// where there is nothing to call. Looking at the abort flag and arming abort are
// one, so that no abort falls between.
func (l *live) begin(ctx context.Context, resumed bool) (*call, outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.e.stranded(&l.op); err != nil {
		return nil, outcome{end: stranded, err: err}
	}
	i := l.op.current()
	step := &l.op.Steps[i]
	doing := step.Status == StepDoing
	if doing && l.op.Abort {
		// Aborted between two steps, or before a crash. Nobody knows how far this
		// step came, and doing it to the end only to undo it touches more hardware
		// than needed: its Undo, which copes with any half, is the short way home.
		return nil, outcome{end: brokenOff, err: ErrAborted}
	}
	c := &call{task: &Task{l: l, index: i, resumed: resumed, done: step.Done, total: step.Total, log: slices.Clone(step.Log)}}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	c.f = l.e.handlers[step.Kind].Undo
	l.abort = nil
	if doing {
		c.f = l.e.handlers[step.Kind].Do
		l.abort = c.cancel
	}
	l.task = c.task
	return c, outcome{}
}

// leave ends a call: an abort that comes now finds no Do to cancel.
func (l *live) leave(c *call) {
	l.mu.Lock()
	l.abort = nil
	l.mu.Unlock()
	c.cancel(nil)
}

// result calls the handler and sorts what it returned; again asks for another
// call, ok is false if the engine stopped and the result says nothing.
func (c *call) result(ctx context.Context) (out outcome, again, ok bool) {
	rows, err := c.f(c.ctx, c.task)
	if err == nil {
		return outcome{end: succeeded, rows: rows}, false, true
	}
	if ctx.Err() != nil {
		return outcome{}, false, false // its context was taken from it: no failure
	}
	if wait, isWait := errors.AsType[*WaitError](err); isWait {
		return outcome{end: waits, err: wait}, false, true
	}
	if unclean, is := errors.AsType[*UncleanError](err); is {
		return outcome{end: brokenOff, err: unclean.Err}, false, true
	}
	retry, isRetry := errors.AsType[*RetryError](err)
	if !isRetry {
		return outcome{end: failed, err: err}, false, true
	}
	c.task.l.say(retry.Error())
	timer := time.NewTimer(retry.After)
	defer timer.Stop()
	select {
	case <-timer.C:
		return outcome{}, true, true
	case <-c.task.l.e.draining:
		return outcome{}, false, false
	case <-c.ctx.Done():
		// Stopped, or aborted between two tries.
		return outcome{end: brokenOff, err: ErrAborted}, false, ctx.Err() == nil
	}
}

// current is the index of the step being done or undone. Steps before it are
// done, in every state: those behind it were never begun, or failed, or are undone.
func (o *Operation) current() int {
	i := slices.IndexFunc(o.Steps, func(s Step) bool { return s.Status != StepDone })
	if i < 0 {
		return len(o.Steps)
	}
	return i
}

// stranded says why the operation cannot be carried on by this binary, if so. All
// its steps count: half an operation is worse than one that did not move.
func (e *Engine) stranded(op *Operation) error {
	for _, step := range op.Steps {
		if _, known := e.handlers[step.Kind]; !known {
			return fmt.Errorf("cannot go on: step kind %q is unknown to this version of the program: was it downgraded?", step.Kind)
		}
	}
	i := op.current()
	if i == len(op.Steps) || op.Steps[i].Status != StepDoing && op.Steps[i].Status != StepUndoing {
		return errors.New("cannot go on: no step is under way")
	}
	return nil
}

// advance moves the operation on by the outcome of its current step: result of
// that step and intent of the next together, to be stored in one write. It returns
// the rows to store with them.
func (e *Engine) advance(op *Operation, out outcome) []Row {
	if out.end == stranded {
		e.blame(op, "", out.err)
		op.Status = Failed
		return nil
	}
	step := &op.Steps[op.current()]
	undoing := step.Status == StepUndoing
	switch {
	case out.end == waits && (undoing || !op.Abort):
		op.Status, op.Reason = Waiting, out.err.Error()
		return nil
	case undoing && out.end == succeeded:
		step.Status = StepUndone
		return append(out.rows, e.goBack(op)...)
	case undoing:
		step.Status = StepFailed
		op.Status = Failed
		e.blame(op, step.Kind, fmt.Errorf("cannot undo %s: %w", step.Kind, out.err))
		return nil
	case out.end == succeeded && !op.Abort:
		step.Status = StepDone
		e.proceed(op)
		return out.rows
	case out.end == succeeded:
		step.Status = StepDone
		return append(out.rows, e.goBack(op)...)
	case out.end == failed:
		step.Status = StepFailed
		e.blame(op, step.Kind, out.err)
		return e.goBack(op)
	default: // broken off: goBack finds the step still doing and undoes it, too
		if !errors.Is(out.err, ErrAborted) {
			e.blame(op, step.Kind, out.err)
		}
		return e.goBack(op)
	}
}

// proceed begins the first step that is not done, or ends the operation.
func (e *Engine) proceed(op *Operation) {
	i := op.current()
	if i == len(op.Steps) {
		op.Status = Done
		return
	}
	op.Status = Running
	op.Steps[i].Status = StepDoing
}

// goBack begins to undo the newest step that changed something, or ends the
// operation and returns the rows that take back what it reserved.
func (e *Engine) goBack(op *Operation) []Row {
	for i := len(op.Steps) - 1; i >= 0; i-- {
		step := &op.Steps[i]
		if step.Status != StepDone && step.Status != StepDoing {
			continue
		}
		if h, known := e.handlers[step.Kind]; known && h.Undo == nil {
			step.Status = StepUndone
			continue
		}
		op.Status, op.Reason = Undoing, ""
		step.Status = StepUndoing
		return nil
	}
	op.Status, op.Reason = Undone, ""
	return op.Release
}
