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

// poorer is a library without some functions.
func poorer(names *[]string) *mock.Interface {
	return &mock.Interface{ExtensionsFunc: func() nvml.ExtendedInterface {
		return &mock.ExtendedInterface{LookupSymbolFunc: func(name string) error {
			if slices.Contains(*names, name) {
				return errors.New("undefined symbol")
			}
			return nil
		}}
	}}
}

func TestModesOfTheBinding(t *testing.T) {
	var lacks []string
	var ecc, compute nvml.Return
	mode := nvml.COMPUTEMODE_EXCLUSIVE_PROCESS
	d := device{&mock.Device{
		GetEccModeFunc: func() (nvml.EnableState, nvml.EnableState, nvml.Return) {
			return nvml.FEATURE_ENABLED, nvml.FEATURE_DISABLED, ecc
		},
		GetComputeModeFunc: func() (nvml.ComputeMode, nvml.Return) { return mode, compute },
	}, session{poorer(&lacks), &NVML{}}}
	is := func(want gpu.Modes) {
		t.Helper()
		got, err := d.Modes()
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Error(err, diff)
		}
	}
	is(gpu.Modes{ECC: &gpu.ECC{Current: true}, Compute: "exclusive-process"})
	ecc, mode = nvml.ERROR_NOT_SUPPORTED, nvml.COMPUTEMODE_EXCLUSIVE_THREAD // a card without; a driver of long ago
	is(gpu.Modes{})
	ecc, mode = nvml.SUCCESS, nvml.COMPUTEMODE_DEFAULT
	lacks = []string{"nvmlDeviceGetEccMode"}
	is(gpu.Modes{Compute: "default"})
	lacks = []string{"nvmlDeviceGetComputeMode"}
	is(gpu.Modes{ECC: &gpu.ECC{Current: true}})
	lacks, compute = nil, nvml.ERROR_GPU_IS_LOST
	if _, err := d.Modes(); !errors.Is(err, ErrGPULost) {
		t.Error(err)
	}
}
