//go:build lab

package lab

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuvirt/api"
	"gpuvirt/p2v/move"
	"gpuvirt/test/machine"
)

// The packaged daemon looks at a server over ssh and copies a disk of it that is written to
// meanwhile. The server is the hypervisor itself: its kernel, its ssh server and a disk of
// its own are real. The copy goes on over a cut connection, over the daemon's death and over
// a reboot of them both, sends what has changed and not much more, and is the disk in the
// end; and a roll back leaves nothing, here and there.
func TestMigration(t *testing.T) {
	ctx := Scenario(t, hypervisor, 9*time.Minute)
	fresh(ctx, t)
	manage(ctx, t, "mbochs")
	const (
		name    = "self"
		mirror  = "/var/lib/libvirt/images/gpuvirt/self"
		size    = 256 << 20
		mounted = "/mnt/moving"
		kept    = "/var/tmp/moving"
	)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		run(ctx, t, "pkill -f [w]riter-of-the-lab; umount "+mounted+"; modprobe -r scsi_debug; rm -f /etc/gpuvirt/credentials/self*; "+
			"systemctl -q disable --now moving.service; rm -f /etc/systemd/system/moving.service "+kept+"*; systemctl daemon-reload; "+
			"gpuvirt migrate rollback self --yes; gpuvirt migrate delete self --yes; gpuvirt assessment delete self --yes; true")
	})
	must(t, hypervisor.Write(ctx, kept+".sh", []byte(movingDisk), 0o755))
	disk := run(ctx, t, kept+".sh")
	if disk == "" || strings.ContainsAny(disk, "\n ") {
		t.Fatalf("the disk of the test: %q", disk)
	}
	must(t, hypervisor.Write(ctx, "/run/fs.gz", emptyFilesystem(ctx, t, size), 0o600))
	run(ctx, t, "gunzip -c /run/fs.gz >/dev/"+disk+" && rm /run/fs.gz && mkdir -p "+mounted+" && mount /dev/"+disk+" "+mounted)
	run(ctx, t, "dd if=/dev/urandom of="+mounted+"/model bs=1M count=100 status=none && sync")
	// It lies in memory: a boot has to bring it back, before the daemon asks for it.
	run(ctx, t, "umount "+mounted+" && dd if=/dev/"+disk+" of="+kept+".img bs=1M conv=sparse status=none && mount /dev/"+disk+" "+mounted)
	must(t, hypervisor.Write(ctx, "/etc/systemd/system/moving.service", []byte(movingUnit), 0o644))
	run(ctx, t, "systemctl daemon-reload; systemctl -q enable moving.service; sync")
	run(ctx, t, "ssh-keygen -q -t ed25519 -N '' -f /etc/gpuvirt/credentials/self && cat /etc/gpuvirt/credentials/self.pub >>/root/.ssh/authorized_keys")
	key := run(ctx, t, "ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null | ssh-keygen -l -f - | cut -d' ' -f2")

	// One that shows another key is not spoken to.
	other := "SHA256:" + strings.Repeat("A", 43)
	if out := run(ctx, t, "gpuvirt assessment create self --source root@127.0.0.1 --credential self --host-key "+other+" 2>&1 || true"); !strings.Contains(out, key) {
		t.Errorf("a server with another key: %s", out)
	}
	run(ctx, t, "gpuvirt assessment create self --source root@127.0.0.1 --credential self --host-key "+key)
	assessment := show[api.Assessment](ctx, t, "assessment", name)
	if assessment.Findings == nil || assessment.Hostname == "" {
		t.Fatalf("%+v", assessment)
	}
	wish := " --assessment self --disk " + disk + " --memory 512Mi --threads 1 --waive disk-room=small --convert none"
	plan := run(ctx, t, "gpuvirt migrate plan"+wish+" || true")
	if strings.Contains(plan, "Blocked") || !strings.Contains(plan, "source-is-vm") {
		t.Fatalf("the plan:\n%s", plan)
	}

	run(ctx, t, "gpuvirt migrate start self"+wish+" --every 1h --bandwidth 4M --no-wait")
	// While it is copied somebody writes, a connection is cut, the daemon dies, and all is started again.
	writes := "nohup sh -c 'while :; do : writer-of-the-lab; date >>" + mounted + "/log; sync; sleep 1; done' >/dev/null 2>&1 &"
	run(ctx, t, writes)
	held := func() int64 {
		n := int64(0)
		text := run(ctx, t, "du -B1 "+mirror+"/"+disk+".raw 2>/dev/null | cut -f1")
		must(t, json.Unmarshal([]byte(orZero(text)), &n))
		return n
	}
	must(t, machine.WaitFor(ctx, time.Second, func() (bool, error) { return held() > 8<<20, nil }))
	run(ctx, t, "pkill -9 -f '[p]2v serve'")
	must(t, machine.WaitFor(ctx, time.Second, func() (bool, error) { return held() > 16<<20, nil }))
	run(ctx, t, "systemctl kill -s KILL gpuvirtd")
	gone := held() // or a little more, where it is asked late
	must(t, hypervisor.WaitReady(ctx))
	must(t, machine.WaitFor(ctx, time.Second, func() (bool, error) { return held() > 24<<20, nil }))
	must(t, hypervisor.Reboot(ctx))
	must(t, hypervisor.WaitReady(ctx))
	if n := held(); n < 24<<20 {
		t.Errorf("%d bytes are held after the reboot", n)
	}
	// It may have another name, and the copy goes on with it; the mirror keeps the old one.
	there := run(ctx, t, "grep -l scsi_debug /sys/block/*/device/model | cut -d/ -f4")
	run(ctx, t, "mount /dev/"+there+" "+mounted)
	run(ctx, t, writes)
	run(ctx, t, "gpuvirt migrate set self --bandwidth 0")
	ready := func() move.Disk {
		t.Helper()
		var m api.Migration
		must(t, machine.WaitFor(ctx, time.Second, func() (bool, error) {
			m = show[api.Migration](ctx, t, "migrate", name)
			return m.Phase == "ready" || m.Phase == "waiting" || m.Phase == "failed", nil
		}))
		if m.Phase != "ready" || len(m.Disks) != 1 {
			t.Fatalf("%+v", m)
		}
		return m.Disks[0]
	}
	first := ready()
	var sent uint64
	for _, p := range first.Passes {
		sent += p.Sent
	}
	// 100 MiB of noise, a file system, what was written meanwhile. What came before the daemon
	// was killed is in no pass, and is not sent again; what came before a cut or the reboot neither.
	if sent < uint64(max(0, 76<<20-gone)) || sent > 130<<20 {
		t.Errorf("%d bytes were sent for the first copy: %+v", sent, first.Passes)
	}

	// The source at rest: the last pass takes what is new, and the mirror is the disk.
	run(ctx, t, "pkill -f [w]riter-of-the-lab; until umount "+mounted+"; do sleep 0.2; done; sync") // what it has begun may be writing still
	// What the kernel keeps of the disk itself may be older than what a file system has written there.
	content := "dd if=/dev/" + there + " bs=1M iflag=direct status=none | sha256sum"
	before := run(ctx, t, content)
	run(ctx, t, "gpuvirt migrate sync self") // which waits for a pass that begins after it
	last := ready()
	// Its kernel has told what was written: no more than that was read.
	if p := last.Passes[len(last.Passes)-1]; !p.Tracked || p.Bytes == 0 || p.Bytes > 64<<20 {
		t.Errorf("the last pass: %+v", p)
	}
	if got := run(ctx, t, "sha256sum <"+mirror+"/"+disk+".raw"); got != before {
		t.Errorf("the mirror is not as the disk is: %s, %s", got, before)
	}
	if after := run(ctx, t, content); after != before {
		t.Errorf("the disk was written: %s, %s", after, before)
	}

	run(ctx, t, "gpuvirt migrate rollback self --yes")
	if m := show[api.Migration](ctx, t, "migrate", name); m.Phase != "rolled-back" {
		t.Errorf("it is %s: %s", m.Phase, m.Reason)
	}
	if left := run(ctx, t, "ls -A /var/lib/libvirt/images/gpuvirt; ls -d /dev/shm/.gpuvirt-* /run/.gpuvirt-* /tmp/.gpuvirt-* 2>/dev/null; pgrep -af '[p]2v serve' || true"); left != "" {
		t.Errorf("left: %s", left)
	}
	if log := run(ctx, t, "journalctl -u gpuvirtd -b -o cat"); strings.Contains(log, "PRIVATE") {
		t.Error("the journal holds a key")
	}
}

