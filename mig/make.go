package mig

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"gpuvirt/gpu"
)

// take waits for its turn to change something.
func (b *Backend) take(ctx context.Context) (give func(), err error) {
	if ctx.Err() == nil {
		select {
		case b.turn <- struct{}{}:
			return func() { <-b.turn }, nil
		case <-ctx.Done():
		}
	}
	return nil, gpu.Errorf(gpu.CodeUnavailable, "interrupted: %w", ctx.Err())
}

// slot reads the place of a partition: the first memory slice.
func slot(p gpu.Partition) (int, error) {
	start, err := strconv.Atoi(p.Slot)
	if err != nil || strconv.Itoa(start) != p.Slot || p.ID != PartitionID(p.GPU, p.Slot) {
		return 0, gpu.Errorf(gpu.CodeInvalid, "%q is not the place in its id: want %s", p.Slot, PartitionID(p.GPU, "<first memory slice>"))
	}
	return start, nil
}

// Place chooses the place for one more partition of a profile and returns it as Make
// wants it: the one that leaves the most room for large profiles. Where there is none
// the error names what is in the way.
func (b *Backend) Place(_ context.Context, id gpu.ID, profile string, _ []gpu.Handle) (gpu.Partition, error) {
	out, err := read(b, id, func(d Device) (gpu.Partition, error) {
		c, err := cut(id, d)
		if err != nil {
			return gpu.Partition{}, err
		}
		at, err := c.place(profile, Anywhere)
		if err != nil {
			return gpu.Partition{}, err
		}
		s := strconv.Itoa(at.Start)
		return gpu.Partition{
			ID: PartitionID(id, s), GPU: id, Parent: string(id), Kind: gpu.KindMIG, Profile: profile, Slot: s,
			Native: strconv.Itoa(c.profiles[c.profile(profile)].ID),
		}, nil
	})
	if err != nil {
		return gpu.Partition{}, failure(err, "cannot find a place on gpu %q", id)
	}
	return out, nil
}

// place asks the planner for the place of one more instance. A refusal names what is in
// the way.
func (c *cutting) place(profile string, start int) (Placement, error) {
	notes, err := c.users()
	if err != nil {
		return Placement{}, err
	}
	at, err := c.card().Place(c.have(notes), profile, start)
	return at, c.explain(err, notes)
}

// profile returns the index of a profile, or -1.
func (c *cutting) profile(name string) int {
	return slices.IndexFunc(c.profiles, func(p DeviceProfile) bool { return p.Name == name })
}

// Make makes a GPU instance at the place that is in the partition's ID, with the
// compute instances asked for, or with one that fills it. An instance of the profile
// that begins there already is completed and returned; another one is a conflict.
// What was made before a failure is taken back.
func (b *Backend) Make(ctx context.Context, want gpu.Partition) (gpu.Partition, error) {
	made, err := b.make(ctx, want)
	if err != nil {
		return gpu.Partition{}, failure(err, "cannot make partition %q (%s)", want.ID, want.Profile)
	}
	return made, nil
}

func (b *Backend) make(ctx context.Context, want gpu.Partition) (gpu.Partition, error) {
	if want.Kind != "" && want.Kind != gpu.KindMIG {
		return gpu.Partition{}, gpu.Errorf(gpu.CodeInvalid, "%q is no kind of MIG", want.Kind)
	}
	start, err := slot(want)
	if err != nil {
		return gpu.Partition{}, err
	}
	made, err := change(ctx, b, want.GPU, nil, func(d Device) (gpu.Partition, error) {
		c, err := cut(want.GPU, d)
		if err != nil {
			return gpu.Partition{}, err
		}
		return c.make(want, start)
	})
	if err == nil {
		b.opts.Log.Info("partition made", "partition", made.ID, "profile", made.Profile, "instance", made.Instance)
	}
	return made, err
}

