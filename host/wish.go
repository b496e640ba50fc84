package host

import (
	"cmp"
	"context"
	"fmt"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// attachPlan is a wish as planned: the operation that carries it out, or, where
// the wish is stored already, what is stored and the operation that is at it.
type attachPlan struct {
	stored  *gpu.AssignmentRecord
	running *operation.Operation
	op      operation.Plan
	next    claim // what it will have taken
}

// planAttach plans one wish. batch is what the wishes before it take that are carried out
// together with it, nil where it stands alone.
func (h *Host) planAttach(ctx context.Context, name string, w gpu.Wish, batch *batch) (attachPlan, error) {
	w.Hotplug = cmp.Or(w.Hotplug, gpu.HotplugAuto)
	vm, err := h.cfg.Inventory.VMHead(ctx, w.VM)
	if err != nil {
		return attachPlan{}, err
	}
	w.VM = vm.UUID
	key := "assignment/" + name
	old, err := h.cfg.Store.AssignmentRecord(name)
	asked := w.Placement
	// What was asked for while another placing was the host's own is the same wish still.
	w.Placement = cmp.Or(w.Placement, old.Wish.Placement, h.Placement())
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
			again, err := h.planAgain(ctx, vm, old, batch)
			if again != nil || err != nil {
				return *cmp.Or(again, &attachPlan{}), err
			}
			return attachPlan{stored: &old}, nil
		}
		if held {
			if op.Kind != kindAttach && op.Kind != kindConvert && op.Kind != kindPutBack && op.Kind != kindApply || op.Final() || op.Status == operation.Undoing || op.Abort {
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
	taker := h.taker(vm)
	g, p, n, err := h.settle(ctx, w, asked, name, taker, batch)
	if err != nil {
		return attachPlan{}, err
	}
	if err := h.onlyDisplay(ctx, taker, w, p, batch); err != nil {
		return attachPlan{}, err
	}
	rec := gpu.AssignmentRecord{
		Name: name, Wish: w, VMName: vm.Name, Partition: n.part.ID, GPU: g.ID,
		Generation: old.Generation + 1, Created: h.cfg.Now().UTC(),
	}
	op := operation.Plan{
		Kind: kindAttach, Summary: fmt.Sprintf("attach %s to vm %s as %s", p.Name, vm.Name, name),
		Keys:    []string{key, "gpu/" + string(g.ID), "vm/" + vm.UUID},
		Rows:    []operation.Row{operation.Put(gpu.RecordAssignment, name, rec)},
		Release: []operation.Row{operation.Delete(gpu.RecordAssignment, name)},
	}
	n.reserve(&op)
	op.Steps = append(n.steps(), operation.PlanStep{
		Kind: stepAttach, Summary: "attach it to vm " + vm.Name + taker.farFrom(g), Args: attachArgs{Assignment: rec, Hostdev: hostdev(rec, n.part), Planned: scope(vm, w)},
	})
	return attachPlan{next: claim{rec, n, p}, op: op}, nil
}

// attachable refuses what a VM's state rules out.
func attachable(vm gpu.VMHead, w gpu.Wish) error {
	blocker := gpu.Blocker{Kind: "vm", ID: vm.UUID, Name: vm.Name}
	switch {
	case w.RamFB && (w.Hotplug == gpu.HotplugRequire || !vm.Persistent):
		return gpu.Errorf(gpu.CodeConflict, "cannot attach to vm %q now: a display with ramfb comes with the start of a vm, from its persistent definition", vm.Name).
			WithBlockers(blocker).WithHint("ask for it without ramfb, or with hotplug \"never\"")
	case w.Hotplug == gpu.HotplugRequire && !vm.Active:
		return gpu.Errorf(gpu.CodeConflict, "cannot attach to vm %q now: it does not run, and hotplug is \"require\"", vm.Name).
			WithBlockers(blocker).WithHint("start the vm, or ask for hotplug \"auto\"")
	case w.Hotplug == gpu.HotplugNever && !vm.Persistent:
		return gpu.Errorf(gpu.CodeConflict, "cannot attach to vm %q later: it has no persistent definition, and hotplug is \"never\"", vm.Name).
			WithBlockers(blocker)
	}
	return nil
}

// onlyDisplay refuses a second display of a VM (T52), and one that libvirt would not make.
func (h *Host) onlyDisplay(ctx context.Context, vm *taker, w gpu.Wish, p gpu.Profile, batch *batch) error {
	if !w.Display {
		return nil
	}
	if err := h.displayable(ctx, p, w); err != nil {
		return err
	}
	second := func(kind, id string) error {
		return gpu.Errorf(gpu.CodeConflict, "cannot make a %s the display of vm %s: it has one already (%s %s)", p.Name, vm.Name, kind, id).
			WithBlockers(gpu.Blocker{Kind: kind, ID: id}).WithHint("ask for it without display")
	}
	for _, c := range batch.list() {
		if c.assignment.Wish.VM == vm.UUID && c.assignment.Wish.Display {
			return second("assignment", c.assignment.Name)
		}
	}
	records, err := h.cfg.Store.AssignmentRecords()
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.Wish.VM == vm.UUID && r.Wish.Display {
			return second("assignment", r.Name)
		}
	}
	whole, err := vm.vm(ctx)
	if err != nil {
		return err
	}
	for _, d := range whole.Hostdevs {
		if d.Display {
			return second("partition", cmp.Or(d.Handle.MdevUUID, d.Handle.PCIAddress))
		}
	}
	return nil
}

// The first libvirts that make a display of a PCI device, and show the firmware on that of a
// mediated device.
var (
	pciDisplaySince = [2]int{10, 2}
	ramfbSince      = [2]int{5, 10}
)

// displayable refuses a display that libvirt would not make: it has them of vGPUs. A version
// that cannot be told is left for libvirt to refuse.
func (h *Host) displayable(ctx context.Context, p gpu.Profile, w gpu.Wish) error {
	refuse := func(why string, args ...any) error {
		return gpu.Errorf(gpu.CodeInvalid, "cannot make a %s a display: %s", p.Name, fmt.Sprintf(why, args...)).WithHint("ask for it without display")
	}
	if !isVGPU(p.Kind) {
		return refuse("it is a %s, and only a vGPU or an mdev can be one", p.Kind)
	}
	if w.RamFB && p.DeviceAPI != "" && p.DeviceAPI != "vfio-pci" {
		return refuse("the firmware has nothing to show it on, as its api is %s", p.DeviceAPI)
	}
	version, err := h.cfg.Inventory.LibvirtVersion(ctx)
	switch {
	case err != nil:
	case p.Kind == gpu.KindVGPU && older(version, pciDisplaySince):
		return refuse("it is on a virtual function, which takes libvirt %d.%d or newer, and this is %s", pciDisplaySince[0], pciDisplaySince[1], version)
	case w.RamFB && older(version, ramfbSince):
		return refuse("ramfb takes libvirt %d.%d or newer, and this is %s", ramfbSince[0], ramfbSince[1], version)
	}
	return nil
}

func hostdev(a gpu.AssignmentRecord, p gpu.PartitionRecord) gpu.Hostdev {
	return gpu.Hostdev{Alias: gpu.Alias(p.ID), Handle: p.Handle, Model: p.DeviceAPI, Display: a.Wish.Display, RamFB: a.Wish.RamFB}
}

// PutAssignment starts carrying a wish out. Where the same wish is stored and
// carried out it writes nothing and returns no operation; where it is being
// carried out it returns that operation.
func (h *Host) PutAssignment(ctx context.Context, actor, name string, w gpu.Wish) (gpu.Assignment, *operation.Operation, error) {
	h.planning.Lock()
	defer h.planning.Unlock()
	plan, err := h.planAttach(ctx, name, w, nil)
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
	plan, err := h.planAttach(ctx, name, w, nil)
	if err == nil && plan.stored != nil {
		return gpu.Plan{Summary: fmt.Sprintf("assignment %s is as asked", name), Steps: []gpu.PlanStep{}}, nil
	}
	return h.plan(plan.op, err)
}
