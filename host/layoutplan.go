package host

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
	"gpuvirt/operation"
)

// layoutPlan is what a layout asks for: an operation, or rows alone where the hardware
// is as it should be, or nothing.
type layoutPlan struct {
	op     operation.Plan
	rows   []operation.Row
	resets bool            // the GPU is reset on the way
	adopts []gpu.Partition // those of somebody else that become ours, as the layout names them
}

func (h *Host) planLayout(ctx context.Context, id gpu.ID, want gpu.Layout, repair bool) (layoutPlan, error) {
	c, l, err := h.cutter(ctx, id)
	if err != nil {
		return layoutPlan{}, err
	}
	g := l.GPU
	refuse := func(code gpu.Code, why string) (layoutPlan, error) {
		return layoutPlan{}, gpu.Errorf(code, "cannot lay out gpu %q: %s", id, why)
	}
	if code, why := closed(g); code == gpu.CodeGPUUnmanaged {
		return layoutPlan{}, gpu.Errorf(code, "cannot lay out gpu %q: %s", id, why).WithHint("put it under management first: gpuvirt gpu manage %s", id)
	} else if code != "" {
		return refuse(code, why)
	}
	if l.Err != nil {
		return layoutPlan{}, l.Err
	}
	if err := h.notGiven(id, "lay out"); err != nil {
		return layoutPlan{}, err
	}
	there, err := h.instances(ctx, l)
	if err != nil {
		return layoutPlan{}, err
	}
	whole, beside := want, []string(nil)
	if repair {
		if whole, beside, err = h.besideForeign(g, want, there); err != nil {
			return layoutPlan{}, err
		}
	}
	p, err := c.PlanLayout(ctx, id, whole, pinned(there))
	if err != nil && len(beside) > 0 { // which of them are in the way
		p, err = c.PlanLayout(ctx, id, want, pinned(there))
	}
	if err != nil {
		return layoutPlan{}, err
	}
	p.Keep = slices.DeleteFunc(p.Keep, func(q gpu.Partition) bool { return slices.Contains(beside, q.ID) })
	if p.Mode != nil {
		if err := cmp.Or(h.onlyMIG(ctx, l), h.withoutFunctions(ctx, l)); err != nil {
			return layoutPlan{}, err
		}
		if len(p.Remove) > 0 && !*p.Mode {
			if err := h.unwatched(ctx, id); err != nil {
				return layoutPlan{}, err
			}
		}
	}
	lp, err := h.layoutOperation(g, want, p, repair)
	lp.resets = p.Resets
	for _, q := range p.Keep {
		if i := slices.IndexFunc(there, func(o gpu.Partition) bool { return o.ID == q.ID }); i >= 0 && there[i].Origin == gpu.OriginForeign {
			lp.adopts = append(lp.adopts, q)
		}
	}
	return lp, err
}

// besideForeign adds to a layout that is to be repaired what others have made on the GPU, and
// says which these are: where nobody has asked for a layout, but for instances one by one or
// by adoption, there may be others beside them. They stay, and are not ours.
func (h *Host) besideForeign(g gpu.GPU, want gpu.Layout, there []gpu.Partition) (gpu.Layout, []string, error) {
	rec, err := h.gpuRecord(g)
	if err != nil || rec.MIG != nil {
		return want, nil, err
	}
	var beside []string
	want.Instances = slices.Clone(want.Instances)
	for _, p := range there {
		if p.Origin == gpu.OriginForeign && p.Instance != "" {
			want.Instances, beside = append(want.Instances, asItIs(p)), append(beside, p.ID)
		}
	}
	return want, beside, nil
}

// onlyMIG refuses to change the mode of a GPU that is cut in another way: it may be
// reset for that.
func (h *Host) onlyMIG(ctx context.Context, l inventory.Look) error {
	all, err := h.partitionsOf(ctx, l)
	if err != nil {
		return err
	}
	var blockers []gpu.Blocker
	for _, p := range all {
		if p.Kind != gpu.KindMIG && p.State != gpu.PartitionMissing {
			blockers = append(blockers, gpu.Blocker{Kind: "partition", ID: p.ID, Name: p.Profile})
		}
	}
	if len(blockers) == 0 {
		return nil
	}
	return gpu.Errorf(gpu.CodeGPUBusy, "cannot change the MIG mode of gpu %q: %d partitions of other kinds are on it", l.GPU.ID, len(blockers)).
		WithBlockers(blockers...).WithHint("delete them first: changing the mode may reset the gpu")
}

