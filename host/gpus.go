package host

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
	"gpuvirt/operation"
)

// GPUs lists the GPUs with what an administrator decided about each. A GPU that
// is under management but not there now is listed too, as Unknown.
func (h *Host) GPUs(ctx context.Context) ([]gpu.GPU, error) {
	looks, err := h.looks(ctx)
	if err != nil {
		return nil, err
	}
	gpus := make([]gpu.GPU, len(looks))
	for i, l := range looks {
		gpus[i] = l.GPU
	}
	h.addModes(ctx, gpus)
	return gpus, nil
}

// survey looks at every GPU. One that cannot be read, or a whole backend that fails,
// hides none of the others: blind says what may be missing. Where nothing can be read
// at all, that is an error.
func (h *Host) survey(ctx context.Context) (looks []inventory.Look, blind, err error) {
	looks, blind = h.cfg.Inventory.Looks(ctx)
	if blind != nil && (len(looks) == 0 || ctx.Err() != nil) {
		return nil, blind, blind
	}
	return looks, blind, nil
}

// looks reads every GPU, with what was decided about it.
func (h *Host) looks(ctx context.Context) ([]inventory.Look, error) {
	looks, blind, err := h.survey(ctx)
	if err != nil {
		return nil, err
	}
	records, err := h.cfg.Store.GPURecords()
	if err != nil {
		return nil, err
	}
	for i, l := range looks {
		if r, ok := recordOf(l.GPU.ID, records); ok {
			if looks[i].GPU, err = h.decided(l.GPU, r); err != nil {
				return nil, err
			}
			looks[i].GPU = h.shared(ctx, looks[i].GPU, r)
		}
	}
	for _, r := range records {
		if r.Managed && !slices.ContainsFunc(looks, func(l inventory.Look) bool { return l.GPU.ID == r.ID }) {
			looks = append(looks, inventory.Look{GPU: absent(r, blind)})
		}
	}
	slices.SortFunc(looks, func(a, b inventory.Look) int { return cmp.Compare(a.GPU.ID, b.GPU.ID) })
	return looks, nil
}

// look is looks for one GPU, or CodeNotFound.
func (h *Host) look(ctx context.Context, id gpu.ID) (inventory.Look, error) {
	l, err := h.cfg.Inventory.Look(ctx, id)
	records, rerr := h.cfg.Store.GPURecords()
	if rerr != nil {
		return l, rerr
	}
	r, known := recordOf(id, records)
	switch {
	case err == nil && known:
		l.GPU, err = h.decided(l.GPU, r)
		l.GPU = h.shared(ctx, l.GPU, r)
	case err != nil && r.Managed && gpu.CodeOf(err) == gpu.CodeNotFound:
		return inventory.Look{GPU: absent(r, nil)}, nil
	case err != nil && r.Managed:
		return inventory.Look{GPU: absent(r, err), Err: err}, nil
	}
	return l, err
}

func recordOf(id gpu.ID, records []gpu.GPURecord) (gpu.GPURecord, bool) {
	for _, r := range records {
		if r.ID == id {
			return r, true
		}
	}
	return gpu.GPURecord{}, false
}

// decided adds a record to what is observed.
func (h *Host) decided(g gpu.GPU, r gpu.GPURecord) (gpu.GPU, error) {
	g.Managed, g.Quarantined, g.Policy, g.Placement, g.Labels = r.Managed, r.Quarantined, cmp.Or(r.Policy, gpu.PolicyReport), r.Placement, r.Labels
	if r.Quarantined {
		g.Conditions = append(g.Conditions, gpu.Condition{
			Type: gpu.Quarantined, Status: true, Reason: "Quarantined",
			Message: "an administrator has put it in quarantine: nothing new is placed on it",
		})
	}
	if r.Managed && !sameCard(r.Identity, g.Identity) {
		g.Conditions = append(g.Conditions, gpu.Condition{
			Type: gpu.Drifted, Status: true, Reason: "OtherCard",
			Message: fmt.Sprintf("another card (%s) is where %s was put under management: put this one under management again, or swap them back",
				describe(g.Identity), describe(r.Identity)),
		})
	}
	driven, err := h.driven(g, r)
	if !driven {
		g.Conditions = append(g.Conditions, gpu.Condition{
			Type: gpu.Unknown, Status: true, Reason: "NoDriver",
			Message: "it is there, but no driver has it: what is on it cannot be told",
		})
	}
	return g, err
}

