// Package pci says what sysfs tells of a GPU that is a PCI device: the same for every
// backend that cuts it.
package pci

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/internal/sysfs"
)

// Sysfs is what is needed of sysfs; *sysfs.Root has it.
type Sysfs interface {
	Read(path string) (string, error)
	List(dir string) ([]string, error)
	Exists(path string) (bool, error)
	ReadEach(dir string, names ...string) ([]sysfs.File, error)
	Readlink(path string) (string, error)
}

// Devices is the folder with a link to each device, by its address.
const Devices = "bus/pci/devices"

// files are the attributes that are read. Only some devices have a serial number or
// virtual functions.
var files = []string{
	"vendor", "device", "subsystem_vendor", "subsystem_device", "serial_number",
	"numa_node", "sriov_totalvfs", "sriov_numvfs",
}

// Describe fills in what sysfs says of the device in a directory. The identity holds
// the ids, which no driver can change; they are the model too, as sysfs has no names.
func Describe(fs Sysfs, dir string, g *gpu.GPU) error {
	all, err := fs.ReadEach(dir, files...)
	if err != nil {
		return err
	}
	read := func(name string) string { return all[slices.Index(files, name)].Text } // empty if it cannot be read
	ids := func(vendor, device string) string {
		v, d := strings.TrimPrefix(read(vendor), "0x"), strings.TrimPrefix(read(device), "0x")
		if v == "" || d == "" {
			return ""
		}
		return v + ":" + d
	}
	g.PCIAddress = path.Base(dir)
	g.Identity.Model = ids("vendor", "device")
	if g.Identity.Model == "" {
		if err := cmp.Or(all[0].Err, all[1].Err); err != nil {
			return fmt.Errorf("cannot read the pci ids in %q: %w", dir, err)
		}
		return fmt.Errorf("cannot read the pci ids in %q: they are empty", dir)
	}
	g.Identity.Subsystem = ids("subsystem_vendor", "subsystem_device")
	g.Serial = read("serial_number")
	g.Identity.Serial = g.Serial
	vendor, _, _ := strings.Cut(g.Identity.Model, ":")
	switch vendor {
	case "10de":
		g.Vendor = "NVIDIA"
	case "8086":
		g.Vendor = "Intel"
	case "1002":
		g.Vendor = "AMD"
	default:
		g.Vendor = vendor
	}
	g.Model = g.Identity.Model
	if n, err := strconv.Atoi(read("numa_node")); err == nil && n >= 0 {
		g.NUMANode = n
	}
	g.SRIOV.TotalVFs, _ = strconv.Atoi(read("sriov_totalvfs"))
	g.SRIOV.NumVFs, _ = strconv.Atoi(read("sriov_numvfs"))
	if g.IOMMUGroup, err = sysfs.Base(fs, path.Join(dir, "iommu_group")); err != nil {
		return err
	}
	if g.Driver.Name, err = sysfs.Base(fs, path.Join(dir, "driver")); err != nil {
		return err
	}
	text, err := fs.Read(path.Join(dir, "driver/module/version"))
	g.Driver.Version, err = sysfs.File{Text: text, Err: err}.Optional()
	return err
}
