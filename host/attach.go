package host

import (
	"context"
	"errors"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
	"gpuvirt/operation"
)

// attachArgs are the arguments of vm.attach and vm.detach.
type attachArgs struct {
	Assignment gpu.AssignmentRecord `json:"assignment"`
	Hostdev    gpu.Hostdev          `json:"hostdev"`
	// Planned is where the device should go, as the VM was when the plan was made.
	Planned gpu.Scope `json:"planned,omitzero"`
}

// scopeNote is what vm.detach wrote down for its undo: where the device was, and,
// once it has failed, from where it was taken nevertheless.
type scopeNote struct {
	Scope   gpu.Scope  `json:"scope"`
	Removed *gpu.Scope `json:"removed,omitempty"`
}

// scope is where a VM, as it is now, should have the device. QEMU takes one with ramfb at the
// start of the VM alone.
func scope(vm gpu.VMHead, w gpu.Wish) gpu.Scope {
	return gpu.Scope{Live: vm.Active && w.Hotplug != gpu.HotplugNever && !w.RamFB, Config: vm.Persistent}
}

func (h *Host) doAttach(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a attachArgs
	if err := t.Args(&a); err != nil {
		return nil, unclean(err)
	}
	if err := h.attach(ctx, t, a); err != nil {
		return nil, unclean(h.patient(t, err))
	}
	rec := a.Assignment
	rec.Bound = true
	h.hub.emit("assignment.attached", rec.Name, map[string]string{"vm": rec.Wish.VM, "partition": rec.Partition})
	return []operation.Row{operation.Put(gpu.RecordAssignment, rec.Name, rec)}, nil
}

func (h *Host) attach(ctx context.Context, t *operation.Task, a attachArgs) error {
	if t.Resumed() { // perhaps after a reboot, which takes partitions with it
		if err := h.ensure(ctx, a.Assignment.Partition); err != nil {
			return err
		}
	}
	if a.Planned.Live && !t.Resumed() {
		// The VM ran a moment ago. If it does not any more, libvirt refuses, and it is
		// looked at again.
		err := h.cfg.VMs.AttachNew(ctx, a.Assignment.Wish.VM, a.Hostdev, a.Planned)
		if gpu.CodeOf(err) != gpu.CodeConflict {
			return err
		}
	}
	vm, err := h.cfg.Inventory.VMHead(ctx, a.Assignment.Wish.VM)
	if err != nil {
		return err
	}
	if err := attachable(vm, a.Assignment.Wish); err != nil {
		return err
	}
	return h.cfg.VMs.Attach(ctx, vm.UUID, a.Hostdev, scope(vm, a.Assignment.Wish))
}

func (h *Host) undoAttach(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a attachArgs
	if err := t.Args(&a); err != nil {
		return nil, err
	}
	return nil, h.patient(t, h.detach(ctx, a))
}

// where returns where a VM has our device. A VM that is gone has it nowhere; a
// device under our alias that is another one is not ours to touch.
func (h *Host) where(ctx context.Context, a attachArgs) (gpu.Scope, error) {
	vm, err := h.cfg.Inventory.VM(ctx, a.Assignment.Wish.VM)
	if gpu.CodeOf(err) == gpu.CodeVMNotFound {
		return gpu.Scope{}, nil
	}
	if err != nil {
		return gpu.Scope{}, err
	}
	dev, has := vm.Hostdev(a.Hostdev.Alias)
	if has && !inventory.Same(dev.Handle, a.Hostdev.Handle) {
		return gpu.Scope{}, gpu.Errorf(gpu.CodeForeignDevice, "cannot touch device %q of vm %q: it is %v, not ours", dev.Alias, vm.Name, dev.Handle)
	}
	return gpu.Scope{Live: dev.Live, Config: dev.Config}, nil
}

// detach takes the device from wherever the VM has it.
func (h *Host) detach(ctx context.Context, a attachArgs) error {
	s, err := h.where(ctx, a)
	if err != nil || s == (gpu.Scope{}) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(h.detachTimeout.Load()))
	defer cancel()
	err = h.cfg.VMs.Detach(ctx, a.Assignment.Wish.VM, a.Hostdev.Alias, s)
	if gpu.CodeOf(err) == gpu.CodeVMNotFound {
		return nil
	}
	return err
}

func (h *Host) doDetach(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a attachArgs
	if err := t.Args(&a); err != nil {
		return nil, err
	}
	var n scopeNote
	noted, err := t.Note(&n)
	if err != nil {
		return nil, err
	}
	if !noted { // once: after a crash half of it may be gone
		if n.Scope, err = h.where(ctx, a); err != nil {
			return nil, h.patient(t, err)
		}
		if err := t.SaveNote(n); err != nil {
			return nil, err
		}
	}
	if err := h.detach(ctx, a); err != nil {
		// A guest that keeps its device is asked once: it was given its time.
		if gpu.CodeOf(err) != gpu.CodeStuck {
			err = h.patient(t, err)
		}
		if _, again := errors.AsType[*operation.RetryError](err); again {
			return nil, err
		}
		return nil, unclean(errors.Join(err, h.noteRemoved(ctx, t, a, n)))
	}
	h.hub.emit("assignment.detached", a.Assignment.Name, map[string]string{"vm": a.Assignment.Wish.VM, "partition": a.Assignment.Partition})
	return nil, nil
}

// noteRemoved writes down what a detach that failed has taken away nevertheless,
// so that its undo puts back just that, and not what a person takes out meanwhile.
func (h *Host) noteRemoved(ctx context.Context, t *operation.Task, a attachArgs, n scopeNote) error {
	now, err := h.where(ctx, a)
	if err != nil {
		return err
	}
	n.Removed = &gpu.Scope{Live: n.Scope.Live && !now.Live, Config: n.Scope.Config && !now.Config}
	return t.SaveNote(n)
}

// undoDetach puts the device back where it was, as far as the VM is still there
// and in a state to take it, and the partition is there and not on its way out.
func (h *Host) undoDetach(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a attachArgs
	if err := t.Args(&a); err != nil {
		return nil, err
	}
	var n scopeNote
	if noted, err := t.Note(&n); err != nil || !noted {
		return nil, err
	}
	return nil, h.patient(t, h.putBack(ctx, a, n))
}

func (h *Host) putBack(ctx context.Context, a attachArgs, n scopeNote) error {
	s := n.Scope
	if n.Removed != nil {
		s = *n.Removed
	}
	vm, err := h.cfg.Inventory.VM(ctx, a.Assignment.Wish.VM)
	if gpu.CodeOf(err) == gpu.CodeVMNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	s.Live, s.Config = s.Live && vm.State.Active(), s.Config && vm.Persistent
	if s == (gpu.Scope{}) {
		return nil
	}
	if s.Live {
		if err := h.ensure(ctx, a.Assignment.Partition); err != nil { // or refuses where it must not be used
			return err
		}
	}
	return h.cfg.VMs.Attach(ctx, vm.UUID, a.Hostdev, s)
}
