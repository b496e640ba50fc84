package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
	"gpuvirt/operation"
)

// Capacity answers how many more of each profile fit; with a profile, of that one.
func (h *Host) Capacity(ctx context.Context, profile string) ([]gpu.ProfileCapacity, error) {
	offers, err := h.offers(ctx)
	if err != nil {
		return nil, err
	}
	c := capacity(profile, h.reserved(ctx, offers))
	if profile != "" && len(c) == 0 {
		return nil, unknownProfile(profile, "", offers)
	}
	return c, nil
}

// Partitions lists what is there and what should be: foreign partitions, ours,
// and ours that are missing.
func (h *Host) Partitions(ctx context.Context) ([]gpu.Partition, error) {
	out, err := h.partitions(ctx)
	if err != nil {
		return nil, err
	}
	vms, vmErr := h.cfg.Inventory.VMs(ctx)
	for i := range out {
		out[i] = withHolders(ctx, h.cfg.Inventory, out[i], vms, vmErr)
	}
	h.addObserved(ctx, out, "", vms)
	return out, nil
}

// partitions compares the records with the kernel, holders not yet asked for.
func (h *Host) partitions(ctx context.Context) ([]gpu.Partition, error) {
	looks, blind, err := h.survey(ctx)
	if err != nil {
		return nil, err
	}
	out, err := h.compare(ctx, looks, blind, func(gpu.PartitionRecord) bool { return true })
	slices.SortFunc(out, func(a, b gpu.Partition) int { return cmp.Or(cmp.Compare(a.GPU, b.GPU), cmp.Compare(a.ID, b.ID)) })
	return out, err
}

// compare compares the records that are meant with what some GPUs have. Blind is why
// GPUs may be missing among them.
func (h *Host) compare(ctx context.Context, looks []inventory.Look, blind error, meant func(gpu.PartitionRecord) bool) ([]gpu.Partition, error) {
	others := func(r gpu.PartitionRecord) bool { return !meant(r) }
	before, err := h.cfg.Store.PartitionRecords()
	if err != nil {
		return nil, err
	}
	present := map[string]gpu.Partition{}
	seen := map[gpu.ID]sighting{}
	for _, l := range looks {
		ps, err := h.cfg.Inventory.Partitions(ctx, l.GPU)
		seen[l.GPU.ID] = sighting{identity: l.GPU.Identity, err: errors.Join(l.Err, err)}
		for _, p := range ps {
			p.Origin, p.State = gpu.OriginForeign, gpu.PartitionMade
			present[p.ID] = p
		}
	}
	after, err := h.cfg.Store.PartitionRecords()
	if err != nil {
		return nil, err
	}
	for id, p := range present {
		p.Holders = append(p.Holders, standing(p, slices.Collect(maps.Values(present)))...)
		present[id] = p
	}
	reconcile(present, slices.DeleteFunc(before, others), slices.DeleteFunc(after, others), seen, blind)
	return slices.Collect(maps.Values(present)), nil
}

