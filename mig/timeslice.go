package mig

import (
	"cmp"
	"context"
	"errors"
	"time"

	"gpuvirt/gpu"
)

// A Timeslicer is what a Device tells of how vGPUs share it by time, and takes. All of it
// is lost when the driver lets go of the GPU.
type Timeslicer interface {
	// SchedulerCapabilities are what its scheduler can be: ErrNotSupported where the driver
	// is not for hosts of VMs, ErrFunctionNotFound from a library that cannot tell.
	SchedulerCapabilities() (SchedulerCapabilities, error)
	// Scheduler is the policy in force, with a time slice and Adaptive where it has them;
	// ErrNotSupported where MIG is on.
	Scheduler() (gpu.Scheduler, error)
	// SetScheduler sets it; ErrNotSupported while there is a vGPU or MIG is on,
	// ErrResetRequired where the GPU is of no use before a reboot.
	SetScheduler(want gpu.Scheduler) error
	// MixedSize tells whether vGPUs may differ in size; ErrNotSupported where MIG is on, or
	// the GPU has no such mode.
	MixedSize() (MixedSize, error)
	// SetMixedSize turns it on or off; ErrInUse while there is a vGPU, ErrNotSupported where
	// MIG is on.
	SetMixedSize(on bool) error
	// Placements lists where vGPUs of a type may begin while MixedSize is on;
	// ErrFunctionNotFound from a library that cannot tell.
	Placements(typ uint32) (gpu.VGPUPlacements, error)
}

// MixedSize is whether a GPU can have vGPUs of different sizes, and may now.
type MixedSize struct{ Supported, On bool }

// SchedulerCapabilities are what the scheduler of a GPU can be.
type SchedulerCapabilities struct {
	Policies                       []gpu.SchedulerPolicy
	MinTimeSliceNS, MaxTimeSliceNS uint32
	Adaptive                       bool // it has adaptive round robin
}

var _ gpu.Timeslicer = (*Backend)(nil)

// withDevice runs f on a GPU that NVIDIA's driver has, whether or not MIG can cut it, in
// a session, and then after.
func withDevice[T any](b *Backend, id gpu.ID, limit time.Duration, f func(Device) (T, error), after func()) (T, error) {
	var zero T
	none := gpu.Errorf(gpu.CodeNotFound, "NVIDIA's driver has no such gpu")
	a, err := gpu.ParseAddress(string(id))
	if err != nil || a.ID() != id {
		after()
		return zero, none
	}
	return ask(b, limit, func(s Session) (T, error) {
		d, err := s.Device(a)
		if errors.Is(err, ErrNotFound) {
			return zero, none
		}
		if err != nil {
			return zero, err
		}
		return f(d)
	}, after)
}

// changeDevice is withDevice for a change, when it is its turn.
func changeDevice(ctx context.Context, b *Backend, id gpu.ID, f func(Device) error) error {
	if err := b.stuck(); err != nil {
		return err // a turn that is not given back is not waited for
	}
	give, err := b.take(ctx)
	if err != nil {
		return err
	}
	limit := b.opts.ChangeTimeout
	if end, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(end))
	}
	_, err = withDevice(b, id, limit, func(d Device) (struct{}, error) { return struct{}{}, f(d) }, give)
	return noDriver(err)
}

// noDriver makes of a driver that is not there a GPU that is not, as far as can be told.
func noDriver(err error) error {
	if gpu.CodeOf(err) == gpu.CodeDriverMissing {
		return gpu.Errorf(gpu.CodeNotFound, "NVIDIA's driver has no such gpu: %w", err)
	}
	return err
}

// Timeslicing reads how the vGPUs of a GPU share it by time.
func (b *Backend) Timeslicing(_ context.Context, id gpu.ID) (gpu.Timeslicing, error) {
	out, err := withDevice(b, id, b.opts.ReadTimeout, timeslicing, nothing)
	if err != nil {
		return gpu.Timeslicing{}, failure(noDriver(err), "cannot read how vGPUs share gpu %q", id)
	}
	return out, nil
}

func timeslicing(d Device) (out gpu.Timeslicing, err error) {
	mode, err := d.Mode()
	if err != nil {
		return out, err
	}
	out.MIG = mode.Current
	if out.Scheduler, err = schedulerState(d, mode.Current); err != nil {
		return out, err
	}
	mixed, err := d.MixedSize()
	if err != nil {
		out.MixedSize.Unavailable, err = untold(err, mode.Current, "mixed sizes of vGPUs")
		return out, err
	}
	out.MixedSize = gpu.MixedSizeState{Supported: mixed.Supported, Actual: &mixed.On}
	if !mixed.Supported {
		out.MixedSize.Unavailable = "NVIDIA's driver has no mixed sizes of vGPUs for this gpu"
	}
	return out, nil
}

