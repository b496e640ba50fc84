package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
)

const (
	// schedulerPatience is how long a driver that is there may take to have the scheduler
	// that was asked for. A vGPU that waits for it can do without.
	schedulerPatience = 10 * time.Second
	// mixedPatience is how long it may take to let sizes be mixed. A vGPU cannot do without
	// unless all of its GPU are alike.
	mixedPatience = 20 * time.Second
	// orderPatience is how long vGPUs wait for one that is to be made before them.
	orderPatience = 10 * time.Second
)

// A sharing is how vGPUs are to share GPUs, as far as that is restored: errors by GPU, nil
// for what is as it should be.
type sharing struct {
	schedulers, mixed map[gpu.ID]error
	alike             map[gpu.ID]bool      // sizes cannot be mixed, and need not be
	until             map[string]time.Time // until when something is waited for, by what it is
	records           []gpu.PartitionRecord
}

// newSharing lists what is to be restored. On instances of MIG there is nothing, and sizes
// are mixed on virtual functions only.
func newSharing(gpus []gpu.GPURecord, records []gpu.PartitionRecord) *sharing {
	s := &sharing{
		schedulers: map[gpu.ID]error{}, mixed: map[gpu.ID]error{},
		alike: map[gpu.ID]bool{}, until: map[string]time.Time{}, records: records,
	}
	for _, g := range gpus {
		if !g.Managed || wantsMIG(g, records) || givenAway(g.ID, records) {
			continue
		}
		if g.VGPU.Scheduler != nil {
			s.schedulers[g.ID] = errNotTried
		}
		functions := g.VFs != nil && *g.VFs > 0 || slices.ContainsFunc(records, func(r gpu.PartitionRecord) bool { return r.GPU == g.ID && isVGPU(r.Kind) })
		if g.VGPU.MixedSize != nil && *g.VGPU.MixedSize && functions {
			s.mixed[g.ID] = errNotTried
		}
	}
	return s
}

// restore sets what is not as it should be, after the virtual functions and before the
// first vGPU, and reports whether a GPU is waited for. The scheduler comes first: what it
// is by itself may be none for mixed sizes.
func (s *sharing) restore(ctx context.Context, gpus []gpu.GPURecord, vfs map[gpu.ID]error, inv *inventory.Inventory, log *slog.Logger) bool {
	try := func(g gpu.GPURecord, want gpu.VGPUWish) (bool, error) {
		if err := vfs[g.ID]; err != nil {
			return false, notThereError{fmt.Errorf("its virtual functions are not restored: %w", err)}
		}
		return restoreSharing(ctx, g, want, inv)
	}
	waiting := restoreEach(gpus, s.schedulers,
		func(g gpu.GPURecord) (bool, error) {
			changed, err := try(g, gpu.VGPUWish{Scheduler: g.VGPU.Scheduler})
			return changed, s.impatient(ctx, g.ID, err)
		},
		func(g gpu.GPURecord, err error) { tellSharing(log, g, err, "scheduler") })
	return restoreEach(gpus, s.mixed,
		func(g gpu.GPURecord) (bool, error) {
			if err := s.schedulers[g.ID]; err != nil && comesLater(gpu.CodeOf(err)) {
				return false, err
			}
			changed, err := try(g, gpu.VGPUWish{MixedSize: g.VGPU.MixedSize})
			return changed, s.without(ctx, g.ID, err, inv)
		},
		func(g gpu.GPURecord, err error) { tellSharing(log, g, err, "mixed sizes") }) || waiting
}

func tellSharing(log *slog.Logger, g gpu.GPURecord, err error, what string) {
	if err != nil {
		log.Error("cannot restore how vGPUs share the gpu", "gpu", g.ID, "setting", what, "err", err)
	} else {
		log.Info("how vGPUs share the gpu is restored", "gpu", g.ID, "setting", what)
	}
}

// A notThereError says that a GPU, its functions or its driver are still to come: patience with
// a driver begins when it is there.
type notThereError struct{ error }

func (e notThereError) Unwrap() error { return e.error }

func toCome(err error) bool {
	_, is := errors.AsType[notThereError](err)
	return is
}

