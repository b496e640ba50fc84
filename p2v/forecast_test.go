package p2v_test

import (
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/move"
)

// Where nothing was converted yet, what plans assume counts.
func TestConversionIsThatOfThePlan(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.policy.ConversionSeconds = 30
	y.begin()
	v := y.until("ready", phase(move.PhaseReady))
	if f := v.Forecast; f.Conversion.Seconds != 30 || f.Conversion.Basis != move.Estimated || f.RestSeconds > 60 {
		t.Errorf("%+v", f)
	}
}

// slow has a conversion, and the boot of a trial, take so long by the daemon's clock.
func (y *yard) slow(conversion, boot time.Duration) {
	y.makers.set(func(what string, _ convert.Job) {
		if what == "convert" {
			y.later(conversion)
		}
	})
	y.vms.set(func(v *vms) {
		v.on = func(trial *gpu.Trial) {
			if trial != nil {
				y.later(boot)
			}
		}
	})
}

// about reports whether a part was measured as the test's clock had it, give or take what its machine took.
func about(p move.Part, want time.Duration) bool {
	return p.Basis == move.Measured && !p.At.IsZero() && p.Seconds >= want.Seconds() && p.Seconds < want.Seconds()+30
}

// The source is at rest for the conversion, too: a cut-over whose limit is too short for that is refused, or
// waits, and nothing is frozen.
func TestConversionCountsAsRest(t *testing.T) {
	m := newMachine(t, 4*mib)
	y := newYard(t, m)
	y.begin()
	v := y.until("ready", phase(move.PhaseReady))
	if f := v.Forecast; f.Conversion.Basis != move.Estimated || f.Conversion.Seconds != 180 || f.Boot.Basis != move.Unknown || f.RestSeconds < 180 {
		t.Errorf("before anything was tried: %+v", f)
	}
	y.slow(400*time.Second, 100*time.Second)
	if a := y.rehearse(move.CutWish{}); a.State != move.Passed || a.Rest > 30 || a.Conversion < 400 || a.Boot < 100 {
		t.Errorf("%+v", a)
	}
	v = y.until("ready", phase(move.PhaseReady))
	if f := v.Forecast; !about(f.Conversion, 400*time.Second) || !about(f.Boot, 100*time.Second) || f.RestSeconds < 400 || f.DowntimeSeconds < 500 {
		t.Errorf("it was rehearsed: %+v", f)
	}
	short := move.CutWish{Limit: 60}
	_, asked := y.CutOver(t.Context(), "gpu7", "tester", short)
	_, planned := y.PlanTry(t.Context(), "gpu7", move.Cutover, short)
	for _, err := range []error{asked, planned} {
		if gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), "the conversion (measured") || !strings.Contains(err.Error(), "may be for 60 s") {
			t.Errorf("got %v", err)
		}
	}
	short.WhenReady = true
	if _, err := y.CutOver(t.Context(), "gpu7", "tester", short); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		n := y.until("known", func(move.Migration) bool { return true }).Disks[0].Total
		if _, err := y.Sync("gpu7"); err != nil {
			t.Fatal(err)
		}
		v = y.until("passed over again", func(v move.Migration) bool { return v.Disks[0].Total > n && v.Forecast != nil })
		if a := v.Pending(); a == nil || a.State != move.Asked || !a.Began.IsZero() || !strings.Contains(v.Reason, "the conversion") {
			t.Fatalf("%q, %+v", v.Reason, v.Attempts)
		}
	}
	if told := y.events.reasons(); len(told) == 0 || !strings.Contains(told[len(told)-1], "does not come to fit by waiting") {
		t.Errorf("nobody was told that it waits in vain: %q", told)
	}
	if _, err := y.Withdraw("gpu7", "tester"); err != nil {
		t.Fatal(err)
	}
	if frozen := m.rest.froze; frozen != 1 {
		t.Errorf("the source was frozen %d times, and once to be rehearsed", frozen)
	}
	if v, err := y.Migration("gpu7"); err != nil || v.Reason != "" {
		t.Errorf("%q, %v", v.Reason, err)
	}
	if _, err := y.CutOver(t.Context(), "gpu7", "tester", move.CutWish{WhenReady: true, Limit: 450}); err != nil {
		t.Fatal(err)
	}
	v = y.until("done", phase(move.PhaseDone))
	if a := v.Last(move.Cutover); a.State != move.Passed || a.Conversion < 400 {
		t.Errorf("%+v", a)
	}
}

