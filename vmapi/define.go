package vmapi

import (
	"cmp"
	"context"
	"fmt"

	"gpuvirt/gpu"
)

// Define makes a VM of a definition (XML) that has a name, a UUID and a mark (Marked).
// Where a VM with all three exists, nothing is done: its definition may have gained
// devices since, which must not be lost. Another VM of that name or UUID is
// gpu.CodeConflict, which names it; a definition that lacks one of them is
// gpu.CodeInvalid. If libvirt does not answer, the error is gpu.CodeUnavailable and the
// outcome unknown: it can be asked again.
func (c *Client) Define(ctx context.Context, doc string) error {
	want, err := parseMade(doc)
	if err != nil {
		return gpu.Errorf(gpu.CodeInvalid, "cannot define a VM: %w", err)
	}
	what := fmt.Sprintf("cannot define VM %q", want.name)
	there, err := c.made(ctx, want)
	if err != nil {
		return fault(err, "%s", what)
	}
	if there {
		return nil
	}
	err = c.change(ctx, "define", want.uuid, func(hv hypervisor) error { return hv.Define(doc) })
	if err != nil {
		return fault(err, "%s", what)
	}
	c.log.InfoContext(ctx, "defined a VM", "vm", want.uuid, "name", want.name, "migration", want.mark)
	if there, err = c.made(ctx, want); err != nil {
		return fault(err, "%s: it cannot be seen whether it is", what)
	}
	if !there {
		return gpu.Errorf(gpu.CodeConflict, "%s: libvirt reported success, but there is none", what)
	}
	return nil
}

// made reports whether a VM is there as we would make it, or fails where another one is
// in its place.
func (c *Client) made(ctx context.Context, want made) (bool, error) {
	vm, err := c.read(ctx, want.uuid, true)
	switch {
	case err == nil && vm.Name == want.name && vm.Mark == want.mark:
		return vm.Persistent, nil
	case err == nil && vm.Name == want.name:
		return false, gpu.Errorf(gpu.CodeConflict, "there is a VM of that name and UUID, and it is %s", whose(vm.Mark)).
			WithBlockers(vmBlocker(vm.UUID, vm.Name))
	case err == nil:
		return false, gpu.Errorf(gpu.CodeConflict, "VM %q has the UUID %s", vm.Name, vm.UUID).
			WithBlockers(vmBlocker(vm.UUID, vm.Name))
	case gpu.CodeOf(err) != gpu.CodeVMNotFound:
		return false, err
	}
	head, err := call(ctx, c, request{what: "find"}, func(hv hypervisor) (gpu.VMHead, error) {
		return hv.Head("", want.name)
	})
	if err == nil {
		return false, gpu.Errorf(gpu.CodeConflict, "there is a VM of that name, %s", head.UUID).
			WithBlockers(vmBlocker(head.UUID, head.Name))
	}
	if e := fault(err, "cannot find out whether there is one of that name"); e.Code != gpu.CodeVMNotFound {
		return false, e
	}
	return false, nil
}

// Undefine removes the definition of a VM that has a mark, with what libvirt keeps for
// it: UEFI variables, the state of its TPM, a saved memory image, what is known of
// snapshots and checkpoints. Its disks stay. One that is gone already is fine.
//
// It refuses with gpu.CodeConflict a VM with another mark or none, one that runs, and one
// with host devices in its definition, which the blockers name. If libvirt does not
// answer, the error is gpu.CodeUnavailable and the outcome unknown.
func (c *Client) Undefine(ctx context.Context, vmUUID, mark string) error {
	vm, err := c.marked(ctx, vmUUID, mark)
	if gpu.CodeOf(err) == gpu.CodeVMNotFound && err != nil {
		return nil
	}
	if err != nil {
		return fault(err, "cannot undefine VM %q", vmUUID)
	}
	refuse := func(blockers []gpu.Blocker, hint, why string) error {
		return gpu.Errorf(gpu.CodeConflict, "cannot undefine VM %q: %s", vm.Name, why).WithHint("%s", hint).WithBlockers(blockers...)
	}
	if vm.State.Active() {
		return refuse([]gpu.Blocker{vmBlocker(vm.UUID, vm.Name)}, "stop it first", "it runs")
	}
	var devices []gpu.Blocker
	for _, d := range vm.Hostdevs {
		devices = append(devices, gpu.Blocker{Kind: "partition", ID: cmp.Or(d.Handle.MdevUUID, d.Handle.PCIAddress), Name: d.Alias, Note: "in the VM's definition"})
	}
	if devices != nil {
		return refuse(devices, "detach them first", "it has host devices")
	}
	err = c.change(ctx, "undefine", vm.UUID, func(hv hypervisor) error { return hv.Undefine(vm.UUID) })
	if err == nil {
		c.log.InfoContext(ctx, "undefined a VM", "vm", vm.UUID, "name", vm.Name, "migration", mark)
		return nil
	}
	if e := fault(err, "cannot undefine VM %q", vm.Name); e.Code != gpu.CodeVMNotFound {
		return e
	}
	return nil
}

// marked returns a VM if it has a mark.
func (c *Client) marked(ctx context.Context, vmUUID, mark string) (gpu.VM, error) {
	id, err := parseUUID(vmUUID)
	if err != nil {
		return gpu.VM{}, gpu.Errorf(gpu.CodeInvalid, "%w", err)
	}
	if !markPattern.MatchString(mark) {
		return gpu.VM{}, gpu.Errorf(gpu.CodeInvalid, "%q is no mark", mark)
	}
	vm, err := c.read(ctx, id, true)
	if err == nil && vm.Mark != mark {
		err = gpu.Errorf(gpu.CodeConflict, "VM %q is %s", vm.Name, whose(vm.Mark)).WithBlockers(vmBlocker(vm.UUID, vm.Name))
	}
	return vm, err
}

// whose says who made a VM that is not the expected one.
func whose(mark string) string {
	if mark == "" {
		return "none that gpuvirt made"
	}
	return fmt.Sprintf("one of migration %q", mark)
}

func vmBlocker(id, name string) gpu.Blocker { return gpu.Blocker{Kind: "vm", ID: id, Name: name} }

// change makes a call that changes a VM, or a network where it is for none.
func (c *Client) change(ctx context.Context, what, id string, f func(hypervisor) error) error {
	_, err := call(ctx, c, request{what: what, vm: id, change: true}, func(hv hypervisor) (struct{}, error) {
		return struct{}{}, f(hv)
	})
	return err
}
