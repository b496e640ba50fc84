package sim

import (
	"encoding/xml"
	"fmt"
	"os"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gpuvirt/gpu"
)

// domain is what is read of the definition of a VM.
type domain struct {
	libvirtxml.Domain
	mark string
}

// parseDomain reads the definition of a VM that a migration makes.
func parseDomain(doc string) (*domain, error) {
	d := &domain{}
	var meta struct {
		Made struct {
			By string `xml:"by,attr"`
		} `xml:"https://gpuvirt.dev/domain/1 made"`
	}
	err := d.Unmarshal(doc)
	if err == nil && d.Metadata != nil {
		err = xml.Unmarshal([]byte("<metadata>"+d.Metadata.XML+"</metadata>"), &meta)
	}
	if err != nil {
		return nil, gpu.Errorf(gpu.CodeInvalid, "cannot parse the definition: %w", err)
	}
	d.mark, d.UUID = meta.Made.By, strings.ToLower(d.UUID)
	if d.Name == "" || d.UUID == "" || d.mark == "" {
		return nil, gpu.Errorf(gpu.CodeInvalid, "the definition lacks a name, a UUID or a mark of ours")
	}
	if d.Devices == nil {
		d.Devices = &libvirtxml.DomainDeviceList{}
	}
	return d, nil
}

// disks lists the files and block devices that it is in.
func (d *domain) disks() (paths []string) {
	for _, disk := range d.Devices.Disks {
		switch s := disk.Source; {
		case s == nil: // a drive without a medium, as is the next
		case s.File != nil && s.File.File == "":
		case s.File != nil:
			paths = append(paths, s.File.File)
		case s.Block != nil:
			paths = append(paths, s.Block.Dev)
		}
	}
	return paths
}

// networks lists the networks of libvirt that it is on.
func (d *domain) networks() (names []string) {
	for _, nic := range d.Devices.Interfaces {
		if nic.Source != nil && nic.Source.Network != nil {
			names = append(names, nic.Source.Network.Network)
		}
	}
	return names
}

// hostdevs lists the mediated devices that it names; all else comes by Attach.
func (d *domain) hostdevs() (devs []gpu.Hostdev) {
	for _, h := range d.Devices.Hostdevs {
		if h.SubsysMDev == nil || h.SubsysMDev.Source == nil || h.SubsysMDev.Source.Address == nil {
			continue
		}
		dev := gpu.Hostdev{Handle: gpu.Handle{MdevUUID: h.SubsysMDev.Source.Address.UUID}, Model: h.SubsysMDev.Model}
		if h.Alias != nil {
			dev.Alias = h.Alias.Name
		}
		devs = append(devs, dev)
	}
	return devs
}

// uefi reports whether its firmware keeps variables in a file.
func (d *domain) uefi() bool {
	return d.OS != nil && (d.OS.Firmware == "efi" || d.OS.NVRam != nil || d.OS.Loader != nil && d.OS.Loader.Type == "pflash")
}

// agent reports whether it has the channel of a guest agent.
func (d *domain) agent() bool {
	for _, c := range d.Devices.Channels {
		if t := c.Target; t != nil && t.VirtIO != nil && t.VirtIO.Name == "org.qemu.guest_agent.0" {
			return true
		}
	}
	return false
}

// cpus are the models that the host's libvirt knows.
var cpus = []string{"qemu64", "Skylake-Server", "Cascadelake-Server", "Icelake-Server", "EPYC", "EPYC-Rome", "EPYC-Milan"}

// fits checks what a domain names of the host but its disks. Of bridges it has whichever is asked for.
func (s *state) fits(d *domain) error {
	for _, name := range d.networks() {
		if s.network(name) == nil {
			return gpu.Errorf(gpu.CodeConflict, "VM %s could not start: libvirt has no network %q", d.Name, name).WithHint("virsh net-list --all lists those that there are")
		}
	}
	if d.CPU != nil && d.CPU.Model != nil && !slices.Contains(cpus, d.CPU.Model.Value) {
		return gpu.Errorf(gpu.CodeConflict, "VM %s could not start: libvirt knows no CPU model %q", d.Name, d.CPU.Model.Value).
			WithHint("virsh domcapabilities lists those that it knows")
	}
	return nil
}

// startable checks what starting takes of the host.
func (s *state) startable(disks, networks []string) error {
	for _, path := range disks {
		if _, err := os.Stat(path); err != nil {
			return gpu.Errorf(gpu.CodeNotFound, "Cannot access storage file '%s' (as uid:64055, gid:64055): %w", path, err)
		}
	}
	for _, name := range networks {
		if s.network(name) == nil {
			return gpu.Errorf(gpu.CodeNotFound, "Network not found: no network with matching name '%s'", name)
		}
	}
	return nil
}

// place finds the VM that a definition is of; none is nil.
func (s *state) place(d *domain) (*vm, error) {
	for _, v := range s.VMs {
		if v.UUID != d.UUID && v.Name != d.Name {
			continue
		}
		if v.UUID == d.UUID && v.Name == d.Name && v.Mark == d.mark {
			return v, nil
		}
		return nil, gpu.Errorf(gpu.CodeConflict, "domain '%s' is already defined with uuid %s%s", v.Name, v.UUID, v.whose()).
			WithBlockers(gpu.Blocker{Kind: "vm", ID: v.UUID, Name: v.Name})
	}
	return nil, nil
}

// whose says what an error adds of a VM's mark.
func (v *vm) whose() string {
	if v.Mark == "" {
		return ", and gpuvirt did not make it"
	}
	return fmt.Sprintf(", and is one of migration %q", v.Mark)
}
