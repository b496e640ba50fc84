//go:build lab

package dirty_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"gpuvirt/p2v/dirty"
)

var imageFile = flag.String("image", "", "an image of an empty ext4 of 64 MiB; without it mke2fs makes one")

const imageBytes = 64 << 20

// image is a file system to put on a disk.
func image(t *testing.T) string {
	t.Helper()
	if *imageFile != "" {
		return *imageFile
	}
	name := filepath.Join(t.TempDir(), "ext4")
	f, err := os.Create(name)
	fatal(t, err)
	fatal(t, f.Truncate(imageBytes))
	fatal(t, f.Close())
	command(t, "mke2fs", "-q", "-t", "ext4", name)
	return name
}

func command(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// A blkpg is the argument of BLKPG of linux/blkpg.h.
type blkpg struct {
	op, flags, length int32
	data              unsafe.Pointer
}

type blkpgPartition struct {
	start, length int64
	number        int32
	name, volume  [64]byte
}

// partition makes partition 1 of a disk and returns its name.
func partition(t *testing.T, d device, start, length int64) string {
	t.Helper()
	const add, remove = 1, 2
	do := func(op int32) error {
		p := blkpgPartition{start: start, length: length, number: 1}
		arg := blkpg{op: op, length: int32(unsafe.Sizeof(p)), data: unsafe.Pointer(&p)}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.file.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); errno != 0 {
			return errno
		}
		return nil
	}
	fatal(t, do(add))
	t.Cleanup(func() {
		if err := do(remove); err != nil {
			t.Error(err)
		}
	})
	names, err := filepath.Glob(filepath.Join("/sys/class/block", d.Name, d.Name+"*1"))
	fatal(t, err)
	if len(names) != 1 {
		t.Fatalf("partitions: %q", names)
	}
	return filepath.Base(names[0])
}

// linear makes a device-mapper disk of a part of another one and returns its name, which is
// that of the other one where the kernel has no device-mapper.
func linear(t *testing.T, on string, skip, bytes int64) string {
	t.Helper()
	control, err := os.Open("/dev/mapper/control")
	if err != nil {
		t.Log("no device-mapper:", err)
		return on
	}
	control.Close()
	name := fmt.Sprintf("dirty%d", os.Getpid())
	table := fmt.Sprintf("0 %d linear /dev/%s %d", bytes/512, on, skip/512)
	command(t, "dmsetup", "create", "--noudevsync", name, "--table", table)
	t.Cleanup(func() { command(t, "dmsetup", "remove", "--noudevsync", "--retry", name) })
	return command(t, "dmsetup", "info", "-c", "--noheadings", "-o", "blkdevname", name)
}

// What a file system does on a device-mapper disk on a partition arrives at the disk, and is
// marked there: a file system that is put on it, files that come and go, what is trimmed.
func TestLabFilesystem(t *testing.T) {
	d := scratch(t)
	tr := start(t, d)
	m := newMirror(d)
	fatal(t, m.all())
	before := newMirror(d)
	copy(before.data, m.data)

	part := partition(t, d, 1<<20, imageBytes+(2<<20))
	dm := linear(t, part, 1<<20, imageBytes)
	step := func(name string, least int64) {
		t.Helper()
		n, err := m.take(tr)
		fatal(t, err)
		t.Logf("%-20s %4d chunks", name, n)
		if n < least {
			t.Errorf("%s: %d chunks, want %d at least", name, n, least)
		}
	}
	command(t, "dd", "if="+image(t), "of=/dev/"+dm, "bs=1M", "conv=fsync", "status=none")
	step("file system put on", imageBytes/chunk)

	at := filepath.Join(t.TempDir(), "mnt")
	fatal(t, os.Mkdir(at, 0o700))
	fatal(t, unix.Mount("/dev/"+dm, at, "ext4", 0, ""))
	mounted := true
	unmount := func() {
		if mounted {
			mounted = false
			fatal(t, unix.Unmount(at, 0))
		}
	}
	defer unmount()
	for i := range 8 {
		f, err := os.Create(filepath.Join(at, fmt.Sprint(i)))
		fatal(t, err)
		_, err = f.Write(make([]byte, 3<<20))
		fatal(t, err)
		_, err = f.WriteAt([]byte("not only zeros"), int64(i)<<18)
		fatal(t, err)
		fatal(t, f.Sync())
		fatal(t, f.Close())
	}
	step("files written", 8*3<<20/chunk)
	for i := range 6 {
		fatal(t, os.Remove(filepath.Join(at, fmt.Sprint(i))))
	}
	trim(t, at)
	if discards(t, d) {
		step("files trimmed", 6*3<<20/chunk)
	}
	unmount()
	step("unmounted", 1)
	m.equal(t)
	if n := len(m.differs(before)); n == 0 {
		t.Error("nothing has changed on the disk: the test proves nothing")
	}
}

// trim discards what a file system does not use, where it can.
func trim(t *testing.T, at string) {
	t.Helper()
	const fitrim = 0xc0185879 // FITRIM of linux/fs.h
	dir, err := os.Open(at)
	fatal(t, err)
	defer dir.Close()
	r := [3]uint64{0, ^uint64(0), 0}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), fitrim, uintptr(unsafe.Pointer(&r)))
	t.Logf("trimmed %d MB (%v)", r[1]>>20, errno)
	fatal(t, unix.Syncfs(int(dir.Fd())))
}

// What cannot be tracked is refused, with the reason.
func TestLabRefuses(t *testing.T) {
	d := scratch(t)
	part := open(t, partition(t, d, 1<<20, imageBytes+(2<<20)))
	dm := open(t, linear(t, part.Name, 1<<20, imageBytes))
	other := func(change func(*dirty.Disk)) []dirty.Disk {
		c := d.Disk
		change(&c)
		return []dirty.Disk{c}
	}
	for _, c := range []struct {
		name        string
		disks       []dirty.Disk
		chunk       int64
		unsupported bool
		want        string
	}{
		{"partition", []dirty.Disk{part.Disk}, chunk, true, "a part of one"},
		{"device-mapper", []dirty.Disk{dm.Disk}, chunk, true, map[bool]string{true: "a part of one", false: "makes no requests"}[dm.Name == part.Name]},
		{"other name", other(func(d *dirty.Disk) { d.Name = "sdzz" }), chunk, false, `is "`},
		{"other size", other(func(d *dirty.Disk) { d.Size += 512 }), chunk, false, "bytes, not"},
		{"no such number", other(func(d *dirty.Disk) { d.Major, d.Minor = 4000, 1 }), chunk, false, "cannot find disk"},
		{"no size", other(func(d *dirty.Disk) { d.Size = 0 }), chunk, false, "it has 0 bytes"},
		{"twice", []dirty.Disk{d.Disk, d.Disk}, chunk, false, "twice"},
		{"none", nil, chunk, false, "0 disks"},
		{"no chunks", []dirty.Disk{d.Disk}, 0, false, "power of two"},
	} {
		tr, err := dirty.Start(t.Context(), sysRoot(t), c.disks, c.chunk)
		if err == nil {
			tr.Close()
			t.Errorf("%s: tracked", c.name)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || isUnsupported(err) != c.unsupported {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
