package host_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/operation"
)

const l40s = gpu.ID("0000:61:00.0")

// generation gives the card at l40s the vGPUs of one or the other generation, as a host
// has that boots another kernel.
func (l *lab) generation(mdev bool) {
	l.t.Helper()
	if err := l.sim.Reboot(); err != nil {
		l.t.Fatal(err)
	}
	if err := l.sim.Change(string(l40s), func(c *sim.Card) { c.VGPU.Mdev = mdev }); err != nil {
		l.t.Fatal(err)
	}
}

// The same wish by name works on both kernel generations. When a host changes its own,
// what is stored survives: put again, it is converted, and back, after a dry run said so.
func TestGenerationSwitch_T14(t *testing.T) {
	for _, first := range []bool{true, false} {
		l := newLab(t, sim.L40S(string(l40s), 0).WithVGPU(first))
		l.manage(l40s)
		l.mustSetVFs(l40s, 32)
		wish := gpu.Wish{VM: "db1", Profile: "L40S-8Q"}
		was := l.attach("gfx", wish)
		if was.State != gpu.AssignmentAttached || !was.Config || was.Live {
			t.Fatalf("mdev=%t: %+v", first, was)
		}
		kinds := map[bool]string{true: "mdev", false: "vgpu"}
		device := func() gpu.Hostdev {
			t.Helper()
			vm, err := l.VM(t.Context(), "db1")
			if err != nil || len(vm.Hostdevs) != 1 {
				t.Fatalf("%+v, %v", vm, err)
			}
			return vm.Hostdevs[0]
		}
		mdev := first
		for range 2 { // there and back
			mdev = !mdev
			l.generation(mdev)
			before := device()
			if _, err := l.restore(time.Second); err == nil {
				t.Errorf("to mdev=%t: the restore says that all is well", mdev)
			}
			a, err := l.Assignment(t.Context(), "gfx")
			if err != nil || a.State != gpu.AssignmentDrifted || len(a.Conditions) != 1 || a.Conditions[0].Reason != "OtherKind" ||
				!strings.Contains(a.Conditions[0].Message, "put the assignment again") {
				t.Fatalf("to mdev=%t: %+v, %v", mdev, a, err)
			}
			plan, err := l.PlanAssignment(t.Context(), "gfx", wish)
			if err != nil || !plan.Changes || plan.Refusal != nil || !strings.Contains(plan.Summary, "is a "+kinds[mdev]+" now and was a "+kinds[!mdev]) {
				t.Fatalf("to mdev=%t: %+v, %v", mdev, plan, err)
			}
			if now := device(); now != before {
				t.Errorf("the dry run changed %+v to %+v", before, now)
			}
			_, op, err := l.PutAssignment(t.Context(), "test", "gfx", wish)
			if err != nil || op == nil {
				t.Fatalf("to mdev=%t: %+v, %v", mdev, op, err)
			}
			if end := l.finish(*op, nil); end.Status != operation.Done {
				t.Fatalf("to mdev=%t: %+v", mdev, end)
			}
			now := device()
			if (now.Handle.MdevUUID != "") != mdev || (now.Handle.PCIAddress != "") == mdev {
				t.Errorf("to mdev=%t: the vm has %+v", mdev, now)
			}
			a, err = l.Assignment(t.Context(), "gfx")
			if err != nil || a.State != gpu.AssignmentAttached || a.Generation <= was.Generation {
				t.Errorf("to mdev=%t: %+v, %v", mdev, a, err)
			}
			if ps, err := l.Partitions(t.Context()); err != nil || len(ps) != 1 || ps[0].State != gpu.PartitionMade || string(ps[0].Kind) != kinds[mdev] {
				t.Errorf("to mdev=%t: %+v, %v", mdev, ps, err)
			}
			n := l.wrote()
			if _, op, err := l.PutAssignment(t.Context(), "test", "gfx", wish); err != nil || op != nil || l.wrote() != n {
				t.Errorf("once more: %+v, %v", op, err)
			}
			if err := l.sim.Libvirt.Boot("db1"); err != nil {
				t.Errorf("to mdev=%t: the vm does not start: %v", mdev, err)
			}
			was = a
		}
	}
}

