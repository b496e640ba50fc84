package vmapi

import (
	"path"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gpuvirt/gpu"
)

// trialXML makes of a VM's persistent definition that of a trial. What it does not know
// how to keep apart from the VM it refuses.
func trialXML(doc, mark string, t Trial) (string, error) {
	var dom libvirtxml.Domain
	if err := dom.Unmarshal(doc); err != nil {
		return "", gpu.Errorf(gpu.CodeInternal, "cannot parse its definition: %w", err)
	}
	if t.Network == "" {
		return "", gpu.Errorf(gpu.CodeInvalid, "no network is given")
	}
	if dom.Devices == nil || dom.OS == nil {
		return "", gpu.Errorf(gpu.CodeInvalid, "its definition has no devices, or does not say what starts")
	}
	if err := separable(&dom); err != nil {
		return "", err
	}
	nvram := t.NVRAM
	if err := trialDisks(dom.Devices.Disks, t.Disks, &nvram); err != nil {
		return "", err
	}
	for i := range dom.Devices.Interfaces {
		trialNIC(&dom.Devices.Interfaces[i], t.Network)
	}
	dom.Devices.TPMs = nil
	if err := trialNVRAM(&dom, nvram); err != nil {
		return "", err
	}
	if err := setMark(&dom, madeXML{By: mark, Trial: "yes"}); err != nil {
		return "", err
	}
	return dom.Marshal()
}

// separable refuses what a trial would share with the VM, beside its disks.
func separable(dom *libvirtxml.Domain) error {
	if dom.QEMUCommandline != nil {
		return gpu.Errorf(gpu.CodeInvalid, "it has arguments for QEMU, which may be of files that a trial would write")
	}
	if len(dom.Devices.Filesystems) > 0 {
		return gpu.Errorf(gpu.CodeInvalid, "it has a folder of the host, which a trial would share")
	}
	for _, m := range dom.Devices.Memorydevs {
		if m.Source != nil && m.Source.Path != "" {
			return gpu.Errorf(gpu.CodeInvalid, "it has memory in %q, which a trial would write", m.Source.Path)
		}
	}
	for _, h := range dom.Devices.Hostdevs {
		if h.SubsysSCSI != nil || h.SubsysSCSIHost != nil || h.CapsStorage != nil {
			return gpu.Errorf(gpu.CodeInvalid, "it has a disk of the host, which a trial would write")
		}
	}
	return nil
}

// trialDisks replaces the source of each disk, and names the file for the variables of
// UEFI where there is no name yet.
func trialDisks(disks []libvirtxml.DomainDisk, paths map[string]string, nvram *string) error {
	real := map[string]bool{}
	for i := range disks {
		from, err := diskPath(&disks[i])
		if err != nil {
			return err
		}
		real[from] = true
	}
	for i := range disks {
		d := &disks[i]
		from, _ := diskPath(d)
		if from == "" {
			continue // a drive without a medium
		}
		to := paths[from]
		switch {
		case to == "":
			return gpu.Errorf(gpu.CodeInvalid, "it is not said what to use instead of the disk %q", from)
		case path.Clean(to) != to || !path.IsAbs(to):
			return gpu.Errorf(gpu.CodeInvalid, "instead of the disk %q: %q is not the path of a file", from, to)
		case real[to] && d.ReadOnly == nil && d.Device != "cdrom":
			return gpu.Errorf(gpu.CodeInvalid, "a trial would write the VM's disk %q", to)
		}
		// The format stays, so that it is not guessed. All else of a source is about the
		// place where it was.
		d.Source, d.BackingStore, d.Mirror = &libvirtxml.DomainDiskSource{}, nil, nil
		if strings.HasPrefix(to, "/dev/") {
			d.Source.Block = &libvirtxml.DomainDiskSourceBlock{Dev: to}
			continue
		}
		d.Source.File = &libvirtxml.DomainDiskSourceFile{File: to}
		if *nvram == "" {
			*nvram = to + gpu.TrialNVRAM
		}
	}
	return nil
}

// diskPath returns the file or block device that a disk is in, or nothing where there is
// no medium.
func diskPath(d *libvirtxml.DomainDisk) (string, error) {
	s := d.Source
	switch {
	case s == nil:
		return "", nil
	case s.Encryption != nil || d.Encryption != nil:
		return "", gpu.Errorf(gpu.CodeInvalid, "a disk is encrypted by libvirt")
	case s.File != nil:
		return s.File.File, nil
	case s.Block != nil:
		return s.Block.Dev, nil
	default:
		return "", gpu.Errorf(gpu.CodeInvalid, "a disk is neither in a file nor on a block device")
	}
}

// trialNIC puts a NIC on a network. What belongs to the one where it was goes; what the
// guest sees stays.
func trialNIC(n *libvirtxml.DomainInterface, network string) {
	*n = libvirtxml.DomainInterface{
		MAC: n.MAC, Model: n.Model, Driver: n.Driver, Boot: n.Boot, ROM: n.ROM, ACPI: n.ACPI, Link: n.Link, MTU: n.MTU, Address: n.Address, Alias: n.Alias,
		Source: &libvirtxml.DomainInterfaceSource{Network: &libvirtxml.DomainInterfaceSourceNetwork{Network: network}},
	}
}

// trialNVRAM has the variables of UEFI kept in another file, which libvirt makes from the
// template of the firmware. Which firmware it is, the definition says or libvirt knows.
func trialNVRAM(dom *libvirtxml.Domain, file string) error {
	os := dom.OS
	loader := os.Loader
	switch {
	case loader != nil && (loader.Stateless == "yes" || loader.Type == "rom"):
		return nil
	case os.Firmware != "efi" && os.NVRam == nil && (loader == nil || loader.Type != "pflash"):
		return nil // a BIOS
	case os.VarStore != nil:
		return gpu.Errorf(gpu.CodeInvalid, "its firmware keeps variables in a way that is not known here")
	case path.Clean(file) != file || !path.IsAbs(file):
		return gpu.Errorf(gpu.CodeInvalid, "%q is no file for the variables of UEFI", file)
	}
	if os.NVRam == nil {
		os.NVRam = &libvirtxml.DomainNVRam{}
	}
	if file == strings.TrimSpace(os.NVRam.NVRam) || os.NVRam.Source != nil && os.NVRam.Source.File != nil && file == os.NVRam.Source.File.File {
		return gpu.Errorf(gpu.CodeInvalid, "a trial would write the VM's variables of UEFI, %q", file)
	}
	os.NVRam.NVRam, os.NVRam.Source = file, nil
	return nil
}
