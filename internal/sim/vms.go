package sim

import (
	"errors"
	"fmt"
	"slices"

	"gpuvirt/gpu"
)

// UUIDs of the VMs of a new host.
const (
	Web1 = "3f6d1a52-7c1e-4a55-9b0e-5d1f0a6b7c01"
	Web2 = "8a0c4e9b-2d3f-4c68-8e7a-9b2c1d3e4f02"
	DB1  = "c5b7e2d4-6f1a-4e39-a2c8-0d4f5e6a7b03"
)

// DefaultVMs are the VMs of a new host: persistent, two of them running.
func DefaultVMs() []gpu.VM {
	return []gpu.VM{
		{UUID: Web1, Name: "web1", State: gpu.VMRunning, Persistent: true, Autostart: true},
		{UUID: Web2, Name: "web2", State: gpu.VMRunning, Persistent: true},
		{UUID: DB1, Name: "db1", State: gpu.VMShutoff, Persistent: true},
	}
}

// SetVM adds a VM, or replaces the persistent definition of one that is there, as
// virsh define does: a running one keeps its live devices. Of the devices, those
// marked Config count; for a new VM that is running, those marked Live as well.
func (l *Libvirt) SetVM(v gpu.VM) error {
	err := l.h.update(func(s *state) ([]string, error) { return nil, s.define(v) })
	if err == nil {
		l.emit(gpu.VMEvent{UUID: v.UUID, Kind: "lifecycle"})
	}
	return err
}

// DropVM removes the persistent definition; a running VM becomes transient.
func (l *Libvirt) DropVM(nameOrUUID string) error {
	return l.change(nameOrUUID, func(s *state, v *vm) error {
		v.Persistent, v.Config, v.Autostart = false, nil, false
		if !v.State.Active() {
			s.drop(v)
		}
		return nil
	})
}

// Boot starts a VM with the devices of its persistent definition. It fails if one
// does not exist or runs in another VM.
func (l *Libvirt) Boot(nameOrUUID string) error {
	return l.change(nameOrUUID, func(s *state, v *vm) error {
		if v.State.Active() {
			return gpu.Errorf(gpu.CodeConflict, "cannot start vm %q: domain is already running", v.Name)
		}
		return cannot(fmt.Sprintf("start vm %q", v.Name), s.start(v))
	})
}

// Shutdown ends a VM: its devices are let go of, and if it was transient it is gone.
func (l *Libvirt) Shutdown(nameOrUUID string) error { return l.end(nameOrUUID, gpu.VMShutoff) }

// Crash ends a VM as if its process had died.
func (l *Libvirt) Crash(nameOrUUID string) error { return l.end(nameOrUUID, gpu.VMCrashed) }

func (l *Libvirt) end(nameOrUUID string, to gpu.VMState) error {
	return l.change(nameOrUUID, func(s *state, v *vm) error {
		s.off(v, to)
		return nil
	})
}

// start starts a VM with the devices of its persistent definition.
func (s *state) start(v *vm) error {
	s.PIDs++
	v.State, v.PID, v.Live = gpu.VMRunning, s.PIDs, nil
	for _, d := range v.Config {
		if err := s.plug(v, d); err != nil {
			return err
		}
	}
	return nil
}

// off ends a VM's process. A transient one is gone with it.
func (s *state) off(v *vm, to gpu.VMState) {
	v.State, v.PID, v.Live, v.Trial, v.Guest = to, 0, nil, nil, guest{}
	if !v.Persistent {
		s.drop(v)
	}
}

// Pause and Resume stop and go on with a running VM, which keeps its devices.
func (l *Libvirt) Pause(nameOrUUID string) error {
	return l.change(nameOrUUID, func(_ *state, v *vm) error {
		if v.State.Active() {
			v.State = gpu.VMPaused
		}
		return nil
	})
}

// Resume goes on with a paused VM.
func (l *Libvirt) Resume(nameOrUUID string) error {
	return l.change(nameOrUUID, func(_ *state, v *vm) error {
		if v.State.Active() {
			v.State = gpu.VMRunning
		}
		return nil
	})
}

// SetStubborn makes a VM's guest never let go of a device while it runs, or let go
// again.
func (l *Libvirt) SetStubborn(nameOrUUID string, stubborn bool) error {
	return l.change(nameOrUUID, func(_ *state, v *vm) error { v.Stubborn = stubborn; return nil })
}

// change is for what happens beside the daemon: it works while libvirt is down.
func (l *Libvirt) change(nameOrUUID string, f func(*state, *vm) error) error {
	var uuid string
	err := l.h.update(func(s *state) ([]string, error) {
		v, err := s.vm(nameOrUUID)
		if err != nil {
			return nil, err
		}
		uuid = v.UUID
		return nil, f(s, v)
	})
	if err == nil {
		l.emit(gpu.VMEvent{UUID: uuid, Kind: "lifecycle"})
	}
	return err
}

