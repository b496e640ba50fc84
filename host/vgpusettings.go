package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
	"gpuvirt/operation"
)

const (
	kindVGPU = "gpu.vgpu"
	stepVGPU = "vgpu.set"
)

// vgpuArgs are the arguments of vgpu.set: one setting.
type vgpuArgs struct {
	GPU      gpu.ID       `json:"gpu"`
	Identity gpu.Identity `json:"identity"`
	Want     gpu.VGPUWish `json:"want"`
	Was      gpu.VGPUWish `json:"was,omitzero"` // empty: there is nothing to go back to
	// IfHas says that a driver that does not have the setting goes without: the GPU says so.
	IfHas bool `json:"if_has,omitempty"`
}

// timeslicerOf returns the backend that sets how vGPUs share a GPU by time.
func timeslicerOf(inv *inventory.Inventory) (gpu.Timeslicer, error) {
	b, err := inv.Backend(gpu.KindMIG) // the one that speaks with NVIDIA's driver
	if err != nil {
		return nil, err
	}
	t, ok := b.(gpu.Timeslicer)
	if !ok {
		return nil, gpu.Errorf(gpu.CodeInvalid, "nothing on this host can set how vGPUs share a gpu")
	}
	return t, nil
}

// VGPUSettings returns how the vGPUs of a GPU should share it, and how they do.
func (h *Host) VGPUSettings(ctx context.Context, id gpu.ID) (gpu.VGPUState, error) {
	l, err := h.look(ctx, id)
	if err != nil {
		return gpu.VGPUState{}, err
	}
	return h.vgpuState(ctx, l.GPU)
}

func (h *Host) vgpuState(ctx context.Context, g gpu.GPU) (gpu.VGPUState, error) {
	s := gpu.VGPUState{GPU: g.ID}
	rec, err := h.gpuRecord(g)
	if err != nil {
		return s, err
	}
	t, err := timeslicerOf(h.cfg.Inventory)
	if err != nil {
		return s, err
	}
	if why := unreadable(g); why != "" {
		return s, gpu.Errorf(gpu.CodeUnavailable, "cannot tell how vGPUs share gpu %q: %s", g.ID, why)
	}
	s.Wanted = rec.VGPU
	if s.Actual, err = t.Timeslicing(ctx, g.ID); err != nil {
		return s, err
	}
	s.Equal = len(s.Differences(g.SRIOV)) == 0
	return s, nil
}

// noVGPUs refuses to change how vGPUs share a GPU while there is one, whoever made it: the
// driver would refuse. Who has it is named.
func (h *Host) noVGPUs(ctx context.Context, l inventory.Look) error {
	on, err := h.partitionsOf(ctx, l)
	if err != nil {
		return err
	}
	vms, verr := h.cfg.Inventory.VMs(ctx)
	var blockers []gpu.Blocker
	for _, p := range on {
		if !isVGPU(p.Kind) || p.State == gpu.PartitionMissing { // it waits for just this
			continue
		}
		note := "gpuvirt did not make it"
		if p.Origin == gpu.OriginManaged {
			note = "it is of no assignment"
		}
		if p.Assignment != "" {
			note = "it is of assignment " + p.Assignment
		}
		blockers = append(blockers, gpu.Blocker{Kind: "partition", ID: p.ID, Name: p.Profile, Note: note})
		blockers = append(blockers, blockersOf(withHolders(ctx, h.cfg.Inventory, p, vms, verr).Holders, "it has "+p.ID)...)
	}
	if len(blockers) == 0 {
		return nil
	}
	return gpu.Errorf(gpu.CodeGPUBusy, "cannot change how vGPUs share gpu %q: there are some", l.GPU.ID).
		WithBlockers(blockers...).WithHint("detach their assignments and delete them first")
}

// vgpuPlan is what wishes ask for: an operation, or rows alone where all is as it should be.
type vgpuPlan struct {
	op   operation.Plan
	rows []operation.Row
}

