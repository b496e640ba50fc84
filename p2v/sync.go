package p2v

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/block"
	"gpuvirt/p2v/move"
)

// syncArgs are the arguments of migration.sync.
type syncArgs struct {
	Name string `json:"name"`
}

// A round is one look at all disks of a move: the source is reached, each disk is passed
// over once, and the source is left.
type round struct {
	m    *Migrations
	task *operation.Task
	rec  move.Record
}

// doSync copies the disks again and again. It does not come to an end by itself: the source
// runs, so there is always more; somebody ends the move.
func (m *Migrations) doSync(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var args syncArgs
	if err := t.Args(&args); err != nil {
		return nil, unclean(err)
	}
	for {
		asked, forget := m.now.raised(args.Name)
		rec, err := m.round(ctx, t, args.Name)
		switch {
		case context.Cause(ctx) != nil:
			return nil, unclean(context.Cause(ctx))
		case errors.Is(err, errDraining):
			return nil, &operation.RetryError{After: m.cfg.Patience.Pause, Err: err}
		case passing(err) && m.cfg.Now().Sub(heardOf(rec)) < m.cfg.Patience.Sync:
			return nil, &operation.RetryError{After: m.cfg.Patience.Pause, Err: err}
		case passing(err):
			return nil, &operation.WaitError{Reason: fmt.Sprintf("the source has not been heard of since %s (%v): retry when it is there again, or roll back",
				heardOf(rec).UTC().Format(time.RFC3339), err)}
		case err != nil:
			return nil, &operation.WaitError{Reason: err.Error()}
		}
		next := time.NewTimer(pause(rec.Copy))
		select {
		case <-next.C:
		case <-asked:
		case <-t.Draining():
			err = errDraining
		case <-ctx.Done():
		}
		next.Stop()
		forget()
		if err != nil {
			return nil, &operation.RetryError{After: m.cfg.Patience.Pause, Err: err}
		}
	}
}

func unclean(err error) error { return &operation.UncleanError{Err: err} }

func heardOf(r move.Record) time.Time {
	if r.Heard.IsZero() {
		return r.Created
	}
	return r.Heard
}

// undoSync takes away the mirrors, and what may be left in the source's memory if that can be
// reached.
func (m *Migrations) undoSync(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var args syncArgs
	if err := t.Args(&args); err != nil {
		return nil, err
	}
	rec, err := m.cfg.Store.MigrationRecord(args.Name)
	if err != nil {
		return nil, err
	}
	if err := m.discard(rec); err != nil {
		return nil, gpu.Errorf(gpu.CodeUnavailable, "cannot remove the mirrors of migration %q: %w", rec.Name, err)
	}
	server, err := m.cfg.Dial(ctx, rec.Source)
	if err == nil {
		err = errors.Join(server.Unplace(ctx, t.Operation().ID), server.Close())
	}
	if err != nil {
		t.Logf(leftThere, err)
	}
	rec.Ended, rec.Forecast = move.PhaseRolledBack, nil
	return []operation.Row{operation.Put(move.RecordMigration, rec.Name, rec)}, nil
}