// betweenFunctions reports whether the mode of a GPU changes without its virtual functions. A
// step that takes back what waits for a reset needs none of that.
func betweenFunctions(g gpu.GPU) bool {
	return g.SRIOV.NumVFs > 0 && g.MIG.Current == g.MIG.Pending
}

// withoutFunctions refuses to change the mode of a GPU whose virtual functions are on and
// cannot be turned off for it: the driver would refuse, but only when the instances have gone.
func (h *Host) withoutFunctions(ctx context.Context, l inventory.Look) error {
	if !betweenFunctions(l.GPU) {
		return nil
	}
	v, l, err := h.virtualizer(ctx, l.GPU.ID)
	if err != nil {
		return err
	}
	s, on, err := h.vfState(ctx, v, l)
	if err != nil {
		return err
	}
	on = slices.DeleteFunc(on, func(p gpu.Partition) bool { return p.Kind == gpu.KindMIG }) // the layout is about these
	if err := cmp.Or(vfsUnused(s, on, 0), v.CheckVFs(ctx, l.GPU.ID, 0)); err != nil {
		return gpu.Wrap(err, gpu.CodeGPUBusy, "cannot change the MIG mode of gpu %q", l.GPU.ID)
	}
	return nil
}

// aroundFunctions turns the virtual functions of a GPU off for a change of its mode, and on
// again: NVIDIA's driver has it in use while there are any.
func aroundFunctions(g gpu.GPU, mode operation.PlanStep) []operation.PlanStep {
	n := g.SRIOV.NumVFs
	if !betweenFunctions(g) {
		return []operation.PlanStep{mode}
	}
	set := func(summary string, num, was int) operation.PlanStep {
		return operation.PlanStep{Kind: stepVFs, Summary: summary, Args: vfsArgs{GPU: g.ID, Identity: g.Identity, Num: num, Was: was}}
	}
	return []operation.PlanStep{
		set(fmt.Sprintf("turn off the virtual functions of %s for that", g.ID), 0, n), mode,
		set(fmt.Sprintf("turn on the %d virtual functions of %s again", n, g.ID), n, 0),
	}
}

// unwatched refuses to turn MIG off while a program has the GPU open: the driver would refuse
// as well, but only when the instances have gone for it, and they would come back as others.
// NVIDIA's own daemon that keeps the driver loaded lets go of it. Where nothing can be told
// the driver decides.
func (h *Host) unwatched(ctx context.Context, id gpu.ID) error {
	holders, err := h.cfg.Inventory.GPUHolders(ctx, id)
	holders = slices.DeleteFunc(holders, func(o gpu.Holder) bool { return strings.HasPrefix(o.Name, "nvidia-persiste") })
	if err != nil || len(holders) == 0 {
		return nil //nolint:nilerr // the driver has the last word
	}
	return gpu.Errorf(gpu.CodeGPUBusy, "cannot turn MIG off on gpu %q: %d programs have it open", id, len(holders)).
		WithBlockers(blockersOf(holders, "")...).WithHint("stop them, also those that only watch it, and ask again")
}

// pinned says of each partition that may not be removed why: it is not ours, or in use,
// or whether it is cannot be told.
func pinned(all []gpu.Partition) map[string]string {
	out := map[string]string{}
	for _, p := range all {
		var why []string
		if p.Origin == gpu.OriginForeign {
			why = append(why, "gpuvirt did not make it")
		}
		for _, hd := range p.Holders {
			why = append(why, strings.TrimSpace(hd.Kind+" "+hd.ID+" "+hd.Name)+" uses it")
		}
		for _, c := range p.Conditions {
			if c.Status && c.Type == gpu.Unknown {
				why = append(why, c.Message)
			}
		}
		if p.Assignment != "" {
			why = append(why, fmt.Sprintf("it belongs to assignment %q", p.Assignment))
		}
		if len(why) > 0 {
			out[p.ID] = strings.Join(why, "; ")
		}
	}
	return out
}

