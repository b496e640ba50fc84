package host_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/operation"
)

func scheduler(p gpu.SchedulerPolicy, ns uint32) gpu.VGPUWish {
	return gpu.VGPUWish{Scheduler: &gpu.Scheduler{Policy: p, TimeSliceNS: ns}}
}

// shareVFs are the functions of the card of these tests: a real one has more, and each takes
// time.
const shareVFs = 8

func shared(mdev bool) sim.Card {
	c := sim.L40S(string(l40s), 0).WithVGPU(mdev)
	c.SRIOV.TotalVFs = shareVFs
	return c
}

// newShareLab has a card of one or the other generation, with its virtual functions on.
func newShareLab(t *testing.T, mdev bool) *lab {
	t.Helper()
	l := newLab(t, shared(mdev))
	l.manage(l40s)
	l.mustSetVFs(l40s, shareVFs)
	return l
}

var fixedShare = scheduler(gpu.FixedShare, 5e6)

func (l *lab) settings(id gpu.ID) gpu.VGPUState {
	l.t.Helper()
	s, err := l.VGPUSettings(l.t.Context(), id)
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// set asks for settings of vGPUs and waits.
func (l *lab) set(id gpu.ID, w gpu.VGPUWish) operation.Operation {
	l.t.Helper()
	_, op, err := l.PutVGPUSettings(l.t.Context(), "test", id, w)
	if err != nil || op == nil {
		l.t.Fatalf("%+v, %v", op, err)
	}
	return l.finish(*op, nil)
}

func (l *lab) mustSet(id gpu.ID, w gpu.VGPUWish) {
	l.t.Helper()
	if op := l.set(id, w); op.Status != operation.Done {
		l.t.Fatalf("%+v", op.Problem)
	}
}

// sets counts what was set through NVIDIA's library so far.
func (l *lab) sets() (n int) {
	for _, c := range l.sim.NVML.Calls() {
		if strings.HasPrefix(c.Name, "SetVgpu") {
			n++
		}
	}
	return n
}

// degraded is what a GPU says about its settings, empty if it is content.
func (l *lab) degraded(id gpu.ID) string {
	l.t.Helper()
	g, err := l.GPU(l.t.Context(), id)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, c := range g.Conditions {
		if c.Status && c.Type == gpu.Degraded && c.Reason == "VGPUSettings" {
			return c.Message
		}
	}
	return ""
}

// A scheduler is set, told, and not set twice; a dry run sets nothing.
func TestSchedulerLife(t *testing.T) {
	for _, mdev := range []bool{true, false} {
		l := newShareLab(t, mdev)
		ctx := t.Context()
		if s := l.settings(l40s); !s.Equal || !s.Wanted.Empty() || s.Actual.Scheduler.Actual.Policy != gpu.BestEffort || len(s.Actual.Scheduler.Policies) != 3 {
			t.Errorf("before anything: %+v", s)
		}
		plan, err := l.PlanPutVGPUSettings(ctx, l40s, fixedShare)
		if err != nil || plan.Refusal != nil || !plan.Changes || len(plan.Steps) != 1 ||
			plan.Steps[0].Summary != "set scheduler fixed-share, 5000000 ns of 0000:61:00.0" || l.sets() != 0 {
			t.Errorf("%+v, %v, %d calls", plan, err, l.sets())
		}
		l.mustSet(l40s, fixedShare)
		s := l.settings(l40s)
		if !s.Equal || !s.Wanted.Equal(fixedShare) || *s.Actual.Scheduler.Actual != *fixedShare.Scheduler {
			t.Errorf("%+v", s)
		}
		if _, op, err := l.PutVGPUSettings(ctx, "test", l40s, fixedShare); op != nil || err != nil || l.sets() != 1 {
			t.Errorf("the same again: %+v, %v, %d calls", op, err, l.sets())
		}
		if plan, err := l.PlanPutVGPUSettings(ctx, l40s, fixedShare); err != nil || plan.Changes || plan.Refusal != nil {
			t.Errorf("%+v, %v", plan, err)
		}
		// Any slice will do: that is another wish, and what is there is right.
		whichever := scheduler(gpu.FixedShare, 0)
		if plan, err := l.PlanPutVGPUSettings(ctx, l40s, whichever); err != nil || !plan.Changes || len(plan.Steps) != 1 || plan.Steps[0].Kind != "gpu.record" {
			t.Errorf("%+v, %v", plan, err)
		}
		if s, op, err := l.PutVGPUSettings(ctx, "test", l40s, whichever); op != nil || err != nil || !s.Wanted.Equal(whichever) || l.sets() != 1 {
			t.Errorf("%+v, %+v, %v", s, op, err)
		}
	}
}

// What is impossible is refused before anything is set, with what blocks it by name.
func TestSchedulerRefused(t *testing.T) {
	l := newLab(t, shared(false), sim.H100(string(hopper), 0).WithVGPU(false), sim.RX(string(rx)), sim.A40("0000:62:00.0", 1))
	ctx := t.Context()
	refuse := func(id gpu.ID, w gpu.VGPUWish, code gpu.Code, text string) *gpu.Error {
		t.Helper()
		_, op, err := l.PutVGPUSettings(ctx, "test", id, w)
		e := wantCode(t, err, code)
		if op != nil || !strings.Contains(err.Error(), text) || l.sets() != 0 {
			t.Errorf("%s %s: %v, %+v, %d calls", id, w, err, op, l.sets())
		}
		return e
	}
	refuse(l40s, fixedShare, gpu.CodeGPUUnmanaged, "not under management")
	refuse("0000:99:00.0", fixedShare, gpu.CodeNotFound, "")
	l.manage(l40s, hopper, rx, "0000:62:00.0")
	l.mustSetVFs(l40s, shareVFs)
	refuse(rx, fixedShare, gpu.CodeNotFound, "NVIDIA's driver has no such gpu")
	refuse("0000:62:00.0", fixedShare, gpu.CodeNotFound, "no scheduler of vGPUs")
	refuse(l40s, gpu.VGPUWish{}, gpu.CodeInvalid, "nothing is asked for")
	refuse(l40s, scheduler("lottery", 0), gpu.CodeInvalid, "it has best-effort, equal-share, fixed-share")
	refuse(l40s, scheduler(gpu.BestEffort, 2e6), gpu.CodeInvalid, "best-effort has no time slice")
	refuse(l40s, scheduler(gpu.FixedShare, 999_999), gpu.CodeInvalid, "not from 1000000 to 30000000")
	refuse(l40s, scheduler(gpu.EqualShare, 30_000_001), gpu.CodeInvalid, "not from 1000000 to 30000000")
	l.mustLay(hopper, "")
	refuse(hopper, fixedShare, gpu.CodeConflict, "MIG is on")
	if s := l.settings(hopper); !s.Actual.MIG || s.Actual.Scheduler.Actual != nil || !s.Equal {
		t.Errorf("%+v", s)
	}

	// One of ours, with its VM, and one of somebody else.
	l.attach("gfx", gpu.Wish{VM: "web1", Profile: "L40S-8Q", GPU: l40s})
	if err := l.sim.Sysfs.Write(ctx, typeFile("0000:61:00.7"), "1152"); err != nil {
		t.Fatal(err)
	}
	e := refuse(l40s, fixedShare, gpu.CodeGPUBusy, "there are some")
	has := func(kind, name, note string) bool {
		return slices.ContainsFunc(e.Blockers, func(b gpu.Blocker) bool { return b.Kind == kind && b.Name == name && strings.Contains(b.Note, note) })
	}
	if !has("partition", "L40S-8Q", "assignment gfx") || !has("partition", "L40S-8Q", "gpuvirt did not make it") || !has("vm", "web1", "") {
		t.Errorf("%+v", e.Blockers)
	}
	if plan, err := l.PlanPutVGPUSettings(ctx, l40s, fixedShare); err != nil || plan.Refusal == nil || plan.Changes {
		t.Errorf("%+v, %v", plan, err)
	}
	// What is so already is only recorded, whatever is on it.
	if s, op, err := l.PutVGPUSettings(ctx, "test", l40s, scheduler(gpu.BestEffort, 0)); err != nil || op != nil || !s.Equal {
		t.Errorf("%+v, %+v, %v", s, op, err)
	}
}

// A card that is given away whole is not asked about its vGPUs.
func TestSchedulerOfGivenCard(t *testing.T) {
	l := newLab(t, shared(false))
	l.manage(l40s)
	l.attach("all", gpu.Wish{VM: "db1", Profile: "card-10de:26b9"})
	n := l.sets()
	_, op, err := l.PutVGPUSettings(t.Context(), "test", l40s, fixedShare)
	if gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), "given away") || op != nil || l.sets() != n {
		t.Errorf("%+v, %v", op, err)
	}
}

