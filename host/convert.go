package host

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
	"gpuvirt/operation"
)

const (
	kindConvert = "assignment.convert"
	kindPutBack = "assignment.putback"
)

// instead returns what somebody else has put where a partition was made whose place is its
// identity, nil where that is not certain.
func (h *Host) instead(ctx context.Context, r gpu.PartitionRecord) *gpu.Partition {
	if r.Slot == "" || r.State != gpu.PartitionMade {
		return nil
	}
	b, err := h.cfg.Inventory.Backend(r.Kind)
	if err != nil {
		return nil
	}
	there, err := b.Partitions(ctx, r.GPU)
	i := slices.IndexFunc(there, func(p gpu.Partition) bool { return p.ID == r.ID })
	if err != nil || i < 0 || sameProfile(r, there[i]) || unnamed(there[i]) {
		return nil
	}
	return &there[i]
}

// missing looks at the GPU of a partition that was made, where it is certain that it is
// not there: the GPU can be read, is the same card, and does not have it.
func (h *Host) missing(ctx context.Context, r gpu.PartitionRecord) (inventory.Look, bool) {
	if r.State != gpu.PartitionMade {
		return inventory.Look{}, false
	}
	// The usual case, for a fraction of the cost: it is where it was made.
	if b, err := h.cfg.Inventory.Backend(r.Kind); err == nil {
		if there, err := b.Partitions(ctx, r.GPU); err == nil && hasPartition(there, r.ID) {
			return inventory.Look{}, false
		}
	}
	l, err := h.offer(ctx, r.GPU)
	if err != nil || l.Err != nil || !sameCard(r.Identity, l.GPU.Identity) || unreadable(l.GPU) != "" {
		return inventory.Look{}, false
	}
	there, err := h.cfg.Inventory.Partitions(ctx, l.GPU)
	return l, err == nil && !hasPartition(there, r.ID)
}

func hasPartition(all []gpu.Partition, id string) bool {
	return slices.ContainsFunc(all, func(p gpu.Partition) bool { return p.ID == id })
}

// successor returns the profile that a GPU offers now in place of a missing partition's:
// the same name under another kind. A driver for a newer kernel offers as virtual
// functions what it offered as mediated devices before (T14). There is none while its own
// kind is on offer.
func successor(l inventory.Look, r gpu.PartitionRecord) (out gpu.Profile, ok bool) {
	if !isVGPU(r.Kind) {
		return gpu.Profile{}, false
	}
	for _, p := range l.Profiles {
		switch {
		case p.Name != r.Profile:
		case p.Kind == r.Kind:
			return gpu.Profile{}, false // it has only gone missing
		case isVGPU(p.Kind):
			out, ok = p, true
		}
	}
	return out, ok
}

// explained says of an assignment whose partition is missing that it can be converted.
func (h *Host) explained(ctx context.Context, a gpu.Assignment) gpu.Assignment {
	i := slices.IndexFunc(a.Conditions, func(c gpu.Condition) bool { return c.Status && c.Reason == "PartitionMissing" })
	if i < 0 {
		return a
	}
	r, err := h.cfg.Store.PartitionRecord(a.Partition)
	if err != nil {
		return a
	}
	l, gone := h.missing(ctx, r)
	if p, ok := successor(l, r); gone && ok {
		a.Conditions = slices.Clone(a.Conditions)
		a.Conditions[i].Reason = "OtherKind"
		a.Conditions[i].Message = fmt.Sprintf(
			"its gpu offers %s as a %s now and no more as a %s: put the assignment again, as it is, to have the vm's definition changed", p.Name, p.Kind, r.Kind)
	}
	return a
}

// planAgain plans what a wish that is stored, and whose partition is missing, takes to be
// carried out again: the device that its GPU offers now in place of that, or the same one.
// It returns nil where nothing is missing, or that cannot be told.
func (h *Host) planAgain(ctx context.Context, vm gpu.VMHead, old gpu.AssignmentRecord, batch *batch) (*attachPlan, error) {
	r, err := h.cfg.Store.PartitionRecord(old.Partition)
	if gpu.CodeOf(err) == gpu.CodeNotFound {
		return nil, nil //nolint:nilnil // nothing to make
	}
	if err != nil {
		return nil, err
	}
	busy := h.held([]string{"gpu/" + string(r.GPU)})
	l, gone := h.missing(ctx, r)
	switch {
	case !gone:
		if p := h.instead(ctx, r); p != nil {
			return nil, gpu.Errorf(gpu.CodeConflict, "cannot put partition %s of assignment %q back: somebody else has put a %s in its place", r.ID, old.Name, p.Profile).
				WithBlockers(gpu.Blocker{Kind: "partition", ID: p.ID, Name: p.Profile, Note: "gpuvirt did not make it"}).
				WithHint("whoever made it has to remove it, or give the assignment up: gpuvirt detach %s", old.Name)
		}
		return nil, nil //nolint:nilnil // it is there, or that is not known
	case busy != nil:
		return nil, busy // what was read may hold no more when it is over
	}
	h.see(ctx, l, batch)
	if p, ok := successor(l, r); ok {
		return h.planConvert(ctx, vm, old, r, l, p, batch)
	}
	return h.planPutBack(ctx, vm, old, r, l, batch)
}

