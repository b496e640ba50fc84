package host_test

import (
	"context"
	"syscall"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/host"
	"gpuvirt/internal/sim"
	"gpuvirt/operation"
)

// Parameters that cannot be read are not known: that is no drift, and such a vGPU is not
// adopted without them.
func TestParamsUnknown(t *testing.T) {
	l := newL40SLab(t, false)
	a := l.attach("gfx", gpu.Wish{VM: "web1", Profile: "L40S-8Q", Params: "disable_vnc=1"})
	theirs := l.handMade("web2", "L40S-8Q", 1, false)
	for i := range 2 {
		l.inject(sim.Fault{Op: "read", Path: "devices/*/*/" + l.vfs(l40s).Functions[i].PCIAddress + "/nvidia/vgpu_params", Errno: syscall.EIO, Times: 1000})
	}
	p, err := l.Partition(t.Context(), a.Partition)
	if err != nil || len(p.Conditions) != 1 || p.Conditions[0].Reason != gpu.ReasonParamsUnknown || p.Conditions[0].Type != gpu.Degraded {
		t.Errorf("%+v, %v", p.Conditions, err)
	}
	if _, _, err := l.AdoptPartition(t.Context(), "test", theirs, false); gpu.CodeOf(err) != gpu.CodeUnavailable {
		t.Errorf("%v", err)
	}
	l.clear()
	l.adopt(theirs)
	l.detach("gfx")
}

// noDetach is a libvirt that has gone whenever it is to detach something.
type noDetach struct {
	host.VMs

	asked chan struct{}
}

func (n noDetach) Detach(context.Context, string, string, gpu.Scope) error {
	select {
	case n.asked <- struct{}{}:
	default:
	}
	return gpu.Errorf(gpu.CodeUnavailable, "libvirt has gone")
}

// A vGPU that a VM runs with keeps the parameters that it has, though others were asked for:
// a detach that is given up ends well.
func TestParamsInUse(t *testing.T) {
	l := newL40SLab(t, false)
	l.attach("gfx", gpu.Wish{VM: "db1", Profile: "L40S-8Q", Params: "disable_vnc=1"})
	file := "bus/pci/devices/" + l.vfs(l40s).Functions[0].PCIAddress + "/nvidia/vgpu_params"
	write(t, l.sim, file, "enable_uvm=1\n")
	if err := l.sim.Libvirt.Boot("db1"); err != nil {
		t.Fatal(err)
	}
	vms := noDetach{l.sim.Libvirt, make(chan struct{}, 1)}
	l.vms = vms
	l.restart()
	op, err := l.DeleteAssignment(t.Context(), "test", "gfx")
	if err != nil {
		t.Fatal(err)
	}
	<-vms.asked
	n := l.wrote()
	if _, err := l.engine.Abort(op.ID); err != nil {
		t.Fatal(err)
	}
	if op := l.finish(op, nil); op.Status != operation.Undone || l.wrote() != n {
		t.Errorf("it ended %s: %+v", op.Status, op.Problem)
	}
	if vm, err := l.VM(t.Context(), "db1"); err != nil || len(vm.Hostdevs) != 1 || !vm.Hostdevs[0].Live || !vm.Hostdevs[0].Config {
		t.Errorf("%+v, %v", vm, err)
	}
}

// A restore gives a vGPU that is there already the parameters that it is to have: another
// program, which makes it at boot as well, has not, nor has a restore that died in between.
// Where a VM runs with it, it stays as it is, and that is told.
func TestRestoreGivesParams(t *testing.T) {
	for _, mdev := range []bool{true, false} {
		l := newL40SLab(t, mdev)
		a := l.attach("gfx", gpu.Wish{VM: "db1", Profile: "L40S-8Q", Params: "disable_vnc=1"})
		file := "bus/pci/devices/" + l.vfs(l40s).Functions[0].PCIAddress + "/nvidia/vgpu_params"
		if mdev {
			file = "bus/mdev/devices/" + a.Partition + "/nvidia/vgpu_params"
		}
		params := func(want string) {
			t.Helper()
			if p, err := l.Partition(t.Context(), a.Partition); err != nil || p.Params != want {
				t.Errorf("mdev=%t: %+v, %v", mdev, p, err)
			}
		}
		write(t, l.sim, file, "\n")
		if _, err := l.restore(10 * time.Second); err != nil {
			t.Error(err)
		}
		params("disable_vnc=1")
		n := l.wrote()
		if _, err := l.restore(10 * time.Second); err != nil || l.wrote() != n {
			t.Errorf("once more: %v", err)
		}

		write(t, l.sim, file, "enable_uvm=1\n")
		if err := l.sim.Libvirt.Boot("db1"); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if _, err := l.restore(10 * time.Second); gpu.CodeOf(err) != gpu.CodeGPUBusy || time.Since(begun) > 5*time.Second {
			t.Errorf("in use: %v", err)
		}
		params("enable_uvm=1")
	}
}
