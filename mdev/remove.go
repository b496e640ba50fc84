package mdev

import (
	"context"
	"errors"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/writer"
)

// Remove removes a device and waits until it is gone; one that is not there is
// fine. A device of that UUID on another GPU or of another profile is not the one
// that was meant, and stays.
//
// The kernel blocks the removal of a device that a process holds, and nothing
// cancels it: the caller has made sure that nobody does. If somebody does all the
// same, the GPU is stuck until they let go.
func (b *Backend) Remove(ctx context.Context, p gpu.Partition) error {
	if err := b.remove(ctx, p); err != nil {
		return writer.Wrap(err, "cannot remove partition %q from gpu %q", p.ID, p.GPU)
	}
	return nil
}

func (b *Backend) remove(ctx context.Context, want gpu.Partition) error {
	uuid, err := uuidOf(want)
	if err != nil {
		return err
	}
	if err := b.writes.Refuse(want.GPU); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return writer.Interrupted(ctx)
	}
	d, ok, err := b.device(uuid)
	if err != nil || !ok {
		return err
	}
	if err := b.meant(d, want); err != nil {
		return err
	}
	// Without the turn: others may use the GPU while this waits.
	if gone, err := b.vanishes(ctx, d); gone || err != nil {
		return err
	}
	give, err := b.writes.Take(ctx, want.GPU)
	if err != nil {
		return err
	}
	defer give()
	// Somebody may have taken it while this waited.
	if err := b.unused(ctx, want.GPU, d); err != nil {
		return err
	}
	return b.destroy(ctx, want.GPU, uuid)
}

// unused asks whether a device may go; one that has gone may.
func (b *Backend) unused(ctx context.Context, id gpu.ID, d device) error {
	if b.opts.Unused == nil {
		return nil
	}
	d, ok, err := b.device(d.uuid)
	if err != nil || !ok {
		return err
	}
	p, err := b.parent(id)
	if err != nil {
		return err
	}
	at, here := p.place(d.parentDir())
	if !here {
		return gpu.Errorf(gpu.CodeConflict, "it is on %q", path.Base(d.parentDir()))
	}
	names, err := b.names(at)
	if err != nil {
		return err
	}
	device, err := b.partition(at, d, names)
	if err != nil {
		return err
	}
	return b.opts.Unused(ctx, device)
}

// meant refuses a device that has our UUID but is not what we made. A type that
// was renumbered by a driver is still the same if its name is.
func (b *Backend) meant(d device, want gpu.Partition) error {
	p, err := b.parent(want.GPU)
	if err != nil {
		return err
	}
	at, here := p.place(d.parentDir())
	if !here {
		return gpu.Errorf(gpu.CodeConflict, "it is on %q", path.Base(d.parentDir()))
	}
	names, err := b.names(at)
	if err != nil {
		return err
	}
	have := names[d.native].profile
	if want.Profile != "" && have != "" && have != want.Profile && d.native != want.Native {
		return gpu.Errorf(gpu.CodeConflict, "it has profile %q, not %q", have, want.Profile)
	}
	return nil
}

// vanishes waits for the driver to remove a device by itself, where it may.
func (b *Backend) vanishes(ctx context.Context, d device) (bool, error) {
	if !isNVIDIA(d.native) || b.opts.VanishWait < 0 {
		return false, nil
	}
	patience, cancel := context.WithTimeout(ctx, b.opts.VanishWait)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		ok, err := b.fs.Exists(path.Join(deviceDir, d.uuid))
		if err != nil || !ok {
			return err == nil, err
		}
		if writer.Pause(patience, tick) != nil {
			if ctx.Err() != nil {
				return false, writer.Interrupted(ctx)
			}
			return false, nil
		}
	}
}

// destroy tells the driver to remove a device, and waits until it is gone. It
// needs the GPU's turn.
func (b *Backend) destroy(ctx context.Context, id gpu.ID, uuid string) error {
	limit, cancel := context.WithTimeout(ctx, b.opts.WriteTimeout)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for told := false; ; {
		if !told {
			d, ok, err := b.device(uuid)
			if err != nil || !ok {
				return err
			}
			if told, err = b.tell(limit, id, d); err != nil {
				return err
			}
		}
		ok, err := b.fs.Exists(path.Join(deviceDir, uuid))
		if err != nil || !ok {
			return err
		}
		if writer.Pause(limit, tick) == nil {
			continue
		}
		switch {
		case ctx.Err() != nil:
			return writer.Interrupted(ctx)
		case told:
			return gpu.Errorf(gpu.CodeUnavailable, "the driver accepted the removal, but the device is still there after %s", b.opts.WriteTimeout)
		default:
			return gpu.Errorf(gpu.CodeUnavailable, "the driver was not ready to remove it for %s", b.opts.WriteTimeout)
		}
	}
}

// tell writes to the device's remove file. It returns false if the driver wants
// to be asked again: nothing has been removed then.
func (b *Backend) tell(ctx context.Context, id gpu.ID, d device) (bool, error) {
	err := b.writes.Write(ctx, id, path.Join(d.dir, "remove"), "1")
	if err == nil || isGone(err) {
		return true, nil
	}
	if gpu.CodeOf(err) == gpu.CodeStuck {
		return false, err
	}
	errno, ok := errors.AsType[syscall.Errno](err)
	if !ok {
		return false, unwritten(ctx, err)
	}
	if errno == syscall.EAGAIN || errno == syscall.EINTR {
		return false, nil
	}
	// A driver that removed it meanwhile may fail in any way.
	if ok, eerr := b.fs.Exists(path.Join(deviceDir, d.uuid)); eerr == nil && !ok {
		return true, nil
	}
	if errno == syscall.EBUSY {
		return false, gpu.Errorf(gpu.CodeBusy, "it is in use: %w", err)
	}
	return false, driverError(errno, err)
}

func sortedKeys(m map[string]bool) string {
	return strings.Join(slices.Sorted(maps.Keys(m)), ", ")
}