// After such a change the restore does not hold up the boot for what does not come any
// more: no guest of the host would start until its time is up.
func TestRestoreDoesNotAwaitTheOtherKind_T14(t *testing.T) {
	l := newL40SLab(t, true)
	l.attach("gfx", gpu.Wish{VM: "db1", Profile: "L40S-8Q"})
	l.generation(false)
	began := time.Now()
	done, err := l.restore(time.Minute)
	if len(done) != 1 || gpu.CodeOf(done[0].Err) != gpu.CodeDrift || !strings.Contains(err.Error(), "put the assignment again") {
		t.Errorf("%+v, %v", done, err)
	}
	if d := time.Since(began); d > 30*time.Second {
		t.Errorf("it took %v", d)
	}
}

// A vGPU on a virtual function is refused before anything is touched where libvirt cannot
// give it to a VM.
func TestOldLibvirtTakesNoVGPU(t *testing.T) {
	l := newLab(t, sim.L40S(string(l40s), 0).WithVGPU(false))
	l.manage(l40s)
	l.mustSetVFs(l40s, 32)
	if err := l.sim.Libvirt.SetVersion("9.6.0"); err != nil {
		t.Fatal(err)
	}
	n := l.wrote()
	_, _, err := l.PutAssignment(t.Context(), "test", "gfx", gpu.Wish{VM: "db1", Profile: "L40S-8Q"})
	if gpu.CodeOf(err) != gpu.CodeProfileNotCreatable || !strings.Contains(err.Error(), "libvirt 9.6.0 cannot give it to a vm: that takes 9.7 or newer") || l.wrote() != n {
		t.Errorf("%v", err)
	}
	ps, _, err := l.Profiles(t.Context(), l40s)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ps {
		if p.Kind == gpu.KindVGPU && p.NotCreatable == "" {
			t.Errorf("%+v", p)
		}
	}
	for _, v := range []string{"9.7.0", "10.0.0", "who knows"} {
		if err := l.sim.Libvirt.SetVersion(v); err != nil {
			t.Fatal(err)
		}
		if plan, err := l.PlanAssignment(t.Context(), "gfx", gpu.Wish{VM: "db1", Profile: "L40S-8Q"}); err != nil || plan.Refusal != nil {
			t.Errorf("libvirt %s: %+v, %v", v, plan, err)
		}
	}
}

// The order of a boot is MIG mode, functions, instances, types, and a second restore
// writes nothing (T10, T12).
func TestRestoreInOrder(t *testing.T) {
	l := newLab(t, sim.H100(string(hopper), 0).WithVGPU(false), sim.Mbochs())
	l.manage(hopper)
	l.mustLay(hopper, "") // the mode alone
	l.mustSetVFs(hopper, 32)
	l.attach("a", gpu.Wish{VM: "db1", Profile: "H100XM-1-10C"})
	l.attach("b", gpu.Wish{VM: "web1", Profile: "H100XM-3-40C"})
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if s := l.layout(hopper); s.Actual.Enabled {
		t.Fatal("this card keeps its mode")
	}
	done, err := l.restore(time.Minute)
	if err != nil || len(done) != 4 {
		t.Fatalf("%+v, %v", done, err)
	}
	for _, name := range []string{"a", "b"} {
		if a, err := l.Assignment(t.Context(), name); err != nil || a.State != gpu.AssignmentAttached || len(a.Conditions) != 0 {
			t.Errorf("%+v, %v", a, err)
		}
	}
	n, calls := l.wrote(), len(l.sim.NVML.Calls())
	if done, err := l.restore(time.Minute); err != nil || l.wrote() != n {
		t.Errorf("the second: %+v, %v", done, err)
	}
	for _, c := range l.sim.NVML.Calls()[calls:] {
		if strings.Contains(c.String(), "Create") || strings.Contains(c.String(), "Set") {
			t.Errorf("the second restore called %v", c)
		}
	}
}

