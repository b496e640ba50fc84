//go:build lab

package lab

import (
	"context"
	"strings"
	"testing"
	"time"

	"gpuvirt/test/machine"
)

// The lab itself: what the scenarios stand on. Reboot and power cut are in
// TestRebootKeepsAssignments: they are dear.
func TestSmoke(t *testing.T) {
	vm := hypervisor
	ctx := Scenario(t, vm, 6*time.Minute)
	must(t, vm.Reset(ctx))
	const mdev = "6e1a5a2e-0d3c-4d8b-9a55-8c1f6c0b7a01"
	clock := time.Now()
	lap := func(what string) {
		t.Logf("%-28s %5.1f s", what, time.Since(clock).Seconds())
		clock = time.Now()
	}

	if got := run(ctx, t, "ls /sys/class/mdev_bus"); got != "mbochs\nmdpy\nmtty" {
		t.Fatalf("mdev parents: %q", got)
	}
	makeMDev := "echo " + mdev + " >/sys/class/mdev_bus/mbochs/mdev_supported_types/mbochs-small/create"
	run(ctx, t, makeMDev)
	if got := run(ctx, t, "basename $(readlink /sys/bus/mdev/devices/"+mdev+"/mdev_type)"); got != "mbochs-small" {
		t.Fatalf("the mdev's type: %q", got)
	}

	if _, err := vm.DefineGuest(ctx, "smoke", GuestOptions{}); err != nil {
		t.Fatal(err)
	}
	lap("mdev made, guest defined")
	run(ctx, t, "virsh -q start smoke")
	lap("virsh start")
	must(t, vm.WaitGuestUp(ctx, "smoke"))
	lap("guest up")
	if kind := run(ctx, t, "virsh dumpxml smoke | grep -o \"<domain type='[a-z]*'\""); kind != "<domain type='kvm'" {
		t.Fatalf("the guest is not under KVM: %q", kind)
	}

	device := `<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci'><source><address uuid='` + mdev + `'/></source></hostdev>`
	must(t, vm.Write(ctx, "/run/device.xml", []byte(device), 0o600))
	lap("file written")
	run(ctx, t, "virsh -q attach-device smoke /run/device.xml --live --config")
	lap("virsh attach-device")
	must(t, vm.WaitGuestPCI(ctx, "smoke", MBochs, 1))
	lap("guest sees the device")
	run(ctx, t, "virsh -q detach-device smoke /run/device.xml --live --config")
	lap("virsh detach-device")
	must(t, vm.WaitGuestPCI(ctx, "smoke", MBochs, 0))
	lap("guest has let it go")

	run(ctx, t, "virsh -q shutdown smoke")
	eventually(ctx, t, "virsh domstate smoke", "shut off")
	lap("virsh shutdown")

	must(t, vm.Reset(ctx))
	lap("reset")
}

// run runs a command in the lab and returns what it printed, without the last
// newline.
func run(ctx context.Context, t *testing.T, command string) string {
	t.Helper()
	out, err := hypervisor.Run(ctx, command)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until a command in the lab prints want.
func eventually(ctx context.Context, t *testing.T, command, want string) {
	t.Helper()
	var got string
	err := machine.WaitFor(ctx, 500*time.Millisecond, func() (bool, error) {
		out, err := hypervisor.Run(ctx, command)
		got = strings.TrimSpace(out)
		return got == want, err
	})
	if err != nil {
		t.Fatalf("%s: %q, want %q: %v", command, got, want, err)
	}
}
