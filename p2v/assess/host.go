package assess

import (
	"cmp"
	"errors"
	"slices"
	"strconv"
	"strings"

	"gpuvirt/gpu"
)

// HostState is what this host has now. What is zero is not known.
type HostState struct {
	GPUs        []HostGPU
	MemoryBytes uint64 // free for a VM
	DiskBytes   uint64 // free where mirrors and overlays lie
	DiskKept    uint64 // of these are left to others, always
	Threads     int    // of its processors
	CPUFlags    []string
	Tools       HostTools
	Brought     Brought // for the VM that is planned
}

// Presence says whether something is there. Zero: it is not known.
type Presence struct {
	Known bool
	Lacks string // why it is of no use, and what brings it; empty: it is there
}

// Found is what a look came to: nil where the thing is there, and else why not, with its hint.
func Found(err error) Presence {
	p := Presence{Known: true}
	if err == nil {
		return p
	}
	p.Lacks = err.Error()
	if e, has := errors.AsType[*gpu.Error](err); has && e.Hint != "" {
		p.Lacks += "; " + e.Hint
	}
	return p
}

// HostTools is what this host has to make a VM's disks and to start it, as far as looking at
// files tells: nothing is run for it.
type HostTools struct {
	Converter  Presence // virt-v2v, what it works with, and who runs it
	UEFI       Presence // firmware for VMs
	SecureBoot Presence // firmware for VMs that refuses what is not signed
	TPM        Presence // one that is emulated
}

// Brought is what the operator has laid for one server's VM.
type Brought struct {
	Packages      Presence // lacks: why they cannot be read
	Agent, Driver []string // names of packages
	Licence       Presence // a token
}

// A HostGPU is a GPU of this host with what it can make now.
//
// Of a profile these attributes are read, where they are there: "series", "max_per_vm",
// "max_per_instance", "compute_slices", "decoders", "encoders", "jpeg" and "ofa" as gpu.Profile
// has them, "multiprocessors" (SMs), and "framebuffer_reservation" (bytes of the memory that
// the driver keeps for itself, NVML's reservation of a vGPU type).
type HostGPU struct {
	GPU        gpu.GPU
	Profiles   []gpu.Profile
	SMs        int    // 0: as the model tells
	Capability string // empty: as the model tells
}

// known returns the host with what is known of GPUs that it has only the ids of, as their driver
// does not have them: what it told when they were reserved, and else what such devices are.
func (h HostState) known(reserved []Reserved) HostState {
	h.GPUs = slices.Clone(h.GPUs)
	for i := range h.GPUs {
		g := &h.GPUs[i].GPU
		id := cmp.Or(g.Model, g.Identity.Model)
		if !pciID.MatchString(id) {
			continue
		}
		d := deviceOf(id, g.Identity.Subsystem)
		name, memory := d.Name, d.MemoryMiB*mib
		for _, r := range reserved {
			if r.GPU != g.ID || pciID.MatchString(r.Model) {
				continue
			}
			name = cmp.Or(r.Model, name)
			if r.Kind == gpu.KindCard {
				memory = cmp.Or(r.MemoryBytes, memory)
			}
		}
		g.Model, g.MemoryBytes = cmp.Or(name, g.Model), cmp.Or(g.MemoryBytes, memory)
	}
	return h
}

func (g HostGPU) sms() int           { return cmp.Or(max(g.SMs, 0), cardOf(g.GPU.Model).SMs) }
func (g HostGPU) capability() string { return cmp.Or(g.Capability, cardOf(g.GPU.Model).Capability) }

// kind is how a partition shares its card.
type kind string

const (
	whole      kind = "card"        // the whole card
	migBacked  kind = "mig-backed"  // a vGPU on a GPU instance, with multiprocessors of its own
	timeSliced kind = "time-sliced" // a vGPU, or another mediated device, that takes turns
	function   kind = "function"    // a virtual function
	instance   kind = "instance"    // a GPU instance, which no VM can be given
)

func kindOf(p gpu.Profile) kind {
	switch p.Kind {
	case gpu.KindCard:
		return whole
	case gpu.KindMIG:
		return instance
	case gpu.KindVF:
		return function
	case gpu.KindMdev, gpu.KindVGPU:
		if p.On != "" || p.Attributes["gpu_instance_profile"] != "" {
			return migBacked
		}
	}
	return timeSliced
}

// sliceLoss is how much less of a card's multiprocessors a GPU instance has than its share
// of slices: with it the estimate is not above the tables of A100, H100 and A30.
const sliceLoss = 0.97

// instanceSMs is how many multiprocessors an instance of a MIG profile has, at least; 0: not
// known.
func (g HostGPU) instanceSMs(profile string) (sms int, estimated bool) {
	i := slices.IndexFunc(g.Profiles, func(p gpu.Profile) bool { return p.Kind == gpu.KindMIG && p.Name == profile })
	if i < 0 {
		return 0, false
	}
	if n := number(g.Profiles[i], "multiprocessors"); n > 0 {
		return n, false
	}
	all := 0
	for _, p := range g.Profiles {
		if p.Kind == gpu.KindMIG {
			all = max(all, number(p, "compute_slices"))
		}
	}
	if all == 7 {
		all = 8 // one of eight slices is never in an instance on these cards
	}
	if all == 0 || g.sms() == 0 {
		return 0, false
	}
	return int(float64(g.sms()) * float64(min(number(g.Profiles[i], "compute_slices"), all)) / float64(all) * sliceLoss), true
}

// instanceProfile is the MIG profile that a vGPU stands on.
func (g HostGPU) instanceProfile(p gpu.Profile) (gpu.Profile, bool) {
	i := slices.IndexFunc(g.Profiles, func(o gpu.Profile) bool {
		return o.Kind == gpu.KindMIG && (p.On != "" && o.Name == p.On || p.On == "" && o.NativeID == p.Attributes["gpu_instance_profile"])
	})
	if i < 0 {
		return gpu.Profile{}, false
	}
	return g.Profiles[i], true
}

// number reads an attribute; 0: it is not there, or no number.
func number(p gpu.Profile, key string) int {
	n, err := strconv.Atoi(p.Attributes[key])
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// series is the letter of a vGPU's series; empty: it is no vGPU of NVIDIA.
func series(p gpu.Profile) string { return strings.ToUpper(p.Attributes["series"]) }

// unhealthy is why nothing is made on a GPU; empty: nothing is known against it.
func (g HostGPU) unhealthy() string {
	switch {
	case !g.GPU.Managed:
		return "the GPU is not under management"
	case g.GPU.Quarantined:
		return "the GPU is quarantined"
	}
	for _, c := range g.GPU.Conditions {
		switch {
		case c.Type == gpu.Stuck && c.Status:
			return "the GPU is stuck"
		case c.Type == gpu.Unknown && c.Status:
			return "the state of the GPU is not known"
		case c.Type == gpu.Ready && !c.Status:
			return "the GPU is not ready"
		}
	}
	return ""
}
