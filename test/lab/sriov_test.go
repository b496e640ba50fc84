//go:build lab

package lab

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"gpuvirt/api"
)

// declareCards tells the daemon that the NVMe controllers are GPUs, as an admin with odd
// cards does.
func declareCards(ctx context.Context, t *testing.T) {
	t.Helper()
	flags := " --pci-gpu=" + SRIOVKind + " --pci-gpu=" + VGPUKind
	for unit, command := range map[string]string{"gpuvirtd": "/usr/bin/gpuvirtd", "gpuvirt-restore": "/usr/bin/gpuvirtd restore"} {
		run(ctx, t, "mkdir -p /etc/systemd/system/"+unit+".service.d")
		must(t, hypervisor.Write(ctx, "/etc/systemd/system/"+unit+".service.d/cards.conf",
			[]byte("[Service]\nExecStart=\nExecStart="+command+flags+"\n"), 0o644))
	}
	run(ctx, t, "systemctl daemon-reload")
	t.Cleanup(func() {
		if hypervisor.Died() != "" {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		run(ctx, t, "rm -f /etc/systemd/system/gpuvirt*.service.d/cards.conf; systemctl daemon-reload; systemctl restart gpuvirtd")
	})
	must(t, hypervisor.StartDaemon(ctx))
}

func sriovPath(card string) string { return "/v1/gpus/" + card + "/sriov" }

func numVFs(n int) api.VFsRequest { return api.VFsRequest{NumVFs: &n} }

// drivers are the kernel drivers of PCI devices now.
func drivers(ctx context.Context, t *testing.T, devices ...string) string {
	t.Helper()
	var out []string
	for _, d := range devices {
		name, err := hypervisor.PCIDriver(ctx, d)
		must(t, err)
		out = append(out, name)
	}
	return strings.Join(out, " ")
}

// Virtual functions are turned on by REST, go through a running guest and back, are not
// turned off under it, and are there again after a reboot before the guest that has one
// starts by itself (T09, T10, R61). A whole card goes with its companion, and both get the
// drivers of before.
func TestSRIOVAndCard_T39(t *testing.T) {
	ctx := Scenario(t, hypervisor, 9*time.Minute)
	fresh(ctx, t)
	declareCards(ctx, t)
	uuid, err := hypervisor.DefineGuest(ctx, "pci", GuestOptions{Ports: 4, Autostart: true, Start: true})
	must(t, err)

	// What is declared is listed, and so is what its class says.
	if g := get[api.GPU](ctx, t, "/v1/gpus/"+SRIOVCard); g.SRIOV != (api.SRIOV{TotalVFs: VFs}) || g.Managed {
		t.Errorf("%+v", g)
	}
	call(ctx, t, http.MethodPut, sriovPath(SRIOVCard), numVFs(VFs)).problem(t, http.StatusConflict, "gpu-unmanaged")
	manage(ctx, t, SRIOVCard, WholeCard)
	call(ctx, t, http.MethodPut, sriovPath(SRIOVCard), numVFs(VFs+1)).want(t, http.StatusBadRequest)
	call(ctx, t, http.MethodPut, sriovPath(WholeCard), numVFs(1)).problem(t, http.StatusNotFound, "not-found")

	done(ctx, t, call(ctx, t, http.MethodPut, sriovPath(SRIOVCard), numVFs(VFs)))
	call(ctx, t, http.MethodPut, sriovPath(SRIOVCard), numVFs(VFs)).want(t, http.StatusOK)
	if s := get[api.VFs](ctx, t, sriovPath(SRIOVCard)); s.NumVFs != VFs || !s.Equal || s.Functions[3].PCIAddress != VF(SRIOVCard, 3) {
		t.Errorf("%+v", s)
	}
	for _, g := range list[api.GPU](ctx, t, "/v1/gpus") {
		if strings.HasPrefix(g.ID, "0000:01:") && g.ID != SRIOVCard {
			t.Errorf("a virtual function is listed as gpu %s", g.ID)
		}
	}

	const profile = "vf-" + SRIOVKind
	a := attach(ctx, t, "part", "pci", profile)
	if a.State != "attached" || !a.Attached.Live || !a.Attached.Config {
		t.Errorf("%+v", a)
	}
	must(t, hypervisor.WaitGuestPCI(ctx, "pci", SRIOVKind, 1))

	// The functions stay under the guest, and the card is not given away under them.
	busy := call(ctx, t, http.MethodPut, sriovPath(SRIOVCard), numVFs(0)).problem(t, http.StatusConflict, "gpu-busy")
	if !namesVM(busy, uuid) {
		t.Errorf("%+v", busy)
	}
	call(ctx, t, http.MethodPut, "/v1/assignments/all", api.AssignmentRequest{VM: "pci", Profile: "card-" + SRIOVKind, GPU: SRIOVCard}).
		problem(t, http.StatusUnprocessableEntity, "profile-not-creatable")
	if n := run(ctx, t, "cat /sys/bus/pci/devices/"+SRIOVCard+"/sriov_numvfs"); n != fmt.Sprint(VFs) {
		t.Errorf("%s functions are left", n)
	}

	t.Log("a whole card")
	before := drivers(ctx, t, WholeCard, WholeCardUSB)
	attach(ctx, t, "whole", "pci", "card-"+WholeKind)
	must(t, hypervisor.WaitGuestPCI(ctx, "pci", WholeKind, 1))
	if got := drivers(ctx, t, WholeCard, WholeCardUSB); got != "vfio-pci vfio-pci" {
		t.Errorf("the card and its companion are at %s", got)
	}
	// The companion is in no VM. One that a person gives it to keeps the card.
	if p := get[api.Partition](ctx, t, "/v1/partitions/"+WholeCard+"%2Fcard%2F0"); len(p.Companions) != 1 || p.Companions[0] != WholeCardUSB {
		t.Errorf("%+v", p)
	}
	if out := attachPCI(ctx, t, WholeCardUSB); out != "" {
		t.Fatal(out)
	}
	must(t, hypervisor.WaitGuestPCI(ctx, "pci", USBKind, 1))
	if held := call(ctx, t, http.MethodDelete, "/v1/assignments/whole", nil).problem(t, http.StatusConflict, "gpu-busy"); !namesVM(held, uuid) {
		t.Errorf("%+v", held)
	}
	run(ctx, t, "virsh -q detach-device pci /run/"+WholeCardUSB+".xml --live")
	must(t, hypervisor.WaitGuestPCI(ctx, "pci", USBKind, 0))
	detach(ctx, t, "whole")
	must(t, hypervisor.WaitGuestPCI(ctx, "pci", WholeKind, 0))
	if got := drivers(ctx, t, WholeCard, WholeCardUSB); got != before {
		t.Errorf("the card and its companion came back to %s, not to %s", got, before)
	}

	t.Log("reboot")
	must(t, hypervisor.Reboot(ctx))
	must(t, hypervisor.WaitReady(ctx))
	must(t, hypervisor.WaitGuestPCI(ctx, "pci", SRIOVKind, 1))
	if a := get[api.Assignment](ctx, t, "/v1/assignments/part"); a.State != "attached" || !a.Attached.Live {
		t.Errorf("after the reboot: %+v", a)
	}
	if s := get[api.VFs](ctx, t, sriovPath(SRIOVCard)); s.NumVFs != VFs || !s.Equal {
		t.Errorf("after the reboot: %+v", s)
	}

	detach(ctx, t, "part")
	must(t, hypervisor.WaitGuestPCI(ctx, "pci", SRIOVKind, 0))
	done(ctx, t, call(ctx, t, http.MethodPut, sriovPath(SRIOVCard), numVFs(0)))
	if got := run(ctx, t, "ls -d /sys/bus/pci/devices/"+SRIOVCard+"/virtfn* 2>/dev/null || true"); got != "" {
		t.Errorf("left: %s", got)
	}
}

// namesVM reports whether a problem has a VM among its blockers.
func namesVM(p api.Problem, uuid string) bool {
	for _, b := range p.Blockers {
		if b.Kind == "vm" && b.ID == uuid {
			return true
		}
	}
	return false
}
