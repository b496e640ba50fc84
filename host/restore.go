package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
)

// Restored is what became of one partition at boot.
type Restored struct {
	Record gpu.PartitionRecord
	Made   bool  // it was missing and is there again
	Err    error // why it is not there

	settled bool // it is there, or cannot be: what happens to it later is not ours to judge
}

// Restore puts back, before libvirt starts its guests, every partition that the
// store says was made: same identity, same parent, same type. It waits for parents
// that are not there yet until ctx ends, and goes on with the others meanwhile. It
// writes nothing to the store, and nothing to the kernel where all is there. Before
// them a GPU gets the MIG mode that was asked for, which some lose with the power, its
// virtual functions, which all do, and how its vGPUs share it.
// changed delivers something whenever a parent may have appeared.
func Restore(ctx context.Context, gpus []gpu.GPURecord, records []gpu.PartitionRecord, inv *inventory.Inventory, changed <-chan struct{}, log *slog.Logger) ([]Restored, error) {
	records = slices.DeleteFunc(slices.Clone(records), func(r gpu.PartitionRecord) bool {
		return r.State != gpu.PartitionMade // an unfinished operation brings its own to an end
	})
	done := make([]Restored, len(records))
	for i, r := range records {
		done[i] = Restored{Record: r}
	}
	modes, vfs := map[gpu.ID]error{}, map[gpu.ID]error{}
	for _, g := range gpus {
		if g.Managed && wantsMIG(g, records) {
			modes[g.ID] = errNotTried
		}
		if g.Managed && g.VFs != nil && *g.VFs > 0 && !givenAway(g.ID, records) {
			vfs[g.ID] = errNotTried
		}
	}
	shares := newSharing(gpus, records)
	again := time.NewTicker(restoreEvery)
	defer again.Stop()
	for {
		// In this order: turning virtual functions on binds NVIDIA's driver anew, which
		// takes MIG instances with it, and the mode cannot be changed once they are on.
		waiting := restoreModes(ctx, gpus, modes, inv, log)
		waiting = restoreVFs(ctx, gpus, modes, vfs, inv, log) || waiting
		waiting = shares.restore(ctx, gpus, vfs, inv, log) || waiting
		if !restoreAll(ctx, done, modes, vfs, shares, inv, log) && !waiting {
			break
		}
		select {
		case <-changed:
			continue
		case <-again.C:
			continue
		case <-shares.wake(): // not to miss the end of all
			continue
		case <-ctx.Done():
		}
		break
	}
	var errs []error
	for _, g := range gpus {
		if modes[g.ID] != nil {
			errs = append(errs, fmt.Errorf("cannot restore the MIG mode of gpu %s: %w", g.ID, modes[g.ID]))
		}
		if vfs[g.ID] != nil {
			errs = append(errs, fmt.Errorf("cannot restore the virtual functions of gpu %s: %w", g.ID, vfs[g.ID]))
		}
		errs = append(errs, shares.errs(g.ID)...)
	}
	for _, d := range done {
		if d.Err != nil {
			errs = append(errs, fmt.Errorf("cannot restore partition %s (%s on %s, assignment %q): %w",
				d.Record.ID, d.Record.Profile, d.Record.GPU, d.Record.Assignment, d.Err))
		}
	}
	return done, errors.Join(errs...)
}

// givenAway reports whether a card goes to a VM whole: it has no functions of its own then.
func givenAway(id gpu.ID, records []gpu.PartitionRecord) bool {
	return slices.ContainsFunc(records, func(r gpu.PartitionRecord) bool { return r.GPU == id && r.Kind == gpu.KindCard })
}

// restoreEvery is how often what is not there is tried again without being told of a
// change: nothing tells that a program has let go of a GPU.
const restoreEvery = 2 * time.Second

// wantsMIG reports whether a GPU is to have MIG on: because that was asked for, or
// because instances were.
func wantsMIG(g gpu.GPURecord, records []gpu.PartitionRecord) bool {
	return g.MIG != nil && *g.MIG || slices.ContainsFunc(records, func(r gpu.PartitionRecord) bool {
		return r.GPU == g.ID && r.Kind == gpu.KindMIG
	})
}

var errNotTried = gpu.Errorf(gpu.CodeUnavailable, "not tried yet")

