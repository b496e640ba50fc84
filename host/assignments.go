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

// Assignments lists the assignments with what is observed of each. Where libvirt
// does not answer they are Unknown, not missing.
func (h *Host) Assignments(ctx context.Context) ([]gpu.Assignment, error) {
	records, err := h.cfg.Store.AssignmentRecords()
	if err != nil {
		return nil, err
	}
	if len(records) == 0 {
		return nil, nil
	}
	// Who works on them is asked before and after looking at the machine: what an
	// operation that ends in between left half done is no drift.
	at := make([]*operation.Operation, len(records))
	for i, r := range records {
		if records[i], at[i], err = h.atWork(r); err != nil {
			return nil, err
		}
	}
	var s sight
	s.vms, s.vmErr = h.cfg.Inventory.VMs(ctx)
	s.parts, s.partErr = h.partitions(ctx)
	out := make([]gpu.Assignment, 0, len(records))
	for i, r := range records {
		out = append(out, h.explained(ctx, observe(r, s, cmp.Or(h.worker(r.Name), at[i]))))
	}
	slices.SortFunc(out, func(a, b gpu.Assignment) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// Assignment returns one, or CodeNotFound.
func (h *Host) Assignment(ctx context.Context, name string) (gpu.Assignment, error) {
	r, err := h.cfg.Store.AssignmentRecord(name)
	if err != nil {
		return gpu.Assignment{}, err
	}
	r, at, err := h.atWork(r)
	if err != nil {
		return gpu.Assignment{}, err
	}
	var s sight
	switch p, err := h.partition(ctx, r.Partition); {
	case err == nil:
		s.parts = []gpu.Partition{p}
	case gpu.CodeOf(err) != gpu.CodeNotFound:
		s.partErr = err
	}
	vm, err := h.cfg.Inventory.VM(ctx, r.Wish.VM)
	switch {
	case err == nil:
		s.vms = []gpu.VM{vm}
	case gpu.CodeOf(err) != gpu.CodeVMNotFound:
		s.vmErr = err
	}
	return h.explained(ctx, observe(r, s, cmp.Or(h.worker(name), at))), nil
}

// atWork returns the operation that works on an assignment, or nil, and the record:
// a fresh one where the operation has ended since it was read.
func (h *Host) atWork(r gpu.AssignmentRecord) (gpu.AssignmentRecord, *operation.Operation, error) {
	op := h.worker(r.Name)
	if op != nil || r.Bound {
		return r, op, nil
	}
	now, err := h.cfg.Store.AssignmentRecord(r.Name)
	if gpu.CodeOf(err) == gpu.CodeNotFound {
		return r, nil, nil // undone: the next look will not find it
	}
	return now, nil, err
}

// worker returns the operation that works on an assignment, or nil.
func (h *Host) worker(name string) *operation.Operation {
	if op, ok := h.cfg.Engine.Holder("assignment/" + name); ok {
		return &op
	}
	return nil
}

// sight is what was seen of the machine: VMs and partitions, or why not.
type sight struct {
	vms     []gpu.VM
	vmErr   error
	parts   []gpu.Partition
	partErr error
}

// observe puts what was seen beside what was asked. While an operation works on
// the assignment, what is half there is no drift.
func observe(r gpu.AssignmentRecord, s sight, op *operation.Operation) gpu.Assignment {
	a := gpu.Assignment{
		Name: r.Name, Wish: r.Wish, VMName: r.VMName, Partition: r.Partition, GPU: r.GPU,
		Created: r.Created, Generation: r.Generation, State: gpu.AssignmentAttached,
	}
	bad := func(state gpu.AssignmentState, t gpu.ConditionType, reason, format string, args ...any) {
		a.State = state
		a.Conditions = append(a.Conditions, gpu.Condition{Type: t, Status: true, Reason: reason, Message: fmt.Sprintf(format, args...)})
	}
	var handle gpu.Handle
	switch i := slices.IndexFunc(s.parts, func(p gpu.Partition) bool { return p.ID == r.Partition }); {
	case s.partErr != nil:
		bad(gpu.AssignmentUnknown, gpu.Unknown, "PartitionUnknown", "%v", s.partErr)
	case i < 0 || s.parts[i].State == gpu.PartitionMissing:
		bad(gpu.AssignmentDrifted, gpu.Drifted, "PartitionMissing", "its partition %s is not there", r.Partition)
	default:
		handle = s.parts[i].Handle
		for _, c := range s.parts[i].Conditions {
			switch {
			case c.Status && c.Type == gpu.Drifted:
				bad(gpu.AssignmentDrifted, gpu.Drifted, "Partition"+c.Reason, "%s", c.Message)
			case c.Status && c.Type == gpu.Unknown:
				bad(gpu.AssignmentUnknown, gpu.Unknown, "Partition"+c.Reason, "%s", c.Message)
			}
		}
	}
	switch i := slices.IndexFunc(s.vms, func(v gpu.VM) bool { return v.UUID == r.Wish.VM }); {
	case s.vmErr != nil:
		bad(gpu.AssignmentUnknown, gpu.Unknown, "VMUnknown", "%v", s.vmErr)
	case i < 0:
		bad(gpu.AssignmentDrifted, gpu.Drifted, "VMGone", "vm %s (%s) is not defined any more", r.VMName, r.Wish.VM)
	default:
		vm := s.vms[i]
		a.VMName = vm.Name
		dev, has := vm.Hostdev(gpu.Alias(r.Partition))
		if has && handle != (gpu.Handle{}) && !inventory.Same(dev.Handle, handle) {
			bad(gpu.AssignmentDrifted, gpu.Drifted, "OtherDevice", "vm %s has another device under our alias %s", vm.Name, dev.Alias)
			break
		}
		a.Live, a.Config = dev.Live, dev.Config
		switch {
		case vm.Persistent && !dev.Config:
			bad(gpu.AssignmentDrifted, gpu.Drifted, "NotInConfig", "the persistent definition of vm %s does not have the device", vm.Name)
		case !vm.Persistent && !dev.Live:
			bad(gpu.AssignmentDrifted, gpu.Drifted, "NotLive", "the running vm %s does not have the device", vm.Name)
		case vm.State.Active() && !dev.Live:
			a.RestartRequired = true
		}
	}
	switch {
	case op != nil:
		a.Operation, a.State, a.Conditions = op.ID, gpu.AssignmentAttaching, nil
		if op.Kind == kindDetach {
			a.State = gpu.AssignmentDetaching
		}
		if op.Status == operation.Failed {
			bad(a.State, gpu.Degraded, "OperationFailed", "operation %s could not be undone: retry or forget it", op.ID)
		}
	case !r.Bound:
		bad(gpu.AssignmentDrifted, gpu.Degraded, "NotCarriedOut", "the operation that should carry it out was given up: put it again, or delete it")
	}
	return a
}

// diff compares two wishes field by field: nil if they are the same.
func diff(stored, asked gpu.Wish) map[string][2]string {
	d := map[string][2]string{}
	add := func(field, s, a string) {
		if s != a {
			d[field] = [2]string{s, a}
		}
	}
	add("vm", stored.VM, asked.VM)
	add("profile", stored.Profile, asked.Profile)
	add("gpu", string(stored.GPU), string(asked.GPU))
	add("placement", string(stored.Placement), string(asked.Placement))
	add("hotplug", string(stored.Hotplug), string(asked.Hotplug))
	add("display", fmt.Sprint(stored.Display), fmt.Sprint(asked.Display))
	if len(d) == 0 {
		return nil
	}
	return d
}

// attachPlan is a wish as planned: the operation that carries it out, or, where
// the wish is stored already, what is stored and the operation that is at it.
type attachPlan struct {
	stored  *gpu.AssignmentRecord
	running *operation.Operation
	op      operation.Plan
}

func (h *Host) planAttach(ctx context.Context, name string, w gpu.Wish) (attachPlan, error) {
	w.Placement, w.Hotplug = cmp.Or(w.Placement, gpu.Pack), cmp.Or(w.Hotplug, gpu.HotplugAuto)
	vm, err := h.cfg.Inventory.VMHead(ctx, w.VM)
	if err != nil {
		return attachPlan{}, err
	}
	w.VM = vm.UUID
	key := "assignment/" + name
	old, err := h.cfg.Store.AssignmentRecord(name)
	switch {
	case err == nil:
		if d := diff(old.Wish, w); d != nil {
			e := gpu.Errorf(gpu.CodeConflict, "cannot put assignment %q: another wish is stored under this name", name).
				WithHint("delete it first, or use another name")
			e.Diff = d
			return attachPlan{}, e
		}
		op, held := h.cfg.Engine.Holder(key)
		if !held && old.Bound {
			convert, err := h.planConvert(ctx, vm, old)
			if convert != nil || err != nil {
				return attachPlan{op: *cmp.Or(convert, &operation.Plan{})}, err
			}
			return attachPlan{stored: &old}, nil
		}
		if held {
			if op.Kind != kindAttach && op.Kind != kindConvert || op.Final() || op.Status == operation.Undoing || op.Abort {
				return attachPlan{}, &operation.ConflictError{Key: key, Holder: op.ID, Summary: op.Summary}
			}
			return attachPlan{stored: &old, running: &op}, nil
		}
		return attachPlan{}, gpu.Errorf(gpu.CodeConflict, "cannot put assignment %q: the operation that should carry it out was given up, and may have left something", name).
			WithBlockers(gpu.Blocker{Kind: "partition", ID: old.Partition}).WithHint("delete it first: gpuvirt detach %s", name)
	case gpu.CodeOf(err) != gpu.CodeNotFound:
		return attachPlan{}, err
	}
	if err := attachable(vm, w); err != nil {
		return attachPlan{}, err
	}
	g, p, err := h.place(ctx, w.Profile, w.GPU, w.Placement, &vm)
	if err != nil {
		return attachPlan{}, err
	}
	part, err := h.newRecord(ctx, g, p, name)
	if err != nil {
		return attachPlan{}, err
	}
	rec := gpu.AssignmentRecord{
		Name: name, Wish: w, VMName: vm.Name, Partition: part.ID, GPU: g.ID,
		Generation: old.Generation + 1, Created: h.cfg.Now().UTC(),
	}
	return attachPlan{op: operation.Plan{
		Kind: kindAttach, Summary: fmt.Sprintf("attach %s to vm %s as %s", p.Name, vm.Name, name),
		Keys: []string{key, "gpu/" + string(g.ID), "vm/" + vm.UUID},
		Steps: []operation.PlanStep{
			makeStep(part),
			{Kind: stepAttach, Summary: "attach it to vm " + vm.Name, Args: attachArgs{Assignment: rec, Hostdev: hostdev(rec, part), Planned: scope(vm, w)}},
		},
		Rows: []operation.Row{
			operation.Put(gpu.RecordPartition, part.ID, part),
			operation.Put(gpu.RecordAssignment, name, rec),
		},
		Release: []operation.Row{
			operation.Delete(gpu.RecordAssignment, name),
			operation.Delete(gpu.RecordPartition, part.ID),
		},
	}}, nil
}

// attachable refuses what a VM's state rules out.
func attachable(vm gpu.VMHead, w gpu.Wish) error {
	blocker := gpu.Blocker{Kind: "vm", ID: vm.UUID, Name: vm.Name}
	switch {
	case w.Hotplug == gpu.HotplugRequire && !vm.Active:
		return gpu.Errorf(gpu.CodeConflict, "cannot attach to vm %q now: it does not run, and hotplug is \"require\"", vm.Name).
			WithBlockers(blocker).WithHint("start the vm, or ask for hotplug \"auto\"")
	case w.Hotplug == gpu.HotplugNever && !vm.Persistent:
		return gpu.Errorf(gpu.CodeConflict, "cannot attach to vm %q later: it has no persistent definition, and hotplug is \"never\"", vm.Name).
			WithBlockers(blocker)
	}
	return nil
}

func hostdev(a gpu.AssignmentRecord, p gpu.PartitionRecord) gpu.Hostdev {
	return gpu.Hostdev{Alias: gpu.Alias(p.ID), Handle: p.Handle, Model: p.DeviceAPI, Display: a.Wish.Display}
}

// PutAssignment starts carrying a wish out. Where the same wish is stored and
// carried out it writes nothing and returns no operation; where it is being
// carried out it returns that operation.
func (h *Host) PutAssignment(ctx context.Context, actor, name string, w gpu.Wish) (gpu.Assignment, *operation.Operation, error) {
	h.planning.Lock()
	defer h.planning.Unlock()
	plan, err := h.planAttach(ctx, name, w)
	if err != nil {
		return gpu.Assignment{}, nil, err
	}
	if plan.stored != nil {
		a, err := h.Assignment(ctx, name)
		return a, plan.running, err
	}
	plan.op.Actor = actor
	op, err := h.add(ctx, plan.op)
	if err != nil {
		return gpu.Assignment{}, nil, err
	}
	return gpu.Assignment{}, &op, nil
}

// PlanAssignment is the dry run of PutAssignment.
func (h *Host) PlanAssignment(ctx context.Context, name string, w gpu.Wish) (gpu.Plan, error) {
	plan, err := h.planAttach(ctx, name, w)
	if err == nil && plan.stored != nil {
		return gpu.Plan{Summary: fmt.Sprintf("assignment %s is as asked", name), Steps: []gpu.PlanStep{}}, nil
	}
	return h.plan(plan.op, err)
}

func (h *Host) planDetach(ctx context.Context, name string) (operation.Plan, error) {
	rec, err := h.cfg.Store.AssignmentRecord(name)
	if err != nil {
		return operation.Plan{}, err
	}
	part, err := h.cfg.Store.PartitionRecord(rec.Partition)
	if err != nil {
		return operation.Plan{}, err
	}
	vmName := rec.VMName
	switch vm, err := h.cfg.Inventory.VMHead(ctx, rec.Wish.VM); {
	case err == nil:
		vmName = vm.Name
	case gpu.CodeOf(err) != gpu.CodeVMNotFound: // a VM that is gone has nothing to detach from
		return operation.Plan{}, err
	}
	return operation.Plan{
		Kind: kindDetach, Summary: fmt.Sprintf("detach %s from vm %s", name, vmName),
		Keys: []string{"assignment/" + name, "gpu/" + string(rec.GPU), "vm/" + rec.Wish.VM},
		Steps: []operation.PlanStep{
			{Kind: stepDetach, Summary: "detach it from vm " + vmName, Args: attachArgs{Assignment: rec, Hostdev: hostdev(rec, part)}},
			removeStep(part, &rec),
		},
	}, nil
}

// DeleteAssignment starts taking the device from the VM and removing the partition.
func (h *Host) DeleteAssignment(ctx context.Context, actor, name string) (operation.Operation, error) {
	h.planning.Lock()
	defer h.planning.Unlock()
	n, err := h.planDetach(ctx, name)
	if err != nil {
		return operation.Operation{}, err
	}
	n.Actor = actor
	return h.add(ctx, n)
}

// PlanDeleteAssignment is the dry run of DeleteAssignment.
func (h *Host) PlanDeleteAssignment(ctx context.Context, name string) (gpu.Plan, error) {
	n, err := h.planDetach(ctx, name)
	if gpu.CodeOf(err) == gpu.CodeNotFound && err != nil {
		return gpu.Plan{}, err // of a name that is not there, there is no plan either
	}
	return h.plan(n, err)
}
