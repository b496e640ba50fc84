package host

import (
	"context"
	"fmt"

	"gpuvirt/gpu"
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
	p, err := h.partition(ctx, id)
	if err != nil {
		return p, gpu.Plan{}, err
	}
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
	plan.Refusal = h.adoptable(g, p)
	if dryRun {
		return p, plan, nil
	}
	if plan.Refusal != nil {
		return p, plan, plan.Refusal
	}
	r := h.recordAt(g, p)
	r.State, r.Params = gpu.PartitionMade, p.Params
	if err := h.cfg.Store.Apply(operation.Put(gpu.RecordPartition, id, r)); err != nil {
		return p, plan, err
	}
	h.cfg.Log.InfoContext(ctx, "adopted partition", "partition", id, "gpu", p.GPU, "actor", actor)
	h.hub.emit("partition.adopted", id, map[string]string{"gpu": string(p.GPU), "profile": p.Profile})
	return p, plan, nil
}

// adoptable refuses to take over what would not come back as it is, or is being changed.
func (h *Host) adoptable(g gpu.GPU, p gpu.Partition) error {
	refuse := func(code gpu.Code, why string) *gpu.Error {
		return gpu.Errorf(code, "cannot adopt partition %q: %s", p.ID, why)
	}
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
	if unnamed(p) {
		return refuse(gpu.CodeUnavailable, "the driver does not say what it calls its type, so it could not be made again")
	}
	return h.held([]string{"gpu/" + string(g.ID), "partition/" + p.ID})
}