func (h *Host) planVGPU(ctx context.Context, id gpu.ID, wish gpu.VGPUWish) (vgpuPlan, error) {
	l, err := h.look(ctx, id)
	if err != nil {
		return vgpuPlan{}, err
	}
	g := l.GPU
	if code, why := closed(g); code != "" {
		e := gpu.Errorf(code, "cannot change how vGPUs share gpu %q: %s", id, why)
		if code == gpu.CodeGPUUnmanaged {
			e.Hint = "put it under management first: gpuvirt gpu manage " + string(id)
		}
		return vgpuPlan{}, e
	}
	if l.Err != nil {
		return vgpuPlan{}, l.Err
	}
	if err := h.notGiven(id, "change how vGPUs share"); err != nil {
		return vgpuPlan{}, err
	}
	s, err := h.vgpuState(ctx, g)
	if err != nil {
		return vgpuPlan{}, err
	}
	want := wish.Over(s.Wanted)
	if err := s.Actual.Check(g.SRIOV, want); wish.Empty() || err != nil {
		if err == nil {
			err = gpu.Errorf(gpu.CodeInvalid, "nothing is asked for")
		}
		return vgpuPlan{}, gpu.Wrap(err, gpu.CodeInvalid, "cannot change how vGPUs share gpu %q", id)
	}
	p := vgpuPlan{op: operation.Plan{
		Kind: kindVGPU, Summary: fmt.Sprintf("have vGPUs share gpu %s by %s", id, want), Keys: []string{"gpu/" + string(id)},
	}}
	old, err := h.gpuRecord(g)
	if err != nil {
		return vgpuPlan{}, err
	}
	if now := old; !want.Equal(old.VGPU) {
		now.VGPU = want
		p.rows = append(p.rows, operation.Put(gpu.RecordGPU, string(id), now))
	}
	if p.op.Steps = vgpuSteps(g, s.Actual, want); len(p.op.Steps) == 0 {
		return p, nil
	}
	if err := h.noVGPUs(ctx, l); err != nil {
		return vgpuPlan{}, err
	}
	if p.op.Rows = p.rows; len(p.rows) > 0 {
		p.op.Release = []operation.Row{operation.Put(gpu.RecordGPU, string(id), old)}
	}
	return p, nil
}

// vgpuSteps are the steps that make what is what is wanted, each for one setting.
func vgpuSteps(g gpu.GPU, is gpu.Timeslicing, want gpu.VGPUWish) (out []operation.PlanStep) {
	for _, c := range is.Changes(want) {
		out = append(out, operation.PlanStep{
			Kind: stepVGPU, Summary: fmt.Sprintf("set %s of %s", c.Want, g.ID),
			Args: vgpuArgs{GPU: g.ID, Identity: g.Identity, Want: c.Want, Was: c.Was},
		})
	}
	return out
}

// vgpuStepsAfterVFs set again what is lost when virtual functions are turned on: the driver
// is bound anew. What it has then is not known before. A setting that it does not have any
// more keeps nobody from having functions: the GPU says what it lacks.
func (h *Host) vgpuStepsAfterVFs(ctx context.Context, g gpu.GPU, want gpu.VGPUWish) []operation.PlanStep {
	if g.MIG.Current || want.Empty() {
		return nil
	}
	if t, err := timeslicerOf(h.cfg.Inventory); err == nil {
		is, err := t.Timeslicing(ctx, g.ID)
		if err == nil && want.Scheduler != nil && (len(is.Scheduler.Policies) == 0 || is.Scheduler.Check(*want.Scheduler) != nil) {
			want.Scheduler = nil
		}
	}
	return vgpuStepsAgain(g, want)
}

// vgpuStepsAgain set what is wanted where nothing of it is in force: after functions were
// turned on, and after MIG was turned off.
func vgpuStepsAgain(g gpu.GPU, want gpu.VGPUWish) []operation.PlanStep {
	steps := vgpuSteps(g, gpu.Timeslicing{}, want)
	for i := range steps {
		if a, ok := steps[i].Args.(vgpuArgs); ok {
			a.IfHas = true
			steps[i].Args = a
		}
	}
	return steps
}