// driven reports whether a GPU has the driver that what was asked of it takes. One that
// nothing was asked of, or that was given away whole, may be without: it is there like
// any other device of the PCI bus. Just after boot a card is there before its driver.
func (h *Host) driven(g gpu.GPU, r gpu.GPURecord) (bool, error) {
	if !r.Managed || g.PCIAddress == "" || g.Driver.Name != "" {
		return true, nil
	}
	if slices.ContainsFunc(g.Kinds, func(k gpu.Kind) bool { return k != gpu.KindCard && k != gpu.KindVF }) {
		return true, nil // a driver tells of it
	}
	if r.MIG != nil || r.VFs != nil && *r.VFs > 0 {
		return false, nil
	}
	records, err := h.cfg.Store.PartitionRecords()
	return !slices.ContainsFunc(records, func(p gpu.PartitionRecord) bool { return p.GPU == g.ID && p.Kind != gpu.KindCard }), err
}

// sameCard reports whether an identity can be that of the recorded card. What one
// side does not know cannot differ. Serial numbers count where there is no UUID, as on a card
// that VFIO has, and of one kind alone: the board's, which NVIDIA's library tells, is another
// one than the PCI function's, which newer kernels do.
func sameCard(recorded, now gpu.Identity) bool {
	same := func(a, b string) bool { return a == "" || b == "" || a == b }
	known := recorded.UUID != "" && recorded.UUID == now.UUID || ofFunction(recorded.Serial) != ofFunction(now.Serial)
	return same(recorded.UUID, now.UUID) && (known || same(recorded.Serial, now.Serial)) &&
		same(recorded.Subsystem, now.Subsystem) && same(recorded.Model, now.Model)
}

// ofFunction reports whether a serial number is a PCI function's as the kernel prints it:
// eight bytes with dashes between.
func ofFunction(serial string) bool {
	bytes := strings.Split(serial, "-")
	return len(bytes) == 8 && !slices.ContainsFunc(bytes, func(b string) bool { return len(b) != 2 })
}

func describe(id gpu.Identity) string {
	parts := slices.DeleteFunc([]string{id.Model, id.Subsystem, id.Serial, id.UUID}, func(s string) bool { return s == "" })
	return strings.Join(parts, ", ")
}

// absent is a GPU that only a record tells of; why is what kept us from looking.
func absent(r gpu.GPURecord, why error) gpu.GPU {
	message := "it is under management, but the kernel does not show it: is its driver loaded?"
	if why != nil {
		message = "it is under management, but whether it is there cannot be told: " + why.Error()
	}
	return gpu.GPU{
		ID: r.ID, Model: r.Identity.Model, UUID: r.Identity.UUID, Serial: r.Identity.Serial,
		Identity: r.Identity, NUMANode: -1,
		Managed: r.Managed, Quarantined: r.Quarantined, Policy: cmp.Or(r.Policy, gpu.PolicyReport), Placement: r.Placement, Labels: r.Labels,
		Conditions: []gpu.Condition{{
			Type: gpu.Unknown, Status: true, Reason: "NotThere",
			Message: message,
		}},
	}
}

// GPU returns one GPU, or CodeNotFound.
func (h *Host) GPU(ctx context.Context, id gpu.ID) (gpu.GPU, error) {
	g, err := h.gpu(ctx, id)
	if err != nil {
		return g, err
	}
	return h.withModes(ctx, g), nil
}

// gpu is GPU for what is decided by it.
func (h *Host) gpu(ctx context.Context, id gpu.ID) (gpu.GPU, error) {
	l, err := h.look(ctx, id)
	return l.GPU, err
}

// PatchGPU records what an administrator decides about a GPU. It touches no
// hardware, and writes nothing where nothing changes.
func (h *Host) PatchGPU(ctx context.Context, actor string, id gpu.ID, p gpu.GPUPatch, dryRun bool) (gpu.GPU, gpu.Plan, error) {
	g, plan, err := h.patch(ctx, actor, id, p, dryRun)
	if err != nil {
		return g, plan, err
	}
	return h.withModes(ctx, g), plan, nil // no plan waits for what is only shown
}