// discard removes the files of a move that we know, and then its folder: what somebody else
// put there is in the way, and stays.
func (m *Migrations) discard(rec move.Record) error {
	root, err := os.OpenRoot(m.cfg.Storage)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // only looked at
	var errs []error
	for _, d := range rec.Disks {
		for _, name := range []string{d.Name + ".raw", d.Name + ".map"} {
			if err := root.Remove(filepath.Join(rec.Name, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	if err := root.Remove(rec.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// round passes over all disks once. The record that it returns has what was done, also with
// an error.
func (m *Migrations) round(ctx context.Context, t *operation.Task, name string) (move.Record, error) {
	rec, err := m.cfg.Store.MigrationRecord(name)
	if err != nil {
		return rec, err
	}
	m.limit(name).Set(int64(rec.Copy.Bandwidth)) //nolint:gosec // Check bounds it
	ctx, cancel := context.WithCancelCause(ctx)
	watcher := make(chan struct{})
	go func() {
		defer close(watcher)
		select {
		case <-ctx.Done():
		case <-t.Draining():
			cancel(errDraining)
		}
	}()
	defer func() { cancel(nil); <-watcher }()
	r := &round{m: m, task: t, rec: rec}
	err = r.run(ctx)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return r.rec, err
}

func (r *round) run(ctx context.Context) error {
	if err := os.MkdirAll(r.m.folder(r.rec.Name), 0o700); err != nil {
		return err
	}
	server, err := r.m.cfg.Dial(ctx, r.rec.Source)
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	program, err := r.m.cfg.Open()
	if err != nil {
		return err
	}
	defer program.Close() //nolint:errcheck // it was only read
	id := r.task.Operation().ID
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := server.Unplace(ctx, id); err != nil {
			r.task.Logf(leftThere, err)
		}
	}()
	folder, err := server.Place(ctx, id, program, program.Size())
	if err != nil {
		return err
	}
	if err := r.heard(); err != nil {
		return err
	}
	words := []string{folder + "/gpuvirt", "p2v", "serve"}
	if r.rec.Source.Sudo {
		words = append([]string{"sudo", "-n", "--"}, words...)
	}
	for _, d := range r.rec.Disks {
		words = append(words, "--disk", d.Name)
	}
	dial := func(ctx context.Context) (io.ReadWriteCloser, error) { return server.Open(ctx, words[0], words[1:]...) }
	for i := range r.rec.Disks {
		if err := r.disk(ctx, i, dial); err != nil {
			return err
		}
	}
	return r.forecast()
}

// disk passes over one disk.
func (r *round) disk(ctx context.Context, i int, dial func(context.Context) (io.ReadWriteCloser, error)) error {
	d := r.rec.Disks[i]
	path := filepath.Join(r.m.folder(r.rec.Name), d.Name)
	mirror, err := block.OpenMirror(block.Spec{Path: path + ".raw", Map: path + ".map", ID: d.ID, Size: int64(d.Size)}) //nolint:gosec // report.Check and the kernel bound it
	if err != nil {
		return err
	}
	defer mirror.Close() //nolint:errcheck // a pass is durable when it has ended
	if err := mirror.CheckSpace(); err != nil {
		return err
	}
	pass, err := block.Pull(ctx, mirror, d.Name, block.Options{
		Dial: dial, Connections: r.rec.Copy.Connections, Compress: r.rec.Copy.Compress, Limit: r.m.limit(r.rec.Name),
		Progress: func(p block.Progress) { r.task.Progress(p.Done, p.Total) },
		// The connections are ours to make again: where the server is gone they all are.
		Patience: 30 * time.Second,
	})
	r.rec.Disks[i].Add(move.Pass{
		Started: pass.Started.UTC(), Seconds: pass.Duration.Seconds(), Bytes: count(pass.Bytes), Written: count(pass.Written),
		Sent: count(pass.Sent), Complete: err == nil,
	})
	if err == nil {
		r.task.Logf("%s: %d of %d bytes had changed, %d came over the network, in %s", d.Name, pass.Written, pass.Bytes, pass.Sent, pass.Duration.Round(time.Millisecond))
	}
	if saveErr := r.heard(); err == nil {
		err = saveErr
	}
	if errors.Is(err, block.ErrNoProgress) {
		err = gpu.Wrap(err, gpu.CodeUnavailable, "cannot go on copying")
	}
	return err
}

func count(n int64) uint64 { return uint64(max(0, n)) }

// forecast works out what the last pass over all disks would take.
func (r *round) forecast() error {
	budget := r.rec.Plan.DowntimeSeconds
	if budget <= 0 {
		budget = move.DefaultDowntime.Seconds()
	}
	sum := move.Forecast{BudgetSeconds: budget, Converges: true}
	for _, d := range r.rec.Disks {
		var passes []block.Pass
		for _, p := range d.Passes {
			if p.Complete {
				passes = append(passes, block.Pass{
					Started: p.Started, Duration: time.Duration(p.Seconds * float64(time.Second)),
					Bytes: int64(p.Bytes), Written: int64(p.Written), Sent: int64(p.Sent), //nolint:gosec // they came of such
				})
			}
		}
		// One disk after the other: the times add up.
		f := block.Project(passes, time.Duration(budget*float64(time.Second)))
		sum.FinalSeconds += f.Final.Seconds()
		if f.Settled < 0 || sum.SettledSeconds < 0 {
			sum.SettledSeconds = -1
		} else {
			sum.SettledSeconds += f.Settled.Seconds()
		}
	}
	sum.Fits = sum.FinalSeconds <= budget
	sum.Converges = sum.SettledSeconds >= 0 && sum.SettledSeconds <= budget
	r.rec.Forecast = &sum
	return r.save()
}

// heard stores that the source was heard of.
func (r *round) heard() error {
	r.rec.Heard = r.m.cfg.Now().UTC()
	return r.save()
}

// save stores what was done. How it is to be copied is what somebody may have changed since.
func (r *round) save() error {
	r.m.saving.Lock()
	defer r.m.saving.Unlock()
	stored, err := r.m.cfg.Store.MigrationRecord(r.rec.Name)
	if err != nil {
		return err
	}
	r.rec.Copy = stored.Copy
	return r.m.cfg.Store.Apply(operation.Put(move.RecordMigration, r.rec.Name, r.rec))
}
