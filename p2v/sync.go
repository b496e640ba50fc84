package p2v

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/block"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/track"
)

// syncArgs are the arguments of migration.sync.
type syncArgs struct {
	Name string `json:"name"`
}

// A stay is one connection to the source: the disks are passed over again and again, for as
// long as it holds. While it does, a tracker on the source tells what was written, where its
// kernel can; a new connection begins with a look at all.
type stay struct {
	m       *Migrations
	task    *operation.Task
	rec     move.Record
	server  Server
	program []string // the inspector, as it is called there
	tracker *track.Client
	// fresh has the disks that were passed over in this stay: of those the tracker tells what
	// was written since.
	fresh map[string]bool
}

// doSync copies the disks again and again. It does not come to an end by itself: the source
// runs, so there is always more; somebody ends the move.
func (m *Migrations) doSync(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var args syncArgs
	if err := t.Args(&args); err != nil {
		return nil, unclean(err)
	}
	rec, err := m.stay(ctx, t, args.Name)
	heard := heardOf(rec)
	switch {
	case context.Cause(ctx) != nil:
		return nil, unclean(context.Cause(ctx))
	case errors.Is(err, errDraining):
		return nil, &operation.RetryError{After: m.cfg.Patience.Pause, Err: err}
	case passing(err) && m.cfg.Now().Sub(heard) < m.cfg.Patience.Sync:
		if err := m.unready(args.Name); err != nil {
			t.Logf("%v", err)
		}
		return nil, &operation.RetryError{After: m.cfg.Patience.Pause, Err: err}
	case passing(err):
		return nil, &operation.WaitError{Reason: fmt.Sprintf("the source has not been heard of since %s (%v): retry when it is there again, or roll back",
			heard.UTC().Format(time.RFC3339), err)}
	}
	return nil, &operation.WaitError{Reason: err.Error()}
}

// unready forgets what the last pass would take: the source has gone, and nobody tells what it
// writes meanwhile.
func (m *Migrations) unready(name string) error {
	m.saving.Lock()
	defer m.saving.Unlock()
	rec, err := m.cfg.Store.MigrationRecord(name)
	if err != nil || rec.Forecast == nil {
		return err
	}
	rec.Forecast = nil
	return m.cfg.Store.Apply(operation.Put(move.RecordMigration, name, rec))
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
	m.cfg.sweep(ctx, t, rec.Source)
	// Not with the step's end: who changes the pace looks whether it has ended, and writes.
	m.saving.Lock()
	defer m.saving.Unlock()
	if rec, err = m.cfg.Store.MigrationRecord(args.Name); err != nil {
		return nil, err
	}
	rec.Ended, rec.Forecast = move.PhaseRolledBack, nil
	return nil, m.cfg.Store.Apply(operation.Put(move.RecordMigration, rec.Name, rec))
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

// stay reaches the source and copies until it cannot go on. The record that it returns has
// what was done; the error is never nil.
func (m *Migrations) stay(ctx context.Context, t *operation.Task, name string) (move.Record, error) {
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
	s := &stay{m: m, task: t, rec: rec, fresh: map[string]bool{}}
	err = s.run(ctx)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return s.rec, err
}

func (s *stay) run(ctx context.Context) error {
	if err := makeFolders(s.m.cfg.Storage, s.rec.Name); err != nil {
		return err
	}
	server, err := s.m.cfg.Dial(ctx, s.rec.Source)
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	s.server = server
	program, err := s.m.cfg.Open()
	if err != nil {
		return err
	}
	defer program.Close() //nolint:errcheck // it was only read
	id := s.task.Operation().ID
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := server.Unplace(ctx, id); err != nil {
			s.task.Logf(leftThere, err)
		}
	}()
	folder, err := place(ctx, server, id, program)
	if err != nil {
		return err
	}
	s.program = []string{folder + "/gpuvirt", "p2v"}
	if s.rec.Source.Sudo {
		s.program = append([]string{"sudo", "-n", "--"}, s.program...)
	}
	if err := s.heard(); err != nil {
		return err
	}
	s.track(ctx)
	defer s.untrack()
	for {
		asked, forget := s.m.now.raised(s.rec.Name)
		err := s.round(ctx)
		if err == nil {
			err = s.rest(ctx, asked)
		}
		forget()
		if err != nil {
			return err
		}
	}
}