// standing lists the vGPUs that stand on a MIG instance: while there is one it is in use.
func standing(p gpu.Partition, all []gpu.Partition) (out []gpu.Holder) {
	if p.Kind != gpu.KindMIG || p.Instance == "" {
		return nil
	}
	for _, q := range all {
		if q.Kind != gpu.KindMIG && q.GPU == p.GPU && q.Instance == p.Instance {
			out = append(out, gpu.Holder{Kind: "partition", ID: q.ID, Name: q.Profile})
		}
	}
	slices.SortFunc(out, func(a, b gpu.Holder) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// sighting is what came of looking at a GPU.
type sighting struct {
	identity gpu.Identity
	err      error // why its partitions are not known
}

// reconcile compares what is present with the records from just before and just
// after it was read: an operation may have made or removed a partition in between,
// and that must show neither as foreign nor as missing. What is not there on a GPU that
// could not be read wholly, or not be looked for, is not known.
func reconcile(present map[string]gpu.Partition, before, after []gpu.PartitionRecord, seen map[gpu.ID]sighting, blind error) {
	was := map[string]gpu.PartitionRecord{}
	for _, r := range before {
		was[r.ID] = r
	}
	for _, r := range after {
		p, there := present[r.ID]
		if !there {
			p = r.Partition()
		}
		p.Origin, p.State, p.Assignment, p.Created = gpu.OriginManaged, r.State, r.Assignment, r.Created
		if there && sameProfile(r, p) {
			p.Profile = r.Profile
		}
		on, looked := seen[r.GPU]
		if !looked {
			on.err = blind
		}
		switch {
		case there && on.err == nil && replaced(r, p, on.identity):
			p.Origin, p.State, p.Assignment, p.Created = gpu.OriginForeign, gpu.PartitionMade, "", time.Time{}
			message := fmt.Sprintf("gpuvirt made a %s here, and somebody else has put a %s in its place", r.Profile, p.Profile)
			if !sameCard(r.Identity, on.identity) {
				message = fmt.Sprintf("gpuvirt made a %s here, on another card (%s) than is there now (%s)", r.Profile, describe(r.Identity), describe(on.identity))
			}
			p.Conditions = append(p.Conditions, gpu.Condition{Type: gpu.Drifted, Status: true, Reason: "Replaced", Message: message})
		case !there && on.err != nil: // one sick GPU hides nothing of the others
			p.Conditions = append(p.Conditions, gpu.Condition{
				Type: gpu.Unknown, Status: true, Reason: "GPUUnknown", Message: on.err.Error(),
			})
		case looked && !sameCard(r.Identity, on.identity):
			p.Conditions = append(p.Conditions, gpu.Condition{
				Type: gpu.Drifted, Status: true, Reason: "OtherCard",
				Message: fmt.Sprintf("it was asked for on another card (%s) than is there now (%s)", describe(r.Identity), describe(on.identity)),
			})
		case !there && r.State == gpu.PartitionMade && was[r.ID].State == gpu.PartitionMade:
			p.State = gpu.PartitionMissing
			p.Conditions = append(p.Conditions, gpu.Condition{
				Type: gpu.Drifted, Status: true, Reason: "Missing",
				Message: fmt.Sprintf("gpuvirt made it on %s, but the kernel does not have it", r.Parent),
			})
		case there && (p.Parent != r.Parent || !sameProfile(r, p)):
			p.Conditions = append(p.Conditions, gpu.Condition{
				Type: gpu.Drifted, Status: true, Reason: "Different",
				Message: fmt.Sprintf("it should be %s on %s, but is %s on %s", r.Profile, r.Parent, p.Profile, p.Parent),
			})
		case there && r.State == gpu.PartitionMade && was[r.ID].State == gpu.PartitionMade && r.Params != "" && !paramsUnknown(p) && !gpu.SameVGPUParams(r.Params, p.Params):
			p.Conditions = append(p.Conditions, gpu.Condition{
				Type: gpu.Drifted, Status: true, Reason: "OtherParams",
				Message: fmt.Sprintf("its vgpu_params should be %q, but are %q", r.Params, p.Params),
			})
		}
		present[r.ID] = p
		delete(was, r.ID)
	}
	for id := range was {
		delete(present, id) // removed by us since
	}
}

// paramsUnknown reports whether it is not known which parameters a vGPU has.
func paramsUnknown(p gpu.Partition) bool {
	return slices.ContainsFunc(p.Conditions, func(c gpu.Condition) bool { return c.Status && c.Reason == gpu.ReasonParamsUnknown })
}

// replaced reports whether what is in a partition's place is another one, of somebody
// else: where the place is the identity, only the profile and the card tell them apart.
func replaced(r gpu.PartitionRecord, p gpu.Partition, on gpu.Identity) bool {
	return r.Slot != "" && (!sameProfile(r, p) || !sameCard(r.Identity, on))
}

// unnamed reports whether the driver does not say what it calls a partition's type: it
// goes by its number then.
func unnamed(p gpu.Partition) bool {
	return p.Native != "" && (p.Profile == p.Native || p.Profile == "nvidia-"+p.Native) && p.Slot != ""
}

// sameProfile reports whether a partition is of the profile that a record says. The name
// tells: a driver of another version numbers its types anew (T12). Where the driver does
// not say any more what it calls a type, the number has to do.
func sameProfile(r gpu.PartitionRecord, p gpu.Partition) bool {
	return r.Profile == p.Profile || p.Native != "" && p.Native == r.Native && (p.Profile == p.Native || p.Profile == "nvidia-"+p.Native)
}

// withHolders adds who uses a partition, or that this is not known.
func withHolders(ctx context.Context, inv *inventory.Inventory, p gpu.Partition, vms []gpu.VM, vmErr error) gpu.Partition {
	holders, err := inv.Holders(ctx, p, vms)
	for _, hd := range p.Holders { // the driver knows some, by number alone
		if !slices.ContainsFunc(holders, func(o gpu.Holder) bool { return o.Kind == hd.Kind && o.ID == hd.ID }) {
			holders = append(holders, hd)
		}
	}
	p.Holders = holders
	if err = errors.Join(vmErr, err); err != nil {
		p.Conditions = append(p.Conditions, gpu.Condition{
			Type: gpu.Unknown, Status: true, Reason: "HoldersUnknown", Message: "who uses it is not known: " + err.Error(),
		})
	}
	return p
}

// Unused makes sure that nobody uses a partition: no VM has it in any definition,
// no process holds its file. What is not known counts as used. It is the last
// question before a backend removes something.
func Unused(ctx context.Context, inv *inventory.Inventory, p gpu.Partition) error {
	vms, err := inv.VMs(ctx)
	if err != nil {
		return err
	}
	if p.Kind == gpu.KindMIG {
		l, err := inv.Look(ctx, p.GPU)
		if err != nil {
			return err
		}
		all, err := inv.Partitions(ctx, l.GPU)
		if err != nil {
			return err
		}
		p.Holders = append(slices.Clone(p.Holders), standing(p, all)...)
	}
	return inUse(withHolders(ctx, inv, p, vms, nil))
}

// Partition returns one partition, or CodeNotFound.
func (h *Host) Partition(ctx context.Context, id string) (gpu.Partition, error) {
	all, i, vms, err := h.among(ctx, id)
	if err != nil {
		return gpu.Partition{}, err
	}
	h.addObserved(ctx, all, id, vms)
	return all[i], nil
}

// among finds one partition, with who uses it, among those that were read for it: all of
// its GPU at least. It returns the VMs that there are, too.
func (h *Host) among(ctx context.Context, id string) (all []gpu.Partition, at int, vms []gpu.VM, err error) {
	if all, at, err = h.find(ctx, id); err != nil {
		return nil, 0, nil, err
	}
	vms, vmErr := h.cfg.Inventory.VMs(ctx)
	all[at] = withHolders(ctx, h.cfg.Inventory, all[at], vms, vmErr)
	return all, at, vms, nil
}

// partition is partitions for one.
func (h *Host) partition(ctx context.Context, id string) (gpu.Partition, error) {
	all, at, err := h.find(ctx, id)
	if err != nil {
		return gpu.Partition{}, err
	}
	return all[at], nil
}

// find finds one partition among those of its GPU at least. One of ours is looked for on
// its GPU, any other everywhere.
func (h *Host) find(ctx context.Context, id string) (all []gpu.Partition, at int, err error) {
	r, err := h.cfg.Store.PartitionRecord(id)
	switch {
	case err == nil:
		var looks []inventory.Look
		l, blind := h.cfg.Inventory.Look(ctx, r.GPU)
		switch {
		case blind == nil:
			looks = append(looks, l)
		case gpu.CodeOf(blind) == gpu.CodeNotFound:
			blind = nil
		}
		all, err = h.compare(ctx, looks, blind, func(o gpu.PartitionRecord) bool { return o.GPU == r.GPU })
	case gpu.CodeOf(err) == gpu.CodeNotFound:
		all, err = h.partitions(ctx)
	}
	if err != nil {
		return nil, 0, err
	}
	if at = slices.IndexFunc(all, func(p gpu.Partition) bool { return p.ID == id }); at < 0 {
		return nil, 0, gpu.Errorf(gpu.CodeNotFound, "cannot find partition %q", id)
	}
	return all, at, nil
}

// placed is a partition that is to be made, with what is to be made first for it to stand
// on, nil if nothing.
type placed struct {
	base  *gpu.PartitionRecord
	part  gpu.PartitionRecord
	ahead bool // it stands on an instance that is still to be made, for it or for another of its batch
}

// steps make it.
func (p placed) steps() []operation.PlanStep {
	if p.base == nil {
		return []operation.PlanStep{makeStep(p.part)}
	}
	return []operation.PlanStep{makeStep(*p.base), makeStep(p.part)}
}

// reserve has an operation write the records, and take them back should it be undone.
func (p placed) reserve(op *operation.Plan) {
	for _, r := range []*gpu.PartitionRecord{p.base, &p.part} {
		if r != nil {
			op.Keys = append(op.Keys, "partition/"+r.ID)
			op.Rows = append(op.Rows, operation.Put(gpu.RecordPartition, r.ID, *r))
			op.Release = append(op.Release, operation.Delete(gpu.RecordPartition, r.ID))
		}
	}
}

// newRecord chooses the identity of a partition that is to be made, before any
// hardware is touched: a name of ours, or for kinds that take none, a place. Placement is
// how on the GPU.
func (h *Host) newRecord(ctx context.Context, g gpu.GPU, p gpu.Profile, assignment string, placement gpu.Placement, batch *batch) (placed, error) {
	b, err := h.cfg.Inventory.Backend(p.Kind)
	if err != nil {
		return placed{}, err
	}
	if err := h.exclusive(ctx, g, p); err != nil {
		return placed{}, err
	}
	if placer, ok := b.(gpu.Placer); ok {
		if err := h.whole(ctx, b, g, p); err != nil {
			return placed{}, err
		}
		taken, err := h.taken(ctx, p.Kind)
		if err != nil {
			return placed{}, err
		}
		base, err := h.baseFor(ctx, g, p, assignment, placement, batch)
		if err != nil {
			return placed{}, err
		}
		ahead := base != nil || p.On != "" && batch.ahead(g.ID, p)
		place := placer.Place
		if s, ok := b.(gpu.Stacker); ok && ahead {
			place = s.PlaceAhead
		}
		at, err := place(ctx, g.ID, p.Name, append(taken, batch.handles()...))
		r := h.recordAt(g, at)
		r.Assignment = assignment
		return placed{base, r, ahead}, err
	}
	id := h.cfg.NewUUID()
	return placed{part: gpu.PartitionRecord{
		ID: id, GPU: g.ID, Identity: g.Identity, Parent: string(g.ID), Kind: p.Kind,
		Profile: p.Name, Native: p.NativeID, Handle: gpu.Handle{MdevUUID: id}, DeviceAPI: p.DeviceAPI,
		State: gpu.PartitionMaking, Assignment: assignment, Created: h.cfg.Now().UTC(),
	}}, nil
}

// whole refuses to place one more partition where one of ours is not in its place: the
// new one might take that, or a part of it.
func (h *Host) whole(ctx context.Context, b gpu.Backend, g gpu.GPU, p gpu.Profile) error {
	records, err := h.cfg.Store.PartitionRecords()
	if err != nil {
		return err
	}
	there, err := b.Partitions(ctx, g.ID)
	if err != nil {
		return err
	}
	var lost []gpu.Blocker
	for _, r := range records {
		in := func(q gpu.Partition) bool { return q.ID == r.ID && !replaced(r, q, g.Identity) }
		if r.GPU == g.ID && r.Kind == p.Kind && r.State == gpu.PartitionMade && !slices.ContainsFunc(there, in) {
			lost = append(lost, gpu.Blocker{Kind: "partition", ID: r.ID, Name: r.Profile, Note: "gpuvirt made it, and it is not there"})
		}
	}
	if len(lost) == 0 {
		return nil
	}
	return gpu.Errorf(gpu.CodeDrift, "cannot place %q on gpu %q: %d partitions that were made there are missing", p.Name, g.ID, len(lost)).
		WithBlockers(lost...).WithHint("%s", putBackHint(p.Kind, g.ID))
}

// putBackHint says how missing partitions of a kind come back or are given up.
func putBackHint(k gpu.Kind, id gpu.ID) string {
	if k == gpu.KindMIG {
		return fmt.Sprintf("put them back or give them up first: gpuvirt mig set %s", id)
	}
	return "put their assignments again, or delete them first: gpuvirt apply, gpuvirt detach; or gpuvirt partition delete, where they have none"
}

// whereOf says what a partition is and on what, for people.
func whereOf(r gpu.PartitionRecord, preposition string) string {
	where := fmt.Sprintf("%s %s %s", r.Profile, preposition, r.GPU)
	switch r.Kind {
	case gpu.KindMIG:
		where += " at " + r.Slot
	case gpu.KindVF, gpu.KindVGPU:
		where += ", function " + r.Slot
	case gpu.KindMdev, gpu.KindCard:
	}
	return where
}

// goesAlong says which functions VFIO takes with a card: the VM is not given them.
func goesAlong(r gpu.PartitionRecord) string {
	if r.Kind != gpu.KindCard {
		return ""
	}
	with := slices.DeleteFunc(slices.Sorted(maps.Keys(r.FormerDrivers)), func(a string) bool { return a == r.Handle.PCIAddress })
	if len(with) == 0 {
		return ""
	}
	return fmt.Sprintf(" (VFIO takes %s with it, and no vm is given that)", strings.Join(with, ", "))
}

func makeStep(r gpu.PartitionRecord) operation.PlanStep {
	return operation.PlanStep{
		Kind: stepMake, Summary: "make " + whereOf(r, "on") + goesAlong(r), Args: makeArgs{Partition: r},
	}
}

func removeStep(r gpu.PartitionRecord, a *gpu.AssignmentRecord) operation.PlanStep {
	return operation.PlanStep{
		Kind: stepRemove, Summary: "remove " + whereOf(r, "from"), Args: makeArgs{Partition: r, Assignment: a},
	}
}

func (h *Host) planPartition(ctx context.Context, w gpu.PartitionWish) (operation.Plan, error) {
	wish := gpu.Wish{Profile: w.Profile, GPU: w.GPU, Placement: cmp.Or(w.Placement, h.Placement()), Params: w.Params}
	g, p, n, err := h.settle(ctx, wish, w.Placement, "", nil, nil)
	if err != nil {
		return operation.Plan{}, err
	}
	op := operation.Plan{
		Kind: "partition.create", Summary: fmt.Sprintf("create partition %s on %s", p.Name, g.ID),
		Keys:  []string{"gpu/" + string(g.ID)},
		Steps: n.steps(),
	}
	n.reserve(&op)
	return op, nil
}

// CreatePartition starts making a partition that is not for a VM. The same
// Idempotency-Key with the same request answers the operation it started before.
func (h *Host) CreatePartition(ctx context.Context, actor string, w gpu.PartitionWish, idem gpu.Idempotency) (operation.Operation, error) {
	h.planning.Lock()
	defer h.planning.Unlock()
	if op, err := h.before(idem, "create partition"); op != nil || err != nil {
		return *cmp.Or(op, &operation.Operation{}), err
	}
	n, err := h.planPartition(ctx, w)
	if err != nil {
		return operation.Operation{}, err
	}
	n.Actor = actor
	h.remember(&n, idem)
	return h.add(ctx, n)
}

// before returns the operation that the same request has started under its
// Idempotency-Key, or nil.
func (h *Host) before(idem gpu.Idempotency, what string) (*operation.Operation, error) {
	if idem.Key == "" {
		return nil, nil //nolint:nilnil // none was sent
	}
	r, err := h.cfg.Store.IdempotencyRecord(idem.Key)
	switch {
	case gpu.CodeOf(err) == gpu.CodeNotFound && err != nil:
		return nil, nil //nolint:nilnil // it is the first
	case err != nil:
		return nil, err
	case r.Request != idem.Request:
		return nil, gpu.Errorf(gpu.CodeConflict, "cannot %s: Idempotency-Key %q was used for another request", what, idem.Key)
	}
	op, err := h.cfg.Engine.Get(r.Operation)
	return &op, err
}

// remember has an operation write down under which key it was asked for.
func (h *Host) remember(n *operation.Plan, idem gpu.Idempotency) {
	if idem.Key == "" {
		return
	}
	n.ID = h.cfg.Engine.NewID()
	n.Rows = append(n.Rows, operation.Put(gpu.RecordIdempotency, idem.Key, gpu.IdempotencyRecord{
		Key: idem.Key, Request: idem.Request, Operation: n.ID, Created: h.cfg.Now().UTC(),
	}))
}

// PlanPartition is the dry run of CreatePartition.
func (h *Host) PlanPartition(ctx context.Context, w gpu.PartitionWish) (gpu.Plan, error) {
	n, err := h.planPartition(ctx, w)
	return h.plan(n, err)
}

// plan turns a planned operation, or its refusal, into the answer of a dry run.
func (h *Host) plan(n operation.Plan, refusal error) (gpu.Plan, error) {
	p := gpu.Plan{Summary: n.Summary, Changes: len(n.Steps) > 0, Steps: []gpu.PlanStep{}}
	if refusal == nil {
		refusal = h.held(n.Keys)
	}
	if refusal != nil {
		p.Refusal, p.Changes = refusal, false
		return p, nil
	}
	for _, s := range n.Steps {
		p.Steps = append(p.Steps, gpu.PlanStep{Kind: s.Kind, Summary: s.Summary})
	}
	return p, nil
}

// held answers a ConflictError where one of the keys is held now.
func (h *Host) held(keys []string) error { return h.cfg.Engine.Held(keys...) }

func (h *Host) planDeletePartition(ctx context.Context, id string) (operation.Plan, error) {
	all, at, _, err := h.among(ctx, id)
	if err != nil {
		return operation.Plan{}, err
	}
	p := all[at]
	if p.Origin == gpu.OriginForeign {
		return operation.Plan{}, gpu.Errorf(gpu.CodeForeignDevice, "cannot delete partition %q: gpuvirt did not make it", id).
			WithHint("whoever made it must remove it")
	}
	owned, err := h.owned(p)
	if err != nil {
		return operation.Plan{}, err
	}
	if owned {
		return operation.Plan{}, gpu.Errorf(gpu.CodeConflict, "cannot delete partition %q: it belongs to assignment %q", id, p.Assignment).
			WithBlockers(gpu.Blocker{Kind: "assignment", ID: p.Assignment}).WithHint("delete the assignment: gpuvirt detach %s", p.Assignment)
	}
	if err := inUse(p); err != nil {
		return operation.Plan{}, err
	}
	r, err := h.cfg.Store.PartitionRecord(id)
	if err != nil {
		return operation.Plan{}, err
	}
	return operation.Plan{
		Kind: "partition.delete", Summary: fmt.Sprintf("delete partition %s (%s on %s)", id, p.Profile, p.GPU),
		Keys:  []string{"gpu/" + string(p.GPU), "partition/" + id},
		Steps: []operation.PlanStep{removeStep(r, nil)},
	}, nil
}

// owned reports whether the assignment that a partition was made for is still there
// and still means this partition.
func (h *Host) owned(p gpu.Partition) (bool, error) {
	if p.Assignment == "" {
		return false, nil
	}
	a, err := h.cfg.Store.AssignmentRecord(p.Assignment)
	if gpu.CodeOf(err) == gpu.CodeNotFound {
		return false, nil
	}
	return a.Partition == p.ID, err
}

// inUse refuses where somebody holds a partition, or where that is not known.
func inUse(p gpu.Partition) error {
	for _, c := range p.Conditions {
		if c.Status && c.Type == gpu.Unknown {
			return gpu.Errorf(gpu.CodeUnavailable, "cannot remove partition %q: %s", p.ID, c.Message)
		}
	}
	if len(p.Holders) == 0 {
		return nil
	}
	return gpu.Errorf(gpu.CodeGPUBusy, "cannot remove partition %q: it is in use", p.ID).WithBlockers(blockersOf(p.Holders, "")...).
		WithHint("free it first: detach it from the vm, or end the process")
}

// blockersOf says of holders that they stand in the way, and why.
func blockersOf(holders []gpu.Holder, note string) (out []gpu.Blocker) {
	for _, hd := range holders {
		out = append(out, gpu.Blocker{Kind: hd.Kind, ID: hd.ID, Name: hd.Name, Note: note})
	}
	return out
}

// DeletePartition starts removing a partition of ours that nobody uses.
func (h *Host) DeletePartition(ctx context.Context, actor, id string) (operation.Operation, error) {
	h.planning.Lock()
	defer h.planning.Unlock()
	n, err := h.planDeletePartition(ctx, id)
	if err != nil {
		return operation.Operation{}, err
	}
	n.Actor = actor
	return h.add(ctx, n)
}

// PlanDeletePartition is the dry run of DeletePartition.
func (h *Host) PlanDeletePartition(ctx context.Context, id string) (gpu.Plan, error) {
	n, err := h.planDeletePartition(ctx, id)
	if gpu.CodeOf(err) == gpu.CodeNotFound && err != nil {
		return gpu.Plan{}, err // of what is not there, there is no plan either
	}
	return h.plan(n, err)
}

// add hands a plan to the engine. Where that cannot store it, nothing has begun.
func (h *Host) add(ctx context.Context, p operation.Plan) (operation.Operation, error) {
	op, err := h.cfg.Engine.Add(ctx, p)
	if _, held := errors.AsType[*operation.ConflictError](err); err == nil || held {
		return op, err
	}
	return op, gpu.Errorf(gpu.CodeUnavailable, "%w", err)
}
