package mig

import (
	"encoding/binary"
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"gpuvirt/gpu"
)

// graphics is the engine that schedulers are asked for: the others have no choice.
const graphics = 1

// lacking is the error of a function that the library does not have. The process ends at
// the call of one.
func lacking(function string) error {
	return fmt.Errorf("the library lacks %s: %w", function, ErrFunctionNotFound)
}

var policies = map[uint32]gpu.SchedulerPolicy{
	nvml.VGPU_SCHEDULER_POLICY_BEST_EFFORT: gpu.BestEffort,
	nvml.VGPU_SCHEDULER_POLICY_EQUAL_SHARE: gpu.EqualShare,
	nvml.VGPU_SCHEDULER_POLICY_FIXED_SHARE: gpu.FixedShare,
}

func (d device) SchedulerCapabilities() (out SchedulerCapabilities, err error) {
	const function = "nvmlDeviceGetVgpuSchedulerCapabilities"
	if !d.in.has(function) {
		return out, lacking(function)
	}
	c, ret := d.GetVgpuSchedulerCapabilities()
	if err := check(ret); err != nil {
		return out, err
	}
	for _, n := range c.SupportedSchedulers {
		if p, ok := policies[n]; ok { // those that it lacks are 0
			out.Policies = append(out.Policies, p)
		}
	}
	out.MinTimeSliceNS, out.MaxTimeSliceNS, out.Adaptive = c.MinTimeslice, c.MaxTimeslice, c.IsArrModeSupported != 0
	return out, nil
}

// Functions of the scheduler. The first form takes a time slice and is going to be taken
// out of the library; the second takes none.
const (
	getScheduler   = "nvmlDeviceGetVgpuSchedulerState"
	getSchedulerV2 = "nvmlDeviceGetVgpuSchedulerState_v2"
	setScheduler   = "nvmlDeviceSetVgpuSchedulerState"
	setSchedulerV2 = "nvmlDeviceSetVgpuSchedulerState_v2"
)

func (d device) Scheduler() (gpu.Scheduler, error) {
	var out gpu.Scheduler
	var policy uint32
	switch {
	case d.in.has(getScheduler):
		s, ret := d.GetVgpuSchedulerState()
		if err := check(ret); err != nil {
			return out, err
		}
		// A union: where turns are adapted, the factor for that comes before the time slice.
		policy, out.Adaptive, out.TimeSliceNS = s.SchedulerPolicy, s.ArrMode == nvml.VGPU_SCHEDULER_ARR_ENABLE, word(s.SchedulerParams, 0)
		if out.Adaptive {
			out.TimeSliceNS = word(s.SchedulerParams, 1)
		}
	case d.in.has(getSchedulerV2):
		s, ret := d.GetVgpuSchedulerState_v2(nvml.VgpuSchedulerStateInfo_v2{EngineId: graphics})
		if err := check(ret); err != nil {
			return out, err
		}
		policy, out.Adaptive, out.TimeSliceNS = s.SchedulerPolicy, s.AvgFactor != 0, s.Timeslice
	default:
		return out, lacking(getScheduler)
	}
	if out.Policy = policies[policy]; out.Policy == "" {
		return out, ErrNotSupported // the driver does not know it either
	}
	if out.Policy == gpu.BestEffort { // the others mean nothing then
		out.TimeSliceNS, out.Adaptive = 0, false
	}
	return out, nil
}

func (d device) SetScheduler(want gpu.Scheduler) error {
	policy := uint32(nvml.VGPU_SCHEDULER_POLICY_UNKNOWN)
	for n, p := range policies {
		if p == want.Policy {
			policy = n
		}
	}
	switch {
	case want.TimeSliceNS == 0 && d.in.has(setSchedulerV2): // where 0 is the driver's own
		return check(d.SetVgpuSchedulerState_v2(&nvml.VgpuSchedulerState_v2{EngineId: graphics, SchedulerPolicy: policy}))
	case !d.in.has(setScheduler):
		return lacking(setScheduler)
	}
	ns := want.TimeSliceNS
	if ns == 0 {
		ret := d.SetVgpuSchedulerState(&nvml.VgpuSchedulerSetState{SchedulerPolicy: policy, EnableARRMode: nvml.VGPU_SCHEDULER_ARR_DEFAULT})
		if ret != nvml.ERROR_INVALID_ARGUMENT || want.Policy == gpu.BestEffort {
			return check(ret)
		}
		ns = usualTimeSlice // what 0 means here is written nowhere: it may be too short
	}
	can, err := d.SchedulerCapabilities()
	if err != nil {
		return err
	}
	s := nvml.VgpuSchedulerSetState{SchedulerPolicy: policy, EnableARRMode: nvml.VGPU_SCHEDULER_ARR_DEFAULT}
	if can.Adaptive { // else there is nothing to turn off
		s.EnableARRMode = nvml.VGPU_SCHEDULER_ARR_DISABLE
	}
	if want.TimeSliceNS == 0 && can.MaxTimeSliceNS > 0 {
		ns = min(max(ns, can.MinTimeSliceNS), can.MaxTimeSliceNS)
	}
	binary.NativeEndian.PutUint32(s.SchedulerParams[:], ns)
	return check(d.SetVgpuSchedulerState(&s))
}

// usualTimeSlice is what drivers of NVIDIA take by themselves for up to eight vGPUs, in ns.
const usualTimeSlice = 2_000_000

// word reads one of the numbers of a union.
func word(params [8]byte, i int) uint32 { return binary.NativeEndian.Uint32(params[4*i:]) }
