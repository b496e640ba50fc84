package p2v

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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
	// names are what the source calls the disks, by the names that these have here.
	names   map[string]string
	tracker *track.Client
	// held are connections to what serves the disks, that were made before it is frozen: a new
	// one may take what is frozen.
	held chan io.ReadWriteCloser
	// fresh has the disks that were passed over in this stay: of those the tracker tells what
	// was written since.
	fresh map[string]bool
	// ahead is set where the mirrors are to stay as they are: what has changed is kept beside them.
	ahead bool
}

// doSync copies the disks again and again, as the source runs and there is always more, until
// somebody has it cut over: it ends when the source is off.
func (m *Migrations) doSync(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	rec, err := m.record(t)
	if err != nil {
		return nil, unclean(err)
	}
	name := rec.Name
	if err = m.broken(ctx, t, rec); err == nil {
		rec, err = m.stay(ctx, t, name)
	}
	heard := heardOf(rec)
	switch {
	case errors.Is(err, errFenced):
		return nil, nil // from here on there is only the VM
	case context.Cause(ctx) != nil:
		return nil, unclean(context.Cause(ctx))
	case errors.Is(err, errDraining):
		return nil, &operation.RetryError{After: m.cfg.Patience.Pause, Err: err}
	case passing(err) && m.cfg.Now().Sub(heard) < m.cfg.Patience.Sync:
		if err := m.unready(name, err); err != nil {
			t.Logf("%v", err)
		}
		return nil, &operation.RetryError{After: m.cfg.Patience.Pause, Err: err}
	case passing(err):
		return nil, &operation.WaitError{Reason: fmt.Sprintf("the source has not been heard of since %s (%v): retry when it is there again, or roll back",
			heard.UTC().Format(time.RFC3339), err)}
	}
	return nil, &operation.WaitError{Reason: reason(err)}
}

// unready forgets what a cut-over would take: the source has gone, and nobody tells what it
// writes meanwhile. What was asked for, and does not wait until it is ready, is not begun.
func (m *Migrations) unready(name string, why error) error {
	_, err := m.update(name, func(r *move.Record) {
		r.Forecast = nil
		if a := r.Pending(); a != nil && a.State == move.Asked && !a.Wish.WhenReady {
			finish(a, m.cfg.Now(), why)
		}
	})
	return err
}

// record is the move that a step works on.
func (m *Migrations) record(t *operation.Task) (move.Record, error) {
	var args syncArgs
	if err := t.Args(&args); err != nil {
		return move.Record{}, err
	}
	return m.cfg.Store.MigrationRecord(args.Name)
}

// update changes what is kept of a move, as it is then; a change that changes nothing is not
// written.
func (m *Migrations) update(name string, change func(*move.Record)) (move.Record, error) {
	m.saving.Lock()
	defer m.saving.Unlock()
	rec, err := m.cfg.Store.MigrationRecord(name)
	if err != nil {
		return rec, err
	}
	before, err := json.Marshal(rec)
	if err != nil {
		return rec, err
	}
	change(&rec)
	rec.Weigh()
	row := operation.Put(move.RecordMigration, name, rec)
	if bytes.Equal(before, row.Value) {
		return rec, nil
	}
	if err = m.cfg.Store.Apply(row); err == nil {
		m.notice(name)
	}
	return rec, err
}

