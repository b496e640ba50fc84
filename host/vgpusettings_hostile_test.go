package host_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/operation"
)

// Killed at any call while functions come on with what goes with them, the next daemon
// carries it to its end; killed in the restore, the next restore does (T01, T10).
func TestCrashBetweenSettings_T01_T10(t *testing.T) {
	l := newMixedLab(t, false)
	addVMs(t, l, 4)
	l.mustSet(l40s, scheduler(gpu.EqualShare, 3e6))
	l.mustSetVFs(l40s, 0)
	var images []string
	l.sim.NVML.OnCall(func(sim.Call) { images = append(images, l.image()) })
	l.mustSetVFs(l40s, shareVFs)
	l.sim.NVML.OnCall(nil)
	if op := l.apply("a=vm1:L40S-8Q", "b=vm2:L40S-24Q"); op.Status != operation.Done || len(images) != 4 {
		t.Fatalf("%+v, %d images", op.Problem, len(images))
	}
	good := func(k *lab) {
		t.Helper()
		if s := k.settings(l40s); !s.Equal || !*s.Actual.MixedSize.Actual || s.Actual.Scheduler.Actual.TimeSliceNS != 3e6 || len(k.vfs(l40s).Functions) != shareVFs {
			t.Errorf("%+v", s)
		}
	}
	for _, dir := range images {
		k := openLab(t, dir)
		k.settled()
		good(k)
	}
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	images = nil
	l.sim.NVML.OnCall(func(sim.Call) { images = append(images, l.image()) })
	if _, err := l.restore(time.Minute); err != nil {
		t.Fatal(err)
	}
	l.sim.NVML.OnCall(nil)
	for _, dir := range images {
		k := openLab(t, dir)
		if done, err := k.restore(time.Minute); err != nil || len(done) != 2 {
			t.Errorf("%+v, %v", done, err)
		}
		good(k)
		if got := k.vgpusOn(l40s); len(got) != 2 {
			t.Errorf("%q", got)
		}
	}
}

