package p2v

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/freeze"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
)

// errFenced ends the copying: the source is off, and its mirrors are what it was.
var errFenced = errors.New("the source is off")

// errTold ends a cut-over of a server that came to us: its VM has all it needs, and it is told so.
var errTold = errors.New("the source was told that it is done")

// attempt carries out what somebody has asked to be tried, if anything. The error is that of
// the stay: an attempt that failed is kept as such, and the source goes on.
func (s *stay) attempt(ctx context.Context) error {
	if err := s.save(); err != nil {
		return err
	}
	a := s.due()
	if a == nil {
		return nil
	}
	if again, err := s.reserveAgain(); err != nil || again {
		return err
	}
	_, heard := s.m.tries.raised(s.rec.Name)
	heard()
	t := &try{stay: s, wish: a.Wish, kind: a.Kind, actor: a.Actor}
	if err := t.note(func(a *move.Attempt) { a.State, a.Began = move.Running, s.m.cfg.Now().UTC() }); err != nil {
		return err
	}
	s.task.Logf("%s begins, as %s has asked", a.Kind, a.Actor)
	var passes *beside
	t.goOn = func() (err error) { passes, err = s.beside(ctx); return err }
	defer func() {
		if passes != nil {
			passes.stop(s, t.lost != nil)
		}
	}()
	err := t.carry(ctx)
	if errors.Is(err, errTold) {
		err = t.leaves(ctx)
		if errors.Is(context.Cause(ctx), errDraining) && !errors.Is(err, errFenced) {
			return errDraining // as by a daemon that was killed: the next one asks a person
		}
	}
	if errors.Is(err, errFenced) {
		return err
	}
	if cause := context.Cause(ctx); cause != nil && err != nil {
		err = cause
	}
	if noteErr := t.ended(err); noteErr != nil {
		return noteErr
	}
	if err != nil {
		s.task.Logf("%s has failed, and the source goes on: %v", t.kind, err)
	} else {
		s.task.Logf("%s has passed", t.kind)
	}
	switch {
	case t.lost != nil:
		return t.lost
	case t.rec.Fence != move.FenceNone:
		return err // it may be off: no pass is made any more before that is known
	case err != nil:
		return s.same(ctx) // or it would be ready, until the next pass finds out
	}
	return nil
}

// reserveAgain has partitions reserved again of which somebody has deleted the assignment since the attempt
// was asked for: it begins when they are.
func (s *stay) reserveAgain() (again bool, err error) {
	if err := s.m.misses(s.rec); err == nil || gpu.CodeOf(err) != gpu.CodeNotFound {
		return false, nil // nothing is missed, or the attempt fails with who has it
	}
	rec, err := s.m.update(s.rec.Name, func(r *move.Record) {
		s.m.want(&move.Reservation{State: move.Released}, r)
	})
	if err != nil {
		return false, err
	}
	s.rec = rec
	s.m.hurry()
	return true, nil
}

// due is the attempt that is to begin now; nil: there is none, or it waits. Who reserves its partitions, or
// gives passphrases again, wakes us.
func (s *stay) due() *move.Attempt {
	a := s.rec.Pending()
	if a == nil || s.rec.Waits(*a) || !s.rec.Reservation.Held() || len(s.m.locked(s.rec)) > 0 {
		return nil
	}
	return a
}

// A try is an attempt under way.
type try struct {
	*stay
	kind  move.AttemptKind
	wish  move.CutWish
	actor string
	// goOn has passes made that leave the mirrors as they are, until the attempt has ended.
	goOn func() error
	// quiet is what had been written since the source came to rest, when it was copied.
	quiet []freeze.Written
	// came is the server that is to be told that it is done, where it has come to us; nil: it has gone.
	came *arrival
	// lost is why the stay cannot go on, though the attempt has ended.
	lost error
}

