//go:build lab

package lab

import (
	"context"
	"strings"
	"testing"
	"time"
)

// What the scenarios with PCI cards stand on, without the daemon: virtual functions come
// and go, VFIO takes them and whole cards, libvirt gives them to a running guest and
// takes them back, and the guest's kernel sees that.
func TestPCI(t *testing.T) {
	vm := hypervisor
	ctx := Scenario(t, vm, 5*time.Minute)
	must(t, vm.Reset(ctx))
	_, err := vm.DefineGuest(ctx, "pci", GuestOptions{Ports: 4, Start: true})
	must(t, err)

	for device, want := range map[string]string{
		SRIOVCard:    SRIOVKind + " 0x010802 nvme",
		VGPUCard:     VGPUKind + " 0x010802 nvme",
		WholeCard:    WholeKind + " 0x038000 bochs-drm",
		WholeCardUSB: USBKind + " 0x0c0330 xhci_hcd",
	} {
		got := run(ctx, t, "cd "+pciDevices+device+" && echo $(cat vendor):$(cat device) $(cat class) $(basename $(readlink driver))")
		if got = strings.ReplaceAll(got, "0x", ""); got != strings.ReplaceAll(want, "0x", "") {
			t.Errorf("%s is %s, want %s", device, got, want)
		}
	}

	t.Log("a function of an SR-IOV card")
	must(t, vm.EnableVFs(ctx, SRIOVCard, VFs))
	groups := map[string]string{group(ctx, t, SRIOVCard): SRIOVCard}
	for n := range VFs {
		g := group(ctx, t, VF(SRIOVCard, n))
		if other, there := groups[g]; there {
			t.Errorf("group %s has %s and %s", g, other, VF(SRIOVCard, n))
		}
		groups[g] = VF(SRIOVCard, n)
	}
	vf := VF(SRIOVCard, 1)
	if out := attachPCI(ctx, t, vf); !strings.Contains(out, "must be manually detached") {
		t.Errorf("%s without a driver: %s", vf, out)
	}
	must(t, vm.BindPCI(ctx, vf, "vfio-pci"))
	throughGuest(ctx, t, given{vf, SRIOVKind})
	must(t, vm.BindPCI(ctx, vf, ""))
	must(t, vm.EnableVFs(ctx, SRIOVCard, 0))
	if got := run(ctx, t, "[ ! -e "+pciDevices+vf+" ] || echo there"); got != "" {
		t.Errorf("%s is still there", vf)
	}

	t.Log("a whole card with its companion")
	if a, b := group(ctx, t, WholeCard), group(ctx, t, WholeCardUSB); a != b {
		t.Errorf("groups %s and %s", a, b)
	}
	must(t, vm.BindPCI(ctx, WholeCard, "vfio-pci"))
	if out := attachPCI(ctx, t, WholeCard); !strings.Contains(out, "group "+group(ctx, t, WholeCard)) {
		t.Errorf("with the companion at its driver: %s", out)
	}
	must(t, vm.BindPCI(ctx, WholeCardUSB, "vfio-pci"))
	throughGuest(ctx, t, given{WholeCard, WholeKind}, given{WholeCardUSB, USBKind})
	for device, driver := range map[string]string{WholeCard: "bochs-drm", WholeCardUSB: "xhci_hcd"} {
		must(t, vm.BindPCI(ctx, device, ""))
		is, err := vm.PCIDriver(ctx, device)
		must(t, err)
		if is != driver {
			t.Errorf("%s came back to %q, want %s", device, is, driver)
		}
	}

	t.Log("a function with a vGPU")
	must(t, vm.LoadVGPU(ctx))
	must(t, vm.EnableVFs(ctx, VGPUCard, VFs))
	vf = VF(VGPUCard, 0)
	const vgpu = "1147"
	refused, says := attachPCI(ctx, t, vf), "No such device"
	if vm.Suite() == "bookworm" { // its libvirt takes no driver but vfio-pci
		says = "must be manually detached"
	}
	if !strings.Contains(refused, says) {
		t.Errorf("without a type: %s", refused)
	}
	setVGPU(ctx, t, 0, vgpu, "")
	if vm.Suite() == "bookworm" {
		return
	}
	if out := attachPCI(ctx, t, vf); out != "" {
		t.Fatal(out)
	}
	must(t, vm.WaitGuestPCI(ctx, "pci", VGPUKind, 1))
	setVGPU(ctx, t, 0, vgpu, "Operation not permitted")
	setVGPU(ctx, t, 0, "0", "Device or resource busy")
	writeVGPU(ctx, t, 0, "vgpu_params", "a=1\n", "Operation not permitted")
	must(t, vm.SetVGPU(ctx, "sticky_ms", "3000"))
	current := pciDevices + vf + "/nvidia/current_vgpu_type"
	if out := run(ctx, t, "virsh -q detach-device pci /run/"+vf+".xml --live && echo 0 2>&1 >"+current+" || cat "+current); !strings.HasSuffix(out, vgpu) {
		t.Errorf("a clear right after the detach: %s", out)
	}
	must(t, vm.WaitGuestPCI(ctx, "pci", VGPUKind, 0))
	eventually(ctx, t, "echo 0 >"+current+"; cat "+current, "0")
}

