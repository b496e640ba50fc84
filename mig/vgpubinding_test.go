package mig

import (
	"errors"
	"slices"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
)

// typeID answers for one type as the binding does.
func typeID(id uint32, name string, of gpu.VGPUType, profile uint32, refuses nvml.Return) *mock.VgpuTypeId {
	return &mock.VgpuTypeId{
		GetIDFunc:                   func() uint32 { return id },
		GetNameFunc:                 func() (string, nvml.Return) { return name, nvml.SUCCESS },
		GetFramebufferSizeFunc:      func() (uint64, nvml.Return) { return of.FramebufferBytes, nvml.SUCCESS },
		GetClassFunc:                func() (string, nvml.Return) { return of.Class, refuses },
		GetMaxInstancesFunc:         func(nvml.Device) (int, nvml.Return) { return of.MaxInstances, refuses },
		GetMaxInstancesPerVmFunc:    func() (int, nvml.Return) { return of.MaxPerVM, refuses },
		GetNumDisplayHeadsFunc:      func() (int, nvml.Return) { return of.Heads, refuses },
		GetLicenseFunc:              func() (string, nvml.Return) { return of.License, refuses },
		GetResolutionFunc:           func(int) (uint32, uint32, nvml.Return) { return 7680, 4320, refuses },
		GetGpuInstanceProfileIdFunc: func() (uint32, nvml.Return) { return profile, refuses },
	}
}

func TestVGPUTypesOfTheBinding(t *testing.T) {
	q := gpu.VGPUType{FramebufferBytes: 8 << 30, Class: "Quadro", MaxInstances: 6, MaxPerVM: 16, Heads: 4, License: "Quadro-Virtual-DWS,5.0"}
	zero := 0
	var lacks []string
	var supported nvml.Return
	var types []nvml.VgpuTypeId
	library := mock.Interface{
		ExtensionsFunc: func() nvml.ExtendedInterface {
			return &mock.ExtendedInterface{LookupSymbolFunc: func(name string) error {
				if slices.Contains(lacks, name) {
					return errors.New("undefined symbol")
				}
				return nil
			}}
		},
		VgpuTypeGetMaxInstancesPerGpuInstanceFunc: func(q *nvml.VgpuTypeMaxInstance) nvml.Return {
			if q.Version != 1<<24|12 || q.VgpuTypeId != 7 {
				return nvml.ERROR_ARGUMENT_VERSION_MISMATCH
			}
			q.MaxInstancePerGI = 8
			return nvml.SUCCESS
		},
	}
	d := device{&mock.Device{
		GetSupportedVgpusFunc: func() ([]nvml.VgpuTypeId, nvml.Return) { return types, supported },
	}, session{&library, &NVML{}}}

	types = []nvml.VgpuTypeId{
		typeID(1152, "NVIDIA L40S-8Q", q, ^uint32(0), nvml.SUCCESS),
		typeID(7, "NVIDIA H100XM-7-80C", gpu.VGPUType{FramebufferBytes: 80 << 30, MaxInstances: 1}, 0, nvml.SUCCESS), // 0 is a profile
		typeID(9, "GRID V100-8Q", q, 3, nvml.ERROR_NOT_SUPPORTED),
	}
	got, err := d.VGPUTypes()
	want := []gpu.VGPUType{
		{ID: 1152, Name: "NVIDIA L40S-8Q", Class: "Quadro", FramebufferBytes: 8 << 30, MaxInstances: 6, MaxPerVM: 16, Heads: 4, Resolution: "7680x4320", License: "Quadro-Virtual-DWS,5.0"},
		{ID: 7, Name: "NVIDIA H100XM-7-80C", FramebufferBytes: 80 << 30, MaxInstances: 1, GPUInstanceProfile: &zero, MaxPerInstance: 8},
		{ID: 9, Name: "GRID V100-8Q", FramebufferBytes: 8 << 30},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
	lacks = []string{"nvmlVgpuTypeGetMaxInstancesPerGpuInstance"}
	want[1].MaxPerInstance = 0
	if got, err := d.VGPUTypes(); !cmp.Equal(want, got) || err != nil {
		t.Error(got, err)
	}
	types = append(types, typeID(10, "GRID V100-4Q", q, 3, nvml.ERROR_GPU_IS_LOST))
	if _, err := d.VGPUTypes(); !errors.Is(err, ErrGPULost) {
		t.Error(err)
	}
	supported = nvml.ERROR_NOT_SUPPORTED // the driver of a host without VMs
	if got, err := d.VGPUTypes(); len(got) != 0 || err != nil {
		t.Error(got, err)
	}
	supported = nvml.ERROR_GPU_IS_LOST
	if _, err := d.VGPUTypes(); !errors.Is(err, ErrGPULost) {
		t.Error(err)
	}
	lacks = []string{"nvmlVgpuTypeGetLicense"}
	if _, err := d.VGPUTypes(); !errors.Is(err, ErrFunctionNotFound) {
		t.Error(err)
	}
}