// vgpuAgain is that for an undo. Where it fails that is told as drift.
func (h *Host) vgpuAgain(ctx context.Context, a vfsArgs) {
	r, err := h.gpuRecord(gpu.GPU{ID: a.GPU})
	if l, lerr := h.look(ctx, a.GPU); err != nil || lerr != nil || l.GPU.MIG.Current {
		return // on instances of MIG there is nothing to set
	}
	for _, c := range (gpu.Timeslicing{}).Changes(r.VGPU) {
		if err := h.setVGPU(ctx, vgpuArgs{GPU: a.GPU, Identity: a.Identity}, c.Want); err != nil {
			h.cfg.Log.WarnContext(ctx, "cannot set again how vGPUs share the gpu", "gpu", a.GPU, "err", err)
		}
	}
}

// PutVGPUSettings starts changing how the vGPUs of a GPU share it. Where all is as wanted
// it returns no operation, and writes nothing that is written already.
func (h *Host) PutVGPUSettings(ctx context.Context, actor string, id gpu.ID, wish gpu.VGPUWish) (gpu.VGPUState, *operation.Operation, error) {
	h.planning.Lock()
	defer h.planning.Unlock()
	busy := h.held([]string{"gpu/" + string(id)}) // what is read beside an operation may hold no more when it is over
	p, err := h.planVGPU(ctx, id, wish)
	if err := cmp.Or(err, busy); err != nil {
		return gpu.VGPUState{}, nil, err
	}
	if len(p.op.Steps) > 0 {
		p.op.Actor = actor
		op, err := h.add(ctx, p.op)
		if err != nil {
			return gpu.VGPUState{}, nil, err
		}
		return gpu.VGPUState{}, &op, nil
	}
	if len(p.rows) > 0 {
		if err := h.cfg.Store.Apply(p.rows...); err != nil {
			return gpu.VGPUState{}, nil, err
		}
		h.cfg.Log.Info("settings of vGPUs recorded", "gpu", id, "actor", actor, "wish", wish.String())
		h.hub.emit("gpu.changed", string(id), map[string]string{"vgpu": wish.String()})
	}
	s, err := h.VGPUSettings(ctx, id)
	return s, nil, err
}

// PlanPutVGPUSettings is the dry run of PutVGPUSettings.
func (h *Host) PlanPutVGPUSettings(ctx context.Context, id gpu.ID, wish gpu.VGPUWish) (gpu.Plan, error) {
	if _, err := h.VGPUSettings(ctx, id); err != nil {
		return gpu.Plan{}, err
	}
	p, err := h.planVGPU(ctx, id, wish)
	plan, err := h.plan(p.op, err)
	if err != nil || plan.Refusal != nil {
		return plan, err
	}
	if len(p.op.Steps) == 0 && len(p.rows) > 0 {
		plan.Summary, plan.Changes = fmt.Sprintf("record how vGPUs share gpu %s", id), true
		plan.Steps = append(plan.Steps, gpu.PlanStep{Kind: "gpu.record", Summary: "record what is there as wanted"})
	}
	return plan, nil
}

func (h *Host) doVGPU(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a vgpuArgs
	if err := t.Args(&a); err != nil {
		return nil, err
	}
	if a.IfHas {
		if why := h.lacking(ctx, a); why != "" {
			// Just after its functions or its mode changed a driver may not have it yet.
			if h.cfg.Now().Sub(t.Operation().Updated) < min(schedulerPatience, h.cfg.Patience.Unavailable) {
				return nil, &operation.RetryError{After: h.cfg.Patience.Pause, Err: errors.New(why)}
			}
			t.Logf("not set: %s", why)
			h.cfg.Log.WarnContext(ctx, "the driver does not have what was asked for how vGPUs share the gpu", "gpu", a.GPU, "wish", a.Want.String(), "why", why)
			return nil, nil
		}
	}
	err := h.setVGPU(ctx, a, a.Want)
	if gpu.CodeOf(err) == gpu.CodeUnavailable && t.Resumed() {
		err = h.patient(t, err) // a GPU that is not there just after boot is not gone
	}
	return nil, unclean(err)
}

