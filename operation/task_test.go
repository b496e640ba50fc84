package operation_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/operation"
	"gpuvirt/operation/operationtest"
)

// perform runs one operation of one step to its end and returns it as stored.
func perform(t *testing.T, store *operationtest.Memory, conf operation.Config, args any, do func(context.Context, *operation.Task) ([]operation.Row, error)) operation.Operation {
	t.Helper()
	conf.Store = store
	e := operation.New(conf)
	e.Handle("a", operation.Handler{Do: do})
	if err := e.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer e.Stop()
	op, err := e.Add(t.Context(), operation.Plan{Kind: "test", Steps: []operation.PlanStep{{Kind: "a", Args: args}}})
	if err != nil {
		t.Fatal(err)
	}
	if op, err = e.Wait(t.Context(), op.ID); err != nil {
		t.Fatal(err)
	}
	return op
}

func TestNote(t *testing.T) {
	store := operationtest.NewMemory()
	op := perform(t, store, operation.Config{}, nil, func(_ context.Context, task *operation.Task) ([]operation.Row, error) {
		var note string
		if noted, err := task.Note(&note); noted || err != nil {
			t.Errorf("note before there was one: %v, %v", noted, err)
		}
		for range 2 { // the second says the same: no write
			if err := task.SaveNote("was 3"); err != nil {
				t.Error(err)
			}
		}
		if noted, err := task.Note(&note); !noted || err != nil || note != "was 3" {
			t.Errorf("note: %v, %q, %v", noted, note, err)
		}
		if stored, err := store.Operation(task.Operation().ID); err != nil || string(stored.Steps[0].Note) != `"was 3"` {
			t.Errorf("stored: %s, %v", stored.Steps[0].Note, err)
		}
		if err := task.SaveNote(func() {}); err == nil {
			t.Error("saved a function")
		}
		return nil, nil
	})
	if op.Status != operation.Done || store.Writes() != 3 {
		t.Errorf("%s after %d writes", op.Status, store.Writes())
	}
}

func TestArgs(t *testing.T) {
	type args struct {
		Size int `json:"size"`
	}
	for _, test := range []struct {
		given any
		want  string // problem
	}{
		{args{3}, ""},
		{map[string]int{"size": 3, "colour": 4}, `cannot read arguments of step "a": json: unknown field "colour"`},
		{nil, `cannot read arguments of step "a": EOF`},
	} {
		op := perform(t, operationtest.NewMemory(), operation.Config{}, test.given, func(_ context.Context, task *operation.Task) ([]operation.Row, error) {
			var a args
			if err := task.Args(&a); err != nil {
				return nil, err
			}
			if a.Size != 3 {
				t.Errorf("size is %d", a.Size)
			}
			return nil, nil
		})
		got := ""
		if op.Problem != nil {
			got = op.Problem.Detail
		}
		if got != test.want {
			t.Errorf("%v: problem %q, want %q", test.given, got, test.want)
		}
	}
}

// What a step says is bounded, whole runes, and fit for a terminal.
func TestLogIsBounded(t *testing.T) {
	op := perform(t, operationtest.NewMemory(), operation.Config{}, nil, func(_ context.Context, task *operation.Task) ([]operation.Row, error) {
		for i := range 150 {
			task.Logf("line %d", i)
		}
		task.Logf("%s", strings.Repeat("ö", 1000))
		task.Logf("\x1b[31mred\r\nalert\n")
		return nil, nil
	})
	log := op.Steps[0].Log
	if len(log) != 100 || log[0].Text != "line 52" {
		t.Errorf("%d lines, first %q", len(log), log[0].Text)
	}
	if long := log[98].Text; len(long) > 510 || !utf8.ValidString(long) || !strings.HasSuffix(long, "ö…") {
		t.Errorf("long line has %d bytes, ends %q", len(long), long[len(long)-6:])
	}
	if got := log[99].Text; got != "[31mred  alert" && got != " [31mred  alert" {
		t.Errorf("control characters: %q", got)
	}
}

// Changed hears of every saved change, in order and one at a time, and of progress
// now and then; it may call the engine.
func TestChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			e    *operation.Engine
			busy atomic.Bool
			got  []string
		)
		changed := func(op operation.Operation) {
			if !busy.CompareAndSwap(false, true) {
				t.Error("Changed was called while it ran")
			}
			got = append(got, fmt.Sprintf("%s %s %d/%d", op.Status, op.Steps[0].Status, op.Steps[0].Done, op.Steps[0].Total))
			if op.Steps[0].Done == 1 && !op.Abort {
				if _, err := e.Abort(op.ID); err != nil {
					t.Error(err)
				}
			}
			busy.Store(false)
		}
		e = operation.New(operation.Config{Store: operationtest.NewMemory(), Changed: changed})
		e.Handle("a", operation.Handler{
			Do: func(ctx context.Context, task *operation.Task) ([]operation.Row, error) {
				for i := range int64(1000) {
					task.Progress(i+1, 1000)
					<-time.After(time.Millisecond)
				}
				return nil, nil
			},
			Undo: func(context.Context, *operation.Task) ([]operation.Row, error) { return nil, nil },
		})
		if err := e.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		op, err := e.Add(t.Context(), operation.Plan{Kind: "test", Steps: []operation.PlanStep{{Kind: "a"}}})
		if err != nil {
			t.Fatal(err)
		}
		if op, err = e.Wait(t.Context(), op.ID); err != nil || op.Steps[0].Done != 1000 {
			t.Errorf("ended with %d, %v", op.Steps[0].Done, err)
		}
		e.Stop()
		want := []string{
			"running doing 0/0", "running doing 1/1000", "running doing 1/1000", // the last is the abort
			"running doing 201/1000", "running doing 401/1000", "running doing 601/1000", "running doing 801/1000",
			"undoing undoing 1000/1000", "undone undone 1000/1000",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("changes (-want +got):\n%s", diff)
		}
	})
}

// Get tells of progress that is not stored.
func TestLiveProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := operation.New(operation.Config{Store: operationtest.NewMemory()})
		e.Handle("a", operation.Handler{Do: func(ctx context.Context, task *operation.Task) ([]operation.Row, error) {
			task.Progress(3, 7)
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		if err := e.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer e.Stop()
		op, err := e.Add(t.Context(), operation.Plan{Kind: "test", Steps: []operation.PlanStep{{Kind: "a"}}})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if op, err = e.Get(op.ID); err != nil || op.Steps[0].Done != 3 || op.Steps[0].Total != 7 {
			t.Errorf("%+v, %v", op.Steps[0], err)
		}
	})
}
