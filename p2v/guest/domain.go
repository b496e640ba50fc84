package guest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/report"
)

// Mapping is where the parts of a VM are on this host.
type Mapping struct {
	Name string // as convert.Job has it
	UUID string // empty: libvirt chooses one
	// Disks are the paths of the overlays, in the order of assess.Disks for the same report.
	Disks []string
	// NICs are where the server's NICs are plugged in, by their Ethernet address, or by their
	// name on the server.
	NICs map[string]NIC
	// Default is for those that are not in NICs; zero: they are there, and the cable is out.
	Default NIC
	// MemoryBytes and VCPUs are the VM's; 0: as the plan says, or as the server has.
	MemoryBytes uint64
	VCPUs       int
	CPU         string // as convert.Domain has it
	SerialLog   string // a file of this host
	// VFIO is set where it will have a device of the host.
	VFIO bool
	// Emulated has it run without the processor's help: for tests.
	Emulated bool
}

// NIC is where a NIC is plugged in: into one network or one bridge. Zero: nowhere.
type NIC struct {
	Network string // of libvirt
	Bridge  string // of the host
	Down    bool   // the cable is out
}

const (
	mib = 1 << 20
	// What no server with a GPU has less of, and no host more.
	minMemory = 512 * mib
	maxMemory = 64 << 40
	// More take a guest's own IOMMU.
	maxVCPUs = 255
)

// Domain defines the VM that a server becomes.
//
// It has the server's firmware; Secure Boot where the server had it on, and a TPM, new and
// empty, where a volume's key was bound to the server's. Memory is rounded up to whole MiB.
// A server with more than 255 threads becomes a VM with 255. The NICs are the server's with
// hardware behind them, with their Ethernet addresses, in the order of their names. It starts
// from the disk that the server started from.
//
// Errors have gpu.CodeInvalid, and say what has to be known or asked for otherwise.
func Domain(r report.Report, w assess.Wish, m Mapping) (convert.Domain, error) {
	disks := assess.Disks(r, w)
	refuse := func(format string, args ...any) (convert.Domain, error) {
		return convert.Domain{}, cannot(m.Name, format, args...)
	}
	d := convert.Domain{
		Name: m.Name, UUID: m.UUID, CPU: m.CPU, Firmware: convert.Firmware(r.Firmware.Type),
		Disks: slices.Clone(m.Disks), SerialLog: m.SerialLog, VFIO: m.VFIO, Emulated: m.Emulated,
		SecureBoot: r.Firmware.Type == "uefi" && r.Firmware.SecureBoot != nil && *r.Firmware.SecureBoot,
		TPM:        slices.ContainsFunc(r.Volumes, func(v report.Volume) bool { return v.TPM }),
	}
	if d.Firmware != convert.FirmwareBIOS && d.Firmware != convert.FirmwareUEFI {
		return refuse("the inspection does not tell what firmware starts the server")
	}
	if len(disks) != len(m.Disks) {
		return refuse("%d disks are moved, and %d overlays are there", len(disks), len(m.Disks))
	}
	d.Boot = max(0, slices.IndexFunc(disks, func(d report.Disk) bool { return d.Boots }))
	var err error
	if d.MemoryBytes, err = memory(r, w, m); err != nil {
		return convert.Domain{}, err
	}
	if d.VCPUs, err = vcpus(r, w, m); err != nil {
		return convert.Domain{}, err
	}
	if d.NICs, err = plugged(r, m); err != nil {
		return convert.Domain{}, err
	}
	if _, err := d.XML(); err != nil { // which checks the rest
		return convert.Domain{}, err
	}
	return d, nil
}

// Job is what a conversion is told of a VM. Its disks and folders are the caller's.
func Job(d convert.Domain) convert.Job {
	j := convert.Job{Name: d.Name, MemoryBytes: d.MemoryBytes, VCPUs: d.VCPUs}
	for _, n := range d.NICs {
		j.NICs = append(j.NICs, convert.NIC{MAC: n.MAC})
	}
	return j
}

func cannot(name, format string, args ...any) *gpu.Error {
	return gpu.Errorf(gpu.CodeInvalid, "cannot define the VM %q: %s", name, fmt.Sprintf(format, args...))
}

func memory(r report.Report, w assess.Wish, m Mapping) (uint64, error) {
	for _, n := range []uint64{m.MemoryBytes, w.MemoryBytes, r.Memory.TotalBytes} {
		switch {
		case n == 0:
		case n < minMemory:
			return 0, cannot(m.Name, "%d bytes of memory are not enough: %d at least", n, minMemory)
		case n > maxMemory:
			return 0, cannot(m.Name, "%d bytes of memory are more than any host has", n)
		default:
			return (n + mib - 1) / mib * mib, nil
		}
	}
	return 0, cannot(m.Name, "it is not known how much memory the server has").WithHint("say how much the VM gets")
}

func vcpus(r report.Report, w assess.Wish, m Mapping) (int, error) {
	for _, n := range []int{m.VCPUs, w.Threads} {
		switch {
		case n < 0 || n > maxVCPUs:
			return 0, cannot(m.Name, "it cannot have %d CPUs: 1 to %d", n, maxVCPUs)
		case n > 0:
			return n, nil
		}
	}
	if r.CPU.Threads < 1 {
		return 0, cannot(m.Name, "it is not known how many threads the server's processors have").WithHint("say how many CPUs the VM gets")
	}
	return min(r.CPU.Threads, maxVCPUs), nil
}

// plugged are the VM's NICs, each plugged in as it is mapped.
func plugged(r report.Report, m Mapping) ([]convert.DomainNIC, error) {
	unused := slices.Sorted(maps.Keys(m.NICs))
	out := []convert.DomainNIC{}
	for _, n := range cards(r) {
		if n.why != "" {
			continue
		}
		to, mapped := m.Default, 0
		unused = slices.DeleteFunc(unused, func(key string) bool {
			is := key == n.Name || strings.EqualFold(key, n.MAC)
			if is {
				to = m.NICs[key]
				mapped++
			}
			return is
		})
		if mapped > 1 {
			return nil, cannot(m.Name, "the NIC %s (%s) is mapped twice", show(n.Name), n.MAC)
		}
		out = append(out, convert.DomainNIC{MAC: n.MAC, Network: to.Network, Bridge: to.Bridge, Down: to.Down || to.Network == "" && to.Bridge == ""})
	}
	if len(unused) > 0 {
		return nil, cannot(m.Name, "the server has no NIC %q with hardware behind it that a VM could have", unused[0]).
			WithHint("map NICs by their name on the server or their Ethernet address, and not bonds, bridges or VLANs")
	}
	return out, nil
}
