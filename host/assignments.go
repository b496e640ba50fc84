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

// AssignmentWish returns what one asks for, or CodeNotFound. It does not look at the machine.
func (h *Host) AssignmentWish(name string) (gpu.Wish, error) {
	r, err := h.cfg.Store.AssignmentRecord(name)
	return r.Wish, err
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
	add("ramfb", fmt.Sprint(stored.RamFB), fmt.Sprint(asked.RamFB))
	add("vgpu_params", stored.Params, asked.Params)
	if len(d) == 0 {
		return nil
	}
	return d
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
	if err := h.onlyUsedBy(ctx, rec, part); err != nil {
		return operation.Plan{}, err
	}
	op := operation.Plan{
		Kind: kindDetach, Summary: fmt.Sprintf("detach %s from vm %s", name, vmName),
		Keys: []string{"assignment/" + name, "gpu/" + string(rec.GPU), "vm/" + rec.Wish.VM},
		Steps: []operation.PlanStep{
			{Kind: stepDetach, Summary: "detach it from vm " + vmName, Args: attachArgs{Assignment: rec, Hostdev: hostdev(rec, part)}},
			removeStep(part, &rec),
		},
	}
	bases, err := h.basesOf(ctx, part)
	for _, base := range bases {
		op.Keys = append(op.Keys, "partition/"+base.ID)
		step := removeStep(base, nil)
		step.Args = makeArgs{Partition: base, Optional: true} // a monitor on it is no reason to keep the vGPU
		op.Steps = append(op.Steps, step)
	}
	return op, err
}

// onlyUsedBy refuses to take a device from a VM that another VM's definition names as well:
// it could not be removed then, and would be put back into the first.
func (h *Host) onlyUsedBy(ctx context.Context, a gpu.AssignmentRecord, part gpu.PartitionRecord) error {
	vms, err := h.cfg.Inventory.VMs(ctx)
	if err != nil {
		return err
	}
	if err := h.companionsFree(ctx, a, part, vms); err != nil {
		return err
	}
	var others []gpu.Blocker
	for _, vm := range vms {
		if dev, has := vm.Hostdev(gpu.Alias(part.ID)); vm.UUID == a.Wish.VM && has && dev.Live && dev.RamFB {
			return gpu.Errorf(gpu.CodeVMRunning, "cannot detach %q: vm %s runs with it, and a display with ramfb goes when a vm is shut down", a.Name, vm.Name).
				WithBlockers(gpu.Blocker{Kind: "vm", ID: vm.UUID, Name: vm.Name}).WithHint("shut the vm down first")
		}
		if vm.UUID != a.Wish.VM && slices.ContainsFunc(vm.Hostdevs, func(d gpu.Hostdev) bool { return inventory.Same(d.Handle, part.Handle) }) {
			others = append(others, gpu.Blocker{Kind: "vm", ID: vm.UUID, Name: vm.Name, Note: "its definition names the same device"})
		}
	}
	if len(others) == 0 {
		return nil
	}
	return gpu.Errorf(gpu.CodeGPUBusy, "cannot detach %q: another vm names its device as well", a.Name).WithBlockers(others...).
		WithHint("take the device out of the other vm's definition first")
}

// companionsFree refuses to take a card back while a definition names a function that goes
// with it: nobody but a person has put that there.
func (h *Host) companionsFree(ctx context.Context, a gpu.AssignmentRecord, part gpu.PartitionRecord, vms []gpu.VM) error {
	if part.Kind != gpu.KindCard {
		return nil
	}
	b, err := h.cfg.Inventory.Backend(part.Kind)
	if err != nil {
		return err
	}
	there, err := b.Partitions(ctx, part.GPU)
	if err != nil && gpu.CodeOf(err) != gpu.CodeNotFound {
		return err
	}
	i := slices.IndexFunc(there, func(p gpu.Partition) bool { return p.ID == part.ID })
	if i < 0 {
		return nil
	}
	var in []gpu.Blocker
	for _, vm := range vms {
		for _, d := range vm.Hostdevs {
			if slices.Contains(there[i].Companions, d.Handle.PCIAddress) {
				in = append(in, gpu.Blocker{Kind: "vm", ID: vm.UUID, Name: vm.Name, Note: "its definition names " + d.Handle.PCIAddress})
			}
		}
	}
	if len(in) == 0 {
		return nil
	}
	return gpu.Errorf(gpu.CodeGPUBusy, "cannot detach %q: a vm has a function that goes back with the card", a.Name).WithBlockers(in...).
		WithHint("take the function out of the vm's definition first: who put it there has to")
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
