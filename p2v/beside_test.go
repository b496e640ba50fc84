package p2v_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/move"
)

// A rehearsing yard is one whose rehearsal is converting, until goOn is called.
type rehearsing struct {
	*yard
	t    *testing.T
	goOn func()
}

func rehearsingYard(t *testing.T, y *yard) *rehearsing {
	t.Helper()
	y.until("ready", phase(move.PhaseReady))
	r := &rehearsing{yard: y, t: t}
	there := r.holdUp()
	if _, err := y.Rehearse(t.Context(), "gpu7", "tester", move.CutWish{}); err != nil {
		t.Fatal(err)
	}
	<-there
	return r
}

// holdUp has the next conversion wait for goOn, or the daemon's end; there is closed when it does.
func (r *rehearsing) holdUp() (there chan struct{}) {
	there, on, life := make(chan struct{}), make(chan struct{}), r.life
	r.makers.set(func(what string, _ convert.Job) {
		if what != "convert" {
			return
		}
		select {
		case <-there:
			return // the first has been held up
		default:
			close(there)
		}
		select {
		case <-on:
		case <-life.ctx.Done():
		case <-r.t.Context().Done():
		}
	})
	r.goOn = func() { r.makers.set(nil); close(on) }
	return there
}

// pass asks for a pass, and returns that over the first disk.
func (r *rehearsing) pass() move.Pass {
	r.t.Helper()
	n := r.until("known", func(move.Migration) bool { return true }).Disks[0].Total
	if _, err := r.Sync("gpu7"); err != nil {
		r.t.Fatal(err)
	}
	v := r.until("passed over", func(v move.Migration) bool {
		return v.Forecast != nil && !slices.ContainsFunc(v.Disks, func(d move.Disk) bool { return d.Total <= n })
	})
	if v.Phase != move.PhaseRehearsing {
		r.t.Errorf("it is %s", v.Phase)
	}
	return v.Disks[0].Passes[len(v.Disks[0].Passes)-1]
}

func (y *yard) ahead() []string {
	all, _ := filepath.Glob(filepath.Join(y.storage, "gpu7", "*.ahead*"))
	return all
}

// While a VM is tried the copy goes on, and not a byte of the mirror changes. When that is over
// what was written meanwhile is in the mirror, without another pass, and little is left for the next.
func TestRehearsalSyncs(t *testing.T) {
	for name, blind := range map[string]error{"tracked": nil, "not tracked": errors.New("the kernel is too old")} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, 8*mib, 4*mib)
			m.blind = blind
			y := newYard(t, m)
			y.begin()
			r := rehearsingYard(t, y)
			mirror := filepath.Join(y.storage, "gpu7", "nvme0n1.raw")
			was, err := os.ReadFile(mirror)
			if err != nil {
				t.Fatal(err)
			}
			m.write(0, 5*mib+3, "written while it is rehearsed")
			if p := r.pass(); p.Written != mib || !p.Complete || p.Tracked != (blind == nil) || p.Tracked && p.Bytes != mib {
				t.Errorf("the first pass: %+v", p)
			}
			m.write(0, 5*mib+3, "written once more")
			m.write(0, 7*mib, "and elsewhere")
			m.write(1, mib, "and on the other disk")
			if p := r.pass(); p.Written != 2*mib {
				t.Errorf("the second pass: %+v", p)
			}
			if p := r.pass(); p.Written != 0 {
				t.Errorf("a pass when nothing was written: %+v", p)
			}
			tried := false
			y.vms.set(func(v *vms) {
				v.on = func(*gpu.Trial) {
					now, err := os.ReadFile(mirror)
					tried = err == nil && bytes.Equal(now, was)
				}
			})
			before := y.until("known", func(move.Migration) bool { return true })
			r.goOn()
			if a := y.over(1); a.State != move.Passed || !tried || a.CopyWaits != "" {
				t.Errorf("it is tried on the mirror as it was: %v; %+v", tried, a)
			}
			y.until("ready", func(v move.Migration) bool { return v.Phase == move.PhaseReady && len(y.ahead()) == 0 })
			y.same()
			m.write(0, 2*mib, "after it")
			if _, err := y.Sync("gpu7"); err != nil {
				t.Fatal(err)
			}
			v := y.until("synced again", func(v move.Migration) bool { return v.Disks[1].Total > before.Disks[1].Total })
			if d := v.Disks[0]; d.Total != v.Disks[1].Total || d.Total != before.Disks[0].Total+1 || d.Passes[len(d.Passes)-1].Written != mib {
				t.Errorf("%d passes, then %+v", before.Disks[0].Total, d.Passes)
			}
			y.same()
			y.vms.set(func(v *vms) { v.on = nil })
			y.cutOver()
			y.until("done", phase(move.PhaseDone))
			y.same()
		})
	}
}

