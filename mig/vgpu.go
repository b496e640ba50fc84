package mig

import "gpuvirt/gpu"

// A VGPUType is a type of vGPU that lives on a GPU instance, as the driver states it.
type VGPUType struct {
	Name        string // "NVIDIA RTX Pro 6000 Blackwell DC-1-12QGFX"
	Profile     string // of the GPU instance that it needs
	MemoryMiB   int    // framebuffer; on one instance all have the same
	PerInstance int    // the most of it on one instance: 1 up to Hopper, more where vGPUs share one by time
}

// A Host is a GPU instance and the vGPUs on it.
type Host struct {
	Instance // InUse is about others than these vGPUs
	VGPUs    int
	// MemoryMiB is the framebuffer of each of them; the types may differ, it may not.
	MemoryMiB int
}

// room is how many more vGPUs of a type an instance takes.
func (h *Host) room(t VGPUType) int {
	switch {
	case h.Profile != t.Profile, h.InUse, h.VGPUs > 0 && h.MemoryMiB != t.MemoryMiB:
		return 0
	default:
		return max(0, t.PerInstance-h.VGPUs)
	}
}

// HostVGPU finds where one more vGPU goes: the instance that is there already and has
// the least room for it, so that empty ones stay free for another size, by its index
// in have; or else the place for a new instance, and -1. Where there is neither the
// error (gpu.CodeNoCapacity) names what is in the way.
func (c *Card) HostVGPU(have []Host, t VGPUType) (at int, place Placement, err error) {
	at = -1
	for i := range have {
		if r := have[i].room(t); r > 0 && (at < 0 || r < have[at].room(t)) {
			at = i
		}
	}
	if at >= 0 {
		return at, Placement{}, nil
	}
	place, err = c.Place(instances(have), t.Profile, Anywhere)
	if err != nil {
		return -1, Placement{}, gpu.Wrap(err, gpu.CodeNoCapacity, "cannot place a vGPU %s", t.Name)
	}
	return -1, place, nil
}

// VGPUCapacity counts how many more vGPUs of a type fit: on the instances that are
// there, and on those that there is still a place for, with one virtual function for
// each. It is not the number of instances, and not that of functions (T35).
func (c *Card) VGPUCapacity(have []Host, t VGPUType, functions int) (int, error) {
	n, there := 0, instances(have)
	for i := range have {
		n += have[i].room(t)
	}
	for n < functions && t.PerInstance > 0 {
		at, err := c.Place(there, t.Profile, Anywhere)
		if gpu.CodeOf(err) == gpu.CodeNoCapacity {
			break
		} else if err != nil {
			return 0, err
		}
		there = append(there, Instance{ID: -1, Profile: at.Profile, Start: at.Start, Size: c.Profiles[c.find(at.Profile)].Size})
		n += t.PerInstance
	}
	return min(n, functions), nil
}

func instances(have []Host) []Instance {
	out := make([]Instance, len(have))
	for i, h := range have {
		out[i] = h.Instance
	}
	return out
}
