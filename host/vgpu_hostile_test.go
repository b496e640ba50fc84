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

// newInstanceLab has a card whose vGPUs stand on MIG instances, with its mode and its
// virtual functions on.
func newInstanceLab(t *testing.T, c sim.Card, vfs int) *lab {
	t.Helper()
	l := newLab(t, c.WithVGPU(false))
	l.manage(hopper)
	l.mustLay(hopper, "")
	l.mustSetVFs(hopper, vfs)
	return l
}

// newL40SLab has a card of one or the other generation, with its virtual functions on.
func newL40SLab(t *testing.T, mdev bool) *lab {
	t.Helper()
	l := newLab(t, sim.L40S(string(l40s), 0).WithVGPU(mdev))
	l.manage(l40s)
	l.mustSetVFs(l40s, 32)
	return l
}

// typeFile is where the driver says which vGPU a function has.
func typeFile(address string) string {
	return "bus/pci/devices/" + address + "/nvidia/current_vgpu_type"
}

// current is the type of the vGPU that a function has, "0" if it has none.
func (l *lab) current(address string) string {
	l.t.Helper()
	text, err := l.sim.Sysfs.Read(typeFile(address))
	if err != nil {
		l.t.Fatal(err)
	}
	return strings.TrimSpace(text)
}

// off shuts VMs down.
func (l *lab) off(vms ...string) {
	l.t.Helper()
	for _, vm := range vms {
		if err := l.sim.Libvirt.Shutdown(vm); err != nil {
			l.t.Fatal(err)
		}
	}
}

// attached checks that there are so many assignments, and all have what they ask for.
func (l *lab) attached(n int) {
	l.t.Helper()
	as, err := l.Assignments(l.t.Context())
	if err != nil || len(as) != n || slices.ContainsFunc(as, func(a gpu.Assignment) bool { return a.State != gpu.AssignmentAttached }) {
		l.t.Errorf("%+v, %v", as, err)
	}
}

// Where NVIDIA's library does not answer, the driver's types have no names (T13): a vGPU
// of ours is not taken for somebody else's then, and forgotten, but removed.
func TestUnnamedVGPUIsRemoved_T13(t *testing.T) {
	l := newL40SLab(t, false)
	a := l.attach("gfx", gpu.Wish{VM: "db1", Profile: "L40S-48Q"}) // the card is full: no function offers the type any more
	vf := l.vfs(l40s).Functions[0].PCIAddress
	l.restart()
	l.sim.NVML.Fail("Init", mig.ErrVersionMismatch, 100000)
	if p, err := l.Partition(t.Context(), a.Partition); err != nil || p.Origin != gpu.OriginManaged {
		t.Errorf("%+v, %v", p, err)
	}
	l.detach("gfx")
	if _, err := l.store.PartitionRecord(a.Partition); gpu.CodeOf(err) != gpu.CodeNotFound || l.current(vf) != "0" {
		t.Errorf("record: %v, type %s", err, l.current(vf))
	}
}

// Nor where the driver has numbered its types anew besides (T12), so that nothing tells
// what is there: its record stays until the library answers.
func TestRenumberedVGPUIsNotForgotten_T13(t *testing.T) {
	l := newL40SLab(t, false)
	a := l.attach("gfx", gpu.Wish{VM: "db1", Profile: "L40S-48Q"})
	vf := l.vfs(l40s).Functions[0].PCIAddress
	if err := l.sim.Change(string(l40s), func(c *sim.Card) { c.Renumber = 100 }); err != nil {
		t.Fatal(err)
	}
	l.restart()
	l.sim.NVML.Fail("Init", mig.ErrVersionMismatch, 100000)
	op := l.finish(l.DeleteAssignment(t.Context(), "test", "gfx"))
	_, err := l.store.PartitionRecord(a.Partition)
	if op.Status != operation.Waiting || err != nil || l.current(vf) == "0" {
		t.Fatalf("operation %s, problem %+v, record: %v, type %s", op.Status, op.Problem, err, l.current(vf))
	}
	l.stop()
	k := openLab(t, l.image()) // with a library that answers
	if _, err := k.engine.Retry(op.ID); err != nil {
		t.Fatal(err)
	}
	if end := k.finish(op, nil); end.Status != operation.Done {
		t.Errorf("operation %s, problem %+v", end.Status, end.Problem)
	}
	if _, err := k.store.PartitionRecord(a.Partition); gpu.CodeOf(err) != gpu.CodeNotFound || k.current(vf) != "0" {
		t.Errorf("record: %v, type %s", err, k.current(vf))
	}
}