// restoreModes turns MIG on where it was asked for and is off, and reports whether one
// waits for its GPU to appear.
func restoreModes(ctx context.Context, gpus []gpu.GPURecord, modes map[gpu.ID]error, inv *inventory.Inventory, log *slog.Logger) bool {
	return restoreEach(gpus, modes, func(g gpu.GPURecord) (bool, error) { return restoreMode(ctx, g, inv) },
		func(g gpu.GPURecord, err error) {
			if err != nil {
				log.Error("cannot restore the MIG mode", "gpu", g.ID, "err", err)
			} else {
				log.Info("MIG mode restored", "gpu", g.ID)
			}
		})
}

// restoreEach tries for each GPU that still lacks something, and reports whether one is
// waited for. What failed for good is not tried again: of a MIG mode that would be a
// reset tried again. tell hears of what was changed, and of what failed for good.
func restoreEach(
	gpus []gpu.GPURecord, lacks map[gpu.ID]error, try func(gpu.GPURecord) (changed bool, err error), tell func(gpu.GPURecord, error),
) bool {
	waiting := false
	for _, g := range gpus {
		if err := lacks[g.ID]; err == nil || !comesLater(gpu.CodeOf(err)) {
			continue
		}
		changed, err := try(g)
		lacks[g.ID] = err
		switch {
		case err != nil && comesLater(gpu.CodeOf(err)):
			waiting = true
		case changed, err != nil:
			tell(g, err)
		}
	}
	return waiting
}

// lookAgain reads the GPU of a record, or says that another card is there.
func lookAgain(ctx context.Context, inv *inventory.Inventory, id gpu.ID, was gpu.Identity) (inventory.Look, error) {
	l, err := inv.Look(ctx, id)
	if err == nil && !sameCard(was, l.GPU.Identity) {
		err = gpu.Errorf(gpu.CodeDrift, "another card (%s) is where %s was", describe(l.GPU.Identity), describe(was))
	}
	return l, err
}

func restoreMode(ctx context.Context, r gpu.GPURecord, inv *inventory.Inventory) (changed bool, err error) {
	b, err := inv.Backend(gpu.KindMIG)
	if err != nil {
		return false, err
	}
	c, ok := b.(gpu.Cutter)
	if !ok {
		return false, gpu.Errorf(gpu.CodeInvalid, "nothing on this host can turn MIG on")
	}
	l, err := lookAgain(ctx, inv, r.ID, r.Identity)
	switch {
	case err != nil:
		return false, err
	case l.Err != nil:
		return false, l.Err
	case !l.GPU.MIG.Capable:
		return false, gpu.Errorf(gpu.CodeNotFound, "MIG cannot cut it, as far as can be told")
	case l.GPU.MIG.Current:
		return false, nil
	}
	err = c.SetMode(ctx, r.ID, true)
	return err == nil, err
}

// comesLater reports whether what failed may go well when a device has appeared:
// absent just after boot is not gone. One in use may be a monitor that starts as well.
func comesLater(code gpu.Code) bool {
	return code == gpu.CodeNotFound || code == gpu.CodeUnavailable || code == gpu.CodeProfileUnknown || code == gpu.CodeGPUBusy
}

