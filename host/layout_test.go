package host_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/operation"
)

const (
	ampere = gpu.ID("0000:41:00.0") // keeps its MIG mode over a reboot
	hopper = gpu.ID("0000:42:00.0") // does not
)

func newMIGLab(t *testing.T) *lab {
	t.Helper()
	l := newLab(t, sim.A100(string(ampere), 0), sim.H100(string(hopper), 1), sim.Mbochs())
	l.manage(ampere, hopper)
	return l
}

// cut reads "3g.20gb@4 1g.5gb 2g.10gb:1c,1c".
func cut(text string) gpu.Layout {
	out := gpu.Layout{Enabled: true}
	for _, word := range strings.Fields(text) {
		word, compute, _ := strings.Cut(word, ":")
		profile, at, placed := strings.Cut(word, "@")
		in := gpu.LayoutInstance{Profile: profile, Place: gpu.AnyPlace}
		if placed {
			in.Place = int(at[0] - '0')
		}
		for _, c := range strings.FieldsFunc(compute, func(r rune) bool { return r == ',' }) {
			in.Compute = append(in.Compute, c+"."+profile)
		}
		out.Instances = append(out.Instances, in)
	}
	return out
}

func (l *lab) layout(id gpu.ID) gpu.LayoutState {
	l.t.Helper()
	s, err := l.Layout(l.t.Context(), id)
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// show is what is there: "1g.5gb@0 3g.20gb@4".
func show(s gpu.LayoutState) string {
	var out []string
	for _, in := range s.Actual.Instances {
		text := fmt.Sprintf("%s@%d", in.Profile, in.Place)
		if len(in.Compute) != 1 {
			text += fmt.Sprintf(":%d", len(in.Compute))
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

// lay lays a GPU out and waits.
func (l *lab) lay(id gpu.ID, want gpu.Layout) operation.Operation {
	l.t.Helper()
	s, op, err := l.PutLayout(l.t.Context(), "test", id, want)
	if err != nil {
		l.t.Fatal(err)
	}
	if op == nil {
		if !s.Equal {
			l.t.Fatalf("no operation, and the layout is another: %+v", s)
		}
		return operation.Operation{Status: operation.Done}
	}
	return l.finish(*op, nil)
}

func (l *lab) mustLay(id gpu.ID, text string) {
	l.t.Helper()
	if op := l.lay(id, cut(text)); op.Status != operation.Done {
		l.t.Fatalf("%+v", op.Problem)
	}
}

// A layout is made from nothing, changes one instance beside those in use, and goes.
func TestLayoutLife_T29_T30(t *testing.T) {
	l := newMIGLab(t)
	if s := l.layout(ampere); s.Wanted != nil || s.Actual.Enabled || !s.Equal || len(s.Profiles) == 0 {
		t.Errorf("before anything: %+v", s)
	}
	l.mustLay(ampere, "3g.20gb 2g.10gb 1g.5gb 1g.5gb")
	s := l.layout(ampere)
	if show(s) != "1g.5gb@0 1g.5gb@1 2g.10gb@2 3g.20gb@4" || !s.Equal || !s.Wanted.Enabled || len(s.Wanted.Instances) != 4 {
		t.Errorf("%s, %+v", show(s), s)
	}
	before := s.Partitions
	if err := l.sim.Compute(string(ampere), mig.Process{PID: 4711, Instance: number(t, before[3].Instance)}); err != nil {
		t.Fatal(err)
	}
	calls := len(l.sim.NVML.Calls())
	l.mustLay(ampere, "1g.5gb 1g.5gb 1g.5gb 1g.5gb 3g.20gb")
	s = l.layout(ampere)
	if show(s) != "1g.5gb@0 1g.5gb@1 1g.5gb@2 1g.5gb@3 3g.20gb@4" || !s.Equal {
		t.Errorf("%s, %+v", show(s), s)
	}
	for _, kept := range []int{0, 1, 3} {
		i := slices.IndexFunc(s.Partitions, func(p gpu.Partition) bool { return p.ID == before[kept].ID })
		if i < 0 || s.Partitions[i].Instance != before[kept].Instance || !cmp.Equal(s.Partitions[i].Compute, before[kept].Compute) {
			t.Errorf("%+v was to be kept: %+v", before[kept], s.Partitions)
		}
	}
	for _, c := range l.sim.NVML.Calls()[calls:] {
		gone := before[2].Instance
		if c.Card != string(ampere) || c.Err != nil || strings.HasPrefix(c.Name, "Destroy") && !strings.HasPrefix(c.Args, gone) {
			t.Errorf("touched: %v", c)
		}
	}
	// In the way of the larger is the one in use.
	_, _, err := l.PutLayout(t.Context(), "test", ampere, cut("7g.40gb"))
	if e := wantCode(t, err, gpu.CodeGPUBusy); len(e.Blockers) != 1 || e.Blockers[0].ID != string(ampere)+"/mig/4" || !strings.Contains(e.Blockers[0].Note, "4711") {
		t.Errorf("%+v", e.Blockers)
	}
	plan, err := l.PlanPutLayout(t.Context(), ampere, cut("7g.40gb"))
	if err != nil || gpu.CodeOf(plan.Refusal) != gpu.CodeGPUBusy || plan.Changes {
		t.Errorf("dry run: %+v, %v", plan, err)
	}
	if err := l.sim.Idle(string(ampere)); err != nil {
		t.Fatal(err)
	}
	calls = len(l.sim.NVML.Calls())
	plan, err = l.PlanPutLayout(t.Context(), ampere, cut("7g.40gb"))
	if err != nil || plan.Refusal != nil || len(plan.Steps) != 6 || plan.Steps[5].Summary != "make 7g.40gb on 0000:41:00.0 at 0" {
		t.Errorf("dry run: %+v, %v", plan, err)
	}
	if n := len(l.sim.NVML.Calls()); n != calls {
		t.Errorf("a dry run called the driver %d times", n-calls)
	}
	if op := l.lay(ampere, gpu.Layout{}); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	if s := l.layout(ampere); s.Actual.Enabled || len(s.Partitions) > 0 || s.Wanted == nil || s.Wanted.Enabled || !s.Equal {
		t.Errorf("%+v", s)
	}
	if s := l.layout(hopper); s.Actual.Enabled || s.Wanted != nil {
		t.Errorf("the other card: %+v", s)
	}
}

func number(t *testing.T, text string) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(text, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// What is there already is not made again, and the second time nothing is written.
func TestLayoutTwice(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "3g.20gb 1g.5gb")
	calls := len(l.sim.NVML.Calls())
	for _, text := range []string{"1g.5gb 3g.20gb", "3g.20gb@4 1g.5gb"} {
		s, op, err := l.PutLayout(t.Context(), "test", ampere, cut(text))
		if op != nil || err != nil || !s.Equal {
			t.Errorf("%s: %+v, %v, %+v", text, op, err, s)
		}
		if plan, err := l.PlanPutLayout(t.Context(), ampere, cut(text)); err != nil || plan.Changes || plan.Refusal != nil {
			t.Errorf("%+v, %v", plan, err)
		}
	}
	if n := len(l.sim.NVML.Calls()); n != calls {
		t.Errorf("%d calls", n-calls)
	}
}

// The places come back after a reboot, on a card that keeps its mode and on one that
// does not; the second time nothing is written.
func TestLayoutAfterReboot_T10_T34(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "3g.20gb@0 2g.10gb:1c,1c 1g.5gb")
	l.mustLay(hopper, "1g.10gb@3 3g.40gb@4")
	before := map[gpu.ID]gpu.LayoutState{ampere: l.layout(ampere), hopper: l.layout(hopper)}
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	for id, n := range map[gpu.ID]int{ampere: 3, hopper: 2} {
		s := l.layout(id)
		if s.Equal || len(s.Actual.Instances) != 0 || len(s.Wanted.Instances) != n || len(s.Partitions) != n || s.Partitions[0].State != gpu.PartitionMissing {
			t.Errorf("after the reboot: %+v", s)
		}
	}
	done, err := l.restore(time.Minute)
	if err != nil || len(done) != 5 {
		t.Fatalf("restored %+v: %v", done, err)
	}
	for id, was := range before {
		s := l.layout(id)
		if !s.Equal || show(s) != show(was) {
			t.Errorf("%s is %s and was %s", id, show(s), show(was))
		}
		for i, p := range s.Partitions {
			if q := was.Partitions[i]; p.ID != q.ID || p.Compute[0].UUID == q.Compute[0].UUID {
				t.Errorf("%+v came back as %+v", q, p)
			}
		}
	}
	calls := len(l.sim.NVML.Calls())
	if done, err = l.restore(time.Minute); err != nil || len(done) != 5 || done[0].Made {
		t.Errorf("a second restore: %+v: %v", done, err)
	}
	if n := len(l.sim.NVML.Calls()); n != calls {
		t.Errorf("a second restore wrote: %v", l.sim.NVML.Calls()[calls:])
	}
}

// A mode without instances comes back as well.
func TestModeAfterReboot_T10(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(hopper, "")
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if s := l.layout(hopper); s.Actual.Enabled || s.Equal {
		t.Fatalf("%+v", s)
	}
	if _, err := l.restore(time.Minute); err != nil {
		t.Fatal(err)
	}
	if s := l.layout(hopper); !s.Actual.Enabled || !s.Equal {
		t.Errorf("%+v", s)
	}
}

// Whatever step fails, what was there before is there again.
func TestLayoutIsUndone_T02(t *testing.T) {
	for name, fail := range map[string]func(*lab){
		"the mode":           func(l *lab) { l.sim.NVML.Fail("SetMigMode", mig.ErrNoPermission, 1) },
		"the first instance": func(l *lab) { l.sim.NVML.Fail("CreateGpuInstance", mig.ErrUnknown, 1) },
		"a compute instance": func(l *lab) { l.sim.NVML.Fail("CreateComputeInstance", mig.ErrUnknown, 1) },
		"the last of all to make": func(l *lab) {
			l.sim.NVML.Fail("CreateComputeInstance", 0, 2)
			l.sim.NVML.Fail("CreateComputeInstance", mig.ErrUnknown, 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newMIGLab(t)
			fail(l)
			op := l.lay(hopper, cut("3g.40gb 1g.10gb 1g.10gb"))
			if op.Status != operation.Undone || op.Problem == nil {
				t.Fatalf("%+v", op)
			}
			s := l.layout(hopper)
			if s.Wanted != nil || s.Actual.Enabled || s.Mode.Pending || len(s.Partitions) > 0 {
				t.Errorf("%+v", s)
			}
			l.mustLay(hopper, "3g.40gb 1g.10gb 1g.10gb")
		})
	}
	t.Run("removals", func(t *testing.T) {
		l := newMIGLab(t)
		l.mustLay(ampere, "2g.10gb@0 2g.10gb@2 3g.20gb:1c,2c")
		before := l.layout(ampere)
		l.sim.NVML.Fail("CreateGpuInstance", mig.ErrUnknown, 1)
		if op := l.lay(ampere, cut("4g.20gb 3g.20gb:1c,2c")); op.Status != operation.Undone {
			t.Fatalf("%+v", op)
		}
		if s := l.layout(ampere); show(s) != show(before) || !s.Equal || len(s.Wanted.Instances) != 3 {
			t.Errorf("%s, before %s: %+v", show(s), show(before), s)
		}
	})
}

// A foreign instance is never removed. One that the layout names becomes ours.
func TestLayoutWithForeignInstances(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "")
	b, err := l.inv.Backend(gpu.KindMIG)
	if err != nil {
		t.Fatal(err)
	}
	foreign := gpu.Partition{ID: mig.PartitionID(ampere, "4"), GPU: ampere, Profile: "3g.20gb", Slot: "4"}
	if _, err := b.Make(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	if s := l.layout(ampere); s.Equal || len(s.Partitions) != 1 || s.Partitions[0].Origin != gpu.OriginForeign {
		t.Errorf("%+v", s)
	}
	_, _, err = l.PutLayout(t.Context(), "test", ampere, cut("2g.10gb@4"))
	if e := wantCode(t, err, gpu.CodeGPUBusy); len(e.Blockers) != 1 || e.Blockers[0].Note != "gpuvirt did not make it" {
		t.Errorf("%+v", e.Blockers)
	}
	calls := len(l.sim.NVML.Calls())
	l.mustLay(ampere, "3g.20gb")
	if s := l.layout(ampere); !s.Equal || s.Partitions[0].Origin != gpu.OriginManaged || len(l.sim.NVML.Calls()) != calls {
		t.Errorf("%+v", s)
	}
}

// Somebody else takes a place between the plan and the making: it is theirs, and stays
// when the operation is undone.
func TestPlaceIsTakenMeanwhile(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "")
	theirs := mig.NewBackend(l.sim.NVML, l.sim.Sysfs, mig.Options{})
	foreign := gpu.Partition{ID: mig.PartitionID(ampere, "4"), GPU: ampere, Profile: "3g.20gb", Slot: "4"}
	taken := false
	l.sim.NVML.OnCall(func(c sim.Call) {
		if c.Name == "CreateComputeInstance" && !taken {
			taken = true
			if _, err := theirs.Make(t.Context(), foreign); err != nil {
				t.Error(err)
			}
		}
	})
	op := l.lay(ampere, cut("1g.5gb 3g.20gb"))
	l.sim.NVML.OnCall(nil)
	if op.Status != operation.Undone || op.Problem.Code != string(gpu.CodeConflict) || len(op.Problem.Blockers) != 1 || op.Problem.Blockers[0].ID != foreign.ID {
		t.Errorf("%+v", op)
	}
	s := l.layout(ampere)
	if show(s) != "3g.20gb@4" || len(s.Partitions) != 1 || s.Partitions[0].Origin != gpu.OriginForeign {
		t.Errorf("%s, %+v", show(s), s)
	}
}

// A card that is cut in another way keeps its mode: changing that may reset it.
func TestModeBesideMdevs_T29(t *testing.T) {
	c := sim.T4(string(ampere), 0)
	c.MIG = &sim.MIG{Model: "A30", ResetsForMode: true}
	l := newLab(t, c)
	l.manage(ampere)
	g, err := l.GPU(t.Context(), ampere)
	if err != nil || !slices.Equal(g.Kinds, []gpu.Kind{gpu.KindCard, gpu.KindMdev, gpu.KindMIG}) || !g.MIG.Capable || g.UUID == "" {
		t.Errorf("%+v, %v", g, err)
	}
	op := l.finish(l.CreatePartition(t.Context(), "test", gpu.PartitionWish{Profile: "T4-4Q"}, gpu.Idempotency{}))
	if op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	_, _, err = l.PutLayout(t.Context(), "test", ampere, cut("1g.6gb"))
	if e := wantCode(t, err, gpu.CodeGPUBusy); len(e.Blockers) != 1 || e.Blockers[0].Name != "T4-4Q" {
		t.Errorf("%+v", e)
	}
	ps, err := l.Partitions(t.Context())
	if err != nil || len(ps) != 1 {
		t.Fatalf("%+v, %v", ps, err)
	}
	l.finish(l.DeletePartition(t.Context(), "test", ps[0].ID))
	l.mustLay(ampere, "1g.6gb")
}

// Refusals name what stands in the way, and change nothing.
func TestLayoutRefused_T36(t *testing.T) {
	l := newMIGLab(t)
	_, err := l.Layout(t.Context(), "mbochs")
	wantCode(t, err, gpu.CodeNotFound)
	_, _, err = l.PutLayout(t.Context(), "test", "0000:ff:00.0", cut(""))
	wantCode(t, err, gpu.CodeNotFound)
	no := false
	if _, _, err := l.PatchGPU(t.Context(), "test", hopper, gpu.GPUPatch{Managed: &no}, false); err != nil {
		t.Fatal(err)
	}
	_, _, err = l.PutLayout(t.Context(), "test", hopper, cut("1g.10gb"))
	wantCode(t, err, gpu.CodeGPUUnmanaged)
	_, _, err = l.PutLayout(t.Context(), "test", ampere, cut("9g.90gb"))
	if e := wantCode(t, err, gpu.CodeProfileUnknown); !strings.Contains(e.Hint, "3g.20gb") {
		t.Errorf("%+v", e)
	}
	if n := l.sim.NVML.Sessions(); n != 0 {
		t.Errorf("%d sessions are open", n)
	}
}

// The mode of a GPU that somebody uses is not changed, and nothing waits for a reset
// afterwards. Who computes is known before anything is done; who only has it open is
// found when the driver refuses.
func TestModeOfGPUInUse_T29_T32_T36(t *testing.T) {
	l := newMIGLab(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for id, resets := range map[gpu.ID]bool{ampere: true, hopper: false} {
		plan, err := l.PlanPutLayout(t.Context(), id, cut(""))
		if err != nil || plan.NeedsReset != resets || slices.Contains(plan.MustBeIdle, string(id)) != resets {
			t.Errorf("%s: %+v, %v", id, plan, err)
		}
	}

	must(l.sim.Compute(string(ampere), mig.Process{PID: 9, Instance: -1}))
	_, _, err := l.PutLayout(t.Context(), "test", ampere, cut("1g.5gb"))
	if e := wantCode(t, err, gpu.CodeGPUBusy); len(e.Blockers) != 1 || e.Blockers[0].ID != "9" {
		t.Errorf("%+v", e)
	}
	if plan, err := l.PlanPutLayout(t.Context(), ampere, cut("1g.5gb")); err != nil || gpu.CodeOf(plan.Refusal) != gpu.CodeGPUBusy || plan.NeedsReset {
		t.Errorf("%+v, %v", plan, err)
	}
	if n := len(l.sim.NVML.Calls()); n != 0 {
		t.Errorf("the driver was asked for a change: %v", l.sim.NVML.Calls())
	}
	must(l.sim.Idle(string(ampere)))

	must(l.sim.Watch(string(ampere), 812, "nv-hostengine"))
	for blind, want := range map[bool][]operation.Blocker{false: {{Kind: "process", ID: "812", Name: "nv-hostengine"}}, true: nil} {
		must(l.sim.SetBlind(blind))
		op := l.lay(ampere, cut("1g.5gb"))
		if op.Status != operation.Undone || op.Problem.Code != string(gpu.CodeGPUBusy) || !slices.Equal(op.Problem.Blockers, want) {
			t.Errorf("blind %v: %+v, %+v", blind, op, op.Problem)
		}
		if s := l.layout(ampere); s.Mode.Current || s.Mode.Pending || s.Wanted != nil {
			t.Errorf("%+v", s)
		}
	}
	must(l.sim.SetBlind(false))
	must(l.sim.Idle(string(ampere)))
	l.mustLay(ampere, "1g.5gb")
	if plan, err := l.PlanPutLayout(t.Context(), ampere, cut("2g.10gb")); err != nil || plan.Refusal != nil || plan.NeedsReset {
		t.Errorf("a change of instances alone: %+v, %v", plan, err)
	}
}

// One more partition beside a layout, and one less; it lives on the host and is given
// to no VM.
func TestMIGPartition(t *testing.T) {
	l := newMIGLab(t)
	w := gpu.PartitionWish{GPU: ampere, Profile: "2g.10gb"}
	_, err := l.CreatePartition(t.Context(), "test", w, gpu.Idempotency{})
	wantCode(t, err, gpu.CodeProfileNotCreatable)
	l.mustLay(ampere, "3g.20gb")
	if op := l.finish(l.CreatePartition(t.Context(), "test", w, gpu.Idempotency{})); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	s := l.layout(ampere)
	if !s.Equal || len(s.Wanted.Instances) != 2 || len(s.Actual.Instances) != 2 {
		t.Errorf("%+v", s)
	}
	_, err = l.CreatePartition(t.Context(), "test", gpu.PartitionWish{GPU: ampere, Profile: "7g.40gb"}, gpu.Idempotency{})
	if e := wantCode(t, err, gpu.CodeNoCapacity); len(e.Blockers) != 2 ||
		!slices.ContainsFunc(e.Blockers, func(b gpu.Blocker) bool { return b.ID == mig.PartitionID(ampere, "4") && b.Name == "3g.20gb" }) {
		t.Errorf("%+v", e)
	}
	_, _, err = l.PutAssignment(t.Context(), "test", "a", gpu.Wish{VM: "web1", Profile: "1g.5gb", Placement: gpu.Pack, Hotplug: gpu.HotplugAuto})
	wantCode(t, err, gpu.CodeInvalid)
	i := slices.IndexFunc(s.Partitions, func(p gpu.Partition) bool { return p.Profile == "2g.10gb" })
	if op := l.finish(l.DeletePartition(t.Context(), "test", s.Partitions[i].ID)); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	if s := l.layout(ampere); show(s) != "3g.20gb@4" || !s.Equal {
		t.Errorf("%+v", s)
	}
}

// The library and the module of NVIDIA's driver differ, as after an upgrade without a
// reboot: what is on other cards goes on, and what cannot be looked at is not missing.
func TestOneBackendFails(t *testing.T) {
	l := newLab(t, sim.A100(string(ampere), 0), sim.GVTg("0000:00:02.0"), sim.Mbochs())
	l.manage(ampere, card, "0000:00:02.0")
	l.mustLay(ampere, "3g.20gb")
	l.sim.NVML.Fail("Init", mig.ErrVersionMismatch, 1000)
	gpus, err := l.GPUs(t.Context())
	if err != nil || len(gpus) != 3 {
		t.Fatalf("%+v, %v", gpus, err)
	}
	for _, g := range gpus {
		unknown := slices.ContainsFunc(g.Conditions, func(c gpu.Condition) bool {
			return c.Status && c.Type == gpu.Unknown && strings.Contains(c.Message, "different versions")
		})
		if unknown != (g.ID == ampere) {
			t.Errorf("%s: %+v", g.ID, g.Conditions)
		}
	}
	ps, err := l.Partitions(t.Context())
	if err != nil || len(ps) != 1 || ps[0].State != gpu.PartitionMade || len(ps[0].Conditions) != 1 || ps[0].Conditions[0].Type != gpu.Unknown {
		t.Errorf("%+v, %v", ps, err)
	}
	if p, err := l.Partition(t.Context(), ps[0].ID); err != nil || p.State != gpu.PartitionMade {
		t.Errorf("%+v, %v", p, err)
	}
	_, err = l.DeletePartition(t.Context(), "test", ps[0].ID)
	wantCode(t, err, gpu.CodeUnavailable)
	_, _, err = l.PutLayout(t.Context(), "test", ampere, gpu.Layout{})
	wantCode(t, err, gpu.CodeUnavailable)
	if info := l.Info(t.Context()); info.State != gpu.HostDegraded || len(info.Reasons) != 1 {
		t.Errorf("%+v", info)
	}
	for _, profile := range []string{size, "i915-GVTg_V5_8"} {
		if op := l.finish(l.CreatePartition(t.Context(), "test", gpu.PartitionWish{Profile: profile}, gpu.Idempotency{})); op.Status != operation.Done {
			t.Errorf("%s: %+v", profile, op.Problem)
		}
	}
}

// What somebody else does to a layout is told once, and mended by nobody.
func TestLayoutDrift(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "3g.20gb 1g.5gb")
	_, _, events := l.Events(t.Context(), 0)
	b, err := l.inv.Backend(gpu.KindMIG)
	if err != nil {
		t.Fatal(err)
	}
	var p gpu.Partition
	for _, q := range l.layout(ampere).Partitions {
		if q.Profile == "1g.5gb" {
			p = q
		}
	}
	calls := len(l.sim.NVML.Calls())
	if err := b.Remove(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	e := drifts(t, events, "but it is 3g.20gb@4")
	if e.Object != string(ampere) || !strings.HasPrefix(e.Detail["message"], "asked for 1g.5gb@") || !strings.HasSuffix(e.Detail["message"], "but it is 3g.20gb@4") {
		t.Errorf("%+v", e)
	}
	if s := l.layout(ampere); s.Equal || show(s) != "3g.20gb@4" || len(l.sim.NVML.Calls()) != calls+2 {
		t.Errorf("%+v", s)
	}
	for begin := time.Now(); ; <-time.After(time.Millisecond) { // the event comes a moment before
		c := l.Compared()
		if c.Drifted[gpu.DriftLayout] == 1 && len(c.Drifted) == 1 && !c.At.IsZero() {
			break
		}
		if time.Since(begin) > time.Minute {
			t.Fatalf("%+v", c)
		}
	}
}

// Where the policy says so a layout is put back, and the neighbours stay; what somebody
// else put there is not removed for it.
func TestLayoutRepair(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "3g.20gb 2g.10gb@0")
	repair := gpu.PolicyRepair
	if g, _, err := l.PatchGPU(t.Context(), "test", ampere, gpu.GPUPatch{Policy: &repair}, false); err != nil || g.Policy != repair {
		t.Fatalf("%+v, %v", g, err)
	}
	_, _, events := l.Events(t.Context(), 0)
	theirs := mig.NewBackend(l.sim.NVML, l.sim.Sysfs, mig.Options{})
	before := l.layout(ampere)
	if err := l.sim.Compute(string(ampere), mig.Process{PID: 1, Instance: number(t, before.Partitions[1].Instance)}); err != nil {
		t.Fatal(err)
	}
	if err := theirs.Remove(t.Context(), before.Partitions[0]); err != nil {
		t.Fatal(err)
	}
	drifts(t, events, "put back by operation")
	l.settled()
	s := l.layout(ampere)
	if !s.Equal || show(s) != show(before) || !cmp.Equal(s.Partitions[1].Compute, before.Partitions[1].Compute) {
		t.Errorf("%s: %+v", show(s), s)
	}
	// Somebody takes it out and something else in.
	for {
		if err := theirs.Remove(t.Context(), s.Partitions[0]); err != nil {
			t.Fatal(err)
		}
		_, err := theirs.Make(t.Context(), gpu.Partition{ID: mig.PartitionID(ampere, "1"), GPU: ampere, Profile: "1g.5gb", Slot: "1"})
		if err == nil {
			break
		}
		wantCode(t, err, gpu.CodeNoCapacity) // it was put back in between
		l.settled()
	}
	for e := next(t, events, "gpu.drifted"); !strings.Contains(e.Detail["message"], "it cannot be put back"); e = next(t, events, "gpu.drifted") {
		l.settled()
	}
	if s := l.layout(ampere); show(s) != "1g.5gb@1 3g.20gb@4" {
		t.Errorf("%s: %+v", show(s), s)
	}
}

// drifts waits until it is told that something has drifted in a way: a card may be looked at in the middle
// of a change, and is told of then as well.
func drifts(t *testing.T, events <-chan gpu.Event, how string) gpu.Event {
	t.Helper()
	for {
		if e := next(t, events, "gpu.drifted"); strings.Contains(e.Detail["message"], how) {
			return e
		}
	}
}

// next waits for an event of a type.
func next(t *testing.T, events <-chan gpu.Event, of string) gpu.Event {
	t.Helper()
	timeout := time.After(time.Minute)
	for {
		select {
		case e := <-events:
			if e.Type == of {
				return e
			}
		case <-timeout:
			t.Fatalf("no event %s", of)
		}
	}
}

// MIG is not turned off under a program that has the GPU open: no instance goes for what the
// driver would refuse in the end (T32). NVIDIA's own daemon is none of those.
func TestModeOffUnderMonitor_T32(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "3g.20gb@0 1g.5gb@4")
	watch := func(name string) {
		t.Helper()
		if err := l.sim.Watch(string(ampere), 812, name); err != nil {
			t.Fatal(err)
		}
	}
	watch("nv-hostengine")
	calls := len(l.sim.NVML.Calls())
	_, _, err := l.PutLayout(t.Context(), "test", ampere, gpu.Layout{})
	if e := wantCode(t, err, gpu.CodeGPUBusy); !slices.Equal(e.Blockers, []gpu.Blocker{{Kind: "process", ID: "812", Name: "nv-hostengine"}}) {
		t.Errorf("%+v", e)
	}
	if plan, err := l.PlanPutLayout(t.Context(), ampere, gpu.Layout{}); err != nil || plan.Changes || gpu.CodeOf(plan.Refusal) != gpu.CodeGPUBusy {
		t.Errorf("%+v, %v", plan, err)
	}
	if now := l.sim.NVML.Calls(); len(now) != calls {
		t.Errorf("%v", now[calls:])
	}
	// One instance goes all the same: its mode stays.
	l.mustLay(ampere, "3g.20gb@0")
	if err := l.sim.Idle(string(ampere)); err != nil {
		t.Fatal(err)
	}
	watch("nvidia-persiste") // as the kernel shortens it
	if plan, err := l.PlanPutLayout(t.Context(), ampere, gpu.Layout{}); err != nil || plan.Refusal != nil {
		t.Errorf("%+v, %v", plan, err)
	}
}
