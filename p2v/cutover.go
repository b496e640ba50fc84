package p2v

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/block"
	"gpuvirt/p2v/freeze"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
)

// cutOver brings the source to rest, copies what is left, makes the VM's disks, and powers
// the source off. Until then all of it can be taken back, and is where something fails: the
// source goes on as if nothing had been.
func (t *try) cutOver(ctx context.Context) error {
	if err := t.m.reserved(ctx, t.rec); err != nil {
		return err
	}
	if err := t.off(ctx); err != nil {
		return err
	}
	t.baseline(ctx) // for as long as the source takes: nobody else waits for that
	release, err := t.converter(ctx)
	if err != nil {
		return err
	}
	defer release()
	return t.still(ctx, func(ctx context.Context, f *freeze.Client) error {
		err := t.lastPass(ctx, f)
		if err == nil {
			err = t.convert(ctx, t.m.making)
		}
		if err == nil {
			err = t.fence(ctx, f)
		}
		if err != nil && !errors.Is(err, errFenced) && t.rec.Fence == move.FenceNone {
			err = errors.Join(err, t.m.removeOverlays(t.rec))
		}
		return err
	})
}

// fence powers the source off. What comes after the order is known to have arrived cannot be
// taken back.
func (t *try) fence(ctx context.Context, f *freeze.Client) error {
	if err := t.same(ctx); err != nil { // as the next, with what to do about it
		return err
	}
	// It is at rest still, and was all the time.
	now, err := f.Quiet(ctx)
	switch {
	case err != nil:
		return err
	case !slices.Equal(now, t.quiet):
		return restless(now)
	}
	if err := t.m.reserved(ctx, t.rec); err != nil { // nobody has changed it since
		return err
	}
	if t.rec.AtRest() {
		return t.taken(ctx)
	}
	if err := t.phase("powering the source off"); err != nil {
		return err
	}
	if err := t.fenced(move.FenceAsked, f.Facts().BootID); err != nil {
		return err
	}
	if cause := context.Cause(ctx); cause != nil { // that somebody does not want it any more, last of all
		return errors.Join(t.fenced(move.FenceNone, ""), cause)
	}
	ordered, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	err = f.PowerOff(ordered)
	cancel()
	if err != nil {
		if _, unsure := errors.AsType[*freeze.UnsureError](err); !unsure {
			return errors.Join(err, t.fenced(move.FenceNone, ""))
		}
		t.lost = t.doubt(err)
		return t.lost
	}
	waiting, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.m.cfg.Patience.Off)
	defer cancel()
	if !t.m.away(waiting, t.task, t.rec) {
		t.lost = t.doubt(errors.New("it was told to power off, and still answers"))
		return t.lost
	}
	if err := t.fenced(move.FenceOff, t.rec.BootID); err != nil {
		return err
	}
	if err := t.ended(nil); err != nil {
		t.task.Logf("%v", err)
	}
	return errFenced
}

func (t *try) fenced(as move.Fence, boot string) error {
	rec, err := t.m.update(t.rec.Name, func(r *move.Record) {
		r.Fence, r.BootID = as, boot
		if r.Comes() && t.came != nil {
			r.CameFrom = t.came.server.From
		}
	})
	if err == nil {
		t.rec = rec
	}
	return err
}

// doubt has a person look: the source may be off, or not.
func (t *try) doubt(err error) error { return doubt(t.rec, err) }

func doubt(rec move.Record, err error) error {
	start := "start it"
	if rec.Comes() {
		start = "start the conversion in virt-p2v there again"
	}
	return fmt.Errorf("it is not known whether the source is off: %w. Make sure that it is, and has not gone on since, and say so (gpuvirt migrate fenced %s); or %s, and retry: then it is copied on", err, rec.Name, start)
}

// answerLimit is how long a source may take that is asked whether it is there.
const answerLimit = 3 * time.Second

