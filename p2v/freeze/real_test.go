package freeze

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// inside tells a test that it runs in mounts of its own.
const inside = "FREEZE_TEST_INSIDE"

// apart runs the test once more, in a process whose mounts nobody else sees.
func apart(t *testing.T) (inner bool) {
	t.Helper()
	if os.Getenv(inside) != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("only root mounts")
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=4m")
	cmd.Env = append(os.Environ(), inside+"=yes")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) {
		t.Skip("no mounts of our own: ", err)
	}
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
	return false
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// loopOn makes a block device of a file, or skips the test. It returns its name.
func loopOn(t *testing.T, file string, size int64) string {
	t.Helper()
	f, err := os.Create(file)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).Output()
	if err != nil {
		t.Skip("cannot make a block device: ", err)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { tool(t, "losetup", "--detach", dev) })
	return filepath.Base(dev)
}

// mounted makes a filesystem and mounts it, or skips the test where it cannot be had here.
func mounted(t *testing.T, kind, dev string) (dir string) {
	t.Helper()
	if _, err := exec.LookPath("mkfs." + kind); err != nil {
		t.Skip(err)
	}
	tool(t, "mkfs."+kind, dev)
	dir = t.TempDir()
	if err := unix.Mount(dev, dir, kind, 0, ""); err != nil {
		t.Skipf("cannot mount %s here: %v", kind, err)
	}
	held, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = linux{}.Thaw(held) // for a test that has failed
		_ = held.Close()
		eventually(t, "it is unmounted", func() bool { return unix.Unmount(dir, 0) == nil }) // a child may be going
	})
	return dir
}

// A writer writes a file, and tells when that is done.
func writer(t *testing.T, dir string) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(filepath.Join(dir, "written"), []byte("by a workload"), 0o600) }()
	return done
}

func blocked(t *testing.T, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		t.Fatal("it was written: ", err)
	case <-time.After(300 * time.Millisecond):
	}
}

func goesOn(t *testing.T, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it is frozen")
	}
}

// Real filesystems on a real block device: what writes to them waits, nothing reaches the disk,
// and whoever is killed, they are thawed.
func TestReal(t *testing.T) {
	if !apart(t) {
		return
	}
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			disk := loopOn(t, filepath.Join(t.TempDir(), "disk"), 400<<20)
			dir := mounted(t, kind, "/dev/"+disk)
			c := childOn(t, disk)
			want := []Filesystem{{dir, kind, "/dev/" + disk, true}}
			if d := cmp.Diff(want, c.client.Facts().Filesystems); d != "" {
				t.Fatal(d)
			}
			goesOn(t, writer(t, dir)) // something that is dirty
			freezes := func() <-chan error {
				t.Helper()
				c.freeze(time.Minute)
				if d := cmp.Diff(want, c.client.Facts().Filesystems); d != "" {
					t.Fatal(d)
				}
				waits := writer(t, dir)
				blocked(t, waits)
				if got, err := c.client.Quiet(t.Context()); err != nil || len(got) != 0 {
					t.Error(got, err)
				}
				return waits
			}
			waits := freezes()
			if err := c.client.Thaw(t.Context()); err != nil {
				t.Error(err)
			}
			goesOn(t, waits)

			waits = freezes()
			c.signal("guard", syscall.SIGKILL)
			goesOn(t, waits)
			c.guardKilled = false // the next one ends

			waits = freezes()
			c.signal("serve", syscall.SIGKILL)
			goesOn(t, waits)
		})
	}
}

// The connection ends, and a limit comes to its end.
func TestRealDeadMan(t *testing.T) {
	if !apart(t) {
		return
	}
	disk := loopOn(t, filepath.Join(t.TempDir(), "disk"), 32<<20)
	dir := mounted(t, "ext4", "/dev/"+disk)
	c := childOn(t, disk)
	limit, err := time.Second, errors.New("not tried yet")
	for ; err != nil; limit *= 2 { // on a busy machine it takes its time
		if err = c.client.Freeze(t.Context(), limit, nil); err != nil {
			refused(t, err, "the time limit is over")
		}
	}
	goesOn(t, writer(t, dir))
	_, err = c.client.Quiet(t.Context())
	refused(t, err, "the time limit is over")
	c.freeze(time.Minute)
	waits := writer(t, dir)
	blocked(t, waits)
	if err := c.client.Close(); err != nil {
		t.Error(err)
	}
	goesOn(t, waits)
}

// What somebody else has frozen stays so.
func TestRealBusy(t *testing.T) {
	if !apart(t) {
		return
	}
	disk := loopOn(t, filepath.Join(t.TempDir(), "disk"), 32<<20)
	dir := mounted(t, "ext4", "/dev/"+disk)
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := (linux{}).Freeze(f); err != nil {
		t.Fatal(err)
	}
	c := childOn(t, disk)
	refused(t, c.client.Freeze(t.Context(), time.Minute, nil), "cannot freeze "+dir+" (ext4 on /dev/"+disk+"): somebody else has frozen it")
	if err := (linux{}).Thaw(f); err != nil {
		t.Error("it was thawed: ", err)
	}
}

