package freeze

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"gpuvirt/internal/mountinfo"
)

const (
	maxMountinfo = 32 << 20 // bytes; a server of containers has thousands of rows
	maxPlaces    = 16       // of one filesystem; containers have parts of it mounted by the hundred
)

// Kinds of filesystem of which Linux has no way to freeze them.
var unfreezable = []string{
	"vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "hfs", "hfsplus", "udf", "iso9660", "squashfs", "erofs", "cramfs", "romfs", "minix", "zfs",
}

// A superblock is a filesystem that is mounted, wherever and however often that is.
type superblock struct {
	Filesystem

	number string
	places []place // the best first
	whole  bool    // the first is not only a part of it
	// on is set where it lies on the disks, or may do so.
	on bool
	// above has the numbers of the filesystems in whose files it lies: it is frozen before them.
	above []string
}

// A place is where a filesystem is mounted.
type place struct {
	path string // for us
	id   int    // of the mount
}

// find returns the filesystems on the disks, each once, in the order in which they are frozen:
// those in files of others before these, then the deepest mount point first.
func (t *tree) find(disks []string) ([]superblock, error) {
	text, err := t.read("proc/self/mountinfo", maxMountinfo)
	if err != nil {
		return nil, fmt.Errorf("cannot tell what is mounted: %w", err)
	}
	own := mountinfo.Parse(text)
	var order []string
	all := map[string]*superblock{}
	add := func(mounts []mountinfo.Mount, below string) {
		for _, m := range mounts {
			s := all[m.Number]
			if s == nil {
				s = &superblock{number: m.Number, Filesystem: Filesystem{Mount: path.Join(below, m.At), Type: m.Type, Source: m.Source, Freezable: !slices.Contains(unfreezable, m.Type)}}
				t.judge(s, m, own, disks)
				all[m.Number], order = s, append(order, m.Number)
			}
			p, whole := place{path.Join(below, m.At), m.ID}, m.Root == "/"
			switch {
			case len(s.places) == 0 || whole && !s.whole: // the whole of it before a part
				s.Mount, s.places = p.path, slices.Insert(s.places, 0, p)
			case len(s.places) < maxPlaces:
				s.places = append(s.places, p)
			}
			s.whole = s.whole || whole
		}
	}
	add(own, "")
	t.others(add)
	var out []superblock
	for _, number := range order {
		if s := all[number]; s.on {
			out = append(out, *s)
		}
	}
	if len(out) > maxFilesystems {
		return nil, fmt.Errorf("cannot freeze %d filesystems: at most %d", len(out), maxFilesystems)
	}
	nested := func(s superblock) int { return nesting(all, s.number, 0) }
	slices.SortStableFunc(out, func(a, b superblock) int {
		return cmp.Or(cmp.Compare(nested(b), nested(a)), cmp.Compare(depth(b.Mount), depth(a.Mount)), strings.Compare(b.Mount, a.Mount))
	})
	return out, nil
}

func depth(mount string) int { return strings.Count(strings.TrimRight(mount, "/"), "/") }

// nesting is in how many filesystems' files one lies, each in the next.
func nesting(all map[string]*superblock, number string, deep int) int {
	most := 0
	if s := all[number]; s != nil && deep < deepest {
		for _, n := range s.above {
			if n != number {
				most = max(most, 1+nesting(all, n, deep+1))
			}
		}
	}
	return most
}

// judge tells whether a filesystem lies on the disks.
func (t *tree) judge(s *superblock, m mountinfo.Mount, mounts []mountinfo.Mount, disks []string) {
	names, known := t.sources(m)
	// Of zfs the kernel does not tell on what it lies. It cannot be frozen, and is to be known of.
	s.on = m.Type == "zfs" || !known && strings.HasPrefix(m.Source, "/dev/")
	var walk func(name string, deep int)
	walk = func(name string, deep int) {
		if slices.Contains(disks, name) {
			s.on = true
			return
		}
		if deep > deepest {
			return
		}
		devices, file := t.below(name)
		if holder, found := holding(mounts, file); found {
			s.above = append(s.above, holder.Number)
			more, _ := t.sources(holder)
			devices = append(devices, more...)
		}
		for _, d := range devices {
			walk(d, deep+1)
		}
	}
	for _, name := range names {
		walk(name, 0)
	}
}

// holding returns the mount that a file is in.
func holding(mounts []mountinfo.Mount, file string) (found mountinfo.Mount, is bool) {
	if !path.IsAbs(file) {
		return found, false
	}
	for _, m := range mounts { // a later one hides those before
		if below := strings.TrimRight(m.At, "/") + "/"; strings.HasPrefix(file, below) && len(m.At) >= len(found.At) {
			found, is = m, true
		}
	}
	return found, is
}

// others tells of what is mounted where this process does not see it: in containers.
func (t *tree) others(add func(mounts []mountinfo.Mount, below string)) {
	own, _ := t.root.Readlink("proc/self/ns/mnt")
	seen := map[string]bool{own: true, "": true}
	for _, name := range t.names("proc") {
		if _, err := strconv.Atoi(name); err != nil {
			continue
		}
		ns, _ := t.root.Readlink(path.Join("proc", name, "ns/mnt"))
		if seen[ns] {
			continue
		}
		// A process that has just ended tells nothing; another one may be in the same.
		if text, err := t.read(path.Join("proc", name, "mountinfo"), maxMountinfo); err == nil && text != "" {
			seen[ns] = true
			add(mountinfo.Parse(text), path.Join("/proc", name, "root"))
		}
	}
}