// A rehearsal that is asked for while a pass is made begins after it. That is no wish for a pass beside it.
func TestRehearsalDuringAPass(t *testing.T) {
	m := newMachine(t, 4*mib)
	y := newYard(t, m)
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	open := m.shut(0)
	if _, err := y.Sync("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("copying", func(v move.Migration) bool { return v.Progress != nil })
	r := &rehearsing{yard: y, t: t}
	there := r.holdUp()
	if _, err := y.Rehearse(t.Context(), "gpu7", "tester", move.CutWish{}); err != nil {
		t.Fatal(err)
	}
	open()
	<-there
	r.goOn()
	if a := y.over(1); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
	y.cutOver()
	v := y.until("done", phase(move.PhaseDone))
	// The first, the one that was asked for, the last of the rehearsal, the one before the cut-over, and its last.
	if n := v.Disks[0].Total; n > 5 {
		t.Errorf("%d passes: %+v", n, v.Disks[0].Passes)
	}
}

// However a rehearsal ends, what was copied beside it is in the mirrors, or gone with them.
func TestRehearsalSyncsAndEnds(t *testing.T) {
	for name, end := range map[string]func(r *rehearsing){
		"it fails": func(r *rehearsing) {
			r.vms.fail("trial", errors.New("broken for the test"))
			r.goOn()
			if a := r.over(1); a.State != move.Failed {
				r.t.Errorf("%+v", a)
			}
		},
		"withdrawn": func(r *rehearsing) {
			if _, err := r.Withdraw("gpu7", "boss"); err != nil {
				r.t.Fatal(err)
			}
			r.goOn()
			if a := r.over(1); a.State != move.Withdrawn {
				r.t.Errorf("%+v", a)
			}
		},
		"the daemon is killed": func(r *rehearsing) {
			r.life.end()
			r.engine.Stop()
			if len(r.ahead()) != 2 {
				r.t.Errorf("ahead: %q", r.ahead())
			}
			r.start()
			if a := r.over(1); a.State != move.Failed || !strings.Contains(a.Problem, "broken off") {
				r.t.Errorf("%+v", a)
			}
		},
		"its VM cannot be taken down at once": func(r *rehearsing) {
			r.vms.fail("stop", gpu.Errorf(gpu.CodeUnavailable, "libvirt is away"))
			r.goOn()
			if a := r.over(1); a.State != move.Failed || len(r.ahead()) != 2 {
				r.t.Errorf("%+v, ahead: %q", a, r.ahead())
			}
			r.vms.fail("stop", nil)
		},
		"rolled back": func(r *rehearsing) {
			if _, err := r.Rollback("gpu7"); err != nil {
				r.t.Fatal(err)
			}
			r.goOn()
			r.until("rolled back", phase(move.PhaseRolledBack))
			r.gone4good()
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, 4*mib)
			y := newYard(t, m)
			y.begin()
			r := rehearsingYard(t, y)
			m.write(0, 3*mib, "written while it is rehearsed")
			r.pass()
			end(r)
			if name == "rolled back" {
				return
			}
			y.until("ready", func(v move.Migration) bool { return v.Phase == move.PhaseReady && len(y.ahead()) == 0 })
			y.same()
			y.vms.fail("trial", nil)
			if a := y.rehearse(move.CutWish{}); a.State != move.Passed {
				t.Errorf("%+v", a)
			}
		})
	}
}

