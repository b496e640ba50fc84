package mig

import (
	"context"
	"errors"
	"slices"
	"time"

	"gpuvirt/gpu"
)

// RunningVGPUs lists the vGPUs of a GPU of NVIDIA's that run in VMs, in one session.
func (b *Backend) RunningVGPUs(ctx context.Context, id gpu.ID) ([]gpu.RunningVGPU, error) {
	none := gpu.Errorf(gpu.CodeNotFound, "NVIDIA's driver has no such gpu")
	ours := b.ours([]gpu.ID{id})
	if len(ours) == 0 {
		return nil, failure(none, "cannot list the running vGPUs of gpu %q", id)
	}
	out, err := glance(ctx, b, func(s Session) ([]gpu.RunningVGPU, error) {
		d, err := s.Device(ours[0])
		if errors.Is(err, ErrNotFound) {
			return nil, none
		}
		if err != nil {
			return nil, err
		}
		return running(d)
	})
	if err != nil {
		return nil, failure(err, "cannot list the running vGPUs of gpu %q", id)
	}
	return out, nil
}

func running(d Device) ([]gpu.RunningVGPU, error) {
	all, err := d.VGPUs()
	if err != nil || len(all) == 0 {
		return nil, err
	}
	samples, err := d.VGPUSamples()
	if err != nil {
		return nil, err
	}
	out := make([]gpu.RunningVGPU, 0, len(all))
	for _, v := range all {
		v.Observed.Usage = usage(v, samples)
		out = append(out, v.RunningVGPU)
	}
	return out, nil
}

// recent is the time before the last sample of a vGPU over which its usage is the mean:
// single samples jump, and the driver keeps those of many seconds.
const recent = 5 * time.Second

// usage adds to the memory that a vGPU uses the shares that were sampled of it.
func usage(v ActiveVGPU, samples []VGPUSample) *gpu.Usage {
	out := gpu.Usage{}
	if v.Observed.Usage != nil {
		out = *v.Observed.Usage
	}
	own, last := lately(v.ID, samples)
	mean := func(of func(VGPUSample) int) *float64 {
		sum, n := 0, 0
		for _, s := range own {
			if of(s) >= 0 {
				sum, n = sum+of(s), n+1
			}
		}
		if n == 0 {
			return nil
		}
		ratio := min(float64(sum)/float64(n)/100, 1)
		return &ratio
	}
	out.SM = mean(func(s VGPUSample) int { return s.SM })
	out.Memory = mean(func(s VGPUSample) int { return s.Memory })
	out.Encoder = mean(func(s VGPUSample) int { return s.Encoder })
	out.Decoder = mean(func(s VGPUSample) int { return s.Decoder })
	if len(own) > 0 && time.Since(last).Abs() < 24*time.Hour { // else it is no time of day
		out.Sampled = last
	}
	if out == (gpu.Usage{}) {
		return nil
	}
	return &out
}

// lately keeps the last samples of a vGPU, with the time of the very last. Number 0 is
// none.
func lately(id uint32, samples []VGPUSample) (own []VGPUSample, last time.Time) {
	for _, s := range samples {
		if s.VGPU == id && id != 0 {
			own = append(own, s)
		}
	}
	for _, s := range own {
		if s.Time.After(last) {
			last = s.Time
		}
	}
	return slices.DeleteFunc(own, func(s VGPUSample) bool { return s.Time.Before(last.Add(-recent)) }), last
}
