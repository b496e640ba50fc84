package vmapi

import (
	"context"
	"errors"

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
	id, err := checkTarget(vmUUID, scope)
	if err != nil {
		return gpu.Errorf(gpu.CodeInvalid, "cannot attach %q to VM %q: %w", dev.Alias, vmUUID, err)
	}
	doc, err := hostdevXML(dev)
	if err != nil {
		return gpu.Errorf(gpu.CodeInvalid, "cannot attach %q to VM %q: %w", dev.Alias, vmUUID, err)
	}
	dev.Handle = canonical(dev.Handle)
	if dev.Handle.MdevUUID == id {
		return gpu.Errorf(gpu.CodeInvalid, // T42
			"cannot attach %q to VM %q: the mdev has the UUID of the VM, which the vendor's driver cannot tell apart", dev.Alias, id)
	}
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
	return c.add(ctx, vm.UUID, vm.Name, dev, doc, todo)
}

// add has libvirt add a device to the definitions in scope, and reads them back.
func (c *Client) add(ctx context.Context, id, name string, dev gpu.Hostdev, doc string, scope gpu.Scope) error {
	def, err := call(ctx, c, request{what: "attach", vm: id, change: true}, func(hv hypervisor) (definition, error) {
		return hv.Attach(id, doc, scope)
	})
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
