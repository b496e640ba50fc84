package host

import (
	"cmp"
	"context"
	"slices"
	"strconv"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
)

const kindLayout = "gpu.layout"

// cutter returns the backend that cuts a GPU, and the GPU as it is now.
func (h *Host) cutter(ctx context.Context, id gpu.ID) (gpu.Cutter, inventory.Look, error) {
	l, err := h.look(ctx, id)
	if err != nil {
		return nil, l, err
	}
	none := gpu.Errorf(gpu.CodeNotFound, "cannot find a layout of gpu %q: MIG cannot cut it", id)
	if !slices.Contains(l.GPU.Kinds, gpu.KindMIG) {
		if unreadable(l.GPU) != "" {
			return nil, l, gpu.Errorf(gpu.CodeUnavailable, "cannot tell whether MIG can cut gpu %q: %s", id, unreadable(l.GPU))
		}
		return nil, l, none
	}
	b, err := h.cfg.Inventory.Backend(gpu.KindMIG)
	if err != nil {
		return nil, l, err
	}
	c, ok := b.(gpu.Cutter)
	if !ok {
		return nil, l, none
	}
	return c, l, nil
}

// unreadable says why a GPU cannot be read, empty if it can.
func unreadable(g gpu.GPU) string {
	for _, c := range g.Conditions {
		if c.Status && c.Type == gpu.Unknown {
			return c.Message
		}
	}
	return ""
}

// Layout returns how a GPU is cut by MIG and how it should be.
func (h *Host) Layout(ctx context.Context, id gpu.ID) (gpu.LayoutState, error) {
	_, l, err := h.cutter(ctx, id)
	if err != nil {
		return gpu.LayoutState{}, err
	}
	if l.Err != nil {
		return gpu.LayoutState{}, l.Err
	}
	return h.layoutState(ctx, l)
}

func (h *Host) layoutState(ctx context.Context, l inventory.Look) (gpu.LayoutState, error) {
	s := gpu.LayoutState{GPU: l.GPU.ID, Mode: l.GPU.MIG, Actual: gpu.Layout{Enabled: l.GPU.MIG.Current}}
	for _, p := range l.Profiles {
		if p.Kind == gpu.KindMIG {
			s.Profiles = append(s.Profiles, p)
		}
	}
	var err error
	if s.Partitions, err = h.instances(ctx, l); err != nil {
		return s, err
	}
	rec, err := h.gpuRecord(l.GPU)
	if err != nil {
		return s, err
	}
	records, err := h.instanceRecords(l.GPU.ID)
	if err != nil {
		return s, err
	}
	if rec.MIG != nil || len(records) > 0 {
		s.Wanted = &gpu.Layout{Enabled: len(records) > 0 || *rec.MIG}
		for _, r := range records {
			s.Wanted.Instances = append(s.Wanted.Instances, layoutInstance(r.Partition()))
		}
	}
	judged := s.Actual
	for _, p := range s.Partitions {
		if p.State == gpu.PartitionMissing || p.Instance == "" {
			continue
		}
		s.Actual.Instances = append(s.Actual.Instances, layoutInstance(p))
		// Where instances were asked for one by one, or adopted, nobody has said that there are
		// to be no others.
		if rec.MIG != nil || p.Origin != gpu.OriginForeign {
			judged.Instances = append(judged.Instances, layoutInstance(p))
		}
	}
	s.Equal = s.Mode.Current == s.Mode.Pending && (s.Wanted == nil || sameLayout(*s.Wanted, judged))
	return s, nil
}

// instances lists the MIG partitions of a GPU by place: those that are there and ours
// that are missing.
func (h *Host) instances(ctx context.Context, l inventory.Look) ([]gpu.Partition, error) {
	all, err := h.partitionsOf(ctx, l)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(p gpu.Partition) bool { return p.Kind != gpu.KindMIG })
	slices.SortFunc(all, func(a, b gpu.Partition) int { return cmp.Compare(place(a), place(b)) })
	vms, vmErr := h.cfg.Inventory.VMs(ctx)
	for i := range all {
		all[i] = withHolders(ctx, h.cfg.Inventory, all[i], vms, vmErr)
	}
	return all, nil
}

// partitionsOf lists the partitions of one GPU, of all kinds.
func (h *Host) partitionsOf(ctx context.Context, l inventory.Look) ([]gpu.Partition, error) {
	return h.compare(ctx, []inventory.Look{l}, nil, func(r gpu.PartitionRecord) bool { return r.GPU == l.GPU.ID })
}

func (h *Host) instanceRecords(id gpu.ID) ([]gpu.PartitionRecord, error) {
	all, err := h.cfg.Store.PartitionRecords()
	all = slices.DeleteFunc(all, func(r gpu.PartitionRecord) bool { return r.GPU != id || r.Kind != gpu.KindMIG })
	slices.SortFunc(all, func(a, b gpu.PartitionRecord) int { return cmp.Compare(place(a.Partition()), place(b.Partition())) })
	return all, err
}

// place is where a MIG partition begins.
func place(p gpu.Partition) int {
	n, err := strconv.Atoi(p.Slot)
	if err != nil {
		return gpu.AnyPlace
	}
	return n
}

func layoutInstance(p gpu.Partition) gpu.LayoutInstance {
	in := gpu.LayoutInstance{Profile: p.Profile, Place: place(p)}
	for _, c := range p.Compute {
		in.Compute = append(in.Compute, c.Profile)
	}
	if len(in.Compute) == 0 && p.Instance == "" {
		in.Compute = []string{p.Profile} // asked for, and not made yet
	}
	return in
}

// asItIs is a MIG instance that is there and stays, whoever made it.
func asItIs(p gpu.Partition) gpu.LayoutInstance {
	in := layoutInstance(p)
	in.AsItIs = true
	return in
}

// sameLayout compares layouts with all places known, both in their order.
func sameLayout(a, b gpu.Layout) bool {
	return a.Enabled == b.Enabled && slices.EqualFunc(a.Instances, b.Instances, func(a, b gpu.LayoutInstance) bool {
		return a.Profile == b.Profile && a.Place == b.Place && slices.Equal(a.Compute, b.Compute)
	})
}

// gpuRecord is what was decided about a GPU, or a fresh record.
func (h *Host) gpuRecord(g gpu.GPU) (gpu.GPURecord, error) {
	records, err := h.cfg.Store.GPURecords()
	if err != nil {
		return gpu.GPURecord{}, err
	}
	if r, ok := recordOf(g.ID, records); ok {
		return r, nil
	}
	return gpu.GPURecord{ID: g.ID, Identity: g.Identity}, nil
}