// Turning functions off and on binds the driver anew. What was asked for is set again, as
// part of the same operation, and also where that is undone.
func TestSchedulerOutlivesVFs(t *testing.T) {
	l := newShareLab(t, false)
	l.mustSet(l40s, fixedShare)
	l.mustSetVFs(l40s, 0)
	if s := l.settings(l40s); !s.Equal || l.degraded(l40s) != "" { // there can be no vGPU
		t.Errorf("%+v, %q", s, l.degraded(l40s))
	}
	plan, err := l.PlanPutVFs(t.Context(), l40s, shareVFs)
	if err != nil || len(plan.Steps) != 2 || !strings.Contains(plan.Steps[1].Summary, "set scheduler fixed-share") {
		t.Errorf("%+v, %v", plan, err)
	}
	l.mustSetVFs(l40s, shareVFs)
	if s := l.settings(l40s); !s.Equal || *s.Actual.Scheduler.Actual != *fixedShare.Scheduler {
		t.Errorf("%+v", s)
	}
	// Off fails when the driver is off the card already: what it had comes back whole.
	for _, f := range []sim.ToolFault{sim.ToolHalf, sim.ToolLies, sim.ToolHalf} {
		if err := l.sim.FailTool(f, 1); err != nil {
			t.Fatal(err)
		}
		op := l.setVFs(l40s, 0)
		if s, n := l.settings(l40s), len(l.vfs(l40s).Functions); !s.Equal || (n == shareVFs) != (op.Status == operation.Undone) {
			t.Errorf("%s: %+v with %d functions after %+v", f, s, n, op.Problem)
		}
		if op.Status == operation.Done {
			l.mustSetVFs(l40s, shareVFs)
		}
	}
	// The scheduler cannot be set again: then there are no functions either.
	l.mustSetVFs(l40s, 0)
	l.sim.NVML.Fail("SetVgpuSchedulerState", mig.ErrUnknown, 1)
	if op := l.setVFs(l40s, shareVFs); op.Status != operation.Undone || len(l.vfs(l40s).Functions) != 0 {
		t.Errorf("%+v", op)
	}
}

