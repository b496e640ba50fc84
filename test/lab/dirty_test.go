//go:build lab

package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What p2v/dirty promises, on a kernel and on disks of several drivers: a copy that is brought
// up to date by what is taken while others write is the disk once they have stopped, and what
// cannot be tracked is refused or told. The machine is one of its own, for its disks.
func TestDirtyChunks(t *testing.T) {
	take(t)
	vm := dirtyMachine(t)
	ctx := Scenario(t, vm, 15*time.Minute)
	putDirty(ctx, t, vm)
	in := func(command string) string {
		t.Helper()
		out, err := vm.Run(ctx, command)
		must(t, err)
		return strings.TrimSpace(out)
	}
	in("modprobe -a loop dm_mod; modprobe scsi_debug dev_size_mb=96 lbpu=1 lbpws=1 delay=0")
	in(makeNullb0)
	scsi := in("ls /sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*:*/block")
	nvme := in("ls /sys/block | grep -x 'nvme[0-9]*n1'")
	if paths := in("ls /sys/block | grep -cx 'nvme[0-9]*c[0-9]*n1'"); paths != "2" {
		t.Fatalf("%s has %s paths, want 2", nvme, paths)
	}

	dirtyTest(ctx, t, vm, "TestLabMarksTakenWhileStored", "")
	dirtyTest(ctx, t, vm, "TestLabGone", "")
	dirtyTest(ctx, t, vm, "TestLabInFlight", "")
	for _, disk := range []string{"vdb", nvme, scsi, "nullb0", ""} {
		dirtyTest(ctx, t, vm, "TestLabMirror", disk)
		dirtyTest(ctx, t, vm, "TestLabOverReport", disk)
	}
	for _, disk := range []string{"vdb", nvme, scsi} {
		dirtyTest(ctx, t, vm, "TestLabFilesystem", disk)
	}
	dirtyTest(ctx, t, vm, "TestLabPath", nvme)
	dirtyTest(ctx, t, vm, "TestLabRefuses", scsi)
	dirtyTest(ctx, t, vm, "TestLabPassthrough", scsi)
	dirtyTest(ctx, t, vm, "TestLabPassBySize", "")
}

// makeNullb0 makes a disk in memory that takes no time.
const makeNullb0 = `modprobe null_blk nr_devices=0
mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
cd /sys/kernel/config/nullb && mkdir nullb0 && cd nullb0
echo 96 >size; echo 1 >memory_backed; echo 1 >discard; echo 4096 >blocksize; echo 1 >power`

// dirtyMachine boots a hypervisor with an empty disk vdb, and one on an NVMe namespace that
// two controllers lead to.
func dirtyMachine(t *testing.T) *VM {
	t.Helper()
	// Two processors always: stores that race are a part of it, and no guest runs in it.
	opts := Options{MemoryMiB: 2048, Number: worker()}
	opts.fill(hypervisor.repo)
	opts.SerialLog = filepath.Join(filepath.Dir(opts.SerialLog), "dirty.log")
	disk := func(id string) string {
		name := filepath.Join(t.TempDir(), id)
		f, err := os.Create(name)
		must(t, err)
		defer f.Close()
		must(t, f.Truncate(96<<20))
		return "file=" + name + ",format=raw,if=none,cache=unsafe,discard=unmap,id=" + id
	}
	opts.QEMUArgs = []string{
		"-drive", disk("scratch"), "-device", "virtio-blk-pci,drive=scratch",
		"-device", "pcie-root-port,id=path1,chassis=11,bus=pcie.0,addr=0x18",
		"-device", "pcie-root-port,id=path2,chassis=12,bus=pcie.0,addr=0x19",
		"-device", "nvme-subsys,id=paths",
		"-device", "nvme,bus=path1,serial=paths,subsys=paths",
		"-device", "nvme,bus=path2,serial=paths,subsys=paths",
		"-drive", disk("namespace"), "-device", "nvme-ns,drive=namespace,nsid=1",
	}
	began := time.Now()
	vm, err := Start(t.Context(), opts)
	must(t, err)
	t.Cleanup(func() { must(t, vm.Close()) })
	t.Logf("up after %.0f s", time.Since(began).Seconds())
	return vm
}

// putDirty puts the tests of p2v/dirty into the machine, and a file system for them, as it
// has no tool to make one.
func putDirty(ctx context.Context, t *testing.T, vm *VM) {
	t.Helper()
	dir := t.TempDir()
	binary, image := filepath.Join(dir, "dirty.test"), filepath.Join(dir, "ext4")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "lab", "-o", binary, "./p2v/dirty")
	build.Dir, build.Env = vm.repo, append(os.Environ(), "CGO_ENABLED=0") // as it is on a source
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the tests: %v: %s", err, out)
	}
	if out, err := exec.CommandContext(ctx, "mke2fs", "-q", "-t", "ext4", image, "64M").CombinedOutput(); err != nil {
		t.Fatalf("cannot make a file system: %v: %s", err, out)
	}
	must(t, vm.Put(ctx, binary, "/run/dirty.test", 0o755))
	must(t, vm.Put(ctx, image, "/run/ext4", 0o644))
}

// dirtyTest runs one of them on a disk, without a name on a loop device.
func dirtyTest(ctx context.Context, t *testing.T, vm *VM, test, disk string) {
	t.Helper()
	began := time.Now()
	out, err := vm.Run(ctx, fmt.Sprintf("cd /var/tmp && /run/dirty.test -test.v -test.timeout 4m -test.run '^%s$' -image /run/ext4 -disk '%s' 2>&1; echo exit $?", test, disk))
	must(t, err)
	if !strings.HasSuffix(strings.TrimSpace(out), "exit 0") || !strings.Contains(out, "--- PASS: "+test+" ") || strings.Contains(out, "no device-mapper") {
		t.Errorf("%s does not hold on disk %q:\n%s", test, disk, out)
		return
	}
	t.Logf("disk %q in %.0f s\n%s", disk, time.Since(began).Seconds(), out)
}
