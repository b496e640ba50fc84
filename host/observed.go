package host

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
)

// monitorPatience is how long an answer waits in all for what drivers tell of running
// vGPUs. It does without what comes later.
const monitorPatience = 4 * time.Second

// A guest is a partition in a VM that runs.
type guest struct {
	*gpu.Partition

	vm string // UUID; empty: only a process of a VM is known
}

// addObserved adds what drivers see of partitions in VMs that run: of all, or with an id of
// that one. The partitions are all that their GPUs have, as vGPUs on virtual functions are
// only told apart among those of their VM.
func (h *Host) addObserved(ctx context.Context, all []gpu.Partition, id string, vms []gpu.VM) {
	on := map[gpu.ID][]guest{}
	asked := map[gpu.ID]bool{}
	for i := range all {
		p := &all[i]
		if g, ok := guestOf(p, vms); ok {
			on[p.GPU] = append(on[p.GPU], g)
			asked[p.GPU] = asked[p.GPU] || id == "" || id == p.ID
		}
	}
	limited, cancel := context.WithTimeout(ctx, monitorPatience)
	defer cancel()
	unsure := false
	for on, guests := range on {
		if !asked[on] {
			continue
		}
		running, err := h.cfg.Inventory.RunningVGPUs(limited, on)
		if err != nil && gpu.CodeOf(err) != gpu.CodeDriverMissing {
			tell(guests, err)
			continue
		}
		assign(guests, running)
		unsure = unsure || slices.ContainsFunc(guests, func(g guest) bool { return g.Kind == gpu.KindVGPU && g.Observed != nil })
	}
	if unsure {
		h.recheck(ctx, all, vms)
	}
	for i := range all {
		all[i].Conditions = append(all[i].Conditions, unlicensed(all[i].Observed)...)
	}
}

// guestOf finds the VM that runs with a partition. Only vGPUs are seen in one. Where libvirt
// does not tell, a process that holds it is that of some VM.
func guestOf(p *gpu.Partition, vms []gpu.VM) (guest, bool) {
	if p.Kind != gpu.KindMdev && p.Kind != gpu.KindVGPU || p.State == gpu.PartitionMissing {
		return guest{}, false
	}
	vm := liveIn(p.Handle, vms)
	held := slices.ContainsFunc(p.Holders, func(o gpu.Holder) bool { return o.Kind == "process" })
	return guest{p, vm}, vm != "" || held
}

// liveIn returns the UUID of the VM that runs with a device, or nothing.
func liveIn(device gpu.Handle, vms []gpu.VM) string {
	for _, vm := range vms {
		if slices.ContainsFunc(vm.Hostdevs, func(d gpu.Hostdev) bool { return d.Live && inventory.Same(d.Handle, device) }) {
			return vm.UUID
		}
	}
	return ""
}

// tell says of guests why nothing is known of them.
func tell(guests []guest, why error) {
	for _, g := range guests {
		g.Observed = &gpu.Observed{Unknown: why.Error()}
	}
}

// assign gives each guest what the driver says of its vGPU. Of a mediated device it says the
// UUID. Of one on a virtual function it does not say the function: its VM, its type and its
// GPU instance have to tell, and where several are alike in these, only what all of them
// have in common is known of each.
func assign(guests []guest, running []gpu.RunningVGPU) {
	for _, g := range guests {
		var is []gpu.RunningVGPU
		for _, r := range running {
			if g.is(r) {
				is = append(is, r)
			}
		}
		alike := 0
		for _, o := range guests {
			if slices.ContainsFunc(is, o.is) {
				alike++
			}
		}
		switch {
		case len(is) == 0: // it is starting, or ending
		case len(is) == 1 && alike == 1:
			g.Observed = &is[0].Observed
		default:
			g.Observed = common(is, alike)
			g.Observed.Unknown = fmt.Sprintf("the driver does not tell the %d vGPUs %s of this vm apart", max(len(is), alike), g.Profile)
		}
	}
}

// is reports whether a guest's vGPU can be one that the driver lists.
func (g guest) is(r gpu.RunningVGPU) bool {
	if g.Kind == gpu.KindMdev {
		// Another VM may have got it since it was looked who has it.
		return g.Handle.MdevUUID != "" && g.Handle.MdevUUID == r.MdevUUID && (g.vm == "" || r.VM == "" || g.vm == r.VM)
	}
	return g.vm != "" && g.vm == r.VM && g.Native == strconv.FormatUint(uint64(r.Type), 10) &&
		(g.Instance == "" || r.Instance == "" || g.Instance == r.Instance)
}

// common is what several vGPUs have in common, if all of them are listed.
func common(all []gpu.RunningVGPU, guests int) *gpu.Observed {
	out := gpu.Observed{GuestDriver: all[0].Observed.GuestDriver, License: all[0].Observed.License}
	for _, r := range all {
		if len(all) != guests || r.Observed.GuestDriver != out.GuestDriver {
			out.GuestDriver = ""
		}
		if l := r.Observed.License; len(all) != guests || l == nil || out.License == nil || *l != *out.License {
			out.License = nil
		}
	}
	return &out
}

// recheck drops what was told of vGPUs on virtual functions that have come to another VM, or
// out of theirs, while the driver was asked: what it said was of another then.
func (h *Host) recheck(ctx context.Context, all []gpu.Partition, before []gpu.VM) {
	now, err := h.cfg.Inventory.VMs(ctx)
	for i := range all {
		p := &all[i]
		if p.Kind != gpu.KindVGPU || p.Observed == nil {
			continue
		}
		if err != nil {
			p.Observed = &gpu.Observed{Unknown: err.Error()}
		} else if liveIn(p.Handle, before) != liveIn(p.Handle, now) {
			p.Observed = nil
		}
	}
}

// unlicensed says that a guest works without the licence that its vGPU takes: its driver
// throttles it for that, sooner or later (R115).
func unlicensed(o *gpu.Observed) []gpu.Condition {
	if o == nil || o.License == nil {
		return nil
	}
	message := map[gpu.LicenseState]string{
		gpu.LicenseUnrestricted: "the guest has no licence for its vGPU: its driver will throttle it if it does not get one",
		gpu.LicenseRestricted:   "the guest has no licence for its vGPU: its driver throttles it",
		gpu.LicenseNone:         "the guest has no licence for its vGPU: its driver may throttle it",
	}[o.License.State]
	if message == "" {
		return nil
	}
	return []gpu.Condition{{Type: gpu.Degraded, Status: true, Reason: "Unlicensed", Message: message}}
}
