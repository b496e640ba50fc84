package daemon

import (
	"errors"
	"math"

	"gpuvirt/api"
	"gpuvirt/gpu"
)

func getVGPU(s *Server, q *request) (response, error) {
	v, err := s.host.VGPUSettings(q.Context(), gpu.ID(q.path["gpu"]))
	if err != nil {
		return response{}, err
	}
	return object(vgpuOf(v)), nil
}

func putVGPU(s *Server, q *request) (response, error) {
	body, err := decode[api.VGPUSettingsRequest](q)
	if err != nil {
		return response{}, err
	}
	want, err := vgpuWishOf(body)
	if err != nil {
		return response{}, err
	}
	id := gpu.ID(q.path["gpu"])
	err = q.precondition(func() (any, error) {
		v, err := s.host.VGPUSettings(q.Context(), id)
		return vgpuOf(v), err
	})
	if err != nil {
		return response{}, err
	}
	if q.dryRun() {
		plan, err := s.host.PlanPutVGPUSettings(q.Context(), id, want)
		return s.planned(q, plan, err)
	}
	v, op, err := s.host.PutVGPUSettings(q.Context(), q.who.Actor, id, want)
	if err != nil {
		return response{}, err
	}
	if op != nil {
		return accepted(*op), nil
	}
	return object(vgpuOf(v)), nil
}

func schedulerPolicies() []gpu.SchedulerPolicy {
	return []gpu.SchedulerPolicy{gpu.BestEffort, gpu.EqualShare, gpu.FixedShare}
}

// vgpuWishOf checks settings as far as that takes no card.
func vgpuWishOf(r api.VGPUSettingsRequest) (gpu.VGPUWish, error) {
	out := gpu.VGPUWish{MixedSize: r.MixedSize}
	var errs []error
	if s := r.Scheduler; s != nil {
		out.Scheduler = &gpu.Scheduler{Policy: gpu.SchedulerPolicy(s.Policy)}
		errs = append(errs, required("scheduler.policy", s.Policy, oneOf(schedulerPolicies())))
		if n := s.TimeSliceNS; n != nil {
			out.Scheduler.TimeSliceNS = uint32(*n) //nolint:gosec // see below
			if *n < 1 || *n > math.MaxUint32 {
				errs = append(errs, invalid("field %q is not from 1 to %d", "scheduler.time_slice_ns", math.MaxUint32))
			}
		}
	}
	if out.Empty() {
		errs = append(errs, invalid("nothing is asked for: there are mixed_size, scheduler"))
	}
	return out, joined(errors.Join(errs...))
}

func vgpuOf(s gpu.VGPUState) api.VGPUSettings {
	is, m := s.Actual.Scheduler, s.Actual.MixedSize
	return api.VGPUSettings{
		GPU: string(s.GPU), Equal: s.Equal,
		MixedSize: api.MixedSizeState{Supported: m.Supported, Wanted: s.Wanted.MixedSize, Actual: m.Actual, Unavailable: m.Unavailable},
		Scheduler: api.SchedulerState{
			Policies: texts(is.Policies), MinTimeSliceNS: int(is.MinTimeSliceNS), MaxTimeSliceNS: int(is.MaxTimeSliceNS),
			Wanted: schedulerOf(s.Wanted.Scheduler), Actual: schedulerOf(is.Actual), Unavailable: is.Unavailable,
		},
	}
}

func schedulerOf(s *gpu.Scheduler) *api.Scheduler {
	if s == nil {
		return nil
	}
	return &api.Scheduler{Policy: string(s.Policy), TimeSliceNS: int(s.TimeSliceNS), Adaptive: s.Adaptive}
}
