package host_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/operation"
)

const (
	flex = gpu.ID("0000:51:00.0")
	rx   = gpu.ID("0000:71:00.0")

	flexVF = "vf-8086:56c0"
	rxCard = "card-1002:744c"
)

func newPCILab(t *testing.T) *lab {
	t.Helper()
	l := newLab(t, sim.Flex(string(flex), 0), sim.RX(string(rx)), sim.T4("0000:08:00.0", 0), sim.A100(string(ampere), 0))
	l.manage(flex, rx, "0000:08:00.0", ampere)
	return l
}

// setVFs asks for a number of functions and waits.
func (l *lab) setVFs(id gpu.ID, n int) operation.Operation {
	l.t.Helper()
	_, op, err := l.PutVFs(l.t.Context(), "test", id, n)
	if err != nil || op == nil {
		l.t.Fatalf("%+v, %v", op, err)
	}
	return l.finish(*op, nil)
}

func (l *lab) mustSetVFs(id gpu.ID, n int) {
	l.t.Helper()
	if op := l.setVFs(id, n); op.Status != operation.Done {
		l.t.Fatalf("%+v", op.Problem)
	}
}

func (l *lab) vfs(id gpu.ID) gpu.VFState {
	l.t.Helper()
	s, err := l.VFs(l.t.Context(), id)
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

func (l *lab) detach(name string) {
	l.t.Helper()
	if op := l.finish(l.DeleteAssignment(l.t.Context(), "test", name)); op.Status != operation.Done {
		l.t.Fatalf("detach %s: %+v", name, op.Problem)
	}
}

// driverOf is the driver that a PCI device is bound to.
func (l *lab) driverOf(address string) string {
	l.t.Helper()
	target, err := l.sim.Sysfs.Readlink("bus/pci/devices/" + address + "/driver")
	if err != nil {
		return ""
	}
	return target[strings.LastIndex(target, "/")+1:]
}

func (l *lab) wrote() int {
	l.t.Helper()
	w, err := l.sim.Writes()
	if err != nil {
		l.t.Fatal(err)
	}
	return len(w)
}

// Functions come on, go to a VM, stay while it has one, and go.
func TestVFLife_T39(t *testing.T) {
	l := newPCILab(t)
	ctx := t.Context()
	if s := l.vfs(flex); s.TotalVFs != 31 || len(s.Functions) != 0 || s.Wanted != nil || !s.Equal {
		t.Errorf("before anything: %+v", s)
	}
	// What is on the functions is not known before they are on.
	_, _, err := l.PutAssignment(ctx, "test", "a", gpu.Wish{VM: "web1", Profile: "L40S-8Q", GPU: flex})
	if e, ok := err.(*gpu.Error); !ok || e.Code != gpu.CodeProfileUnknown || !strings.Contains(e.Hint, "gpuvirt sriov set 0000:51:00.0") { //nolint:errorlint // as it is returned
		t.Errorf("%v", err)
	}
	plan, err := l.PlanPutVFs(ctx, flex, 4)
	if err != nil || !plan.Changes || len(plan.Steps) != 1 || plan.Refusal != nil {
		t.Errorf("%+v, %v", plan, err)
	}
	if n := l.wrote(); n != 0 {
		t.Errorf("%d writes", n)
	}
	l.mustSetVFs(flex, 4)
	s := l.vfs(flex)
	if len(s.Functions) != 4 || *s.Wanted != 4 || !s.Equal || s.Functions[2].Index != 2 {
		t.Errorf("%+v", s)
	}
	n := l.wrote()
	if _, op, err := l.PutVFs(ctx, "test", flex, 4); op != nil || err != nil || l.wrote() != n {
		t.Errorf("the same again: %+v, %v", op, err)
	}

	a := l.attach("a", gpu.Wish{VM: "web1", Profile: flexVF})
	if a.State != gpu.AssignmentAttached || !a.Live || a.Partition != string(flex)+"/vf/0" {
		t.Errorf("%+v", a)
	}
	b := l.attach("b", gpu.Wish{VM: "db1", Profile: flexVF}) // which is off
	if b.Partition != string(flex)+"/vf/1" || b.Live {
		t.Errorf("%+v", b)
	}
	s = l.vfs(flex)
	if s.Functions[0].Partition != a.Partition || l.driverOf(s.Functions[0].PCIAddress) != "vfio-pci" {
		t.Errorf("%+v", s.Functions[0])
	}

	// In use: by a VM that runs, and by one that is off.
	n = l.wrote()
	for _, want := range []int{0, 8} {
		_, _, err = l.PutVFs(ctx, "test", flex, want)
		e, _ := err.(*gpu.Error) //nolint:errorlint // as it is returned
		if e == nil || e.Code != gpu.CodeGPUBusy || !slices.ContainsFunc(e.Blockers, func(b gpu.Blocker) bool { return b.Kind == "vm" && b.Name == "web1" }) ||
			!slices.ContainsFunc(e.Blockers, func(b gpu.Blocker) bool { return b.Kind == "vm" && b.Name == "db1" }) {
			t.Errorf("%d functions: %v, %+v", want, err, e)
		}
	}
	// Nor is the card given away under them.
	_, _, err = l.PutAssignment(ctx, "test", "c", gpu.Wish{VM: "web2", Profile: "card-8086:56c0"})
	if err == nil || l.wrote() != n {
		t.Errorf("the whole card: %v", err)
	}

	for _, name := range []string{"a", "b"} {
		l.detach(name)
	}
	if d := l.driverOf(s.Functions[0].PCIAddress); d == "vfio-pci" {
		t.Errorf("a function that nobody has is still at %s", d)
	}
	l.mustSetVFs(flex, 0)
	if s := l.vfs(flex); len(s.Functions) != 0 || !s.Equal {
		t.Errorf("%+v", s)
	}
}

// wantCapacity fails unless so many more of a profile of one GPU fit, by both of the ways
// to ask, and nothing more for the reason given, if any.
func (l *lab) wantCapacity(profile string, n int, reason string) {
	l.t.Helper()
	all, err := l.Capacity(l.t.Context(), profile)
	if err != nil || len(all) != 1 || len(all[0].GPUs) != 1 || all[0].Available != n {
		l.t.Fatalf("%+v, %v", all, err)
	}
	if on := all[0].GPUs[0]; reason != "" && !slices.Equal(on.Reasons, []string{reason}) {
		l.t.Errorf("%+v", on)
	}
	ps, _, err := l.Profiles(l.t.Context(), all[0].GPUs[0].GPU)
	i := slices.IndexFunc(ps, func(p gpu.Profile) bool { return p.Name == profile })
	if err != nil || i < 0 || ps[i].Available != n {
		l.t.Errorf("%+v, %v", ps, err)
	}
}

// A function that the definition of a foreign VM names is not chosen, though it is free:
// libvirt reserves nothing for a VM that is off.
func TestNamedFunctionIsTaken(t *testing.T) {
	l := newPCILab(t)
	l.mustSetVFs(flex, 2)
	first := l.vfs(flex).Functions[0].PCIAddress
	foreign := gpu.Hostdev{Alias: "ua-theirs", Handle: gpu.Handle{PCIAddress: first}}
	if err := l.sim.Libvirt.Attach(t.Context(), sim.DB1, foreign, gpu.Scope{Config: true}); err != nil {
		t.Fatal(err)
	}
	l.wantCapacity(flexVF, 1, "")
	if a := l.attach("a", gpu.Wish{VM: "web1", Profile: flexVF}); a.Partition != string(flex)+"/vf/1" {
		t.Errorf("%+v", a)
	}
	_, _, err := l.PutAssignment(t.Context(), "test", "b", gpu.Wish{VM: "web2", Profile: flexVF})
	if gpu.CodeOf(err) != gpu.CodeNoCapacity {
		t.Errorf("the one that db1 names: %v", err)
	}
	l.wantCapacity(flexVF, 0, "definitions of VMs name the devices that are left (1)")
	l.wantCapacity(rxCard, 1, "")
	foreign = gpu.Hostdev{Alias: "ua-card", Handle: gpu.Handle{PCIAddress: string(rx)}}
	if err := l.sim.Libvirt.Attach(t.Context(), sim.DB1, foreign, gpu.Scope{Config: true}); err != nil {
		t.Fatal(err)
	}
	l.wantCapacity(rxCard, 0, "definitions of VMs name the devices that are left (1)")
	if s := l.vfs(flex); len(s.Functions[0].Holders) != 1 || s.Functions[0].Holders[0].Name != "db1" {
		t.Errorf("%+v", s.Functions[0])
	}
}

// After a reboot functions come back before what is on them, and twice is no write (T10).
func TestRestoreVFs(t *testing.T) {
	l := newPCILab(t)
	l.mustSetVFs(flex, 4)
	a := l.attach("a", gpu.Wish{VM: "web1", Profile: flexVF})
	card := l.attach("b", gpu.Wish{VM: "db1", Profile: rxCard})
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if s := l.vfs(flex); len(s.Functions) != 0 || s.Equal {
		t.Fatalf("%+v", s)
	}
	// One more is not placed in the place of what is to come back.
	if _, _, err := l.PutAssignment(t.Context(), "test", "c", gpu.Wish{VM: "web2", Profile: flexVF}); err == nil {
		t.Error("something was placed before the restore")
	}
	done, err := l.restore(time.Minute)
	if err != nil || len(done) != 2 || !done[0].Made || !done[1].Made {
		t.Fatalf("%+v, %v", done, err)
	}
	for _, id := range []string{a.Partition, card.Partition} {
		if p, err := l.Partition(t.Context(), id); err != nil || p.State != gpu.PartitionMade || l.driverOf(p.Handle.PCIAddress) != "vfio-pci" {
			t.Errorf("%+v, %v", p, err)
		}
	}
	n := l.wrote()
	if _, err := l.restore(time.Minute); err != nil || l.wrote() != n {
		t.Errorf("the second restore: %v, %d writes", err, l.wrote()-n)
	}
}

// Functions that somebody else has turned on in another number stay as they are.
func TestRestoreLeavesForeignVFs(t *testing.T) {
	l := newPCILab(t)
	l.mustSetVFs(flex, 4)
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if err := l.sim.Sysfs.Write(t.Context(), "bus/pci/devices/"+string(flex)+"/sriov_numvfs", "2"); err != nil {
		t.Fatal(err)
	}
	n := l.wrote()
	if _, err := l.restore(time.Minute); err == nil || !strings.Contains(err.Error(), "somebody else has turned on 2 of them, not 4") || l.wrote() != n {
		t.Errorf("%v", err)
	}
	if s := l.vfs(flex); s.Equal || len(s.Functions) != 2 {
		t.Errorf("%+v", s)
	}
}

// A card goes whole, with the sound beside it, and both get their drivers back.
func TestCardLife(t *testing.T) {
	l := newPCILab(t)
	sound := strings.TrimSuffix(string(rx), "0") + "1"
	before := l.driverOf(string(rx)) + " " + l.driverOf(sound)
	a := l.attach("a", gpu.Wish{VM: "web1", Profile: rxCard})
	if a.State != gpu.AssignmentAttached || !a.Live || l.driverOf(string(rx)) != "vfio-pci" || l.driverOf(sound) != "vfio-pci" {
		t.Errorf("%+v", a)
	}
	_, _, err := l.PutAssignment(t.Context(), "test", "b", gpu.Wish{VM: "web2", Profile: rxCard})
	if gpu.CodeOf(err) != gpu.CodeNoCapacity {
		t.Errorf("twice: %v", err)
	}
	l.detach("a")
	if after := l.driverOf(string(rx)) + " " + l.driverOf(sound); after != before {
		t.Errorf("before %s, after %s", before, after)
	}
}

// A card of which a part is there is not offered whole, nor the other way round (R60).
func TestCardOrItsParts_T39(t *testing.T) {
	l := newPCILab(t)
	const t4 = gpu.ID("0000:08:00.0")
	capacity := func(profile string) int {
		t.Helper()
		c, err := l.Capacity(t.Context(), profile)
		if err != nil {
			t.Fatal(err)
		}
		return c[0].Available
	}
	const whole = "card-10de:1eb8"
	if n := capacity(whole); n != 1 {
		t.Errorf("%d of an idle card", n)
	}
	l.attach("part", gpu.Wish{VM: "web1", Profile: "T4-4Q"})
	n := l.wrote()
	if c := capacity(whole); c != 0 {
		t.Errorf("%d of a card with a vGPU", c)
	}
	if _, _, err := l.PutAssignment(t.Context(), "test", "all", gpu.Wish{VM: "web2", Profile: whole}); gpu.CodeOf(err) != gpu.CodeProfileNotCreatable || l.wrote() != n {
		t.Errorf("%v", err)
	}
	l.detach("part")
	l.attach("all", gpu.Wish{VM: "db1", Profile: whole})
	if _, _, err := l.PutAssignment(t.Context(), "test", "part", gpu.Wish{VM: "web1", Profile: "T4-4Q", GPU: t4}); err == nil {
		t.Error("a part of a card that is given away")
	}
	// Right after a reboot its driver has it again; it is still given away.
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.PutAssignment(t.Context(), "test", "part", gpu.Wish{VM: "web1", Profile: "T4-4Q", GPU: t4}); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Errorf("a part of a card that is given away, after a reboot: %v", err)
	}

	l.mustLay(ampere, "1g.5gb")
	if c := capacity("card-10de:20f1"); c != 0 {
		t.Errorf("%d of a card with a MIG instance", c)
	}
}