// After a reboot the scheduler is set before the first vGPU, and twice is no write (T10).
func TestSchedulerAfterReboot_T10(t *testing.T) {
	for _, mdev := range []bool{true, false} {
		l := newShareLab(t, mdev)
		l.mustSet(l40s, fixedShare)
		l.attach("gfx", gpu.Wish{VM: "db1", Profile: "L40S-8Q"})
		if err := l.sim.Reboot(); err != nil {
			t.Fatal(err)
		}
		n := l.sets()
		done, err := l.restore(time.Minute)
		if err != nil || len(done) != 1 || !done[0].Made || l.sets() != n+1 {
			t.Fatalf("%+v, %v, %d calls", done, err, l.sets()-n)
		}
		if s := l.settings(l40s); !s.Equal || *s.Actual.Scheduler.Actual != *fixedShare.Scheduler || l.degraded(l40s) != "" {
			t.Errorf("%+v, %q", s, l.degraded(l40s))
		}
		writes := l.wrote()
		if _, err := l.restore(time.Minute); err != nil || l.sets() != n+1 || l.wrote() != writes {
			t.Errorf("the second restore: %v, %d calls", err, l.sets()-n)
		}
	}
}

// A scheduler that cannot be set at boot takes no vGPU with it: the GPU is Degraded, and
// says why. So it is where a vGPU is there first.
func TestSchedulerFailsAtBoot(t *testing.T) {
	for name, prepare := range map[string]func(*lab){
		"the driver fails": func(l *lab) { l.sim.NVML.Fail("SetVgpuSchedulerState", mig.ErrResetRequired, 1) },
		"somebody was faster": func(l *lab) {
			if out, err := l.sim.RunTool(t.Context(), "sriov-manage", "-e", string(l40s)); err != nil {
				t.Fatal(out, err)
			}
			if err := l.sim.Sysfs.Write(t.Context(), typeFile("0000:61:00.7"), "1152"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newShareLab(t, false)
			l.mustSet(l40s, fixedShare)
			a := l.attach("gfx", gpu.Wish{VM: "db1", Profile: "L40S-8Q"})
			if err := l.sim.Reboot(); err != nil {
				t.Fatal(err)
			}
			prepare(l)
			done, err := l.restore(time.Minute)
			if err == nil || !strings.Contains(err.Error(), "cannot restore the scheduler of vGPUs of gpu "+string(l40s)) || len(done) != 1 || !done[0].Made {
				t.Errorf("%+v, %v", done, err)
			}
			if p, err := l.Partition(t.Context(), a.Partition); err != nil || p.State != gpu.PartitionMade {
				t.Errorf("%+v, %v", p, err)
			}
			why := l.degraded(l40s)
			if !strings.Contains(why, "asked for scheduler fixed-share, 5000000 ns, but it is best-effort") {
				t.Errorf("%q", why)
			}
		})
	}
}