// change runs f on a GPU when it is its turn and first, if there is one, does not
// object. The turn ends when the library has come back, however long that takes.
func change[T any](ctx context.Context, b *Backend, id gpu.ID, first func() error, f func(Device) (T, error)) (T, error) {
	var none T
	if err := b.stuck(); err != nil {
		return none, err // a turn that is not given back is not waited for
	}
	give, err := b.take(ctx)
	if err != nil {
		return none, err
	}
	if first != nil {
		if err := first(); err != nil {
			give()
			return none, err
		}
	}
	limit := b.opts.ChangeTimeout
	if end, ok := ctx.Deadline(); ok { // of a restore: then it is to say what is missing
		limit = min(limit, time.Until(end))
	}
	return on(b, id, limit, f, give)
}

func (c *cutting) make(want gpu.Partition, start int) (gpu.Partition, error) {
	i := c.profile(want.Profile)
	if i < 0 {
		_, err := c.card().Place(nil, want.Profile, start) // says which there are
		return gpu.Partition{}, err
	}
	p := c.profiles[i]
	if mode, err := c.device.Mode(); err != nil {
		return gpu.Partition{}, err
	} else if !mode.Current {
		return gpu.Partition{}, gpu.Errorf(gpu.CodeProfileNotCreatable, "MIG is off on this gpu")
	}
	there := c.at(start)
	var id int
	switch {
	case there == nil:
		if _, err := c.place(p.Name, start); err != nil {
			return gpu.Partition{}, err
		}
		var err error
		if id, err = c.device.Create(p.Index, start); err != nil {
			return gpu.Partition{}, c.createError(err, p.Name)
		}
	case there.ProfileID != p.ID:
		return gpu.Partition{}, differs(c.name(there.ProfileID), want.Profile)
	default:
		id = there.ID
	}
	undo, err := c.complete(id, want.Compute)
	if err == nil {
		var made gpu.Partition
		if made, err = c.readBack(id, want, start); err == nil {
			return made, nil
		}
	}
	if uerr := undo(); uerr != nil {
		return gpu.Partition{}, errors.Join(err, uerr)
	}
	if there == nil {
		if derr := c.device.Destroy(id); derr != nil {
			err = errors.Join(err, fmt.Errorf("gpu instance %d is left behind: %w", id, derr))
		}
	}
	return gpu.Partition{}, err
}

func differs(have, want string) error {
	err := gpu.Errorf(gpu.CodeConflict, "what begins there is a %s", have)
	err.Diff = map[string][2]string{"profile": {have, want}}
	return err
}

// createError says what a refusal to create means. The planner has found the place
// free a moment ago.
func (c *cutting) createError(err error, profile string) error {
	switch {
	case errors.Is(err, ErrInsufficientResources):
		return gpu.Errorf(gpu.CodeNoCapacity, "the driver finds no room for %s: %w", profile, err)
	case errors.Is(err, ErrNoPermission):
		return gpu.Errorf(gpu.CodeForbidden, "the driver does not let us: %w", err)
	default:
		return err
	}
}

// complete makes the compute instances of a GPU instance that are wanted and not
// there. The answer takes back what it made.
func (c *cutting) complete(id int, want []gpu.Compute) (undo func() error, err error) {
	var made []int
	undo = func() error {
		var errs []error
		for _, ci := range slices.Backward(made) {
			if err := c.device.DestroyCompute(id, ci); err != nil {
				errs = append(errs, fmt.Errorf("compute instance %d of gpu instance %d is left behind: %w", ci, id, err))
			}
		}
		return errors.Join(errs...)
	}
	profiles, err := c.device.ComputeProfiles(id)
	if err != nil {
		return undo, err
	}
	in, err := c.instance(id)
	if err != nil {
		return undo, err
	}
	if len(want) == 0 {
		whole := slices.MaxFunc(profiles, func(a, b ComputeProfile) int { return cmp.Compare(a.Slices, b.Slices) })
		want = []gpu.Compute{{Profile: whole.Name}}
	}
	todo, err := assign(profiles, in.Compute, want)
	if err != nil {
		return undo, err
	}
	for _, w := range todo {
		p, _ := computeProfile(profiles, w.Profile)
		ci, err := c.device.CreateCompute(id, p.Index, w.Start)
		if err != nil {
			return undo, c.createError(fmt.Errorf("compute instance %s at compute slice %d: %w", w.Profile, w.Start, err), w.Profile)
		}
		made = append(made, ci)
	}
	return undo, nil
}

