package mig

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"

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
	if !mode.Current && len(c.profiles) == 0 { // and no instances
		if len(want.Instances) == 0 {
			return plan, nil
		}
		return plan, gpu.Errorf(gpu.CodeProfileNotCreatable, "its driver tells of its profiles only while MIG is on").
			WithHint("turn MIG on first, with no instances: gpuvirt mig set %s --empty", c.id)
	}
	parts, err := c.partitions()
	if err != nil {
		return plan, err
	}
	notes, err := c.notes(pinned)
	if err != nil {
		return plan, err
	}
	part := func(start int) gpu.Partition {
		return parts[slices.IndexFunc(parts, func(p gpu.Partition) bool { return p.Slot == strconv.Itoa(start) })]
	}
	have := c.have(notes)
	for i := range have {
		var names []string
		for _, ci := range part(have[i].Start).Compute {
			names = append(names, ci.Profile)
		}
		have[i].Compute = computeKey(names)
	}
	wishes, err := c.wishes(want.Instances, have)
	if err != nil {
		return plan, err
	}
	p, err := c.card().Layout(have, wishes)
	if err != nil {
		return plan, c.explain(err, notes)
	}
	for _, in := range p.Remove {
		plan.Remove = append(plan.Remove, part(in.Start))
	}
	for _, in := range p.Keep {
		plan.Keep = append(plan.Keep, part(in.Start))
	}
	for _, at := range p.Create {
		slot := strconv.Itoa(at.Start)
		plan.Create = append(plan.Create, gpu.Partition{
			ID: PartitionID(c.id, slot), GPU: c.id, Parent: string(c.id), Kind: gpu.KindMIG, Profile: at.Profile, Slot: slot,
			Native: strconv.Itoa(c.profiles[c.profile(at.Profile)].ID), Compute: computeOf(at),
		})
	}
	return plan, nil
}

// wishes are the instances of a layout for the planner, beside those that are there.
func (c *cutting) wishes(want []gpu.LayoutInstance, have []Instance) ([]Placement, error) {
	out := make([]Placement, len(want))
	for i, w := range want {
		is := slices.IndexFunc(have, func(in Instance) bool { return w.AsItIs && in.Start == w.Place && in.Profile == w.Profile })
		if is >= 0 {
			out[i] = Placement{Profile: w.Profile, Start: w.Place, Compute: have[is].Compute}
			continue
		}
		names := w.Compute
		if len(names) == 0 {
			names = []string{w.Profile}
		}
		if at := c.profile(w.Profile); at >= 0 { // else the planner says which there are
			if err := computeFits(c.profiles[at].Profile, names); err != nil {
				return nil, err
			}
		}
		out[i] = Placement{Profile: w.Profile, Start: w.Place, Compute: computeKey(names)}
	}
	return out, nil
}

// computeFits refuses compute instances that a GPU instance of a profile cannot have:
// the driver can be asked only once there is one, and then others may have been
// removed for it.
func computeFits(p Profile, names []string) error {
	left := p.Engines.Compute
	for _, name := range names {
		text, of, part := strings.Cut(name, "c.")
		n, err := strconv.Atoi(text)
		switch {
		case name == p.Name:
			n = p.Engines.Compute
		case !part || of != p.Name || err != nil || strconv.Itoa(n) != text || !slices.Contains(computeSizes, n) || n >= p.Engines.Compute:
			return gpu.Errorf(gpu.CodeProfileUnknown, "%s has no compute profile %q", p.Name, name).
				WithHint("compute profiles of it: %s", strings.Join(computeProfilesOf(p), ", "))
		}
		left -= n
	}
	if left < 0 {
		return gpu.Errorf(gpu.CodeNoCapacity, "compute instances of %d slices do not fit into %s, which has %d: %s",
			p.Engines.Compute-left, p.Name, p.Engines.Compute, strings.Join(names, ", "))
	}
	return nil
}

// computeSizes are the slices that a compute instance can have if it does not fill its
// GPU instance. nvml.h knows more, no card offers them.
var computeSizes = []int{1, 2, 3, 4}

func computeProfilesOf(p Profile) (names []string) {
	for _, n := range computeSizes {
		if n < p.Engines.Compute {
			names = append(names, strconv.Itoa(n)+"c."+p.Name)
		}
	}
	return append(names, p.Name)
}

// computeKey is the same for the same compute instances in any order.
func computeKey(names []string) string {
	names = slices.Clone(names)
	slices.Sort(names)
	return strings.Join(names, ",")
}

func computeOf(at Placement) (out []gpu.Compute) {
	if at.Compute == at.Profile {
		return nil // the one that fills it
	}
	for name := range strings.SplitSeq(at.Compute, ",") {
		out = append(out, gpu.Compute{Profile: name, Start: Anywhere})
	}
	return out
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
func (c *cutting) notes(pinned map[string]string) (map[int]string, error) {
	out, err := c.users()
	if err != nil {
		return nil, err
	}
	for _, in := range c.instances {
		if why, ok := pinned[PartitionID(c.id, strconv.Itoa(in.Start))]; ok && out[in.Start] == "" {
			out[in.Start] = cmp.Or(why, "it is pinned")
		}
	}
	return out, nil
}

// users says of each instance that the driver knows a process on which that is, by its
// place.
func (c *cutting) users() (map[int]string, error) {
	all, err := c.device.Processes()
	out := map[int]string{}
	for _, in := range c.instances {
		for _, p := range all {
			if p.Instance == in.ID {
				out[in.Start] = "process " + strconv.Itoa(p.PID) + " uses it"
			}
		}
	}
	return out, err
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
			return false, b.waits(id, activation)
		}
		return false, errors.Join(refused(id, d, activation), takeBack(d, mode.Pending))
	})
	if err != nil {
		return failure(err, "cannot %s MIG on gpu %q", verb(enable), id)
	}
	if changed {
		err = b.inForce(id, enable)
	}
	if err != nil {
		return failure(err, "cannot %s MIG on gpu %q", verb(enable), id)
	}
	if changed {
		b.opts.Log.Info("mode of MIG changed", "gpu", string(id), "enabled", enable)
	}
	return nil
}

// inForce reads a mode back that the driver says is in force. A GPU that cannot be read
// just after its reset is looked at by whatever comes next.
func (b *Backend) inForce(id gpu.ID, enabled bool) error {
	mode, err := read(b, id, Device.Mode)
	switch {
	case err != nil || mode.Current == enabled:
		return nil //nolint:nilerr // see above
	case mode.Pending == enabled:
		return b.waits(id, errors.New("the driver says that it is done, and it is not in force"))
	default:
		return gpu.Errorf(gpu.CodeInternal, "the driver says that it is done, and it is not even stored")
	}
}

// waits says what a mode waits for that is stored and not in force.
func (b *Backend) waits(id gpu.ID, cause error) error {
	if b.needs(id) == needsReboot {
		return gpu.Errorf(gpu.CodeNeedsReboot, "it waits for a reboot, as this gpu cannot be reset: %w", cause).
			WithHint("restart the machine that the gpu is in")
	}
	return gpu.Errorf(gpu.CodeNeedsReset, "it waits for the next reset of this gpu: %w", cause).
		WithHint("reset this gpu alone when nobody uses it (nvidia-smi --gpu-reset -i %s), or restart the machine", id)
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