// carry carries it out, until somebody does not want it any more.
func (t *try) carry(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t.m.trying.Store(t.rec.Name, cancel)
	defer t.m.trying.Delete(t.rec.Name)
	// Of one that was withdrawn before it could be called off.
	switch rec, err := t.m.cfg.Store.MigrationRecord(t.rec.Name); {
	case err != nil:
		return err
	case rec.Pending() == nil:
		return &withdrawnError{"somebody"}
	}
	if t.kind == move.Rehearsal {
		return because(ctx, t.rehearse(ctx))
	}
	err := t.cutOver(ctx)
	if errors.Is(err, errFenced) || t.rec.Fence != move.FenceNone {
		return err
	}
	return because(ctx, err)
}

// note changes what is kept of the attempt.
func (t *try) note(change func(*move.Attempt)) error {
	rec, err := t.m.update(t.rec.Name, func(r *move.Record) {
		if a := r.Pending(); a != nil {
			change(a)
		}
	})
	if err == nil {
		t.rec = rec
	}
	return err
}

// phase tells what is being done.
func (t *try) phase(what string) error {
	t.task.Logf("%s: %s", t.kind, what)
	return t.note(func(a *move.Attempt) { a.Phase = what })
}

func (t *try) ended(err error) error {
	rec, saveErr := t.m.update(t.rec.Name, func(r *move.Record) {
		if a := r.Pending(); a != nil {
			finish(a, t.m.cfg.Now(), err)
		}
		r.Reservation.Renew(t.m.cfg.Now())
	})
	if saveErr == nil {
		t.rec = rec
	}
	return saveErr
}

func finish(a *move.Attempt, now time.Time, err error) {
	if enough, is := errors.AsType[*withdrawnError](err); is {
		withdrawn(a, now, enough.actor)
		return
	}
	if errors.Is(err, errDraining) {
		if a.Wish.WhenReady { // whenever that is
			*a = move.Attempt{Kind: a.Kind, Wish: a.Wish, Actor: a.Actor, Asked: a.Asked, State: move.Asked}
			return
		}
		err = errors.New("it was broken off when the daemon ended, and the source has gone on: ask again")
	}
	a.Ended, a.State, a.CopyWaits = now.UTC(), move.Passed, ""
	switch {
	case err != nil:
		a.State, a.Problem = move.Failed, reason(err)
	case a.Kind == move.Cutover:
		a.State = move.Moved
	}
}

// reason is an error for people, with what to do about it.
func reason(err error) string {
	text := err.Error()
	if e, ok := errors.AsType[*gpu.Error](err); ok && e.Hint != "" {
		text += "; " + e.Hint
	}
	return report.CleanString(text)
}

// limit is for how long the source may be at rest.
func (t *try) limit() time.Duration {
	if t.wish.Limit > 0 {
		return time.Duration(t.wish.Limit) * time.Second
	}
	if t.rec.AtRest() {
		return move.MaxLimit // nobody waits for it to go on
	}
	if t.rec.Plan.DowntimeSeconds > 0 {
		return time.Duration(t.rec.Plan.DowntimeSeconds * float64(time.Second))
	}
	return move.DefaultDowntime
}

