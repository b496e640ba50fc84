package operation

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

const (
	firstBackoff = time.Second // before a failed save is tried again
	longBackoff  = 30 * time.Second
	quiet        = 200 * time.Millisecond // least time between two reports of mere progress
)

// errNoChange is returned by a change that found nothing to do.
var errNoChange = errors.New("no change")

// A live is an operation that holds keys, as the engine has it in memory: what is
// stored of it, and what its running handler has said since.
type live struct {
	e *Engine

	// saving serialises writers and is held across the store write, which may take
	// long; mu never is, so that readers need not wait for a disk. Before mu.
	saving sync.Mutex

	mu     sync.Mutex
	op     Operation               // as stored
	task   *Task                   // of the last handler called; nil before the first
	abort  context.CancelCauseFunc // cancels the Do that runs; nil where none does
	moved  chan struct{}           // closed and replaced when op changes
	queue  []Operation             // to be told to Changed, in order
	taking bool                    // somebody empties queue
	told   time.Time               // when progress was last queued
}

func newLive(e *Engine, op Operation) *live {
	return &live{e: e, op: op, moved: make(chan struct{})}
}

// clone returns a copy that shares nothing with o that anybody changes.
func (o Operation) clone() Operation {
	o.Steps = slices.Clone(o.Steps)
	for i := range o.Steps {
		o.Steps[i].Log = slices.Clone(o.Steps[i].Log)
	}
	if o.Problem != nil {
		p := *o.Problem
		p.Blockers = slices.Clone(p.Blockers)
		o.Problem = &p
	}
	return o
}

// look returns the operation with live progress, and a channel that is closed when
// its stored state changes.
func (l *live) look() (Operation, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.view(), l.moved
}

// view is look for who holds mu.
func (l *live) view() Operation {
	op := l.op.clone()
	if t := l.task; t != nil {
		step := &op.Steps[t.index]
		step.Done, step.Total, step.Log = t.done, t.total, slices.Clone(t.log)
	}
	return op
}

// save stores the operation as change leaves it, with the rows change returns. An
// error of change or of the store leaves all as it was.
func (l *live) save(change func(*Operation) ([]Row, error)) (Operation, error) {
	op, err := l.write(change)
	l.deliver()
	return op, err
}

func (l *live) write(change func(*Operation) ([]Row, error)) (Operation, error) {
	l.saving.Lock()
	defer l.saving.Unlock()
	op, _ := l.look()
	rows, err := change(&op)
	if err != nil {
		return op, err
	}
	op.Updated = l.e.conf.Now().UTC()
	if err := l.e.conf.Store.SaveOperation(op, rows); err != nil {
		op, _ = l.look()
		return op, err
	}
	if !op.Holds() {
		l.e.forget(op.ID)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.op = op
	close(l.moved)
	l.moved = make(chan struct{})
	l.queue = append(l.queue, l.view())
	return op.clone(), nil
}

// forget drops an operation that has let go of its keys.
func (e *Engine) forget(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.live, id)
}

// commit is save for the goroutine that carries the operation out: it tries until
// the change is stored, because nothing may go on before it is. It reports false
// if the engine stops first; then the operation resumes from what is stored.
func (l *live) commit(ctx context.Context, change func(*Operation) []Row) (Operation, bool) {
	for wait := firstBackoff; ; wait = min(2*wait, longBackoff) {
		op, err := l.save(func(op *Operation) ([]Row, error) { return change(op), nil })
		if err == nil {
			return op, true
		}
		l.e.conf.Log.Error("cannot save operation", "operation", op.ID, "actor", op.Actor, "err", err, "again", wait)
		if wait == firstBackoff {
			l.say("cannot save, will go on when it can be: " + err.Error())
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return op, false
		}
	}
}

// say adds a line to the log of the step at hand and tells of it at once.
func (l *live) say(text string) {
	l.mu.Lock()
	if l.task != nil {
		l.task.add(text)
	}
	l.queue = append(l.queue, l.view())
	l.mu.Unlock()
	l.deliver()
}

// progressed tells of what the running handler said, unless that was done a moment
// ago.
func (l *live) progressed(change func()) {
	l.mu.Lock()
	change()
	now := l.e.conf.Now()
	elapsed := now.Sub(l.told)
	tell := elapsed >= quiet || elapsed < 0 // the clock may step back
	if tell {
		l.told = now
		l.queue = append(l.queue, l.view())
	}
	l.mu.Unlock()
	if tell {
		l.deliver()
	}
}

// deliver empties the queue. Where somebody is at it already, that one does it:
// so Changed is called in order, one at a time, and may itself call the engine.
func (l *live) deliver() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.taking {
		return
	}
	l.taking = true
	defer func() { l.taking = false }()
	for len(l.queue) > 0 {
		op := l.queue[0]
		l.queue = l.queue[1:]
		if l.e.conf.Changed == nil {
			continue
		}
		func() {
			l.mu.Unlock()
			defer l.mu.Lock()
			l.e.conf.Changed(op)
		}()
	}
}