// over reports whether something has been waited for as long as it may, and by the time at
// which half of what is left is over: what depends on it needs its turn as well.
func (s *sharing) over(ctx context.Context, what string, patience time.Duration) bool {
	until, ok := s.until[what]
	if !ok {
		if end, ok := ctx.Deadline(); ok {
			patience = min(patience, time.Until(end)/2)
		}
		until = time.Now().Add(patience)
		s.until[what] = until
	}
	return !time.Now().Before(until)
}

// wake tells when the next thing that is waited for is over, nil: there is none.
func (s *sharing) wake() <-chan time.Time {
	var next time.Duration
	for _, until := range s.until {
		if left := time.Until(until); left > 0 && (next == 0 || left < next) {
			next = left
		}
	}
	if next == 0 {
		return nil
	}
	return time.After(next)
}

// impatient gives a scheduler up that vGPUs would wait for too long, and one that cannot
// be set any more because they are there.
func (s *sharing) impatient(ctx context.Context, id gpu.ID, err error) error {
	code := gpu.CodeOf(err)
	if err == nil || code == gpu.CodeNotFound || !comesLater(code) || toCome(err) {
		return err
	}
	if over := s.over(ctx, "scheduler of "+string(id), schedulerPatience); code != gpu.CodeGPUBusy && !over {
		return err
	}
	return gpu.Errorf(gpu.CodeConflict, "given up: %w", err)
}

// without gives up that sizes can be mixed, where a driver that is there does not have it
// after a while: another one than when it was asked for, perhaps.
func (s *sharing) without(ctx context.Context, id gpu.ID, err error, inv *inventory.Inventory) error {
	code := gpu.CodeOf(err)
	if code != gpu.CodeUnavailable && code != gpu.CodeGPUBusy || toCome(err) || !s.over(ctx, "mixed sizes of "+string(id), mixedPatience) {
		return err
	}
	s.alike[id] = alike(ctx, id, s.records, inv)
	return gpu.Errorf(gpu.CodeDriverMismatch, "given up: %w", err)
}

// alike reports whether all vGPUs that are to be on a GPU are known to have one size.
func alike(ctx context.Context, id gpu.ID, records []gpu.PartitionRecord, inv *inventory.Inventory) bool {
	l, err := inv.Look(ctx, id)
	if err != nil {
		return false
	}
	var size uint64
	for _, r := range records {
		if r.GPU != id || !isVGPU(r.Kind) {
			continue
		}
		p, _ := findKind(l.Profiles, r)
		if p.MemoryBytes == 0 || size != 0 && size != p.MemoryBytes {
			return false
		}
		size = p.MemoryBytes
	}
	return true
}