// away waits until the source does not answer any more. One that hangs does: its kernel takes
// the connection, and it may go on.
func (m *Migrations) away(ctx context.Context, t *operation.Task, rec move.Record) bool {
	again := time.NewTicker(min(m.cfg.Patience.Pause, 500*time.Millisecond))
	defer again.Stop()
	for {
		trying, cancel := context.WithTimeout(ctx, answerLimit)
		server, err := m.cfg.Dial(trying, rec.Source)
		cancel()
		if err == nil {
			_ = server.Close()
		}
		switch {
		case ctx.Err() != nil:
			return false
		case errors.Is(err, report.ErrSilent):
			return true
		case err != nil:
			t.Logf("the source still answers: %v", err)
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return false
		}
	}
}

// resolve finds out what became of a source that was told to power off.
func (m *Migrations) resolve(ctx context.Context, t *operation.Task, rec move.Record) error {
	ctx, stop := undrained(ctx, t)
	defer stop()
	if rec.Comes() {
		if err := m.unseen(ctx, rec); err != nil {
			return err
		}
		return m.runs(ctx, t, rec)
	}
	server, err := m.cfg.Dial(ctx, rec.Source)
	off := false
	if err == nil {
		if err := server.Close(); err != nil {
			t.Logf("%v", err)
		}
		// What it was told may still be under way.
		waiting, cancel := context.WithTimeout(ctx, m.cfg.Patience.Off)
		off = m.away(waiting, t, rec)
		cancel()
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if off || passing(err) {
		return &operation.WaitError{Reason: doubt(rec, errors.New("it does not answer")).Error()}
	}
	if err != nil {
		return err
	}
	return m.runs(ctx, t, rec)
}

// runs goes on with a source that is not off.
func (m *Migrations) runs(ctx context.Context, t *operation.Task, rec move.Record) error {
	t.Logf("the source runs: it was not powered off, or was started again")
	if err := m.strike(ctx, rec); err != nil {
		return err
	}
	_, err := m.update(rec.Name, func(r *move.Record) {
		r.Fence, r.BootID, r.Forecast = move.FenceNone, "", nil
		if a := r.Pending(); a != nil {
			finish(a, m.cfg.Now(), errors.New("the source runs: it was not powered off, or was started again"))
		}
	})
	return err
}

// compare reads all of the disks, on both sides.
func (t *try) compare(ctx context.Context) error {
	for _, d := range t.rec.Disks {
		if err := t.compareDisk(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

func (t *try) compareDisk(ctx context.Context, d move.Disk) error {
	mirror, err := t.mirror(d)
	if err != nil {
		return err
	}
	defer mirror.Close() //nolint:errcheck // it is only read
	tell, over := t.m.passing(t.task, t.rec.Name, d.Name)
	v, err := block.Verify(ctx, mirror, t.called(d.Name), block.Options{
		Dial: t.dial, Keep: t.keep,
		Connections: t.connections(), Limit: t.m.limit(t.rec.Name), Patience: t.m.cfg.Patience.Cut,
		Progress: tell,
	})
	over()
	if err != nil || len(v.Differ) > 0 {
		t.fresh[d.Name] = false // nobody tells of what differs: the next pass looks at all
	}
	if err != nil {
		return err
	}
	if len(v.Differ) > 0 {
		return gpu.Errorf(gpu.CodeConflict, "the mirror of %s is not as the disk is: it differs in %s", d.Name, assess.Count(len(v.Differ), "part", "parts")).
			WithHint("sync it, and try again: those are copied anew")
	}
	return nil
}

// spec says which mirror is that of a disk.
func (m *Migrations) spec(rec move.Record, d move.Disk) block.Spec {
	path := filepath.Join(m.folder(rec.Name), d.Name)
	return block.Spec{Path: path + ".raw", Map: path + ".map", ID: d.ID, Size: int64(d.Size)} //nolint:gosec // report.Check and the kernel bound it
}
