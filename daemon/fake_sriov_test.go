package daemon

import (
	"context"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// The one GPU with SR-IOV has one function of four, which is what is wanted.
func (h *fakeHost) VFs(_ context.Context, id gpu.ID) (gpu.VFState, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return gpu.VFState{}, err
	}
	return h.vfs(id)
}

func (h *fakeHost) vfs(id gpu.ID) (gpu.VFState, error) {
	if id != gpuA {
		return gpu.VFState{}, gpu.Errorf(gpu.CodeNotFound, "cannot find virtual functions of gpu %q", id)
	}
	one := 1
	return gpu.VFState{GPU: id, Wanted: &one, TotalVFs: 4, Equal: true, Functions: []gpu.FunctionState{{
		Function: gpu.Function{PCIAddress: "0000:41:00.1", IOMMUGroup: "71", Driver: "vfio-pci"}, Partition: "0000:41:00.0/vf/0",
		Holders: []gpu.Holder{{Kind: "process", ID: "4711", Name: "qemu-system-x86"}},
	}}}, nil
}

func (h *fakeHost) PutVFs(_ context.Context, actor string, id gpu.ID, n int) (gpu.VFState, *operation.Operation, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return gpu.VFState{}, nil, err
	}
	is, err := h.vfs(id)
	if err != nil || n == 1 {
		return is, nil, err
	}
	if err := h.write("PutVFs"); err != nil {
		return gpu.VFState{}, nil, err
	}
	op := h.ops.add("turn on", actor, operation.Running)
	return gpu.VFState{}, &op, nil
}

func (h *fakeHost) PlanPutVFs(_ context.Context, id gpu.ID, n int) (gpu.Plan, error) {
	leave, err := h.enter()
	defer leave()
	if err != nil {
		return gpu.Plan{}, err
	}
	_, err = h.vfs(id)
	return gpu.Plan{Summary: "turn on", Changes: n != 1}, err
}