// An instance that was asked for by itself and is missing is not overwritten by one for a
// vGPU, with which it would go.
func TestOwnMissingInstanceIsNotOverwritten(t *testing.T) {
	l := newInstanceLab(t, sim.H100(string(hopper), 0), 32)
	l.mustLay(hopper, "1g.10gb") // wherever: the place that one for a vGPU would get
	own := l.layout(hopper).Partitions[0]
	byHand(t, l.sim, hopper, removeFirst)
	_, _, err := l.PutAssignment(t.Context(), "test", "a", gpu.Wish{VM: "db1", Profile: "H100XM-1-10C"})
	wantCode(t, err, gpu.CodeDrift)
	r, err := l.store.PartitionRecord(own.ID)
	if err != nil || r.Assignment != "" || len(l.instancesOf(hopper)) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// An instance under a vGPU does not go, whoever made it and however it is asked for.
func TestInstanceUnderVGPUStays(t *testing.T) {
	for name, own := range map[string]string{"its own": "1g.10gb@6", "came with it": ""} {
		l := newInstanceLab(t, sim.H100(string(hopper), 0), 32)
		l.mustLayIf(own)
		l.attach("a", gpu.Wish{VM: "web1", Profile: "H100XM-1-10C"}) // which runs
		in := l.layout(hopper).Partitions[0]
		n := l.wrote()
		_, err := l.DeletePartition(t.Context(), "test", in.ID)
		if e := wantCode(t, err, gpu.CodeGPUBusy); len(e.Blockers) != 1 || e.Blockers[0].Kind != "partition" {
			t.Errorf("%s: %+v", name, e)
		}
		_, _, err = l.PutLayout(t.Context(), "test", hopper, gpu.Layout{Enabled: true})
		wantCode(t, err, gpu.CodeGPUBusy)
		if len(l.instancesOf(hopper)) != 1 || l.wrote() != n {
			t.Errorf("%s: %s is left", name, show(l.layout(hopper)))
		}
		l.attached(1)
	}
}

// A program that has an instance open keeps the instance, and not the vGPU that the
// instance came with: a running VM does not get back what it gave (R50).
func TestBusyInstanceStaysAlone_R50(t *testing.T) {
	l := newInstanceLab(t, sim.H100(string(hopper), 0), 32)
	l.attach("a", gpu.Wish{VM: "web1", Profile: "H100XM-1-10C"})
	in := l.layout(hopper).Partitions[0]
	if err := l.sim.Compute(string(hopper), mig.Process{PID: 1, Instance: number(t, in.Instance)}); err != nil {
		t.Fatal(err)
	}
	l.detach("a")
	l.attached(0)
	if ps := l.layout(hopper).Partitions; len(ps) != 1 || ps[0].ID != in.ID || ps[0].Origin != gpu.OriginManaged {
		t.Errorf("%+v", ps)
	}
	if vm, err := l.VM(t.Context(), "web1"); err != nil || len(vm.Hostdevs) != 0 {
		t.Errorf("%+v, %v", vm, err)
	}
}

// An instance that came with a vGPU goes with its assignment also where somebody has taken
// the vGPU away.
func TestInstanceGoesWhereItsVGPUIsMissing(t *testing.T) {
	l := newInstanceLab(t, sim.H100(string(hopper), 0), 32)
	p, err := l.Partition(t.Context(), l.attach("a", gpu.Wish{VM: "db1", Profile: "H100XM-7-80C"}).Partition)
	if err != nil {
		t.Fatal(err)
	}
	write(t, l.sim, typeFile(p.Handle.PCIAddress), "0")
	l.detach("a")
	if got := show(l.layout(hopper)); got != "" {
		t.Errorf("left: %s", got)
	}
}

// An instance that came with a vGPU stays when the vGPU goes, once a layout has named it.
func TestInstanceThatIsAskedForStays(t *testing.T) {
	l := newInstanceLab(t, sim.H100(string(hopper), 0), 32)
	l.attach("a", gpu.Wish{VM: "db1", Profile: "H100XM-1-10C"})
	at := show(l.layout(hopper))
	if _, op, err := l.PutLayout(t.Context(), "test", hopper, cut(at)); op != nil || err != nil {
		t.Fatal(op, err)
	}
	l.detach("a")
	if got := show(l.layout(hopper)); got != at {
		t.Errorf("%q was asked for, %q is left", at, got)
	}
}

// What a plan of several vGPUs promises is carried out: those of two sizes do not share an
// instance, of which one may be there, with room or not.
func TestApplyOfTwoSizes_T35(t *testing.T) {
	for _, tc := range []struct {
		name, layout, before string
		words                []string
		instances            int // 0: it is refused
	}{
		{"one is there", "1g.24gb+gfx", "", []string{"a=web1:DC-1-12QGFX", "b=web2:DC-1-8QGFX"}, 2},
		{"one has room", "", "DC-1-12QGFX", []string{"a=web1:DC-1-12QGFX", "b=web2:DC-1-12QGFX"}, 2},
		{"two sizes", "", "", []string{"a=web1:DC-1-12QGFX", "b=web2:DC-1-8QGFX"}, 2},
		{"and one more", "", "", []string{"a=web1:DC-1-12QGFX", "b=web2:DC-1-8QGFX", "c=db1:DC-1-12QGFX"}, 2},
		{"two instances", "", "", []string{"a=web1:DC-1-24QGFX", "b=web2:DC-1-8QGFX", "c=db1:DC-2-48QGFX"}, 3},
		{"too many", "", "", []string{"a=web1:DC-1-8QGFX", "b=web2:DC-1-8QGFX", "c=db1:DC-4-96QGFX"}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newInstanceLab(t, sim.RTXPro6000(string(hopper), 0), 48)
			l.mustLayIf(tc.layout)
			n := len(tc.words)
			if tc.before != "" {
				l.attach("x", gpu.Wish{VM: "db1", Profile: tc.before})
				n++
			}
			plan, err := l.PlanApplyAssignments(t.Context(), wishes(tc.words...))
			if err != nil || (plan.Refusal != nil) != (tc.instances == 0) {
				t.Fatalf("%+v, %v", plan, err)
			}
			if plan.Refusal != nil {
				return
			}
			if op := l.apply(tc.words...); op.Status != operation.Done || len(op.Steps) != len(plan.Steps) {
				t.Fatalf("promised %+v, ended %s: %+v", plan.Steps, op.Status, op.Problem)
			}
			l.attached(n)
			if got := show(l.layout(hopper)); len(strings.Fields(got)) != tc.instances {
				t.Errorf("they are on %s", got)
			}
		})
	}
}

