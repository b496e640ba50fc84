package mig

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"

	"gpuvirt/gpu"
)

var (
	_ gpu.Placer = (*Backend)(nil)
	_ gpu.Cutter = (*Backend)(nil)
)

// PlanLayout plans the smallest change of a GPU's instances.
func (b *Backend) PlanLayout(_ context.Context, id gpu.ID, want gpu.Layout, pinned map[string]string) (gpu.LayoutPlan, error) {
	plan, err := read(b, id, func(d Device) (gpu.LayoutPlan, error) {
		c, err := cut(id, d)
		if err != nil {
			return gpu.LayoutPlan{}, err
		}
		return c.plan(want, pinned)
	})
	if err != nil {
		return gpu.LayoutPlan{}, failure(err, "cannot lay out gpu %q", id)
	}
	return plan, nil
}

func (c *cutting) plan(want gpu.Layout, pinned map[string]string) (gpu.LayoutPlan, error) {
	var plan gpu.LayoutPlan
	if !want.Enabled && len(want.Instances) > 0 {
		return plan, gpu.Errorf(gpu.CodeInvalid, "it is to have %d instances and no MIG", len(want.Instances))
	}
	mode, err := c.device.Mode()
	if err != nil {
		return plan, err
	}
	if mode.Current != want.Enabled || mode.Pending != want.Enabled {
		if plan.Resets, err = c.changesMode(mode, want.Enabled); err != nil {
			return plan, err
		}
		plan.Mode = &want.Enabled
	}
	parts, err := c.partitions()
	if err != nil {
		return plan, err
	}
	notes, err := c.notes(parts, pinned)
	if err != nil {
		return plan, err
	}
	have := c.have()
	for i := range have {
		have[i].InUse = notes[have[i].Start] != ""
	}
	wishes := make([]Placement, len(want.Instances))
	for i, w := range want.Instances {
		wishes[i] = Placement{Profile: w.Profile, Start: w.Place}
	}
	p, err := c.card().Layout(have, wishes)
	if err != nil {
		return plan, c.explain(err, notes)
	}
	part := func(start int) gpu.Partition {
		return parts[slices.IndexFunc(parts, func(p gpu.Partition) bool { return p.Slot == strconv.Itoa(start) })]
	}
	for _, in := range p.Remove {
		plan.Remove = append(plan.Remove, part(in.Start))
	}
	var keep []gpu.Partition
	for _, in := range p.Keep {
		keep = append(keep, part(in.Start))
	}
	if err := c.match(&plan, want.Instances, keep, p.Create, notes); err != nil {
		return gpu.LayoutPlan{}, err
	}
	return plan, nil
}

// changesMode refuses to change the mode of a GPU with processes beside instances,
// and reports whether the GPU is reset for it. Who has it open without computing is
// not known here: the driver refuses then.
func (c *cutting) changesMode(mode gpu.MIGMode, on bool) (resets bool, err error) {
	if mode.Current == on {
		return false, nil // what waits is taken back
	}
	all, err := c.device.Processes()
	if err != nil {
		return false, err
	}
	beside := slices.DeleteFunc(all, func(p Process) bool { return p.Instance >= 0 })
	if len(beside) > 0 {
		return false, occupied(beside, ErrInUse)
	}
	facts, err := c.device.Facts()
	return facts.ModeResets, err
}

// notes says of each instance that may not be removed why, by its place.
func (c *cutting) notes(parts []gpu.Partition, pinned map[string]string) (map[int]string, error) {
	all, err := c.device.Processes()
	if err != nil {
		return nil, err
	}
	out := map[int]string{}
	for _, in := range c.instances {
		i := slices.IndexFunc(parts, func(p gpu.Partition) bool { return p.Slot == strconv.Itoa(in.Start) })
		if why, ok := pinned[parts[i].ID]; ok {
			out[in.Start] = cmp.Or(why, "it is pinned")
		}
		for _, p := range all {
			if p.Instance == in.ID {
				out[in.Start] = "process " + strconv.Itoa(p.PID) + " uses it"
			}
		}
	}
	return out, nil
}

// explain names blockers as the rest of gpuvirt does, with the reason of each.
func (c *cutting) explain(err error, notes map[int]string) error {
	e, ok := errors.AsType[*gpu.Error](err)
	if !ok {
		return err
	}
	for i, b := range e.Blockers {
		for _, in := range c.instances {
			if strconv.Itoa(in.ID) == b.ID {
				e.Blockers[i].ID = PartitionID(c.id, strconv.Itoa(in.Start))
				e.Blockers[i].Note = cmp.Or(notes[in.Start], b.Note)
				break
			}
		}
	}
	return err
}