// untold is why the driver does not tell something, or the error that it is.
func untold(err error, mig bool, what string) (string, error) {
	switch {
	case errors.Is(err, ErrFunctionNotFound):
		return "NVIDIA's driver is too old: " + err.Error(), nil
	case !errors.Is(err, ErrNotSupported) && !errors.Is(err, ErrInvalidArgument): // which of them says so differs
		return "", err
	case mig:
		return "MIG is on", nil
	default:
		return "NVIDIA's driver has no " + what + " for this gpu", nil
	}
}

func schedulerState(d Device, mig bool) (s gpu.SchedulerState, err error) {
	can, err := d.SchedulerCapabilities()
	if err != nil {
		s.Unavailable, err = untold(err, mig, "scheduler of vGPUs")
		return s, err
	}
	s.Policies, s.MinTimeSliceNS, s.MaxTimeSliceNS = can.Policies, can.MinTimeSliceNS, can.MaxTimeSliceNS
	is, err := d.Scheduler()
	if err != nil {
		s.Unavailable, err = untold(err, mig, "scheduler of vGPUs")
		return s, err
	}
	s.Actual = &is
	return s, nil
}

// SetScheduler sets how the vGPUs of a GPU get its time, and looks whether it is so then.
func (b *Backend) SetScheduler(ctx context.Context, id gpu.ID, want gpu.Scheduler) error {
	changed := false
	err := changeDevice(ctx, b, id, func(d Device) error {
		is, err := d.Scheduler()
		if err == nil && is.Is(want) {
			return nil
		}
		if err := d.SetScheduler(want); err != nil {
			return err
		}
		changed = true
		if is, err = d.Scheduler(); err != nil {
			return err
		}
		if !is.Is(want) {
			return gpu.Errorf(gpu.CodeUnavailable, "the driver has taken it, and it is %s", is)
		}
		return nil
	})
	if err != nil {
		return failure(refusal(err), "cannot set the scheduler of gpu %q to %s", id, want)
	}
	if changed {
		b.opts.Log.Info("scheduler of vGPUs set", "gpu", id, "scheduler", want.String())
	}
	return nil
}

// SetMixedSize sets whether vGPUs of a GPU may differ in size, and looks whether it is so
// then.
func (b *Backend) SetMixedSize(ctx context.Context, id gpu.ID, on bool) error {
	word := map[bool]string{true: "on", false: "off"}[on]
	changed := false
	err := changeDevice(ctx, b, id, func(d Device) error {
		is, err := d.MixedSize()
		if err == nil && is.On == on {
			return nil
		}
		if err := d.SetMixedSize(on); err != nil {
			return err
		}
		changed = true
		if is, err = d.MixedSize(); err != nil {
			return err
		}
		if is.On != on {
			return gpu.Errorf(gpu.CodeUnavailable, "the driver has taken it, and it is not so")
		}
		return nil
	})
	if err != nil {
		return failure(refusal(err), "cannot turn mixed sizes of vGPUs %s on gpu %q", word, id)
	}
	if changed {
		b.opts.Log.Info("mixed sizes of vGPUs set", "gpu", id, "on", on)
	}
	return nil
}

// Placements lists where vGPUs of each type that shares a GPU by time may begin, while
// they may differ in size. A type whose places the driver does not tell is left out.
func (b *Backend) Placements(_ context.Context, id gpu.ID) ([]gpu.VGPUPlacements, error) {
	out, err := withDevice(b, id, b.opts.ReadTimeout, func(d Device) (out []gpu.VGPUPlacements, err error) {
		types, err := d.VGPUTypes()
		if err != nil {
			return nil, err
		}
		var refused error
		for _, t := range types {
			if t.GPUInstanceProfile != nil {
				continue
			}
			p, err := d.Placements(t.ID)
			if err != nil {
				b.opts.Log.Debug("the places of a vGPU type are not told", "gpu", id, "type", t.Name, "err", err)
				refused = cmp.Or(refused, err)
				continue
			}
			out = append(out, p)
		}
		if len(out) > 0 {
			refused = nil
		}
		return out, refused
	}, nothing)
	if err != nil {
		return nil, failure(refusal(err), "cannot list the places of vGPUs on gpu %q", id)
	}
	return out, nil
}

// refusal says of what the driver answers to a setting of vGPUs what it means.
func refusal(err error) error {
	ret, ok := errors.AsType[Return](err)
	if !ok || gpu.CodeOf(err) != gpu.CodeInternal {
		return err
	}
	switch ret { //nolint:exhaustive // the others are as they are
	case ErrNotSupported, ErrInUse:
		return gpu.Errorf(gpu.CodeGPUBusy, "the driver refuses it while there is a vGPU or MIG is on: %w", err)
	case ErrResetRequired:
		return gpu.Errorf(gpu.CodeNeedsReboot, "it has failed so that the host has to be rebooted: %w", err)
	case ErrInvalidArgument:
		return gpu.Errorf(gpu.CodeInvalid, "the driver does not take it: %w", err)
	case ErrFunctionNotFound:
		return gpu.Errorf(gpu.CodeDriverMismatch, "NVIDIA's driver is too old: %w", err)
	default:
		return err
	}
}
