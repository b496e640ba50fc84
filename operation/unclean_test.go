package operation_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/operation"
	"gpuvirt/operation/operationtest"
)

// A Do that failed and cannot be sure of having cleaned up is undone itself, before
// the steps done before it; the problem is its own (T02).
func TestUncleanError_T02(t *testing.T) {
	var calls []string
	hand := func(name string, err error) func(context.Context, *operation.Task) ([]operation.Row, error) {
		return func(context.Context, *operation.Task) ([]operation.Row, error) {
			calls = append(calls, name)
			return nil, err
		}
	}
	e := operation.New(operation.Config{Store: operationtest.NewMemory()})
	e.Handle("a", operation.Handler{Do: hand("do a", nil), Undo: hand("undo a", nil)})
	e.Handle("b", operation.Handler{Do: hand("do b", &operation.UncleanError{Err: errors.New("half done")}), Undo: hand("undo b", nil)})
	if err := e.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer e.Stop()
	op, err := e.Add(t.Context(), operation.Plan{Kind: "test", Steps: []operation.PlanStep{{Kind: "a"}, {Kind: "b"}}})
	if err != nil {
		t.Fatal(err)
	}
	if op, err = e.Wait(t.Context(), op.ID); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"do a", "do b", "undo b", "undo a"}, calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if op.Status != operation.Undone || op.Problem == nil || op.Problem.Step != "b" || op.Problem.Detail != "half done" {
		t.Errorf("operation %+v, problem %+v", op, op.Problem)
	}
}
