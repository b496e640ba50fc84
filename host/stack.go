package host

import (
	"context"
	"slices"
	"strconv"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
)

// maxPerInstance is the attribute of a profile that says how many of its vGPUs share one
// MIG instance by time.
const maxPerInstance = "max_per_instance"

func perInstance(p gpu.Profile) int {
	n, err := strconv.Atoi(p.Attributes[maxPerInstance])
	if err != nil || n < 1 {
		return 1
	}
	return n
}

// ahead adds to the vGPUs that stand on MIG instances those for which an instance can
// still be made. The backend of vGPUs knows only the instances that are there, and of these
// no more than that one of them has room.
func (h *Host) ahead(ctx context.Context, l inventory.Look) inventory.Look {
	if !l.GPU.MIG.Current || !slices.ContainsFunc(l.Profiles, func(p gpu.Profile) bool { return p.On != "" }) {
		return l
	}
	free, err := h.freeFunctions(ctx, l.GPU)
	if err != nil {
		return l // what cannot be told is not free
	}
	on, err := h.cfg.Inventory.Partitions(ctx, l.GPU)
	if err != nil {
		return l
	}
	profiles := l.Profiles
	l.Profiles = slices.Clone(profiles)
	for i, p := range profiles {
		if p.On != "" && p.Available > 0 {
			p.Available = max(p.Available, min(seats(p, profiles, on), len(free)))
		}
		base, ok := find(l.Profiles, p.On)
		if p.On == "" || !ok || base.Kind != gpu.KindMIG || p.NotCreatable != "" {
			continue
		}
		n := max(0, min(base.Available*perInstance(p), len(free)-p.Available))
		l.Profiles[i].Available, l.Profiles[i].Ahead = p.Available+n, n
	}
	return l
}

// seats counts how many more vGPUs of a profile find room on the instances that are there:
// beside others of their size, as many as share one (T35). Where it is not known on which of
// them a vGPU stands, that is no number to go by.
func seats(p gpu.Profile, profiles []gpu.Profile, on []gpu.Partition) (n int) {
	for _, q := range on {
		if q.Kind != gpu.KindMIG || q.Profile != p.On || len(q.Compute) == 0 {
			continue
		}
		room := perInstance(p)
		for _, v := range on {
			if isVGPU(v.Kind) && v.Instance == "" {
				return 0
			}
			if !isVGPU(v.Kind) || v.Instance != q.Instance {
				continue
			}
			if room--; sizeOf(v, profiles) != p.MemoryBytes {
				room = 0
				break
			}
		}
		n += max(0, room)
	}
	return n
}

// sizeOf is the memory of a vGPU, 0 where it is not known.
func sizeOf(v gpu.Partition, profiles []gpu.Profile) uint64 {
	q, _ := find(profiles, v.Profile)
	return q.MemoryBytes
}

// freeFunctions lists the virtual functions of a GPU on which there is no partition.
func (h *Host) freeFunctions(ctx context.Context, g gpu.GPU) (free []gpu.Function, err error) {
	v, err := virtualizerOf(h.cfg.Inventory)
	if err != nil {
		return nil, err
	}
	functions, err := v.Functions(ctx, g.ID)
	if err != nil {
		return nil, err
	}
	on, err := h.cfg.Inventory.Partitions(ctx, g)
	if err != nil {
		return nil, err
	}
	for _, f := range functions {
		if !slices.ContainsFunc(on, func(p gpu.Partition) bool { return onFunction(p, f) }) {
			free = append(free, f)
		}
	}
	return free, nil
}

// bases counts the vGPUs of a batch that stand on each instance which the batch makes.
func (b *batch) bases(id gpu.ID) (of []gpu.PartitionRecord) {
	for _, c := range b.list() {
		if c.base != nil && c.part.GPU == id {
			of = append(of, *c.base)
		}
	}
	return of
}

// ahead reports whether one more vGPU of a profile finds room on an instance that the
// batch makes: of its profile, with vGPUs of one size, and not full.
func (b *batch) ahead(id gpu.ID, p gpu.Profile) bool {
	instances, vgpus := 0, 0
	for _, c := range b.list() {
		if c.part.GPU != id || c.profile.On != p.On || c.profile.MemoryBytes != p.MemoryBytes {
			continue
		}
		if c.base != nil {
			instances++
		}
		if c.placed.ahead {
			vgpus++
		}
	}
	return vgpus < instances*perInstance(p)
}

// empty counts the instances that a vGPU of a profile can stand on and that have none on
// them, nor will have when the batch is there.
func (b *batch) empty(id gpu.ID, p gpu.Profile, there []gpu.Partition) (n int) {
	for _, q := range there {
		onIt := slices.ContainsFunc(q.Holders, func(o gpu.Holder) bool { return o.Kind == "partition" })
		if q.Profile == p.On && q.Instance != "" && !onIt {
			n++
		}
	}
	for _, c := range b.list() {
		if c.part.GPU == id && c.profile.On == p.On && !c.placed.ahead {
			n--
		}
	}
	return n
}