// assign finds the places of the compute instances that are wanted and not there yet:
// those that are there must all be wanted.
func assign(profiles []ComputeProfile, there []ComputeInstance, want []gpu.Compute) ([]gpu.Compute, error) {
	todo := slices.Clone(want)
	for _, w := range want {
		if _, ok := computeProfile(profiles, w.Profile); !ok {
			return nil, gpu.Errorf(gpu.CodeProfileUnknown, "it has no compute profile %q", w.Profile).
				WithHint("compute profiles here: %s", strings.Join(computeNames(profiles), ", "))
		}
	}
	taken := uint64(0)
	for _, ci := range there {
		is := func(w gpu.Compute, start int) bool {
			p, _ := computeProfile(profiles, w.Profile)
			return p.ID == ci.ProfileID && w.Start == start
		}
		at := slices.IndexFunc(todo, func(w gpu.Compute) bool { return is(w, ci.Start) })
		if at < 0 {
			at = slices.IndexFunc(todo, func(w gpu.Compute) bool { return is(w, Anywhere) })
		}
		if at < 0 {
			return nil, gpu.Errorf(gpu.CodeConflict, "it has compute instance %d at compute slice %d, which is not wanted", ci.ID, ci.Start)
		}
		todo = slices.Delete(todo, at, at+1)
		taken |= span(ci.Start, ci.Size)
	}
	// What has a place comes first, then the largest: it has the least choice.
	size := func(w gpu.Compute) int { p, _ := computeProfile(profiles, w.Profile); return p.Slices }
	slices.SortStableFunc(todo, func(a, b gpu.Compute) int {
		return cmp.Or(cmp.Compare(min(b.Start, 0), min(a.Start, 0)), cmp.Compare(size(b), size(a)), cmp.Compare(a.Start, b.Start))
	})
	var place func(i int, taken uint64) bool
	place = func(i int, taken uint64) bool {
		if i == len(todo) {
			return true
		}
		p, _ := computeProfile(profiles, todo[i].Profile)
		asked := todo[i].Start
		for _, start := range p.Starts {
			if s := span(start, p.Slices); (asked == Anywhere || asked == start) && taken&s == 0 {
				todo[i].Start = start
				if place(i+1, taken|s) {
					return true
				}
			}
		}
		todo[i].Start = asked
		return false
	}
	if !place(0, taken) {
		return nil, gpu.Errorf(gpu.CodeNoCapacity, "its compute instances do not fit together: %s", strings.Join(computeWishes(want), ", "))
	}
	return todo, nil
}

func computeWishes(want []gpu.Compute) (out []string) {
	for _, w := range want {
		out = append(out, Placement{Profile: w.Profile, Start: w.Start}.String())
	}
	return out
}

func computeProfile(all []ComputeProfile, name string) (ComputeProfile, bool) {
	for _, p := range all {
		if p.Name == name {
			return p, true
		}
	}
	return ComputeProfile{}, false
}

func computeNames(all []ComputeProfile) (names []string) {
	for _, p := range all {
		names = append(names, p.Name)
	}
	return names
}

// instance reads one GPU instance anew.
func (c *cutting) instance(id int) (DeviceInstance, error) {
	all, err := c.device.Instances()
	if err != nil {
		return DeviceInstance{}, err
	}
	for _, in := range all {
		if in.ID == id {
			return in, nil
		}
	}
	return DeviceInstance{}, ErrNotFound
}

