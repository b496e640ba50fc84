package host_test

import (
	"strings"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/operation"
)

// A VM has one display: a second one is refused before anything is made, in one batch, beside
// an assignment, and beside what somebody else gave it (T52).
func TestSecondDisplay_T52(t *testing.T) {
	second := gpu.ID("0000:88:00.0")
	l := newLab(t, sim.T4(string(t4), 0), sim.T4(string(second), 0))
	l.manage(t4, second)
	addVMs(t, l, 2)
	shown := func(vm string, on gpu.ID) gpu.Wish { return gpu.Wish{VM: vm, Profile: "T4-1Q", GPU: on, Display: true} }
	n := l.wrote()
	both := []gpu.NamedWish{{Name: "a", Wish: shown("vm1", t4)}, {Name: "b", Wish: shown("vm1", second)}}
	if _, op, err := l.ApplyAssignments(t.Context(), "test", both, gpu.Idempotency{}); gpu.CodeOf(err) != gpu.CodeConflict || op != nil || l.wrote() != n {
		t.Errorf("%+v, %v", op, err)
	}
	both[1].Wish.Display = false
	_, op, err := l.ApplyAssignments(t.Context(), "test", both, gpu.Idempotency{})
	if err != nil || op == nil {
		t.Fatal(err)
	}
	if done := l.finish(*op, nil); done.Status != operation.Done {
		t.Fatalf("%+v", done.Problem)
	}
	vm, err := l.sim.Libvirt.VM(t.Context(), "vm1")
	if err != nil {
		t.Fatal(err)
	}
	displays := 0
	for _, d := range vm.Hostdevs {
		if d.Display {
			displays++
		}
	}
	if len(vm.Hostdevs) != 2 || displays != 1 {
		t.Errorf("%+v", vm.Hostdevs)
	}
	l.detach("b")
	n = l.wrote()
	_, op, err = l.PutAssignment(t.Context(), "test", "c", shown("vm1", second))
	if e := wantCode(t, err, gpu.CodeConflict); op != nil || l.wrote() != n || !strings.Contains(err.Error(), "assignment a") || e.Hint == "" {
		t.Errorf("%+v, %v", op, err)
	}
	// As part of the plan of another VM it is none of theirs.
	l.attach("d", shown("vm2", second))
}

// A vGPU on a virtual function is a display where libvirt is new enough, also where a host has
// changed its generation (T14); where it is not that is refused before anything is made.
func TestDisplayOfAFunction_T14(t *testing.T) {
	l := newShareLab(t, true)
	wish := gpu.Wish{VM: "db1", Profile: "L40S-8Q", Display: true}
	l.attach("a", wish)
	l.switched(false)
	if err := l.sim.Libvirt.SetVersion("10.1.0"); err != nil {
		t.Fatal(err)
	}
	n := l.wrote()
	if _, op, err := l.PutAssignment(t.Context(), "test", "a", wish); gpu.CodeOf(err) != gpu.CodeInvalid || op != nil || l.wrote() != n || !strings.Contains(err.Error(), "takes libvirt 10.2") {
		t.Errorf("%+v, %v", op, err)
	}
	if err := l.sim.Libvirt.SetVersion("10.2.0"); err != nil {
		t.Fatal(err)
	}
	if op := l.finish(l.put("a", wish), nil); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	vm, err := l.sim.Libvirt.VM(t.Context(), "db1")
	if err != nil || len(vm.Hostdevs) != 1 || !vm.Hostdevs[0].Display || vm.Hostdevs[0].Handle.PCIAddress == "" {
		t.Errorf("%+v, %v", vm.Hostdevs, err)
	}
}

// A function or a card that is no vGPU is no display.
func TestDisplayOfAPlainFunction(t *testing.T) {
	l := newPCILab(t)
	l.mustSetVFs(flex, 2)
	for _, profile := range []string{flexVF, rxCard} {
		_, op, err := l.PutAssignment(t.Context(), "test", "a", gpu.Wish{VM: "db1", Profile: profile, Display: true})
		if e := wantCode(t, err, gpu.CodeInvalid); op != nil || e.Hint == "" {
			t.Errorf("%+v, %v", op, err)
		}
	}
}

// A display with ramfb comes and goes with a start of its VM: one that runs gets it later, and
// keeps it until it is shut down (T52).
func TestRamFB_T52(t *testing.T) {
	for _, mdev := range []bool{true, false} {
		l := newL40SLab(t, mdev)
		wish := gpu.Wish{VM: "web1", Profile: "L40S-8Q", Display: true, RamFB: true, Hotplug: gpu.HotplugRequire}
		_, op, err := l.PutAssignment(t.Context(), "test", "a", wish)
		if e := wantCode(t, err, gpu.CodeConflict); op != nil || len(e.Blockers) != 1 || e.Hint == "" {
			t.Errorf("%+v, %v", op, err)
		}
		wish.Hotplug = gpu.HotplugAuto
		if a := l.attach("a", wish); !a.RestartRequired || a.Live || !a.Config || a.State != gpu.AssignmentAttached {
			t.Errorf("%+v", a)
		}
		other := wish
		other.RamFB = false
		_, _, err = l.PutAssignment(t.Context(), "test", "a", other)
		if e := wantCode(t, err, gpu.CodeConflict); e.Diff["ramfb"] != [2]string{"true", "false"} {
			t.Errorf("%+v", e)
		}
		l.off("web1")
		if err := l.sim.Libvirt.Boot("web1"); err != nil {
			t.Fatal(err)
		}
		vm, err := l.sim.Libvirt.VM(t.Context(), "web1")
		if err != nil || len(vm.Hostdevs) != 1 || !vm.Hostdevs[0].RamFB || !vm.Hostdevs[0].Live {
			t.Errorf("%+v, %v", vm.Hostdevs, err)
		}
		n := l.wrote()
		if _, err := l.DeleteAssignment(t.Context(), "test", "a"); gpu.CodeOf(err) != gpu.CodeVMRunning || l.wrote() != n {
			t.Errorf("%v", err)
		}
		l.off("web1")
		l.detach("a")
		if err := l.sim.Libvirt.SetVersion("5.9.0"); err != nil {
			t.Fatal(err)
		}
		if _, op, err := l.PutAssignment(t.Context(), "test", "a", wish); err == nil || op != nil {
			t.Errorf("%+v", op)
		}
	}
}
