package vmapi

import (
	"context"
	"errors"

	"libvirt.org/go/libvirt"

	"gpuvirt/gpu"
)

// Attach adds a device to the definitions of a VM that scope names. What is there
// already stays, so it can be asked again. A change of the persistent definition
// of a running VM takes effect when it is next started.
//
// It refuses a device that the VM has under another alias, an alias that means
// another device, and a second display (T52). If libvirt does not answer, the
// error is gpu.CodeUnavailable and the outcome unknown.
func (c *Client) Attach(ctx context.Context, vmUUID string, dev gpu.Hostdev, scope gpu.Scope) error {
	id, doc, err := checkAttach(vmUUID, &dev, scope)
	if err != nil {
		return err
	}
	return c.attach(ctx, id, dev, doc, scope)
}

// AttachNew is Attach for an mdev that was made a moment ago, to all definitions
// that the VM had when it was last looked at. No definition can have such a device,
// so libvirt is asked to add it without a look at the VM before. Should one have it
// after all, or its alias, libvirt refuses; whenever it does, the VM is looked at.
func (c *Client) AttachNew(ctx context.Context, vmUUID string, dev gpu.Hostdev, scope gpu.Scope) error {
	id, doc, err := checkAttach(vmUUID, &dev, scope)
	if err != nil {
		return err
	}
	if dev.Handle.MdevUUID == "" || dev.Display { // libvirt lets a second display pass
		return c.attach(ctx, id, dev, doc, scope)
	}
	def, err := c.add(ctx, id, doc, scope)
	if !refused(err) {
		return c.outcome(ctx, id, id, dev, scope, def, err)
	}
	vm, lookErr := c.read(ctx, id, true)
	if lookErr != nil {
		return fault(err, "cannot attach %q to VM %q", dev.Alias, id)
	}
	todo, planErr := plan(vm, dev, scope)
	switch {
	case planErr != nil: // it says more than libvirt does
		return fault(planErr, "cannot attach %q to VM %q", dev.Alias, vm.Name)
	case todo == (gpu.Scope{}):
		return nil
	default:
		return fault(err, "cannot attach %q to VM %q", dev.Alias, vm.Name)
	}
}

// checkAttach checks what Attach is asked for, and returns the UUID of the VM and the
// XML of the device, whose handle it puts in the spelling that reading a VM gives.
func checkAttach(vmUUID string, dev *gpu.Hostdev, scope gpu.Scope) (id, doc string, err error) {
	if id, err = checkTarget(vmUUID, scope); err == nil {
		doc, err = hostdevXML(*dev)
	}
	if err != nil {
		return "", "", gpu.Errorf(gpu.CodeInvalid, "cannot attach %q to VM %q: %w", dev.Alias, vmUUID, err)
	}
	dev.Handle = canonical(dev.Handle)
	if dev.Handle.MdevUUID == id {
		return "", "", gpu.Errorf(gpu.CodeInvalid, // T42
			"cannot attach %q to VM %q: the mdev has the UUID of the VM, which the vendor's driver cannot tell apart", dev.Alias, id)
	}
	return id, doc, nil
}

// attach looks at a VM and adds a device where it is missing.
func (c *Client) attach(ctx context.Context, id string, dev gpu.Hostdev, doc string, scope gpu.Scope) error {
	vm, err := c.read(ctx, id, true)
	if err != nil {
		return fault(err, "cannot attach %q", dev.Alias)
	}
	todo, err := plan(vm, dev, scope)
	if err != nil {
		return fault(err, "cannot attach %q to VM %q", dev.Alias, vm.Name)
	}
	if todo == (gpu.Scope{}) {
		return nil
	}
	def, err := c.add(ctx, id, doc, todo)
	return c.outcome(ctx, id, vm.Name, dev, todo, def, err)
}

