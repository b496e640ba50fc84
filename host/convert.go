package host

import (
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

// successor returns the profile that a GPU offers now in place of a partition's: the
// same name under another kind. A driver for a newer kernel offers as virtual functions
// what it offered as mediated devices before (T14). There is none while the partition is
// there, or its own kind is on offer, or that cannot be told.
func (h *Host) successor(ctx context.Context, r gpu.PartitionRecord) (inventory.Look, gpu.Profile, bool) {
	none := func() (inventory.Look, gpu.Profile, bool) { return inventory.Look{}, gpu.Profile{}, false }
	if r.State != gpu.PartitionMade || r.Kind != gpu.KindMdev && r.Kind != gpu.KindVGPU {
		return none()
	}
	l, err := h.look(ctx, r.GPU)
	if err != nil || l.Err != nil || !sameCard(r.Identity, l.GPU.Identity) || unreadable(l.GPU) != "" {
		return none()
	}
	there, err := h.cfg.Inventory.Partitions(ctx, l.GPU)
	if err != nil || slices.ContainsFunc(there, func(p gpu.Partition) bool { return p.ID == r.ID }) {
		return none()
	}
	var out gpu.Profile
	for _, p := range l.Profiles {
		switch {
		case p.Name != r.Profile:
		case p.Kind == r.Kind:
			return none() // it has only gone missing
		case p.Kind == gpu.KindMdev || p.Kind == gpu.KindVGPU:
			out = p
		}
	}
	return l, out, out.Name != ""
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
	if _, p, ok := h.successor(ctx, r); ok {
		a.Conditions = slices.Clone(a.Conditions)
		a.Conditions[i].Reason = "OtherKind"
		a.Conditions[i].Message = fmt.Sprintf(
			"its gpu offers %s as a %s now and no more as a %s: put the assignment again, as it is, to have the vm's definition changed", p.Name, p.Kind, r.Kind)
	}
	return a
}

// planPutBack plans how the missing partition of an assignment is made again under its
// identity, or returns nil where it is there, or that cannot be told. Whoever puts a wish
// again that has come undone wants it carried out.
func (h *Host) planPutBack(ctx context.Context, vm gpu.VMHead, old gpu.AssignmentRecord) (*attachPlan, error) {
	r, err := h.cfg.Store.PartitionRecord(old.Partition)
	if gpu.CodeOf(err) == gpu.CodeNotFound {
		return nil, nil //nolint:nilnil // nothing to make
	}
	if err != nil {
		return nil, err
	}
	l, err := h.look(ctx, r.GPU)
	if err != nil || l.Err != nil || unreadable(l.GPU) != "" || !sameCard(r.Identity, l.GPU.Identity) || !l.GPU.Managed || r.State != gpu.PartitionMade {
		return nil, nil //nolint:nilerr,nilnil // it says so itself
	}
	there, err := h.cfg.Inventory.Partitions(ctx, l.GPU)
	if err != nil || slices.ContainsFunc(there, func(p gpu.Partition) bool { return p.ID == r.ID }) {
		return nil, nil //nolint:nilerr,nilnil // it is there, or that is not known
	}
	if !slices.ContainsFunc(l.Profiles, func(p gpu.Profile) bool {
		return p.Name == r.Profile && p.Kind == r.Kind && p.NotCreatable == "" && p.Available > 0
	}) {
		return nil, nil //nolint:nilnil // there is no place for it
	}
	return &attachPlan{op: operation.Plan{
		Kind: kindPutBack, Summary: fmt.Sprintf("put the partition of assignment %s back", old.Name),
		Keys:  []string{"assignment/" + old.Name, "gpu/" + string(r.GPU), "vm/" + vm.UUID, "partition/" + r.ID},
		Steps: []operation.PlanStep{makeStep(r)},
	}, next: claim{assignment: old, placed: placed{part: r}}}, nil
}

// planConvert plans how an assignment gets the device that its GPU offers now for the one
// that it had, or returns nil where there is nothing to convert.
func (h *Host) planConvert(ctx context.Context, vm gpu.VMHead, old gpu.AssignmentRecord, batch *batch) (*attachPlan, error) {
	part, err := h.cfg.Store.PartitionRecord(old.Partition)
	if gpu.CodeOf(err) == gpu.CodeNotFound {
		return nil, nil //nolint:nilnil // nothing to convert from
	}
	if err != nil {
		return nil, err
	}
	l, p, ok := h.successor(ctx, part)
	if !ok {
		return nil, nil //nolint:nilnil // nothing to convert
	}
	refuse := func(code gpu.Code, why string) error {
		return gpu.Errorf(code, "cannot convert assignment %q: %s", old.Name, why)
	}
	if code, why := closed(l.GPU); code != "" {
		return nil, refuse(code, fmt.Sprintf("gpu %s: %s", l.GPU.ID, why))
	}
	if p.NotCreatable != "" {
		return nil, refuse(gpu.CodeProfileNotCreatable, p.NotCreatable)
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
	n, err := h.newRecord(ctx, l.GPU, p, old.Name, batch)
	if err != nil {
		return nil, err
	}
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
	return &attachPlan{op: op, next: claim{rec, n, p, p.On != "" && n.base == nil && batch.ahead(l.GPU.ID, p)}}, nil
}