// still has the source at rest while something is done, within the limit; it goes on when
// that has returned, whatever came of it. In an error of it the source runs already or is
// about to: it wakes by itself.
func (t *try) still(ctx context.Context, do func(ctx context.Context, f *freeze.Client) error) error {
	limit := t.limit()
	if err := t.same(ctx); err != nil {
		return err
	}
	conn, err := t.open(ctx, "freeze")
	if err != nil {
		return err
	}
	asking, done := context.WithTimeout(ctx, time.Minute)
	f, err := freeze.Connect(asking, conn)
	done()
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // the source wakes when it is closed
	if facts := f.Facts(); facts.HungTaskPanic && limit > time.Duration(facts.HungTaskSeconds)*time.Second/2 {
		return gpu.Errorf(gpu.CodeConflict, "cannot bring the source to rest for %s: its kernel panics when a program waits for %d s", limit, facts.HungTaskSeconds).
			WithHint("set kernel.hung_task_panic=0 there meanwhile, or allow less: --limit")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, gpu.Errorf(gpu.CodeConflict, "the source was at rest for %s, which is the limit", limit).
		WithHint("allow more with --limit, or rehearse what takes so long"))
	defer cancel()
	if err := t.note(func(a *move.Attempt) { a.AtRest = t.m.cfg.Now().UTC() }); err != nil {
		return err
	}
	defer func() { // it may have ended by then
		_, err := t.m.update(t.rec.Name, func(r *move.Record) {
			if a := r.Last(t.kind); a != nil {
				a.Rest = t.m.cfg.Now().Sub(a.AtRest).Seconds()
			}
		})
		if err != nil {
			t.task.Logf("%v", err)
		}
	}()
	if err := t.hold(ctx); err != nil {
		return err
	}
	defer t.letGo()
	if err := f.Freeze(ctx, limit, t.wish.Stop); err != nil {
		return because(ctx, err)
	}
	err = do(ctx, f)
	if errors.Is(err, errFenced) || t.rec.Fence != move.FenceNone {
		return err // off, or nobody knows: where the order did not arrive it wakes when it is closed
	}
	waking, done := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer done()
	if thawErr := f.Thaw(waking); thawErr != nil {
		t.task.Logf("the source was not woken, and wakes by itself: %v", thawErr)
		t.lost = gpu.Wrap(thawErr, gpu.CodeUnavailable, "cannot go on with the source")
	}
	return because(ctx, err)
}

// because is why something failed: that its time was over, if it was.
func because(ctx context.Context, err error) error {
	if err != nil && context.Cause(ctx) != nil {
		return context.Cause(ctx)
	}
	return err
}

// looks is how often it is looked whether the source has come to rest: md writes its metadata
// a moment after the last write.
const looks = 5

// lastPass copies what was written until the source came to rest, and makes sure that nothing
// is written any more. Without a client, the source runs.
func (t *try) lastPass(ctx context.Context, f *freeze.Client) error {
	if err := t.phase("last pass"); err != nil {
		return err
	}
	if f == nil {
		return t.round(ctx)
	}
	before, err := f.Quiet(ctx)
	if err != nil {
		return err
	}
	for range looks {
		// What was written before this pass is known to have been, and it copies that.
		if err := t.round(ctx); err != nil {
			return err
		}
		if t.wish.Verify {
			if err := t.phase("comparing all of the disks"); err != nil {
				return err
			}
			began := t.m.cfg.Now()
			if err := t.compare(ctx); err != nil {
				return err
			}
			if err := t.note(func(a *move.Attempt) { a.Comparison += t.m.cfg.Now().Sub(began).Seconds() }); err != nil {
				return err
			}
		}
		now, err := f.Quiet(ctx)
		if err != nil {
			return err
		}
		if t.quiet = now; slices.Equal(before, now) {
			return nil
		}
		before = now
	}
	return restless(before)
}

// restless is the error of a source on which something is written though it is frozen.
func restless(written []freeze.Written) error {
	var where []string
	for _, w := range written {
		where = append(where, fmt.Sprintf("%d bytes to %s", w.Bytes, w.Device))
	}
	return gpu.Errorf(gpu.CodeConflict, "the source is not at rest, though its filesystems are frozen: %s were written", strings.Join(where, ", ")).
		WithHint("stop what writes to it past any filesystem, or to one that cannot be frozen: --stop-service")
}

// broken clears up what an earlier call, or an earlier daemon, left in the middle. The error is
// errFenced where the source was powered off.
func (m *Migrations) broken(ctx context.Context, t *operation.Task, rec move.Record) error {
	switch rec.Fence {
	case move.FenceOff:
		return errFenced
	case move.FenceAsked:
		return m.resolve(ctx, t, rec)
	case move.FenceNone:
	}
	// First: nothing is asked for that would be taken for what was broken off.
	if _, err := m.update(rec.Name, func(r *move.Record) {
		r.Forecast = nil
		if a := r.Pending(); a != nil && (a.State == move.Running || !a.Wish.WhenReady) {
			finish(a, m.cfg.Now(), fmt.Errorf("it was broken off, and the source has gone on: ask again"))
		}
	}); err != nil {
		return err
	}
	return m.strike(ctx, rec)
}
