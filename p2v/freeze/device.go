package freeze

import (
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"gpuvirt/internal/mountinfo"
)

// deepest is how many devices may lie one upon the other: more is a mistake, or a circle.
const deepest = 32

// A tree is what the kernel tells in /proc and /sys, and the names in /dev.
type tree struct{ root *os.Root }

// text returns a small file without the space around it.
func (t *tree) text(name string) (string, error) {
	text, err := t.read(name, 64<<10)
	return strings.TrimSpace(text), err
}

func (t *tree) read(name string, most int64) (string, error) {
	f, err := t.root.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("%q has more than %d bytes", name, most)
	}
	return string(text), err
}

// number returns what a file says, 0 where that is no positive number.
func (t *tree) number(name string) int {
	text, _ := t.text(name)
	n, _ := strconv.Atoi(text)
	return max(0, n)
}

// names returns what is in a folder, sorted; nothing where it cannot be read.
func (t *tree) names(dir string) []string {
	f, err := t.root.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1)
	slices.Sort(names)
	return names
}

func (t *tree) exists(name string) bool {
	_, err := t.root.Lstat(name)
	return err == nil
}

func sysBlock(name string, more ...string) string {
	return path.Join(append([]string{"sys/class/block", name}, more...)...)
}

// numbered returns the name of the block device with a number, "8:1"; empty where there is none.
func (t *tree) numbered(number string) string {
	target, err := t.root.Readlink("sys/dev/block/" + number)
	if err != nil {
		return ""
	}
	return path.Base(target)
}

// named returns the name that the kernel has for a path in /dev; empty where it has none.
func (t *tree) named(dev string) string {
	rest, found := strings.CutPrefix(path.Clean(dev), "/dev/")
	if !found {
		return ""
	}
	if name := strings.ReplaceAll(rest, "/", "!"); t.exists(sysBlock(name)) {
		return name
	}
	if target, err := t.root.Readlink("dev/" + rest); err == nil && t.exists(sysBlock(path.Base(target))) {
		return path.Base(target)
	}
	label, found := strings.CutPrefix(rest, "mapper/")
	for _, name := range t.names("sys/class/block") {
		if is, _ := t.text(sysBlock(name, "dm/name")); found && is == label {
			return name
		}
	}
	return ""
}

// below returns what a device lies on: the disk of a partition, what a volume was made of.
// Where it is a file, that is the other value.
func (t *tree) below(name string) (devices []string, file string) {
	if t.exists(sysBlock(name, "partition")) {
		if target, err := t.root.Readlink(sysBlock(name)); err == nil {
			return []string{path.Base(path.Dir(target))}, ""
		}
	}
	file, _ = t.text(sysBlock(name, "loop/backing_file"))
	return t.names(sysBlock(name, "slaves")), file
}

// partitions returns those of a disk.
func (t *tree) partitions(disk string) []string {
	var out []string
	for _, name := range t.names(sysBlock(disk)) {
		if t.exists(sysBlock(disk, name, "partition")) {
			out = append(out, name)
		}
	}
	return out
}

// leaves returns the disks, or partitions of these, that a device lies on. A disk that is not
// one of those is not told.
func (t *tree) leaves(name string, disks []string) []string {
	var out []string
	seen := map[string]bool{}
	var walk func(name string, deep int)
	walk = func(name string, deep int) {
		if seen[name] || deep > deepest {
			return
		}
		seen[name] = true
		devices, _ := t.below(name)
		switch {
		case slices.Contains(disks, name), len(devices) == 1 && t.exists(sysBlock(name, "partition")) && slices.Contains(disks, devices[0]):
			out = append(out, name)
			return
		}
		for _, d := range devices {
			walk(d, deep+1)
		}
	}
	walk(name, 0)
	return out
}

// sources returns the devices that a filesystem lies on, by their names. It is not known where
// the kernel tells of a device and not which.
func (t *tree) sources(m mountinfo.Mount) (names []string, known bool) {
	if !strings.HasPrefix(m.Number, "0:") {
		name := t.numbered(m.Number)
		return []string{name}, name != ""
	}
	known = true
	for part := range strings.SplitSeq(m.Source, ":") { // bcachefs has several
		if !strings.HasPrefix(part, "/dev/") {
			continue
		}
		name := t.named(part)
		if name == "" {
			known = false
			continue
		}
		names = append(names, name)
	}
	if m.Type == "btrfs" {
		for _, id := range t.names("sys/fs/btrfs") {
			all := t.names(path.Join("sys/fs/btrfs", id, "devices"))
			if slices.ContainsFunc(names, func(n string) bool { return slices.Contains(all, n) }) {
				return all, true
			}
		}
	}
	return names, known
}
