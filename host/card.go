package host

import (
	"context"
	"fmt"
	"slices"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
)

// offered takes from what a GPU offers what this libvirt cannot give to a VM, and the whole
// card while a part of it is there: each backend knows only its own kind (T39).
func (h *Host) offered(ctx context.Context, l inventory.Look) inventory.Look {
	l = h.mixedRoom(ctx, h.ahead(ctx, h.attachableKinds(ctx, l)))
	i := slices.IndexFunc(l.Profiles, func(p gpu.Profile) bool { return p.Kind == gpu.KindCard && p.Available > 0 })
	if i < 0 {
		return l
	}
	on, err := h.cfg.Inventory.Partitions(ctx, l.GPU)
	if err != nil || len(on) > 0 { // what cannot be told is not free
		l.Profiles = slices.Clone(l.Profiles)
		l.Profiles[i].Available = 0
	}
	return l
}

// offer is look, with what the GPU offers as a whole.
func (h *Host) offer(ctx context.Context, id gpu.ID) (inventory.Look, error) {
	l, err := h.look(ctx, id)
	return h.offered(ctx, l), err
}

// offers is looks, with what each GPU offers as a whole.
func (h *Host) offers(ctx context.Context) ([]inventory.Look, error) {
	all, err := h.looks(ctx)
	for i, l := range all {
		all[i] = h.offered(ctx, l)
	}
	return all, err
}

// exclusive refuses to give a card away whole while a part of it or the card itself is
// in use, and to cut one that is given away.
func (h *Host) exclusive(ctx context.Context, g gpu.GPU, p gpu.Profile) error {
	if p.Kind != gpu.KindCard {
		return h.notGiven(g.ID, fmt.Sprintf("place %q on", p.Name))
	}
	on, err := h.partitionsOf(ctx, inventory.Look{GPU: g})
	if err != nil {
		return err
	}
	var in []gpu.Blocker
	for _, q := range on {
		in = append(in, gpu.Blocker{Kind: "partition", ID: q.ID, Name: q.Profile})
	}
	if len(in) > 0 {
		return gpu.Errorf(gpu.CodeGPUBusy, "cannot give gpu %q away whole: %d partitions are on it", g.ID, len(in)).WithBlockers(in...)
	}
	return Idle(ctx, h.cfg.Inventory, g.ID)
}

// notGiven refuses to cut a card that is given away whole. Just after a boot its driver has
// it again until it is restored.
func (h *Host) notGiven(id gpu.ID, what string) error {
	records, err := h.cfg.Store.PartitionRecords()
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.GPU == id && r.Kind == gpu.KindCard {
			return gpu.Errorf(gpu.CodeConflict, "cannot %s gpu %q: the whole card is given away", what, id).
				WithBlockers(gpu.Blocker{Kind: "partition", ID: r.ID, Name: r.Profile, Note: r.Assignment})
		}
	}
	return nil
}

// Idle refuses to take a card from its driver while a program has it open: the driver
// would wait for that program, perhaps for ever (T44). What cannot be told is not idle.
func Idle(ctx context.Context, inv *inventory.Inventory, id gpu.ID) error {
	holders, err := inv.GPUHolders(ctx, id)
	if err != nil {
		return fmt.Errorf("cannot take gpu %q from its driver: %w", id, err)
	}
	if len(holders) == 0 {
		return nil
	}
	return gpu.Errorf(gpu.CodeGPUBusy, "cannot take gpu %q from its driver: %d programs have it open", id, len(holders)).
		WithBlockers(blockersOf(holders, "")...).WithHint("stop them, or wait for them, and ask again")
}

// takeable is Idle for the card that a record is about to be made of, and nothing for
// other kinds. A card that is taken already is not asked about: a VM may have it open.
func takeable(ctx context.Context, inv *inventory.Inventory, b gpu.Backend, r gpu.PartitionRecord) error {
	if r.Kind != gpu.KindCard {
		return nil
	}
	there, err := b.Partitions(ctx, r.GPU)
	if err != nil {
		return err
	}
	if hasPartition(there, r.ID) {
		return nil
	}
	l, err := inv.Look(ctx, r.GPU)
	if err != nil {
		return err
	}
	parts, err := inv.Partitions(ctx, l.GPU)
	if err != nil {
		return err
	}
	if len(parts) > 0 {
		return gpu.Errorf(gpu.CodeConflict, "cannot take gpu %q from its driver: %d partitions are on it", r.GPU, len(parts)).
			WithBlockers(gpu.Blocker{Kind: "partition", ID: parts[0].ID, Name: parts[0].Profile})
	}
	return Idle(ctx, inv, r.GPU)
}