// restoreSharing sets what of a wish is not so.
func restoreSharing(ctx context.Context, r gpu.GPURecord, want gpu.VGPUWish, inv *inventory.Inventory) (changed bool, err error) {
	t, err := timeslicerOf(inv)
	if err != nil {
		return false, err
	}
	l, err := lookAgain(ctx, inv, r.ID, r.Identity)
	if err != nil {
		return false, notThereError{err}
	}
	is, err := t.Timeslicing(ctx, r.ID)
	if err != nil && l.GPU.Driver.Name == "" {
		err = notThereError{err}
	}
	if err != nil {
		return false, err
	}
	left := is.Changes(want)
	if is.MIG || len(left) == 0 {
		return false, nil // somebody else has turned MIG on, or it is so
	}
	if err := ready(is, want); err != nil {
		return false, err
	}
	if err := noVGPUNow(ctx, inv, l.GPU); err != nil {
		return false, err
	}
	for _, c := range left {
		if err := setVGPU(ctx, t, r.ID, c.Want); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}

// ready refuses what a driver does not have, or not yet.
func ready(is gpu.Timeslicing, want gpu.VGPUWish) error {
	switch {
	case want.MixedSize != nil && !is.MixedSize.Supported:
		return gpu.Errorf(gpu.CodeUnavailable, "its vGPUs cannot differ in size now: %s", is.MixedSize.Unavailable)
	case want.Scheduler != nil && len(is.Scheduler.Policies) == 0:
		return gpu.Errorf(gpu.CodeUnavailable, "it has no scheduler that can be chosen now: %s", is.Scheduler.Unavailable)
	case want.Scheduler != nil:
		return is.Scheduler.Check(*want.Scheduler)
	default:
		return nil
	}
}

// noVGPUNow refuses to have a driver change how vGPUs share a GPU while there is one: it
// would refuse, and waiting does not make a vGPU go.
func noVGPUNow(ctx context.Context, inv *inventory.Inventory, g gpu.GPU) error {
	on, err := inv.Partitions(ctx, g)
	if err != nil {
		return err
	}
	var blockers []gpu.Blocker
	for _, p := range on {
		if isVGPU(p.Kind) {
			blockers = append(blockers, gpu.Blocker{Kind: "partition", ID: p.ID, Name: p.Profile})
		}
	}
	if len(blockers) == 0 {
		return nil
	}
	return gpu.Errorf(gpu.CodeConflict, "a vGPU is on it (%s, %s), made before gpuvirt came to that", blockers[0].ID, blockers[0].Name).WithBlockers(blockers...)
}

// missing says what of how a GPU is to be shared a vGPU has to wait for, or cannot do
// without. Without its scheduler a GPU is Degraded, and of use; without mixed sizes the
// first vGPU would rule out those of other sizes, whichever it is, unless there are none.
// Where one that is there already has done that, those of its size come back.
func (s *sharing) missing(r gpu.PartitionRecord) error {
	if !isVGPU(r.Kind) {
		return nil
	}
	if err := s.schedulers[r.GPU]; err != nil && comesLater(gpu.CodeOf(err)) {
		return fmt.Errorf("the scheduler of its gpu is not restored: %w", err)
	}
	if err := s.mixed[r.GPU]; err != nil && gpu.CodeOf(err) != gpu.CodeConflict && !s.alike[r.GPU] {
		return fmt.Errorf("sizes of vGPUs cannot be mixed on its gpu: %w", err)
	}
	return nil
}

// errs are what could not be restored.
func (s *sharing) errs(id gpu.ID) (out []error) {
	if err := s.schedulers[id]; err != nil {
		out = append(out, fmt.Errorf("cannot restore the scheduler of vGPUs of gpu %s: %w", id, err))
	}
	if err := s.mixed[id]; err != nil {
		out = append(out, fmt.Errorf("cannot restore mixed sizes of vGPUs of gpu %s: %w", id, err))
	}
	return out
}

// order is the order in which partitions are made again, as indices: where sizes are mixed
// each vGPU has to find its place, and the driver chooses it.
func (s *sharing) order(ctx context.Context, done []Restored, inv *inventory.Inventory) []int {
	order := make([]int, len(done))
	for i := range order {
		order[i] = i
	}
	for id, err := range s.mixed {
		var at []int
		for i, d := range done {
			if d.Record.GPU == id && isVGPU(d.Record.Kind) && !d.settled {
				at = append(at, i)
			}
		}
		l, lerr := inv.Look(ctx, id)
		if err != nil || len(at) < 2 || lerr != nil {
			continue
		}
		m := mixed(ctx, inv, l)
		if m == nil {
			continue
		}
		profiles := make([]gpu.Profile, len(at)) // as the driver numbers them now
		for k, i := range at {
			profiles[k], _ = find(l.Profiles, done[i].Record.Profile)
		}
		for k, j := range m.order(profiles) {
			order[at[k]] = at[j]
		}
	}
	return order
}

// behind says which vGPU one has to wait for, of those that are late and come before it in
// the order, if there is one: the driver would give away its place. It is not waited for
// without end.
func (s *sharing) behind(ctx context.Context, r gpu.PartitionRecord, late []gpu.PartitionRecord) error {
	if err, ok := s.mixed[r.GPU]; !ok || err != nil || !isVGPU(r.Kind) {
		return nil
	}
	for _, l := range late {
		if l.GPU != r.GPU || !isVGPU(l.Kind) {
			continue
		}
		if !s.over(ctx, "partition "+l.ID, orderPatience) {
			return gpu.Errorf(gpu.CodeUnavailable, "partition %s, which is to find its place before it, is not restored", l.ID)
		}
	}
	return nil
}