// One wish by name makes the GPU instance and the vGPU on it; the last one takes the
// instance away, and no other.
func TestVGPUOnInstance_T35(t *testing.T) {
	l := newLab(t, sim.H100(string(hopper), 0).WithVGPU(false))
	l.manage(hopper)
	l.mustLay(hopper, "")
	l.mustSetVFs(hopper, 32)
	l.mustLay(hopper, "1g.10gb@6") // somebody's own
	capacity := func(profile string) int {
		t.Helper()
		c, err := l.Capacity(t.Context(), profile)
		if err != nil {
			t.Fatal(err)
		}
		return c[0].Available
	}
	if n := capacity("H100XM-1-10C"); n != 7 {
		t.Errorf("%d of the smallest fit, want one on the instance that is there and 6 more", n)
	}
	if n := capacity("H100XM-3-40C"); n == 0 {
		t.Error("none of a large one fits")
	}
	plan, err := l.PlanAssignment(t.Context(), "big", gpu.Wish{VM: "web1", Profile: "H100XM-3-40C"})
	if err != nil || len(plan.Steps) != 3 || !strings.Contains(plan.Steps[0].Summary, "make 3g.40gb on "+string(hopper)) {
		t.Fatalf("%+v, %v", plan, err)
	}
	l.attach("big", gpu.Wish{VM: "web1", Profile: "H100XM-3-40C"})
	if got := show(l.layout(hopper)); !strings.Contains(got, "3g.40gb@") || !strings.Contains(got, "1g.10gb@6") {
		t.Error(got)
	}
	// The instance that is there has room, and is taken first.
	if plan, err := l.PlanAssignment(t.Context(), "small", gpu.Wish{VM: "web2", Profile: "H100XM-1-10C"}); err != nil || len(plan.Steps) != 2 {
		t.Errorf("%+v, %v", plan, err)
	}
	l.attach("small", gpu.Wish{VM: "web2", Profile: "H100XM-1-10C"})
	l.detach("small")
	if got := show(l.layout(hopper)); !strings.Contains(got, "1g.10gb@6") {
		t.Errorf("an instance that was made for its own sake went: %s", got)
	}
	l.detach("big")
	if got := show(l.layout(hopper)); got != "1g.10gb@6" {
		t.Errorf("left: %s", got)
	}
	if ps, err := l.Partitions(t.Context()); err != nil || len(ps) != 1 {
		t.Errorf("%+v, %v", ps, err)
	}
}

// Several vGPUs share an instance where the card allows it.
func TestVGPUsShareInstance_T35(t *testing.T) {
	l := newLab(t, sim.RTXPro6000(string(hopper), 0).WithVGPU(false))
	l.manage(hopper)
	l.mustLay(hopper, "")
	l.mustSetVFs(hopper, 48)
	const profile = "DC-1-12QGFX" // two on each of four instances
	for i, name := range []string{"a", "b", "c"} {
		l.attach(name, gpu.Wish{VM: []string{"web1", "web2", "db1"}[i], Profile: profile})
	}
	if got := show(l.layout(hopper)); strings.Count(got, "1g.24gb+gfx") != 2 {
		t.Errorf("three of them are on %s", got)
	}
	c, err := l.Capacity(t.Context(), profile)
	if err != nil || c[0].Available != 5 {
		t.Errorf("%+v, %v", c, err)
	}
	l.detach("a")
	if got := show(l.layout(hopper)); strings.Count(got, "1g.24gb+gfx") != 2 {
		t.Errorf("an instance went from under a vGPU: %s", got)
	}
	l.detach("b")
	l.detach("c")
	if got := show(l.layout(hopper)); got != "" {
		t.Errorf("left: %s", got)
	}
}

// A batch chooses the layout, all or nothing.
func TestApplyChoosesLayout_T35(t *testing.T) {
	l := newLab(t, sim.H100(string(hopper), 0).WithVGPU(false))
	l.manage(hopper)
	l.mustLay(hopper, "")
	l.mustSetVFs(hopper, 32)
	if _, _, err := l.ApplyAssignments(t.Context(), "test", wishes("a=web1:H100XM-4-40C", "b=web2:H100XM-4-40C"), gpu.Idempotency{}); gpu.CodeOf(err) != gpu.CodeNoCapacity {
		t.Errorf("two halves and more: %v", err)
	}
	if got := show(l.layout(hopper)); got != "" {
		t.Errorf("a refusal made %s", got)
	}
	op := l.apply("a=web1:H100XM-4-40C", "b=web2:H100XM-2-20C", "c=db1:H100XM-1-10C")
	if op.Status != operation.Done || len(op.Steps) != 9 {
		t.Fatalf("%+v", op)
	}
	got := show(l.layout(hopper))
	for _, want := range []string{"4g.40gb@", "2g.20gb@", "1g.10gb@"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s lacks %s", got, want)
		}
	}
	as, err := l.Assignments(t.Context())
	if err != nil || len(as) != 3 {
		t.Fatalf("%+v, %v", as, err)
	}
	for _, a := range as {
		if a.State != gpu.AssignmentAttached {
			t.Errorf("%+v", a)
		}
	}
}

