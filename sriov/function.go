package sriov

import (
	"cmp"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/internal/pci"
	"gpuvirt/internal/sysfs"
)

// Drivers and vendors that are treated in their own way.
const (
	vfioPCI      = "vfio-pci"
	nvidiaDriver = "nvidia"
	nvidiaVendor = "10de"
)

// A function is a PCI function as sysfs shows it.
type function struct {
	address        string
	dir            string // real path
	vendor, device string // "8086"
	class          string // "030000"
	driver         string // bound to it, empty: none
	group          string // IOMMU group, empty: none
	virtual        bool   // a virtual function of another
	vfio           bool   // VMs can be given it
	index          int    // of a virtual function that was found by its GPU
}

// model is what kind of device it is.
func (f function) model() string { return f.vendor + ":" + f.device }

// nvidia reports whether NVIDIA's own driver has it.
func (f function) nvidia() bool { return f.vendor == nvidiaVendor && f.driver == nvidiaDriver }

// isVFIO reports whether a driver gives its devices to VMs: vfio-pci, or one made from
// it for one kind of device.
func isVFIO(driver string) bool { return driver == vfioPCI || strings.HasSuffix(driver, "-"+vfioPCI) }

// gpuClass reports whether a class is that of a GPU: VGA, 3D or other display
// controllers, and processing accelerators.
func gpuClass(class string) bool {
	return slices.ContainsFunc([]string{"0300", "0302", "0380", "1200"}, func(c string) bool { return strings.HasPrefix(class, c) })
}

// bridge reports whether it is part of the bus and no device that could reach memory for
// somebody: a PCI bridge, or one to the host that nothing drives.
func (f function) bridge() bool {
	return strings.HasPrefix(f.class, "0604") || strings.HasPrefix(f.class, "06") && f.driver == ""
}

var idFiles = []string{"vendor", "device", "class"}

// ids are those of a function without the 0x that sysfs puts in front; an error where
// one cannot be read.
func ids(files []sysfs.File) (vendor, device, class string, err error) {
	for _, f := range files {
		err = cmp.Or(err, f.Err)
	}
	trim := func(f sysfs.File) string { return strings.TrimPrefix(f.Text, "0x") }
	return trim(files[0]), trim(files[1]), trim(files[2]), err
}

// read reads a function of the bus.
func (b *bus) read(address string) (f function, err error) {
	entry := path.Join(pci.Devices, address)
	target, err := b.fs.Readlink(entry)
	if err != nil {
		return f, err
	}
	f = function{address: address, dir: path.Join(pci.Devices, target)}
	files, err := b.fs.ReadEach(f.dir, idFiles...)
	if err != nil {
		return f, err
	}
	if f.vendor, f.device, f.class, err = ids(files); err != nil {
		return f, err
	}
	if f.driver, err = sysfs.Base(b.fs, path.Join(f.dir, "driver")); err != nil {
		return f, err
	}
	if f.group, err = sysfs.Base(b.fs, path.Join(f.dir, "iommu_group")); err != nil {
		return f, err
	}
	if f.virtual, err = b.fs.Exists(path.Join(f.dir, "physfn")); err != nil {
		return f, err
	}
	f.vfio = isVFIO(f.driver)
	if !f.vfio && f.driver != "" && f.driver != nvidiaDriver {
		// A variant that is called otherwise. NVIDIA's driver is one, too, for functions
		// that are not ours.
		f.vfio, err = b.fs.Exists(path.Join(f.dir, "vfio-dev"))
	}
	return f, err
}

func (b *bus) isGPU(f function) bool {
	return !f.virtual && (gpuClass(f.class) || b.declared[f.model()])
}

