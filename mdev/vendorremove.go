package mdev

import (
	"context"
	"errors"
	"path"
	"syscall"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/writer"
)

// clearEvery is how often a driver is told again to remove a vGPU. Its own process for
// the vGPU ends within seconds after the VM.
const clearEvery = time.Second

// Remove takes the vGPU off a virtual function and waits until it is gone; one that is
// not there is fine. A vGPU of another profile is not the one that was meant, and stays:
// functions are used again, and this may be the next owner's.
//
// The driver refuses while a VM has the vGPU, and for some seconds after the VM has
// stopped, with the same answer. So it is told again for a while; then the error is
// CodeGPUBusy.
func (v *Vendor) Remove(ctx context.Context, p gpu.Partition) error {
	if err := v.remove(ctx, p); err != nil {
		return writer.Wrap(err, "cannot remove partition %q from gpu %q", p.ID, p.GPU)
	}
	return nil
}

func (v *Vendor) remove(ctx context.Context, want gpu.Partition) error {
	index, err := placeOf(want)
	if err != nil {
		return err
	}
	patience, cancel := context.WithTimeout(ctx, max(v.opts.ClearWait, 0))
	defer cancel()
	tick := time.NewTicker(clearEvery)
	defer tick.Stop()
	for {
		// The turn is for one try: others may use the GPU while this waits.
		gone, refusal, err := v.clear(ctx, index, want)
		if gone || err != nil {
			return err
		}
		if writer.Pause(patience, tick) == nil {
			continue
		}
		if ctx.Err() != nil {
			return writer.Interrupted(ctx)
		}
		return stays(refusal, max(v.opts.ClearWait, 0))
	}
}

// stays is the error of a vGPU that is still there though the driver was told again and
// again, with what it answered last, nil where it accepted.
func stays(refusal error, wait time.Duration) error {
	if refusal == nil {
		return gpu.Errorf(gpu.CodeUnavailable, "the driver accepted the removal, but the vGPU is still there after %s", wait)
	}
	switch errno, _ := errors.AsType[syscall.Errno](refusal); errno {
	case syscall.EACCES, syscall.EROFS:
		return driverError(errno, refusal)
	default:
		return gpu.Errorf(gpu.CodeGPUBusy, "the driver refuses to let go of it for %s: %w", wait, refusal).
			WithHint("a VM may still have it, or the driver's own process for it: look at the kernel log and at nvidia-vgpu-mgr")
	}
}

// clear tells the driver once to remove the vGPU of a function. It is true if the vGPU
// is gone; else refusal is what the driver answered, nil if it accepted.
func (v *Vendor) clear(ctx context.Context, index int, want gpu.Partition) (gone bool, refusal, err error) {
	give, err := v.writes.Take(ctx, want.GPU)
	if err != nil {
		return false, nil, err
	}
	defer give()
	f, gone, err := v.meant(ctx, index, want)
	if gone || err != nil {
		return gone, nil, err
	}
	if refusal = v.write0(ctx, want.GPU, f); refusal != nil {
		if gpu.CodeOf(refusal) == gpu.CodeStuck {
			return false, nil, refusal
		}
		if _, ok := errors.AsType[syscall.Errno](refusal); !ok {
			return false, nil, unwritten(ctx, refusal)
		}
	}
	// Whatever it answered: what is there now counts. It refuses to remove what is not
	// there, and accepts what it does a little later.
	c, err := v.card(want.GPU)
	if gpu.CodeOf(err) == gpu.CodeNotFound {
		return true, nil, nil
	}
	if err != nil {
		return false, nil, errors.Join(err, refusal)
	}
	now, ok := c.function(index)
	return !ok || now.current == 0, refusal, nil
}

// meant finds the vGPU that is to go and may go; gone is true where there is none.
func (v *Vendor) meant(ctx context.Context, index int, want gpu.Partition) (f vf, gone bool, err error) {
	c, err := v.card(want.GPU)
	if gpu.CodeOf(err) == gpu.CodeNotFound {
		return vf{}, true, nil // without its function there is no vGPU
	}
	if err != nil {
		return vf{}, false, err
	}
	f, ok := c.function(index)
	if !ok || f.current == 0 {
		return vf{}, true, nil
	}
	if err := elsewhere(f, want); err != nil {
		return vf{}, false, err
	}
	have, err := v.partition(ctx, c, f)
	if err != nil {
		return vf{}, false, err
	}
	if !v.means(c, have, want) {
		return vf{}, false, gpu.Errorf(gpu.CodeConflict, "it has profile %q, not %q", have.Profile, want.Profile)
	}
	if v.opts.Unused != nil {
		return f, false, v.opts.Unused(ctx, have)
	}
	return f, false, nil
}

// write0 tells the driver that a function has no vGPU.
func (v *Vendor) write0(ctx context.Context, id gpu.ID, f vf) error {
	ctx, cancel := context.WithTimeout(ctx, v.opts.WriteTimeout)
	defer cancel()
	return v.writes.Write(ctx, id, path.Join(f.dir, currentFile), "0")
}
