//go:build lab

package lab

import (
	"context"
	"strconv"
	"testing"
	"time"

	"gpuvirt/api"
)

// asAtBoot has the restore run as if no daemon had run yet in this boot.
func asAtBoot(ctx context.Context, t *testing.T) {
	t.Helper()
	run(ctx, t, "rm -f /run/gpuvirt/boot-is-over")
}

// virtqemud has libvirt under the name of its daemon for QEMU, which Debian does not ship: the
// order of the units is by their names. Without its sockets it listens by itself. It ends
// where D-Bus does, and comes after it, as libvirt's own unit.
const virtqemud = `[Unit]
Description=libvirt as virtqemud
Requires=virtlogd.socket
After=virtlogd.socket network.target dbus.service
Conflicts=libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket

[Service]
Type=notify
ExecStart=/usr/sbin/libvirtd
KillMode=process

[Install]
WantedBy=multi-user.target
`

// Whatever starts libvirt and the daemon, a boot comes to its end, puts partitions back before
// libvirt starts guests (T09), and has no job that waits for itself (T08). What goes down goes
// in the opposite order.
func TestBootInEveryOrder_T08(t *testing.T) {
	ctx := Scenario(t, hypervisor, 14*time.Minute)
	fresh(ctx, t)
	manage(ctx, t, "mbochs")
	_, err := hypervisor.DefineGuest(ctx, "web1", GuestOptions{Autostart: true, Start: true})
	must(t, err)
	a := attach(ctx, t, "gfx", "web1", "mbochs-small")
	const (
		libvirtd = "libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket"
		ours     = "gpuvirtd.service gpuvirtd.socket gpuvirt-restore.service"
		path     = "/etc/systemd/system/virtqemud.service"
	)
	// Its file stays for the shutdown: of a unit that has none any more no order is known.
	usual := "systemctl -q disable virtqemud.service 2>/dev/null; systemctl -q unmask " + libvirtd +
		"; systemctl daemon-reload; systemctl -q enable " + libvirtd + " gpuvirtd.service gpuvirt-restore.service; systemctl -q disable gpuvirtd.socket"
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		run(ctx, t, "systemctl stop virtqemud.service gpuvirtd.socket; "+usual+"; rm -f "+path+"; systemctl daemon-reload; systemctl start libvirtd.socket libvirtd.service gpuvirtd.service")
	})

	// As installed, every other scenario boots that reboots.
	for _, c := range []struct{ name, prepare, libvirt string }{
		{
			"virtqemud, the daemon by its socket alone",
			"systemctl -q mask " + libvirtd + "; systemctl daemon-reload; systemctl -q enable virtqemud.service gpuvirtd.socket; systemctl -q disable gpuvirtd.service; systemctl -q enable gpuvirt-restore.service",
			"virtqemud.service",
		},
		{
			"libvirtd by its socket, the daemon by both",
			"virsh -q destroy web1; " + usual + "; systemctl -q disable libvirtd.service; systemctl -q enable libvirtd.socket " + ours, "libvirtd.service",
		},
	} {
		t.Log(c.name)
		must(t, hypervisor.Write(ctx, path, []byte(virtqemud), 0o644))
		run(ctx, t, "systemctl daemon-reload; "+c.prepare)
		must(t, hypervisor.Reboot(ctx))
		must(t, hypervisor.WaitReady(ctx))
		must(t, hypervisor.WaitGuestPCI(ctx, "web1", MBochs, 1))
		eventuallyREST(ctx, t, "/v1/assignments/gfx", func(b api.Assignment) bool {
			return b.State == "attached" && b.Partition == a.Partition && b.Attached.Live && len(b.Conditions) == 0
		})
		bootIsOver(ctx, t, c.name)
		if got := run(ctx, t, "systemctl show -P Result -P ConditionResult gpuvirt-restore.service | sort -u | paste -sd ' '"); got != "success yes" {
			t.Errorf("%s: the restore: %s", c.name, got)
		}
		ended := moment(ctx, t, "gpuvirt-restore.service", "ExecMainExitTimestampMonotonic")
		began := moment(ctx, t, c.libvirt, "ExecMainStartTimestampMonotonic")
		if ended == 0 || began == 0 || ended > began {
			t.Errorf("%s: the restore ended at %d, and %s began at %d", c.name, ended, c.libvirt, began)
		}
	}

	// The boot before went down with the daemon before libvirt: what systemd says last of each.
	// No guest died beside libvirt then, as libvirt-guests is masked here: libvirt 11.3 crashes of that
	// now and then, as early as that.
	last := func(unit string) int {
		n, err := strconv.Atoi(run(ctx, t, "journalctl -b -1 -o json _PID=1 UNIT="+unit+" | tail -n 1 | jq -r .__MONOTONIC_TIMESTAMP"))
		must(t, err)
		return n
	}
	if ours, libvirt := last("gpuvirtd.service"), last("virtqemud.service"); ours >= libvirt {
		t.Errorf("the daemon went down at %d, libvirt at %d", ours, libvirt)
	}

	// Whoever restarts libvirt once a daemon has run restores nothing: what has gone missing by
	// then may be missing on purpose.
	run(ctx, t, "virsh -q destroy web1; systemctl stop gpuvirtd.socket gpuvirtd.service; echo 1 >/sys/bus/mdev/devices/"+a.Partition+"/remove; systemctl stop gpuvirt-restore; systemctl restart libvirtd")
	if got := mdevs(ctx, t); len(got) != 0 {
		t.Errorf("libvirt's restart made %q", got)
	}
	must(t, hypervisor.StartDaemon(ctx))
	eventuallyREST(ctx, t, "/v1/assignments/gfx", func(b api.Assignment) bool { return b.State == "drifted" })
	run(ctx, t, "virsh -q autostart --disable web1")
	detach(ctx, t, "gfx")
}

// bootIsOver checks that no job of the boot waits on itself: such a one never ends, while others may
// still be under way (T08).
func bootIsOver(ctx context.Context, t *testing.T, boot string) {
	t.Helper()
	eventually(ctx, t, "systemctl list-jobs --no-legend | grep -v '^No jobs' || true", "")
	if cycles := run(ctx, t, "journalctl -b -o cat _PID=1 | grep -i 'ordering cycle' || true"); cycles != "" {
		t.Errorf("%s: %s", boot, cycles)
	}
}

// moment is when something became of a unit, in microseconds since the boot.
func moment(ctx context.Context, t *testing.T, unit, property string) int {
	t.Helper()
	n, err := strconv.Atoi(run(ctx, t, "systemctl show -P "+property+" "+unit))
	must(t, err)
	return n
}
