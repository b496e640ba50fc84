//go:build lab

package lab

import (
	"context"
	"strings"
	"testing"
	"time"

	"gpuvirt/api"
)

// The hook that the package brings, where an administrator has turned it on: libvirt starts no VM
// without the device that it was given (T09), and asks a daemon that would ask libvirt without
// either waiting for the other, at boot as well (T45).
func TestHook_T09_T45(t *testing.T) {
	ctx := Scenario(t, hypervisor, 10*time.Minute)
	fresh(ctx, t)
	manage(ctx, t, "mbochs")
	run(ctx, t, "install -D -m 0755 /usr/share/gpuvirt/libvirt-hook /etc/libvirt/hooks/qemu.d/50-gpuvirt && systemctl restart libvirtd")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		run(ctx, t, "rm -rf /etc/libvirt/hooks/qemu.d; systemctl restart libvirtd; systemctl start gpuvirtd")
	})
	_, err := hypervisor.DefineGuest(ctx, "web1", GuestOptions{Autostart: true})
	must(t, err)
	a := attach(ctx, t, "gfx", "web1", "mbochs-small")
	start := func() string {
		return run(ctx, t, "virsh -q start web1 2>&1 || true")
	}

	if said := start(); said != "" {
		t.Fatalf("as it should be: %s", said)
	}
	must(t, hypervisor.WaitGuestPCI(ctx, "web1", MBochs, 1))

	// The boot has libvirt ask while it serves nobody.
	must(t, hypervisor.Reboot(ctx))
	must(t, hypervisor.WaitReady(ctx))
	must(t, hypervisor.WaitGuestPCI(ctx, "web1", MBochs, 1))
	eventuallyREST(ctx, t, "/v1/assignments/gfx", func(b api.Assignment) bool { return b.State == "attached" && b.Attached.Live })
	if took := moment(ctx, t, "gpuvirtd.service", "ActiveEnterTimestampMonotonic") - moment(ctx, t, "gpuvirtd.service", "ExecMainStartTimestampMonotonic"); took > 30e6 {
		t.Errorf("the daemon was ready after %d µs", took)
	}

	// Somebody takes the device out of the definition.
	run(ctx, t, "virsh -q destroy web1; virsh dumpxml web1 --inactive >/run/with.xml; sed '/<hostdev mode=.subsystem. type=.mdev./,/<\\/hostdev>/d' /run/with.xml >/run/without.xml; virsh -q define /run/without.xml")
	if said := start(); !strings.Contains(said, "assignment gfx gives it partition "+a.Partition) || !strings.Contains(said, "gpuvirt detach gfx") {
		t.Errorf("without its device: %q", said)
	}

	// Without a daemon nobody knows, and it starts; not if the administrator wants it so.
	run(ctx, t, "virsh -q define /run/with.xml; systemctl stop gpuvirtd")
	began := time.Now()
	if said := start(); said != "" {
		t.Errorf("without a daemon: %s", said)
	}
	if took := time.Since(began); took < 4*time.Second {
		t.Errorf("the hook was not asked: it took %s", took)
	}
	run(ctx, t, "virsh -q destroy web1; sed -i 's/libvirt-hook --/libvirt-hook --refuse-unknown --/' /etc/libvirt/hooks/qemu.d/50-gpuvirt")
	if said := start(); !strings.Contains(said, "it is not known whether its partitions are there") {
		t.Errorf("without a daemon, strictly: %q", said)
	}
	must(t, hypervisor.StartDaemon(ctx))
	if said := start(); said != "" {
		t.Errorf("with it again: %s", said)
	}
	run(ctx, t, "virsh -q destroy web1; virsh -q autostart --disable web1")
	detach(ctx, t, "gfx")
}
