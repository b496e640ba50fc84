package operation_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/operation"
	"gpuvirt/operation/operationtest"
)

// Two engines on one store, as two daemons would be: of all who want a key at the
// same time exactly one gets it, and the others learn who.
func TestConflictOfTwoEngines(t *testing.T) {
	store := operationtest.NewMemory()
	release := make(chan struct{})
	var engines []*operation.Engine
	for range 2 {
		e := operation.New(operation.Config{Store: store})
		e.Handle("hold", operation.Handler{Do: func(context.Context, *operation.Task) ([]operation.Row, error) {
			<-release
			return nil, nil
		}})
		if err := e.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer e.Stop()
		engines = append(engines, e)
	}
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		winners []string
		holders = map[string]bool{}
	)
	for i := range 50 {
		wg.Go(func() {
			op, err := engines[i%2].Add(t.Context(), operation.Plan{
				Kind: "test", Summary: "mine", Keys: []string{fmt.Sprint("vm/", i), "gpu/0", "gpu/0"}, Steps: []operation.PlanStep{{Kind: "hold"}},
			})
			mu.Lock()
			defer mu.Unlock()
			if conflict, ok := errors.AsType[*operation.ConflictError](err); ok && conflict.Key == "gpu/0" && conflict.Summary == "mine" {
				holders[conflict.Holder] = true
			} else if err == nil {
				winners = append(winners, op.ID)
			} else {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(winners) != 1 || len(holders) != 1 || !holders[winners[0]] {
		t.Errorf("winners %q, holders %v", winners, holders)
	}
	close(release)
	for _, e := range engines {
		if op, held := e.Holder("gpu/0"); held {
			if _, err := e.Wait(t.Context(), op.ID); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := engines[0].Add(t.Context(), operation.Plan{Kind: "test", Keys: []string{"gpu/0"}}); err != nil {
		t.Errorf("key is not free: %v", err)
	}
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		p, kinds := s.plan("a:do-block")
		s.open(operation.Config{}, kinds...)
		if _, err := s.engine.Wait(t.Context(), "op"); !errors.Is(err, operation.ErrNotFound) {
			t.Errorf("nothing: %v", err)
		}
		if _, err := s.engine.Add(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		op, err := s.engine.Wait(ctx, "op")
		if !errors.Is(err, context.DeadlineExceeded) || op.Status != operation.Running {
			t.Errorf("timeout: %s, %v", op.Status, err)
		}
		go s.engine.Stop()
		op, err = s.engine.Wait(t.Context(), "op")
		if !errors.Is(err, operation.ErrStopped) || op.Status != operation.Running {
			t.Errorf("stopped: %s, %v", op.Status, err)
		}
		synctest.Wait()
		for name, call := range map[string]func() error{
			"add":   func() error { _, err := s.engine.Add(t.Context(), p); return err },
			"abort": func() error { _, err := s.engine.Abort("op"); return err },
			"wait":  func() error { _, err := s.engine.Wait(t.Context(), "op"); return err },
		} {
			if err := call(); !errors.Is(err, operation.ErrStopped) {
				t.Errorf("%s after stop: %v", name, err)
			}
		}
	})
}

func TestAddRefuses(t *testing.T) {
	s := newStage(t)
	p, kinds := s.plan("a")
	s.open(operation.Config{}, kinds...)
	defer func() { s.engine.Stop() }()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range []struct {
		name string
		ctx  context.Context
		plan operation.Plan
		want string
	}{
		{"canceled", canceled, p, `cannot add operation "test": context canceled`},
		{"kind", t.Context(), operation.Plan{}, `cannot add operation "": it has no kind`},
		{"step", t.Context(), operation.Plan{Kind: "test", Steps: []operation.PlanStep{{Kind: "z"}}}, `cannot add operation "test": nobody handles steps of kind "z"`},
		{"args", t.Context(), operation.Plan{Kind: "test", Steps: []operation.PlanStep{{Kind: "a", Args: func() {}}}}, `cannot add operation "test": cannot marshal arguments of step "a": json: unsupported type: func()`},
	} {
		if _, err := s.engine.Add(test.ctx, test.plan); err == nil || err.Error() != test.want {
			t.Errorf("%s: %v, want %s", test.name, err, test.want)
		}
	}
	if s.store.Writes() != 0 {
		t.Error("something was written")
	}
	if err := s.engine.Start(t.Context()); err == nil {
		t.Error("started twice")
	}
}

func TestGetAndList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		s.open(operation.Config{}, "a")
		defer func() { s.engine.Stop() }()
		var want []string
		for range 3 {
			op, err := s.engine.Add(t.Context(), operation.Plan{Kind: "test", Steps: []operation.PlanStep{{Kind: "a"}}})
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, op.ID)
		}
		synctest.Wait()
		ops, err := s.engine.List()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, op := range ops {
			got = append(got, op.ID)
			if one, err := s.engine.Get(op.ID); err != nil || one.Status != operation.Done {
				t.Errorf("%s: %s, %v", op.ID, one.Status, err)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("ids are not in order (-want +got):\n%s", diff)
		}
		for _, verb := range []func(string) (operation.Operation, error){s.engine.Get, s.engine.Abort, s.engine.Retry, s.engine.Forget} {
			if _, err := verb("nothing"); !errors.Is(err, operation.ErrNotFound) {
				t.Error(err)
			}
		}
	})
}

// Ids grow even where the clock steps back, so that "oldest first" holds.
func TestIDsGrow(t *testing.T) {
	now := time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)
	e := operation.New(operation.Config{Store: operationtest.NewMemory(), Now: func() time.Time { now = now.Add(-time.Second); return now }})
	for last, i := "", 0; i < 1000; i++ {
		id := e.NewID()
		if id <= last {
			t.Fatalf("%s after %s", id, last)
		}
		last = id
	}
}

func TestPrune(t *testing.T) {
	now := time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)
	store := operationtest.NewMemory()
	for i, status := range []operation.Status{
		operation.Failed, operation.Waiting, operation.Done, operation.Undone, operation.Done, operation.Done, operation.Done,
	} {
		op := operation.Operation{ID: fmt.Sprint("op", i), Status: status, Updated: now.Add(time.Duration(i-7) * time.Hour)}
		if err := store.AddOperation(op, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		age   time.Duration
		count int
		want  []string
	}{
		{0, 0, []string{"op0", "op1", "op2", "op3", "op4", "op5", "op6"}},
		{4*time.Hour + time.Minute, 0, []string{"op0", "op1", "op3", "op4", "op5", "op6"}},
		{0, 2, []string{"op0", "op1", "op5", "op6"}},
		{time.Minute, 2, []string{"op0", "op1"}},
		{time.Minute, 2, []string{"op0", "op1"}},
	} {
		e := operation.New(operation.Config{Store: store, Now: func() time.Time { return now }, KeepAge: test.age, KeepCount: test.count})
		before, writes := len(listed(t, e)), store.Writes()
		n, err := e.Prune()
		if err != nil {
			t.Fatal(err)
		}
		got := listed(t, e)
		if diff := cmp.Diff(test.want, got); diff != "" || n != before-len(got) {
			t.Errorf("age %s, count %d: %d (-want +got):\n%s", test.age, test.count, n, diff)
		}
		if n == 0 && store.Writes() != writes {
			t.Error("pruning nothing wrote something")
		}
	}
}

func listed(t *testing.T, e *operation.Engine) []string {
	t.Helper()
	ops, err := e.List()
	if err != nil {
		t.Fatal(err)
	}
	ids := []string{}
	for _, op := range ops {
		ids = append(ids, op.ID)
	}
	return ids
}