// baseFor plans the MIG instance that a vGPU is to stand on, or returns nil where it needs
// none or finds room on one that is there, or that the batch makes. Where several share an
// instance and are to be spread, room beside another is for when no instance can be made.
// Which of those with room it is the driver chooses.
func (h *Host) baseFor(ctx context.Context, g gpu.GPU, p gpu.Profile, assignment string, placement gpu.Placement, batch *batch) (*gpu.PartitionRecord, error) {
	room := p.Available > p.Ahead || batch.ahead(g.ID, p)
	if p.On == "" || room && (placement != gpu.Spread || perInstance(p) < 2) {
		return nil, nil //nolint:nilnil // none is needed
	}
	base, err := h.newBase(ctx, g, p, assignment, room, batch)
	if err != nil && room {
		return nil, nil //nolint:nilerr,nilnil // it goes beside another
	}
	return base, err
}

// newBase plans an instance where most room is left for large ones, as any other; with spare
// none where one that is there has nothing on it.
func (h *Host) newBase(ctx context.Context, g gpu.GPU, p gpu.Profile, assignment string, spare bool, batch *batch) (*gpu.PartitionRecord, error) {
	c, l, err := h.cutter(ctx, g.ID)
	if err != nil {
		return nil, err
	}
	b, err := h.cfg.Inventory.Backend(gpu.KindMIG)
	if err != nil {
		return nil, err
	}
	if err := h.whole(ctx, b, g, gpu.Profile{Name: p.On, Kind: gpu.KindMIG}); err != nil {
		return nil, err
	}
	there, err := h.instances(ctx, l)
	if err != nil {
		return nil, err
	}
	if spare && batch.empty(g.ID, p, there) > 0 {
		return nil, nil //nolint:nilnil // it is the emptiest
	}
	planned := batch.bases(g.ID)
	want, pins := besideAll(there, planned)
	want.Instances = append(want.Instances, gpu.LayoutInstance{Profile: p.On, Place: gpu.AnyPlace})
	plan, err := c.PlanLayout(ctx, g.ID, want, pins)
	if err != nil {
		return nil, gpu.Wrap(err, gpu.CodeNoCapacity, "cannot make a %s for %q", p.On, p.Name)
	}
	for _, q := range plan.Create {
		if !slices.ContainsFunc(planned, func(r gpu.PartitionRecord) bool { return r.ID == q.ID }) {
			r := h.recordAt(g, q)
			r.Assignment = assignment
			return &r, nil
		}
	}
	return nil, gpu.Errorf(gpu.CodeNoCapacity, "cannot make a %s for %q on gpu %q", p.On, p.Name, g.ID)
}

// besideAll is a layout to add an instance to: all that are there stay as they are, and those
// that are planned come.
func besideAll(there []gpu.Partition, planned []gpu.PartitionRecord) (want gpu.Layout, pins map[string]string) {
	want, pins = gpu.Layout{Enabled: true}, map[string]string{}
	for _, q := range there {
		if q.Instance != "" && q.State != gpu.PartitionMissing {
			want.Instances = append(want.Instances, asItIs(q))
			pins[q.ID] = "it is not to be moved for another"
		}
	}
	for _, r := range planned {
		want.Instances = append(want.Instances, layoutInstance(r.Partition()))
	}
	return want, pins
}

// basesOf returns the records of the MIG instances that go with a vGPU: that on which it
// stands, where it was made for vGPUs and none of the others stands on it, and one that was
// made for it and that the driver has put nobody on.
func (h *Host) basesOf(ctx context.Context, part gpu.PartitionRecord) (out []gpu.PartitionRecord, err error) {
	if !isVGPU(part.Kind) {
		return nil, nil
	}
	l, err := h.look(ctx, part.GPU)
	if err != nil || !l.GPU.MIG.Current {
		return nil, nil //nolint:nilerr // a card that is gone has no instances
	}
	all, err := h.cfg.Inventory.Partitions(ctx, l.GPU)
	if err != nil {
		return nil, err
	}
	records, err := h.instanceRecords(part.GPU)
	if err != nil {
		return nil, err
	}
	instance := ""
	if i := slices.IndexFunc(all, func(p gpu.Partition) bool { return p.ID == part.ID }); i >= 0 {
		instance = all[i].Instance
	}
	for _, r := range records {
		i := slices.IndexFunc(all, func(p gpu.Partition) bool { return p.ID == r.ID })
		if i < 0 || r.Assignment == "" || all[i].Instance == "" {
			continue // somebody made it for its own sake, or it is gone
		}
		if instance != all[i].Instance && r.Assignment != part.Assignment {
			continue
		}
		others := slices.DeleteFunc(standing(all[i], all), func(hd gpu.Holder) bool { return hd.ID == part.ID })
		if len(others) == 0 {
			out = append(out, r)
		}
	}
	return out, nil
}
