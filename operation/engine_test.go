package operation_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/operation"
	"gpuvirt/operation/operationtest"
)

// A stage is an engine whose steps behave as a line of setup says, and what they
// were called for.
type stage struct {
	t      *testing.T
	store  *operationtest.Memory
	engine *operation.Engine

	undoable map[string]bool

	mu    sync.Mutex
	moods map[string][]string // step to what it will do, each once
	calls []string
}

func newStage(t *testing.T) *stage {
	return &stage{t: t, store: operationtest.NewMemory(), undoable: map[string]bool{}, moods: map[string][]string{}}
}

// open starts an engine on the stage's store; kinds are the steps it knows.
func (s *stage) open(conf operation.Config, kinds ...string) {
	s.t.Helper()
	conf.Store = s.store
	s.engine = operation.New(conf)
	for _, kind := range kinds {
		h := operation.Handler{Do: s.do(kind), Undo: s.undo(kind)}
		if slices.Contains(s.moods[kind], "no-undo") {
			h.Undo = nil
		}
		s.undoable[kind] = h.Undo != nil
		s.engine.Handle(kind, h)
	}
	if err := s.engine.Start(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) note(call string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, call)
}

// takes reports whether a step is in a mood, once.
func (s *stage) takes(kind, mood string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.moods[kind], mood)
	if i < 0 {
		return false
	}
	s.moods[kind] = slices.Delete(slices.Clone(s.moods[kind]), i, i+1)
	return true
}

func (s *stage) do(kind string) func(context.Context, *operation.Task) ([]operation.Row, error) {
	return func(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
		call := kind + ":do"
		if t.Resumed() {
			call += "-again"
		}
		s.note(call)
		switch {
		case s.takes(kind, "do-error"):
			return nil, errors.New(kind + " broke")
		case s.takes(kind, "do-wait"):
			return nil, &operation.WaitError{Reason: "turn the key"}
		case s.takes(kind, "do-retry"):
			return nil, &operation.RetryError{After: time.Minute, Err: errors.New("busy")}
		case s.takes(kind, "do-block"):
			<-ctx.Done()
			return nil, ctx.Err()
		case s.takes(kind, "do-slow"):
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(slow):
			}
		case s.takes(kind, "do-late"):
			<-ctx.Done()
		}
		return []operation.Row{operation.Put("row", kind, "made")}, nil
	}
}

// slow is how long a step takes that is slow.
const slow = 20 * time.Second

func (s *stage) undo(kind string) func(context.Context, *operation.Task) ([]operation.Row, error) {
	return func(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
		call := kind + ":undo"
		if t.Resumed() {
			call += "-again"
		}
		s.note(call)
		switch {
		case s.takes(kind, "undo-error"):
			return nil, errors.New(kind + " stays")
		case s.takes(kind, "undo-wait"):
			return nil, &operation.WaitError{Reason: "turn it back"}
		case s.takes(kind, "undo-retry"):
			return nil, &operation.RetryError{After: time.Minute}
		case s.takes(kind, "undo-block"):
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return []operation.Row{operation.Delete("row", kind)}, nil
	}
}

// plan makes the operation of a setup line, "a b:do-error,no-undo", and has its
// steps behave so.
func (s *stage) plan(setup string) (operation.Plan, []string) {
	p := operation.Plan{
		ID: "op", Kind: "test", Summary: setup, Actor: "me", Keys: []string{"gpu/0"},
		Rows: []operation.Row{operation.Put("row", "reserved", "yes")}, Release: []operation.Row{operation.Delete("row", "reserved")},
	}
	var kinds []string
	for _, word := range strings.Fields(setup) {
		kind, moods, _ := strings.Cut(word, ":")
		if moods != "" {
			s.moods[kind] = strings.Split(moods, ",")
		}
		kinds = append(kinds, kind)
		p.Steps = append(p.Steps, operation.PlanStep{Kind: kind})
	}
	return p, kinds
}

// rest waits until the operation rests, or until nothing has happened for a day.
func (s *stage) rest() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 24*time.Hour)
	defer cancel()
	if _, err := s.engine.Wait(ctx, "op"); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		s.t.Fatal(err)
	}
}

// act does what a person does to the operation, and waits for what comes of it.
func (s *stage) act(word string, kinds []string) {
	s.t.Helper()
	var err error
	switch word {
	case "abort":
		_, err = s.engine.Abort("op")
	case "retry":
		_, err = s.engine.Retry("op")
	case "forget":
		_, err = s.engine.Forget("op")
	case "restart":
		s.engine.Stop()
		s.open(operation.Config{}, kinds...)
	}
	if refused, ok := errors.AsType[*operation.StateError](err); ok {
		s.note(fmt.Sprintf("(%s refused)", refused.Verb))
	} else if err != nil {
		s.t.Fatal(err)
	}
	s.rest()
}

// summary tells an operation's state: "undone a:undone b:failed".
func summary(op operation.Operation) string {
	words := []string{string(op.Status)}
	if op.Forgot {
		words = append(words, "forgotten")
	}
	for _, step := range op.Steps {
		words = append(words, step.Kind+":"+string(step.Status))
	}
	return strings.Join(words, " ")
}

