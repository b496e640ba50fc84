package daemon

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"gpuvirt/operation"
)

// fakeOps are operations that do nothing.
type fakeOps struct {
	mu      sync.Mutex
	ops     map[string]operation.Operation
	changed chan struct{} // closed and replaced at each change
	err     error
}

func (o *fakeOps) add(kind, actor string, status operation.Status) operation.Operation {
	o.mu.Lock()
	defer o.mu.Unlock()
	op := operation.Operation{
		ID: fmt.Sprintf("01KAR2Z7T4Y2M8Q6V0R9X3B%03d", len(o.ops)), Kind: kind, Summary: kind, Actor: actor, Status: status,
		Steps: []operation.Step{{Kind: "x.make", Status: operation.StepDoing, Log: []operation.LogLine{{Time: born, Text: "hello"}}}},
		Keys:  []string{"gpu/" + gpuA}, Created: born, Updated: born,
	}
	if status == operation.Failed {
		op.Problem = &operation.Problem{Code: "stuck", Detail: "it hangs", Step: "x.make", Blockers: []operation.Blocker{{Kind: "driver", ID: "nvidia"}}}
	}
	o.ops[op.ID] = op
	return op
}

func (o *fakeOps) set(id string, status operation.Status) {
	o.mu.Lock()
	defer o.mu.Unlock()
	op := o.ops[id]
	op.Status = status
	o.ops[id] = op
	close(o.changed)
	o.changed = make(chan struct{})
}

func (o *fakeOps) Get(id string) (operation.Operation, error) {
	op, _, err := o.get(id)
	return op, err
}

func (o *fakeOps) get(id string) (operation.Operation, chan struct{}, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	op, ok := o.ops[id]
	if o.err != nil {
		return op, o.changed, o.err
	}
	if !ok {
		return op, o.changed, fmt.Errorf("cannot read operation %q: %w", id, operation.ErrNotFound)
	}
	return op, o.changed, nil
}

func (o *fakeOps) List() ([]operation.Operation, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Collect(maps.Values(o.ops)), o.err
}

func (o *fakeOps) Wait(ctx context.Context, id string) (operation.Operation, error) {
	for {
		op, changed, err := o.get(id)
		if err != nil || op.Final() || op.Status == operation.Waiting {
			return op, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return op, ctx.Err()
		}
	}
}

func (o *fakeOps) act(id, verb string, to operation.Status, from ...operation.Status) (operation.Operation, error) {
	op, err := o.Get(id)
	if err != nil {
		return op, err
	}
	if !slices.Contains(from, op.Status) {
		return op, &operation.StateError{ID: id, Status: op.Status, Verb: verb}
	}
	o.set(id, to)
	return o.Get(id)
}

func (o *fakeOps) Abort(id string) (operation.Operation, error) {
	return o.act(id, "abort", operation.Undoing, operation.Ready, operation.Running, operation.Waiting, operation.Undoing)
}

func (o *fakeOps) Retry(id string) (operation.Operation, error) {
	return o.act(id, "retry", operation.Running, operation.Failed, operation.Waiting)
}

func (o *fakeOps) Forget(id string) (operation.Operation, error) {
	return o.act(id, "forget", operation.Failed, operation.Failed)
}
