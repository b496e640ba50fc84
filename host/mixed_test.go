package host_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/operation"
)

func mixedSize(on bool) gpu.VGPUWish { return gpu.VGPUWish{MixedSize: &on} }

// newMixedLab has an L40S of one or the other generation, whose vGPUs may differ in size.
func newMixedLab(t *testing.T, mdev bool) *lab {
	t.Helper()
	l := newShareLab(t, mdev)
	l.mustSet(l40s, mixedSize(true))
	return l
}

// addVMs defines so many more, called vm1, vm2, …, which are off.
func addVMs(t *testing.T, l *lab, n int) {
	t.Helper()
	for i := range n {
		vm := gpu.VM{UUID: fmt.Sprintf("00000000-0000-4000-8000-%012d", i+1), Name: fmt.Sprintf("vm%d", i+1), State: gpu.VMShutoff, Persistent: true}
		if err := l.sim.Libvirt.SetVM(vm); err != nil {
			t.Fatal(err)
		}
	}
}

// vgpusOn lists the profiles of the vGPUs of a GPU, the largest first.
func (l *lab) vgpusOn(id gpu.ID) (out []string) {
	l.t.Helper()
	all, err := l.Partitions(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	for _, p := range all {
		if p.GPU == id && p.State == gpu.PartitionMade {
			out = append(out, p.Profile)
		}
	}
	slices.SortFunc(out, func(a, b string) int { return len(b) - len(a) + strings.Compare(b, a) })
	return out
}

// Mixed sizes are turned on and off, on request, with what blocks them named; what is so
// already is not set.
func TestMixedSizeLife(t *testing.T) {
	for _, mdev := range []bool{true, false} {
		l := newLab(t, shared(mdev))
		l.manage(l40s)
		_, op, err := l.PutVGPUSettings(t.Context(), "test", l40s, mixedSize(true))
		e := wantCode(t, err, gpu.CodeConflict)
		if op != nil || !strings.Contains(err.Error(), "none of its 8 are on") || !strings.Contains(e.Hint, "gpuvirt sriov set") {
			t.Errorf("%v, %+v", err, e)
		}
		// Off is what it is without them.
		if s, op, err := l.PutVGPUSettings(t.Context(), "test", l40s, mixedSize(false)); op != nil || err != nil || !s.Equal {
			t.Errorf("%+v, %+v, %v", s, op, err)
		}
		l.mustSetVFs(l40s, shareVFs)
		if l.sets() != 0 {
			t.Errorf("%d calls", l.sets())
		}
		plan, err := l.PlanPutVGPUSettings(t.Context(), l40s, mixedSize(true))
		if err != nil || len(plan.Steps) != 1 || plan.Steps[0].Summary != "set mixed sizes on of 0000:61:00.0" || l.sets() != 0 {
			t.Errorf("%+v, %v", plan, err)
		}
		l.mustSet(l40s, mixedSize(true))
		if s := l.settings(l40s); !s.Equal || !*s.Actual.MixedSize.Actual {
			t.Errorf("%+v", s)
		}
		l.attach("large", gpu.Wish{VM: "web1", Profile: "L40S-24Q"})
		l.attach("small", gpu.Wish{VM: "web2", Profile: "L40S-4Q"})
		_, _, err = l.PutVGPUSettings(t.Context(), "test", l40s, mixedSize(false))
		e = wantCode(t, err, gpu.CodeGPUBusy)
		if !slices.ContainsFunc(e.Blockers, func(b gpu.Blocker) bool { return b.Kind == "vm" && b.Name == "web2" }) {
			t.Errorf("%+v", e.Blockers)
		}
		l.detach("large")
		l.detach("small")
		l.mustSet(l40s, mixedSize(false))
		if s := l.settings(l40s); !s.Equal || *s.Actual.MixedSize.Actual || l.sets() != 2 {
			t.Errorf("%+v, %d calls", s, l.sets())
		}
	}
}

// A fixed share is one of as many as fit of one size: the two exclude each other, and going
// from one to the other the driver is told in the order that it takes.
func TestMixedSizeAndFixedShare(t *testing.T) {
	l := newShareLab(t, false)
	both := mixedSize(true)
	both.Scheduler = fixedShare.Scheduler
	_, _, err := l.PutVGPUSettings(t.Context(), "test", l40s, both)
	wantCode(t, err, gpu.CodeInvalid)
	mix := func(on bool) { // as somebody else does
		t.Helper()
		if err := l.sim.Mix(string(l40s), on); err != nil {
			t.Fatal(err)
		}
	}
	mix(true)
	_, _, err = l.PutVGPUSettings(t.Context(), "test", l40s, fixedShare)
	wantCode(t, err, gpu.CodeConflict)
	mix(false)
	l.mustSet(l40s, fixedShare)
	_, _, err = l.PutVGPUSettings(t.Context(), "test", l40s, mixedSize(true)) // beside what was asked for before
	wantCode(t, err, gpu.CodeInvalid)
	if err := l.sim.Schedule(string(l40s), gpu.Scheduler{Policy: gpu.EqualShare}); err != nil {
		t.Fatal(err)
	}
	both.Scheduler = &gpu.Scheduler{Policy: gpu.EqualShare, TimeSliceNS: 3e6}
	order := func(w gpu.VGPUWish) (out []string) {
		t.Helper()
		plan, err := l.PlanPutVGPUSettings(t.Context(), l40s, w)
		if err != nil || plan.Refusal != nil {
			t.Fatalf("%+v, %v", plan, err)
		}
		for _, s := range plan.Steps {
			out = append(out, strings.Fields(s.Summary)[1])
		}
		return out
	}
	if got := order(both); !slices.Equal(got, []string{"scheduler", "mixed"}) {
		t.Errorf("on: %q", got)
	}
	l.mustSet(l40s, both)
	_, _, err = l.PutVGPUSettings(t.Context(), "test", l40s, fixedShare)
	wantCode(t, err, gpu.CodeInvalid)
	back := mixedSize(false)
	back.Scheduler = fixedShare.Scheduler
	if got := order(back); !slices.Equal(got, []string{"mixed", "scheduler"}) {
		t.Errorf("off: %q", got)
	}
	// The second fails: the first is undone, and with it what was recorded.
	l.sim.NVML.Fail("SetVgpuSchedulerState", mig.ErrUnknown, 1)
	if op := l.set(l40s, back); op.Status != operation.Undone {
		t.Errorf("%+v", op)
	}
	if s := l.settings(l40s); !s.Equal || !s.Wanted.Equal(both) || !*s.Actual.MixedSize.Actual {
		t.Errorf("%+v", s)
	}
	l.mustSet(l40s, back)
	if s := l.settings(l40s); !s.Equal || *s.Actual.MixedSize.Actual {
		t.Errorf("%+v", s)
	}
}

// A card that has no such mode, and one that MIG cuts.
func TestMixedSizeRefused(t *testing.T) {
	one := shared(false)
	one.VGPU.OneSize = true
	l := newLab(t, one, sim.T4("0000:08:00.0", 0), sim.H100(string(hopper), 0).WithVGPU(false))
	l.manage(l40s, "0000:08:00.0", hopper)
	l.mustSetVFs(l40s, shareVFs)
	l.mustLay(hopper, "")
	for id, code := range map[gpu.ID]gpu.Code{l40s: gpu.CodeNotFound, "0000:08:00.0": gpu.CodeNotFound, hopper: gpu.CodeConflict} {
		_, op, err := l.PutVGPUSettings(t.Context(), "test", id, mixedSize(true))
		if gpu.CodeOf(err) != code || op != nil || l.sets() != 0 {
			t.Errorf("%s: %v, %+v", id, err, op)
		}
	}
}

// A batch of several sizes is planned by the places that there are, and made in an order in
// which the driver finds them. Put in another order, one after the other, they would not fit.
func TestApplyMixed(t *testing.T) {
	for _, mdev := range []bool{true, false} {
		l := newMixedLab(t, mdev)
		addVMs(t, l, 8)
		// Beside 24 GB there is one place of 16, and what is between them.
		words := []string{"a=vm1:L40S-2Q", "b=vm2:L40S-4C", "c=vm3:L40S-16Q", "d=vm4:L40S-24Q", "e=vm5:L40S-2B"}
		plan, err := l.PlanApplyAssignments(t.Context(), wishes(words...))
		if err != nil || plan.Refusal != nil || len(plan.Steps) != 10 {
			t.Fatalf("%+v, %v", plan, err)
		}
		for i, profile := range []string{"L40S-24Q", "L40S-16Q", "L40S-4C", "L40S-2", "L40S-2"} {
			if s := plan.Steps[i]; s.Kind != "partition.make" || !strings.Contains(s.Summary, profile) {
				t.Errorf("step %d is %+v, want %s", i, s, profile)
			}
		}
		if op := l.apply(words...); op.Status != operation.Done {
			t.Fatalf("%+v", op.Problem)
		}
		if got := l.vgpusOn(l40s); len(got) != 5 {
			t.Errorf("%q", got)
		}
		// The card is full to the last slot.
		_, _, err = l.ApplyAssignments(t.Context(), "test", wishes(append(words, "f=vm6:L40S-1Q")...), gpu.Idempotency{})
		wantCode(t, err, gpu.CodeNoCapacity)
	}
}

// What does not fit by its places is refused though its sizes would, and nothing is made;
// and what fits as of one size is not told to fit.
func TestApplyMixedRefused(t *testing.T) {
	l := newMixedLab(t, false)
	addVMs(t, l, 8)
	n := l.wrote()
	for name, words := range map[string][]string{
		"three of 16 GB, which fit as of one size": {"a=vm1:L40S-16Q", "b=vm2:L40S-16Q", "c=vm3:L40S-16Q"},
		"12 GB beside 24 and 16":                   {"a=vm1:L40S-24Q", "b=vm2:L40S-16Q", "c=vm3:L40S-12Q"},
		"two of 4 GB between 24 and 16":            {"a=vm1:L40S-4Q", "b=vm2:L40S-4C", "c=vm3:L40S-16Q", "d=vm4:L40S-24Q"},
		"8 GB between two of 16, and 6":            {"a=vm1:L40S-16Q", "b=vm2:L40S-16Q", "c=vm3:L40S-8Q", "d=vm4:L40S-8Q", "e=vm5:L40S-6Q"},
	} {
		_, op, err := l.ApplyAssignments(t.Context(), "test", wishes(words...), gpu.Idempotency{})
		if gpu.CodeOf(err) != gpu.CodeNoCapacity || op != nil || l.wrote() != n {
			t.Errorf("%s: %+v, %v", name, op, err)
		}
	}
	available := func(profile string) int {
		t.Helper()
		c, err := l.Capacity(t.Context(), profile)
		if err != nil || len(c) != 1 {
			t.Fatalf("%+v, %v", c, err)
		}
		return c[0].Available
	}
	for profile, want := range map[string]int{"L40S-16Q": 2, "L40S-24Q": 2, "L40S-8Q": 4, "L40S-48Q": 1, "L40S-1Q": 8} {
		if got := available(profile); got != want {
			t.Errorf("%d of %s, not %d", got, profile, want)
		}
	}
	l.attach("large", gpu.Wish{VM: "vm1", Profile: "L40S-24Q"})
	for profile, want := range map[string]int{"L40S-16Q": 1, "L40S-24Q": 1, "L40S-8Q": 2, "L40S-48Q": 0} {
		if got := available(profile); got != want {
			t.Errorf("beside 24 GB: %d of %s, not %d", got, profile, want)
		}
	}
}

// A driver that does not tell the places is asked all the same: nothing is refused that it
// may take, and what it refuses is undone whole.
func TestApplyMixedWithoutPlaces(t *testing.T) {
	l := newMixedLab(t, false)
	addVMs(t, l, 8)
	l.stop()
	l.library = withoutPlaces{l.sim.NVML}
	l.start()
	if op := l.apply("a=vm1:L40S-8Q", "b=vm2:L40S-16Q", "c=vm3:L40S-24Q"); op.Status != operation.Done || !strings.Contains(op.Steps[0].Summary, "L40S-24Q") {
		t.Errorf("%+v", op)
	}
	for _, name := range []string{"a", "b", "c"} {
		l.detach(name)
	}
	if op := l.apply("a=vm1:L40S-12Q", "b=vm2:L40S-16Q", "c=vm3:L40S-16Q"); op.Status != operation.Undone {
		t.Errorf("%+v", op)
	}
	if got := l.vgpusOn(l40s); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

// withoutPlaces is a library that lacks the functions for places.
type withoutPlaces struct{ mig.Library }

func (w withoutPlaces) Open() (mig.Session, error) {
	s, err := w.Library.Open()
	return placelessSession{s}, err
}

type placelessSession struct{ mig.Session }

func (s placelessSession) Device(a gpu.Address) (mig.Device, error) {
	d, err := s.Session.Device(a)
	return placelessDevice{d}, err
}

type placelessDevice struct{ mig.Device }

func (placelessDevice) Placements(uint32) (gpu.VGPUPlacements, error) {
	return gpu.VGPUPlacements{}, mig.ErrFunctionNotFound
}

// Functions that go off and on come back mixed.
func TestMixedSizeOutlivesVFs(t *testing.T) {
	l := newMixedLab(t, false)
	w := scheduler(gpu.EqualShare, 2e6)
	l.mustSet(l40s, w)
	l.mustSetVFs(l40s, 0)
	if s := l.settings(l40s); !s.Equal || s.Actual.MixedSize.Supported {
		t.Errorf("%+v", s)
	}
	if op := l.setVFs(l40s, shareVFs); op.Status != operation.Done || len(op.Steps) != 3 {
		t.Errorf("%+v", op)
	}
	if s := l.settings(l40s); !s.Equal || !*s.Actual.MixedSize.Actual || s.Actual.Scheduler.Actual.TimeSliceNS != 2e6 {
		t.Errorf("%+v", s)
	}
	// Drift is told.
	_, _, events := l.Events(t.Context(), 0)
	if err := l.sim.Mix(string(l40s), false); err != nil {
		t.Fatal(err)
	}
	if e := next(t, events, "gpu.drifted"); e.Detail["message"] != "asked for mixed sizes on, but they are off" {
		t.Errorf("%+v", e)
	}
}

// A driver that has mixed sizes no more keeps nobody from turning functions on: the step
// says that it was not set, and the GPU is Degraded.
func TestMixedSizeLackingAfterVFs(t *testing.T) {
	l := newMixedLab(t, false)
	l.mustSetVFs(l40s, 0)
	if err := l.sim.Change(string(l40s), func(c *sim.Card) { c.VGPU.OneSize = true }); err != nil { // another driver
		t.Fatal(err)
	}
	op := l.setVFs(l40s, shareVFs)
	if op.Status != operation.Done || len(l.vfs(l40s).Functions) != shareVFs {
		t.Fatalf("%s, %+v", op.Status, op.Problem)
	}
	last := op.Steps[len(op.Steps)-1]
	if !slices.ContainsFunc(last.Log, func(line operation.LogLine) bool {
		return strings.Contains(line.Text, "not set: its vGPUs cannot differ in size now")
	}) {
		t.Errorf("%+v", last)
	}
	if s, why := l.settings(l40s), l.degraded(l40s); s.Equal || !strings.Contains(why, "asked for mixed sizes on, but NVIDIA's driver has no mixed sizes") {
		t.Errorf("%+v, %q", s, why)
	}
	l.attach("a", gpu.Wish{VM: "web1", Profile: "L40S-8Q"})
}

// What was asked for before MIG was turned on holds again when it is turned off.
func TestSettingsAfterMIG(t *testing.T) {
	c := sim.H100(string(hopper), 0).WithVGPU(false)
	c.SRIOV.TotalVFs = shareVFs
	l := newLab(t, c)
	l.manage(hopper)
	l.mustSetVFs(hopper, shareVFs)
	both := scheduler(gpu.EqualShare, 3e6)
	both.MixedSize = mixedSize(true).MixedSize
	l.mustSet(hopper, both)
	l.mustLay(hopper, "")
	plan, err := l.PlanPutLayout(t.Context(), hopper, gpu.Layout{})
	if err != nil || len(plan.Steps) != 5 || plan.Steps[3].Kind != "vgpu.set" || plan.Steps[4].Kind != "vgpu.set" {
		t.Errorf("%+v, %v", plan, err)
	}
	if op := l.lay(hopper, gpu.Layout{}); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	if s := l.settings(hopper); !s.Equal || !*s.Actual.MixedSize.Actual || s.Actual.Scheduler.Actual.TimeSliceNS != 3e6 || l.degraded(hopper) != "" {
		t.Errorf("%+v, %q", s, l.degraded(hopper))
	}
}

// A card without SR-IOV has no functions to count: on one whose sizes somebody mixes, what
// its driver offers is what there is.
func TestApplyMixedWithoutSRIOV(t *testing.T) {
	l := newLab(t, sim.T4(string(t4), 0))
	addVMs(t, l, 4)
	l.stop()
	l.library = mixedAnyway{l.sim.NVML}
	l.start()
	l.manage(t4)
	if op := l.apply("a=vm1:T4-1Q", "b=vm2:T4-1Q", "c=vm3:T4-1Q"); op.Status != operation.Done {
		t.Errorf("%+v", op.Problem)
	}
}

// mixedAnyway is a library that tells of every card that its vGPUs may differ in size, and of
// 16 places for each type.
type mixedAnyway struct{ mig.Library }

func (w mixedAnyway) Open() (mig.Session, error) {
	s, err := w.Library.Open()
	return mixedSession{s}, err
}

type mixedSession struct{ mig.Session }

func (s mixedSession) Device(a gpu.Address) (mig.Device, error) {
	d, err := s.Session.Device(a)
	return mixedDevice{d}, err
}

type mixedDevice struct{ mig.Device }

func (mixedDevice) MixedSize() (mig.MixedSize, error) {
	return mig.MixedSize{Supported: true, On: true}, nil
}

func (mixedDevice) VGPUTypes() ([]gpu.VGPUType, error) {
	return []gpu.VGPUType{{ID: 230, Name: "GRID T4-1Q"}}, nil
}

func (mixedDevice) Placements(typ uint32) (gpu.VGPUPlacements, error) {
	p := gpu.VGPUPlacements{Type: typ, Size: 1}
	for i := range 16 {
		p.Starts = append(p.Starts, i)
	}
	p.Free = p.Starts
	return p, nil
}
