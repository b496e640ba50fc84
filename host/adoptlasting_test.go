package host_test

import (
	"maps"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/operation"
)

// notAdopted has a partition refused because of what it stands on, or is beside, and says
// what the hint is.
func (l *lab) notAdopted(id, because string) string {
	l.t.Helper()
	_, plan, err := l.AdoptPartition(l.t.Context(), "test", id, true)
	if err != nil || plan.Refusal == nil {
		l.t.Errorf("a dry run for %s: %+v, %v", id, plan, err)
	}
	_, _, err = l.AdoptPartition(l.t.Context(), "test", id, false)
	e := wantCode(l.t, err, gpu.CodeConflict)
	if !strings.Contains(err.Error(), because) || len(e.Hint) == 0 && e.Blockers == nil {
		l.t.Errorf("%s: %v, %+v", id, err, e)
	}
	if records, err := l.store.PartitionRecords(); err != nil || len(records) > 0 && records[0].ID == id {
		l.t.Errorf("%+v, %v", records, err)
	}
	return e.Hint
}

func (l *lab) adopt(id string) {
	l.t.Helper()
	if _, _, err := l.AdoptPartition(l.t.Context(), "test", id, false); err != nil {
		l.t.Fatal(err)
	}
}

// allComeBack reboots, and wants all that is recorded to be there again.
func (l *lab) allComeBack(n int) {
	l.t.Helper()
	if err := l.sim.Reboot(); err != nil {
		l.t.Fatal(err)
	}
	if done, err := l.restore(10 * time.Second); err != nil || len(done) != n {
		l.t.Errorf("%+v, %v", done, err)
	}
}

// A vGPU whose virtual function somebody else has turned on is adopted once the functions
// are asked for: at a boot nobody else turns them on any more, and it was waited for in vain.
func TestAdoptOnForeignFunctions(t *testing.T) {
	for _, mdev := range []bool{true, false} {
		l := newLab(t, sim.L40S(string(l40s), 0).WithVGPU(mdev))
		l.manage(l40s)
		if _, err := l.sim.RunTool(t.Context(), "/usr/lib/nvidia/sriov-manage", "-e", string(l40s)); err != nil {
			t.Fatal(err)
		}
		id := l.handMade("web1", "L40S-8Q", 3, mdev)
		if hint := l.notAdopted(id, "on a virtual function that gpuvirt was not asked for"); !strings.HasSuffix(hint, "gpuvirt sriov set 0000:61:00.0 32") {
			t.Errorf("%s", hint)
		}
		if _, op, err := l.PutVFs(t.Context(), "test", l40s, 32); err != nil || op != nil {
			t.Fatalf("%+v, %v", op, err)
		}
		l.adopt(id)
		l.allComeBack(1)
	}
}

// A vGPU on a MIG instance is adopted after the instance.
func TestAdoptOnForeignInstance(t *testing.T) {
	for _, mdev := range []bool{true, false} {
		l := newLab(t, sim.H100(string(hopper), 0).WithVGPU(mdev))
		l.manage(hopper)
		l.mustLay(hopper, "")
		if op := l.setVFs(hopper, 32); op.Problem != nil {
			t.Fatalf("%+v", op.Problem)
		}
		theirs := mig.NewBackend(l.sim.NVML, l.sim.Sysfs, mig.Options{})
		instance := gpu.Partition{ID: mig.PartitionID(hopper, "0"), GPU: hopper, Profile: "1g.10gb", Slot: "0"}
		if _, err := theirs.Make(t.Context(), instance); err != nil {
			t.Fatal(err)
		}
		ps, _, err := l.Profiles(t.Context(), hopper)
		if err != nil {
			t.Fatal(err)
		}
		vgpu, _ := findProfile(ps, "H100XM-1-10C")
		dir := "bus/pci/devices/" + l.vfs(hopper).Functions[0].PCIAddress
		id := string(hopper) + "/vgpu/0"
		if mdev {
			id = uuid.NewString()
			write(t, l.sim, dir+"/mdev_supported_types/"+vgpu.NativeID+"/create", id)
		} else {
			write(t, l.sim, dir+"/nvidia/current_vgpu_type", vgpu.NativeID)
		}
		if hint := l.notAdopted(id, "stand"); hint != "adopt that one first: gpuvirt adopt "+instance.ID {
			t.Errorf("%s", hint)
		}
		l.adopt(instance.ID)
		l.adopt(id)
		l.allComeBack(2)
	}
}

func findProfile(all []gpu.Profile, name string) (gpu.Profile, bool) {
	for _, p := range all {
		if p.Name == name {
			return p, true
		}
	}
	return gpu.Profile{}, false
}

// A MIG instance without compute instances, as NVIDIA's guide makes them for vGPUs, is not
// what gpuvirt makes: it was adopted, was drift from then on, and was made anew by the
// policy "repair".
func TestAdoptInstanceWithoutComputeInstances(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "")
	byHand(t, l.sim, ampere, func(d mig.Device) error {
		ps, err := d.Profiles()
		for _, p := range ps {
			if p.Name == "3g.20gb" {
				_, err = d.Create(p.Index, 4)
			}
		}
		return err
	})
	l.notAdopted(mig.PartitionID(ampere, "4"), "no compute instance")
}

