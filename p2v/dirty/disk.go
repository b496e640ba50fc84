package dirty

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// A Disk is a whole disk, as the kernel names and numbers it.
type Disk struct {
	Name         string // without /dev, "sda", "nvme0n1", "cciss/c0d0"
	Major, Minor uint32
	Size         int64 // bytes
}

const sectorBytes = 512

// A watched disk is one that was looked at. Its file says whether it is still there.
type watched struct {
	Disk
	size      *os.File // its attribute of this name, held open
	multipath bool
}

// watch looks at a disk in sysfs and takes hold of it.
func watch(sys *os.Root, d Disk) (*watched, error) {
	dir := fmt.Sprintf("dev/block/%d:%d/", d.Major, d.Minor)
	w := &watched{Disk: d}
	var err error
	if w.size, err = sys.Open(dir + "size"); err != nil {
		return nil, fmt.Errorf("cannot find disk %q: %w", d.Name, err)
	}
	if err = w.judge(sys, dir); err != nil {
		_ = w.size.Close()
		return nil, err
	}
	return w, nil
}

func (w *watched) judge(sys *os.Root, dir string) error {
	uevent, err := sys.ReadFile(dir + "uevent")
	if err != nil {
		return fmt.Errorf("cannot look at disk %q: %w", w.Name, err)
	}
	if name := variable(string(uevent), "DEVNAME"); name != w.Name {
		return fmt.Errorf("cannot track disk %q: %d:%d is %q", w.Name, w.Major, w.Minor, name)
	}
	if variable(string(uevent), "DEVTYPE") != "disk" {
		return unsupported("disk %q: it is a part of one", w.Name)
	}
	if size, err := w.bytes(); err != nil || size != w.Size {
		return errors.Join(err, fmt.Errorf("cannot track disk %q: it has %d bytes, not %d", w.Name, size, w.Size))
	}
	zoned, err := sys.ReadFile(dir + "queue/zoned")
	if kind := strings.TrimSpace(string(zoned)); err == nil && kind != "none" {
		return unsupported("disk %q: it has zones (%s)", w.Name, kind)
	}
	_, err = sys.Stat(dir + "mq")
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("cannot look at disk %q: %w", w.Name, err)
	}
	names, err := blockNames(sys)
	if err != nil {
		return err
	}
	for _, name := range names {
		if headOf(name) == w.Name {
			w.multipath = true
			return nil
		}
	}
	return unsupported("disk %q: its driver makes no requests of what is written", w.Name)
}

// check says whether the disk is the one that was looked at.
func (w *watched) check() error {
	size, err := w.bytes()
	if err != nil {
		return fmt.Errorf("%w: disk %q: %w", ErrGone, w.Name, err)
	}
	if size != w.Size {
		return fmt.Errorf("%w: disk %q: it has %d bytes, not %d", ErrGone, w.Name, size, w.Size)
	}
	return nil
}

// bytes is the size of the disk now. The kernel refuses to read an attribute of a disk that
// is gone, whatever has its number and name by now.
func (w *watched) bytes() (int64, error) {
	text := make([]byte, 32)
	n, err := w.size.ReadAt(text, 0)
	if n == 0 {
		return 0, err
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(text[:n])), 10, 64)
	return sectors * sectorBytes, err
}

// variable is the value of a line NAME=VALUE.
func variable(text, name string) string {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// blockNames are the names of all disks, those included that have no device file.
func blockNames(sys *os.Root) ([]string, error) {
	dir, err := sys.Open("block")
	if err != nil {
		return nil, fmt.Errorf("cannot list the disks: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("cannot list the disks: %w", err)
	}
	return names, nil
}

// headOf is the disk that a hidden one is a path to, empty where the name is no path's.
// Linux names them nvme<subsystem>c<controller>n<namespace>.
func headOf(name string) string {
	m := regexp.MustCompile(`^(nvme\d+)c\d+(n\d+)$`).FindStringSubmatch(name)
	if m == nil {
		return ""
	}
	return m[1] + m[2]
}
