package operation

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
)

// Config is what an Engine is made of. Only Store must be set.
type Config struct {
	Store Store
	Log   *slog.Logger
	// Now is the clock of what is written down; default time.Now. Timers run on
	// real time.
	Now func() time.Time
	// NewID makes operation ids; default ULIDs that grow within the process.
	NewID func() string
	// Problem describes a handler's error in the domain's words. The default knows
	// only the code "internal".
	Problem func(error) Problem
	// Changed hears of every saved change and, now and then, of progress. It is
	// never called twice at a time for one operation, holds no lock of the engine
	// while it runs, and must not call Stop.
	Changed func(Operation)
	// KeepAge and KeepCount say what Prune leaves of finished operations: those
	// younger than this, and never more than that. Zero: no limit.
	KeepAge   time.Duration
	KeepCount int
}

// ErrStopped is returned while the engine does not run, and is the cause of the
// context of a handler that was stopped with it.
var ErrStopped = errors.New("the operation engine does not run")

// An Engine carries operations out, each on a goroutine of its own.
type Engine struct {
	conf     Config
	handlers map[string]Handler

	// adding is held from Add's store write until the operation is in live, so
	// that whoever reads of it in the store finds it there. Before mu.
	adding sync.Mutex

	// draining is closed by Drain: no step begins any more.
	draining chan struct{}

	mu     sync.Mutex
	phase  phase
	ctx    context.Context // ends with Stop; nil before Start
	cancel context.CancelCauseFunc
	live   map[string]*live // the operations that hold keys
	work   sync.WaitGroup   // running operations, and calls that may start one
}

// phase is how far an engine's life has come.
type phase int

const (
	fresh phase = iota
	started
	drained // or about to be
	stopped
)

// New makes an engine. It does nothing before Start.
func New(c Config) *Engine {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.NewID == nil {
		c.NewID = newULIDs(c.Now)
	}
	if c.Problem == nil {
		c.Problem = func(err error) Problem { return Problem{Code: "internal", Detail: err.Error()} }
	}
	return &Engine{conf: c, handlers: map[string]Handler{}, draining: make(chan struct{}), live: map[string]*live{}}
}

// newULIDs returns a source of ULIDs that grow even where the clock steps back.
func newULIDs(now func() time.Time) func() string {
	var (
		mu      sync.Mutex
		last    uint64
		entropy = ulid.Monotonic(rand.Reader, 0)
	)
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		last = max(last, ulid.Timestamp(now()))
		return ulid.MustNew(last, entropy).String()
	}
}

// NewID returns an id for a Plan whose rows name it.
func (e *Engine) NewID() string { return e.conf.NewID() }

// Handle says how steps of a kind are done and undone. It must be called before
// Start; a second handler for a kind, or one without Do, is a programming error
// and panics.
func (e *Engine) Handle(kind string, h Handler) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, taken := e.handlers[kind]; taken || kind == "" || h.Do == nil || e.phase != fresh {
		panic(fmt.Sprintf("operation: cannot handle step kind %q: taken, empty, without Do, or too late", kind))
	}
	e.handlers[kind] = h
}

// Start resumes what the store holds unfinished: a step whose doing was broken off
// is done again, undoing goes on, waiting operations wait. Handlers' contexts end
// with ctx.
func (e *Engine) Start(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.phase != fresh {
		return errors.New("cannot start operation engine: it was started before")
	}
	ops, err := e.conf.Store.Operations()
	if err != nil {
		return fmt.Errorf("cannot start operation engine: %w", err)
	}
	e.phase = started
	e.ctx, e.cancel = context.WithCancelCause(ctx)
	for _, op := range ops {
		if !op.Holds() {
			continue
		}
		l := newLive(e, op)
		e.live[op.ID] = l
		if op.Final() || op.Status == Waiting {
			continue // a person's turn
		}
		e.conf.Log.Info("operation resumes", "operation", op.ID, "actor", op.Actor, "kind", op.Kind)
		e.work.Add(1)
		go l.run(e.ctx, true)
	}
	return nil
}

