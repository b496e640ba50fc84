package p2v_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/move"
)

// untold writes to a disk of the machine, and its tracker does not tell.
func (m *machine) untold(disk int, at int64, data string) {
	m.t.Helper()
	f, err := os.OpenFile(m.disks[disk].Path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte(data), at)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		m.t.Error(err)
	}
}

// A cut-over that compares all of the disks finds them equal, with what was written a moment before, and what that
// took is known from then on.
func TestCutoverCompares(t *testing.T) {
	m := newMachine(t, 8*mib, 4*mib)
	y := newYard(t, m)
	y.begin()
	if v := y.until("ready", phase(move.PhaseReady)); v.Forecast.Comparison.Basis != move.Unknown {
		t.Errorf("%+v", v.Forecast)
	}
	if a := y.rehearse(move.CutWish{Verify: true}); a.State != move.Passed || a.Comparison <= 0 || a.Comparison > a.Rest {
		t.Errorf("%+v", a)
	}
	if v := y.until("ready", phase(move.PhaseReady)); v.Forecast.Comparison.Basis != move.Measured || v.Forecast.Comparison.Seconds <= 0 {
		t.Errorf("%+v", v.Forecast)
	}
	m.rest.set(func(r *rester) { r.still = func() { m.write(1, 2*mib+3, "written last of all") } })
	y.makers.set(func(what string, _ convert.Job) {
		if frozen, _ := m.rest.is(); !frozen && what == "overlay" {
			t.Error("disks are made while the source runs")
		}
	})
	if _, err := y.CutOver(t.Context(), "gpu7", "tester", move.CutWish{Verify: true}); err != nil {
		t.Fatal(err)
	}
	v := y.until("done", phase(move.PhaseDone))
	a := v.Last(move.Cutover)
	if a.State != move.Passed || a.Comparison <= 0 || !a.Wish.Verify || y.vms.started != 1 || v.Fence != move.FenceOff {
		t.Errorf("%+v, started %d times, fence %q", a, y.vms.started, v.Fence)
	}
	y.same()
}

// Where the tracker has lied the mirror is not as the disk is. Comparing finds that, says of which disk, and no VM is
// started: the source goes on, and the next pass looks at all of that disk.
func TestCutoverFindsWhatTheTrackerHid(t *testing.T) {
	m := newMachine(t, 8*mib, 4*mib)
	y := newYard(t, m)
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	if a := y.rehearse(move.CutWish{}); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
	m.untold(1, 3*mib+1, "hidden")
	y.makers.set(func(what string, _ convert.Job) {
		if what == "overlay" || what == "convert" {
			t.Errorf("%s: of a mirror that is not as the disk is", what)
		}
	})
	v, err := y.CutOver(t.Context(), "gpu7", "tester", move.CutWish{Verify: true})
	if err != nil {
		t.Fatal(err)
	}
	a := y.over(len(v.Attempts))
	if a.State != move.Failed || !strings.Contains(a.Problem, "the mirror of nvme1n1 is not as the disk is: it differs in 1 part") || !strings.Contains(a.Problem, "sync it") || a.Comparison != 0 {
		t.Errorf("%+v", a)
	}
	y.awake()
	if len(y.overlays()) != 0 || y.vms.started != 0 {
		t.Errorf("left: %q, started %d times", y.overlays(), y.vms.started)
	}
	y.makers.set(nil)
	v = y.until("ready", phase(move.PhaseReady))
	if v.Fence != move.FenceNone {
		t.Errorf("fence %q", v.Fence)
	}
	n := v.Disks[1].Total
	if _, err := y.Sync("gpu7"); err != nil {
		t.Fatal(err)
	}
	v = y.until("copied anew", func(v move.Migration) bool { return v.Disks[1].Total > n && v.Phase == move.PhaseReady })
	if p := v.Disks[1].Passes[len(v.Disks[1].Passes)-1]; p.Bytes != 4*mib || p.Written != mib || p.Tracked {
		t.Errorf("the pass after: %+v", p)
	}
	y.same()
	if _, err := y.CutOver(t.Context(), "gpu7", "tester", move.CutWish{Verify: true}); err != nil {
		t.Fatal(err)
	}
	y.until("done", phase(move.PhaseDone))
	y.same()
}