// takenByHand has somebody else give a card of NVIDIA's to VFIO.
func (l *lab) takenByHand(id gpu.ID) {
	l.t.Helper()
	address := string(id)
	write(l.t, l.sim, "bus/pci/drivers/nvidia/unbind", address)
	write(l.t, l.sim, "bus/pci/devices/"+address+"/driver_override", "vfio-pci")
	write(l.t, l.sim, "bus/pci/drivers_probe", address)
}

// A card is not adopted beside partitions of ours, nor they beside it: only one of the two
// comes back at a boot, and the VM that has the other does not start.
func TestAdoptCardBesidePartitions(t *testing.T) {
	l := newMIGLab(t)
	l.mustLay(ampere, "3g.20gb@4")
	theirs := mig.NewBackend(l.sim.NVML, l.sim.Sysfs, mig.Options{})
	instance := gpu.Partition{ID: mig.PartitionID(ampere, "4"), GPU: ampere, Profile: "3g.20gb", Slot: "4"}
	if err := theirs.Remove(t.Context(), instance); err != nil {
		t.Fatal(err)
	}
	l.takenByHand(ampere)
	l.notAdopted(string(ampere)+"/card/0", "1 partitions of its gpu are under management")

	l.takenByHand(hopper)
	l.adopt(string(hopper) + "/card/0")
	if err := l.sim.Reboot(); err != nil { // and it is not restored
		t.Fatal(err)
	}
	if err := theirs.SetMode(t.Context(), hopper, true); err != nil {
		t.Fatal(err)
	}
	instance = gpu.Partition{ID: mig.PartitionID(hopper, "0"), GPU: hopper, Profile: "1g.10gb", Slot: "0"}
	if _, err := theirs.Make(t.Context(), instance); err != nil {
		t.Fatal(err)
	}
	l.notAdopted(instance.ID, "the whole card is given away")
}

// What libvirt gives a VM from the host's driver and takes back is libvirt's.
func TestAdoptWhatLibvirtManages(t *testing.T) {
	l := newPCILab(t)
	l.takenByHand(ampere)
	id := string(ampere) + "/card/0"
	dev := gpu.Hostdev{Alias: "ua-theirs", Handle: gpu.Handle{PCIAddress: string(ampere)}, Managed: true}
	if err := l.sim.Libvirt.Attach(t.Context(), sim.DB1, dev, gpu.Scope{Config: true}); err != nil {
		t.Fatal(err)
	}
	l.notAdopted(id, "vm db1 has it with managed='yes'")
	if err := l.sim.Libvirt.SetDown(true); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.AdoptPartition(t.Context(), "test", id, false); gpu.CodeOf(err) != gpu.CodeUnavailable {
		t.Errorf("libvirt does not tell: %v", err)
	}
	if err := l.sim.Libvirt.SetDown(false); err != nil {
		t.Fatal(err)
	}
	if err := l.sim.Libvirt.Detach(t.Context(), sim.DB1, dev.Alias, gpu.Scope{Config: true}); err != nil {
		t.Fatal(err)
	}
	l.adopt(id)
}

// A function that was adopted, and that its owner has taken back, is in the way of others
// until it is given up: the refusal says how, as it has no assignment.
func TestAdoptedIsGivenUp(t *testing.T) {
	l := newPCILab(t)
	l.mustSetVFs(flex, 4)
	vf := l.vfs(flex).Functions[2].PCIAddress
	if d := l.driverOf(vf); d != "" {
		write(t, l.sim, "bus/pci/drivers/"+d+"/unbind", vf)
	}
	write(t, l.sim, "bus/pci/devices/"+vf+"/driver_override", "vfio-pci")
	write(t, l.sim, "bus/pci/drivers_probe", vf)
	l.adopt(string(flex) + "/vf/2")
	write(t, l.sim, "bus/pci/drivers/vfio-pci/unbind", vf)
	_, _, err := l.PutAssignment(t.Context(), "test", "a", gpu.Wish{VM: "db1", Profile: flexVF})
	if e := wantCode(t, err, gpu.CodeDrift); !strings.Contains(e.Hint, "gpuvirt partition delete") {
		t.Errorf("%s", e.Hint)
	}
	if op := l.finish(l.DeletePartition(t.Context(), "test", string(flex)+"/vf/2")); op.Problem != nil {
		t.Errorf("%+v", op.Problem)
	}
	l.attach("a", gpu.Wish{VM: "db1", Profile: flexVF})
}