// end tells that a move has ended, and for what, where nobody has asked for it.
func (m *Migrations) end(name string, as move.Phase, because string) error {
	_, err := m.update(name, func(r *move.Record) {
		r.Settle(move.TakenBack)
		r.Ended, r.Why, r.Forecast, r.Reservation = as, because, nil, nil
	})
	if err == nil {
		m.drop(name) // nobody gives any more
	}
	return err
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
	rec, err := m.record(t)
	if err != nil {
		return nil, err
	}
	if err := m.strike(ctx, rec); holdsUp(err) { // nothing of it has a disk open
		return nil, &operation.RetryError{After: m.cfg.Patience.Pause, Err: err}
	} else if err != nil {
		return nil, err
	}
	if err := m.discard(rec); err != nil {
		return nil, gpu.Wrap(err, gpu.CodeUnavailable, "cannot remove the mirrors of migration %q", rec.Name).
			WithHint("mend that, or remove what is in the way; then: gpuvirt migrate retry %s", rec.Name)
	}
	switch {
	case rec.AtRest(): // nothing was ever put there
	case rec.Fence == move.FenceNone:
		m.cfg.sweep(ctx, t, rec.Source)
	default:
		t.Logf("the source was powered off: start it again")
	}
	if rec.VM != nil {
		return nil, nil // there is a step before this one
	}
	// Not with the step's end: who changes the pace looks whether it has ended, and writes.
	return nil, m.end(rec.Name, move.PhaseRolledBack, why(t.Operation()))
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
	var names []string
	for _, path := range m.written(rec) {
		names = append(names, filepath.Base(path))
	}
	for _, d := range rec.Disks {
		s := m.spec(rec, d)
		for _, path := range []string{s.Path, s.Map, s.Ahead().Path, s.Ahead().Map} {
			names = append(names, filepath.Base(path))
		}
		for _, overlay := range m.overlays(rec.Name, d.Name) {
			names = append(names, filepath.Base(overlay), filepath.Base(overlay)+".new")
		}
	}
	errs := []error{root.RemoveAll(filepath.Join(rec.Name, logs))}
	for _, name := range names {
		if err := root.Remove(filepath.Join(rec.Name, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := inTheWay(root, rec.Name); err != nil {
		return err
	}
	if err := root.Remove(rec.Name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// inTheWay names what is left in a folder that is to go: nobody here has put it there.
func inTheWay(root *os.Root, folder string) error {
	const most = 5
	left, err := fs.ReadDir(root.FS(), folder)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(left) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	var names []string
	for _, e := range left[:min(len(left), most)] {
		name := e.Name()
		if e.IsDir() {
			name += "/"
		}
		names = append(names, strconv.Quote(name))
	}
	text, verb := names[0], "is"
	if more := len(left) - len(names); more > 0 {
		text, verb = fmt.Sprintf("%s and %d more", strings.Join(names, ", "), more), "are"
	} else if last := len(names) - 1; last > 0 {
		text, verb = strings.Join(names[:last], ", ")+" and "+names[last], "are"
	}
	return gpu.Errorf(gpu.CodeConflict, "%s in %q %s in the way, and not of the migration", text, filepath.Join(root.Name(), folder), verb)
}

// stay reaches the source and copies until it cannot go on. The record that it returns has
// what was done; the error is never nil.
func (m *Migrations) stay(ctx context.Context, t *operation.Task, name string) (move.Record, error) {
	rec, err := m.cfg.Store.MigrationRecord(name)
	if err != nil {
		return rec, err
	}
	m.limit(name).Set(int64(rec.Copy.Bandwidth)) //nolint:gosec // Check bounds it
	ctx, stop := undrained(ctx, t)
	defer stop()
	s := &stay{m: m, task: t, rec: rec, fresh: map[string]bool{}}
	err = s.run(ctx)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return s.rec, err
}

// undrained is a context that ends when the daemon is about to, with errDraining as its cause.
func undrained(ctx context.Context, t *operation.Task) (_ context.Context, stop func()) {
	return unless(ctx, t, nil, nil)
}

// unless is one that also ends when something is raised, with why as its cause.
func unless(ctx context.Context, t *operation.Task, raised <-chan struct{}, why error) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	watcher := make(chan struct{})
	go func() {
		defer close(watcher)
		select {
		case <-ctx.Done():
		case <-t.Draining():
			cancel(errDraining)
		case <-raised:
			cancel(why)
		}
	}()
	return ctx, func() { cancel(nil); <-watcher }
}

func (s *stay) run(ctx context.Context) error {
	if err := makeFolders(s.m.cfg.Storage, s.rec.Name); err != nil {
		return err
	}
	if err := s.fold(ctx); err != nil { // of a rehearsal that was broken off
		return err
	}
	server, err := s.m.reach(ctx, s.rec)
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
	if err := s.find(ctx); err != nil {
		return err
	}
	s.track(ctx)
	defer s.untrack()
	for {
		err := s.round(ctx)
		if err == nil {
			err = s.attempt(ctx)
		}
		if err == nil {
			err = s.fold(ctx)
		}
		asked, forget := s.m.now.raised(s.rec.Name) // since the pass began, but for what passes beside an attempt were
		tried, heard := s.m.tries.raised(s.rec.Name)
		if err == nil {
			err = s.rest(ctx, asked, tried)
		}
		forget()
		heard()
		if err != nil {
			return err
		}
	}
}

// rest waits until it is time for the next pass, or somebody asks for it, or for an attempt.
func (s *stay) rest(ctx context.Context, asked, tried <-chan struct{}) error {
	if err := s.save(); err != nil {
		return err
	}
	if s.rec.Forecast == nil || s.due() != nil {
		return nil // a pass is due: beside an attempt there was none, or that has been asked for already
	}
	next := time.NewTimer(pause(s.rec.Copy))
	defer next.Stop()
	select {
	case <-next.C:
	case <-asked:
	case <-tried:
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
		words = append(words, "--disk", s.called(d.Name))
	}
	return s.server.Open(ctx, words[0], words[1:]...)
}

// dial is a connection to what serves the disks.
func (s *stay) dial(ctx context.Context) (io.ReadWriteCloser, error) {
	select {
	case conn := <-s.held:
		return conn, nil
	default:
		return s.open(ctx, "serve")
	}
}

// mostHeld is how many connections are made before: sshd takes ten at once for all. The passes over
// all disks, one after the other, use them again and again.
const mostHeld = 6

// connections is how many a pass uses at once.
func (s *stay) connections() int {
	if s.held != nil {
		return cap(s.held)
	}
	return s.rec.Copy.Connections
}

// keep takes back a connection that was held.
func (s *stay) keep(conn io.ReadWriteCloser) {
	select {
	case s.held <- conn:
	default: // nil, or full
		_ = conn.Close()
	}
}

// hold makes connections for the passes to come.
func (s *stay) hold(ctx context.Context) error {
	n := min(s.rec.Copy.Connections, mostHeld)
	s.held = make(chan io.ReadWriteCloser, n)
	for range n {
		conn, err := s.open(ctx, "serve")
		if err != nil {
			s.letGo()
			return err
		}
		s.held <- conn
	}
	return nil
}

// letGo closes those that were not used.
func (s *stay) letGo() {
	for {
		select {
		case conn := <-s.held:
			_ = conn.Close()
		default:
			s.held = nil
			return
		}
	}
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
	if err := s.same(ctx); err != nil {
		return err
	}
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
	ranges, err := s.tracker.Take(ctx, s.called(disk), m.Chunks())
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
	mirror, err := s.mirror(d)
	if err != nil {
		return err
	}
	defer mirror.Close() //nolint:errcheck // a pass is durable when it has ended
	still, release, err := s.claim(d, mirror)
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
	tell, over := s.m.passing(s.task, s.rec.Name, d.Name)
	pass, err := block.Pull(pulling, mirror, s.called(d.Name), block.Options{
		Dial: s.dial, Keep: s.keep,
		Connections: s.connections(), Compress: s.rec.Copy.Compress, Limit: s.m.limit(s.rec.Name), Only: only,
		Progress: func(p block.Progress) {
			tell(p)
			if err := still(); err != nil {
				stop(err)
			}
		},
		// The connections are ours to make again: where the server is gone they all are.
		Patience: s.m.cfg.Patience.Cut,
	})
	over()
	s.fresh[d.Name] = err == nil
	s.rec.Disks[i].Add(move.Pass{
		Started: pass.Started.UTC(), Seconds: pass.Duration.Seconds(), Bytes: count(pass.Bytes), Written: count(pass.Written),
		Sent: count(pass.Sent), Complete: err == nil, Tracked: only != nil,
	})
	if err == nil {
		s.task.Logf("%s: %d of %d bytes had changed, %d came over the network, in %s", d.Name, pass.Written, pass.Bytes, pass.Sent, pass.Duration.Round(time.Millisecond))
	}
	told := s.heard
	if pass.Sent == 0 { // such passes may be tried again and again, beside a rehearsal
		told = s.save
	}
	if saveErr := told(); err == nil {
		err = saveErr
	}
	if errors.Is(err, block.ErrNoProgress) {
		err = gpu.Wrap(err, gpu.CodeUnavailable, "cannot go on copying")
	}
	return err
}

func count(n int64) uint64 { return uint64(max(0, n)) }

// forecast works out what the last pass over all disks would take; what else there is follows from what was
// tried.
func (s *stay) forecast() error {
	budget := s.rec.Plan.DowntimeSeconds
	if budget <= 0 {
		budget = move.DefaultDowntime.Seconds()
	}
	sum := move.Forecast{BudgetSeconds: budget, Conversion: move.Planned(s.m.cfg.policy())}
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
	s.rec.Forecast = &sum
	return s.save()
}

// heard stores that the source was heard of.
func (s *stay) heard() error {
	s.rec.Heard = s.m.cfg.Now().UTC()
	return s.save()
}

// save stores what was done. How it is to be copied, and what is to be tried, is what somebody
// may have changed since.
func (s *stay) save() error {
	rec, err := s.m.update(s.rec.Name, func(r *move.Record) {
		r.Disks, r.Heard, r.Forecast = s.rec.Disks, s.rec.Heard, s.rec.Forecast
		if l := r.Reservation; l != nil && l.Copied.IsZero() && r.Forecast != nil { // all was copied once
			l.Copied = r.Heard
			l.Renew(s.m.cfg.Now())
		}
	})
	if err == nil {
		s.rec = rec
	}
	return err
}
