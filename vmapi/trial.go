package vmapi

import (
	"context"
	"maps"
	"slices"

	"libvirt.org/go/libvirtxml"

	"gpuvirt/gpu"
)

// A Trial is what a VM is started with instead of what its definition says.
type Trial = gpu.Trial

// StartTrial starts a VM that has a mark, and does not run, once with other disks and all
// its NICs on another network. Its persistent definition stays as it is and counts again
// when the VM has stopped, and so do the variables of UEFI. Its host devices are there.
// A TPM is not, as libvirt keeps the state of one by the VM's UUID: the trial would write
// what is the VM's.
//
// A trial that runs already with these disks is fine. A VM that runs otherwise, has another
// mark or none, is gpu.CodeConflict; a disk that is not named, or cannot be replaced, is
// gpu.CodeInvalid. If libvirt does not answer, the error is gpu.CodeUnavailable and the
// outcome unknown: it can be asked again.
func (c *Client) StartTrial(ctx context.Context, vmUUID, mark string, t Trial) error {
	vm, err := c.marked(ctx, vmUUID, mark)
	if err != nil {
		return fault(err, "cannot start a trial of VM %q", vmUUID)
	}
	if vm.State.Active() {
		err = c.onTrial(ctx, vm, t)
	} else {
		err = c.try(ctx, vm, t)
	}
	if err != nil {
		return fault(err, "cannot start a trial of VM %q", vm.Name)
	}
	return nil
}

// try starts a trial.
func (c *Client) try(ctx context.Context, vm gpu.VM, t Trial) error {
	doc, err := call(ctx, c, request{what: "read", vm: vm.UUID}, func(hv hypervisor) (string, error) {
		return hv.Inactive(vm.UUID)
	})
	if err != nil {
		return err
	}
	if doc, err = trialXML(doc, vm.Mark, t); err != nil {
		return err
	}
	err = c.change(ctx, "start a trial", vm.UUID, func(hv hypervisor) error { return hv.Create(doc) })
	if err == nil {
		c.log.InfoContext(ctx, "started a trial of a VM", "vm", vm.UUID, "name", vm.Name, "network", t.Network)
	}
	return err
}

// onTrial fails unless what runs of a VM is the trial that is asked for.
func (c *Client) onTrial(ctx context.Context, vm gpu.VM, t Trial) error {
	if !vm.Trial {
		return gpu.Errorf(gpu.CodeConflict, "it runs").WithHint("stop it first").WithBlockers(vmBlocker(vm.UUID, vm.Name))
	}
	def, err := call(ctx, c, request{what: "read", vm: vm.UUID}, func(hv hypervisor) (definition, error) {
		return hv.Read(vm.UUID, true)
	})
	if err != nil {
		return err
	}
	if def.live == "" {
		return gpu.Errorf(gpu.CodeConflict, "the trial stopped meanwhile")
	}
	var dom libvirtxml.Domain
	if err := dom.Unmarshal(def.live); err != nil {
		return gpu.Errorf(gpu.CodeUnavailable, "cannot read the disks of what runs: %w", err)
	}
	if dom.Devices == nil {
		return gpu.Errorf(gpu.CodeConflict, "what runs has no devices")
	}
	for i := range dom.Devices.Disks {
		have, err := diskPath(&dom.Devices.Disks[i])
		if err != nil {
			return err
		}
		if have != "" && !slices.Contains(slices.Collect(maps.Values(t.Disks)), have) {
			return gpu.Errorf(gpu.CodeConflict, "another trial of it runs, with the disk %q", have)
		}
	}
	return nil
}
