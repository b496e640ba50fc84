package convert

import (
	"fmt"
	"regexp"
	"slices"

	"libvirt.org/go/libvirtxml"

	"gpuvirt/gpu"
)

// A Domain is the VM to be, without its GPU: that is an assignment like any other's.
type Domain struct {
	Name string
	UUID string // empty: libvirt chooses one
	// MemoryBytes is whole MiB.
	MemoryBytes uint64
	VCPUs       int
	// CPU is host-passthrough, host-model, maximum, or the name of a model. Empty:
	// host-passthrough, as programs of the server may have been built for its processor.
	CPU      string
	Firmware Firmware
	// SecureBoot is of UEFI only: the firmware refuses what is not signed.
	SecureBoot bool
	// TPM gives it an emulated one, new and empty: what the server's had sealed is lost.
	TPM bool
	// Disks are the overlays, in the order of the server's disks.
	Disks []string
	// Boot is which of Disks it starts from, counted from 0.
	Boot int
	NICs []DomainNIC
	// SerialLog is a file of the host where its first serial console is kept.
	SerialLog string
	// VFIO: it will have a device of the host. Its memory is then pinned, so there is no
	// balloon that could take some away.
	VFIO bool
	// SpareSlots are free PCIe ports, for what is plugged in while it runs. Default 4.
	SpareSlots int
	// Isolated is a network without a way out, for a rehearsal: all its NICs are there,
	// whatever they are mapped to. Empty: this is no rehearsal.
	Isolated string
	// Emulated has it run without the processor's help: for tests.
	Emulated bool
}

// A DomainNIC is a NIC of the VM. One of Network and Bridge is set, or none where the cable
// is out.
type DomainNIC struct {
	MAC     string // the server's
	Network string // of libvirt
	Bridge  string // of the host
	// Down leaves the cable out.
	Down bool
}

var (
	cpuModel    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	networkName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,49}$`)
	bridgeName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$`)
	domainUUID  = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
)

func (d Domain) check() error {
	refuse := func(format string, args ...any) error {
		return gpu.Errorf(gpu.CodeInvalid, "cannot define the VM %q: %s", d.Name, fmt.Sprintf(format, args...))
	}
	switch {
	case !jobName.MatchString(d.Name):
		return refuse("that is no name of a VM")
	case d.UUID != "" && !domainUUID.MatchString(d.UUID):
		return refuse("%q is no UUID", d.UUID)
	case d.MemoryBytes < 64<<20 || d.MemoryBytes%(1<<20) != 0:
		return refuse("%d bytes of memory are not whole MiB, 64 at least", d.MemoryBytes)
	case d.VCPUs < 1 || d.VCPUs > 4096:
		return refuse("it cannot have %d CPUs", d.VCPUs)
	case d.CPU != "" && !cpuModel.MatchString(d.CPU):
		return refuse("%q is no model of a CPU", d.CPU)
	case d.Firmware != FirmwareBIOS && d.Firmware != FirmwareUEFI:
		return refuse("%q is no firmware", d.Firmware)
	case d.SecureBoot && d.Firmware != FirmwareUEFI:
		return refuse("only UEFI has Secure Boot")
	case len(d.Disks) == 0:
		return refuse("it has no disk")
	case d.Boot < 0 || d.Boot >= len(d.Disks):
		return refuse("it has no disk %d to start from", d.Boot)
	case d.Isolated != "" && !networkName.MatchString(d.Isolated):
		return refuse("%q is no name of a network", d.Isolated)
	case d.SpareSlots < 0 || d.SpareSlots > 32:
		return refuse("it cannot have %d spare slots", d.SpareSlots)
	}
	for _, path := range append(slices.Clone(d.Disks), d.SerialLog) {
		if err := checkPath(path); err != nil {
			return err
		}
	}
	for _, n := range d.NICs {
		switch {
		case !macValue.MatchString(n.MAC):
			return refuse("%q is no MAC address", n.MAC)
		case d.Isolated == "" && (n.Network == "") == (n.Bridge == "") && !(n.Down && n.Bridge == ""):
			return refuse("the NIC %s needs either a network or a bridge", n.MAC)
		case n.Network != "" && !networkName.MatchString(n.Network):
			return refuse("%q is no name of a network", n.Network)
		case n.Bridge != "" && !bridgeName.MatchString(n.Bridge):
			return refuse("%q is no name of a bridge", n.Bridge)
		}
	}
	return nil
}

