package vmapi

import (
	"context"
	"strings"

	"gpuvirt/gpu"
)

// Start starts a VM from its persistent definition. One that runs already is fine, unless
// what runs is a trial of it: gpu.CodeConflict. If libvirt does not answer, the error is
// gpu.CodeUnavailable and the outcome unknown: it can be asked again.
func (c *Client) Start(ctx context.Context, vmUUID string) error {
	id, err := parseUUID(vmUUID)
	if err != nil {
		return gpu.Errorf(gpu.CodeInvalid, "cannot start VM %q: %w", vmUUID, err)
	}
	vm, err := c.read(ctx, id, true)
	switch {
	case err != nil:
		return fault(err, "cannot start it")
	case vm.Trial:
		return gpu.Errorf(gpu.CodeConflict, "cannot start VM %q: a trial of it runs", vm.Name).
			WithHint("stop the trial first").WithBlockers(vmBlocker(vm.UUID, vm.Name))
	case vm.State.Active():
		return nil
	}
	if err := c.change(ctx, "start", id, func(hv hypervisor) error { return hv.Start(id) }); err != nil {
		if now, lookErr := c.read(ctx, id, true); refused(err) && lookErr == nil && now.State.Active() && !now.Trial {
			return nil // somebody else was quicker
		}
		return fault(err, "cannot start VM %q", vm.Name)
	}
	c.log.InfoContext(ctx, "started a VM", "vm", id, "name", vm.Name)
	return nil
}

// Stop powers a VM off at once, without asking its guest; of a trial, nothing is left in
// libvirt. One that does not run, or is gone, is fine. A hypervisor process that does not
// end is gpu.CodeStuck: the VM runs on. If libvirt does not answer, the error is
// gpu.CodeUnavailable and the outcome unknown: it can be asked again.
func (c *Client) Stop(ctx context.Context, vmUUID string) error {
	id, err := parseUUID(vmUUID)
	if err != nil {
		return gpu.Errorf(gpu.CodeInvalid, "cannot stop VM %q: %w", vmUUID, err)
	}
	vm, gone, err := c.stopped(ctx, id)
	if err != nil {
		return fault(err, "cannot stop it")
	}
	if gone {
		return nil
	}
	err = c.change(ctx, "stop", id, func(hv hypervisor) error { return hv.Destroy(id) })
	if err == nil {
		c.log.InfoContext(ctx, "stopped a VM", "vm", id, "name", vm.Name)
		return nil
	}
	if !refused(err) {
		return fault(err, "cannot stop VM %q", vm.Name)
	}
	if _, gone, lookErr := c.stopped(ctx, id); lookErr == nil && gone {
		return nil // it ended by itself
	}
	e := fault(err, "cannot stop VM %q", vm.Name)
	if strings.Contains(err.Error(), "SIGTERM") {
		e.Code, e.Hint = gpu.CodeStuck, "see whether the VM's hypervisor process hangs"
	}
	return e
}

// stopped reports whether a VM does not run, or is not there.
func (c *Client) stopped(ctx context.Context, id string) (vm gpu.VM, gone bool, err error) {
	vm, err = c.read(ctx, id, true)
	if gpu.CodeOf(err) == gpu.CodeVMNotFound {
		return vm, true, nil
	}
	return vm, err == nil && !vm.State.Active(), err
}
