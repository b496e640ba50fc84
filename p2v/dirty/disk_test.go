package dirty

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A fakeSys is a folder that looks like /sys to watch.
type fakeSys struct {
	t   *testing.T
	dir string
}

func (s fakeSys) write(name, text string) {
	s.t.Helper()
	name = filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// disk adds one of 2048 sectors.
func (s fakeSys) disk(number, name, kind string, mq bool) {
	s.t.Helper()
	dir := "dev/block/" + number + "/"
	s.write(dir+"size", "2048\n")
	s.write(dir+"uevent", fmt.Sprintf("MAJOR=1\nDEVNAME=%s\nDEVTYPE=%s\n", name, kind))
	s.write("block/"+filepath.Base(name)+"/size", "2048\n")
	if mq {
		s.write(dir+"mq/0/nr_tags", "64\n")
	}
}

func TestWatch(t *testing.T) {
	sys := fakeSys{t, t.TempDir()}
	sys.disk("8:0", "sda", "disk", true)
	sys.disk("8:1", "sda1", "partition", false)
	sys.disk("8:16", "sdb", "disk", true)
	sys.write("dev/block/8:16/queue/zoned", "host-managed\n")
	sys.disk("253:0", "dm-0", "disk", false)
	sys.disk("259:0", "nvme0n1", "disk", false)
	sys.write("block/nvme0c1n1/size", "2048\n")
	sys.disk("259:2", "nvme1n1", "disk", false) // no path leads here
	sys.disk("104:0", "cciss/c0d0", "disk", true)
	root, err := os.OpenRoot(sys.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	const size = 2048 * sectorBytes
	for _, c := range []struct {
		disk        Disk
		multipath   bool
		unsupported bool
		want        string
	}{
		{disk: Disk{"sda", 8, 0, size}},
		{disk: Disk{"cciss/c0d0", 104, 0, size}},
		{disk: Disk{"nvme0n1", 259, 0, size}, multipath: true},
		{disk: Disk{"nvme1n1", 259, 2, size}, unsupported: true, want: "makes no requests"},
		{disk: Disk{"dm-0", 253, 0, size}, unsupported: true, want: "makes no requests"},
		{disk: Disk{"sda1", 8, 1, size}, unsupported: true, want: "a part of one"},
		{disk: Disk{"sdb", 8, 16, size}, unsupported: true, want: "zones (host-managed)"},
		{disk: Disk{"sdc", 8, 0, size}, want: `8:0 is "sda"`},
		{disk: Disk{"sda", 8, 0, size + 512}, want: "it has 1048576 bytes, not 1049088"},
		{disk: Disk{"sdd", 8, 48, size}, want: `cannot find disk "sdd"`},
	} {
		w, err := watch(root, c.disk)
		if c.want == "" {
			if err != nil || w.multipath != c.multipath {
				t.Errorf("%s: %+v, %v", c.disk.Name, w, err)
				continue
			}
			w.size.Close()
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrUnsupported) != c.unsupported {
			t.Errorf("%s: %v", c.disk.Name, err)
		}
	}
	w, err := watch(root, Disk{"sda", 8, 0, size})
	if err != nil {
		t.Fatal(err)
	}
	defer w.size.Close()
	sys.write("dev/block/8:0/size", "4096\n")
	if err := w.check(); !errors.Is(err, ErrGone) {
		t.Errorf("resized: %v", err)
	}
}

func TestHeadOf(t *testing.T) {
	for name, want := range map[string]string{
		"nvme0c1n1": "nvme0n1", "nvme12c0n34": "nvme12n34", "nvme0n1": "", "nvme0c1n1p1": "", "sda": "", "xnvme0c1n1": "",
	} {
		if got := headOf(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
