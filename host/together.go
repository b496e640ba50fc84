package host

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
)

// maxPerVM is the attribute of a profile that says how many of its vGPUs one VM may have.
const maxPerVM = "max_per_vm"

// offersFor is what is left of what GPUs offer beside a batch, for a VM if there is one.
func (h *Host) offersFor(ctx context.Context, vm *taker, offers []inventory.Look, batch *batch) ([]inventory.Look, error) {
	offers = batch.reduce(offers)
	if vm == nil {
		return offers, nil
	}
	return h.together(ctx, vm, offers, batch)
}

// together rules out of what GPUs offer what a VM cannot have beside what it has: of
// NVIDIA's vGPUs a VM takes one of each card, and of most types only one (T41). libvirt
// knows nothing of that; the VM would fail to start.
func (h *Host) together(ctx context.Context, vm *taker, offers []inventory.Look, batch *batch) ([]inventory.Look, error) {
	assignments, err := h.cfg.Store.AssignmentRecords()
	if err != nil {
		return nil, err
	}
	partitions, err := h.cfg.Store.PartitionRecords()
	if err != nil {
		return nil, err
	}
	has := map[string]gpu.PartitionRecord{} // the vGPUs of the VM, by assignment
	for _, a := range assignments {
		i := slices.IndexFunc(partitions, func(p gpu.PartitionRecord) bool { return p.ID == a.Partition })
		if a.Wish.VM == vm.UUID && i >= 0 && isVGPU(partitions[i].Kind) {
			has[a.Name] = partitions[i]
		}
	}
	for _, c := range batch.list() {
		if c.assignment.Wish.VM == vm.UUID && isVGPU(c.part.Kind) {
			has[c.assignment.Name] = c.part
		}
	}
	var devices []gpu.Hostdev // those that others gave it count as well
	if slices.ContainsFunc(offers, func(o inventory.Look) bool { return o.GPU.Vendor == "NVIDIA" }) {
		whole, err := vm.vm(ctx)
		if err != nil {
			return nil, err
		}
		devices = whole.Hostdevs
	}
	if len(has) == 0 && len(devices) == 0 {
		return offers, nil
	}
	offers = slices.Clone(offers)
	for i, o := range offers {
		if o.GPU.Vendor != "NVIDIA" {
			continue
		}
		has, err := h.withForeign(ctx, o.GPU, has, devices)
		if err != nil {
			return nil, err
		}
		offers[i].Profiles = slices.Clone(o.Profiles)
		for j, p := range o.Profiles {
			if why := apart(vm.VMHead, o.GPU.ID, p, has); why != "" && p.NotCreatable == "" {
				offers[i].Profiles[j].NotCreatable = why
			}
		}
	}
	return offers, nil
}

// withForeign adds to the vGPUs of a VM those of a GPU that somebody else gave it.
func (h *Host) withForeign(ctx context.Context, g gpu.GPU, has map[string]gpu.PartitionRecord, devices []gpu.Hostdev) (map[string]gpu.PartitionRecord, error) {
	if len(devices) == 0 || slices.ContainsFunc(slices.Collect(maps.Values(has)), func(r gpu.PartitionRecord) bool { return r.GPU == g.ID }) {
		return has, nil
	}
	on, err := h.cfg.Inventory.Partitions(ctx, g)
	if err != nil {
		return nil, err
	}
	for _, p := range on {
		if isVGPU(p.Kind) && slices.ContainsFunc(devices, func(d gpu.Hostdev) bool { return inventory.Same(d.Handle, p.Handle) }) {
			has = maps.Clone(has)
			has["none of gpuvirt's"] = gpu.PartitionRecord{ID: p.ID, GPU: g.ID, Kind: p.Kind, Profile: p.Profile}
		}
	}
	return has, nil
}

func isVGPU(k gpu.Kind) bool { return k == gpu.KindMdev || k == gpu.KindVGPU }

// apart says why a VM cannot have one more vGPU of a profile, empty if it can.
func apart(vm gpu.VMHead, id gpu.ID, p gpu.Profile, has map[string]gpu.PartitionRecord) string {
	if !isVGPU(p.Kind) {
		return ""
	}
	same := 0
	for _, name := range slices.Sorted(maps.Keys(has)) {
		r := has[name]
		if r.GPU == id {
			return fmt.Sprintf("vm %s has a vGPU of this card already (assignment %s), and takes a second one only from another card", vm.Name, name)
		}
		if r.Profile == p.Name {
			same++
		}
	}
	if n, err := strconv.Atoi(p.Attributes[maxPerVM]); err == nil && n > 0 && same >= n {
		return fmt.Sprintf("vm %s has %d of them already, and the driver lets one vm have %d", vm.Name, same, n)
	}
	return ""
}
