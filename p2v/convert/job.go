package convert

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gpuvirt/gpu"
	"gpuvirt/internal/secret"
)

// A Job is one guest that is converted or edited.
type Job struct {
	// Name is the VM's to be: letters, digits, ".", "_" and "-", at most 64.
	Name string
	// Disks are the server's, in its order.
	Disks []Overlay
	// NICs are the server's.
	NICs []NIC
	// MemoryBytes and VCPUs are the server's, or those that the VM gets.
	MemoryBytes uint64
	VCPUs       int
	// Root is the device of the system to convert where there are several, as a Failure
	// of KindSeveralRoots names them; empty: there is one.
	Root string
	// Keys open encrypted volumes.
	Keys []Key
	// Dir is the job's folder, where the logs are kept.
	Dir string
	// Progress is told what is being done; nil: nobody.
	Progress func(Progress)
}

// A NIC of the server.
type NIC struct {
	MAC string // "52:54:00:aa:bb:01"
}

// A Key opens an encrypted volume.
type Key struct {
	// Volume is the UUID of the LUKS header, or the device: "/dev/sda2".
	Volume string
	// Passphrase is a line. The programs read it from a file that is there for a run only.
	Passphrase secret.Text
}

var (
	jobName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	macValue = regexp.MustCompile(`^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$`)
	device   = regexp.MustCompile(`^/dev/[A-Za-z0-9][A-Za-z0-9/._+-]{0,127}$`)
	volume   = regexp.MustCompile(`^[0-9a-fA-F-]{8,64}$`)
)

func (j *Job) check() error {
	refuse := func(what, value string) error {
		return gpu.Errorf(gpu.CodeInvalid, "cannot convert %q: %q is no %s", j.Name, value, what)
	}
	switch {
	case !jobName.MatchString(j.Name):
		return refuse("name of a VM", j.Name)
	case len(j.Disks) == 0:
		return gpu.Errorf(gpu.CodeInvalid, "cannot convert %q: it has no disk", j.Name)
	case j.Root != "" && !device.MatchString(j.Root):
		return refuse("device", j.Root)
	}
	for _, d := range j.Disks {
		for _, path := range []string{d.Path, d.Mirror} {
			if err := checkPath(path); err != nil {
				return err
			}
		}
	}
	for _, n := range j.NICs {
		if !macValue.MatchString(n.MAC) {
			return refuse("MAC address", n.MAC)
		}
	}
	for _, k := range j.Keys {
		if !device.MatchString(k.Volume) && !volume.MatchString(k.Volume) {
			return refuse("volume", k.Volume)
		}
		if k.Passphrase == "" || strings.ContainsAny(string(k.Passphrase), "\x00\n") {
			return gpu.Errorf(gpu.CodeInvalid, "cannot convert %q: the passphrase of %q is empty, or has several lines", j.Name, k.Volume)
		}
	}
	return checkPath(j.Dir)
}

// checkPath refuses a path of this host that a program might take for something else.
func checkPath(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }) || strings.ContainsAny(path, ":,") {
		return gpu.Errorf(gpu.CodeInvalid, "cannot use the path %q: it must begin with /, be in its shortest form, and have no colon, comma or control character", path)
	}
	return nil
}

func (j *Job) overlays() []string {
	var paths []string
	for _, d := range j.Disks {
		paths = append(paths, d.Path)
	}
	return paths
}

func (j *Job) root() string {
	if j.Root == "" {
		return "single"
	}
	return j.Root
}

// checkDisks tells whether all mirrors are as they were when the overlays were made, and
// the overlays over them.
func (j *Job) checkDisks() error {
	for _, d := range j.Disks {
		if err := d.Check(); err != nil {
			return err
		}
	}
	return nil
}

// inputXML describes the guest to virt-v2v. The firmware is not told: it is seen on the
// disk, and compared with what the server said.
func (j *Job) inputXML() (string, error) {
	dom := libvirtxml.Domain{
		Type:    "physical",
		Name:    j.Name,
		Memory:  &libvirtxml.DomainMemory{Value: uint(max(j.MemoryBytes>>10, 1<<20)), Unit: "KiB"},
		VCPU:    &libvirtxml.DomainVCPU{Value: uint(max(j.VCPUs, 1))},
		OS:      &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Arch: "x86_64", Type: "hvm"}},
		Devices: &libvirtxml.DomainDeviceList{},
	}
	for i, d := range j.Disks {
		dom.Devices.Disks = append(dom.Devices.Disks, libvirtxml.DomainDisk{
			Device: "disk",
			Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: "qcow2"},
			Source: &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: d.Path}},
			Target: &libvirtxml.DomainDiskTarget{Dev: DiskName("sd", i)},
		})
	}
	for _, n := range j.NICs {
		dom.Devices.Interfaces = append(dom.Devices.Interfaces, libvirtxml.DomainInterface{
			MAC:    &libvirtxml.DomainInterfaceMAC{Address: n.MAC},
			Source: &libvirtxml.DomainInterfaceSource{Network: &libvirtxml.DomainInterfaceSourceNetwork{Network: "default"}},
		})
	}
	doc, err := dom.Marshal()
	if err != nil {
		return "", fmt.Errorf("cannot describe %q: %w", j.Name, err)
	}
	return doc, nil
}

// DiskName is the name of the i-th disk: sda … sdz, sdaa.
func DiskName(prefix string, i int) string {
	name := string(rune('a' + i%26))
	for i /= 26; i > 0; i /= 26 {
		i--
		name = string(rune('a'+i%26)) + name
	}
	return prefix + name
}
