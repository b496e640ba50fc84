package host

import (
	"context"
	"errors"
	"slices"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// Kinds of operation and of step.
const (
	kindAttach = "assignment.attach"
	kindDetach = "assignment.detach"

	stepMake   = "partition.make"
	stepRemove = "partition.remove"
	stepAttach = "vm.attach"
	stepDetach = "vm.detach"
)

// Patience says how long a step tries again where that may help. When it ends, a Do
// fails and is undone, and an undo fails and keeps its keys for a person.
type Patience struct {
	Pause       time.Duration // between two tries
	Unavailable time.Duration // for libvirt, or a GPU that is not there yet
	Stuck       time.Duration // for a GPU that does not answer
	// Busy is for a holder that may be about to let go: QEMU closes a device's file
	// a moment after the guest has given the device back.
	Busy time.Duration
}

// DefaultPatience is right for a host.
func DefaultPatience() Patience {
	return Patience{Pause: 2 * time.Second, Unavailable: 10 * time.Minute, Stuck: 2 * time.Minute, Busy: 20 * time.Second}
}

// makeArgs are the arguments of partition.make and partition.remove.
type makeArgs struct {
	Partition gpu.PartitionRecord `json:"partition"`
	// Assignment is the one that goes with the partition when it is removed, and
	// comes back with it if the removal is undone.
	Assignment *gpu.AssignmentRecord `json:"assignment,omitempty"`
	// Optional says that a removal, or that of one put back in an undo, may be left undone
	// where somebody uses the partition.
	Optional bool `json:"optional,omitempty"`
}

// register gives the engine the hands for each step. Every one of them may be
// run again after a crash, and every undo copes with a do that never happened.
func (h *Host) register(e *operation.Engine) {
	e.Handle(stepMake, operation.Handler{Do: h.doMake, Undo: h.undoMake})
	e.Handle(stepRemove, operation.Handler{Do: h.doRemove, Undo: h.undoRemove})
	e.Handle(stepAttach, operation.Handler{Do: h.doAttach, Undo: h.undoAttach})
	e.Handle(stepDetach, operation.Handler{Do: h.doDetach, Undo: h.undoDetach})
	e.Handle(stepMode, operation.Handler{Do: h.doMode, Undo: h.undoMode})
	e.Handle(stepVFs, operation.Handler{Do: h.doVFs, Undo: h.undoVFs})
	e.Handle(stepVGPU, operation.Handler{Do: h.doVGPU, Undo: h.undoVGPU})
}

// patient turns an error that may pass by itself into another try, for as long as
// the step has patience; a Do may be aborted meanwhile. Where patience has ended
// the error is what it was.
func (h *Host) patient(t *operation.Task, err error) error {
	var limit time.Duration
	switch gpu.CodeOf(err) { //nolint:exhaustive // the others do not pass by themselves
	case gpu.CodeUnavailable:
		limit = h.cfg.Patience.Unavailable
	case gpu.CodeStuck:
		limit = h.cfg.Patience.Stuck
	case gpu.CodeGPUBusy, gpu.CodeBusy:
		limit = h.cfg.Patience.Busy
	}
	// A step is saved when it begins, and not again before it ends.
	if err == nil || h.cfg.Now().Sub(t.Operation().Updated) >= limit {
		return err
	}
	return &operation.RetryError{After: h.cfg.Patience.Pause, Err: err}
}

// unclean has the engine undo a step that failed: what it left is found out there.
func unclean(err error) error {
	if _, again := errors.AsType[*operation.RetryError](err); err == nil || again {
		return err
	}
	return &operation.UncleanError{Err: err}
}

func (h *Host) doMake(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a makeArgs
	if err := t.Args(&a); err != nil {
		return nil, unclean(err)
	}
	if err := h.vacant(ctx, t, a.Partition); err != nil {
		return nil, err // nothing was begun, and what is there is not ours to undo
	}
	// What the plan was made from is a moment old: it is not read again at once.
	if t.Resumed() {
		err := h.makeable(ctx, a.Partition)
		if gpu.CodeOf(err) == gpu.CodeUnavailable {
			err = h.patient(t, err) // a GPU that is not there just after boot is not gone
		}
		if err != nil {
			return nil, unclean(err)
		}
	}
	made, err := h.makeIt(ctx, a.Partition)
	if gpu.CodeOf(err) == gpu.CodeUnavailable && t.Resumed() {
		err = h.patient(t, err)
	}
	if err != nil {
		return nil, unclean(err)
	}
	return []operation.Row{operation.Put(gpu.RecordPartition, made.ID, made)}, nil
}

// vacant refuses where a partition's place was taken by somebody else since it was
// planned: what is there would be taken for ours. After a crash it may be ours, and
// nothing tells, unless somebody uses it: nobody can have been given ours yet.
func (h *Host) vacant(ctx context.Context, t *operation.Task, r gpu.PartitionRecord) error {
	if r.Slot == "" {
		return nil
	}
	b, err := h.cfg.Inventory.Backend(r.Kind)
	if err != nil {
		return err
	}
	ps, err := b.Partitions(ctx, r.GPU)
	if err != nil {
		return err
	}
	for _, p := range ps {
		if p.ID == r.ID && (!t.Resumed() || h.usedBefore(ctx, p)) {
			return gpu.Errorf(gpu.CodeConflict, "cannot make %s: somebody else made a %s there meanwhile", whereOf(r, "on"), p.Profile).
				WithBlockers(gpu.Blocker{Kind: "partition", ID: p.ID, Name: p.Profile, Note: "gpuvirt did not make it"})
		}
	}
	return nil
}

// usedBefore reports whether somebody uses what we may be about to make, or that this
// cannot be told.
func (h *Host) usedBefore(ctx context.Context, p gpu.Partition) bool {
	return Unused(ctx, h.cfg.Inventory, p) != nil
}

// makePartition makes what a record describes, or finds it made, and returns the
// record as it is then. It touches only the card that was meant.
func (h *Host) makePartition(ctx context.Context, r gpu.PartitionRecord) (gpu.PartitionRecord, error) {
	if err := h.makeable(ctx, r); err != nil {
		return r, err
	}
	return h.makeIt(ctx, r)
}

// makeable refuses where a record's card is not the one that was meant, or not to
// be used.
func (h *Host) makeable(ctx context.Context, r gpu.PartitionRecord) error {
	g, err := h.gpu(ctx, r.GPU)
	if err != nil {
		return err
	}
	if !g.Managed {
		return gpu.Errorf(gpu.CodeGPUUnmanaged, "cannot make %q on gpu %q: it is not under management", r.Profile, r.GPU)
	}
	if !sameCard(r.Identity, g.Identity) {
		return otherCard(r, g)
	}
	for _, c := range g.Conditions {
		if c.Status && c.Type == gpu.Unknown {
			return gpu.Errorf(gpu.CodeUnavailable, "cannot make %q on gpu %q: %s", r.Profile, r.GPU, c.Message)
		}
	}
	return nil
}

func (h *Host) makeIt(ctx context.Context, r gpu.PartitionRecord) (gpu.PartitionRecord, error) {
	b, err := h.cfg.Inventory.Backend(r.Kind)
	if err != nil {
		return r, err
	}
	if err := takeable(ctx, h.cfg.Inventory, b, r); err != nil {
		return r, err
	}
	// The kernel is not to be left in the middle of a write because somebody aborts:
	// the backend has its own deadline.
	p, err := b.Make(context.WithoutCancel(ctx), r.Partition())
	if err != nil {
		return r, err
	}
	r.Parent, r.Handle, r.Compute, r.State = p.Parent, p.Handle, withoutUUIDs(p.Compute), gpu.PartitionMade
	return r, nil
}

// ensure makes sure that a stored partition is there. One that is there and not known to be
// free keeps its parameters: a driver changes none of what a VM has, and that they are others
// than were asked for is told as drift.
func (h *Host) ensure(ctx context.Context, partition string) error {
	r, err := h.cfg.Store.PartitionRecord(partition)
	if err != nil {
		return err
	}
	if r.Params != "" && h.usedThere(ctx, r) {
		r.Params = ""
	}
	_, err = h.makePartition(ctx, r)
	return err
}

// usedThere reports whether the partition of a record is there and not known to be free.
func (h *Host) usedThere(ctx context.Context, r gpu.PartitionRecord) bool {
	b, err := h.cfg.Inventory.Backend(r.Kind)
	if err != nil {
		return false
	}
	ps, err := b.Partitions(ctx, r.GPU)
	i := slices.IndexFunc(ps, func(p gpu.Partition) bool { return p.ID == r.ID })
	return err == nil && i >= 0 && h.usedBefore(ctx, ps[i])
}

func otherCard(r gpu.PartitionRecord, g gpu.GPU) error {
	return gpu.Errorf(gpu.CodeDrift, "another card (%s) is where %s was when partition %q was asked for", describe(g.Identity), describe(r.Identity), r.ID)
}

func (h *Host) undoMake(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a makeArgs
	if err := t.Args(&a); err != nil {
		return nil, err
	}
	err := h.removePartition(ctx, a.Partition)
	if a.Optional && gpu.CodeOf(err) == gpu.CodeGPUBusy {
		h.cfg.Log.WarnContext(ctx, "a partition that was put back stays, as it is in use", "gpu", a.Partition.GPU, "partition", a.Partition.ID, "err", err)
		return nil, nil
	}
	if err != nil {
		return nil, h.patient(t, err)
	}
	if a.Partition.State != gpu.PartitionMaking {
		return nil, nil // it was put back, and is missing as before
	}
	// A boot before the undo has ended is not to bring it back.
	return []operation.Row{operation.Put(gpu.RecordPartition, a.Partition.ID, a.Partition)}, nil
}

// removePartition removes a partition of ours after making sure that no VM has
// it and no process holds it. What is not known counts as in use.
func (h *Host) removePartition(ctx context.Context, r gpu.PartitionRecord) error {
	g, err := h.gpu(ctx, r.GPU)
	if err != nil && gpu.CodeOf(err) != gpu.CodeNotFound {
		return err
	}
	for _, c := range g.Conditions {
		if c.Status && c.Type == gpu.Stuck { // what a hung write will have done is not known
			return gpu.Errorf(gpu.CodeStuck, "cannot remove partition %q: %s", r.ID, c.Message)
		}
	}
	p, err := h.seek(ctx, g, r)
	if err != nil {
		return err
	}
	if p == nil {
		return h.finishRemoval(ctx, g, r)
	}
	if unnamed(*p) && !sameProfile(r, *p) {
		return gpu.Errorf(gpu.CodeUnavailable, "cannot remove partition %q: the driver does not say whether the %s that is there is a %s", r.ID, p.Profile, r.Profile)
	}
	if replaced(r, *p, g.Identity) {
		h.cfg.Log.WarnContext(ctx, "what is in the place of a partition is not ours, and stays", "gpu", r.GPU, "partition", r.ID, "profile", p.Profile)
		return nil
	}
	p.FormerDrivers = r.FormerDrivers // which the kernel has forgotten
	if err := Unused(ctx, h.cfg.Inventory, *p); err != nil {
		return err
	}
	b, err := h.cfg.Inventory.Backend(r.Kind)
	if err != nil {
		return err
	}
	err = b.Remove(context.WithoutCancel(ctx), *p)
	if r.Kind == gpu.KindMIG && gpu.CodeOf(err) == gpu.CodeGPUBusy {
		return h.withGPUHolders(ctx, r.GPU, err)
	}
	return err
}

// finishRemoval gives the functions of a card or VF, which VFIO does not have any more, the
// drivers that they had: whoever took them from VFIO may have died before that. The
// backend touches only what still bears our marks.
func (h *Host) finishRemoval(ctx context.Context, g gpu.GPU, r gpu.PartitionRecord) error {
	if len(r.FormerDrivers) == 0 || g.ID == "" || !sameCard(r.Identity, g.Identity) {
		return nil
	}
	b, err := h.cfg.Inventory.Backend(r.Kind)
	if err != nil {
		return err
	}
	return b.Remove(context.WithoutCancel(ctx), r.Partition())
}

// seek returns the partition of a record as the kernel has it, or nil where it is
// nowhere: on its GPU first, as it should be there, then on all others. A GPU that
// cannot be looked at is an error; one that is not there at all has no partitions,
// and then no other GPU may have this one either.
func (h *Host) seek(ctx context.Context, g gpu.GPU, r gpu.PartitionRecord) (*gpu.Partition, error) {
	on := func(g gpu.GPU) (*gpu.Partition, error) {
		ps, err := h.cfg.Inventory.Partitions(ctx, g)
		for _, p := range ps {
			if p.ID == r.ID {
				return &p, nil
			}
		}
		return nil, err
	}
	if p, err := on(g); p != nil || err != nil {
		return p, err
	}
	b, err := h.cfg.Inventory.Backend(r.Kind)
	if err != nil || r.Slot != "" { // whose place is its identity is nowhere else
		return nil, err
	}
	ids, err := b.IDs(ctx)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		// One that is sick hides nothing that was made on r.GPU.
		ps, _ := b.Partitions(ctx, id)
		for _, p := range ps {
			if p.ID == r.ID {
				return &p, nil
			}
		}
	}
	return nil, nil //nolint:nilnil // nowhere is an answer, not a failure
}