// Our module answers as the driver does that it stands for, in either dialect.
func TestVGPUModule(t *testing.T) {
	vm := hypervisor
	ctx := Scenario(t, vm, 3*time.Minute)
	must(t, vm.Reset(ctx))
	must(t, vm.LoadVGPU(ctx))
	must(t, vm.EnableVFs(ctx, VGPUCard, VFs))
	for n := range VFs {
		driver, err := vm.PCIDriver(ctx, VF(VGPUCard, n))
		must(t, err)
		if driver != vgpuModule {
			t.Fatalf("%s has driver %q", VF(VGPUCard, n), driver)
		}
	}
	const (
		denied, bad, failed, none = "Operation not permitted", "Invalid argument", "Input/output error", "No such device or address"

		header  = "ID    : vGPU Name"
		eights  = header + "\n1147  : NVIDIA LAB-8Q\n1149  : NVIDIA LAB-8C"
		fours   = header + "\n114   : NVIDIA LAB-4C\n1146  : NVIDIA LAB-4Q"
		smaller = header + "\n114   : NVIDIA LAB-4C\n1144  : NVIDIA LAB-1Q\n1145  : NVIDIA LAB-2Q\n1146  : NVIDIA LAB-4Q"
	)
	readVGPU(ctx, t, 0, "current_vgpu_type", "0")
	for _, file := range []string{"vgpu_params", "gpu_instance_id", "placement_id"} {
		readVGPU(ctx, t, 0, file, none)
	}
	writeVGPU(ctx, t, 0, "vgpu_params", "a=1\n", none)
	setVGPU(ctx, t, 0, "0", denied)
	setVGPU(ctx, t, 0, "0x47b", bad)
	setVGPU(ctx, t, 0, "11", failed)

	// One size at a time, letters may differ, until the card is full.
	setVGPU(ctx, t, 0, "1147", "")
	setVGPU(ctx, t, 0, "1147", denied)
	readVGPU(ctx, t, 0, "creatable_vgpu_types", header)
	readVGPU(ctx, t, 1, "creatable_vgpu_types", eights)
	setVGPU(ctx, t, 1, "1144", failed)
	setVGPU(ctx, t, 1, "1149", "")
	readVGPU(ctx, t, 1, "placement_id", "8")
	readVGPU(ctx, t, 2, "creatable_vgpu_types", header)
	setVGPU(ctx, t, 2, "1147", failed)
	setVGPU(ctx, t, 0, "0", "")
	setVGPU(ctx, t, 1, "0", "")
	setVGPU(ctx, t, 0, "114", "")
	readVGPU(ctx, t, 0, "current_vgpu_type", "114")
	readVGPU(ctx, t, 1, "creatable_vgpu_types", fours)

	// A write replaces all parameters, and loses its last byte.
	writeVGPU(ctx, t, 0, "vgpu_params", "a=1,b=2\n", "")
	writeVGPU(ctx, t, 0, "vgpu_params", "a=12", "")
	readVGPU(ctx, t, 0, "vgpu_params", "a=1")
	writeVGPU(ctx, t, 0, "vgpu_params", strings.Repeat("a", 1025), "Argument list too long")

	// Sizes that mix: what is free may be in pieces.
	must(t, vm.SetVGPU(ctx, "mixed", "1"))
	setVGPU(ctx, t, 1, "1147", "")
	setVGPU(ctx, t, 0, "0", "")
	setVGPU(ctx, t, 0, "1144", "")
	readVGPU(ctx, t, 1, "placement_id", "8")
	readVGPU(ctx, t, 2, "creatable_vgpu_types", smaller)

	// The other dialect.
	must(t, vm.SetVGPU(ctx, "rfc_errors", "1"))
	readVGPU(ctx, t, 0, "creatable_vgpu_types", "")
	setVGPU(ctx, t, 0, "1144", "")
	setVGPU(ctx, t, 0, "1145", bad)
	setVGPU(ctx, t, 2, "11", "No such device")
	setVGPU(ctx, t, 2, "1148", "No space left on device")
	setVGPU(ctx, t, 2, "0", "")

	// What a function was given goes with it.
	must(t, vm.EnableVFs(ctx, VGPUCard, VFs))
	readVGPU(ctx, t, 0, "current_vgpu_type", "0")
}

