package vmapi

import (
	"context"
	"errors"
	"time"

	"libvirt.org/go/libvirt"

	"gpuvirt/gpu"
)

// lookInterval is how often a VM is looked at while its guest is asked to let go
// of a device, in case the event is lost.
const lookInterval = 2 * time.Second

// Detach removes the device with an alias from the definitions of a VM that scope
// names: from the running VM first, and only when that is done from the
// persistent definition. What is gone already is fine, and so is a VM that stops
// meanwhile.
//
// A guest that refuses, or does not answer within Config.DetachTimeout or the
// deadline of ctx, is gpu.CodeStuck: the device stays where it is, and asking
// again goes on waiting. If libvirt does not answer, the error is
// gpu.CodeUnavailable and the outcome unknown.
func (c *Client) Detach(ctx context.Context, vmUUID, alias string, scope gpu.Scope) error {
	id, err := checkTarget(vmUUID, scope)
	if err == nil {
		err = checkAlias(alias)
	}
	if err != nil {
		return gpu.Errorf(gpu.CodeInvalid, "cannot detach %q from VM %q: %w", alias, vmUUID, err)
	}
	vm, err := c.read(ctx, id, true)
	if err != nil {
		return fault(err, "cannot detach %q", alias)
	}
	name := vm.Name
	if scope.Live && has(vm, alias).Live {
		if vm, err = c.unplug(ctx, vm, alias); err != nil {
			return fault(err, "cannot detach %q from VM %q", alias, name)
		}
		c.log.InfoContext(ctx, "detached a device", "vm", id, "device", alias, "live", true, "config", false)
	}
	if scope.Config && has(vm, alias).Config {
		if err := c.undefine(ctx, vm, alias); err != nil {
			return fault(err, "cannot detach %q from the persistent definition of VM %q", alias, name)
		}
		c.log.InfoContext(ctx, "detached a device", "vm", id, "device", alias, "live", false, "config", true)
	}
	return nil
}

// has returns where a VM has a device with an alias.
func has(vm gpu.VM, alias string) gpu.Scope {
	var s gpu.Scope
	for _, d := range vm.Hostdevs {
		if d.Alias == alias {
			s.Live = s.Live || d.Live
			s.Config = s.Config || d.Config
		}
	}
	return s
}

// undefine removes a device from the persistent definition.
func (c *Client) undefine(ctx context.Context, vm gpu.VM, alias string) error {
	err := c.detach(ctx, vm, alias, gpu.Scope{Config: true})
	if err != nil && !isCode(err, libvirt.ERR_DEVICE_MISSING) {
		return err
	}
	if vm, err = c.read(ctx, vm.UUID, true); err != nil {
		return err
	}
	if has(vm, alias).Config {
		return gpu.Errorf(gpu.CodeConflict, "libvirt reported success, but it is still there")
	}
	return nil
}

// detach asks libvirt to remove a device.
func (c *Client) detach(ctx context.Context, vm gpu.VM, alias string, scope gpu.Scope) error {
	_, err := call(ctx, c, request{what: "detach", vm: vm.UUID, change: true}, func(hv hypervisor) (struct{}, error) {
		err := hv.DetachAlias(vm.UUID, alias, scope)
		if !unsupported(err) {
			return struct{}{}, err
		}
		for _, d := range vm.Hostdevs {
			if d.Alias != alias || (scope.Live && !d.Live) || (scope.Config && !d.Config) {
				continue
			}
			doc, err := hostdevXML(d)
			if err != nil {
				return struct{}{}, err
			}
			return struct{}{}, hv.Detach(vm.UUID, doc, scope)
		}
		return struct{}{}, err
	})
	if err != nil {
		return fault(err, "libvirt was asked")
	}
	return nil
}

// unplug removes a device from a running VM and waits until the guest has let go
// of it. It returns the VM as it is then.
func (c *Client) unplug(ctx context.Context, vm gpu.VM, alias string) (gpu.VM, error) {
	deadline, cancel := context.WithTimeout(ctx, time.Duration(c.detachTimeout.Load()))
	defer cancel()
	events, stop := c.feed.watch(vm.UUID) // before asking, or the answer could be missed
	defer stop()

	refused := false
	if err := c.detach(ctx, vm, alias, gpu.Scope{Live: true}); err != nil {
		now, gone, lookErr := c.look(ctx, vm.UUID, alias)
		switch {
		case lookErr != nil:
			return vm, gpu.Errorf(gpu.CodeUnavailable, "%w; nor can it be seen what became of it", err)
		case gone:
			return now, nil
		case guestRefused(err):
			refused = true
		case !unplugPending(err):
			return vm, err
		}
	}
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for waiting := !refused; waiting; {
		now, gone, err := c.look(deadline, vm.UUID, alias)
		if gone {
			return now, nil
		}
		if err != nil && !c.worthWaiting() {
			return vm, err
		}
		select {
		case e := <-events:
			if e.Kind == kindRemovalFailed && e.Alias == alias {
				refused, waiting = true, false
			}
		case <-tick.C:
		case <-deadline.Done():
			waiting = false
		}
	}
	return c.lastLook(ctx, vm, alias, refused)
}

// worthWaiting reports whether there is a connection on which an event can come.
func (c *Client) worthWaiting() bool {
	_, err := c.connected()
	return err == nil
}

// lastLook decides by the XML what has become of an unplug; nothing else counts.
// It has its own patience, because that of the caller may have run out.
func (c *Client) lastLook(ctx context.Context, vm gpu.VM, alias string, refused bool) (gpu.VM, error) {
	now, gone, err := c.look(context.WithoutCancel(ctx), vm.UUID, alias)
	blocker := gpu.Blocker{Kind: "vm", ID: vm.UUID, Name: vm.Name, Note: "still has the device"}
	switch {
	case err != nil:
		return vm, err
	case gone:
		return now, nil
	case refused:
		return now, gpu.Errorf(gpu.CodeStuck, "the guest refused to let go of the device").
			WithHint("stop what uses it inside the guest and try again, or shut the guest down").WithBlockers(blocker)
	case errors.Is(ctx.Err(), context.Canceled):
		return now, gpu.Errorf(gpu.CodeUnavailable,
			"stopped waiting for the guest, which may still let go of the device: %w", ctx.Err()).WithBlockers(blocker)
	default:
		return now, gpu.Errorf(gpu.CodeStuck, "the guest was asked to let go of the device and has not answered").
			WithHint("try again, or shut the guest down").WithBlockers(blocker)
	}
}

// look reports whether a running VM has lost a device. A VM that has stopped, or
// was destroyed and is gone altogether, has.
func (c *Client) look(ctx context.Context, id, alias string) (vm gpu.VM, gone bool, err error) {
	vm, err = c.read(ctx, id, true)
	if gpu.CodeOf(err) == gpu.CodeVMNotFound && err != nil {
		return gpu.VM{UUID: id, State: gpu.VMShutoff}, true, nil
	}
	if err != nil {
		return vm, false, err
	}
	return vm, !has(vm, alias).Live, nil
}

// checkTarget checks what Attach and Detach are asked for.
func checkTarget(vmUUID string, scope gpu.Scope) (string, error) {
	if scope == (gpu.Scope{}) {
		return "", errors.New("neither the running VM nor its persistent definition is meant")
	}
	id, err := parseUUID(vmUUID)
	if err != nil {
		return "", err
	}
	return id, nil
}
