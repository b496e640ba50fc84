package host

import (
	"context"
	"slices"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
)

// reserved takes from what GPUs offer the devices that definitions of VMs name: they are
// chosen for no other VM, though the kernel says that they are free. Where that cannot be
// told, nothing can be attached either, and the numbers stay.
func (h *Host) reserved(ctx context.Context, looks []inventory.Look) []inventory.Look {
	if !slices.ContainsFunc(looks, func(l inventory.Look) bool { return slices.ContainsFunc(l.Profiles, byAddress) }) {
		return looks
	}
	named, err := h.taken(ctx, gpu.KindVF)
	if err != nil || len(named) == 0 {
		return looks
	}
	out := slices.Clone(looks)
	for i, l := range looks {
		if slices.ContainsFunc(l.Profiles, byAddress) {
			out[i] = h.withoutNamed(ctx, l, named)
		}
	}
	return out
}

// byAddress reports whether a VM is given partitions of a profile by their PCI address.
func byAddress(p gpu.Profile) bool {
	return p.Kind == gpu.KindVF || p.Kind == gpu.KindVGPU || p.Kind == gpu.KindCard
}

func (h *Host) withoutNamed(ctx context.Context, l inventory.Look, named []gpu.Handle) inventory.Look {
	is := func(address string) bool {
		return slices.ContainsFunc(named, func(n gpu.Handle) bool { return inventory.Same(n, gpu.Handle{PCIAddress: address}) })
	}
	room := -1 // functions that are free and not named
	if l.GPU.SRIOV.NumVFs > 0 {
		if free, err := h.freeFunctions(ctx, l.GPU); err == nil {
			room = len(slices.DeleteFunc(free, func(f gpu.Function) bool { return is(f.PCIAddress) }))
		}
	}
	l.Profiles = slices.Clone(l.Profiles)
	for i := range l.Profiles {
		p := &l.Profiles[i]
		fits := p.Available
		switch {
		case p.Kind == gpu.KindCard && (is(l.GPU.PCIAddress) || slices.ContainsFunc(strings.Fields(p.Attributes["with"]), is)):
			fits = 0
		case p.Kind != gpu.KindCard && byAddress(*p) && room >= 0:
			fits = min(fits, room)
		}
		p.Available, p.Reserved = fits, p.Available-fits
		p.Ahead = min(p.Ahead, fits)
	}
	return l
}
