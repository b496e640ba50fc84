//go:build lab

package lab

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuvirt/api"
)

// next is where make puts a package of the same tree with a higher version.
const next = ".cache/lab/next"

// restoreDeployed leaves the next scenario what Deploy leaves.
func restoreDeployed(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	run(ctx, t, "dpkg -P gpuvirt; rm -rf /var/lib/gpuvirt")
	must(t, hypervisor.Deploy(ctx))
}

// The life of a package on a host whose guest has a device: whatever happens to the
// package, the guest keeps it (T15).
func TestPackage_T15(t *testing.T) {
	ctx := begin(t, 6*time.Minute, "mbochs")
	t.Cleanup(func() { restoreDeployed(t) })
	unit := func(name, property string) string {
		t.Helper()
		return run(ctx, t, "systemctl show -P "+property+" "+name)
	}

	// A host that has just got it has it enabled and answering; it was not touched.
	for _, name := range []string{"gpuvirtd.service", "gpuvirt-restore.service"} {
		if got := unit(name, "UnitFileState"); got != "enabled" {
			t.Errorf("%s is %q", name, got)
		}
	}
	if got := run(ctx, t, "stat -c '%U %G %a' /run/gpuvirt/gpuvirtd.sock; getent group gpuvirt | cut -d: -f1"); got != "root gpuvirt 660\ngpuvirt" {
		t.Errorf("the socket: %s", got)
	}

	_, err := hypervisor.DefineGuest(ctx, "web1", GuestOptions{Start: true})
	must(t, err)
	a := attach(ctx, t, "gfx", "web1", "mbochs-small")
	must(t, hypervisor.WaitGuestPCI(ctx, "web1", MBochs, 1))
	run(ctx, t, "printf 'log: {level: debug}\\n' >/etc/gpuvirt/gpuvirtd.yaml && systemctl reload gpuvirtd")
	eventually(ctx, t, "gpuvirt config show | grep -c '^log.level *debug'", "1")
	// What the kernel, libvirt and the guest have: an mdev that was made again has another
	// inode, and a VM that was started again another id.
	facts := "stat -Lc %i /sys/bus/mdev/devices/" + a.Partition + "; virsh domid web1; virsh dumpxml web1 | sha256sum; virsh dumpxml --inactive web1 | sha256sum"
	was := run(ctx, t, facts)
	untouched := func(when string) {
		t.Helper()
		if now := run(ctx, t, facts); now != was {
			t.Errorf("%s: something was touched:\n%s\n%s", when, was, now)
		}
		must(t, hypervisor.WaitGuestPCI(ctx, "web1", MBochs, 1))
	}
	attached := func(when string) {
		t.Helper()
		must(t, hypervisor.WaitReady(ctx))
		b := get[api.Assignment](ctx, t, "/v1/assignments/gfx")
		if b.State != "attached" || !b.Attached.Live || !b.Attached.Config || b.Partition != a.Partition || len(b.Conditions) != 0 {
			t.Errorf("%s: %+v", when, b)
		}
		if ops := list[api.Operation](ctx, t, "/v1/operations"); len(ops) != 1 {
			t.Errorf("%s: operations %+v", when, ops)
		}
	}

	// An upgrade, and back: the new program answers, what the administrator changed stays.
	restored := unit("gpuvirt-restore.service", "ActiveEnterTimestampMonotonic")
	first := get[api.Info](ctx, t, "/v1").Version
	for _, folder := range []string{next, "dist"} {
		pid := unit("gpuvirtd.service", "MainPID")
		must(t, hypervisor.Install(ctx, folder))
		attached("after " + folder)
		if now := get[api.Info](ctx, t, "/v1").Version; (now == first+"+next") != (folder == next) {
			t.Errorf("version %s, at first %s", now, first)
		}
		if unit("gpuvirtd.service", "MainPID") == pid {
			t.Error("the old daemon is still there")
		}
		if got := run(ctx, t, "cat /etc/gpuvirt/gpuvirtd.yaml"); got != "log: {level: debug}" {
			t.Errorf("the configuration is %q", got)
		}
		untouched("after " + folder)
	}
	if now := unit("gpuvirt-restore.service", "ActiveEnterTimestampMonotonic"); now != restored {
		t.Errorf("the restore was run: %s, %s", restored, now)
	}

	// What was disabled stays so, and what was stopped is not started.
	run(ctx, t, "systemctl -q disable gpuvirt-restore && systemctl stop gpuvirtd")
	must(t, hypervisor.Install(ctx, next))
	if got := unit("gpuvirt-restore.service", "UnitFileState") + unit("gpuvirtd.service", "ActiveState"); got != "disabledinactive" {
		t.Errorf("after an upgrade: %s", got)
	}
	run(ctx, t, "systemctl -q enable gpuvirt-restore && systemctl start gpuvirtd")
	attached("started again")

	// Disks of VMs lie in libvirt's folder, which is as libvirt's packages have it whatever goes.
	const disk = "/var/lib/libvirt/images/gpuvirt/disk"
	run(ctx, t, "touch "+disk)
	t.Cleanup(func() { run(context.Background(), t, "rm -f "+disk) })
	const folders = "stat -c '%a %U %G' /var/lib/libvirt/images /var/lib/libvirt/images/gpuvirt; ls " + disk
	images := run(ctx, t, folders)

	// Removed, it is gone; the guest and what is stored are not.
	run(ctx, t, "dpkg -r gpuvirt")
	untouched("removed")
	if got := run(ctx, t, "systemctl is-active gpuvirtd gpuvirt-restore; ls -d /usr/bin/gpuvirtd /var/cache/gpuvirt /var/lib/gpuvirt/gpuvirt.db /etc/gpuvirt/gpuvirtd.yaml 2>/dev/null || true"); !slices.Equal(
		strings.Fields(got), []string{"inactive", "inactive", "/etc/gpuvirt/gpuvirtd.yaml", "/var/lib/gpuvirt/gpuvirt.db"}) {
		t.Errorf("removed: %s", got)
	}
	must(t, hypervisor.Install(ctx, "dist"))
	attached("back")
	untouched("back")

	// Purged, nothing is left but what the guest has, no daemon either where the policy of the
	// host keeps it from being ended. To a new one that is foreign.
	must(t, hypervisor.Write(ctx, "/usr/sbin/policy-rc.d", []byte("#!/bin/sh\nexit 101\n"), 0o755))
	run(ctx, t, "dpkg -r gpuvirt")
	if got := unit("gpuvirtd.service", "ActiveState"); got != "active" {
		t.Errorf("the policy was passed over: %s", got)
	}
	run(ctx, t, "dpkg -P gpuvirt; rm /usr/sbin/policy-rc.d")
	if got := run(ctx, t, "pgrep -x gpuvirtd || true"); got != "" {
		t.Errorf("a daemon runs on over nothing: %s", got)
	}
	untouched("purged")
	if got := run(ctx, t, "ls -d /var/lib/gpuvirt /var/cache/gpuvirt /etc/gpuvirt /run/gpuvirt 2>/dev/null || true"); got != "" {
		t.Errorf("purged: %s", got)
	}
	if got := run(ctx, t, folders); got != images {
		t.Errorf("purged: disks lie in %s, and before in %s", got, images)
	}
	must(t, hypervisor.Install(ctx, "dist"))
	must(t, hypervisor.WaitReady(ctx))
	p := get[api.Partition](ctx, t, "/v1/partitions/"+a.Partition)
	if p.Origin != "foreign" || len(p.Holders) == 0 {
		t.Errorf("to a new one it is %+v", p)
	}
	untouched("new")

	// And the new one adopts it, as it is.
	manage(ctx, t, "mbochs")
	if p := decode[api.Partition](t, call(ctx, t, "POST", "/v1/partitions/"+a.Partition+"/adopt", nil).want(t, 200)); p.Origin != "managed" {
		t.Errorf("adopted: %+v", p)
	}
	untouched("adopted")
}