// The downtime is all of it, to the VM that is well: one that would be longer than the budget is not ready. Who
// allows more has it.
func TestBootCountsAsDowntime(t *testing.T) {
	m := newMachine(t, 4*mib)
	y := newYard(t, m)
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	y.slow(300*time.Second, 400*time.Second)
	if a := y.rehearse(move.CutWish{}); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
	v := y.until("not ready", phase(move.PhaseSyncing))
	if f := v.Forecast; f == nil || f.Fits || f.RestSeconds > 600 || f.DowntimeSeconds < 700 {
		t.Errorf("%+v", f)
	}
	if _, err := y.CutOver(t.Context(), "gpu7", "tester", move.CutWish{}); gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), "the boot and the looks (measured") {
		t.Errorf("got %v", err)
	}
	// One that fails has measured what it came through, and not how long a VM takes that is not well.
	y.slow(150*time.Second, 0)
	y.vms.set(func(v *vms) { v.agent = illGuest })
	if a := y.rehearse(move.CutWish{Live: true}); a.State != move.Failed || a.Conversion < 150 || a.Boot != 0 {
		t.Errorf("%+v", a)
	}
	v = y.until("ended", phase(move.PhaseReady))
	if f := v.Forecast; !about(f.Conversion, 150*time.Second) || !about(f.Boot, 400*time.Second) {
		t.Errorf("%+v", f)
	}
	y.slow(300*time.Second, 400*time.Second)
	y.vms.set(func(v *vms) { v.agent = wellGuest })
	if a := y.rehearse(move.CutWish{}); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
	if _, err := y.CutOver(t.Context(), "gpu7", "tester", move.CutWish{Limit: 500}); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Errorf("got %v", err)
	}
	if _, err := y.CutOver(t.Context(), "gpu7", "tester", move.CutWish{Limit: 800}); err != nil {
		t.Fatal(err)
	}
	y.until("done", phase(move.PhaseDone))
}

// Where nothing is converted nothing of it counts.
func TestNothingIsConverted(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	w := y.wish()
	w.VM.Convert = move.ConvertNone
	if _, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{}); err != nil {
		t.Fatal(err)
	}
	v := y.until("ready", phase(move.PhaseReady))
	if f := v.Forecast; f.Conversion.Seconds != 0 || f.Conversion.Basis != move.Estimated || f.RestSeconds != f.FinalSeconds {
		t.Errorf("%+v", f)
	}
	if _, err := y.CutOver(t.Context(), "gpu7", "tester", move.CutWish{Unrehearsed: "a test", Limit: 30}); err != nil {
		t.Fatal(err)
	}
	y.until("done", phase(move.PhaseDone))
}

// A conversion that the limit has ended takes longer than it was let: with the same limit the source is not frozen
// for nothing again.
func TestWhatTheLimitEndsTakesLonger(t *testing.T) {
	m := newMachine(t, 4*mib)
	y := newYard(t, m)
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	y.slow(time.Second, time.Second)
	if a := y.rehearse(move.CutWish{}); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
	y.slow(500*time.Second, 0)
	y.makers.fail("convert", errWaits)
	if _, err := y.CutOver(t.Context(), "gpu7", "tester", move.CutWish{Limit: 6}); err != nil {
		t.Fatal(err)
	}
	if a := y.over(2); a.State != move.Failed || a.ConversionCut < 500 || a.Conversion != 0 {
		t.Errorf("%+v", a)
	}
	y.makers.fail("convert", nil)
	v := y.until("over", func(v move.Migration) bool { return v.Phase == move.PhaseReady || v.Phase == move.PhaseSyncing })
	if p := v.Forecast.Conversion; p.Basis != move.Estimated || p.Seconds < 600 || !strings.Contains(p.Text, "ended") {
		t.Errorf("%+v", p)
	}
	if _, err := y.CutOver(t.Context(), "gpu7", "tester", move.CutWish{Limit: 510}); gpu.CodeOf(err) != gpu.CodeConflict || m.rest.froze != 2 {
		t.Errorf("%v, and it was frozen %d times", err, m.rest.froze)
	}
	// What a rehearsal measures is believed again.
	y.slow(time.Second, time.Second)
	if a := y.rehearse(move.CutWish{}); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
	if _, err := y.CutOver(t.Context(), "gpu7", "tester", move.CutWish{Limit: 60}); err != nil {
		t.Fatal(err)
	}
	y.until("done", phase(move.PhaseDone))
}
