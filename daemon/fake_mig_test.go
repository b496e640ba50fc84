package daemon

import (
	"context"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// The one GPU that MIG can cut has one instance, which is what is wanted.
func (h *fakeHost) Layout(_ context.Context, id gpu.ID) (gpu.LayoutState, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return gpu.LayoutState{}, err
	}
	return h.layout(id)
}

func (h *fakeHost) layout(id gpu.ID) (gpu.LayoutState, error) {
	if id != gpuA {
		return gpu.LayoutState{}, gpu.Errorf(gpu.CodeNotFound, "cannot find a layout of gpu %q", id)
	}
	is := gpu.Layout{Enabled: true, Instances: []gpu.LayoutInstance{{Profile: "3g.40gb", Place: 4, Compute: []string{"3g.40gb"}}}}
	return gpu.LayoutState{GPU: id, Mode: gpu.MIGMode{Capable: true, Current: true, Pending: true}, Wanted: &is, Actual: is, Equal: true}, nil
}

func (h *fakeHost) PutLayout(_ context.Context, actor string, id gpu.ID, want gpu.Layout) (gpu.LayoutState, *operation.Operation, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return gpu.LayoutState{}, nil, err
	}
	is, err := h.layout(id)
	if err != nil || len(want.Instances) == 1 {
		return is, nil, err
	}
	if err := h.write("PutLayout"); err != nil {
		return gpu.LayoutState{}, nil, err
	}
	op := h.ops.add("lay out", actor, operation.Running)
	return gpu.LayoutState{}, &op, nil
}

func (h *fakeHost) PlanPutLayout(_ context.Context, id gpu.ID, want gpu.Layout) (gpu.Plan, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return gpu.Plan{}, err
	}
	_, err = h.layout(id)
	return gpu.Plan{Summary: "lay out", Changes: len(want.Instances) != 1}, err
}
