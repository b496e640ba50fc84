package mig

import (
	"context"
	"path"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"gpuvirt/gpu"
	"gpuvirt/internal/pci"
)

var _ gpu.Monitor = (*Backend)(nil)

// Modes reads the modes of NVIDIA's GPUs, whether MIG can cut them or not, in one
// session. Those that are others', and those that do not tell, are left out.
func (b *Backend) Modes(ctx context.Context, ids ...gpu.ID) (map[gpu.ID]gpu.Modes, error) {
	addresses := b.ours(ids)
	if len(addresses) == 0 {
		return nil, nil
	}
	out, err := glance(ctx, b, func(s Session) (map[gpu.ID]gpu.Modes, error) {
		out := map[gpu.ID]gpu.Modes{}
		for _, a := range addresses {
			d, err := s.Device(a)
			if err != nil {
				continue // another driver has it
			}
			if m, err := d.Modes(); err == nil {
				out[a.ID()] = m
			}
		}
		return out, nil
	})
	if err != nil {
		return nil, failure(err, "cannot read the modes of gpus")
	}
	return out, nil
}

// ours keeps the GPUs of NVIDIA.
func (b *Backend) ours(ids []gpu.ID) (out []gpu.Address) {
	for _, id := range ids {
		a, err := gpu.ParseAddress(string(id))
		if err != nil || a.ID() != id {
			continue
		}
		if maker, err := b.fs.Read(path.Join(pci.Devices, string(id), "vendor")); err == nil && maker == vendor {
			out = append(out, a)
		}
	}
	return out
}

// glance is ask for what is left out where it takes long. The library is waited for as
// ever, only not by whoever has asked; and one such question is asked at a time, so that
// they do not pile up before a library that is slow.
func glance[T any](ctx context.Context, b *Backend, f func(Session) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, b.opts.GlanceTimeout)
	defer cancel()
	var none T
	late := gpu.Errorf(gpu.CodeUnavailable, "NVIDIA's library has not answered within %s", b.opts.GlanceTimeout.Round(time.Millisecond))
	select {
	case b.glance <- struct{}{}:
	case <-ctx.Done():
		return none, late
	}
	type answer struct {
		value T
		err   error
	}
	answers := make(chan answer, 1)
	go func() {
		v, err := ask(b, b.opts.ReadTimeout, f, func() { <-b.glance })
		answers <- answer{v, err}
	}()
	select {
	case a := <-answers:
		return a.value, a.err
	case <-ctx.Done():
		return none, late
	}
}

// Modes asks for each mode where the library has the function. A library without is of
// use for all else.
func (d device) Modes() (m gpu.Modes, err error) {
	if d.in.has("nvmlDeviceGetEccMode") {
		current, pending, ret := d.GetEccMode()
		switch {
		case ret == nvml.SUCCESS:
			m.ECC = &gpu.ECC{Current: current == nvml.FEATURE_ENABLED, Pending: pending == nvml.FEATURE_ENABLED}
		case !unavailable(ret):
			return m, check(ret)
		}
	}
	if d.in.has("nvmlDeviceGetComputeMode") {
		mode, ret := d.GetComputeMode()
		switch {
		case ret == nvml.SUCCESS:
			m.Compute = computeModes[mode]
		case !unavailable(ret):
			return m, check(ret)
		}
	}
	return m, nil
}

// computeModes leaves out the one that drivers have long ceased to have, one thread at
// a time.
var computeModes = map[nvml.ComputeMode]gpu.ComputeMode{
	nvml.COMPUTEMODE_DEFAULT:           gpu.ComputeDefault,
	nvml.COMPUTEMODE_EXCLUSIVE_PROCESS: gpu.ComputeExclusive,
	nvml.COMPUTEMODE_PROHIBITED:        gpu.ComputeProhibited,
}