// planPutBack plans how a missing partition is made again under its identity, with the
// instance that it stood on where that is missing as well. Where there is no place for it,
// or the rest of its batch takes that, it is refused with what is in the way.
func (h *Host) planPutBack(ctx context.Context, vm gpu.VMHead, old gpu.AssignmentRecord, r gpu.PartitionRecord, l inventory.Look, batch *batch) (*attachPlan, error) {
	p, err := h.placeAgain(ctx, r, l)
	if err != nil {
		return nil, gpu.Wrap(err, gpu.CodeNoCapacity, "cannot put partition %s of assignment %q back", r.ID, old.Name)
	}
	now, _ := findKind(batch.reduce([]inventory.Look{l})[0].Profiles, r)
	if now.Available < 1 {
		return nil, gpu.Errorf(gpu.CodeNoCapacity, "cannot put partition %s of assignment %q back: %s", r.ID, old.Name, noRoom(now)).
			WithHint("put it alone, or leave out what takes its room")
	}
	n, fresh := placed{part: r, ahead: batch.ahead(r.GPU, p)}, false
	if p.On != "" && now.Available <= now.Ahead && !n.ahead {
		if n.base, fresh, err = h.baseAgain(ctx, l, p, old.Name, batch); err != nil {
			return nil, gpu.Wrap(err, gpu.CodeNoCapacity, "cannot put partition %s of assignment %q back", r.ID, old.Name)
		}
		n.ahead = true
	}
	op := operation.Plan{
		Kind: kindPutBack, Summary: fmt.Sprintf("put the partition of assignment %s back", old.Name),
		Keys:  []string{"assignment/" + old.Name, "gpu/" + string(r.GPU), "vm/" + vm.UUID, "partition/" + r.ID},
		Steps: n.steps(),
	}
	if n.base != nil {
		op.Keys = append(op.Keys, "partition/"+n.base.ID)
	}
	if fresh {
		op.Rows = append(op.Rows, operation.Put(gpu.RecordPartition, n.base.ID, *n.base))
		op.Release = append(op.Release, operation.Delete(gpu.RecordPartition, n.base.ID))
	}
	for i, s := range op.Steps { // its VM names it: it stays whatever becomes of others
		if a, ok := s.Args.(makeArgs); ok {
			a.Optional = true
			op.Steps[i].Args = a
		}
	}
	return &attachPlan{op: op, next: claim{assignment: old, placed: n, profile: p}}, nil
}

// findKind finds the profile of a partition that was made.
func findKind(profiles []gpu.Profile, r gpu.PartitionRecord) (gpu.Profile, bool) {
	i := slices.IndexFunc(profiles, func(p gpu.Profile) bool { return p.Name == r.Profile && p.Kind == r.Kind })
	if i < 0 {
		return gpu.Profile{}, false
	}
	return profiles[i], true
}

// placeAgain returns the profile of a missing partition as its GPU offers it now, or says
// why it cannot be made again.
func (h *Host) placeAgain(ctx context.Context, r gpu.PartitionRecord, l inventory.Look) (gpu.Profile, error) {
	p, ok := findKind(l.Profiles, r)
	switch {
	case !l.GPU.Managed:
		return p, gpu.Errorf(gpu.CodeGPUUnmanaged, "gpu %s is not under management", r.GPU).
			WithHint("put it under management first: gpuvirt gpu manage %s", r.GPU)
	case !ok:
		return p, unknownProfile(r.Profile, r.GPU, []inventory.Look{l})
	case p.NotCreatable != "":
		return p, gpu.Errorf(gpu.CodeProfileNotCreatable, "%s", p.NotCreatable)
	case p.Available > 0:
		return p, nil
	}
	full := gpu.Errorf(gpu.CodeNoCapacity, "gpu %s: %s", r.GPU, noRoom(p))
	on, err := h.cfg.Inventory.Partitions(ctx, l.GPU)
	if err != nil {
		return p, err
	}
	for _, q := range on {
		full = full.WithBlockers(gpu.Blocker{Kind: "partition", ID: q.ID, Name: q.Profile})
	}
	return p, full.WithHint("when there is room again put the assignment again, or give it up: gpuvirt detach %s", r.Assignment)
}