// A driver that is late is waited for (T05).
func TestSchedulerWaitsForItsGPU_T05(t *testing.T) {
	l := newShareLab(t, false)
	l.mustSet(l40s, fixedShare)
	l.attach("gfx", gpu.Wish{VM: "db1", Profile: "L40S-8Q"})
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if err := l.sim.Appear(string(l40s), 200*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if done, err := l.restore(time.Minute); err != nil || !done[0].Made {
		t.Errorf("%+v, %v", done, err)
	}
	if s := l.settings(l40s); !s.Equal {
		t.Errorf("%+v", s)
	}
}

// What somebody else sets is told, and mended by nobody.
func TestSchedulerDrift(t *testing.T) {
	l := newShareLab(t, false)
	_, _, events := l.Events(t.Context(), 0)
	l.mustSet(l40s, fixedShare)
	n := l.sets()
	if err := l.sim.Schedule(string(l40s), gpu.Scheduler{Policy: gpu.EqualShare, TimeSliceNS: 1e6}); err != nil {
		t.Fatal(err)
	}
	e := next(t, events, "gpu.drifted")
	const want = "asked for scheduler fixed-share, 5000000 ns, but it is equal-share, 1000000 ns"
	if e.Detail["reason"] != "VGPUSettings" || e.Detail["message"] != want || !strings.HasPrefix(l.degraded(l40s), want) || l.sets() != n {
		t.Errorf("%+v, %q", e, l.degraded(l40s))
	}
	if s := l.settings(l40s); s.Equal {
		t.Errorf("%+v", s)
	}
	// Who puts it again has it.
	l.mustSet(l40s, fixedShare)
	if s := l.settings(l40s); !s.Equal || l.degraded(l40s) != "" {
		t.Errorf("%+v", s)
	}
}

// A daemon that is killed before or after the call carries it to its end at its next
// start; the wish is recorded or it is not (T01).
func TestCrashInScheduler_T01(t *testing.T) {
	l := newShareLab(t, false)
	l.mustSet(l40s, scheduler(gpu.EqualShare, 0))
	var images []string
	l.sim.NVML.OnCall(func(sim.Call) { images = append(images, l.image()) })
	l.mustSet(l40s, fixedShare)
	l.sim.NVML.OnCall(nil)
	late := t.TempDir()
	if err := os.CopyFS(late, os.DirFS(images[0])); err != nil {
		t.Fatal(err)
	}
	if len(images) != 2 {
		t.Fatalf("%d calls were seen", len(images))
	}
	for i, dir := range images {
		k := openLab(t, dir)
		k.settled()
		if s := k.settings(l40s); !s.Equal || !s.Wanted.Equal(fixedShare) {
			t.Errorf("image %d: %+v", i, s)
		}
	}
	// The host has booted meanwhile, and its GPU is late.
	h, err := sim.Open(filepath.Join(late, "sim"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.Reboot(), h.Appear(string(l40s), 300*time.Millisecond), h.Close()); err != nil {
		t.Fatal(err)
	}
	l = openLab(t, late)
	l.settled()
	if s := l.settings(l40s); !s.Equal {
		t.Errorf("%+v", s)
	}
}

// What fails is undone, with the record.
func TestSchedulerIsUndone(t *testing.T) {
	l := newShareLab(t, false)
	l.mustSet(l40s, scheduler(gpu.EqualShare, 3e6))
	l.sim.NVML.Fail("SetVgpuSchedulerState", mig.ErrUnknown, 1)
	op := l.set(l40s, fixedShare)
	if s := l.settings(l40s); op.Status != operation.Undone || !s.Equal || !s.Wanted.Equal(scheduler(gpu.EqualShare, 3e6)) {
		t.Errorf("%+v, %+v", op, s)
	}
	// Two at once: one of them is told who holds the GPU, or finds it done.
	type answer struct {
		op  *operation.Operation
		err error
	}
	answers := make(chan answer)
	for range 2 {
		go func() {
			_, op, err := l.PutVGPUSettings(t.Context(), "test", l40s, fixedShare)
			answers <- answer{op, err}
		}()
	}
	started := 0
	for range 2 {
		a := <-answers
		var held *operation.ConflictError
		if a.op != nil {
			started++
			l.finish(*a.op, nil)
		} else if a.err != nil && !asConflict(a.err, &held) {
			t.Error(a.err)
		}
	}
	if s := l.settings(l40s); started < 1 || !s.Equal || !s.Wanted.Equal(fixedShare) {
		t.Errorf("%d started: %+v", started, s)
	}
}
