package daemon

import (
	"context"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

func (h *fakeHost) ApplyAssignments(_ context.Context, actor string, wishes []gpu.NamedWish, _ gpu.Idempotency) ([]gpu.Assignment, *operation.Operation, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return nil, nil, err
	}
	var there []gpu.Assignment
	for _, w := range wishes {
		a, _, err := h.mayPut(w.Name, w.Wish)
		if err != nil {
			return nil, nil, err
		}
		if a.Name != "" {
			there = append(there, a)
		}
	}
	if len(there) == len(wishes) {
		return there, nil, nil
	}
	if err := h.write("ApplyAssignments"); err != nil {
		return nil, nil, err
	}
	op := h.ops.add("apply", actor, operation.Running)
	return nil, &op, nil
}

func (h *fakeHost) PlanApplyAssignments(_ context.Context, wishes []gpu.NamedWish) (gpu.Plan, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return gpu.Plan{}, err
	}
	a, _, refusal := h.mayPut(wishes[0].Name, wishes[0].Wish)
	return gpu.Plan{Summary: "apply", Changes: a.Name == "", Refusal: refusal}, nil
}
