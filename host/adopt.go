package host

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
	"gpuvirt/operation"
)

// AdoptPartition takes a partition that somebody else made under management, as it is:
// from now on it comes back after a reboot, and can be deleted. No device is touched,
// whoever uses it. Of one that is under management already nothing is written.
func (h *Host) AdoptPartition(ctx context.Context, actor, id string, dryRun bool) (gpu.Partition, gpu.Plan, error) {
	p, plan, err := h.adopt(ctx, actor, id, dryRun)
	if err != nil || dryRun {
		return p, plan, err
	}
	p, err = h.Partition(ctx, id)
	return p, plan, err
}

func (h *Host) adopt(ctx context.Context, actor, id string, dryRun bool) (gpu.Partition, gpu.Plan, error) {
	h.planning.Lock()
	defer h.planning.Unlock()
	all, at, err := h.find(ctx, id)
	if err != nil {
		return gpu.Partition{}, gpu.Plan{}, err
	}
	p := all[at]
	if p.Origin == gpu.OriginManaged {
		return p, gpu.Plan{Summary: fmt.Sprintf("partition %s is under management", id), Steps: []gpu.PlanStep{}}, nil
	}
	plan := gpu.Plan{
		Summary: fmt.Sprintf("take partition %s (%s on %s) under management", id, p.Profile, p.GPU), Changes: true,
		Steps: []gpu.PlanStep{{Kind: "partition.record", Summary: "record it as it is; no device is touched"}},
	}
	g, err := h.gpu(ctx, p.GPU)
	if err != nil {
		return p, plan, err
	}
	recorded, err := h.asRecorded(ctx, p)
	plan.Refusal = cmp.Or(h.adoptable(g, p), h.lasting(g, p, all), h.givenByLibvirt(ctx, p), err)
	if dryRun {
		plan.Changes = plan.Refusal == nil
		return p, plan, nil
	}
	if plan.Refusal != nil {
		return p, plan, plan.Refusal
	}
	r := h.recordAt(g, recorded)
	r.State = gpu.PartitionMade
	if err := h.cfg.Store.Apply(operation.Put(gpu.RecordPartition, id, r)); err != nil {
		return p, plan, err
	}
	h.cfg.Log.InfoContext(ctx, "adopted partition", "partition", id, "gpu", p.GPU, "actor", actor)
	h.hub.emit("partition.adopted", id, map[string]string{"gpu": string(p.GPU), "profile": p.Profile})
	return p, plan, nil
}

// asRecorded adds to a partition what its backend has to know of it later.
func (h *Host) asRecorded(ctx context.Context, p gpu.Partition) (gpu.Partition, error) {
	b, err := h.cfg.Inventory.Backend(p.Kind)
	if a, ok := b.(gpu.Adopter); ok {
		return a.Adopt(ctx, p)
	}
	return p, err
}

// adoptable refuses to take over what would not come back as it is, or is being changed.
func (h *Host) adoptable(g gpu.GPU, p gpu.Partition) error {
	refuse := func(code gpu.Code, why string) *gpu.Error { return unadoptable(p, code, why) }
	if !g.Managed {
		return refuse(gpu.CodeGPUUnmanaged, fmt.Sprintf("gpu %s is not under management", g.ID)).
			WithBlockers(gpu.Blocker{Kind: "gpu", ID: string(g.ID)}).WithHint("put it under management first: gpuvirt gpu manage %s", g.ID)
	}
	if code, why := closed(g); code != "" && !g.Quarantined {
		return refuse(code, fmt.Sprintf("gpu %s: %s", g.ID, why))
	}
	for _, c := range p.Conditions {
		if c.Status && (c.Type == gpu.Drifted || c.Type == gpu.Unknown) {
			return refuse(gpu.CodeDrift, c.Message)
		}
	}
	if paramsUnknown(p) {
		return refuse(gpu.CodeUnavailable, "its vgpu_params are not known, so it could not be made again with them")
	}
	if unnamed(p) {
		return refuse(gpu.CodeUnavailable, "the driver does not say what it calls its type, so it could not be made again")
	}
	return h.held([]string{"gpu/" + string(g.ID), "partition/" + p.ID})
}

func unadoptable(p gpu.Partition, code gpu.Code, why string) *gpu.Error {
	return gpu.Errorf(code, "cannot adopt partition %q: %s", p.ID, why)
}