// readBack returns what was made, or an error if it is not what was asked for.
func (c *cutting) readBack(id int, want gpu.Partition, start int) (gpu.Partition, error) {
	in, err := c.instance(id)
	if err != nil {
		return gpu.Partition{}, fmt.Errorf("gpu instance %d was made and cannot be read: %w", id, err)
	}
	if in.Start != start || c.name(in.ProfileID) != want.Profile {
		return gpu.Partition{}, gpu.Errorf(gpu.CodeInternal, "asked for %s at %d, the driver made %s at %d",
			want.Profile, start, c.name(in.ProfileID), in.Start)
	}
	return c.partition(in)
}

// Remove removes a GPU instance with its compute instances. One that is gone is fine;
// one of another profile is a conflict. It stays whole where somebody uses it.
func (b *Backend) Remove(ctx context.Context, p gpu.Partition) error {
	if err := b.remove(ctx, p); err != nil {
		return failure(err, "cannot remove partition %q (%s)", p.ID, p.Profile)
	}
	return nil
}

func (b *Backend) remove(ctx context.Context, p gpu.Partition) error {
	start, err := slot(p)
	if err != nil {
		return err
	}
	unused := func() error {
		if b.opts.Unused == nil {
			return nil
		}
		return b.opts.Unused(ctx, p)
	}
	gone, err := change(ctx, b, p.GPU, unused, func(d Device) (bool, error) {
		c, err := cut(p.GPU, d)
		if err != nil {
			return false, err
		}
		in := c.at(start)
		if in == nil {
			return false, nil
		}
		if name := c.name(in.ProfileID); name != p.Profile {
			return false, differs(name, p.Profile)
		}
		return true, c.destroy(*in)
	})
	if err == nil && gone {
		b.opts.Log.Info("partition removed", "partition", p.ID, "profile", p.Profile)
	}
	return err
}

// destroy removes an instance, compute instances first. Where the driver refuses, those
// that went are made again.
func (c *cutting) destroy(in DeviceInstance) error {
	if err := c.idle(in.ID); err != nil {
		return err
	}
	var gone []ComputeInstance
	var err error
	for _, ci := range in.Compute {
		if err = c.device.DestroyCompute(in.ID, ci.ID); err != nil {
			break
		}
		gone = append(gone, ci)
	}
	if err == nil {
		err = c.device.Destroy(in.ID)
	}
	if err == nil {
		return nil
	}
	back := c.putBack(in.ID, gone)
	if errors.Is(err, ErrInUse) {
		err = c.inUse(in.ID, err)
	}
	return errors.Join(err, back)
}

// putBack makes compute instances again that were destroyed.
func (c *cutting) putBack(id int, gone []ComputeInstance) error {
	if len(gone) == 0 {
		return nil
	}
	profiles, err := c.device.ComputeProfiles(id)
	for _, ci := range gone {
		i := slices.IndexFunc(profiles, func(p ComputeProfile) bool { return p.ID == ci.ProfileID })
		if err != nil || i < 0 {
			return fmt.Errorf("%d compute instances of gpu instance %d are gone: %w", len(gone), id, cmp.Or(err, error(ErrNotFound)))
		}
		_, err = c.device.CreateCompute(id, profiles[i].Index, ci.Start)
	}
	return err
}

// idle refuses where the driver knows processes on an instance.
func (c *cutting) idle(id int) error {
	all, err := c.device.Processes()
	if err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(p Process) bool { return p.Instance == id }) {
		return c.inUse(id, ErrInUse)
	}
	return nil
}

// inUse is a refusal with the processes that the driver knows on an instance. It does
// not know all: who has only opened it, or watches it, is none that computes (T32).
func (c *cutting) inUse(id int, cause error) error {
	err := gpu.Errorf(gpu.CodeGPUBusy, "gpu instance %d is in use: %w", id, cause).
		WithHint("end what uses it; where no process is named, look for one that watches it (nvidia-dcgm, nvidia-persistenced, an exporter) or has /dev/nvidia-caps open")
	all, perr := c.device.Processes()
	if perr != nil {
		return errors.Join(err, perr)
	}
	for _, p := range all {
		if p.Instance == id {
			err = err.WithBlockers(gpu.Blocker{Kind: "process", ID: strconv.Itoa(p.PID)})
		}
	}
	return err
}
