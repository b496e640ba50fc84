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