// XML is the definition for libvirt.
func (d Domain) XML() (string, error) {
	if err := d.check(); err != nil {
		return "", err
	}
	dom := libvirtxml.Domain{
		Type:        "kvm",
		Name:        d.Name,
		UUID:        d.UUID,
		Description: "moved from a physical server",
		Memory:      &libvirtxml.DomainMemory{Value: uint(d.MemoryBytes >> 20), Unit: "MiB"},
		VCPU:        &libvirtxml.DomainVCPU{Placement: "static", Value: uint(d.VCPUs)},
		CPU:         d.cpu(),
		OS:          d.os(),
		Features: &libvirtxml.DomainFeatureList{
			ACPI: &libvirtxml.DomainFeature{}, APIC: &libvirtxml.DomainFeatureAPIC{},
		},
		Clock: &libvirtxml.DomainClock{Offset: "utc", Timer: []libvirtxml.DomainTimer{
			{Name: "rtc", TickPolicy: "catchup"}, {Name: "pit", TickPolicy: "delay"}, {Name: "hpet", Present: "no"},
		}},
		OnPoweroff: "destroy", OnReboot: "restart", OnCrash: "destroy",
		Devices: d.devices(),
	}
	if d.Emulated {
		dom.Type = "qemu"
	}
	if d.SecureBoot {
		dom.Features.SMM = &libvirtxml.DomainFeatureSMM{State: "on"}
	}
	doc, err := dom.Marshal()
	if err != nil {
		return "", fmt.Errorf("cannot define the VM %q: %w", d.Name, err)
	}
	return doc, nil
}

func (d Domain) cpu() *libvirtxml.DomainCPU {
	switch d.CPU {
	case "":
		return &libvirtxml.DomainCPU{Mode: "host-passthrough"}
	case "host-passthrough", "host-model", "maximum":
		return &libvirtxml.DomainCPU{Mode: d.CPU}
	default:
		return &libvirtxml.DomainCPU{Mode: "custom", Match: "exact", Model: &libvirtxml.DomainCPUModel{Fallback: "forbid", Value: d.CPU}}
	}
}

func (d Domain) os() *libvirtxml.DomainOS {
	os := &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Arch: "x86_64", Machine: "q35", Type: "hvm"}}
	if d.Firmware == FirmwareUEFI {
		// libvirt picks the image that the host has, by what it can do.
		secure := "no"
		if d.SecureBoot {
			secure = "yes"
		}
		os.Firmware = "efi"
		os.FirmwareInfo = &libvirtxml.DomainOSFirmwareInfo{Features: []libvirtxml.DomainOSFirmwareFeature{
			{Enabled: secure, Name: "enrolled-keys"}, {Enabled: secure, Name: "secure-boot"},
		}}
	}
	return os
}