// A vGPU has the parameters that its assignment asks for, again after a reboot, and on the
// other kernel generation too.
func TestVGPUParams(t *testing.T) {
	for _, mdev := range []bool{true, false} {
		l := newLab(t, sim.L40S(string(l40s), 0).WithVGPU(mdev))
		l.manage(l40s)
		l.mustSetVFs(l40s, 32)
		const params = "enable_uvm=1,frame_rate_limiter=0"
		wish := gpu.Wish{VM: "db1", Profile: "L40S-8Q", Params: params}
		a := l.attach("gfx", wish)
		has := func(when string) {
			t.Helper()
			p, err := l.Partition(t.Context(), a.Partition)
			if err != nil || p.Params != params || p.State != gpu.PartitionMade || len(p.Conditions) != 0 {
				t.Errorf("mdev=%t: %s: %+v, %v", mdev, when, p, err)
			}
		}
		has("at first")

		// Other parameters are another wish.
		_, _, err := l.PutAssignment(t.Context(), "test", "gfx", gpu.Wish{VM: "db1", Profile: "L40S-8Q"})
		if e, ok := errors.AsType[*gpu.Error](err); !ok || e.Code != gpu.CodeConflict || e.Diff["vgpu_params"] != [2]string{params, ""} {
			t.Errorf("mdev=%t: %v", mdev, err)
		}

		if err := l.sim.Reboot(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.restore(10 * time.Second); err != nil {
			t.Fatal(err)
		}
		has("after a reboot")
		n := l.wrote()
		if _, err := l.restore(10 * time.Second); err != nil || l.wrote() != n {
			t.Errorf("mdev=%t: the second restore wrote, or %v", mdev, err)
		}

		// Somebody else changes them.
		p, _ := l.Partition(t.Context(), a.Partition)
		file := "bus/mdev/devices/" + p.Handle.MdevUUID
		if !mdev {
			file = "bus/pci/devices/" + p.Handle.PCIAddress
		}
		if err := l.sim.Sysfs.Write(t.Context(), file+"/nvidia/vgpu_params", "disable_vnc=1\n"); err != nil {
			t.Fatal(err)
		}
		a, err = l.Assignment(t.Context(), "gfx")
		if err != nil || a.State != gpu.AssignmentDrifted || len(a.Conditions) != 1 || a.Conditions[0].Reason != "PartitionOtherParams" ||
			!strings.Contains(a.Conditions[0].Message, `should be "`+params+`", but are "disable_vnc=1"`) {
			t.Errorf("mdev=%t: %+v, %v", mdev, a, err)
		}

		l.generation(!mdev)
		if _, err := l.restore(time.Second); err == nil { // but the functions are on
			t.Errorf("mdev=%t: the restore says that all is well", mdev)
		}
		if _, op, err := l.PutAssignment(t.Context(), "test", "gfx", wish); err != nil || op == nil || l.finish(*op, nil).Status != operation.Done {
			t.Fatalf("mdev=%t: %+v, %v", mdev, op, err)
		}
		if a, err = l.Assignment(t.Context(), "gfx"); err != nil {
			t.Fatal(err)
		}
		has("converted")
	}
}

// Parameters are for vGPUs of NVIDIA: whoever asks for them with anything else is told
// so before anything is touched.
func TestVGPUParamsOfOthers(t *testing.T) {
	l := newLab(t, sim.Mbochs(), sim.Flex("0000:51:00.0", 0))
	l.manage("mbochs")
	l.manage("0000:51:00.0")
	l.mustSetVFs("0000:51:00.0", 2)
	n := l.wrote()
	for profile, kind := range map[string]string{"mbochs-small": "mdev", "vf-8086:56c0": "vf", "card-8086:56c0": "card"} {
		on := gpu.ID("")
		if kind != "mdev" {
			on = "0000:51:00.0"
		}
		_, _, err := l.PutAssignment(t.Context(), "test", "x", gpu.Wish{VM: "db1", Profile: profile, GPU: on, Params: "x=1"})
		if kind == "card" {
			if err == nil {
				t.Errorf("%s: accepted", profile)
			}
			continue // it is refused for its functions first
		}
		if gpu.CodeOf(err) != gpu.CodeInvalid || !strings.Contains(err.Error(), "it is a "+kind+", and only vGPUs of NVIDIA take vgpu_params") || l.wrote() != n {
			t.Errorf("%s: %v", profile, err)
		}
	}
}