// doRemove removes a partition. From the moment the kernel may have been told,
// there is no way back: a device that is on its way out is not given to a VM again.
func (h *Host) doRemove(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a makeArgs
	if err := t.Args(&a); err != nil {
		return nil, err
	}
	if err := h.removePartition(ctx, a.Partition); err != nil {
		err = h.patient(t, err)
		if _, again := errors.AsType[*operation.RetryError](err); !again && a.Optional {
			h.cfg.Log.WarnContext(ctx, "a partition stays, as it is not known to be free", "gpu", a.Partition.GPU, "partition", a.Partition.ID, "err", err)
			return nil, nil
		}
		switch gpu.CodeOf(err) { //nolint:exhaustive // with any other nothing was begun
		case gpu.CodeStuck, gpu.CodeUnavailable:
			if _, again := errors.AsType[*operation.RetryError](err); !again {
				return nil, &operation.WaitError{Reason: err.Error()}
			}
		}
		return nil, err
	}
	rows := []operation.Row{operation.Delete(gpu.RecordPartition, a.Partition.ID)}
	if a.Assignment != nil {
		rows = append(rows, operation.Delete(gpu.RecordAssignment, a.Assignment.Name))
	}
	return rows, nil
}

// undoRemove makes the partition again under the same identity, and brings its
// records back.
func (h *Host) undoRemove(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a makeArgs
	if err := t.Args(&a); err != nil {
		return nil, err
	}
	made, err := h.makePartition(ctx, a.Partition)
	if gpu.CodeOf(err) == gpu.CodeConflict && a.Partition.Slot != "" {
		// Somebody else was quicker, and that stays. What was ours is told as replaced.
		h.cfg.Log.WarnContext(ctx, "the place of a partition was taken before it was put back", "gpu", a.Partition.GPU, "partition", a.Partition.ID, "err", err)
		made, err = a.Partition, nil
	}
	if err != nil {
		return nil, h.patient(t, err)
	}
	rows := []operation.Row{operation.Put(gpu.RecordPartition, made.ID, made)}
	if a.Assignment != nil {
		rows = append(rows, operation.Put(gpu.RecordAssignment, a.Assignment.Name, *a.Assignment))
	}
	return rows, nil
}