// restoreAll tries each that is not there, and reports whether one waits for its
// parent to appear.
func restoreAll(ctx context.Context, done []Restored, modes, vfs map[gpu.ID]error, shares *sharing, inv *inventory.Inventory, log *slog.Logger) bool {
	waiting := false
	var late []gpu.PartitionRecord
	for _, i := range openersFirst(ctx, shares.order(ctx, done, inv), done, inv) {
		d := &done[i]
		if d.settled {
			continue
		}
		var p gpu.Partition
		if p, d.settled = presentNow(ctx, d.Record, inv); d.settled {
			// Whoever else made it, or died while making it, has not given it what it is to have.
			if d.Err = nil; d.Record.Params != "" && !gpu.SameVGPUParams(d.Record.Params, p.Params) {
				d.Err = restoreOne(ctx, d.Record, inv)
			}
			continue
		}
		if mode := modes[d.Record.GPU]; mode != nil && d.Record.Kind == gpu.KindMIG {
			d.Err = fmt.Errorf("the MIG mode of its gpu is not restored: %w", mode)
			d.settled = !comesLater(gpu.CodeOf(mode))
			continue
		}
		if r, ok := instanceAwaited(done, d.Record); ok { // it may be what this one stands on
			d.Err = gpu.Errorf(gpu.CodeUnavailable, "MIG instance %s of its gpu is not restored", r.ID)
			waiting = true
			continue
		}
		if err := vfs[d.Record.GPU]; err != nil { // what is made before they are on may go with it
			d.Err = fmt.Errorf("the virtual functions of its gpu are not restored: %w", err)
			d.settled = !comesLater(gpu.CodeOf(err))
			continue
		}
		if err := shares.missing(d.Record); err != nil { // it could not be set beside this one
			d.Err, d.settled = err, !comesLater(gpu.CodeOf(err))
			waiting = waiting || !d.settled
			continue
		}
		if err := shares.behind(ctx, d.Record, late); err != nil {
			d.Err, waiting = err, true
			continue
		}
		d.Err = restoreOne(ctx, d.Record, inv)
		switch code := gpu.CodeOf(d.Err); {
		case d.Err == nil:
			d.Made, d.settled = true, true
			log.Info("partition restored", "partition", d.Record.ID, "gpu", d.Record.GPU, "profile", d.Record.Profile)
		case comesLater(code):
			waiting, late = true, append(late, d.Record)
		default:
			d.settled = true
			log.Error("cannot restore partition", "partition", d.Record.ID, "gpu", d.Record.GPU, "err", d.Err)
		}
	}
	return waiting
}

// instanceAwaited returns a MIG instance of the same GPU that is still to come before a
// partition of another kind.
func instanceAwaited(done []Restored, r gpu.PartitionRecord) (gpu.PartitionRecord, bool) {
	for _, d := range done {
		if d.Record.GPU == r.GPU && d.Record.Kind == gpu.KindMIG && r.Kind != gpu.KindMIG && !d.settled {
			return d.Record, true
		}
	}
	return gpu.PartitionRecord{}, false
}

func presentNow(ctx context.Context, r gpu.PartitionRecord, inv *inventory.Inventory) (gpu.Partition, bool) {
	b, err := inv.Backend(r.Kind)
	if err != nil {
		return gpu.Partition{}, false
	}
	ps, err := b.Partitions(ctx, r.GPU)
	i := slices.IndexFunc(ps, func(p gpu.Partition) bool {
		// One whose compute instances are missing was being made when something died.
		return p.ID == r.ID && p.Parent == r.Parent && sameProfile(r, p) && slices.Equal(withoutUUIDs(p.Compute), r.Compute)
	})
	if err != nil || i < 0 {
		return gpu.Partition{}, false
	}
	if r.Slot == "" {
		return ps[i], true // an identity that we chose is on no other card
	}
	l, err := inv.Look(ctx, r.GPU)
	return ps[i], err != nil || sameCard(r.Identity, l.GPU.Identity)
}

// restoreOne makes one partition again, on the card that it was made on. The type
// is found by its name: a driver may have given it another number since.
func restoreOne(ctx context.Context, r gpu.PartitionRecord, inv *inventory.Inventory) error {
	l, err := lookAgain(ctx, inv, r.GPU, r.Identity)
	if err != nil {
		return err
	}
	if l.Err != nil {
		return l.Err
	}
	i := slices.IndexFunc(l.Profiles, func(p gpu.Profile) bool { return p.Name == r.Profile && p.Kind == r.Kind })
	if p, ok := successor(l, r); ok { // what is not offered any more does not come with time
		return gpu.Errorf(gpu.CodeDrift, "gpu %q offers %s as a %s now and no more as a %s: put the assignment again", r.GPU, p.Name, p.Kind, r.Kind)
	}
	if i < 0 {
		return gpu.Errorf(gpu.CodeProfileUnknown, "gpu %q has no profile %q", r.GPU, r.Profile)
	}
	r.Native = l.Profiles[i].NativeID
	b, err := inv.Backend(r.Kind)
	if err != nil {
		return err
	}
	if err := takeable(ctx, inv, b, r); err != nil {
		return err
	}
	_, err = b.Make(ctx, r.Partition())
	return err
}
