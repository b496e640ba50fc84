//go:build lab

package lab

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuvirt/api"
)

// vgpuType is the type that a virtual function of VGPUCard has now.
func vgpuType(ctx context.Context, t *testing.T, n int) string {
	t.Helper()
	return run(ctx, t, "cat "+pciDevices+VF(VGPUCard, n)+"/nvidia/current_vgpu_type")
}

// A vGPU on a virtual function whose driver takes a type, by profile name: libvirt takes
// the function with managed='no' and a running guest sees it; its type stays while a guest
// has it open, its driver keeps it some seconds longer, and after a reboot functions and
// types are back before the guest starts by itself (T09, T10, T17, T40). What the driver
// refuses is told the same way in either of its dialects.
func TestVGPU_T14(t *testing.T) {
	ctx := Scenario(t, hypervisor, 9*time.Minute)
	if hypervisor.Suite() == "bookworm" {
		testVGPUOldLibvirt(ctx, t)
		return
	}
	fresh(ctx, t)
	must(t, hypervisor.LoadVGPU(ctx, "sticky_ms=2000"))
	declareCards(ctx, t)
	uuid, err := hypervisor.DefineGuest(ctx, "pci", GuestOptions{Ports: 4, Autostart: true, Start: true})
	must(t, err)
	manage(ctx, t, VGPUCard)
	refused := call(ctx, t, http.MethodPut, "/v1/assignments/gfx", api.AssignmentRequest{VM: "pci", Profile: "LAB-8Q"}).
		problem(t, http.StatusUnprocessableEntity, "profile-unknown")
	if !strings.Contains(refused.Hint, "gpuvirt sriov set") {
		t.Errorf("%+v", refused)
	}
	done(ctx, t, call(ctx, t, http.MethodPut, sriovPath(VGPUCard), numVFs(VFs)))
	var names []string
	for _, p := range list[api.Profile](ctx, t, "/v1/gpus/"+VGPUCard+"/profiles?kind=vgpu") {
		if p.NotCreatable != "" || p.Available != 1 {
			t.Errorf("%+v", p)
		}
		names = append(names, p.Name)
	}
	if !slices.Contains(names, "LAB-8Q") || !slices.Contains(names, "LAB-4C") {
		t.Errorf("profiles %q", names)
	}
	testDialects(ctx, t)

	done(ctx, t, call(ctx, t, http.MethodPut, "/v1/assignments/gfx", api.AssignmentRequest{
		VM: "pci", Profile: "LAB-8Q", VGPUParams: "frame_rate_limiter=0, enable_uvm=1",
	}))
	const params = "enable_uvm=1,frame_rate_limiter=0"
	readVGPU(ctx, t, 0, "vgpu_params", params)
	a := get[api.Assignment](ctx, t, "/v1/assignments/gfx")
	if a.State != "attached" || !a.Attached.Live || !a.Attached.Config || a.Partition != VGPUCard+"/vgpu/0" {
		t.Errorf("%+v", a)
	}
	must(t, hypervisor.WaitGuestPCI(ctx, "pci", VGPUKind, 1))
	if got := run(ctx, t, "virsh dumpxml pci | grep -c \"<hostdev mode='subsystem' type='pci' managed='no'>\""); got != "1" {
		t.Errorf("%s unmanaged devices", got)
	}
	// The card is of one size now, and no number is taken for another that it begins.
	call(ctx, t, http.MethodPut, "/v1/assignments/small", api.AssignmentRequest{VM: "pci", Profile: "LAB-4Q"}).
		problem(t, http.StatusInsufficientStorage, "no-capacity")
	if got := vgpuType(ctx, t, 0); got != "1147" {
		t.Errorf("type %s", got)
	}
	if busy := call(ctx, t, http.MethodPut, sriovPath(VGPUCard), numVFs(0)).problem(t, http.StatusConflict, "gpu-busy"); !namesVM(busy, uuid) {
		t.Errorf("%+v", busy)
	}

	// One that a person has attached by hand: its type is not changed under the guest.
	done(ctx, t, call(ctx, t, http.MethodPost, "/v1/partitions", api.PartitionRequest{GPU: VGPUCard, Profile: "LAB-8Q"}))
	byHand := VGPUCard + "/vgpu/1"
	if out := attachPCI(ctx, t, VF(VGPUCard, 1)); out != "" {
		t.Fatal(out)
	}
	must(t, hypervisor.WaitGuestPCI(ctx, "pci", VGPUKind, 2))
	path := "/v1/partitions/" + strings.ReplaceAll(byHand, "/", "%2F")
	if held := call(ctx, t, http.MethodDelete, path, nil).problem(t, http.StatusConflict, "gpu-busy"); !namesVM(held, uuid) {
		t.Errorf("%+v", held)
	}
	if got := vgpuType(ctx, t, 1); got != "1147" {
		t.Errorf("type %s", got)
	}
	run(ctx, t, "virsh -q detach-device pci /run/"+VF(VGPUCard, 1)+".xml --live")
	must(t, hypervisor.WaitGuestPCI(ctx, "pci", VGPUKind, 1))
	done(ctx, t, call(ctx, t, http.MethodDelete, path, nil)) // though the driver does not let go of it at once
	if got := vgpuType(ctx, t, 1); got != "0" {
		t.Errorf("type %s", got)
	}

	t.Log("reboot")
	must(t, hypervisor.Reboot(ctx))
	must(t, hypervisor.WaitReady(ctx))
	must(t, hypervisor.WaitGuestPCI(ctx, "pci", VGPUKind, 1))
	if a := get[api.Assignment](ctx, t, "/v1/assignments/gfx"); a.State != "attached" || !a.Attached.Live || len(a.Conditions) != 0 {
		t.Errorf("after the reboot: %+v", a)
	}
	readVGPU(ctx, t, 0, "vgpu_params", params)
	must(t, hypervisor.SetVGPU(ctx, "rfc_errors", "1")) // which has it in use as well, for a while
	detach(ctx, t, "gfx")
	must(t, hypervisor.WaitGuestPCI(ctx, "pci", VGPUKind, 0))
	if got := vgpuType(ctx, t, 0); got != "0" {
		t.Errorf("type %s", got)
	}
	done(ctx, t, call(ctx, t, http.MethodPut, sriovPath(VGPUCard), numVFs(0)))
}

// A libvirt that is too old cannot give such a function to a VM: nothing is touched.
func testVGPUOldLibvirt(ctx context.Context, t *testing.T) {
	t.Helper()
	fresh(ctx, t)
	must(t, hypervisor.LoadVGPU(ctx))
	declareCards(ctx, t)
	_, err := hypervisor.DefineGuest(ctx, "pci", GuestOptions{Ports: 4})
	must(t, err)
	manage(ctx, t, VGPUCard)
	done(ctx, t, call(ctx, t, http.MethodPut, sriovPath(VGPUCard), numVFs(VFs)))
	p := call(ctx, t, http.MethodPut, "/v1/assignments/gfx", api.AssignmentRequest{VM: "pci", Profile: "LAB-8Q"}).
		problem(t, http.StatusUnprocessableEntity, "profile-not-creatable")
	if !strings.Contains(p.Detail, "9.7") || vgpuType(ctx, t, 0) != "0" {
		t.Errorf("%+v", p)
	}
	done(ctx, t, call(ctx, t, http.MethodPut, sriovPath(VGPUCard), numVFs(0)))
}