// lasting refuses to take over what a boot would not bring back as it is. What a partition
// stands on has to be asked for as well, as nobody else will make it any more. What is on a
// card beside the card itself would be in its way. All are the partitions of its GPU at least.
func (h *Host) lasting(g gpu.GPU, p gpu.Partition, all []gpu.Partition) error {
	r, err := h.gpuRecord(g)
	if err != nil {
		return err
	}
	if p.Kind != gpu.KindCard {
		if err := h.notGiven(g.ID, fmt.Sprintf("adopt partition %q of", p.ID)); err != nil {
			return err
		}
	}
	var ours []gpu.Blocker
	for _, q := range all {
		if q.GPU == g.ID && q.Origin == gpu.OriginManaged {
			ours = append(ours, gpu.Blocker{Kind: "partition", ID: q.ID, Name: q.Profile, Note: q.Assignment})
		}
	}
	onFunction := p.Kind == gpu.KindVF || p.Kind == gpu.KindVGPU || p.Kind == gpu.KindMdev && p.Parent != string(g.ID)
	// Of a mediated device it is not known which instance it stands on.
	base := slices.IndexFunc(all, func(q gpu.Partition) bool {
		return isVGPU(p.Kind) && q.Kind == gpu.KindMIG && q.GPU == p.GPU && q.Origin == gpu.OriginForeign &&
			(q.Instance == p.Instance || p.Instance == "" && g.MIG.Current)
	})
	switch {
	case p.Kind == gpu.KindCard && len(ours) > 0:
		return unadoptable(p, gpu.CodeConflict, fmt.Sprintf("%d partitions of its gpu are under management, and a boot would bring back these", len(ours))).
			WithBlockers(ours...).WithHint("delete them first")
	case onFunction && (r.VFs == nil || *r.VFs != g.SRIOV.NumVFs):
		return unadoptable(p, gpu.CodeConflict, "it is on a virtual function that gpuvirt was not asked for, and would not turn on at a boot").
			WithBlockers(gpu.Blocker{Kind: "gpu", ID: string(g.ID)}).
			WithHint("ask for those that are there first, which touches none: gpuvirt sriov set %s %d", g.ID, g.SRIOV.NumVFs)
	case base >= 0:
		verb := map[bool]string{true: "stands", false: "may stand"}[p.Instance != ""]
		return unadoptable(p, gpu.CodeConflict, fmt.Sprintf("it %s on MIG instance %s, which gpuvirt did not make, and would not make at a boot", verb, all[base].ID)).
			WithBlockers(gpu.Blocker{Kind: "partition", ID: all[base].ID, Name: all[base].Profile}).WithHint("adopt that one first: gpuvirt adopt %s", all[base].ID)
	case p.Kind == gpu.KindMIG && len(p.Compute) == 0:
		return unadoptable(p, gpu.CodeConflict, "it has no compute instance, and gpuvirt makes none without: a boot would bring back another").
			WithHint("have one made in it first: nvidia-smi mig -cci -gi %s -i %s", p.Instance, g.ID)
	}
	return nil
}

// givenByLibvirt refuses what libvirt itself takes from the host's driver for a VM, and gives
// back when the VM stops: it would be missing whenever the VM is off, and be taken from the
// host at each boot. What libvirt does not tell is not adopted either.
func (h *Host) givenByLibvirt(ctx context.Context, p gpu.Partition) error {
	if p.Handle.PCIAddress == "" {
		return nil
	}
	vms, err := h.cfg.Inventory.VMs(ctx)
	if err != nil {
		return unadoptable(p, gpu.CodeUnavailable, "whether libvirt will give it back to the host is not known: "+err.Error())
	}
	for _, vm := range vms {
		if slices.ContainsFunc(vm.Hostdevs, func(d gpu.Hostdev) bool { return d.Managed && inventory.Same(d.Handle, p.Handle) }) {
			return unadoptable(p, gpu.CodeConflict, fmt.Sprintf("vm %s has it with managed='yes': libvirt gives it back to the host when the vm stops", vm.Name)).
				WithBlockers(gpu.Blocker{Kind: "vm", ID: vm.UUID, Name: vm.Name}).WithHint("change that to managed='no' in the vm's definition, and restart the vm with it")
		}
	}
	return nil
}