// gpus lists the addresses of the GPUs on the bus, sorted. Of a function it is enough to
// read what it is, so this asks once for all.
func (b *bus) gpus() ([]string, error) {
	names, err := b.fs.List(pci.Devices)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a host without a PCI bus
	}
	if err != nil || len(names) == 0 {
		return nil, err
	}
	var wanted []string
	for _, name := range names {
		for _, file := range idFiles {
			wanted = append(wanted, path.Join(name, file))
		}
	}
	files, err := b.fs.ReadEach(pci.Devices, wanted...)
	if err != nil {
		return nil, err
	}
	var out []string
	for i, name := range names {
		vendor, device, class, err := ids(files[i*len(idFiles) : (i+1)*len(idFiles)])
		if err != nil || !b.isGPU(function{vendor: vendor, device: device, class: class}) {
			continue // what does not say what it is went away while we looked
		}
		virtual, err := b.fs.Exists(path.Join(pci.Devices, name, "physfn"))
		if err != nil {
			return nil, err
		}
		if !virtual {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, nil
}

// find reads a GPU.
func (b *bus) find(id gpu.ID) (function, error) {
	none := gpu.Errorf(gpu.CodeNotFound, "there is no such gpu on the pci bus")
	a, err := gpu.ParseAddress(string(id))
	if err != nil || a.ID() != id {
		return function{}, none
	}
	f, err := b.read(string(id))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !b.isGPU(f) {
		return function{}, none
	}
	return f, err
}

// gone turns "no such file" into CodeNotFound where the GPU itself has gone.
func (b *bus) gone(id gpu.ID, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		if ok, eerr := b.fs.Exists(path.Join(pci.Devices, string(id))); eerr == nil && !ok {
			return gpu.Errorf(gpu.CodeNotFound, "it has gone from the pci bus")
		}
	}
	return err
}

// virtuals lists the virtual functions of a GPU, by index. One that goes away meanwhile
// is left out.
func (b *bus) virtuals(pf function) ([]function, error) {
	names, err := b.fs.List(pf.dir)
	if err != nil {
		return nil, err
	}
	var out []function
	for _, v := range pci.VirtualFunctions(names) {
		address, err := sysfs.Base(b.fs, path.Join(pf.dir, v.Link))
		if err != nil {
			return nil, err
		}
		f, err := b.read(address)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f.index = v.Index
		out = append(out, f)
	}
	return out, nil
}

// counts returns how many virtual functions a GPU can have and has; none where it has no
// SR-IOV.
func (b *bus) counts(pf function) (total, num int, err error) {
	files, err := b.fs.ReadEach(pf.dir, "sriov_totalvfs", "sriov_numvfs")
	if err != nil {
		return 0, 0, err
	}
	for i, n := range []*int{&total, &num} {
		text, err := files[i].Optional()
		if err != nil {
			return 0, 0, err
		}
		if text == "" {
			return 0, 0, nil
		}
		if *n, err = strconv.Atoi(text); err != nil {
			return 0, 0, gpu.Errorf(gpu.CodeUnavailable, "it does not say how many virtual functions it has: %w", err)
		}
	}
	return total, num, nil
}

// others lists what else is in a function's IOMMU group and could reach the memory of a
// VM that has a part of it, by address.
func (b *bus) others(f function, not func(function) bool) ([]function, error) {
	names, err := b.fs.List(path.Join(f.dir, "iommu_group/devices"))
	if err != nil {
		return nil, err
	}
	var out []function
	for _, name := range names {
		if name == f.address {
			continue
		}
		o, err := b.read(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !o.bridge() && !not(o) {
			out = append(out, o)
		}
	}
	return out, nil
}

// naming tells of functions with their drivers, for people and for programs.
func naming(all []function) (string, []gpu.Blocker) {
	parts := make([]string, len(all))
	blockers := make([]gpu.Blocker, len(all))
	for i, f := range all {
		driver := cmp.Or(f.driver, "no driver")
		parts[i] = f.address + " (" + driver + ")"
		blockers[i] = gpu.Blocker{Kind: "driver", ID: f.address, Name: f.driver, Note: "it is in the same IOMMU group"}
	}
	return strings.Join(parts, ", "), blockers
}

const noIOMMU = "it is in no IOMMU group: the IOMMU is off. Turn it on in the firmware and with intel_iommu=on or amd_iommu=on"
