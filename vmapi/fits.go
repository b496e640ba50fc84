package vmapi

import (
	"context"
	"encoding/xml"
	"net"
	"slices"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"gpuvirt/gpu"
)

// Fits makes sure that what a definition (XML) of a VM names is there, as far as libvirt tells: the
// networks are up, the bridges are bridges of its host, the model of the processor is one that it knows
// and that the host can be. What is not is gpu.CodeConflict; what libvirt cannot tell is taken to be
// there. Nothing is changed.
func (c *Client) Fits(ctx context.Context, doc string) error {
	var d libvirtxml.Domain
	if err := d.Unmarshal(doc); err != nil {
		return gpu.Errorf(gpu.CodeInvalid, "cannot look whether a VM could start: cannot parse the definition: %w", err)
	}
	if err := c.fits(ctx, d); err != nil {
		return fault(err, "VM %s could not start", d.Name)
	}
	return nil
}

// Startable is Fits of a VM that is defined, as its definition is now.
func (c *Client) Startable(ctx context.Context, uuid string) error {
	doc, err := call(ctx, c, request{what: "read a definition", vm: uuid}, func(hv hypervisor) (string, error) { return hv.Inactive(uuid) })
	if err != nil {
		return fault(err, "cannot look whether VM %s could start", uuid)
	}
	return c.Fits(ctx, doc)
}

func (c *Client) fits(ctx context.Context, d libvirtxml.Domain) error {
	networks, bridges := plugs(d)
	for _, name := range networks {
		switch n, found, err := c.network(ctx, name); {
		case err != nil:
			return err
		case !found:
			return gpu.Errorf(gpu.CodeConflict, "libvirt has no network %q", name).WithHint("virsh net-list --all lists those that there are")
		case !n.active:
			return gpu.Errorf(gpu.CodeConflict, "network %q of libvirt is not started", name).WithHint("virsh net-start %s", name)
		}
	}
	for _, name := range bridges {
		kind, err := call(ctx, c, request{what: "find a bridge"}, func(hv hypervisor) (string, error) { return hv.Interface(name) })
		switch {
		case isCode(err, libvirt.ERR_NO_INTERFACE) && there(name): // not all drivers of libvirt know of all
		case isCode(err, libvirt.ERR_NO_INTERFACE):
			return gpu.Errorf(gpu.CodeConflict, "the host has no bridge %q", name).WithHint("ip link show type bridge lists those that there are")
		case err != nil:
			return err
		case kind != "" && kind != "bridge":
			return gpu.Errorf(gpu.CodeConflict, "%q of the host is no bridge", name).WithHint("ip link show type bridge lists those that there are")
		}
	}
	return c.knowsCPU(ctx, d)
}

// there reports whether the kernel has a network interface.
func there(name string) bool {
	_, err := net.InterfaceByName(name)
	return err == nil
}

// plugs are the networks of libvirt and the bridges of the host that a VM is plugged into.
func plugs(d libvirtxml.Domain) (networks, bridges []string) {
	if d.Devices == nil {
		return nil, nil
	}
	for _, n := range d.Devices.Interfaces {
		switch s := n.Source; {
		case s == nil:
		case s.Network != nil && !slices.Contains(networks, s.Network.Network):
			networks = append(networks, s.Network.Network)
		case s.Bridge != nil && n.VirtualPort == nil && !slices.Contains(bridges, s.Bridge.Bridge): // a port is one of Open vSwitch, which is no bridge of the kernel's
			bridges = append(bridges, s.Bridge.Bridge)
		}
	}
	return networks, bridges
}

// A domainCPU is what libvirt can give a VM for a processor.
type domainCPU struct {
	Modes []struct {
		Name      string `xml:"name,attr"`
		Supported string `xml:"supported,attr"`
		Models    []struct {
			Name   string `xml:",chardata"`
			Usable string `xml:"usable,attr"`
		} `xml:"model"`
	} `xml:"cpu>mode"`
}

// knowsCPU refuses a processor that libvirt cannot give. The host's own needs nothing of it.
func (c *Client) knowsCPU(ctx context.Context, d libvirtxml.Domain) error {
	if d.CPU == nil || d.CPU.Mode == "host-passthrough" || d.CPU.Mode == "" && d.CPU.Model == nil {
		return nil
	}
	arch, machine := "", ""
	if d.OS != nil && d.OS.Type != nil {
		arch, machine = d.OS.Type.Arch, d.OS.Type.Machine
	}
	doc, err := call(ctx, c, request{what: "ask what VMs there can be"}, func(hv hypervisor) (string, error) {
		return hv.Capabilities(arch, machine, d.Type)
	})
	switch {
	case isCode(err, libvirt.ERR_NO_SUPPORT):
		return nil
	case err != nil:
		refusal := fault(err, "libvirt cannot run VMs like it here")
		if refusal.Code == gpu.CodeInternal { // it says why not
			refusal.Code = gpu.CodeConflict
		}
		return refusal
	}
	var can domainCPU
	if err := xml.Unmarshal([]byte(doc), &can); err != nil {
		return gpu.Errorf(gpu.CodeInternal, "cannot parse what VMs there can be: %w", err)
	}
	if len(can.Modes) == 0 {
		return nil
	}
	mode := d.CPU.Mode
	if mode == "" {
		mode = "custom"
	}
	for _, m := range can.Modes {
		if m.Name != mode || m.Supported != "yes" {
			continue
		}
		if d.CPU.Model == nil || mode != "custom" {
			return nil
		}
		for _, model := range m.Models {
			switch {
			case model.Name != d.CPU.Model.Value:
			case model.Usable == "no" && d.Type == "kvm":
				return gpu.Errorf(gpu.CodeConflict, "this host's processor has not all that CPU model %q has", model.Name).WithHint("virsh domcapabilities lists those that are usable")
			default:
				return nil
			}
		}
		return gpu.Errorf(gpu.CodeConflict, "libvirt knows no CPU model %q", d.CPU.Model.Value).WithHint("virsh domcapabilities lists those that it knows")
	}
	return gpu.Errorf(gpu.CodeConflict, "libvirt cannot give a VM a CPU of the mode %q here", mode).WithHint("virsh domcapabilities lists what it can")
}
