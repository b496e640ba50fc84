package host

import (
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
func (h *Host) offersFor(vm *gpu.VMHead, offers []inventory.Look, batch batch) ([]inventory.Look, error) {
	offers = batch.reduce(offers)
	if vm == nil {
		return offers, nil
	}
	return h.together(*vm, offers, batch)
}

// together rules out of what GPUs offer what a VM cannot have beside what it has: of
// NVIDIA's vGPUs a VM takes one of each card, and of most types only one (T41). libvirt
// knows nothing of that; the VM would fail to start.
func (h *Host) together(vm gpu.VMHead, offers []inventory.Look, batch batch) ([]inventory.Look, error) {
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
	for _, c := range batch {
		if c.assignment.Wish.VM == vm.UUID && isVGPU(c.part.Kind) {
			has[c.assignment.Name] = c.part
		}
	}
	if len(has) == 0 {
		return offers, nil
	}
	offers = slices.Clone(offers)
	for i, o := range offers {
		if o.GPU.Vendor != "NVIDIA" {
			continue
		}
		offers[i].Profiles = slices.Clone(o.Profiles)
		for j, p := range o.Profiles {
			if why := apart(vm, o.GPU.ID, p, has); why != "" && p.NotCreatable == "" {
				offers[i].Profiles[j].NotCreatable = why
			}
		}
	}
	return offers, nil
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
