package operation_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/operation"
	"gpuvirt/operation/operationtest"
)

var errDiskFull = errors.New("no space left on device")

// T03: while the store cannot be written no hardware is touched, and as soon as it
// can be the operation goes on where it was.
func TestFullDiskT03(t *testing.T) {
	for _, test := range []struct {
		name, setup, meanwhile string
		calls, end             string
	}{
		{"result of do", "a b", "", "a:do b:do", "done a:done b:done"},
		{"result of failed do", "a:do-error b", "", "a:do", "undone a:failed b:pending"},
		{"restart", "a b", "restart", "a:do a:do-again b:do", "done a:done b:done"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t)
				p, kinds := s.plan(test.setup)
				full := func(o operation.Operation) {
					if len(o.Steps[0].Log) > 0 && !strings.Contains(o.Steps[0].Log[0].Text, errDiskFull.Error()) {
						t.Errorf("step says %q", o.Steps[0].Log[0].Text)
					}
				}
				s.open(operation.Config{Changed: full}, kinds...)
				s.store.Fail(0, errDiskFull)
				if _, err := s.engine.Add(t.Context(), p); !errors.Is(err, errDiskFull) {
					t.Fatalf("Add with a full disk: %v", err)
				}
				s.store.Fail(1, errDiskFull)
				if _, err := s.engine.Add(t.Context(), p); err != nil {
					t.Fatal(err)
				}
				s.rest()
				if diff := cmp.Diff([]string{"a:do"}, s.calls); diff != "" {
					t.Errorf("calls while the disk is full (-want +got):\n%s", diff)
				}
				if _, err := s.engine.Abort("op"); !errors.Is(err, errDiskFull) {
					t.Errorf("Abort with a full disk: %v", err)
				}
				op, err := s.engine.Get("op")
				if err != nil || op.Status != operation.Running || op.Abort || len(op.Steps[0].Log) != 1 {
					t.Errorf("with a full disk: %+v, %v", op, err)
				}
				if test.meanwhile != "" {
					s.engine.Stop()
					s.store.Fail(0, nil)
					s.open(operation.Config{}, kinds...)
				}
				s.store.Fail(0, nil)
				s.rest()
				s.engine.Stop()
				op, err = s.store.Operation("op")
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(test.calls, strings.Join(s.calls, " ")); diff != "" {
					t.Errorf("calls (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(test.end, summary(op)); diff != "" {
					t.Errorf("end (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// An abort that finds room on the disk before the step's result does is heeded:
// what comes next is decided anew at every try to save.
func TestAbortBeforeResultIsSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		p, kinds := s.plan("a b")
		s.open(operation.Config{}, kinds...)
		s.store.Fail(1, errDiskFull)
		if _, err := s.engine.Add(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // a is done, its result is not stored
		s.store.Fail(0, nil)
		if _, err := s.engine.Abort("op"); err != nil {
			t.Fatal(err)
		}
		s.rest()
		s.engine.Stop()
		if diff := cmp.Diff([]string{"a:do", "a:undo"}, s.calls); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
	})
}

// An abort between two tries of a step does not wait for the next: the step, which
// may be half done, is undone. The end of the engine does not wait either.
func TestAbortBetweenTries(t *testing.T) {
	for _, act := range []string{"abort", "restart"} {
		synctest.Test(t, func(t *testing.T) {
			s := newStage(t)
			p, kinds := s.plan("a b:do-retry")
			s.open(operation.Config{}, kinds...)
			begin := time.Now()
			if _, err := s.engine.Add(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // b is to be tried again in a minute
			s.act(act, kinds)
			if took := time.Since(begin); took != 0 {
				t.Errorf("%s took %s", act, took)
			}
			s.engine.Stop()
			want := map[string][]string{
				"abort":   {"a:do", "b:do", "b:undo", "a:undo"},
				"restart": {"a:do", "b:do", "b:do-again"},
			}
			if diff := cmp.Diff(want[act], s.calls); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
		})
	}
}

// After abort and crash the step that was doing is undone without being done again.
func TestAbortSurvivesCrashT01(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		p, kinds := s.plan("a b c")
		s.open(operation.Config{}, kinds...)
		s.engine.Stop()
		op := operation.Operation{
			ID: "op", Kind: "test", Status: operation.Running, Abort: true, Keys: p.Keys, Release: p.Release,
			Problem: &operation.Problem{Code: operation.CodeAborted, Detail: "aborted on request"},
			Steps: []operation.Step{
				{Kind: "a", Status: operation.StepDone},
				{Kind: "b", Status: operation.StepDoing},
				{Kind: "c", Status: operation.StepPending},
			},
		}
		if err := s.store.AddOperation(op, p.Rows); err != nil {
			t.Fatal(err)
		}
		s.open(operation.Config{}, kinds...)
		s.rest()
		s.engine.Stop()
		if diff := cmp.Diff([]string{"b:undo", "a:undo"}, s.calls); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
		op, _ = s.store.Operation("op")
		if op.Status != operation.Undone || op.Problem.Code != operation.CodeAborted {
			t.Errorf("ended %s, problem %v", op.Status, op.Problem)
		}
	})
}

// After a downgrade an operation whose steps are unknown is left alone, keys held,
// and undone when a person retries under a version that knows them.
func TestUnknownStepKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		p, _ := s.plan("a b:do-block c")
		s.open(operation.Config{}, "a", "b", "c")
		if _, err := s.engine.Add(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		s.engine.Stop()

		s.open(operation.Config{}, "a", "b") // c is unknown
		s.rest()
		op, err := s.engine.Get("op")
		if err != nil || op.Status != operation.Failed || !strings.Contains(op.Problem.Detail, `"c" is unknown`) {
			t.Fatalf("ended %s, problem %v, %v", op.Status, op.Problem, err)
		}
		if holder, held := s.engine.Holder("gpu/0"); !held || holder.ID != "op" {
			t.Errorf("key is held by %q", holder.ID)
		}
		s.engine.Stop()

		s.open(operation.Config{}, "a", "b", "c")
		s.act("retry", nil)
		s.engine.Stop()
		if diff := cmp.Diff([]string{"a:do", "b:do", "b:undo-again", "a:undo"}, s.calls); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
		op, _ = s.store.Operation("op")
		if op.Status != operation.Undone {
			t.Errorf("ended %s", op.Status)
		}
	})
}