// Drain begins no step any more, takes no operation, and waits until the steps under way
// have come to their end, or ctx has. What is left of their operations resumes at the next
// Start of another engine. Stop comes after it.
func (e *Engine) Drain(ctx context.Context) {
	e.mu.Lock()
	if e.phase == started {
		e.phase = drained
		close(e.draining)
	}
	e.mu.Unlock()
	idle := make(chan struct{})
	go func() {
		e.work.Wait()
		close(idle)
	}()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// isDraining reports whether no step is to begin any more.
func (e *Engine) isDraining() bool {
	select {
	case <-e.draining:
		return true
	default:
		return false
	}
}

// Stop cancels the contexts of all handlers and waits for them. It leaves
// operations as they are stored: they resume at the next Start of another engine.
func (e *Engine) Stop() {
	e.mu.Lock()
	e.phase = stopped
	if e.cancel != nil {
		e.cancel(ErrStopped)
	}
	e.mu.Unlock()
	e.work.Wait()
}

// enter holds Stop off until the caller says e.work.Done.
func (e *Engine) enter() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.phase != started || e.ctx.Err() != nil {
		return ErrStopped
	}
	e.work.Add(1)
	return nil
}

// spawn begins work on an operation. The caller has entered.
func (e *Engine) spawn(l *live, resumed bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.work.Add(1)
	go l.run(e.ctx, resumed)
}

// A Plan is an operation to be.
type Plan struct {
	// ID is the operation's id where the caller needs it in Rows: one that
	// NewID gave. Empty: Add picks one.
	ID      string
	Kind    string
	Summary string
	Actor   string
	Keys    []string // what nobody else may work on meanwhile
	Steps   []PlanStep
	Rows    []Row // reserve: written with the operation
	Release []Row // take the reservation back if the operation ends undone
}

// A PlanStep is a step to be.
type PlanStep struct {
	Kind    string
	Summary string
	Args    any // marshals to JSON; nil: none
}

// Add writes the operation, its rows and keys and the intent of its first step in
// one transaction, and begins. Where a key is held the error is a *ConflictError.
// A plan without steps is done when Add returns.
//
// After another error the store may, if its disk betrayed it, hold the operation
// all the same: then it is carried out at the next Start.
func (e *Engine) Add(ctx context.Context, p Plan) (Operation, error) {
	if err := ctx.Err(); err != nil {
		return Operation{}, fmt.Errorf("cannot add operation %q: %w", p.Kind, err)
	}
	if err := e.enter(); err != nil {
		return Operation{}, fmt.Errorf("cannot add operation %q: %w", p.Kind, err)
	}
	defer e.work.Done()
	op, err := e.draft(p)
	if err != nil {
		return Operation{}, fmt.Errorf("cannot add operation %q: %w", p.Kind, err)
	}
	l, err := e.write(op, p.Rows)
	if err != nil {
		return Operation{}, fmt.Errorf("cannot add operation %q: %w", p.Kind, err)
	}
	e.conf.Log.Info("operation added", "operation", op.ID, "actor", op.Actor, "kind", op.Kind)
	l.deliver()
	if !op.Final() {
		e.spawn(l, false)
	}
	return op.clone(), nil
}

// write stores a new operation and makes it known.
func (e *Engine) write(op Operation, rows []Row) (*live, error) {
	e.adding.Lock()
	defer e.adding.Unlock()
	if err := e.conf.Store.AddOperation(op, rows); err != nil {
		return nil, err
	}
	l := newLive(e, op)
	l.queue = append(l.queue, op.clone())
	if op.Holds() {
		e.mu.Lock()
		e.live[op.ID] = l
		e.mu.Unlock()
	}
	return l, nil
}

// draft makes the operation that a plan asks for, with its first step begun.
func (e *Engine) draft(p Plan) (Operation, error) {
	if p.Kind == "" {
		return Operation{}, errors.New("it has no kind")
	}
	now := e.conf.Now().UTC()
	op := Operation{
		ID: p.ID, Kind: p.Kind, Summary: p.Summary, Actor: p.Actor,
		Status: Running, Steps: []Step{}, Keys: []string{}, Release: p.Release, Created: now, Updated: now,
	}
	if op.ID == "" {
		op.ID = e.NewID()
	}
	for _, key := range p.Keys {
		if !slices.Contains(op.Keys, key) {
			op.Keys = append(op.Keys, key)
		}
	}
	for _, s := range p.Steps {
		if _, known := e.handlers[s.Kind]; !known {
			return Operation{}, fmt.Errorf("nobody handles steps of kind %q", s.Kind)
		}
		step := Step{Kind: s.Kind, Summary: s.Summary, Status: StepPending}
		if s.Args != nil {
			args, err := json.Marshal(s.Args)
			if err != nil {
				return Operation{}, fmt.Errorf("cannot marshal arguments of step %q: %w", s.Kind, err)
			}
			step.Args = args
		}
		op.Steps = append(op.Steps, step)
	}
	e.proceed(&op)
	return op, nil
}