// rest waits until it is time for the next pass, or somebody asks for it.
func (s *stay) rest(ctx context.Context, asked <-chan struct{}) error {
	next := time.NewTimer(pause(s.rec.Copy))
	defer next.Stop()
	select {
	case <-next.C:
	case <-asked:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return s.save() // what somebody has changed counts from now on
}

// open starts a program of ours on the source that works with the disks.
func (s *stay) open(ctx context.Context, verb string, args ...string) (io.ReadWriteCloser, error) {
	words := append(slices.Clone(s.program), verb)
	words = append(words, args...)
	for _, d := range s.rec.Disks {
		words = append(words, "--disk", d.Name)
	}
	return s.server.Open(ctx, words[0], words[1:]...)
}

// track has the source tell what is written from now on, where it can.
func (s *stay) track(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := s.open(ctx, "track", "--chunk-bytes", strconv.Itoa(block.DefaultChunkSize))
	if err == nil {
		s.tracker, err = track.Connect(ctx, conn, block.DefaultChunkSize)
	}
	if err != nil {
		s.task.Logf("what changes is found by reading the disks: %v", err)
		return
	}
	s.task.Logf("the source tells what is written to its disks")
}

func (s *stay) untrack() {
	if s.tracker != nil {
		_ = s.tracker.Close()
		s.tracker = nil
	}
}

// round passes over all disks once.
func (s *stay) round(ctx context.Context) error {
	for i := range s.rec.Disks {
		if err := s.disk(ctx, i); err != nil {
			return err
		}
	}
	return s.forecast()
}

// written are the chunks of a disk that a pass has to look at: nil where that is all of them.
func (s *stay) written(ctx context.Context, m *block.Mirror, disk string) []block.Range {
	if s.tracker == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ranges, err := s.tracker.Take(ctx, disk, m.Chunks())
	lost, is := errors.AsType[*track.LostError](err)
	switch {
	case err == nil && s.fresh[disk]:
		return append([]block.Range{}, ranges...)
	case err == nil: // of a pass that was not: it may have been before that
		return nil
	case !is || !lost.Again:
		s.untrack()
	}
	s.task.Logf("%s: all of it is read: %v", disk, err)
	return nil
}

// disk passes over one disk.
func (s *stay) disk(ctx context.Context, i int) error {
	d := s.rec.Disks[i]
	path := filepath.Join(s.m.folder(s.rec.Name), d.Name)
	mirror, err := block.OpenMirror(block.Spec{Path: path + ".raw", Map: path + ".map", ID: d.ID, Size: int64(d.Size)}) //nolint:gosec // report.Check and the kernel bound it
	if err != nil {
		return err
	}
	defer mirror.Close() //nolint:errcheck // a pass is durable when it has ended
	release, err := s.m.claims.claim(path+".raw", mirror)
	if err != nil {
		return err
	}
	defer release()                        // before it is closed
	only := s.written(ctx, mirror, d.Name) // before anything is read
	if only != nil && len(only) == 0 {
		only = []block.Range{{N: 1}} // and so it is made sure of that it is this disk still
	}
	pulling, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	pass, err := block.Pull(pulling, mirror, d.Name, block.Options{
		Dial:        func(ctx context.Context) (io.ReadWriteCloser, error) { return s.open(ctx, "serve") },
		Connections: s.rec.Copy.Connections, Compress: s.rec.Copy.Compress, Limit: s.m.limit(s.rec.Name), Only: only,
		Progress: func(p block.Progress) {
			s.task.Progress(p.Done, p.Total)
			if err := s.m.claims.check(path+".raw", mirror); err != nil {
				stop(err)
			}
		},
		// The connections are ours to make again: where the server is gone they all are.
		Patience: 30 * time.Second,
	})
	s.fresh[d.Name] = err == nil
	s.rec.Disks[i].Add(move.Pass{
		Started: pass.Started.UTC(), Seconds: pass.Duration.Seconds(), Bytes: count(pass.Bytes), Written: count(pass.Written),
		Sent: count(pass.Sent), Complete: err == nil, Tracked: only != nil,
	})
	if err == nil {
		s.task.Logf("%s: %d of %d bytes had changed, %d came over the network, in %s", d.Name, pass.Written, pass.Bytes, pass.Sent, pass.Duration.Round(time.Millisecond))
	}
	if saveErr := s.heard(); err == nil {
		err = saveErr
	}
	if errors.Is(err, block.ErrNoProgress) {
		err = gpu.Wrap(err, gpu.CodeUnavailable, "cannot go on copying")
	}
	return err
}

func count(n int64) uint64 { return uint64(max(0, n)) }

// forecast works out what the last pass over all disks would take.
func (s *stay) forecast() error {
	budget := s.rec.Plan.DowntimeSeconds
	if budget <= 0 {
		budget = move.DefaultDowntime.Seconds()
	}
	sum := move.Forecast{BudgetSeconds: budget, Converges: true}
	for _, d := range s.rec.Disks {
		var passes []block.Pass
		for _, p := range d.Passes {
			if p.Complete && p.Tracked == d.Passes[len(d.Passes)-1].Tracked {
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
	s.rec.Forecast = &sum
	return s.save()
}

// heard stores that the source was heard of.
func (s *stay) heard() error {
	s.rec.Heard = s.m.cfg.Now().UTC()
	return s.save()
}

// save stores what was done. How it is to be copied is what somebody may have changed since.
func (s *stay) save() error {
	s.m.saving.Lock()
	defer s.m.saving.Unlock()
	stored, err := s.m.cfg.Store.MigrationRecord(s.rec.Name)
	if err != nil {
		return err
	}
	s.rec.Copy = stored.Copy
	return s.m.cfg.Store.Apply(operation.Put(move.RecordMigration, s.rec.Name, s.rec))
}
