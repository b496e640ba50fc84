package block

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// loop makes a block device of so many zeros, or skips the test.
func loop(t *testing.T, size int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "backing")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	truncate(t, file, size)
	out, err := exec.CommandContext(t.Context(), "losetup", "-f", "--show", file).Output()
	if err != nil {
		t.Skip("cannot make a block device: ", err)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { program(t, "losetup", "-d", dev) })
	return dev
}

func program(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %v: %v: %s", name, args, err, out)
	}
}

// contents reads a disk past the page cache.
func contents(t *testing.T, path string) []byte {
	t.Helper()
	d, err := openDevice(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.file.Close()
	all := make([]byte, 0, d.size)
	b := newBuffer(MinChunkSize)
	for off := int64(0); off < d.size; off += MinChunkSize {
		data, err := d.read(b, off, int(min(MinChunkSize, d.size-off)))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data...)
	}
	return all
}

// A filesystem that is written to while it is copied: its files go past the page
// cache of its device, which may hold what was there before.
func TestMountedDisk(t *testing.T) {
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip(err)
	}
	dev := loop(t, 24<<20)
	program(t, "mkfs.ext4", "-q", dev)
	at := t.TempDir()
	if err := unix.Mount(dev, at, "ext4", 0, ""); err != nil {
		t.Skip("cannot mount: ", err)
	}
	mounted := true
	t.Cleanup(func() {
		if mounted {
			program(t, "umount", at)
		}
	})
	write := func(b byte) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(at, "model"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(bytes.Repeat([]byte{b}, 4<<20)); err != nil {
			t.Fatal(err)
		}
		if err := unix.Syncfs(int(f.Fd())); err != nil {
			t.Fatal(err)
		}
	}
	write('a')
	warm(t, dev)
	s, err := NewServer([]Disk{{Name: "sda", Path: dev, ID: "wwn-1"}}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if i := s.Disks()[0]; i.Size != 24<<20 || i.BlockSize != 512 || i.ReadOnly {
		t.Errorf("%+v", i)
	}
	to := loop(t, 25<<20) // a larger one will do
	m, err := OpenMirror(Spec{
		Path: to, Map: filepath.Join(t.TempDir(), "map"),
		ID: "wwn-1", Size: 24 << 20, ChunkSize: MinChunkSize,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	o := Options{Dial: dialUnix(listen(t, s))}
	for _, b := range []byte("abc") {
		write(b)
		p, err := Pull(t.Context(), m, "sda", o)
		if err != nil {
			t.Fatal(err)
		}
		if found := bytes.Count(contents(t, to), bytes.Repeat([]byte{b}, align)); found < 1000 {
			t.Errorf("of the file of %q only %d pages came, %+v", b, found, p)
		}
	}
	program(t, "umount", at)
	mounted = false
	if _, err := Pull(t.Context(), m, "sda", o); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(contents(t, dev), contents(t, to)[:24<<20]) {
		t.Error("the mirror is not as the source")
	}
	if v, err := Verify(t.Context(), m, "sda", o); err != nil || v.Differ != nil {
		t.Errorf("%+v, %v", v, err)
	}
}

// warm fills the page cache of a device.
func warm(t *testing.T, dev string) {
	t.Helper()
	f, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(io.Discard, f); err != nil {
		t.Fatal(err)
	}
}

// A device that something else uses is not written to.
func TestMirrorOnADeviceInUse(t *testing.T) {
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip(err)
	}
	dev := loop(t, 16<<20)
	spec := Spec{Path: dev, Map: filepath.Join(t.TempDir(), "map"), ID: "wwn-1", Size: 16 << 20}
	program(t, "mkfs.ext4", "-q", dev)
	at := t.TempDir()
	if err := unix.Mount(dev, at, "ext4", 0, ""); err != nil {
		t.Skip("cannot mount: ", err)
	}
	_, err := OpenMirror(spec)
	program(t, "umount", at)
	if err == nil || !strings.Contains(err.Error(), "busy") {
		t.Error("a mounted device is taken:", err)
	}
	spec.Size++
	spec.Map += "2"
	if _, err := OpenMirror(spec); err == nil || !strings.Contains(err.Error(), "the device has 16777216 bytes") {
		t.Error("a device that is too small is taken:", err)
	}
}