// layoutOperation turns a plan into an operation. What is kept and foreign becomes
// ours: whoever asks for a layout has named it, so it goes no more with the vGPU that it
// was made for. Only a repair asks for nothing new.
func (h *Host) layoutOperation(g gpu.GPU, want gpu.Layout, p gpu.LayoutPlan, repair bool) (layoutPlan, error) {
	old, err := h.gpuRecord(g)
	if err != nil {
		return layoutPlan{}, err
	}
	records, err := h.instanceRecords(g.ID)
	if err != nil {
		return layoutPlan{}, err
	}
	of := map[string]gpu.PartitionRecord{}
	for _, r := range records {
		of[r.ID] = r
	}
	op := operation.Plan{Kind: kindLayout, Summary: "lay out gpu " + string(g.ID), Keys: []string{"gpu/" + string(g.ID)}}
	var before *gpu.GPURecord
	if !repair && (old.MIG == nil || *old.MIG != want.Enabled) { // a repair asks for nothing new
		now := old
		before = &old
		now.MIG = &want.Enabled
		op.Rows = append(op.Rows, operation.Put(gpu.RecordGPU, string(g.ID), now))
		op.Release = append(op.Release, operation.Put(gpu.RecordGPU, string(g.ID), old))
	}
	verb := map[bool]string{true: "enable", false: "disable"}
	mode := func() {
		step := operation.PlanStep{
			Kind: stepMode, Summary: verb[*p.Mode] + " MIG on " + string(g.ID),
			Args: modeArgs{GPU: g.ID, Identity: g.Identity, On: *p.Mode, Was: g.MIG.Current, WithoutVFs: betweenFunctions(g), Before: before},
		}
		op.Steps = append(op.Steps, aroundFunctions(g, step)...)
	}
	if p.Mode != nil && *p.Mode {
		mode()
	}
	removed := map[string]bool{}
	for _, q := range p.Remove {
		r, ok := of[q.ID]
		if !ok {
			return layoutPlan{}, gpu.Errorf(gpu.CodeForeignDevice, "cannot lay out gpu %q: gpuvirt did not make partition %q", g.ID, q.ID).
				WithBlockers(gpu.Blocker{Kind: "partition", ID: q.ID, Name: q.Profile})
		}
		removed[q.ID] = true
		op.Steps = append(op.Steps, removeStep(r, nil))
	}
	h.createInstances(&op, g, p.Create, of, removed, repair)
	h.keepInstances(&op, g, p.Keep, of, repair)
	// What is wanted no more and is not there either needs no step.
	for _, r := range slices.SortedFunc(maps.Values(of), func(a, b gpu.PartitionRecord) int { return cmp.Compare(a.ID, b.ID) }) {
		if !removed[r.ID] {
			op.Rows = append(op.Rows, operation.Delete(gpu.RecordPartition, r.ID))
			op.Release = append(op.Release, operation.Put(gpu.RecordPartition, r.ID, r))
		}
	}
	if p.Mode != nil && !*p.Mode {
		mode()
		if g.SRIOV.NumVFs > 0 || g.SRIOV.TotalVFs == 0 { // else they come with the functions
			op.Steps = append(op.Steps, vgpuStepsAgain(g, old.VGPU)...)
		}
	}
	if len(op.Steps) == 0 {
		return layoutPlan{rows: op.Rows, op: operation.Plan{Summary: op.Summary, Keys: op.Keys}}, nil
	}
	for _, q := range slices.Concat(p.Remove, p.Create) {
		if key := "partition/" + q.ID; !slices.Contains(op.Keys, key) {
			op.Keys = append(op.Keys, key)
		}
	}
	return layoutPlan{op: op}, nil
}

// createInstances plans those that are to be made, and takes them from the records
// that are left to be looked at.
func (h *Host) createInstances(op *operation.Plan, g gpu.GPU, create []gpu.Partition, of map[string]gpu.PartitionRecord, removed map[string]bool, repair bool) {
	for _, q := range create {
		r := h.recordAt(g, q)
		if was := of[q.ID]; repair && was.Profile == q.Profile {
			r.Assignment = was.Assignment
		}
		op.Steps = append(op.Steps, makeStep(r))
		if removed[q.ID] {
			continue // its record goes with the one step and comes with the other
		}
		putRecord(op, r, of) // where there is one already, it was missing
	}
}

// putRecord has an operation write a record at its beginning, and bring back what was
// there before should it be undone.
func putRecord(op *operation.Plan, r gpu.PartitionRecord, of map[string]gpu.PartitionRecord) {
	op.Rows = append(op.Rows, operation.Put(gpu.RecordPartition, r.ID, r))
	if was, ok := of[r.ID]; ok {
		op.Release = append(op.Release, operation.Put(gpu.RecordPartition, was.ID, was))
	} else {
		op.Release = append(op.Release, operation.Delete(gpu.RecordPartition, r.ID))
	}
	delete(of, r.ID)
}