// A filesystem in a file of another is frozen before that: the other way round it would wait for
// ever. One in mounts that we do not see is frozen, too.
func TestRealNested(t *testing.T) {
	if !apart(t) {
		return
	}
	disk := loopOn(t, filepath.Join(t.TempDir(), "disk"), 64<<20)
	dir := mounted(t, "ext4", "/dev/"+disk)
	image := filepath.Join(dir, "image")
	nested := loopOn(t, image, 16<<20)
	below := mounted(t, "ext4", "/dev/"+nested)
	elsewhere := exec.Command("sh", "-c", `umount "$0" && echo && exec cat`, below)
	elsewhere.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	in, err := elsewhere.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := elsewhere.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := elsewhere.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = elsewhere.Wait() })
	if n, err := out.Read(make([]byte, 10)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	c := childOn(t, disk)
	goesOn(t, writer(t, below))
	c.freeze(time.Minute)
	var got []string
	for _, f := range c.client.Facts().Filesystems {
		got = append(got, f.Mount)
	}
	if d := cmp.Diff([]string{below, dir}, got); d != "" {
		t.Error(d)
	}
	waits := writer(t, below)
	blocked(t, waits)
	if err := c.client.Thaw(t.Context()); err != nil {
		t.Error(err)
	}
	goesOn(t, waits)
}

// A filesystem that only a container has mounted.
func TestRealContainer(t *testing.T) {
	if !apart(t) {
		return
	}
	disk := loopOn(t, filepath.Join(t.TempDir(), "disk"), 32<<20)
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip(err)
	}
	tool(t, "mkfs.ext4", "/dev/"+disk)
	dir := t.TempDir()
	elsewhere := exec.Command("sh", "-c", `mount -t ext4 "$1" "$0" && echo && read x && echo y >"$0/written" && echo && read x; umount "$0"`, dir, "/dev/"+disk)
	elsewhere.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	in, err := elsewhere.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := elsewhere.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := elsewhere.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = elsewhere.Wait() })
	if n, err := out.Read(make([]byte, 10)); n != 1 || err != nil {
		t.Skip("it cannot be mounted: ", err)
	}
	c := childOn(t, disk)
	if f := c.client.Facts().Filesystems; len(f) != 1 || !strings.HasPrefix(f[0].Mount, "/proc/") || !strings.HasSuffix(f[0].Mount, dir) {
		t.Fatal(f)
	}
	c.freeze(time.Minute)
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := out.Read(make([]byte, 10)); done <- err }()
	blocked(t, done)
	if err := c.client.Thaw(t.Context()); err != nil {
		t.Error(err)
	}
	goesOn(t, done)
}

// What is written below filesystems, and beside partitions, is told.
func TestRealWritten(t *testing.T) {
	if !apart(t) {
		return
	}
	if _, err := exec.LookPath("addpart"); err != nil {
		t.Skip(err)
	}
	disk := loopOn(t, filepath.Join(t.TempDir(), "disk"), 64<<20)
	for n, at := range map[string][2]string{"1": {"2048", "65536"}, "2": {"67584", "16384"}} { // in sectors
		if out, err := exec.Command("addpart", "/dev/"+disk, n, at[0], at[1]).CombinedOutput(); err != nil {
			t.Skipf("cannot make a partition: %v: %s", err, out)
		}
		t.Cleanup(func() { tool(t, "delpart", "/dev/"+disk, n) })
	}
	nodes := t.TempDir() // /dev may not have them
	part := func(n string) string {
		number, err := os.ReadFile("/sys/class/block/" + disk + "p" + n + "/dev")
		if err != nil {
			t.Skip("the kernel tells nothing of a partition: ", err)
		}
		major, minor, _ := strings.Cut(strings.TrimSpace(string(number)), ":")
		node := filepath.Join(nodes, n)
		if _, err := os.Stat(node); err != nil {
			tool(t, "mknod", node, "b", major, minor)
		}
		return node
	}
	mounted(t, "ext4", part("1"))
	c := childOn(t, disk)
	c.freeze(time.Minute)
	for _, w := range []struct {
		dev    string
		offset int64
		want   []Written
	}{
		{part("2"), 0, []Written{{disk + "p2", 8192}}},
		{"/dev/" + disk, 60 << 20, []Written{{disk, 8192}, {disk + "p2", 8192}}},
	} {
		f, err := os.OpenFile(w.dev, os.O_WRONLY|unix.O_SYNC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 8192), w.offset); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		got, err := c.client.Quiet(t.Context())
		slices.SortFunc(got, func(a, b Written) int { return strings.Compare(a.Device, b.Device) })
		if d := cmp.Diff(w.want, got); d != "" || err != nil {
			t.Error(err, d)
		}
	}
}