// movingDisk makes the disk of the test, of which it writes the name: with what was kept of it, if anything
// was. It says of itself the same in each boot, whatever else has been found by then.
const movingDisk = `#!/bin/sh -e
modprobe scsi_debug dev_size_mb=256 max_luns=1 vpd_use_hostno=0
udevadm settle
disk=$(grep -l scsi_debug /sys/block/*/device/model | cut -d/ -f4)
[ ! -e /var/tmp/moving.img ] || dd if=/var/tmp/moving.img of=/dev/$disk bs=1M conv=sparse status=none
echo $disk
`

// movingUnit makes it at boot.
const movingUnit = `[Unit]
Description=the disk that is moved
Before=gpuvirtd.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/var/tmp/moving.sh

[Install]
WantedBy=multi-user.target
`

// emptyFilesystem is an ext4 of a size in bytes, packed by gzip: the hypervisor has no tool to
// make one.
func emptyFilesystem(ctx context.Context, t *testing.T, size int64) []byte {
	t.Helper()
	image := filepath.Join(t.TempDir(), "ext4")
	if out, err := exec.CommandContext(ctx, "mke2fs", "-q", "-t", "ext4", image, fmt.Sprintf("%dk", size>>10)).CombinedOutput(); err != nil {
		t.Fatalf("cannot make a file system: %v: %s", err, out)
	}
	f, err := os.Open(image)
	must(t, err)
	defer f.Close()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, err = io.Copy(w, f)
	must(t, errors.Join(err, w.Close()))
	return packed.Bytes()
}

func orZero(text string) string {
	if text == "" {
		return "0"
	}
	return text
}

// show is a thing as the command line prints it for programs.
func show[T any](ctx context.Context, t *testing.T, noun, name string) (out T) {
	t.Helper()
	must(t, json.Unmarshal([]byte(run(ctx, t, "gpuvirt "+noun+" show "+name+" -o json")), &out))
	return out
}