// match finds which wish each instance fulfils that is kept or made, so that as few as
// possible need other compute instances than they have.
func (c *cutting) match(plan *gpu.LayoutPlan, want []gpu.LayoutInstance, keep []gpu.Partition, create []Placement, notes map[int]string) error {
	left := slices.Clone(want)
	take := func(profile string, start int, fits func(gpu.LayoutInstance) bool) (gpu.LayoutInstance, bool) {
		for _, at := range []int{start, gpu.AnyPlace} {
			if i := slices.IndexFunc(left, func(w gpu.LayoutInstance) bool { return w.Profile == profile && w.Place == at && fits(w) }); i >= 0 {
				w := left[i]
				left = slices.Delete(left, i, i+1)
				return w, true
			}
		}
		return gpu.LayoutInstance{}, false
	}
	whatever := func(gpu.LayoutInstance) bool { return true }
	// Wishes for a place bind what lies there; then those that are fulfilled as they
	// are; the rest are taken as they come.
	start := func(p gpu.Partition) int { n, _ := strconv.Atoi(p.Slot); return n }
	var recut []gpu.Partition
	for _, p := range keep {
		w, ok := take(p.Profile, start(p), func(w gpu.LayoutInstance) bool { return w.Place != gpu.AnyPlace || sameCompute(p, w) })
		switch {
		case !ok:
			recut = append(recut, p)
		case sameCompute(p, w):
			plan.Keep = append(plan.Keep, p)
		default:
			if err := c.recut(plan, p, w, notes); err != nil {
				return err
			}
		}
	}
	for _, p := range recut {
		w, _ := take(p.Profile, start(p), whatever)
		if err := c.recut(plan, p, w, notes); err != nil {
			return err
		}
	}
	for _, at := range create {
		w, _ := take(at.Profile, at.Start, whatever)
		slot := strconv.Itoa(at.Start)
		plan.Create = append(plan.Create, gpu.Partition{
			ID: PartitionID(c.id, slot), GPU: c.id, Parent: string(c.id), Kind: gpu.KindMIG, Profile: at.Profile, Slot: slot,
			Native: strconv.Itoa(c.profiles[c.profile(at.Profile)].ID), Compute: computeOf(w),
		})
	}
	slices.SortStableFunc(plan.Create, func(a, b gpu.Partition) int { return cmp.Compare(start(a), start(b)) })
	return nil
}

// recut has an instance removed and made again at its place, for other compute
// instances: nobody else is on it.
func (c *cutting) recut(plan *gpu.LayoutPlan, p gpu.Partition, w gpu.LayoutInstance, notes map[int]string) error {
	at, _ := strconv.Atoi(p.Slot)
	if why := notes[at]; why != "" {
		return gpu.Errorf(gpu.CodeGPUBusy, "instance %s (%s) is in use, and would have to be idle to get other compute instances", p.Instance, p.Profile).
			WithBlockers(gpu.Blocker{Kind: "partition", ID: p.ID, Name: p.Profile, Note: why})
	}
	plan.Remove = append(plan.Remove, p)
	again := p
	again.Instance, again.Holders, again.Compute = "", nil, computeOf(w)
	plan.Create = append(plan.Create, again)
	return nil
}

func computeOf(w gpu.LayoutInstance) (out []gpu.Compute) {
	for _, name := range w.Compute {
		out = append(out, gpu.Compute{Profile: name, Start: Anywhere})
	}
	return out
}

// sameCompute reports whether an instance has just the compute instances of a wish, in
// any order.
func sameCompute(p gpu.Partition, w gpu.LayoutInstance) bool {
	want := map[string]int{}
	for _, name := range w.Compute {
		want[name]++
	}
	if len(want) == 0 {
		want[p.Profile] = 1
	}
	have := map[string]int{}
	for _, ci := range p.Compute {
		have[ci.Profile]++
	}
	return maps.Equal(want, have)
}

// SetMode turns MIG on or off on a GPU. Cards before Hopper are reset for it: only this
// one, and only where nobody uses it. What could not be done now is taken back.
func (b *Backend) SetMode(ctx context.Context, id gpu.ID, enable bool) error {
	changed, err := change(ctx, b, id, nil, func(d Device) (bool, error) {
		mode, err := d.Mode()
		if err != nil || mode.Current == enable && mode.Pending == enable {
			return false, err
		}
		activation, err := d.SetMode(enable)
		if errors.Is(err, ErrNoPermission) {
			return false, gpu.Errorf(gpu.CodeForbidden, "the driver does not let us: %w", err)
		}
		if err != nil || activation == nil {
			return err == nil, err
		}
		if errors.Is(activation, ErrResetRequired) {
			return false, gpu.Errorf(gpu.CodeNeedsReset, "it waits for the next reset of this gpu: %w", activation).
				WithHint("reset the gpu when nobody uses it, or restart the machine it is in")
		}
		return false, errors.Join(refused(id, d, activation), takeBack(d, mode.Pending))
	})
	if err != nil {
		return failure(err, "cannot %s MIG on gpu %q", verb(enable), id)
	}
	if changed {
		b.opts.Log.Info("mode of MIG changed", "gpu", string(id), "enabled", enable)
	}
	return nil
}

func verb(on bool) string { return map[bool]string{true: "enable", false: "disable"}[on] }

// takeBack sets the pending mode to what it was: it would take effect at a reset that
// somebody else asks for, at a time of which nobody thinks of it any more.
func takeBack(d Device, pending bool) error {
	_, err := d.SetMode(pending)
	return err
}

// refused is what the driver's refusal to change the mode means, with the instances and
// processes that it knows on the GPU.
func refused(id gpu.ID, d Device, cause error) error {
	processes, err1 := d.Processes()
	instances, err2 := d.Instances()
	err := occupied(processes, cause)
	for _, in := range instances {
		err = err.WithBlockers(gpu.Blocker{Kind: "partition", ID: PartitionID(id, strconv.Itoa(in.Start))})
	}
	return errors.Join(err, err1, err2)
}

// occupied is a refusal to change the mode, with the processes that are known.
func occupied(by []Process, cause error) *gpu.Error {
	err := gpu.Errorf(gpu.CodeGPUBusy, "the gpu is in use: %w", cause).
		WithHint("end what uses it; where no process is named, look for one that watches it (nvidia-dcgm, nvidia-persistenced, an exporter, Xorg)")
	for _, p := range by {
		err = err.WithBlockers(gpu.Blocker{Kind: "process", ID: strconv.Itoa(p.PID)})
	}
	return err
}
