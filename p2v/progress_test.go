package p2v_test

import (
	"io"
	"sync"
	"sync/atomic"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/p2v/move"
)

// A gate holds up what a machine sends of its disks, once it has sent so much.
type gate struct {
	left atomic.Int64 // bytes that go through
	open chan struct{}
	once sync.Once
}

// held is a connection through a gate.
type held struct {
	io.ReadWriteCloser
	gate *atomic.Pointer[gate]
}

func (h held) Read(b []byte) (int, error) {
	g := h.gate.Load()
	if g != nil && g.left.Load() <= 0 {
		<-g.open
	}
	n, err := h.ReadWriteCloser.Read(b)
	if g != nil {
		g.left.Add(-int64(n))
	}
	return n, err
}

// shut holds up what is sent of the disks after so many bytes, until it is opened.
func (m *machine) shut(after int64) (open func()) {
	g := &gate{open: make(chan struct{})}
	g.left.Store(after)
	m.gate.Store(g)
	open = func() { g.once.Do(func() { m.gate.CompareAndSwap(g, nil); close(g.open) }) }
	m.t.Cleanup(open)
	return open
}

// A pass that is under way tells how far it is, at what rate, and when it will be over; before and
// after it there is nothing to tell.
func TestProgressOfPass(t *testing.T) {
	m := newMachine(t, 8*mib, 4*mib)
	y := newYard(t, m)
	open := m.shut(5 * mib / 2)
	if v := y.begin(); v.Progress != nil && v.Progress.Done != 0 {
		t.Errorf("before anything was copied: %+v", v.Progress)
	}
	v := y.until("copying", func(v move.Migration) bool {
		return v.Progress != nil && v.Progress.Done > 0 && v.Progress.Rate > 0
	})
	p := v.Progress
	if p.Disk != "nvme0n1" || p.Done >= p.Total || p.Total != 8*mib || p.Remaining == nil || *p.Remaining <= 0 {
		t.Errorf("half way: %+v", p)
	}
	if rec, err := y.store.MigrationRecord("gpu7"); err != nil || len(rec.Disks[0].Passes) != 0 {
		t.Errorf("it is kept: %+v, %v", rec, err)
	}
	open()
	y.until("over", func(v move.Migration) bool { return v.Phase == move.PhaseReady && v.Progress == nil })
	y.same()

	// So does one beside a rehearsal, of what it has to look at.
	r := rehearsingYard(t, y)
	m.write(1, 0, "written while it is rehearsed")
	m.write(1, mib, "and this, too")
	open = m.shut(0)
	if _, err := y.Sync("gpu7"); err != nil {
		t.Fatal(err)
	}
	v = y.until("copying", func(v move.Migration) bool { return v.Progress != nil })
	if p := v.Progress; v.Phase != move.PhaseRehearsing || p.Done != 0 || p.Remaining != nil {
		t.Errorf("beside a rehearsal: %s, %+v", v.Phase, p)
	}
	open()
	r.goOn()
	if a := y.over(1); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
	y.until("ready", func(v move.Migration) bool { return v.Phase == move.PhaseReady && v.Progress == nil })

	// And the last pass of a cut-over, with the server at rest.
	var once sync.Once
	m.rest.set(func(k *rester) {
		k.still = func() {
			once.Do(func() {
				m.write(0, 0, "written before it came to rest")
				open = m.shut(0)
			})
		}
	})
	if _, err := y.CutOver(t.Context(), "gpu7", "tester", move.CutWish{}); err != nil {
		t.Fatal(err)
	}
	v = y.until("copying", func(v move.Migration) bool {
		a := v.Pending()
		return v.Progress != nil && v.Phase == move.PhaseCuttingOver && a != nil && a.Phase == "last pass"
	})
	if p := v.Progress; p.Disk != "nvme0n1" || p.Total != mib {
		t.Errorf("the last pass: %+v", p)
	}
	open()
	if v := y.until("done", phase(move.PhaseDone)); v.Progress != nil {
		t.Errorf("when it is done: %+v", v.Progress)
	}
}

// A pass that is broken off is told of no more.
func TestProgressOfBrokenPass(t *testing.T) {
	m := newMachine(t, 8*mib)
	y := newYard(t, m)
	open := m.shut(mib / 2)
	if _, err := y.Create(t.Context(), "tester", y.wish(), gpu.Idempotency{}); err != nil {
		t.Fatal(err)
	}
	y.until("copying", func(v move.Migration) bool { return v.Progress != nil })
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	open()
	if v := y.until("rolled back", phase(move.PhaseRolledBack)); v.Progress != nil {
		t.Errorf("%+v", v.Progress)
	}
}
