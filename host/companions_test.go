package host_test

import (
	"slices"
	"strings"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
)

// The other functions of a card's slot go to VFIO with it, and into no VM: the plan and the
// partition say so. Where a person has given one to a VM, the card is not taken back under it,
// nor offered, and who has it is named.
func TestCompanionsOfACard(t *testing.T) {
	const sound, profile = "0000:71:00.1", "card-1002:744c"
	l := newLab(t, sim.RX(string(rx)))
	l.manage(rx)
	l.off("web1")
	theirs := gpu.Hostdev{Alias: "ua-theirs", Handle: gpu.Handle{PCIAddress: sound}}
	config := gpu.Scope{Config: true}
	give := func(vm string) {
		t.Helper()
		if err := l.sim.Libvirt.Attach(t.Context(), vm, theirs, config); err != nil {
			t.Fatal(err)
		}
	}
	take := func(vm string) {
		t.Helper()
		if err := l.sim.Libvirt.Detach(t.Context(), vm, theirs.Alias, config); err != nil {
			t.Fatal(err)
		}
	}
	give(sim.Web1)
	l.wantCapacity(profile, 0, "definitions of VMs name the devices that are left (1)")
	take(sim.Web1)
	l.wantCapacity(profile, 1, "")

	wish := gpu.Wish{VM: "db1", Profile: profile}
	plan, err := l.PlanAssignment(t.Context(), "all", wish)
	if err != nil || plan.Refusal != nil || !strings.Contains(plan.Steps[0].Summary, "VFIO takes "+sound+" with it, and no vm is given that") {
		t.Errorf("%+v, %v", plan, err)
	}
	a := l.attach("all", wish)
	vm, err := l.sim.Libvirt.VM(t.Context(), "db1")
	if err != nil || len(vm.Hostdevs) != 1 || vm.Hostdevs[0].Handle.PCIAddress != string(rx) || l.driverOf(sound) != "vfio-pci" {
		t.Errorf("%+v, %v", vm, err)
	}
	give(sim.Web1)
	p, err := l.Partition(t.Context(), a.Partition)
	if err != nil || !slices.Equal(p.Companions, []string{sound}) ||
		!slices.ContainsFunc(p.Holders, func(h gpu.Holder) bool { return h.Kind == "vm" && h.Name == "web1" }) {
		t.Errorf("%+v, %v", p, err)
	}
	n := l.wrote()
	_, err = l.DeleteAssignment(t.Context(), "test", "all")
	e := wantCode(t, err, gpu.CodeGPUBusy)
	if l.wrote() != n || len(e.Blockers) != 1 || e.Blockers[0].Name != "web1" || !strings.Contains(e.Blockers[0].Note, sound) {
		t.Errorf("%+v", e)
	}
	take(sim.Web1)
	give(vm.UUID) // its own VM: whoever put it there takes it out again
	if plan, err := l.PlanDeleteAssignment(t.Context(), "all"); err != nil || gpu.CodeOf(plan.Refusal) != gpu.CodeGPUBusy {
		t.Errorf("%+v, %v", plan, err)
	}
	take(vm.UUID)
	l.detach("all")
	if l.driverOf(string(rx)) != "amdgpu" || l.driverOf(sound) != "snd_hda_intel" {
		t.Errorf("%s, %s", l.driverOf(string(rx)), l.driverOf(sound))
	}
}
