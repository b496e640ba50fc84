package p2v_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
	"gpuvirt/store"
)

var errDead = errors.New("the daemon was killed")

// A life is that of a daemon, which may be killed at a write: from then on nothing of it does
// anything, and its connections are cut.
type life struct {
	ctx context.Context // ends with it
	end context.CancelFunc

	mu     sync.Mutex
	writes int
	at     int // the write at which it is killed; 0: at none
	stored bool
	told   func(operation.Operation)
}

// before has somebody told of each write of an operation, before that.
func (l *life) before(told func(operation.Operation)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told = told
}

func newLife(t *testing.T) *life {
	l := &life{}
	l.ctx, l.end = context.WithCancel(context.Background())
	t.Cleanup(l.end)
	return l
}

// kill has it killed at a write from now on, which is stored or lost.
func (l *life) kill(at int, stored bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writes, l.at, l.stored = 0, at, stored
}

// spare has it live on, if it does, and tells how often it has written: that are less writes than it
// would have been killed at.
func (l *life) spare() (writes int, lives bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at = 0
	return l.writes, l.ctx.Err() == nil
}

// wrote is how often it has written since.
func (l *life) wrote() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.writes
}

func (l *life) write(f func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return errDead
	}
	if l.writes++; l.writes != l.at {
		return f()
	}
	if l.stored {
		_ = f()
	}
	l.end()
	return errDead
}

type mortalStore struct {
	*store.Store
	l *life
}

func (s mortalStore) Apply(rows ...operation.Row) error {
	return s.l.write(func() error { return s.Store.Apply(rows...) })
}

func (s mortalStore) AddOperation(op operation.Operation, rows []operation.Row) error {
	return s.l.write(func() error { return s.Store.AddOperation(op, rows) })
}

func (s mortalStore) SaveOperation(op operation.Operation, rows []operation.Row) error {
	s.l.mu.Lock()
	told := s.l.told
	s.l.mu.Unlock()
	if told != nil {
		told(op)
	}
	return s.l.write(func() error { return s.Store.SaveOperation(op, rows) })
}

func (l *life) dials(dial func(context.Context, report.Source) (p2v.Server, error)) func(context.Context, report.Source) (p2v.Server, error) {
	return func(ctx context.Context, s report.Source) (p2v.Server, error) {
		if l.ctx.Err() != nil {
			return nil, errDead
		}
		server, err := dial(ctx, s)
		if err != nil {
			return nil, err
		}
		return mortalServer{server, l}, nil
	}
}

type mortalServer struct {
	p2v.Server
	l *life
}

func (s mortalServer) Open(ctx context.Context, program string, args ...string) (io.ReadWriteCloser, error) {
	conn, err := s.Server.Open(ctx, program, args...)
	if err == nil {
		context.AfterFunc(s.l.ctx, func() { _ = conn.Close() })
	}
	return conn, err
}

type mortalVMs struct {
	vms *vms
	l   *life
}

func (v mortalVMs) VM(ctx context.Context, uuid string) (out gpu.VM, err error) {
	err = whileAlive(v.l, func() error { out, err = v.vms.VM(ctx, uuid); return err })
	return out, err
}

func (v mortalVMs) Define(ctx context.Context, doc string) error {
	return whileAlive(v.l, func() error { return v.vms.Define(ctx, doc) })
}

func (v mortalVMs) Undefine(ctx context.Context, uuid, mark string) error {
	return whileAlive(v.l, func() error { return v.vms.Undefine(ctx, uuid, mark) })
}

func (v mortalVMs) Fits(ctx context.Context, doc string) error {
	return whileAlive(v.l, func() error { return v.vms.Fits(ctx, doc) })
}

func (v mortalVMs) Startable(ctx context.Context, uuid string) error {
	return whileAlive(v.l, func() error { return v.vms.Startable(ctx, uuid) })
}

func (v mortalVMs) Start(ctx context.Context, uuid string) error {
	return whileAlive(v.l, func() error { return v.vms.Start(ctx, uuid) })
}

func (v mortalVMs) StartTrial(ctx context.Context, uuid, mark string, t gpu.Trial) error {
	return whileAlive(v.l, func() error { return v.vms.StartTrial(ctx, uuid, mark, t) })
}

func (v mortalVMs) Stop(ctx context.Context, uuid string) error {
	return whileAlive(v.l, func() error { return v.vms.Stop(ctx, uuid) })
}

func (v mortalVMs) Agent(ctx context.Context, uuid, request string) (out string, err error) {
	err = whileAlive(v.l, func() error { out, err = v.vms.Agent(ctx, uuid, request); return err })
	return out, err
}

func (v mortalVMs) CreateNetwork(ctx context.Context, doc string) error {
	return whileAlive(v.l, func() error { return v.vms.CreateNetwork(ctx, doc) })
}

func (v mortalVMs) DestroyNetwork(ctx context.Context, name string) error {
	return whileAlive(v.l, func() error { return v.vms.DestroyNetwork(ctx, name) })
}

func whileAlive(l *life, f func() error) error {
	if l.ctx.Err() != nil {
		return errDead
	}
	return f()
}

// killed has something done by a daemon that is killed at the n-th write of it, and another
// one started, which has taken up the work when killed returns. Without n it is not killed.
// It returns how many writes there were.
func (y *yard) killed(n int, stored bool, do func() error, over func(move.Migration) bool) int {
	y.t.Helper()
	y.life.kill(n, stored)
	if err := do(); err != nil && y.life.ctx.Err() == nil {
		y.t.Fatal(err)
	}
	y.until("over or killed", func(v move.Migration) bool { return y.life.ctx.Err() != nil || over(v) })
	if writes, lives := y.life.spare(); lives {
		return writes
	}
	y.stop()
	y.start()
	y.until("taken up", func(v move.Migration) bool { return v.Ended != "" || y.life.wrote() > 0 })
	return n
}