func (d Domain) devices() *libvirtxml.DomainDeviceList {
	model := "virtio"
	if d.VFIO {
		model = "none"
	}
	list := &libvirtxml.DomainDeviceList{
		Serials: []libvirtxml.DomainSerial{{
			Source: &libvirtxml.DomainChardevSource{File: &libvirtxml.DomainChardevSourceFile{Path: d.SerialLog}},
			Target: &libvirtxml.DomainSerialTarget{Type: "isa-serial"},
		}},
		Channels: []libvirtxml.DomainChannel{{
			Source: &libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{Mode: "bind"}},
			Target: &libvirtxml.DomainChannelTarget{VirtIO: &libvirtxml.DomainChannelTargetVirtIO{Name: "org.qemu.guest_agent.0"}},
		}},
		RNGs: []libvirtxml.DomainRNG{{
			Model:   "virtio",
			Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{Device: "/dev/urandom"}},
		}},
		MemBalloon: &libvirtxml.DomainMemBalloon{Model: model},
	}
	if d.TPM {
		list.TPMs = []libvirtxml.DomainTPM{{
			Model:   "tpm-crb",
			Backend: &libvirtxml.DomainTPMBackend{Emulator: &libvirtxml.DomainTPMBackendEmulator{Version: "2.0"}},
		}}
	}
	for i, path := range d.Disks {
		disk := libvirtxml.DomainDisk{
			Device: "disk",
			Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: "qcow2", Cache: "none", IO: "native", Discard: "unmap"},
			Source: &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: path}},
			Target: &libvirtxml.DomainDiskTarget{Dev: DiskName("vd", i), Bus: "virtio"},
		}
		// The firmware shows the boot loader only the disks that have a place in the order, and
		// what it reads may lie on several.
		switch {
		case i == d.Boot:
			disk.Boot = &libvirtxml.DomainDeviceBoot{Order: 1}
		case i < d.Boot:
			disk.Boot = &libvirtxml.DomainDeviceBoot{Order: uint(i) + 2}
		default:
			disk.Boot = &libvirtxml.DomainDeviceBoot{Order: uint(i) + 1}
		}
		list.Disks = append(list.Disks, disk)
	}
	for _, n := range d.NICs {
		list.Interfaces = append(list.Interfaces, d.nic(n))
	}
	slots := d.SpareSlots
	if slots == 0 {
		slots = 4
	}
	// Beside those that libvirt makes for the devices above. Who names one names their root.
	root := uint(0)
	list.Controllers = append(list.Controllers, libvirtxml.DomainController{Type: "pci", Index: &root, Model: "pcie-root"})
	for range slots {
		list.Controllers = append(list.Controllers, libvirtxml.DomainController{Type: "pci", Model: "pcie-root-port"})
	}
	return list
}

func (d Domain) nic(n DomainNIC) libvirtxml.DomainInterface {
	nic := libvirtxml.DomainInterface{
		MAC:    &libvirtxml.DomainInterfaceMAC{Address: n.MAC},
		Model:  &libvirtxml.DomainInterfaceModel{Type: "virtio"},
		Source: &libvirtxml.DomainInterfaceSource{},
	}
	switch {
	case d.Isolated != "":
		nic.Source.Network = &libvirtxml.DomainInterfaceSourceNetwork{Network: d.Isolated}
	case n.Bridge != "":
		nic.Source.Bridge = &libvirtxml.DomainInterfaceSourceBridge{Bridge: n.Bridge}
	case n.Network != "":
		nic.Source.Network = &libvirtxml.DomainInterfaceSourceNetwork{Network: n.Network}
	default: // a device of the host that nothing is behind
		nic.Source.Ethernet = &libvirtxml.DomainInterfaceSourceEthernet{}
	}
	if n.Down {
		nic.Link = &libvirtxml.DomainInterfaceLink{State: "down"}
	}
	return nic
}

// IsolatedNetwork is the definition of a network for rehearsals: a bridge without any
// address or way out, so that a copy does not meet the server that still runs. The UUID
// tells it from others of its name.
func IsolatedNetwork(name, uuid string) (string, error) {
	switch {
	case !networkName.MatchString(name):
		return "", gpu.Errorf(gpu.CodeInvalid, "cannot define the network %q: that is no name of a network", name)
	case !domainUUID.MatchString(uuid):
		return "", gpu.Errorf(gpu.CodeInvalid, "cannot define the network %q: %q is no UUID", name, uuid)
	}
	net := libvirtxml.Network{Name: name, UUID: uuid, Bridge: &libvirtxml.NetworkBridge{STP: "on"}}
	doc, err := net.Marshal()
	if err != nil {
		return "", fmt.Errorf("cannot define the network %q: %w", name, err)
	}
	return doc, nil
}