// baseAgain returns the record of a MIG instance for a vGPU to stand on that is put back: one
// of ours that is missing, else a fresh one, as its own may have gone with the last that stood
// on it.
func (h *Host) baseAgain(ctx context.Context, l inventory.Look, p gpu.Profile, assignment string, batch *batch) (base *gpu.PartitionRecord, fresh bool, err error) {
	records, err := h.instanceRecords(l.GPU.ID)
	if err != nil {
		return nil, false, err
	}
	there, err := h.instances(ctx, l)
	if err != nil {
		return nil, false, err
	}
	planned := batch.bases(l.GPU.ID)
	for _, r := range records {
		ours := slices.ContainsFunc(planned, func(b gpu.PartitionRecord) bool { return b.ID == r.ID })
		lost := slices.ContainsFunc(there, func(q gpu.Partition) bool { return q.ID == r.ID && q.State == gpu.PartitionMissing })
		if r.Profile == p.On && !ours && lost {
			return &r, false, h.fitsAgain(ctx, r, there, planned)
		}
	}
	base, err = h.newBase(ctx, l.GPU, p, assignment, false, batch)
	return base, true, err
}

// fitsAgain refuses to put a MIG instance back where others are in its place.
func (h *Host) fitsAgain(ctx context.Context, r gpu.PartitionRecord, there []gpu.Partition, planned []gpu.PartitionRecord) error {
	c, _, err := h.cutter(ctx, r.GPU)
	if err != nil {
		return err
	}
	want, pins := besideAll(there, planned)
	want.Instances = append(want.Instances, layoutInstance(r.Partition()))
	if _, err := c.PlanLayout(ctx, r.GPU, want, pins); err != nil {
		return gpu.Wrap(err, gpu.CodeNoCapacity, "cannot put %s back", whereOf(r, "on"))
	}
	return nil
}

// planConvert plans how an assignment gets the device that its GPU offers now for the one
// that it had.
func (h *Host) planConvert(
	ctx context.Context, vm gpu.VMHead, old gpu.AssignmentRecord, part gpu.PartitionRecord, l inventory.Look, p gpu.Profile, batch *batch,
) (*attachPlan, error) {
	refuse := func(code gpu.Code, why string) error {
		return gpu.Errorf(code, "cannot convert assignment %q: %s", old.Name, why)
	}
	if code, why := closed(l.GPU); code != "" {
		return nil, refuse(code, fmt.Sprintf("gpu %s: %s", l.GPU.ID, why))
	}
	if p.NotCreatable != "" {
		return nil, refuse(gpu.CodeProfileNotCreatable, p.NotCreatable)
	}
	if old.Wish.Display {
		if err := h.displayable(ctx, p, old.Wish); err != nil {
			return nil, refuse(gpu.CodeInvalid, err.Error())
		}
	}
	p, _ = find(batch.reduce([]inventory.Look{l})[0].Profiles, p.Name)
	if p.Available < 1 {
		return nil, refuse(gpu.CodeNoCapacity, noRoom(p))
	}
	was := attachArgs{Assignment: old, Hostdev: hostdev(old, part)}
	at, err := h.where(ctx, was)
	if err != nil {
		return nil, err
	}
	if at.Live {
		return nil, refuse(gpu.CodeVMRunning, fmt.Sprintf("vm %s runs with the old device", vm.Name))
	}
	if err := attachable(vm, old.Wish); err != nil {
		return nil, err
	}
	n, err := h.newRecord(ctx, l.GPU, p, old.Name, cmp.Or(l.GPU.Placement, old.Wish.Placement), batch)
	if err != nil {
		return nil, err
	}
	n.part.Params = old.Wish.Params
	rec := old
	rec.Partition, rec.VMName, rec.Bound = n.part.ID, vm.Name, false
	rec.Generation++
	op := operation.Plan{
		Kind:    kindConvert,
		Summary: fmt.Sprintf("convert assignment %s of vm %s: %s is a %s now and was a %s", old.Name, vm.Name, p.Name, p.Kind, part.Kind),
		Keys:    []string{"assignment/" + old.Name, "gpu/" + string(l.GPU.ID), "vm/" + vm.UUID},
		Rows:    []operation.Row{operation.Put(gpu.RecordAssignment, old.Name, rec)},
		Release: []operation.Row{operation.Put(gpu.RecordAssignment, old.Name, old)},
	}
	n.reserve(&op)
	// The new device is made first: where that fails the VM's definition is as it was.
	op.Steps = n.steps()
	if at.Config {
		op.Steps = append(op.Steps, operation.PlanStep{
			Kind: stepDetach, Summary: fmt.Sprintf("take the %s out of the definition of vm %s", part.Kind, vm.Name), Args: was,
		})
	}
	op.Steps = append(op.Steps,
		operation.PlanStep{
			Kind: stepAttach, Summary: fmt.Sprintf("put the %s into vm %s", n.part.Kind, vm.Name),
			Args: attachArgs{Assignment: rec, Hostdev: hostdev(rec, n.part)},
		},
		// Last: what is not there cannot be made again.
		removeStep(part, nil))
	return &attachPlan{op: op, next: claim{rec, n, p}}, nil
}
