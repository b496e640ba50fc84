package host

import (
	"context"
	"fmt"
	"slices"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
)

// variantSince is the first libvirt that gives a VM a device whose driver is a VFIO
// driver of its own (libvirt's news of 9.7.0). An older one takes only what vfio-pci has,
// and refuses when the VM is started.
var variantSince = [2]int{9, 7}

// attachableKinds says of vGPUs on virtual functions that this libvirt cannot give them to a
// VM, before anything is touched for one. Where its version cannot be told, nothing is
// said: the attach will.
func (h *Host) attachableKinds(ctx context.Context, l inventory.Look) inventory.Look {
	if !slices.ContainsFunc(l.Profiles, func(p gpu.Profile) bool { return p.Kind == gpu.KindVGPU && p.NotCreatable == "" }) {
		return l
	}
	version, err := h.cfg.Inventory.LibvirtVersion(ctx)
	if err != nil || !older(version, variantSince) {
		return l
	}
	l.Profiles = slices.Clone(l.Profiles)
	for i, p := range l.Profiles {
		if p.Kind == gpu.KindVGPU && p.NotCreatable == "" {
			l.Profiles[i].NotCreatable = fmt.Sprintf("libvirt %s cannot give it to a vm: that takes %d.%d or newer", version, variantSince[0], variantSince[1])
		}
	}
	return l
}

// older reports whether a version "major.minor.release" comes before another. One that
// cannot be read does not.
func older(version string, than [2]int) bool {
	var major, minor int
	if n, err := fmt.Sscanf(version, "%d.%d", &major, &minor); n != 2 || err != nil {
		return false
	}
	return major < than[0] || major == than[0] && minor < than[1]
}
