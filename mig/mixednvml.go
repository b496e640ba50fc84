package mig

import "github.com/NVIDIA/go-nvml/pkg/nvml"

// Functions of the mode for vGPUs of different sizes.
const (
	vgpuCapabilities = "nvmlDeviceGetVgpuCapabilities"
	getMixed         = "nvmlDeviceGetVgpuHeterogeneousMode"
	setMixed         = "nvmlDeviceSetVgpuHeterogeneousMode"
)

func (d device) MixedSize() (out MixedSize, err error) {
	for _, function := range []string{vgpuCapabilities, getMixed} {
		if !d.in.has(function) {
			return out, lacking(function)
		}
	}
	can, ret := d.GetVgpuCapabilities(nvml.DEVICE_VGPU_CAP_HETEROGENEOUS_TIMESLICE_SIZES)
	if err := check(ret); err != nil {
		return out, err
	}
	mode, ret := d.GetVgpuHeterogeneousMode()
	return MixedSize{Supported: can, On: mode.Mode == uint32(nvml.FEATURE_ENABLED)}, check(ret)
}

func (d device) SetMixedSize(on bool) error {
	if !d.in.has(setMixed) {
		return lacking(setMixed)
	}
	mode := nvml.FEATURE_DISABLED
	if on {
		mode = nvml.FEATURE_ENABLED
	}
	return check(d.SetVgpuHeterogeneousMode(nvml.VgpuHeterogeneousMode{Mode: uint32(mode)}))
}