// mustLayIf lays the card at hopper out, unless there is nothing to lay out.
func (l *lab) mustLayIf(text string) {
	l.t.Helper()
	if text != "" {
		l.mustLay(hopper, text)
	}
}

// A vGPU that somebody else has given a VM counts as well: it has no second one of that
// card (T41).
func TestForeignVGPUOfTheVMCounts_T41(t *testing.T) {
	l := newL40SLab(t, false)
	vf := l.vfs(l40s).Functions[3].PCIAddress
	write(t, l.sim, typeFile(vf), "1150")
	l.names(sim.DB1, vf)
	ps, err := l.Partitions(t.Context())
	if err != nil || len(ps) != 1 {
		t.Fatalf("%+v, %v", ps, err)
	}
	n := l.wrote()
	_, _, err = l.PutAssignment(t.Context(), "test", "a", gpu.Wish{VM: "db1", Profile: ps[0].Profile})
	if gpu.CodeOf(err) != gpu.CodeProfileNotCreatable || l.wrote() != n {
		t.Errorf("%v", err)
	}
	l.attach("b", gpu.Wish{VM: "web1", Profile: ps[0].Profile})
}

// A daemon that was killed before it made a vGPU does not take for its own what somebody
// else has made there meanwhile and uses.
func TestForeignVGPUAfterCrash_T01(t *testing.T) {
	l := newL40SLab(t, false)
	vf := l.vfs(l40s).Functions[0].PCIAddress
	k := l.killedHanging("devices/*/*/"+vf+"/nvidia/current_vgpu_type", func() { l.put("a", gpu.Wish{VM: "db1", Profile: "L40S-8Q"}) }, func(h *sim.Host) {
		write(t, h, typeFile(vf), "1152")
		theirs := gpu.Hostdev{Alias: "ua-theirs", Handle: gpu.Handle{PCIAddress: vf}}
		if err := h.Libvirt.Attach(t.Context(), sim.Web2, theirs, gpu.Scope{Live: true, Config: true}); err != nil {
			t.Fatal(err)
		}
	})
	k.settled()
	k.attached(0)
	if ps, err := k.Partitions(t.Context()); err != nil || len(ps) != 1 || ps[0].Origin != gpu.OriginForeign || k.current(vf) != "1152" {
		t.Errorf("%+v, %v", ps, err)
	}
}