// A card that a program has open is not taken from its driver, and the program is named.
func TestCardInUse_R68(t *testing.T) {
	l := newPCILab(t)
	if err := l.sim.Watch(string(ampere), 4711, "nvidia-smi"); err != nil {
		t.Fatal(err)
	}
	n := l.wrote()
	_, _, err := l.PutAssignment(t.Context(), "test", "all", gpu.Wish{VM: "web2", Profile: "card-10de:20f1"})
	e, _ := err.(*gpu.Error) //nolint:errorlint // as it is returned
	if e == nil || e.Code != gpu.CodeGPUBusy || len(e.Blockers) != 1 || e.Blockers[0].ID != "4711" || l.wrote() != n {
		t.Errorf("%v, %+v", err, e)
	}
}

// What the backend would refuse is refused when it is planned: NVIDIA's tool knows only
// none and all, and a card without its driver has nobody to turn functions on.
func TestPlanOfVFsThatCannotBe(t *testing.T) {
	l := newLab(t, sim.L40S(string(l40s), 0), sim.Flex(string(flex), 0))
	l.manage(l40s, flex)
	if err := l.sim.Sysfs.Write(t.Context(), "bus/pci/drivers/xe/unbind", string(flex)); err != nil {
		t.Fatal(err)
	}
	n := l.wrote()
	for _, tc := range []struct {
		id   gpu.ID
		n    int
		code gpu.Code
		text string
	}{{l40s, 5, gpu.CodeInvalid, "all 32 of them on, or none"}, {flex, 4, gpu.CodeUnavailable, "no driver is bound to it"}} {
		if plan, err := l.PlanPutVFs(t.Context(), tc.id, tc.n); err != nil || plan.Refusal == nil || plan.Changes {
			t.Errorf("%s: the dry run: %+v, %v", tc.id, plan, err)
		}
		_, op, err := l.PutVFs(t.Context(), "test", tc.id, tc.n)
		if gpu.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.text) || op != nil {
			t.Errorf("%s: %+v, %v", tc.id, op, err)
		}
	}
	if l.wrote() != n {
		t.Error("a refusal wrote something")
	}
}