// What cannot be used of what was copied beside a rehearsal is copied again, at once.
func TestRehearsalSyncsInVain(t *testing.T) {
	m := newMachine(t, 4*mib)
	y := newYard(t, m)
	y.begin()
	r := rehearsingYard(t, y)
	m.write(0, 3*mib, "written while it is rehearsed")
	r.pass()
	for _, path := range y.ahead() {
		if strings.HasSuffix(path, ".raw") {
			if err := os.Truncate(path, 5); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.goOn()
	if a := y.over(1); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
	v := y.until("copied again", func(v move.Migration) bool {
		p := v.Disks[0].Passes[len(v.Disks[0].Passes)-1]
		return v.Phase == move.PhaseReady && !p.Tracked && len(v.Disks[0].Passes) > 2
	})
	if p := v.Disks[0].Passes[len(v.Disks[0].Passes)-1]; p.Bytes != 4*mib || p.Written != mib {
		t.Errorf("%+v", p)
	}
	y.same()
}

// A rehearsal is over when it is, also where a pass beside it is not; a cut-over waits for that.
func TestRehearsalSyncsSlowly(t *testing.T) {
	m := newMachine(t, 4*mib)
	y := newYard(t, m)
	y.begin()
	r := rehearsingYard(t, y)
	m.write(0, 3*mib, "written while it is rehearsed")
	m.write(0, 0, "and much of it, which cannot be packed")
	if _, err := y.SetCopy("gpu7", move.Copy{Bandwidth: 64 << 10}); err != nil { // a pass begins, and takes half a minute
		t.Fatal(err)
	}
	y.until("copied slowly", func(move.Migration) bool { return len(y.ahead()) == 2 })
	r.goOn()
	if a := y.over(1); a.State != move.Passed || len(y.ahead()) != 2 {
		t.Errorf("%+v, ahead: %q", a, y.ahead())
	}
	y.cutOver()
	if _, err := y.SetCopy("gpu7", move.Copy{}); err != nil {
		t.Fatal(err)
	}
	v := y.until("done", phase(move.PhaseDone))
	if slices.ContainsFunc(v.Disks[0].Passes, func(p move.Pass) bool { return !p.Complete }) {
		t.Errorf("the pass was broken off: %+v", v.Disks[0].Passes)
	}
	y.same()
}

// Where there is no room for what changes meanwhile the rehearsal goes on, and why the passes wait
// is told. Where there is none for it in the mirrors a person is asked, and nothing is lost.
func TestRehearsalSyncsWithoutRoom(t *testing.T) {
	m := newMachine(t, 8*mib)
	y := newYard(t, m)
	d := y.tmpfs("1200m")
	y.begin()
	r := rehearsingYard(t, y)
	m.write(0, 5*mib, "copied")
	r.pass()
	d.resize("1050m")
	m.write(0, 6*mib, "not copied")
	if _, err := y.Sync("gpu7"); err != nil {
		t.Fatal(err)
	}
	v := y.until("held up", func(v move.Migration) bool { return v.Attempts[0].CopyWaits != "" })
	if why := v.Attempts[0].CopyWaits; !strings.Contains(why, "up to 64 MiB are still to come; the file system has 10") || !strings.Contains(why, "of which 1024 MiB are kept free: ") || !strings.Contains(why, " MiB are missing") || v.Forecast != nil || v.Phase != move.PhaseRehearsing {
		t.Errorf("%q, %s, %+v", why, v.Phase, v.Forecast)
	}
	d.resize("1200m")
	if p := r.pass(); p.Written != mib || p.Bytes != mib {
		t.Errorf("with room: %+v", p)
	}
	if a := y.until("known", func(v move.Migration) bool { return v.Attempts[0].CopyWaits == "" }).Attempts[0]; a.Over() {
		t.Errorf("%+v", a)
	}
	d.fill(128 << 10)
	r.goOn()
	if a := y.over(1); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
	if v := y.until("waiting", phase(move.PhaseWaiting)); !strings.Contains(v.Reason, "cannot fold") || len(y.ahead()) != 2 {
		t.Errorf("%q, ahead: %q", v.Reason, y.ahead())
	}
	d.resize("1200m")
	if _, err := y.Retry("gpu7"); err != nil {
		t.Fatal(err)
	}
	v = y.until("ready", func(v move.Migration) bool { return v.Phase == move.PhaseReady && len(y.ahead()) == 0 })
	if p := v.Disks[0].Passes[len(v.Disks[0].Passes)-1]; p.Written != 0 {
		t.Errorf("what was ahead was copied again: %+v", p)
	}
	y.same()
}

// The daemon is killed at every write of a rehearsal with passes beside it. Nothing of either is left, and
// the mirrors are as the disks.
func TestRehearsalSyncsKilled(t *testing.T) {
	everyWrite(t, 12, func(t *testing.T, n int, stored bool) int {
		m := newMachine(t, 3*mib)
		y := newYard(t, m)
		y.begin()
		y.until("ready", phase(move.PhaseReady))
		r := &rehearsing{yard: y, t: t}
		there, life := r.holdUp(), y.life
		killed := y.killed(n, stored, func() error {
			if _, err := y.Rehearse(t.Context(), "gpu7", "tester", move.CutWish{}); err != nil {
				return err
			}
			select {
			case <-there:
			case <-life.ctx.Done():
				return errDead
			}
			for k := range 2 {
				m.write(0, int64(k)*mib, "beside it")
				total := y.until("known", func(move.Migration) bool { return true }).Disks[0].Total
				if _, err := y.Sync("gpu7"); err != nil {
					return err
				}
				y.until("passed over, or killed", func(v move.Migration) bool { return v.Disks[0].Total > total || life.ctx.Err() != nil })
			}
			r.goOn()
			return nil
		}, func(v move.Migration) bool {
			return len(v.Attempts) == 1 && v.Attempts[0].Over() && len(y.ahead()) == 0
		})
		if life.ctx.Err() != nil {
			y.makers.set(nil)
		}
		if v := y.until("settled", settled); v.Phase != move.PhaseReady {
			t.Errorf("%s: %s", v.Phase, v.Reason)
		}
		y.until("folded", func(move.Migration) bool { return len(y.ahead()) == 0 })
		m.write(0, 3, "it goes on")
		if a := y.rehearse(move.CutWish{}); a.State != move.Passed {
			t.Errorf("%+v", a)
		}
		y.until("ready", phase(move.PhaseReady))
		y.same()
		if left := append(y.overlays(), y.ahead()...); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
		return killed
	})
}

// The connection of a server that was started from virt-p2v ends while its VM is rehearsed, and it comes
// again, with other data, before or after that is over.
func TestRehearsalOfArrival(t *testing.T) {
	for name, during := range map[string]bool{"it comes meanwhile": true, "it comes afterwards": false} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, 6*mib, 2*mib)
			y := newYard(t, m)
			y.carried()
			s := y.virtp2v("gpu7")
			w := y.wish()
			w.DisksFrom = fromVirtP2V(s)
			if _, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{}); err != nil {
				t.Fatal(err)
			}
			first := y.comes(s)
			r := rehearsingYard(t, y)
			r.pass()
			first.cut()
			if err := first.ended(t); err == nil {
				t.Error("it was cut")
			}
			m.write(0, 3*mib, "its system was started in between")
			m.write(1, mib, "and wrote there, too")
			if _, err := y.Sync("gpu7"); err != nil {
				t.Fatal(err)
			}
			y.until("missed", func(v move.Migration) bool { return y.logged(v, "all of it is read") })
			if during {
				y.comes(y.virtp2v("gpu7"))
				y.until("copied", func(v move.Migration) bool {
					return v.Disks[1].Passes[len(v.Disks[1].Passes)-1].Written == mib
				})
				if p := r.pass(); p.Written != 0 {
					t.Errorf("%+v", p)
				}
			}
			r.goOn()
			if a := y.over(1); a.State != move.Passed {
				t.Errorf("%+v", a)
			}
			if !during {
				y.comes(y.virtp2v("gpu7"))
			}
			y.until("ready", func(v move.Migration) bool { return v.Phase == move.PhaseReady && len(y.ahead()) == 0 })
			y.same()
		})
	}
}