// What is missing on one card can be given up while NVIDIA's library fails for another.
func TestMissingIsGivenUpWithoutLibrary_T13(t *testing.T) {
	l := newLab(t, sim.Mbochs(), sim.A100(string(ampere), 0))
	l.manage(card, ampere)
	l.attach("a", gpu.Wish{VM: "db1", Profile: size})
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	l.sim.NVML.Fail("Init", mig.ErrVersionMismatch, 100000)
	l.detach("a")
	l.attached(0)
}

// switched changes the generation of the card, and starts what is then.
func (l *lab) switched(mdev bool) {
	l.t.Helper()
	l.generation(mdev)
	if _, err := l.restore(time.Second); err == nil {
		l.t.Error("the restore says that all is well")
	}
}

// Several assignments are converted together, as the dry run says.
func TestConvertTogether_T14(t *testing.T) {
	l := newL40SLab(t, true)
	l.off("web1", "web2")
	words := []string{"a=web1:L40S-8Q", "b=web2:L40S-8Q", "c=db1:L40S-8Q"}
	if op := l.apply(words...); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	l.switched(false)
	plan, err := l.PlanApplyAssignments(t.Context(), wishes(words...))
	if err != nil || plan.Refusal != nil || len(plan.Steps) != 12 {
		t.Errorf("%+v, %v", plan, err)
	}
	if op := l.apply(words...); op.Status != operation.Done {
		t.Errorf("%+v", op.Problem)
	}
	l.attached(3)
	if ps, err := l.Partitions(t.Context()); err != nil || len(ps) != 3 {
		t.Errorf("%+v, %v", ps, err)
	}
}

// So are as many as fit on the card.
func TestConvertFullCard_T14(t *testing.T) {
	l := newL40SLab(t, true)
	l.off("web1", "web2")
	words := []string{"a=web1:L40S-24Q", "b=web2:L40S-24Q"}
	if op := l.apply(words...); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	l.switched(false)
	l.restart()
	if op := l.apply(words...); op.Status != operation.Done {
		t.Errorf("%+v", op.Problem)
	}
	l.attached(2)
}

// A conversion that fails leaves the VM the device that it had, and its record.
func TestConvertUndone_T14(t *testing.T) {
	l := newL40SLab(t, true)
	wish := gpu.Wish{VM: "db1", Profile: "L40S-8Q"}
	was := l.attach("gfx", wish)
	l.switched(false)
	l.stop()
	l.vms = &asked{Libvirt: l.sim.Libvirt, fail: []error{gpu.Errorf(gpu.CodeForeignDevice, "cannot attach")}}
	l.start()
	if end := l.finish(l.put("gfx", wish), nil); end.Status != operation.Undone {
		t.Errorf("operation %s, problem %+v", end.Status, end.Problem)
	}
	if a, err := l.Assignment(t.Context(), "gfx"); err != nil || a.Partition != was.Partition {
		t.Errorf("%+v, %v", a, err)
	}
	if vm, err := l.VM(t.Context(), "db1"); err != nil || len(vm.Hostdevs) != 1 || vm.Hostdevs[0].Handle.MdevUUID != was.Partition {
		t.Errorf("%+v, %v", vm, err)
	}
	if ps, err := l.Partitions(t.Context()); err != nil || len(ps) != 1 {
		t.Errorf("%+v, %v", ps, err)
	}
}