// What the store holds may have been written by others: it is never a crash.
func TestStrangeOperations(t *testing.T) {
	for _, test := range []struct {
		name string
		op   operation.Operation
		want operation.Status
	}{
		{"ready", operation.Operation{Status: operation.Ready, Steps: []operation.Step{{Kind: "a", Status: operation.StepPending}}}, operation.Done},
		{"ready without steps", operation.Operation{Status: operation.Ready}, operation.Done},
		{"running, nothing under way", operation.Operation{Status: operation.Running, Steps: []operation.Step{{Kind: "a", Status: operation.StepPending}}}, operation.Undone},
		{"running, all done", operation.Operation{Status: operation.Running, Steps: []operation.Step{{Kind: "a", Status: operation.StepDone}}}, operation.Failed},
		{"waiting, unknown", operation.Operation{Status: operation.Waiting, Steps: []operation.Step{{Kind: "z", Status: operation.StepDoing}}}, operation.Failed},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStage(t)
				test.op.ID = "op"
				if err := s.store.AddOperation(test.op, nil); err != nil {
					t.Fatal(err)
				}
				s.open(operation.Config{}, "a")
				s.rest()
				if test.op.Status == operation.Waiting {
					s.act("retry", nil)
				}
				for _, verb := range []func(string) (operation.Operation, error){s.engine.Abort, s.engine.Retry} {
					if _, err := verb("op"); err != nil && !isStateError(err) {
						t.Error(err)
					}
					s.rest()
				}
				s.engine.Stop()
				if op, _ := s.store.Operation("op"); op.Status != test.want {
					t.Errorf("ended %s, want %s", op.Status, test.want)
				}
			})
		})
	}
}

func isStateError(err error) bool {
	_, ok := errors.AsType[*operation.StateError](err)
	return ok
}

// The first cause of an operation's trouble stays; what follows adds to it.
func TestProblemKeepsFirstCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		p, kinds := s.plan("a:undo-error,undo-error b:do-error")
		describe := func(err error) operation.Problem {
			p := operation.Problem{Code: "broken", Detail: err.Error()}
			if strings.Contains(err.Error(), "stays") {
				p = operation.Problem{Code: "stuck", Detail: err.Error(), Hint: "kick it", Blockers: []operation.Blocker{{Kind: "vm", ID: "1"}}}
			}
			return p
		}
		s.open(operation.Config{Problem: describe}, kinds...)
		defer func() { s.engine.Stop() }()
		if _, err := s.engine.Add(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		s.rest()
		s.act("retry", kinds)
		op, err := s.engine.Get("op")
		if err != nil {
			t.Fatal(err)
		}
		want := &operation.Problem{
			Code: "broken", Step: "b", Detail: "b broke; cannot undo a: a stays", Hint: "kick it",
			Blockers: []operation.Blocker{{Kind: "vm", ID: "1"}},
		}
		if diff := cmp.Diff(want, op.Problem); diff != "" {
			t.Errorf("problem (-want +got):\n%s", diff)
		}
	})
}

// A handler's panic ends the process, because nobody knows what it left locked.
func TestPanicIsNotSwallowed(t *testing.T) {
	if os.Getenv("OPERATION_TEST_PANIC") != "" {
		e := operation.New(operation.Config{Store: operationtest.NewMemory()})
		e.Handle("a", operation.Handler{Do: func(context.Context, *operation.Task) ([]operation.Row, error) { panic("handler panics") }})
		if err := e.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		op, err := e.Add(t.Context(), operation.Plan{Kind: "test", Steps: []operation.PlanStep{{Kind: "a"}}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, _ = e.Wait(ctx, op.ID)
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPanicIsNotSwallowed$")
	cmd.Env = append(slices.Clone(os.Environ()), "OPERATION_TEST_PANIC=1")
	out, err := cmd.CombinedOutput()
	if _, exited := errors.AsType[*exec.ExitError](err); !exited || !strings.Contains(string(out), "panic: handler panics") {
		t.Errorf("process ended with %v:\n%s", err, out)
	}
}
