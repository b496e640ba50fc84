package mig

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"gpuvirt/gpu"
)

// VGPUTypes lists the types of vGPU that NVIDIA's driver knows for a GPU, by their ids:
// those that share it by time and those on GPU instances, whatever its mode and what is
// on it. A driver that is not for hosts of VMs knows none.
func (b *Backend) VGPUTypes(_ context.Context, id gpu.ID) ([]gpu.VGPUType, error) {
	out, err := withDevice(b, id, b.opts.ReadTimeout, func(d Device) ([]gpu.VGPUType, error) {
		types, err := d.VGPUTypes()
		if err != nil {
			return nil, err
		}
		return types, nameProfiles(d, types)
	}, nothing)
	if err != nil {
		return nil, failure(err, "cannot list the vGPU types of gpu %q", id)
	}
	slices.SortFunc(out, func(a, b gpu.VGPUType) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// nameProfiles tells of types on GPU instances the name of the profile that they take.
func nameProfiles(d Device, types []gpu.VGPUType) error {
	if !slices.ContainsFunc(types, func(t gpu.VGPUType) bool { return t.GPUInstanceProfile != nil }) {
		return nil
	}
	profiles, err := d.Profiles()
	if err != nil {
		return err
	}
	for i, t := range types {
		for _, p := range profiles {
			if t.GPUInstanceProfile != nil && *t.GPUInstanceProfile == p.ID {
				types[i].On = p.Name
			}
		}
	}
	return nil
}

// vgpuFunctions are called for types of vGPU. A library without one is of use for all
// else, so only this question fails.
var vgpuFunctions = []string{
	"nvmlDeviceGetSupportedVgpus", "nvmlVgpuTypeGetName", "nvmlVgpuTypeGetClass", "nvmlVgpuTypeGetFramebufferSize",
	"nvmlVgpuTypeGetMaxInstances", "nvmlVgpuTypeGetMaxInstancesPerVm", "nvmlVgpuTypeGetNumDisplayHeads",
	"nvmlVgpuTypeGetResolution", "nvmlVgpuTypeGetLicense", "nvmlVgpuTypeGetGpuInstanceProfileId",
}

func (d device) VGPUTypes() ([]gpu.VGPUType, error) {
	for _, name := range vgpuFunctions {
		if !d.in.has(name) {
			return nil, lacking(name)
		}
	}
	all, ret := d.GetSupportedVgpus()
	if ret == nvml.ERROR_NOT_SUPPORTED {
		return nil, nil
	}
	if err := check(ret); err != nil {
		return nil, err
	}
	out := make([]gpu.VGPUType, 0, len(all))
	for _, id := range all {
		t, err := d.vgpuType(id)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// vgpuType asks for what is known of a type. Only what it is called and its size are
// told of every type.
func (d device) vgpuType(id nvml.VgpuTypeId) (t gpu.VGPUType, err error) {
	t.ID = id.GetID()
	var ret nvml.Return
	if t.Name, ret = id.GetName(); ret != nvml.SUCCESS {
		return t, check(ret)
	}
	if t.FramebufferBytes, ret = id.GetFramebufferSize(); ret != nvml.SUCCESS {
		return t, check(ret)
	}
	told := func(ret nvml.Return) bool {
		if ret != nvml.SUCCESS && !unavailable(ret) {
			err = cmp.Or(err, check(ret))
		}
		return ret == nvml.SUCCESS
	}
	if class, ret := id.GetClass(); told(ret) {
		t.Class = class
	}
	if n, ret := id.GetMaxInstances(d.Device); told(ret) {
		t.MaxInstances = n
	}
	if n, ret := id.GetMaxInstancesPerVm(); told(ret) {
		t.MaxPerVM = n
	}
	if n, ret := id.GetNumDisplayHeads(); told(ret) {
		t.Heads = n
	}
	if license, ret := id.GetLicense(); told(ret) {
		t.License = license
	}
	if t.Heads > 0 {
		if x, y, ret := id.GetResolution(0); told(ret) {
			t.Resolution = fmt.Sprintf("%dx%d", x, y)
		}
	}
	// A type that shares the GPU by time has an id that is none.
	if n, ret := id.GetGpuInstanceProfileId(); told(ret) && n != ^uint32(0) {
		profile := int(n)
		t.GPUInstanceProfile = &profile
		t.MaxPerInstance = d.perInstance(t.ID)
	}
	return t, err
}

// perInstance asks how many vGPUs of a type one GPU instance takes, 0 where that is not
// known: only newer libraries tell.
func (d device) perInstance(id uint32) int {
	if !d.in.has("nvmlVgpuTypeGetMaxInstancesPerGpuInstance") {
		return 0
	}
	q := nvml.VgpuTypeMaxInstance{VgpuTypeId: id}
	q.Version = nvml.STRUCT_VERSION(q, 1) // the binding leaves that to us
	if ret := d.in.lib.VgpuTypeGetMaxInstancesPerGpuInstance(&q); ret != nvml.SUCCESS {
		return 0
	}
	return int(q.MaxInstancePerGI)
}
