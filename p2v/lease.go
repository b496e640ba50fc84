package p2v

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/move"
)

// eventReservation is the type of events that tell what becomes of the partitions of a move.
const eventReservation = "migration.reservation"

// leaser is who gives partitions back whose lease has ended.
const leaser = "gpuvirtd"

// Run has leases end: partitions of moves that nobody does anything with are given back, after that
// was told, and are reserved again where somebody wants them. It returns when ctx ends; what is
// under way then goes on with the next Run.
func (m *Migrations) Run(ctx context.Context) {
	tick := time.NewTicker(cmp.Or(m.cfg.Patience.Lease, time.Minute))
	defer tick.Stop()
	for {
		m.lookAtLeases(ctx)
		select {
		case <-tick.C:
		case <-m.leases:
		case <-ctx.Done():
			m.leasing.Wait()
			return
		}
	}
}

// hurry has the leases looked at at once.
func (m *Migrations) hurry() {
	select {
	case m.leases <- struct{}{}:
	default: // it is about to
	}
}

func (m *Migrations) lookAtLeases(ctx context.Context) {
	records, err := m.cfg.Store.MigrationRecords()
	if err != nil {
		m.cfg.Log.Warn("cannot look at the leases of migrations", "err", err)
	}
	for _, r := range records {
		if r.Ended != "" || r.Reservation == nil {
			continue
		}
		m.leasing.Go(func() { // one that takes its time does not hold up the others
			if !m.settle(ctx, r.Name) || !m.again.CompareAndSwap(false, true) { // one waits for all
				return
			}
			again := time.NewTimer(m.cfg.Patience.Pause)
			defer again.Stop()
			select {
			case <-again.C:
			case <-ctx.Done():
			}
			m.again.Store(false)
			m.hurry()
		})
	}
}

// pass moves a lease on as time has passed.
func (m *Migrations) pass(name string) error {
	v, err := m.Migration(name)
	if err != nil || v.Reservation == nil || !idle(v) || v.Reservation.Copied.IsZero() && v.Phase != move.PhaseWaiting {
		return err
	}
	var is, was move.Reservation
	_, err = m.update(name, func(r *move.Record) {
		// Somebody may have asked for something since.
		if r.Reservation == nil || r.Ended != "" || r.Fence != move.FenceNone || r.Pending() != nil {
			return
		}
		was = *r.Reservation
		r.Reservation.Pass(m.cfg.Now())
		is = *r.Reservation
	})
	if err == nil && is.State != was.State {
		m.told(name, is)
	}
	return err
}

// idle reports whether nothing is done with a move that needs its partitions.
func idle(v move.Migration) bool {
	copies := v.Phase == move.PhaseReserved || v.Phase == move.PhaseSyncing || v.Phase == move.PhaseReady || v.Phase == move.PhaseWaiting
	return copies && v.Ended == "" && v.Fence == move.FenceNone
}

// told tells everybody what has become of a reservation.
func (m *Migrations) told(name string, is move.Reservation) {
	detail := map[string]string{"state": string(is.State)}
	if !is.Until.IsZero() {
		detail["until"] = is.Until.UTC().Format(time.RFC3339)
	}
	if is.Problem != "" {
		detail["problem"] = is.Problem
	}
	if is.State == move.Ending {
		m.cfg.Log.Warn("the partitions of a migration are given back soon, as nobody does anything with it", "migration", name, "until", is.Until)
	} else {
		m.cfg.Log.Info("the reservation of a migration has changed", "migration", name, "state", is.State, "problem", is.Problem)
	}
	if m.cfg.Tell != nil {
		m.cfg.Tell(eventReservation, name, detail)
	}
}

// hold has one at a time change the partitions of a move.
func (m *Migrations) hold(name string) chan struct{} {
	ch, _ := m.held.LoadOrStore(name, make(chan struct{}, 1))
	return ch.(chan struct{}) //nolint:forcetypeassert,errcheck // nothing else is put there
}