// keepInstances makes ours what is kept and was not.
func (h *Host) keepInstances(op *operation.Plan, g gpu.GPU, keep []gpu.Partition, of map[string]gpu.PartitionRecord, repair bool) {
	for _, q := range keep {
		if was, ok := of[q.ID]; ok && was.Profile == q.Profile && sameCard(was.Identity, g.Identity) && slices.Equal(was.Compute, withoutUUIDs(q.Compute)) {
			if was.Assignment != "" && !repair {
				r := was
				r.Assignment = ""
				putRecord(op, r, of)
			}
			delete(of, q.ID)
			continue
		}
		r := h.recordAt(g, q)
		r.State = gpu.PartitionMade
		putRecord(op, r, of)
	}
}

// recordAt is the record of a partition whose place is its identity.
func (h *Host) recordAt(g gpu.GPU, p gpu.Partition) gpu.PartitionRecord {
	return gpu.PartitionRecord{
		ID: p.ID, GPU: g.ID, Identity: g.Identity, Parent: p.Parent, Kind: p.Kind, Profile: p.Profile, Native: p.Native,
		Slot: p.Slot, Compute: withoutUUIDs(p.Compute), Handle: p.Handle, DeviceAPI: p.DeviceAPI, Params: p.Params, FormerDrivers: p.FormerDrivers,
		State: gpu.PartitionMaking, Created: h.cfg.Now().UTC(),
	}
}

// withoutUUIDs is what of compute instances outlives them.
func withoutUUIDs(in []gpu.Compute) (out []gpu.Compute) {
	for _, c := range in {
		c.UUID = ""
		out = append(out, c)
	}
	return out
}

// PutLayout starts cutting a GPU as asked. Where it is so already it returns no
// operation, and writes nothing that is written already.
func (h *Host) PutLayout(ctx context.Context, actor string, id gpu.ID, want gpu.Layout) (gpu.LayoutState, *operation.Operation, error) {
	h.planning.Lock()
	defer h.planning.Unlock()
	busy := h.held([]string{"gpu/" + string(id)}) // what is read beside an operation may hold no more when it is over
	p, err := h.planLayout(ctx, id, want, actor == repairActor)
	if err := cmp.Or(err, busy); err != nil {
		return gpu.LayoutState{}, nil, err
	}
	if len(p.op.Steps) > 0 {
		p.op.Actor = actor
		op, err := h.add(ctx, p.op)
		if err != nil {
			return gpu.LayoutState{}, nil, err
		}
		return gpu.LayoutState{}, &op, nil
	}
	if len(p.rows) > 0 {
		if err := h.cfg.Store.Apply(p.rows...); err != nil {
			return gpu.LayoutState{}, nil, err
		}
		h.cfg.Log.Info("layout recorded", "gpu", id, "actor", actor)
		h.hub.emit("gpu.changed", string(id), map[string]string{"mig": strconv.FormatBool(want.Enabled)})
	}
	s, err := h.Layout(ctx, id)
	return s, nil, err
}

// PlanPutLayout is the dry run of PutLayout.
func (h *Host) PlanPutLayout(ctx context.Context, id gpu.ID, want gpu.Layout) (gpu.Plan, error) {
	if _, _, err := h.cutter(ctx, id); err != nil {
		return gpu.Plan{}, err
	}
	p, err := h.planLayout(ctx, id, want, false)
	plan, err := h.plan(p.op, err)
	if err != nil || plan.Refusal != nil {
		return plan, err
	}
	if len(p.rows) > 0 {
		plan.Summary, plan.Changes = "record the layout of gpu "+string(id), true
	}
	if len(p.rows) > 0 && len(p.adopts) == 0 {
		plan.Steps = append(plan.Steps, gpu.PlanStep{Kind: "gpu.record", Summary: "record what is there as wanted"})
	}
	for i, q := range p.adopts {
		plan.Steps = slices.Insert(plan.Steps, i, gpu.PlanStep{
			Kind: "partition.adopt", Summary: fmt.Sprintf("take %s at %s, which gpuvirt did not make, under management", q.Profile, q.Slot),
		})
	}
	if p.resets {
		plan.NeedsReset, plan.MustBeIdle = true, []string{string(id)}
	}
	return plan, nil
}