// add has libvirt add a device to the definitions in scope, and read them back.
func (c *Client) add(ctx context.Context, id, doc string, scope gpu.Scope) (definition, error) {
	return call(ctx, c, request{what: "attach", vm: id, change: true}, func(hv hypervisor) (definition, error) {
		return hv.Attach(id, doc, scope)
	})
}

// refused reports whether libvirt has answered to add that it does not.
func refused(err error) bool {
	_, answered := errors.AsType[libvirt.Error](err)
	_, done := errors.AsType[*unseenError](err)
	return answered && !done && !isLoss(err)
}

// outcome judges what add has returned.
func (c *Client) outcome(ctx context.Context, id, name string, dev gpu.Hostdev, scope gpu.Scope, def definition, err error) error {
	unseen, done := errors.AsType[*unseenError](err)
	if err != nil && !done {
		return fault(err, "cannot attach %q to VM %q", dev.Alias, name)
	}
	c.log.InfoContext(ctx, "attached a device", "vm", id, "device", dev.Alias, "live", scope.Live, "config", scope.Config)
	var vm gpu.VM
	if done {
		err = unreadable(id, unseen.err)
	} else {
		vm, err = understand(id, def)
	}
	if err != nil {
		return fault(err, "cannot see whether %q is attached", dev.Alias)
	}
	return attached(vm, dev, scope)
}

// plan returns the part of scope where a device is missing, or why it cannot be
// added. It decides from what libvirt has just told.
func plan(vm gpu.VM, dev gpu.Hostdev, scope gpu.Scope) (gpu.Scope, error) {
	todo := scope
	for _, d := range vm.Hostdevs {
		switch {
		case d.Alias == dev.Alias && d.Handle == dev.Handle:
			todo.Live = todo.Live && !d.Live
			todo.Config = todo.Config && !d.Config
		case d.Alias == dev.Alias:
			return todo, gpu.Errorf(gpu.CodeConflict, "the alias is in use there for %s", handleName(d.Handle))
		case d.Handle == dev.Handle && userAlias(d.Alias) != "":
			return todo, gpu.Errorf(gpu.CodeConflict, "the VM has %s already, as %q", handleName(d.Handle), d.Alias)
		case d.Handle == dev.Handle:
			return todo, gpu.Errorf(gpu.CodeForeignDevice,
				"the VM has %s already, added by somebody else", handleName(d.Handle)).
				WithHint("remove that hostdev from the VM's definition first")
		case d.Display && dev.Display: // T52
			return todo, gpu.Errorf(gpu.CodeConflict, "%s is the VM's display already", handleName(d.Handle)).
				WithHint("attach it without display")
		}
	}
	switch {
	case scope.Live && !vm.State.Active():
		return todo, gpu.Errorf(gpu.CodeConflict, "the VM does not run").
			WithHint("start it, or attach to the persistent definition only")
	case scope.Config && !vm.Persistent:
		return todo, gpu.Errorf(gpu.CodeConflict, "the VM is transient: it has no persistent definition").
			WithHint("attach to the running VM only, or define the VM")
	}
	return todo, nil
}

// attached checks that libvirt has done what it said it did.
func attached(vm gpu.VM, dev gpu.Hostdev, todo gpu.Scope) error {
	for _, d := range vm.Hostdevs {
		if d.Alias == dev.Alias && d.Handle == dev.Handle {
			todo.Live = todo.Live && !d.Live
			todo.Config = todo.Config && !d.Config
		}
	}
	switch {
	case todo.Config:
		return gpu.Errorf(gpu.CodeConflict,
			"cannot attach %q to VM %q: libvirt reported success, but the persistent definition does not have it", dev.Alias, vm.Name)
	case todo.Live && !vm.State.Active():
		return gpu.Errorf(gpu.CodeConflict, "cannot attach %q to VM %q: the VM stopped meanwhile", dev.Alias, vm.Name)
	case todo.Live:
		return gpu.Errorf(gpu.CodeConflict,
			"cannot attach %q to VM %q: libvirt reported success, but the running VM does not have it", dev.Alias, vm.Name)
	}
	return nil
}