func (s *state) vm(nameOrUUID string) (*vm, error) {
	for _, v := range s.VMs {
		if v.UUID == nameOrUUID {
			return v, nil
		}
	}
	for _, v := range s.VMs {
		if v.Name == nameOrUUID {
			return v, nil
		}
	}
	return nil, gpu.Errorf(gpu.CodeVMNotFound, "there is no vm %q", nameOrUUID)
}

func (s *state) drop(v *vm) {
	s.VMs = slices.DeleteFunc(s.VMs, func(x *vm) bool { return x == v })
}

func (s *state) define(in gpu.VM) error {
	v, err := s.vm(in.UUID)
	if err != nil {
		v = &vm{UUID: in.UUID, Name: in.Name, State: in.State}
		if v.State == "" {
			v.State = gpu.VMShutoff
		}
		if v.State.Active() {
			s.PIDs++
			v.PID = s.PIDs
		}
		s.VMs = append(s.VMs, v)
		for _, d := range in.Hostdevs {
			if d.Live && v.State.Active() {
				if err := s.plug(v, d); err != nil {
					return err
				}
			}
		}
	}
	v.Name, v.Autostart, v.Persistent, v.MemoryNodes, v.Config = in.Name, in.Autostart, in.Persistent, in.MemoryNodes, nil
	for _, d := range in.Hostdevs {
		if d.Config {
			v.Config = append(v.Config, stored(d))
		}
	}
	return nil
}

// plug gives a device to a running VM, as QEMU opens it.
func (s *state) plug(v *vm, dev gpu.Hostdev) error {
	if id := dev.Handle.MdevUUID; id != "" && (s.Mdevs[id] == nil || s.Mdevs[id].Removing) {
		return gpu.Errorf(gpu.CodeNotFound, "mediated device %q not found", id)
	}
	for _, other := range s.VMs {
		if !slices.ContainsFunc(other.Live, func(d gpu.Hostdev) bool { return d.Handle == dev.Handle }) {
			continue
		}
		what := fmt.Sprintf("mediated device %q", dev.Handle.MdevUUID)
		if dev.Handle.PCIAddress != "" {
			what = "PCI device " + dev.Handle.PCIAddress
		}
		return gpu.Errorf(gpu.CodeBusy, "%s is in use by driver QEMU, domain %q", what, other.Name).
			WithBlockers(gpu.Blocker{Kind: "vm", ID: other.UUID, Name: other.Name})
	}
	if address := dev.Handle.PCIAddress; address != "" {
		if err := s.plugPCI(address); err != nil {
			return err
		}
	}
	d := stored(dev)
	d.GuestAddress = v.freeAddress()
	v.Live = append(v.Live, d)
	return nil
}

func (v *vm) freeAddress() string {
	for bus := 7; ; bus++ {
		a := gpu.Address{Bus: uint8(bus)}.String()
		if !slices.ContainsFunc(v.Live, func(d gpu.Hostdev) bool { return d.GuestAddress == a }) {
			return a
		}
	}
}

// wants reports whether a device is to be added to one of a VM's definitions.
func wants(have []gpu.Hostdev, dev gpu.Hostdev, asked bool) (bool, error) {
	if !asked {
		return false, nil
	}
	for _, d := range have {
		if d.Alias == dev.Alias && d.Handle == dev.Handle {
			return false, nil
		}
		if d.Alias == dev.Alias {
			return false, gpu.Errorf(gpu.CodeConflict, "alias %q names another device", dev.Alias)
		}
		if d.Handle == dev.Handle {
			return false, gpu.Errorf(gpu.CodeConflict, "the device is there already, as %q", d.Alias)
		}
	}
	return true, nil
}

// stored is a device as a definition keeps it: where it is, says the definition.
func stored(d gpu.Hostdev) gpu.Hostdev {
	d.Live, d.Config, d.GuestAddress = false, false, ""
	return d
}

// vm is the VM as libvirt shows it: the devices of both definitions, by alias.
func (v *vm) vm() gpu.VM {
	out := gpu.VM{UUID: v.UUID, Name: v.Name, State: v.State, Autostart: v.Autostart, Persistent: v.Persistent, MemoryNodes: v.MemoryNodes, Mark: v.Mark, Trial: v.Trial != nil}
	for _, d := range v.Live {
		d.Live = true
		out.Hostdevs = append(out.Hostdevs, d)
	}
	for _, d := range v.Config {
		i := slices.IndexFunc(out.Hostdevs, func(x gpu.Hostdev) bool { return x.Alias == d.Alias && x.Handle == d.Handle })
		if i >= 0 {
			out.Hostdevs[i].Config = true
			continue
		}
		d.Config = true
		out.Hostdevs = append(out.Hostdevs, d)
	}
	return out
}

func errorOf(err error) (*gpu.Error, bool) { return errors.AsType[*gpu.Error](err) }
