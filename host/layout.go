package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
	"gpuvirt/operation"
)

const (
	kindLayout = "gpu.layout"
	stepMode   = "mig.mode"
)

// modeArgs are the arguments of mig.mode.
type modeArgs struct {
	GPU      gpu.ID       `json:"gpu"`
	Identity gpu.Identity `json:"identity"`
	On       bool         `json:"on"`
	Was      bool         `json:"was"` // in force before
}

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
	for _, p := range s.Partitions {
		if p.State != gpu.PartitionMissing && p.Instance != "" {
			s.Actual.Instances = append(s.Actual.Instances, layoutInstance(p))
		}
	}
	s.Equal = s.Mode.Current == s.Mode.Pending && (s.Wanted == nil || sameLayout(*s.Wanted, s.Actual))
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

// layoutPlan is what a layout asks for: an operation, or rows alone where the hardware
// is as it should be, or nothing.
type layoutPlan struct {
	op     operation.Plan
	rows   []operation.Row
	resets bool            // the GPU is reset on the way
	adopts []gpu.Partition // those of somebody else that become ours, as the layout names them
}

func (h *Host) planLayout(ctx context.Context, id gpu.ID, want gpu.Layout) (layoutPlan, error) {
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
	there, err := h.instances(ctx, l)
	if err != nil {
		return layoutPlan{}, err
	}
	p, err := c.PlanLayout(ctx, id, want, pinned(there))
	if err != nil {
		return layoutPlan{}, err
	}
	if p.Mode != nil {
		if err := h.onlyMIG(ctx, l); err != nil {
			return layoutPlan{}, err
		}
	}
	lp, err := h.layoutOperation(g, want, p)
	lp.resets = p.Resets
	for _, q := range p.Keep {
		if i := slices.IndexFunc(there, func(o gpu.Partition) bool { return o.ID == q.ID }); i >= 0 && there[i].Origin == gpu.OriginForeign {
			lp.adopts = append(lp.adopts, q)
		}
	}
	return lp, err
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
// ours: whoever asks for a layout has named it.
func (h *Host) layoutOperation(g gpu.GPU, want gpu.Layout, p gpu.LayoutPlan) (layoutPlan, error) {
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
	if old.MIG == nil || *old.MIG != want.Enabled {
		now := old
		now.MIG = &want.Enabled
		op.Rows = append(op.Rows, operation.Put(gpu.RecordGPU, string(g.ID), now))
		op.Release = append(op.Release, operation.Put(gpu.RecordGPU, string(g.ID), old))
	}
	verb := map[bool]string{true: "enable", false: "disable"}
	mode := func() {
		op.Steps = append(op.Steps, operation.PlanStep{
			Kind: stepMode, Summary: verb[*p.Mode] + " MIG on " + string(g.ID),
			Args: modeArgs{GPU: g.ID, Identity: g.Identity, On: *p.Mode, Was: g.MIG.Current},
		})
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
	h.createInstances(&op, g, p.Create, of, removed)
	h.keepInstances(&op, g, p.Keep, of)
	// What is wanted no more and is not there either needs no step.
	for _, r := range slices.SortedFunc(maps.Values(of), func(a, b gpu.PartitionRecord) int { return cmp.Compare(a.ID, b.ID) }) {
		if !removed[r.ID] {
			op.Rows = append(op.Rows, operation.Delete(gpu.RecordPartition, r.ID))
			op.Release = append(op.Release, operation.Put(gpu.RecordPartition, r.ID, r))
		}
	}
	if p.Mode != nil && !*p.Mode {
		mode()
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
func (h *Host) createInstances(op *operation.Plan, g gpu.GPU, create []gpu.Partition, of map[string]gpu.PartitionRecord, removed map[string]bool) {
	for _, q := range create {
		r := h.recordAt(g, q)
		op.Steps = append(op.Steps, makeStep(r))
		if removed[q.ID] {
			continue // its record goes with the one step and comes with the other
		}
		op.Rows = append(op.Rows, operation.Put(gpu.RecordPartition, r.ID, r))
		if was, ok := of[r.ID]; ok { // it was missing
			op.Release = append(op.Release, operation.Put(gpu.RecordPartition, was.ID, was))
		} else {
			op.Release = append(op.Release, operation.Delete(gpu.RecordPartition, r.ID))
		}
		delete(of, r.ID)
	}
}

// keepInstances makes ours what is kept and was not.
func (h *Host) keepInstances(op *operation.Plan, g gpu.GPU, keep []gpu.Partition, of map[string]gpu.PartitionRecord) {
	for _, q := range keep {
		if was, ok := of[q.ID]; ok && was.Profile == q.Profile && sameCard(was.Identity, g.Identity) && slices.Equal(was.Compute, withoutUUIDs(q.Compute)) {
			delete(of, q.ID)
			continue
		}
		r := h.recordAt(g, q)
		r.State = gpu.PartitionMade
		op.Rows = append(op.Rows, operation.Put(gpu.RecordPartition, r.ID, r))
		if was, ok := of[q.ID]; ok {
			op.Release = append(op.Release, operation.Put(gpu.RecordPartition, was.ID, was))
		} else {
			op.Release = append(op.Release, operation.Delete(gpu.RecordPartition, r.ID))
		}
		delete(of, q.ID)
	}
}

// recordAt is the record of a partition whose place is its identity.
func (h *Host) recordAt(g gpu.GPU, p gpu.Partition) gpu.PartitionRecord {
	return gpu.PartitionRecord{
		ID: p.ID, GPU: g.ID, Identity: g.Identity, Parent: p.Parent, Kind: p.Kind, Profile: p.Profile, Native: p.Native,
		Slot: p.Slot, Compute: withoutUUIDs(p.Compute), DeviceAPI: p.DeviceAPI, State: gpu.PartitionMaking, Created: h.cfg.Now().UTC(),
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
	p, err := h.planLayout(ctx, id, want)
	if err != nil {
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
	if err := h.held([]string{"gpu/" + string(id)}); err != nil {
		return gpu.LayoutState{}, nil, err
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
	p, err := h.planLayout(ctx, id, want)
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

func (h *Host) doMode(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a modeArgs
	if err := t.Args(&a); err != nil {
		return nil, err
	}
	err := h.setMode(ctx, a, a.On)
	switch gpu.CodeOf(err) { //nolint:exhaustive // the others are as they are
	case gpu.CodeUnavailable:
		if t.Resumed() {
			err = h.patient(t, err) // a GPU that is not there just after boot is not gone
		}
	case gpu.CodeNeedsReset, gpu.CodeNeedsReboot:
		return nil, waitForReset(err) // what follows goes on when it is in force
	}
	return nil, unclean(err)
}

// waitForReset has a person act on a mode that the driver has stored and that is not in
// force.
func waitForReset(err error) error {
	reason := err.Error()
	if e, ok := errors.AsType[*gpu.Error](err); ok && e.Hint != "" {
		reason += "; " + e.Hint
	}
	return &operation.WaitError{Reason: reason + ", then retry this operation"}
}

// undoMode puts the mode back that was in force: a step that has only taken back what
// waited for a reset leaves nothing to do. What was made meanwhile has been removed before.
func (h *Host) undoMode(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a modeArgs
	if err := t.Args(&a); err != nil {
		return nil, err
	}
	err := h.patient(t, h.setMode(ctx, a, a.Was))
	switch gpu.CodeOf(err) { //nolint:exhaustive // the others are as they are
	case gpu.CodeNeedsReset, gpu.CodeNeedsReboot:
		return nil, waitForReset(err)
	case gpu.CodeGPUBusy:
		if _, again := errors.AsType[*operation.RetryError](err); !again {
			// What is on it is not ours: ours has been removed. Whoever made it needs the mode.
			h.cfg.Log.WarnContext(ctx, "the mode of MIG stays, as somebody uses the gpu", "gpu", a.GPU, "err", err)
			return nil, nil
		}
	}
	return nil, err
}

func (h *Host) setMode(ctx context.Context, a modeArgs, on bool) error {
	c, l, err := h.cutter(ctx, a.GPU)
	if err != nil {
		return err
	}
	if !sameCard(a.Identity, l.GPU.Identity) {
		return gpu.Errorf(gpu.CodeDrift, "another card (%s) is where %s was when its layout was asked for", describe(l.GPU.Identity), describe(a.Identity))
	}
	err = c.SetMode(context.WithoutCancel(ctx), a.GPU, on)
	if gpu.CodeOf(err) == gpu.CodeGPUBusy {
		return h.withGPUHolders(ctx, a.GPU, err)
	}
	return err
}

// withGPUHolders adds to a refusal which processes have a GPU open: the driver knows only
// those that compute or draw, and refuses because of the others as well (T32).
func (h *Host) withGPUHolders(ctx context.Context, id gpu.ID, refusal error) error {
	holders, err := h.cfg.Inventory.GPUHolders(ctx, id)
	if err != nil {
		return errors.Join(refusal, err)
	}
	e, ok := errors.AsType[*gpu.Error](refusal)
	if !ok {
		return refusal
	}
	for _, hd := range holders {
		i := slices.IndexFunc(e.Blockers, func(b gpu.Blocker) bool { return b.Kind == hd.Kind && b.ID == hd.ID })
		if i < 0 {
			e = e.WithBlockers(gpu.Blocker{Kind: hd.Kind, ID: hd.ID, Name: hd.Name})
		} else if e.Blockers[i].Name == "" {
			e.Blockers[i].Name = hd.Name
		}
	}
	return refusal
}
