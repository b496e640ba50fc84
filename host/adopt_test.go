package host_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/operation"
)

// What a script made, and a VM uses, is taken over without touching it; then it comes back
// after a reboot and can be deleted.
func TestAdopt(t *testing.T) {
	l := newLab(t, sim.L40S(string(l40s), 0).WithVGPU(false), sim.Mbochs(), sim.A100(string(ampere), 0))
	l.manage(l40s)
	l.mustSetVFs(l40s, 32)
	id := uuid.NewString()
	write(t, l.sim, "class/mdev_bus/mbochs/mdev_supported_types/mbochs-large/create", id)
	write(t, l.sim, "bus/pci/devices/0000:61:00.4/nvidia/current_vgpu_type", "1152")
	write(t, l.sim, "bus/pci/devices/0000:61:00.4/nvidia/vgpu_params", "disable_vnc=1\n") // there is none before
	vgpu := string(l40s) + "/vgpu/0"
	dev := gpu.Hostdev{Alias: "ua-theirs", Handle: gpu.Handle{MdevUUID: id}, Model: "vfio-pci"}
	if err := l.sim.Libvirt.Attach(t.Context(), sim.Web1, dev, gpu.Scope{Live: true, Config: true}); err != nil {
		t.Fatal(err)
	}
	_, _, err := l.AdoptPartition(t.Context(), "test", id, false)
	if e, ok := errors.AsType[*gpu.Error](err); !ok || e.Code != gpu.CodeGPUUnmanaged || !strings.Contains(e.Hint, "gpuvirt gpu manage mbochs") {
		t.Errorf("on a gpu that is nobody's: %v", err)
	}
	if _, plan, err := l.AdoptPartition(t.Context(), "test", id, true); err != nil || plan.Changes || plan.Refusal == nil {
		t.Errorf("what is refused changes nothing: %+v, %v", plan, err)
	}
	l.manage("mbochs")

	n := l.wrote()
	if p, plan, err := l.AdoptPartition(t.Context(), "test", id, true); err != nil || !plan.Changes || plan.Refusal != nil || p.Origin != gpu.OriginForeign {
		t.Errorf("the dry run: %+v, %+v, %v", p, plan, err)
	}
	for _, id := range []string{id, vgpu} {
		p, plan, err := l.AdoptPartition(t.Context(), "test", id, false)
		if err != nil || !plan.Changes || p.Origin != gpu.OriginManaged || p.State != gpu.PartitionMade || len(p.Conditions) != 0 || p.Created.IsZero() {
			t.Errorf("%+v, %+v, %v", p, plan, err)
		}
		if p, plan, err := l.AdoptPartition(t.Context(), "test", id, false); err != nil || plan.Changes || p.Origin != gpu.OriginManaged {
			t.Errorf("once more: %+v, %+v, %v", p, plan, err)
		}
	}
	if l.wrote() != n {
		t.Error("it has touched a device")
	}
	if _, err := l.DeletePartition(t.Context(), "test", id); gpu.CodeOf(err) != gpu.CodeGPUBusy {
		t.Errorf("in use: %v", err)
	}

	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.restore(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	for id, profile := range map[string]string{id: "mbochs-large", vgpu: "L40S-8Q"} {
		p, err := l.Partition(t.Context(), id)
		if err != nil || p.State != gpu.PartitionMade || p.Profile != profile || profile == "L40S-8Q" && p.Params != "disable_vnc=1" {
			t.Errorf("%+v, %v", p, err)
		}
	}
	if op := l.finish(l.DeletePartition(t.Context(), "test", vgpu)); op.Status != operation.Done {
		t.Errorf("%+v", op.Problem)
	}
	if _, _, err := l.AdoptPartition(t.Context(), "test", vgpu, false); gpu.CodeOf(err) != gpu.CodeNotFound {
		t.Errorf("what is gone: %v", err)
	}
	if plan, err := l.PlanDeletePartition(t.Context(), vgpu); gpu.CodeOf(err) != gpu.CodeNotFound {
		t.Errorf("what is gone: %+v, %v", plan, err)
	}
}

// What lies in the place of one of ours is not adopted over its record, and a GPU that an
// operation is changing is left to that.
func TestNotAdoptable(t *testing.T) {
	l := newLab(t, sim.L40S(string(l40s), 0).WithVGPU(false))
	l.manage(l40s)
	l.mustSetVFs(l40s, 32)
	l.attach("gfx", gpu.Wish{VM: "db1", Profile: "L40S-8Q"})
	for _, number := range []string{"0", "1151"} { // another type
		if err := l.sim.Sysfs.Write(t.Context(), "bus/pci/devices/0000:61:00.4/nvidia/current_vgpu_type", number); err != nil {
			t.Fatal(err)
		}
	}
	id := string(l40s) + "/vgpu/0"
	_, _, err := l.AdoptPartition(t.Context(), "test", id, false)
	if gpu.CodeOf(err) != gpu.CodeDrift || !strings.Contains(err.Error(), "somebody else has put a L40S-6Q in its place") {
		t.Errorf("%v", err)
	}
	if r, err := l.store.PartitionRecord(id); err != nil || r.Profile != "L40S-8Q" {
		t.Errorf("the record is %+v, %v", r, err)
	}

	l = newLab(t, sim.Mbochs())
	l.manage("mbochs")
	other := uuid.NewString()
	if err := l.sim.Sysfs.Write(t.Context(), "class/mdev_bus/mbochs/mdev_supported_types/mbochs-small/create", other); err != nil {
		t.Fatal(err)
	}
	l.attach("a", gpu.Wish{VM: "web1", Profile: "mbochs-small"})
	l.SetDetachTimeout(10 * time.Second)
	if err := l.sim.Libvirt.SetStubborn("web1", true); err != nil {
		t.Fatal(err)
	}
	op, err := l.DeleteAssignment(t.Context(), "test", "a")
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = l.AdoptPartition(t.Context(), "test", other, false)
	if held, ok := errors.AsType[*operation.ConflictError](err); !ok || held.Holder != op.ID {
		t.Errorf("%v", err)
	}
	// The guest has been asked once the persistent definition has no device any more.
	for asked := false; !asked; {
		vm, err := l.VM(t.Context(), "web1")
		if err != nil {
			t.Fatal(err)
		}
		asked = !slices.ContainsFunc(vm.Hostdevs, func(d gpu.Hostdev) bool { return d.Config })
		<-time.After(time.Millisecond)
	}
	if err := l.sim.Libvirt.Shutdown("web1"); err != nil {
		t.Fatal(err)
	}
	if op := l.finish(op, nil); op.Status != operation.Done {
		t.Errorf("%+v", op.Problem)
	}
	if _, _, err := l.AdoptPartition(t.Context(), "test", other, false); err != nil {
		t.Error(err)
	}
}