// An adopted card or function is given back to a driver of the host in the end, though nobody
// knows which it had.
func TestAdoptedIsGivenBackInTheEnd(t *testing.T) {
	l := newPCILab(t)
	l.mustSetVFs(flex, 4)
	vf := l.vfs(flex).Functions[2].PCIAddress
	sound := strings.TrimSuffix(string(rx), "0") + "1"
	write(t, l.sim, "bus/pci/drivers/"+l.driverOf(sound)+"/unbind", sound)
	for _, c := range []struct{ address, id, driver string }{
		{string(rx), string(rx) + "/card/0", "amdgpu"}, {vf, string(flex) + "/vf/2", "xe"},
	} {
		write(t, l.sim, "bus/pci/drivers/"+l.driverOf(c.address)+"/unbind", c.address)
		write(t, l.sim, "bus/pci/devices/"+c.address+"/driver_override", "vfio-pci")
		write(t, l.sim, "bus/pci/drivers_probe", c.address)
		l.adopt(c.id)
		l.inject(sim.Fault{Op: "write", Path: "bus/pci/drivers_probe", Errno: syscall.EIO, Times: 1})
		op := l.finish(l.DeletePartition(t.Context(), "test", c.id))
		if d := l.driverOf(c.address); op.Status != operation.Done || d != c.driver {
			t.Errorf("%s: it ended %s, and is with %q: %+v", c.id, op.Status, d, op.Problem)
		}
	}
}

// Of several instances that somebody else made one is adopted, and the others are none the worse
// for it: nobody has asked for a layout in which there are no others. Where somebody has, they are.
func TestAdoptOneOfSeveralInstances(t *testing.T) {
	l := newMIGLab(t)
	theirs := mig.NewBackend(l.sim.NVML, l.sim.Sysfs, mig.Options{})
	if err := theirs.SetMode(t.Context(), ampere, true); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, slot := range []string{"0", "2"} {
		p, err := theirs.Make(t.Context(), gpu.Partition{ID: mig.PartitionID(ampere, slot), GPU: ampere, Profile: "1g.5gb", Slot: slot})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, p.ID)
	}
	_, _, live := l.Events(t.Context(), 0)
	equal := func(what string, want bool, wanted int) {
		t.Helper()
		s, err := l.Layout(t.Context(), ampere)
		if err != nil || s.Equal != want || s.Wanted == nil || len(s.Wanted.Instances) != wanted || len(s.Actual.Instances) != 2 {
			t.Errorf("%s: %+v, %v", what, s, err)
		}
	}
	l.adopt(ids[0])
	equal("one is adopted", true, 1)
	l.adopt(ids[1])
	equal("both are", true, 2)
	if op := l.finish(l.DeletePartition(t.Context(), "test", ids[1])); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	if _, err := theirs.Make(t.Context(), gpu.Partition{ID: ids[1], GPU: ampere, Profile: "1g.5gb", Slot: "2"}); err != nil {
		t.Fatal(err)
	}
	equal("one is somebody else's again", true, 1)
	for range len(live) {
		if e := <-live; e.Type == "gpu.drifted" {
			t.Errorf("%+v", e)
		}
	}

	// A layout that is asked for as a whole is another matter.
	if err := theirs.Remove(t.Context(), gpu.Partition{ID: ids[1], GPU: ampere, Profile: "1g.5gb", Slot: "2"}); err != nil {
		t.Fatal(err)
	}
	l.mustLay(ampere, "1g.5gb@0")
	if _, err := theirs.Make(t.Context(), gpu.Partition{ID: ids[1], GPU: ampere, Profile: "1g.5gb", Slot: "2"}); err != nil {
		t.Fatal(err)
	}
	equal("beside a layout", false, 1)
}

// A card is adopted with the functions that go along with it: they go back with it, also where
// that is broken off. One that the host uses would be taken from it at a boot.
func TestAdoptCardWithItsFunctions(t *testing.T) {
	l := newPCILab(t)
	id, sound := string(rx)+"/card/0", strings.TrimSuffix(string(rx), "0")+"1"
	was := l.driverOf(sound)
	toVFIO := func(address string) {
		t.Helper()
		write(t, l.sim, "bus/pci/drivers/"+l.driverOf(address)+"/unbind", address)
		write(t, l.sim, "bus/pci/devices/"+address+"/driver_override", "vfio-pci")
		write(t, l.sim, "bus/pci/drivers_probe", address)
	}
	toVFIO(string(rx))
	if hint := l.notAdopted(id, "function "+sound+", which goes with it, has driver \""+was+"\""); hint != "give VFIO that function as well" {
		t.Errorf("%s", hint)
	}
	toVFIO(sound)
	l.adopt(id)
	r, err := l.store.PartitionRecord(id)
	if want := map[string]string{string(rx): "", sound: ""}; err != nil || !maps.Equal(r.FormerDrivers, want) {
		t.Errorf("recorded %v, %v; want %v", r.FormerDrivers, err, want)
	}
	if err := l.sim.Reboot(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.restore(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{string(rx), sound} {
		if d := l.driverOf(address); d != "vfio-pci" {
			t.Errorf("after a boot %s has driver %q", address, d)
		}
	}
	// Somebody has given back the card, and not its sound.
	write(t, l.sim, "bus/pci/drivers/vfio-pci/unbind", string(rx))
	if op := l.finish(l.DeletePartition(t.Context(), "test", id)); op.Status != operation.Done {
		t.Errorf("%+v", op.Problem)
	}
	for address, want := range map[string]string{string(rx): "amdgpu", sound: was} {
		if d := l.driverOf(address); d != want {
			t.Errorf("at the end %s has driver %q, want %q", address, d, want)
		}
	}
}
