package host

import (
	"context"
	"errors"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// Kinds of operation and of step.
const (
	kindAttach = "assignment.attach"
	kindDetach = "assignment.detach"

	stepMake   = "partition.make"
	stepRemove = "partition.remove"
	stepAttach = "vm.attach"
	stepDetach = "vm.detach"
)

// retryAfter is how long a step waits before it asks a libvirt again that did not
// answer. Nothing is given up meanwhile: unknown is not free.
const retryAfter = 2 * time.Second

// attachArgs are the arguments of vm.attach and vm.detach.
type attachArgs struct {
	Assignment gpu.AssignmentRecord `json:"assignment"`
	Hostdev    gpu.Hostdev          `json:"hostdev"`
}

// scopeNote is what vm.detach wrote down for its undo: where the device was.
type scopeNote struct {
	Scope gpu.Scope `json:"scope"`
}

// register gives the engine the hands for each step. Every one of them may be
// run again after a crash, and every undo copes with a do that never happened.
func (h *Host) register(e *operation.Engine) {
	e.Handle(stepMake, operation.Handler{Do: h.doMake, Undo: h.undoMake})
	e.Handle(stepRemove, operation.Handler{Do: h.doRemove, Undo: h.doMake})
	e.Handle(stepAttach, operation.Handler{Do: h.doAttach, Undo: h.undoAttach})
	e.Handle(stepDetach, operation.Handler{Do: h.doDetach, Undo: h.undoDetach})
}

// patient turns "libvirt does not answer" into another try: the step waits instead
// of failing, and a person may abort the operation. Other errors stay what they are.
func patient(err error) error {
	if err != nil && gpu.CodeOf(err) == gpu.CodeUnavailable {
		return &operation.RetryError{After: retryAfter, Err: err}
	}
	return err
}

// doMake makes a partition; as the undo of partition.remove it makes it again, under
// the same identity.
func (h *Host) doMake(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var r gpu.PartitionRecord
	if err := t.Args(&r); err != nil {
		return nil, err
	}
	made, err := h.makePartition(ctx, r)
	if err != nil {
		return nil, err
	}
	return []operation.Row{operation.Put(gpu.RecordPartition, r.ID, made)}, nil
}

// makePartition makes what a record describes, or finds it made, and returns the
// record as it is then.
func (h *Host) makePartition(ctx context.Context, r gpu.PartitionRecord) (gpu.PartitionRecord, error) {
	b, err := h.cfg.Inventory.Backend(r.Kind)
	if err != nil {
		return r, err
	}
	p, err := b.Make(ctx, r.Partition())
	if err != nil {
		return r, err
	}
	r.Parent, r.Handle, r.State = p.Parent, p.Handle, gpu.PartitionMade
	return r, nil
}

func (h *Host) undoMake(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var r gpu.PartitionRecord
	if err := t.Args(&r); err != nil {
		return nil, err
	}
	return nil, h.removePartition(ctx, r)
}

// removePartition removes a partition of ours after making sure that no VM has
// it and no process holds it. What is not known counts as in use.
func (h *Host) removePartition(ctx context.Context, r gpu.PartitionRecord) error {
	b, err := h.cfg.Inventory.Backend(r.Kind)
	if err != nil {
		return err
	}
	there, err := b.Partitions(ctx, r.GPU)
	if err != nil {
		return err
	}
	for _, p := range there {
		if p.ID != r.ID {
			continue
		}
		vms, err := h.cfg.Inventory.VMs(ctx)
		if err != nil {
			return patient(err)
		}
		h.addHolders(ctx, &p, vms, nil)
		if err := inUse(p); err != nil {
			return patient(err)
		}
		return b.Remove(ctx, p)
	}
	return nil
}

func (h *Host) doRemove(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var r gpu.PartitionRecord
	if err := t.Args(&r); err != nil {
		return nil, err
	}
	if err := h.removePartition(ctx, r); err != nil {
		return nil, err
	}
	rows := []operation.Row{operation.Delete(gpu.RecordPartition, r.ID)}
	if r.Assignment != "" {
		rows = append(rows, operation.Delete(gpu.RecordAssignment, r.Assignment))
	}
	return rows, nil
}

// scope is where a VM, as it is now, should have the device.
func scope(vm gpu.VM, w gpu.Wish) gpu.Scope {
	return gpu.Scope{Live: vm.State.Active() && w.Hotplug != gpu.HotplugNever, Config: vm.Persistent}
}

func (h *Host) doAttach(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a attachArgs
	if err := t.Args(&a); err != nil {
		return nil, err
	}
	vm, err := h.cfg.Inventory.VM(ctx, a.Assignment.Wish.VM)
	if err != nil {
		return nil, patient(err)
	}
	s := scope(vm, a.Assignment.Wish)
	if err := h.cfg.VMs.Attach(ctx, vm.UUID, a.Hostdev, s); err != nil {
		if gpu.CodeOf(err) == gpu.CodeUnavailable {
			return nil, patient(err) // not known what is: found out by trying again
		}
		return nil, errors.Join(err, h.detach(context.WithoutCancel(ctx), a))
	}
	rec := a.Assignment
	rec.Bound = true
	h.hub.emit("assignment.attached", rec.Name, map[string]string{"vm": vm.UUID, "partition": rec.Partition})
	return []operation.Row{operation.Put(gpu.RecordAssignment, rec.Name, rec)}, nil
}

func (h *Host) undoAttach(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a attachArgs
	if err := t.Args(&a); err != nil {
		return nil, err
	}
	return nil, patient(h.detach(ctx, a))
}

// detach takes the device from wherever the VM has it. A VM that is gone, or
// never had it, is fine.
func (h *Host) detach(ctx context.Context, a attachArgs) error {
	vm, err := h.cfg.Inventory.VM(ctx, a.Assignment.Wish.VM)
	if gpu.CodeOf(err) == gpu.CodeVMNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	dev, has := vm.Hostdev(a.Hostdev.Alias)
	if !has {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, h.cfg.DetachTimeout)
	defer cancel()
	return h.cfg.VMs.Detach(ctx, vm.UUID, a.Hostdev.Alias, gpu.Scope{Live: dev.Live, Config: dev.Config})
}

func (h *Host) doDetach(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a attachArgs
	if err := t.Args(&a); err != nil {
		return nil, err
	}
	if err := h.noteScope(ctx, t, a); err != nil {
		return nil, patient(err)
	}
	if err := h.detach(ctx, a); err != nil {
		if gpu.CodeOf(err) == gpu.CodeUnavailable {
			return nil, patient(err)
		}
		_, undo := h.undoDetach(context.WithoutCancel(ctx), t)
		return nil, errors.Join(err, undo)
	}
	h.hub.emit("assignment.detached", a.Assignment.Name, map[string]string{"vm": a.Assignment.Wish.VM, "partition": a.Assignment.Partition})
	return nil, nil
}

// noteScope writes down where the device is before it is taken away, once: after
// a crash half of it may be gone, and the undo needs to know how it was.
func (h *Host) noteScope(ctx context.Context, t *operation.Task, a attachArgs) error {
	var n scopeNote
	if noted, err := t.Note(&n); err != nil || noted {
		return err
	}
	vm, err := h.cfg.Inventory.VM(ctx, a.Assignment.Wish.VM)
	if gpu.CodeOf(err) == gpu.CodeVMNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	dev, _ := vm.Hostdev(a.Hostdev.Alias)
	n.Scope = gpu.Scope{Live: dev.Live, Config: dev.Config}
	return t.SaveNote(n)
}

// undoDetach puts the device back where it was, as far as the VM is still there
// and in a state to take it.
func (h *Host) undoDetach(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a attachArgs
	if err := t.Args(&a); err != nil {
		return nil, err
	}
	var n scopeNote
	if noted, err := t.Note(&n); err != nil || !noted {
		return nil, err
	}
	vm, err := h.cfg.Inventory.VM(ctx, a.Assignment.Wish.VM)
	if gpu.CodeOf(err) == gpu.CodeVMNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, patient(err)
	}
	s := gpu.Scope{Live: n.Scope.Live && vm.State.Active(), Config: n.Scope.Config && vm.Persistent}
	if !s.Live && !s.Config {
		return nil, nil
	}
	return nil, patient(h.cfg.VMs.Attach(ctx, vm.UUID, a.Hostdev, s))
}