// lacking says why a driver cannot have a setting, empty if it can or that is not known.
func (h *Host) lacking(ctx context.Context, a vgpuArgs) string {
	t, err := timeslicerOf(h.cfg.Inventory)
	if err != nil {
		return ""
	}
	is, err := t.Timeslicing(ctx, a.GPU)
	if err != nil || is.MIG {
		return ""
	}
	if err := ready(is, a.Want); err != nil {
		return err.Error()
	}
	return ""
}

// undoVGPU sets what was set before. Where there is a vGPU meanwhile, what is set stays.
func (h *Host) undoVGPU(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a vgpuArgs
	if err := t.Args(&a); err != nil || a.Was.Empty() {
		return nil, err
	}
	err := h.patient(t, h.setVGPU(ctx, a, a.Was))
	if gpu.CodeOf(err) == gpu.CodeGPUBusy {
		if _, again := errors.AsType[*operation.RetryError](err); !again {
			h.cfg.Log.WarnContext(ctx, "how vGPUs share the gpu stays, as there are some", "gpu", a.GPU, "err", err)
			return nil, nil
		}
	}
	return nil, err
}

func (h *Host) setVGPU(ctx context.Context, a vgpuArgs, want gpu.VGPUWish) error {
	l, err := h.look(ctx, a.GPU)
	if err != nil {
		return err
	}
	if why := unreadable(l.GPU); why != "" {
		return gpu.Errorf(gpu.CodeUnavailable, "cannot set %s of gpu %q: %s", want, a.GPU, why)
	}
	if !sameCard(a.Identity, l.GPU.Identity) {
		return gpu.Errorf(gpu.CodeDrift, "another card (%s) is where %s was when %s was asked for", describe(l.GPU.Identity), describe(a.Identity), want)
	}
	t, err := timeslicerOf(h.cfg.Inventory)
	if err != nil {
		return err
	}
	return setVGPU(context.WithoutCancel(ctx), t, a.GPU, want)
}

// setVGPU has the driver do what is asked for.
func setVGPU(ctx context.Context, t gpu.Timeslicer, id gpu.ID, want gpu.VGPUWish) error {
	switch {
	case want.MixedSize != nil:
		return t.SetMixedSize(ctx, id, *want.MixedSize)
	case want.Scheduler != nil:
		return t.SetScheduler(ctx, id, *want.Scheduler)
	default:
		return nil
	}
}

// shared adds to a GPU that its vGPUs share it otherwise than was asked.
func (h *Host) shared(ctx context.Context, g gpu.GPU, r gpu.GPURecord) gpu.GPU {
	if !r.Managed || r.VGPU.Empty() || unreadable(g) != "" {
		return g
	}
	s, err := h.vgpuState(ctx, g)
	if err != nil || s.Equal { // what keeps it from being read is told elsewhere
		return g
	}
	g.Conditions = append(g.Conditions, gpu.Condition{
		Type: gpu.Degraded, Status: true, Reason: "VGPUSettings",
		Message: strings.Join(s.Differences(g.SRIOV), "; ") + ": put it again while there is no vGPU on it",
	})
	return g
}

// reportVGPUs says on which GPUs vGPUs share otherwise than was asked. It is not mended,
// whatever the policy: it would take all vGPUs off the GPU.
func (h *Host) reportVGPUs(ctx context.Context, now map[string]string) error {
	records, err := h.cfg.Store.GPURecords()
	if err != nil {
		return err
	}
	for _, r := range records {
		held := func() bool { return h.held([]string{"gpu/" + string(r.ID)}) != nil }
		if r.VGPU.Empty() || !r.Managed || held() {
			continue
		}
		key := "gpu/" + string(r.ID) + "/vgpu"
		l, err := h.look(ctx, r.ID)
		var s gpu.VGPUState
		if err == nil {
			s, err = h.vgpuState(ctx, l.GPU)
		}
		if err != nil {
			h.carry(now, key)
			continue
		}
		if s.Equal || held() {
			continue
		}
		message := strings.Join(s.Differences(l.GPU.SRIOV), "; ")
		if h.begins(now, key, message) {
			h.cfg.Log.Warn("settings of vGPUs drifted", "gpu", r.ID, "message", message)
			h.hub.emit("gpu.drifted", string(r.ID), map[string]string{"reason": "VGPUSettings", "message": message})
		}
	}
	return nil
}