// settle moves a lease on, and gives the partitions of a move back, or reserves them again, where that is
// to be done. It reports whether it is to be tried again.
func (m *Migrations) settle(ctx context.Context, name string) (again bool) {
	hold := m.hold(name)
	select {
	case hold <- struct{}{}:
		defer func() { <-hold }()
	default: // somebody is at it, and tells what becomes of it in order
		return false
	}
	if err := m.pass(name); err != nil && gpu.CodeOf(err) != gpu.CodeNotFound {
		m.cfg.Log.Warn("cannot look at the lease of a migration", "migration", name, "err", err)
	}
	v, err := m.Migration(name)
	if err != nil || v.Reservation == nil || !idle(v) {
		return false
	}
	to, failed := move.Reserved, move.Released
	switch v.Reservation.State {
	case move.Releasing:
		if m.cfg.Now().Before(v.Reservation.Until) {
			return false // that has failed a moment ago
		}
		to, err = move.Released, m.giveBack(ctx, v.Record)
	case move.Reserving:
		if err = m.takeAgain(ctx, v.Record); err != nil && m.hasSome(ctx, v.Record) {
			failed = move.Releasing
		}
	case move.Reserved, move.Ending, move.Released:
		return false
	}
	if ctx.Err() != nil {
		return false
	}
	is, err := m.settled(name, v.Reservation.State, to, failed, err)
	switch {
	case err != nil:
		m.cfg.Log.Warn("cannot write down what became of a reservation", "migration", name, "err", err)
		return true
	case is == nil: // somebody wants something else by now
		return true
	case is.State == v.Reservation.State:
		if is.Problem != v.Reservation.Problem {
			m.told(name, *is)
		}
		return is.Until.IsZero()
	}
	m.told(name, *is)
	return is.State == move.Releasing
}

// asItIs is the reservation of a move: what is written down, unless somebody has taken one of its
// assignments away since.
func (m *Migrations) asItIs(v move.Migration) *move.Reservation {
	if !v.GoesOn() || !v.Reservation.Held() {
		return v.Reservation
	}
	why := m.misses(v.Record)
	if why == nil {
		return v.Reservation
	}
	// It may have been given back since v was read, which is written down before.
	if r, err := m.cfg.Store.MigrationRecord(v.Name); err == nil && !r.Reservation.Held() {
		return r.Reservation
	}
	var is move.Reservation
	if v.Reservation != nil {
		is = *v.Reservation
	}
	is.State, is.Until, is.Problem = move.Released, time.Time{}, reason(why)
	return &is
}

// misses says which assignment of a move is not there any more, with gpu.CodeNotFound, or is another
// VM's; nil: all are its own, as far as is known.
func (m *Migrations) misses(rec move.Record) error {
	if rec.VM == nil {
		return nil
	}
	for _, s := range rec.VM.Slices {
		w, err := m.cfg.Assignments.AssignmentWish(s.Assignment)
		var why *gpu.Error
		switch {
		case err != nil && gpu.CodeOf(err) == gpu.CodeNotFound:
			why = gpu.Errorf(gpu.CodeNotFound, "somebody has deleted assignment %q", s.Assignment).
				WithHint("reserve it again: gpuvirt migrate reserve %s", rec.Name)
		case err == nil && w.VM != rec.VM.UUID:
			why = gpu.Errorf(gpu.CodeConflict, "assignment %q is of another VM by now", s.Assignment).
				WithBlockers(gpu.Blocker{Kind: "assignment", ID: s.Assignment}, gpu.Blocker{Kind: "vm", ID: w.VM}).
				WithHint("have it deleted, and reserve the migration's own again: gpuvirt migrate reserve %s", rec.Name)
		default:
			continue
		}
		return why
	}
	return nil
}

// want has the partitions of a move kept for longer, or reserved again where they are not held: seen is the
// reservation as the assignments say that it is.
func (m *Migrations) want(seen *move.Reservation, r *move.Record) {
	if seen != nil && seen.State == move.Released {
		if r.Reservation == nil { // of a version before, which kept them until it ends
			r.Reservation = &move.Reservation{}
		}
		r.Reservation.State = move.Released
	}
	r.Reservation.Want(m.cfg.Now())
}

// hasSome reports whether a move may have any of its partitions.
func (m *Migrations) hasSome(ctx context.Context, rec move.Record) bool {
	return slices.ContainsFunc(rec.VM.Slices, func(s move.Slice) bool {
		a, err := m.cfg.Assignments.Assignment(ctx, s.Assignment)
		return err == nil && a.Wish.VM == rec.VM.UUID || err != nil && gpu.CodeOf(err) != gpu.CodeNotFound
	})
}