// Another card in the place is not given the settings of the one before, and one that is
// gone is waited for no longer than the restore has (T11, T12).
func TestSettingsOfAnotherCard_T12(t *testing.T) {
	l := newMixedLab(t, false)
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if err := l.sim.Change(string(l40s), func(c *sim.Card) { c.PCI.SubsystemDevice = "0xffff" }); err != nil {
		t.Fatal(err)
	}
	if out, err := l.sim.RunTool(t.Context(), "sriov-manage", "-e", string(l40s)); err != nil {
		t.Fatal(out, err)
	}
	n := l.sets()
	if _, err := l.restore(time.Second); gpu.CodeOf(err) != gpu.CodeDrift && !strings.Contains(err.Error(), "another card") || l.sets() != n {
		t.Errorf("%v, %d calls", err, l.sets()-n)
	}
	_, op, err := l.PutVGPUSettings(t.Context(), "test", l40s, mixedSize(false))
	if wantCode(t, err, gpu.CodeDrift); op != nil || l.sets() != n {
		t.Errorf("%+v, %v", op, err)
	}
	if err := l.sim.Appear(string(l40s), time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := l.restore(50 * time.Millisecond); err == nil {
		t.Error("a card that is gone is restored")
	}
	if _, _, err := l.PutVGPUSettings(t.Context(), "test", l40s, mixedSize(false)); err == nil {
		t.Error("a card that is gone is set")
	}
	if _, err := l.VGPUSettings(t.Context(), l40s); err == nil {
		t.Error("a card that is gone is told of")
	}
}

// A vGPU that somebody makes between the plan and the step makes the driver refuse: the
// wish is undone, and what is there stays.
func TestVGPUMadeMeanwhile(t *testing.T) {
	l := newShareLab(t, false)
	made := false
	l.sim.NVML.OnCall(func(sim.Call) {
		if !made {
			made = true
			if err := l.sim.Sysfs.Write(t.Context(), typeFile("0000:61:00.7"), "1152"); err != nil {
				t.Error(err)
			}
		}
	})
	defer l.sim.NVML.OnCall(nil)
	op := l.set(l40s, mixedSize(true))
	if op.Status != operation.Undone || op.Problem == nil || op.Problem.Code != string(gpu.CodeGPUBusy) {
		t.Errorf("%+v, %+v", op, op.Problem)
	}
	if s := l.settings(l40s); !s.Wanted.Empty() || *s.Actual.MixedSize.Actual || l.current("0000:61:00.7") != "1152" {
		t.Errorf("%+v", s)
	}
}

// With a library that knows none of it, and with one that does not answer, all else goes on.
func TestSettingsWithoutTheLibrary(t *testing.T) {
	l := newShareLab(t, false)
	l.mustSet(l40s, scheduler(gpu.EqualShare, 0))
	l.stop()
	l.library = plain{l.sim.NVML}
	l.start()
	s := l.settings(l40s)
	if s.Equal || s.Actual.MixedSize.Supported || !strings.Contains(s.Actual.Scheduler.Unavailable, "too old") {
		t.Errorf("%+v", s)
	}
	if why := l.degraded(l40s); !strings.Contains(why, "what is cannot be told: NVIDIA's driver is too old") {
		t.Errorf("%q", why)
	}
	for _, w := range []gpu.VGPUWish{fixedShare, mixedSize(true)} {
		if _, op, err := l.PutVGPUSettings(t.Context(), "test", l40s, w); gpu.CodeOf(err) != gpu.CodeNotFound || op != nil {
			t.Errorf("%v", err)
		}
	}
	// Functions go off and on, and what cannot be had any more is asked for no longer.
	l.mustSetVFs(l40s, 0)
	l.mustSetVFs(l40s, shareVFs)
	both := scheduler(gpu.BestEffort, 0)
	both.MixedSize = mixedSize(false).MixedSize
	if s, op, err := l.PutVGPUSettings(t.Context(), "test", l40s, both); err != nil || op != nil || !s.Equal || l.degraded(l40s) != "" {
		t.Errorf("%+v, %+v, %v", s, op, err)
	}
	l.mustSetVFs(l40s, 0)
	l.mustSetVFs(l40s, shareVFs)
	l.attach("a", gpu.Wish{VM: "web1", Profile: "L40S-8Q"})
	if op := l.apply("b=web2:L40S-8Q", "c=db1:L40S-8Q"); op.Status != operation.Done {
		t.Errorf("%+v", op.Problem)
	}
}

// plain is a library without the functions of all this.
type plain struct{ mig.Library }

func (p plain) Open() (mig.Session, error) {
	s, err := p.Library.Open()
	return plainSession{s}, err
}

type plainSession struct{ mig.Session }

func (s plainSession) Device(a gpu.Address) (mig.Device, error) {
	d, err := s.Session.Device(a)
	return plainDevice{d}, err
}

type plainDevice struct{ mig.Device }

func (plainDevice) SchedulerCapabilities() (mig.SchedulerCapabilities, error) {
	return mig.SchedulerCapabilities{}, mig.ErrFunctionNotFound
}

func (plainDevice) Scheduler() (gpu.Scheduler, error) {
	return gpu.Scheduler{}, mig.ErrFunctionNotFound
}
func (plainDevice) SetScheduler(gpu.Scheduler) error { return mig.ErrFunctionNotFound }
func (plainDevice) MixedSize() (mig.MixedSize, error) {
	return mig.MixedSize{}, mig.ErrFunctionNotFound
}
func (plainDevice) SetMixedSize(bool) error { return mig.ErrFunctionNotFound }
func (plainDevice) Placements(uint32) (gpu.VGPUPlacements, error) {
	return gpu.VGPUPlacements{}, mig.ErrFunctionNotFound
}

// Batches and settings that are put at once do not see each other's half: whichever holds
// the card first, the other is told, or plans with what is there then.
func TestSettingsAndBatchesAtOnce(t *testing.T) {
	l := newMixedLab(t, false)
	addVMs(t, l, 4)
	ended := make(chan operation.Operation)
	go func() {
		_, op, err := l.ApplyAssignments(t.Context(), "test", wishes("a=vm1:L40S-8Q", "b=vm2:L40S-24Q"), gpu.Idempotency{})
		if op == nil {
			t.Log(err)
			ended <- operation.Operation{}
			return
		}
		ended <- l.finish(*op, err)
	}()
	go func() {
		_, op, err := l.PutVGPUSettings(t.Context(), "test", l40s, mixedSize(false))
		if op == nil {
			t.Log(err)
			ended <- operation.Operation{}
			return
		}
		ended <- l.finish(*op, err)
	}()
	var kinds []string
	for range 2 {
		if op := <-ended; op.Status == operation.Done {
			kinds = append(kinds, op.Kind)
		}
	}
	s := l.settings(l40s)
	if got := l.vgpusOn(l40s); !s.Equal || len(kinds) == 0 || slices.Contains(kinds, "assignment.apply") != (len(got) == 2) {
		t.Errorf("%q: %+v, %q", kinds, s, got)
	}
}
