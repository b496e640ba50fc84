//go:build lab

package lab

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// libvirt refuses a device that a VM has already, and an alias that is in use there,
// whichever of the two definitions has it, and then changes neither. A new device is
// attached without a look before because that is so.
func TestLibvirtRefusesWhatIsThere(t *testing.T) {
	vm := hypervisor
	ctx := begin(t, 4*time.Minute)
	_, err := vm.DefineGuest(ctx, "twice", GuestOptions{Start: true})
	must(t, err)
	const one, two = "6e1a5a2e-0d3c-4d8b-9a55-8c1f6c0b7a01", "6e1a5a2e-0d3c-4d8b-9a55-8c1f6c0b7a02"
	for _, mdev := range []string{one, two} {
		run(ctx, t, "mdevctl start -u "+mdev+" -p mbochs -t mbochs-small")
	}
	device := func(mdev, alias string) string {
		return fmt.Sprintf(`<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci'>`+
			`<source><address uuid='%s'/></source><alias name='ua-%s'/></hostdev>`, mdev, alias)
	}
	must(t, vm.Write(ctx, "/run/first.xml", []byte(device(one, "one")), 0o600))
	count := func(what string) string {
		return run(ctx, t, fmt.Sprintf("virsh dumpxml twice | grep -c '%[1]s' || true; virsh dumpxml twice --inactive | grep -c '%[1]s' || true", what))
	}
	for _, there := range []string{"--live", "--config"} {
		run(ctx, t, "virsh -q attach-device twice /run/first.xml "+there)
		before := count("<hostdev ")
		for _, again := range []string{device(one, "one"), device(one, "other"), device(two, "one")} {
			must(t, vm.Write(ctx, "/run/again.xml", []byte(again), 0o600))
			if out := run(ctx, t, "virsh -q attach-device twice /run/again.xml --live --config 2>&1 || echo refused"); !strings.HasSuffix(out, "refused") {
				t.Errorf("with the first device in %s, libvirt took %s: %s", there, again, out)
			}
			if after := count("<hostdev "); after != before {
				t.Errorf("with the first device in %s, refusing %s changed the VM: %q, was %q", there, again, after, before)
			}
		}
		run(ctx, t, "virsh -q detach-device-alias twice ua-one "+there)
		if there == "--live" {
			must(t, vm.WaitGuestPCI(ctx, "twice", MBochs, 0))
		}
	}
}