// settled writes down what came of it; otherwise is what it is where it has failed for good. It answers
// nil where somebody wants something else by now.
func (m *Migrations) settled(name string, from, to, otherwise move.ReservationState, failed error) (is *move.Reservation, err error) {
	_, err = m.update(name, func(r *move.Record) {
		if r.Reservation == nil || r.Reservation.State != from {
			return
		}
		is = r.Reservation
		now := m.cfg.Now()
		switch {
		case failed == nil:
			m.tries.raise(name) // what is asked for may have waited for it
			is.State, is.Until, is.Problem = to, time.Time{}, ""
			is.Renew(now)
		case from == move.Releasing && !holdsUp(failed):
			is.Problem, is.Until = reason(failed), now.Add(is.Notice()).UTC()
		case holdsUp(failed):
			is.Problem = reason(failed)
			if a := r.Pending(); a != nil && a.State == move.Asked {
				a.Phase = "its partitions are reserved again: " + is.Problem
			}
		default:
			is.State, is.Until, is.Problem = otherwise, time.Time{}, reason(failed)
			if a := r.Pending(); a != nil && a.State == move.Asked {
				finish(a, now, failed)
			}
		}
	})
	return is, err
}

// giveBack deletes the assignments of a move. Its VM stays defined. Of one that runs nothing is
// taken, whoever has started it.
func (m *Migrations) giveBack(ctx context.Context, rec move.Record) error {
	vm, err := m.cfg.VMs.VM(ctx, rec.VM.UUID)
	switch {
	case err != nil && gpu.CodeOf(err) != gpu.CodeVMNotFound:
		return err
	case err == nil && vm.State.Active():
		return gpu.Errorf(gpu.CodeConflict, "its partitions are not given back: VM %s runs", rec.VM.Name).
			WithBlockers(gpu.Blocker{Kind: "vm", ID: rec.VM.UUID, Name: rec.VM.Name})
	}
	return m.unassign(ctx, nil, leaser, rec)
}

// takeAgain reserves partitions that were given back.
func (m *Migrations) takeAgain(ctx context.Context, rec move.Record) error {
	// Without an Idempotency-Key: one that is there already is as it should be.
	_, op, err := m.cfg.Assignments.ApplyAssignments(ctx, leaser, wishesOf(rec), gpu.Idempotency{})
	if err == nil {
		err = m.carried(ctx, nil, op)
	}
	return cannotReserve(rec, err)
}

func cannotReserve(rec move.Record, err error) error {
	if err == nil || holdsUp(err) {
		return err
	}
	refusal := gpu.Wrap(err, gpu.CodeConflict, "cannot reserve the partitions of migration %q again", rec.Name)
	if refusal.Hint == "" {
		refusal = refusal.WithHint("have them freed, and ask again; or roll the migration back, and begin one with others")
	}
	return refusal
}

// available says why partitions that were given back could not be reserved again now; nil: they
// could, or are held.
func (m *Migrations) available(ctx context.Context, rec move.Record) error {
	if rec.Reservation == nil || rec.Reservation.State != move.Released {
		return nil
	}
	if err := m.misses(rec); err != nil && gpu.CodeOf(err) != gpu.CodeNotFound {
		return cannotReserve(rec, err)
	}
	p, err := m.cfg.Assignments.PlanApplyAssignments(ctx, wishesOf(rec))
	return cannotReserve(rec, errors.Join(err, p.Refusal))
}

// PlanTry is the dry run of Rehearse and CutOver.
func (m *Migrations) PlanTry(ctx context.Context, name string, kind move.AttemptKind, w move.CutWish) (move.Migration, error) {
	v, err := m.Migration(name)
	if err == nil {
		err = v.Refuses(kind, w)
	}
	if err == nil {
		err = m.available(ctx, v.Record)
	}
	return v, err
}

// Reserve has the lease of a move begin anew, as one of so many seconds where lease is not nil, and
// reserves its partitions again where they were given back. It does not wait for that.
func (m *Migrations) Reserve(ctx context.Context, name string, lease *int) (move.Migration, error) {
	if v, err := m.PlanReserve(ctx, name, lease); err != nil {
		return v, err
	}
	r, err := m.ask(name, move.ActReserve, func(v move.Migration, r *move.Record) error {
		if r.Reservation == nil { // of a version before
			r.Reservation = m.reservation(lease)
			r.Reservation.State, r.Reservation.Copied = move.Reserved, m.cfg.Now().UTC()
		}
		if lease != nil {
			r.Reservation.Lease = *lease
		}
		m.want(v.Reservation, r)
		return nil
	})
	if err != nil {
		return move.Migration{}, err
	}
	m.hurry()
	return m.view(r)
}

