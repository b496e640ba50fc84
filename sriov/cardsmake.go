package sriov

import (
	"context"
	"slices"

	"gpuvirt/gpu"
	"gpuvirt/internal/writer"
)

// Make gives VFIO a GPU and all that goes along with it, and returns the card as read
// back. One that VFIO has already is returned.
func (b *Cards) Make(ctx context.Context, want gpu.Partition) (gpu.Partition, error) {
	made, err := b.make(ctx, want)
	if err != nil {
		return gpu.Partition{}, writer.Wrap(b.gone(want.GPU, err), "cannot make partition %q on gpu %q", want.ID, want.GPU)
	}
	return made, nil
}

func (b *Cards) make(ctx context.Context, want gpu.Partition) (gpu.Partition, error) {
	give, err := b.begin(ctx, want)
	if err != nil {
		return gpu.Partition{}, err
	}
	defer give()
	if want.Profile == "" {
		return gpu.Partition{}, gpu.Errorf(gpu.CodeInvalid, "it names no profile")
	}
	f, with, err := b.card(want.GPU, want.Profile)
	if err != nil {
		return gpu.Partition{}, err
	}
	if want.Parent != "" && want.Parent != f.address {
		return gpu.Partition{}, gpu.Errorf(gpu.CodeInvalid, "%q is not the gpu that is to be given whole", want.Parent)
	}
	all := append([]function{f}, with...)
	if !slices.ContainsFunc(all, func(g function) bool { return !g.vfio }) {
		return cardPartition(f, with), nil
	}
	if !f.vfio {
		if refusal, err := b.refusal(f, with); err != nil {
			return gpu.Partition{}, err
		} else if refusal != nil {
			return gpu.Partition{}, refusal
		}
	}
	if err := b.take(ctx, want.GPU, all, want.FormerDrivers); err != nil {
		return gpu.Partition{}, err
	}
	f, err = b.read(f.address)
	return cardPartition(f, with), err
}

// begin checks that a partition is one of ours, and takes the GPU's turn.
func (b *Cards) begin(ctx context.Context, p gpu.Partition) (give func(), err error) {
	slot, err := place(p, gpu.KindCard)
	switch {
	case err != nil:
		return nil, err
	case slot != 0:
		return nil, gpu.Errorf(gpu.CodeInvalid, "a gpu is one card: its slot is %s", cardSlot)
	}
	return b.w.Take(ctx, p.GPU)
}

// Remove takes a GPU and what goes along with it from VFIO and gives each the driver
// back that it had. What VFIO does not have is fine, and gets its driver where it was left
// without. What the caller has to make sure of is as with Functions.
func (b *Cards) Remove(ctx context.Context, p gpu.Partition) error {
	if err := b.remove(ctx, p); err != nil {
		return writer.Wrap(err, "cannot remove partition %q from gpu %q", p.ID, p.GPU)
	}
	return nil
}

func (b *Cards) remove(ctx context.Context, want gpu.Partition) error {
	give, err := b.begin(ctx, want)
	if err != nil {
		return err
	}
	defer give()
	f, with, err := b.card(want.GPU, "")
	if err = b.gone(want.GPU, err); gpu.CodeOf(err) == gpu.CodeNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	if f.vfio && want.Profile != "" && want.Profile != cardProfile(f) {
		return gpu.Errorf(gpu.CodeConflict, "it has profile %q, not %q", cardProfile(f), want.Profile)
	}
	// What had VFIO before it was taken keeps it, and what we know nothing of goes with its
	// GPU. Where the GPU has gone back already, only the record tells what is ours.
	var back, rest []function
	for _, g := range append([]function{f}, with...) {
		was, known := want.FormerDrivers[g.address]
		switch {
		case !g.vfio:
			rest = append(rest, g)
		case g.address == f.address, known && !isVFIO(was), want.FormerDrivers == nil && f.vfio:
			back = append(back, g)
		}
	}
	if err := b.unused(ctx, f, back); err != nil {
		return err
	}
	errs := []error{b.give(ctx, want.GPU, back, want.FormerDrivers)}
	for _, g := range rest {
		if gpu.CodeOf(errs[0]) != gpu.CodeStuck {
			errs = append(errs, b.finish(ctx, want.GPU, g, want.FormerDrivers))
		}
	}
	return joined(errs)
}

// unused asks about each function of a card that is to go back, before the first one
// goes: VFIO gives them out one by one, and whoever has the sound of a card in a group of
// its own has not told the card of it.
func (b *Cards) unused(ctx context.Context, f function, back []function) error {
	if b.opts.Unused == nil {
		return nil
	}
	for _, g := range back {
		p := cardPartition(f, nil)
		p.Handle, p.IOMMUGroup = gpu.Handle{PCIAddress: g.address}, g.group
		err := b.opts.Unused(ctx, p)
		switch {
		case err == nil:
		case g.address == f.address:
			return err
		default:
			return gpu.Wrap(err, gpu.CodeGPUBusy, "function %s, which goes with it", g.address)
		}
	}
	return nil
}
