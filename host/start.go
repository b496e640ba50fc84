package host

import (
	"context"
	"fmt"
	"slices"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
)

// CheckStart tells what speaks against the start of a VM with the given devices of the host:
// a partition that it was given and that is not there, or is another one; a device that its
// definition should have and has not; and a device that was given to another VM. What is no
// partition of ours is not judged.
//
// It asks the kernel, the drivers and the store, and never libvirt: libvirt is what is
// waiting for the answer, with the VM locked (T45).
func (h *Host) CheckStart(ctx context.Context, vm string, devices []gpu.Handle) ([]gpu.StartFinding, error) {
	wishes, err := h.cfg.Store.AssignmentRecords()
	if err != nil {
		return nil, err
	}
	records, err := h.cfg.Store.PartitionRecords()
	if err != nil {
		return nil, err
	}
	wishOf := func(r gpu.PartitionRecord) (gpu.AssignmentRecord, bool) {
		i := slices.IndexFunc(wishes, func(a gpu.AssignmentRecord) bool { return a.Partition == r.ID })
		if i < 0 {
			return gpu.AssignmentRecord{}, false
		}
		return wishes[i], true
	}
	var out []gpu.StartFinding
	for _, r := range records {
		wish, given := wishOf(r)
		mine := given && wish.Wish.VM == vm
		named := slices.ContainsFunc(devices, func(d gpu.Handle) bool { return inventory.Same(d, r.Handle) })
		found := gpu.StartFinding{Assignment: wish.Name, Partition: r.ID}
		others := named && given && !mine
		switch {
		case !others && (given && h.worker(wish.Name) != nil || r.State == gpu.PartitionMaking):
			continue // it is half there, and half in the definition
		case mine && wish.Bound && !named:
			found.Code = gpu.CodeDrift
			found.Message = fmt.Sprintf("assignment %s gives it partition %s (%s), which its definition does not have", wish.Name, r.ID, r.Profile)
			found.Hint = fmt.Sprintf("put the assignment again, or give it up: gpuvirt detach %s", wish.Name)
		case others:
			found.Code = gpu.CodeConflict
			found.Message = fmt.Sprintf("partition %s (%s) is assigned to vm %s as %s", r.ID, r.Profile, wish.VMName, wish.Name)
			found.Hint = "take it out of one of the two definitions"
		case named:
			h.judge(ctx, r, &found)
		}
		if found.Code != "" {
			out = append(out, found)
		}
	}
	return out, nil
}

// judge looks at a partition that a VM is to start with.
func (h *Host) judge(ctx context.Context, r gpu.PartitionRecord, found *gpu.StartFinding) {
	p, err := h.partition(ctx, r.ID)
	if gpu.CodeOf(err) == gpu.CodeNotFound && err != nil {
		return // removed meanwhile: it is nobody's any more
	}
	if err != nil {
		found.Code, found.Message = gpu.CodeUnavailable, err.Error()
		return
	}
	for _, c := range p.Conditions {
		switch {
		case c.Status && c.Type == gpu.Drifted:
			found.Code = gpu.CodeDrift
			found.Message = fmt.Sprintf("partition %s: %s", r.ID, c.Message)
			found.Hint = "see: gpuvirt partition show " + r.ID
			return
		case c.Status && c.Type == gpu.Unknown:
			found.Code, found.Message = gpu.CodeUnavailable, fmt.Sprintf("partition %s: %s", r.ID, c.Message)
		}
	}
}