// PlanReserve is the dry run of Reserve.
func (m *Migrations) PlanReserve(ctx context.Context, name string, lease *int) (move.Migration, error) {
	v, err := m.Migration(name)
	if err == nil {
		if err = leaseCheck(lease); err != nil {
			err = gpu.Errorf(gpu.CodeInvalid, "cannot reserve partitions of migration %q: %w", name, err)
		}
	}
	if err == nil {
		_, err = v.Allows(move.ActReserve)
	}
	if err == nil {
		err = m.available(ctx, v.Record)
	}
	return v, err
}

// reservation is that of a move that begins.
func (m *Migrations) reservation(lease *int) *move.Reservation {
	r := &move.Reservation{State: move.Reserving}
	switch {
	case lease != nil:
		r.Lease = *lease
	case m.cfg.Lease != nil:
		r.Lease = int(m.cfg.Lease().Seconds())
	}
	return r
}

// assigned tells that the partitions of a move are reserved for the first time.
func (m *Migrations) assigned(name string) error {
	rec, err := m.update(name, func(r *move.Record) {
		if r.Reservation != nil && r.Reservation.State == move.Reserving {
			r.Reservation.State = move.Reserved
			r.Reservation.Renew(m.cfg.Now())
		}
	})
	if err == nil && rec.Reservation != nil {
		m.told(name, *rec.Reservation)
	}
	return err
}

func leaseCheck(lease *int) error {
	if lease == nil {
		return nil
	}
	return move.CheckLease(*lease)
}

func wishesOf(rec move.Record) []gpu.NamedWish {
	wishes := make([]gpu.NamedWish, 0, len(rec.VM.Slices))
	for _, s := range rec.VM.Slices {
		wishes = append(wishes, gpu.NamedWish{Name: s.Assignment, Wish: gpu.Wish{
			VM: rec.VM.UUID, Profile: s.Profile, GPU: s.GPU, Placement: gpu.Pack, Hotplug: gpu.HotplugAuto, Params: s.Params,
		}})
	}
	return wishes
}

// supersede has an operation turn round that waits for a person and holds up a roll back, where it is
// of the move's own VM: nobody needs it any more. The error says what to do about another's.
func (m *Migrations) supersede(ctx context.Context, t *operation.Task, rec move.Record, held *operation.ConflictError) error {
	op, err := m.cfg.Engine.Get(held.Holder)
	switch {
	case err != nil || t == nil || op.Status != operation.Waiting:
		return held // which passes
	case !slices.Contains(op.Keys, "vm/"+rec.VM.UUID):
		return gpu.Errorf(gpu.CodeConflict, "operation %s (%s) is in the way, and waits for a person: %s", op.ID, op.Summary, op.Reason).
			WithBlockers(gpu.Blocker{Kind: "operation", ID: op.ID}).
			WithHint("have it go on or abort it (gpuvirt operation retry, gpuvirt operation abort), and then: gpuvirt migrate retry %s", rec.Name)
	}
	t.Logf("operation %s (%s) waited for a person, and is aborted: nobody needs it any more", op.ID, op.Summary)
	if _, err := m.cfg.Engine.Abort(op.ID); err != nil {
		return err
	}
	if end, err := m.cfg.Engine.Wait(ctx, op.ID); err == nil && end.Status != operation.Undone {
		return m.carried(ctx, t, &op) // why it could not
	}
	return held // it is looked at anew
}

// unassign deletes those assignments of a move that are still its own, one after the other.
func (m *Migrations) unassign(ctx context.Context, t *operation.Task, actor string, rec move.Record) error {
	for _, s := range rec.VM.Slices {
		a, err := m.cfg.Assignments.Assignment(ctx, s.Assignment)
		switch {
		case err != nil && gpu.CodeOf(err) == gpu.CodeNotFound:
			continue
		case err != nil:
			return err
		case a.Wish.VM != rec.VM.UUID: // somebody else's, of the same name
			continue
		}
		op, err := m.cfg.Assignments.DeleteAssignment(ctx, actor, s.Assignment)
		if held, is := errors.AsType[*operation.ConflictError](err); is {
			return m.supersede(ctx, t, rec, held)
		}
		if err != nil {
			return err
		}
		if err := m.carried(ctx, t, &op); err != nil {
			return err
		}
	}
	return nil
}
