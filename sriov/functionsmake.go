package sriov

import (
	"context"
	"errors"
	"slices"
	"strconv"

	"gpuvirt/gpu"
	"gpuvirt/internal/writer"
)

// Make gives VFIO the virtual function that the partition's place names, and returns it
// as read back. One that VFIO has already is returned.
func (b *Functions) Make(ctx context.Context, want gpu.Partition) (gpu.Partition, error) {
	made, err := b.make(ctx, want)
	if err != nil {
		return gpu.Partition{}, writer.Wrap(b.gone(want.GPU, err), "cannot make partition %q on gpu %q", want.ID, want.GPU)
	}
	return made, nil
}

func (b *Functions) make(ctx context.Context, want gpu.Partition) (gpu.Partition, error) {
	index, err := place(want, gpu.KindVF)
	if err != nil {
		return gpu.Partition{}, err
	}
	give, err := b.w.Take(ctx, want.GPU)
	if err != nil {
		return gpu.Partition{}, err
	}
	defer give()
	c, err := b.carrier(want.GPU)
	if err != nil {
		return gpu.Partition{}, err
	}
	if want.Profile != c.profile() {
		return gpu.Partition{}, unknownProfile(want.Profile, c.profile())
	}
	vf, err := c.at(index, want)
	if err != nil {
		return gpu.Partition{}, err
	}
	if vf.vfio {
		return c.partition(vf), nil
	}
	if refusal, err := b.refusal(vf); err != nil || refusal != nil {
		return gpu.Partition{}, errors.Join(err, refusal)
	}
	if err := b.take(ctx, want.GPU, []function{vf}, want.FormerDrivers); err != nil {
		return gpu.Partition{}, err
	}
	made, err := b.read(vf.address)
	made.index = vf.index
	return c.partition(made), err
}

// place reads the slot of a partition that is known by its place.
func place(p gpu.Partition, kind gpu.Kind) (int, error) {
	if p.Kind != "" && p.Kind != kind {
		return 0, gpu.Errorf(gpu.CodeInvalid, "%q is no kind that is made here", p.Kind)
	}
	slot, err := strconv.ParseUint(p.Slot, 10, 16)
	if err != nil || p.ID != partitionID(p.GPU, kind, p.Slot) {
		return 0, gpu.Errorf(gpu.CodeInvalid, "its id is not that of its slot %q: want %s", p.Slot, partitionID(p.GPU, kind, "<n>"))
	}
	return int(slot), nil
}

// at finds the virtual function that a partition means.
func (c carrier) at(index int, want gpu.Partition) (function, error) {
	i := slices.IndexFunc(c.virtuals, func(vf function) bool { return vf.index == index })
	switch {
	case len(c.virtuals) == 0:
		// Just after boot they are still to come.
		return function{}, gpu.Errorf(gpu.CodeUnavailable, "none of its %d virtual functions is on", c.total)
	case i < 0:
		return function{}, c.full()
	case want.Parent != "" && want.Parent != c.virtuals[i].address:
		err := gpu.Errorf(gpu.CodeConflict, "virtual function %d is %s, not %s", index, c.virtuals[i].address, want.Parent)
		err.Diff = map[string][2]string{"parent": {c.virtuals[i].address, want.Parent}}
		return function{}, err
	}
	return c.virtuals[i], nil
}

// Remove takes a virtual function from VFIO and gives it the driver back that it had.
// One that VFIO does not have is fine, and gets its driver where it was left without.
//
// The kernel waits for whoever has the function open, and nothing cancels that: the
// caller has made sure that nobody has. If somebody has all the same, the GPU is stuck
// until they let go.
func (b *Functions) Remove(ctx context.Context, p gpu.Partition) error {
	if err := b.remove(ctx, p); err != nil {
		return writer.Wrap(err, "cannot remove partition %q from gpu %q", p.ID, p.GPU)
	}
	return nil
}

func (b *Functions) remove(ctx context.Context, want gpu.Partition) error {
	index, err := place(want, gpu.KindVF)
	if err != nil {
		return err
	}
	give, err := b.w.Take(ctx, want.GPU)
	if err != nil {
		return err
	}
	defer give()
	c, err := b.carrier(want.GPU)
	if err = b.gone(want.GPU, err); gpu.CodeOf(err) == gpu.CodeNotFound {
		return nil // and with it its virtual functions
	}
	if err != nil {
		return err
	}
	i := slices.IndexFunc(c.virtuals, func(vf function) bool { return vf.index == index })
	if i < 0 {
		return nil
	}
	vf, err := c.at(index, want)
	if err != nil {
		return err
	}
	if !vf.vfio {
		return b.finish(ctx, want.GPU, vf, want.FormerDrivers)
	}
	if want.Profile != "" && want.Profile != c.profile() {
		return gpu.Errorf(gpu.CodeConflict, "it has profile %q, not %q", c.profile(), want.Profile)
	}
	if b.opts.Unused != nil {
		if err := b.opts.Unused(ctx, c.partition(vf)); err != nil {
			return err
		}
	}
	return b.give(ctx, want.GPU, []function{vf}, want.FormerDrivers)
}

// finish brings to an end what was broken off in the middle: a function of ours that
// VFIO does not have, without the driver that it had or still with our override.
func (b *bus) finish(ctx context.Context, id gpu.ID, f function, drivers map[string]string) error {
	was, ours := drivers[f.address]
	if !ours || isVFIO(was) {
		return nil // what it is now is nothing that we remember
	}
	override, err := b.overrideOf(f)
	if err != nil || override != vfioPCI && (f.driver != "" || was == "" && f.virtual) {
		return err
	}
	return b.give(ctx, id, []function{f}, drivers)
}