func (h *Host) patch(ctx context.Context, actor string, id gpu.ID, p gpu.GPUPatch, dryRun bool) (gpu.GPU, gpu.Plan, error) {
	h.planning.Lock()
	defer h.planning.Unlock()
	g, err := h.gpu(ctx, id)
	if err != nil {
		return gpu.GPU{}, gpu.Plan{}, err
	}
	records, err := h.cfg.Store.GPURecords()
	if err != nil {
		return gpu.GPU{}, gpu.Plan{}, err
	}
	old, known := recordOf(id, records)
	if !known {
		old = gpu.GPURecord{ID: id, Identity: g.Identity}
	}
	want := old
	var sums []gpu.PlanStep
	if p.Managed != nil && (*p.Managed != g.Managed || *p.Managed && drifted(g)) {
		// Only who asks for management says that this is the card that is meant.
		want.Managed, want.Identity = *p.Managed, g.Identity
		what := "put " + string(id) + " under management"
		if !want.Managed {
			what = "take " + string(id) + " out of management"
		}
		sums = append(sums, gpu.PlanStep{Kind: "gpu.record", Summary: what})
	}
	if p.Quarantined != nil && *p.Quarantined != g.Quarantined {
		want.Quarantined = *p.Quarantined
		sums = append(sums, gpu.PlanStep{Kind: "gpu.record", Summary: fmt.Sprintf("set quarantine of %s to %t", id, want.Quarantined)})
	}
	if p.Policy != nil && *p.Policy != cmp.Or(g.Policy, gpu.PolicyReport) {
		want.Policy = *p.Policy
		sums = append(sums, gpu.PlanStep{Kind: "gpu.record", Summary: fmt.Sprintf("set the policy of %s to %s", id, want.Policy)})
	}
	if p.Placement != nil && *p.Placement != g.Placement {
		want.Placement = *p.Placement
		sums = append(sums, gpu.PlanStep{Kind: "gpu.record", Summary: fmt.Sprintf("set the placement on %s to %s", id, cmp.Or(want.Placement, "that of the host"))})
	}
	if p.Labels != nil && !maps.Equal(*p.Labels, g.Labels) {
		want.Labels = *p.Labels
		sums = append(sums, gpu.PlanStep{Kind: "gpu.record", Summary: "set the labels of " + string(id)})
	}
	plan := gpu.Plan{Summary: "change gpu " + string(id), Steps: sums, Changes: len(sums) > 0}
	if old.Managed && !want.Managed {
		plan.Refusal = h.unmanageable(id)
	}
	// One of these on its way brings the record back as it was, should it be undone.
	if op, ok := h.cfg.Engine.Holder("gpu/" + string(id)); ok && (op.Kind == kindLayout || op.Kind == kindVFs || op.Kind == kindVGPU) && plan.Changes {
		plan.Refusal = &operation.ConflictError{Key: "gpu/" + string(id), Holder: op.ID, Summary: op.Summary}
	}
	if dryRun {
		plan.Changes = plan.Changes && plan.Refusal == nil
		return g, plan, nil
	}
	if plan.Refusal != nil {
		return gpu.GPU{}, plan, plan.Refusal
	}
	if !plan.Changes {
		return g, plan, nil
	}
	if err := h.cfg.Store.Apply(operation.Put(gpu.RecordGPU, string(id), want)); err != nil {
		return gpu.GPU{}, plan, err
	}
	h.cfg.Log.Info("gpu record changed", "gpu", id, "actor", actor, "managed", want.Managed, "quarantined", want.Quarantined)
	h.hub.emit("gpu.changed", string(id), map[string]string{"managed": fmt.Sprint(want.Managed)})
	g, err = h.gpu(ctx, id)
	return g, plan, err
}

func drifted(g gpu.GPU) bool {
	return slices.ContainsFunc(g.Conditions, func(c gpu.Condition) bool { return c.Status && c.Type == gpu.Drifted })
}

// unmanageable says why a GPU cannot be taken out of management: partitions that
// we made on it would become nobody's.
func (h *Host) unmanageable(id gpu.ID) error {
	records, err := h.cfg.Store.PartitionRecords()
	if err != nil {
		return err
	}
	var blockers []gpu.Blocker
	for _, r := range records {
		if r.GPU == id {
			blockers = append(blockers, gpu.Blocker{Kind: "partition", ID: r.ID, Name: r.Assignment, Note: r.Profile})
		}
	}
	if len(blockers) == 0 {
		return nil
	}
	return gpu.Errorf(gpu.CodeGPUBusy, "cannot take gpu %q out of management: %d of our partitions are on it", id, len(blockers)).
		WithBlockers(blockers...).WithHint("delete their assignments and partitions first, or put the gpu in quarantine so that nothing new is placed on it")
}

// Profiles lists what a GPU can make. Blind is why some may be missing, or are not known
// wholly; where none is known at all, that is the error.
func (h *Host) Profiles(ctx context.Context, id gpu.ID) (out []gpu.Profile, blind, err error) {
	l, err := h.cfg.Inventory.Look(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	out = h.reserved(ctx, []inventory.Look{h.offered(ctx, l)})[0].Profiles
	if len(out) == 0 {
		return nil, nil, l.Err
	}
	h.describe(ctx, id, out)
	return out, l.Err, nil
}