func setVGPU(ctx context.Context, t *testing.T, n int, id, want string) {
	t.Helper()
	writeVGPU(ctx, t, n, "current_vgpu_type", id+"\n", want)
}

// writeVGPU writes to a file of a function of VGPUCard and judges what the kernel says
// to it, empty for nothing.
func writeVGPU(ctx context.Context, t *testing.T, n int, file, text, want string) {
	t.Helper()
	out := run(ctx, t, "printf %s "+quote(text)+" 2>&1 >"+pciDevices+VF(VGPUCard, n)+"/nvidia/"+file+" || true")
	if got := out[strings.LastIndex(out, ": ")+1:]; strings.TrimSpace(got) != want {
		t.Errorf("writing %.20q to %s of function %d: %q, want %q", text, file, n, out, want)
	}
}

// readVGPU judges what a file of a function of VGPUCard has, or what the kernel says.
func readVGPU(ctx context.Context, t *testing.T, n int, file, want string) {
	t.Helper()
	out := run(ctx, t, "cat "+pciDevices+VF(VGPUCard, n)+"/nvidia/"+file+" 2>&1 || true")
	if got, failed := strings.CutPrefix(out, "cat: "); failed {
		out = got[strings.LastIndex(got, ": ")+2:]
	}
	if out != want {
		t.Errorf("%s of function %d: %q, want %q", file, n, out, want)
	}
}

func group(ctx context.Context, t *testing.T, device string) string {
	t.Helper()
	return run(ctx, t, "basename $(readlink "+pciDevices+device+"/iommu_group)")
}

// attachPCI attaches a device to the running guest of TestPCI and returns what libvirt
// said, empty when it did.
func attachPCI(ctx context.Context, t *testing.T, device string) string {
	t.Helper()
	file := "/run/" + device + ".xml"
	must(t, hypervisor.Write(ctx, file, []byte(HostdevPCI(device, "")), 0o600))
	return run(ctx, t, "virsh -q attach-device pci "+file+" --live 2>&1 || echo refused")
}

// given is a device of the hypervisor, and what a guest calls it.
type given struct{ device, kind string }

// throughGuest gives devices to the guest of TestPCI and takes them back.
func throughGuest(ctx context.Context, t *testing.T, devices ...given) {
	t.Helper()
	clock := time.Now()
	for _, d := range devices {
		if out := attachPCI(ctx, t, d.device); out != "" {
			t.Fatalf("%s: %s", d.device, out)
		}
	}
	seen(ctx, t, 1, devices)
	in := time.Since(clock)
	clock = time.Now()
	for _, d := range devices {
		run(ctx, t, "virsh -q detach-device pci /run/"+d.device+".xml --live")
	}
	seen(ctx, t, 0, devices)
	eventually(ctx, t, "virsh dumpxml pci | grep -c '<hostdev ' || true", "0")
	t.Logf("%v: in %.1f s, out %.1f s", devices, in.Seconds(), time.Since(clock).Seconds())
}

// seen waits until the guest's kernel has n of each of the devices.
func seen(ctx context.Context, t *testing.T, n int, devices []given) {
	t.Helper()
	for _, d := range devices {
		must(t, hypervisor.WaitGuestPCI(ctx, "pci", d.kind, n))
	}
}