// The state space of an operation: how its steps behave, what a person does, which
// handlers are called for it, how it ends, and in how many writes.
func TestStates(t *testing.T) {
	for _, test := range []struct {
		setup, acts string
		calls, end  string
		writes      int
	}{
		{"a b c", "", "a:do b:do c:do", "done a:done b:done c:done", 4},
		{"a", "abort retry forget", "a:do (abort refused) (retry refused) (forget refused)", "done a:done", 2},
		{"", "", "", "done", 1},

		// a failing step has cleaned up; those before it are undone, newest first
		{"a:do-error b c", "", "a:do", "undone a:failed b:pending c:pending", 2},
		{"a b:do-error c", "", "a:do b:do a:undo", "undone a:undone b:failed c:pending", 4},
		{"a b c:do-error", "abort retry forget", "a:do b:do c:do b:undo a:undo (abort refused) (retry refused) (forget refused)", "undone a:undone b:undone c:failed", 6},
		{"a b:no-undo c:do-error", "", "a:do b:do c:do a:undo", "undone a:undone b:undone c:failed", 5},
		{"a:no-undo b:do-error", "", "a:do b:do", "undone a:undone b:failed", 3},

		// an undo that fails: keys are held until a person decides
		{"a b:undo-error c:do-error", "", "a:do b:do c:do b:undo", "failed a:done b:failed c:failed", 5},
		{"a b:undo-error c:do-error", "retry", "a:do b:do c:do b:undo b:undo-again a:undo", "undone a:undone b:undone c:failed", 8},
		{"a b:undo-error,undo-error c:do-error", "retry retry", "a:do b:do c:do b:undo b:undo-again b:undo-again a:undo", "undone a:undone b:undone c:failed", 10},
		{"a b:undo-error c:do-error", "abort forget forget retry", "a:do b:do c:do b:undo (abort refused) (retry refused)", "failed forgotten a:done b:failed c:failed", 6},
		{"a b:undo-error c:do-error", "restart retry", "a:do b:do c:do b:undo b:undo-again a:undo", "undone a:undone b:undone c:failed", 8},
		{"a b:undo-error c:do-error", "forget restart", "a:do b:do c:do b:undo", "failed forgotten a:done b:failed c:failed", 6},

		// waiting for a person
		{"a b:do-wait", "", "a:do b:do", "waiting a:done b:doing", 3},
		{"a b:do-wait", "restart forget", "a:do b:do (forget refused)", "waiting a:done b:doing", 3},
		{"a b:do-wait c", "retry", "a:do b:do b:do-again c:do", "done a:done b:done c:done", 6},
		{"a b:do-wait c", "restart retry", "a:do b:do b:do-again c:do", "done a:done b:done c:done", 6},
		{"a b:do-wait c", "abort", "a:do b:do b:undo a:undo", "undone a:undone b:undone c:pending", 6},
		{"a b:do-wait c", "restart abort abort", "a:do b:do b:undo a:undo (abort refused)", "undone a:undone b:undone c:pending", 6},
		{"a:do-wait,no-undo", "abort", "a:do", "undone a:undone", 3},
		{"a:undo-wait b:do-error", "abort", "a:do b:do a:undo", "waiting a:undoing b:failed", 4},
		{"a:undo-wait b:do-error", "retry", "a:do b:do a:undo a:undo-again", "undone a:undone b:failed", 6},

		// another try: no write, no failure
		{"a b:do-retry c", "", "a:do b:do b:do-again c:do", "done a:done b:done c:done", 4},
		{"a:undo-retry b:do-error", "", "a:do b:do a:undo a:undo-again", "undone a:undone b:failed", 4},

		// abort while a step runs: one that obeys has cleaned up, one that does not is undone
		{"a b:do-block c", "abort", "a:do b:do a:undo", "undone a:undone b:failed c:pending", 5},
		{"a b:do-late c", "abort", "a:do b:do b:undo a:undo", "undone a:undone b:undone c:pending", 6},
		{"a b:do-late", "abort", "a:do b:do b:undo a:undo", "undone a:undone b:undone", 6},
		{"a:undo-block b:do-error", "abort restart", "a:do b:do a:undo a:undo-again", "undone a:undone b:failed", 4},

		// a restart resumes: doing is done again, undoing goes on
		{"a b:do-block c", "restart", "a:do b:do b:do-again c:do", "done a:done b:done c:done", 4},
		{"a b:do-late c", "restart", "a:do b:do c:do-again", "done a:done b:done c:done", 4},
		{"a:undo-block b:do-error", "restart", "a:do b:do a:undo a:undo-again", "undone a:undone b:failed", 4},
		{"a b", "restart", "a:do b:do", "done a:done b:done", 3},
	} {
		t.Run(test.setup+" / "+test.acts, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t)
				p, kinds := s.plan(test.setup)
				s.open(operation.Config{}, kinds...)
				if _, err := s.engine.Add(t.Context(), p); err != nil {
					t.Fatal(err)
				}
				s.rest()
				for _, word := range strings.Fields(test.acts) {
					s.act(word, kinds)
				}
				s.engine.Stop()
				op, err := s.store.Operation("op")
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(test.calls, strings.Join(s.calls, " ")); diff != "" {
					t.Errorf("calls (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(test.end, summary(op)); diff != "" {
					t.Errorf("end (-want +got):\n%s", diff)
				}
				if got := s.store.Writes(); got != test.writes {
					t.Errorf("took %d writes, want %d", got, test.writes)
				}
				s.checkRows(op)
			})
		})
	}
}

// checkRows checks that the store's rows tell what the steps did.
func (s *stage) checkRows(op operation.Operation) {
	s.t.Helper()
	if got := s.store.Row("row", "reserved") == nil; got != (op.Status == operation.Undone) {
		s.t.Errorf("reservation is gone: %v, and the operation is %s", got, op.Status)
	}
	for _, step := range op.Steps {
		got := s.store.Row("row", step.Kind) != nil
		undone := step.Status == operation.StepUndone && s.undoable[step.Kind]
		if step.Status == operation.StepDone && !got || undone && got || step.Status == operation.StepPending && got {
			s.t.Errorf("row of step %q is there: %v, and it is %s", step.Kind, got, step.Status)
		}
	}
}