// everyWrite has a test killed at its first write, its second, and so on to the last: now
// that is lost, and now it was stored.
func everyWrite(t *testing.T, least int, test func(t *testing.T, n int, stored bool) int) {
	t.Helper()
	writes := test(t, 0, false)
	if writes < least {
		t.Errorf("it has %d writes", writes)
	}
	for n := 1; n <= writes; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			test(t, n, n%2 == 0)
		})
	}
}

// settled is a move that does nothing by itself but copying.
func settled(v move.Migration) bool {
	stops := []move.Phase{move.PhaseDone, move.PhaseWaiting, move.PhaseRolledBack, move.PhaseFailed}
	return v.Phase == move.PhaseReady && v.Pending() == nil || slices.Contains(stops, v.Phase)
}

// The daemon is killed at every write of a cut-over. The VM runs only where the source is off;
// else the source goes on, and can be cut over.
func TestCutoverKilled(t *testing.T) {
	everyWrite(t, 10, func(t *testing.T, n int, stored bool) int {
		m := newMachine(t, 2*mib, 2*mib)
		y := newYard(t, m)
		y.begin()
		y.until("ready", phase(move.PhaseReady))
		y.vms.set(func(v *vms) {
			v.on = func(trial *gpu.Trial) {
				if _, off := m.rest.is(); !off || trial != nil {
					t.Error("the VM starts, and the source is not off")
				}
			}
		})
		again := func() error {
			_, err := y.CutOver(y.t.Context(), "gpu7", "tester", move.CutWish{Unrehearsed: "a test"})
			return err
		}
		killed := y.killed(n, stored, again, phase(move.PhaseDone))
		v := y.until("settled", settled)
		if v.Phase == move.PhaseWaiting {
			if v.Fence != move.FenceAsked {
				t.Errorf("it waits: %q", v.Reason)
			}
			if _, off := m.rest.is(); off {
				if _, err := y.Fenced("gpu7", "tester"); err != nil {
					t.Fatal(err)
				}
				v = y.until("done", settled)
			} else if _, err := y.Retry("gpu7"); err != nil {
				t.Fatal(err)
			} else {
				v = y.until("ready", settled)
			}
		}
		if v.Phase == move.PhaseReady {
			y.until("awake", func(move.Migration) bool { frozen, off := m.rest.is(); return !frozen && !off })
			if len(y.overlays()) != 0 || y.vms.started != 0 {
				t.Errorf("left: %q, started: %d", y.overlays(), y.vms.started)
			}
			m.write(0, mib+1, "it goes on")
			if err := again(); err != nil {
				t.Fatal(err)
			}
			v = y.until("done", settled)
		}
		if v.Phase != move.PhaseDone || y.vms.started != 1 || len(y.overlays()) != 2 {
			t.Errorf("%s %q, started %d times, %q", v.Phase, v.Reason, y.vms.started, y.overlays())
		}
		y.same()
		return killed
	})
}

// The same of a rehearsal: it is over, and nothing of it is left.
func TestRehearsalKilled(t *testing.T) {
	everyWrite(t, 8, func(t *testing.T, n int, stored bool) int {
		m := newMachine(t, 2*mib)
		y := newYard(t, m)
		y.begin()
		y.until("ready", phase(move.PhaseReady))
		killed := y.killed(n, stored, func() error {
			_, err := y.Rehearse(y.t.Context(), "gpu7", "tester", move.CutWish{})
			return err
		}, func(v move.Migration) bool { return len(v.Attempts) == 1 && v.Attempts[0].Over() })
		if v := y.until("settled", settled); v.Phase != move.PhaseReady {
			t.Errorf("%s: %s", v.Phase, v.Reason)
		}
		y.until("awake", func(move.Migration) bool { frozen, off := m.rest.is(); return !frozen && !off })
		left := append(y.overlays(), slices.DeleteFunc(y.vms.left(), func(s string) bool { return strings.HasPrefix(s, "defined") })...)
		if len(left) > 0 {
			t.Errorf("left: %q", left)
		}
		m.write(0, 3, "it goes on")
		if a := y.rehearse(move.CutWish{}); a.State != move.Passed {
			t.Errorf("%+v", a)
		}
		return killed
	})
}

// The same of the beginning, and of the way back.
func TestMigrationKilled(t *testing.T) {
	everyWrite(t, 4, func(t *testing.T, n int, stored bool) int {
		y := newYard(t, newMachine(t, 2*mib))
		y.vms.fail("define", gpu.Errorf(gpu.CodeUnavailable, "libvirt is away"))
		y.begin()
		killed := y.killed(n, stored, func() error { y.vms.fail("define", nil); return nil }, phase(move.PhaseReady))
		y.until("ready", phase(move.PhaseReady))
		return killed
	})
}

func TestRollbackKilled(t *testing.T) {
	everyWrite(t, 3, func(t *testing.T, n int, stored bool) int {
		y := newYard(t, newMachine(t, 2*mib))
		y.begin()
		y.until("ready", phase(move.PhaseReady))
		killed := y.killed(n, stored, func() error { _, err := y.Rollback("gpu7"); return err }, phase(move.PhaseRolledBack))
		if v := y.until("settled", settled); v.Phase == move.PhaseReady { // the wish was lost
			if _, err := y.Rollback("gpu7"); err != nil {
				t.Fatal(err)
			}
		}
		y.until("rolled back", phase(move.PhaseRolledBack))
		y.until("gone", func(move.Migration) bool { return len(y.vms.left())+len(y.holders.names()) == 0 })
		return killed
	})
}
