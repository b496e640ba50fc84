package daemon

import (
	"context"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// The one GPU with vGPUs has equal shares, which is what is wanted.
func (h *fakeHost) VGPUSettings(_ context.Context, id gpu.ID) (gpu.VGPUState, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return gpu.VGPUState{}, err
	}
	return h.vgpu(id)
}

func (h *fakeHost) vgpu(id gpu.ID) (gpu.VGPUState, error) {
	if id != gpuA {
		return gpu.VGPUState{}, gpu.Errorf(gpu.CodeNotFound, "cannot read how vGPUs share gpu %q", id)
	}
	off := false
	return gpu.VGPUState{
		GPU: id, Wanted: gpu.VGPUWish{Scheduler: &gpu.Scheduler{Policy: gpu.EqualShare}}, Equal: true,
		Actual: gpu.Timeslicing{MixedSize: gpu.MixedSizeState{Supported: true, Actual: &off}, Scheduler: gpu.SchedulerState{
			Policies: schedulerPolicies(), MinTimeSliceNS: 1e6, MaxTimeSliceNS: 30e6,
			Actual: &gpu.Scheduler{Policy: gpu.EqualShare, TimeSliceNS: 2e6, Adaptive: true},
		}},
	}, nil
}

func (h *fakeHost) PutVGPUSettings(_ context.Context, actor string, id gpu.ID, want gpu.VGPUWish) (gpu.VGPUState, *operation.Operation, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return gpu.VGPUState{}, nil, err
	}
	is, err := h.vgpu(id)
	if err != nil || want.Over(is.Wanted).Equal(is.Wanted) {
		return is, nil, err
	}
	if err := h.write("PutVGPUSettings"); err != nil {
		return gpu.VGPUState{}, nil, err
	}
	op := h.ops.add("share", actor, operation.Running)
	return gpu.VGPUState{}, &op, nil
}

func (h *fakeHost) PlanPutVGPUSettings(_ context.Context, id gpu.ID, want gpu.VGPUWish) (gpu.Plan, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return gpu.Plan{}, err
	}
	is, err := h.vgpu(id)
	return gpu.Plan{Summary: "share", Changes: !want.Over(is.Wanted).Equal(is.Wanted)}, err
}
