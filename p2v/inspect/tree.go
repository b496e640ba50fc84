package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits of one read. Files of /proc and /sys have no size that could be asked for.
const (
	small   = 64 << 10
	large   = 4 << 20
	maxList = 100_000 // names in one folder
	maxLink = 40      // links on the way to one file
)

// A tree is the file system of the server, or of a test. Paths are relative to it, with
// slashes. Links are followed within it only: an absolute one begins at its root, as in a
// chroot, and none leads out. It opens nothing for writing, nothing that is no regular file
// or folder, leaves no access time behind where it may, and lets no automounter mount.
//
// The links are followed here, and not by the kernel's openat2, which servers that wait for
// a move are often too old for.
type tree struct {
	root int
	// What an automounter waits at, and all that is mounted: by paths.
	automounts, mounted map[string]bool
}

func openTree(dir string) (*tree, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open %q: %w", dir, err)
	}
	t := &tree{root: fd, automounts: map[string]bool{}, mounted: map[string]bool{}}
	text, _ := t.read("proc/self/mountinfo", large) // without it there is no /proc, and no automounter either
	for _, m := range parseMounts(text) {
		at := strings.Trim(m.at, "/")
		t.automounts[at], t.mounted[at] = m.kind == "autofs", true // the last one counts
	}
	return t, nil
}

func (t *tree) close() error { return unix.Close(t.root) }

// read returns the beginning of a regular file, at most limit bytes.
func (t *tree) read(name string, limit int) (string, error) {
	p, err := t.find(name, true)
	if err != nil {
		return "", err
	}
	defer p.close()
	if !p.is(unix.S_IFREG) {
		return "", &fs.PathError{Op: "read", Path: "/" + name, Err: errors.New("it is no regular file")}
	}
	f, err := p.open(0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return readUpTo(f, limit)
}

func readUpTo(f *os.File, limit int) (string, error) {
	var out []byte
	buf := make([]byte, min(limit, 32<<10))
	conn, err := f.SyscallConn()
	if err != nil {
		return "", err
	}
	for len(out) < limit {
		var n int
		var rerr error
		// Not by f.Read, which waits in the poller for files that never are ready.
		if err := conn.Control(func(fd uintptr) { n, rerr = unix.Read(int(fd), buf) }); err != nil { //nolint:gosec // a file descriptor
			return "", err
		}
		switch {
		case errors.Is(rerr, unix.EINTR):
			continue
		case rerr != nil:
			return "", &fs.PathError{Op: "read", Path: f.Name(), Err: rerr}
		case n == 0:
			return string(out), nil
		}
		out = append(out, buf[:n]...)
	}
	return string(out[:limit]), nil
}

// text returns a small file without the space around it, empty where it cannot be read.
func (t *tree) text(name string) string {
	s, err := t.read(name, small)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.TrimRight(s, "\x00"))
}

// exists reports whether something is there, in the end of all links.
func (t *tree) exists(name string) bool {
	p, err := t.find(name, true)
	if err != nil {
		return false
	}
	p.close()
	return true
}

// real returns a path without links, empty where nothing is there.
func (t *tree) real(name string) string {
	p, err := t.find(name, true)
	if err != nil {
		return ""
	}
	defer p.close()
	return p.path()
}

// base returns the last part of what a link leads to, empty where there is none.
func (t *tree) base(name string) string {
	real := t.real(name)
	if real == "" {
		return ""
	}
	return path.Base(real)
}

// link returns what a link says, as it stands; it may lead nowhere.
func (t *tree) link(name string) (string, error) {
	p, err := t.find(name, false)
	if err != nil {
		return "", err
	}
	defer p.close()
	return readlinkat(p.fd(), "")
}

// names returns what is in a folder, sorted; nothing where it cannot be read.
func (t *tree) names(dir string) []string {
	names, err := t.list(dir)
	if err != nil {
		return nil
	}
	return names
}

func (t *tree) list(dir string) ([]string, error) {
	p, err := t.find(dir, true)
	if err != nil {
		return nil, err
	}
	defer p.close()
	f, err := p.open(unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxList)
	slices.Sort(names)
	if errors.Is(err, io.EOF) { // it is empty
		err = nil
	}
	return names, err
}

// links returns what each link in a folder says, by its name.
func (t *tree) links(dir string) (map[string]string, error) {
	p, err := t.find(dir, true)
	if err != nil {
		return nil, err
	}
	defer p.close()
	f, err := p.open(unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxList)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	out := map[string]string{}
	for _, name := range names {
		if target, err := readlinkat(p.fd(), name); err == nil {
			out[name] = target
		}
	}
	return out, nil
}

// An entry is something in a folder.
type entry struct {
	path  string
	dir   bool // a folder, and no link to one
	file  bool // a regular file
	bytes uint64
	dev   uint64
}

// entries returns what is in a folder, sorted, at most so many, without following links.
func (t *tree) entries(ctx context.Context, dir string, most int) ([]entry, error) {
	p, err := t.find(dir, true)
	if err != nil {
		return nil, err
	}
	defer p.close()
	names, err := t.list(dir)
	if err != nil {
		return nil, err
	}
	names = names[:min(len(names), most)]
	out := make([]entry, 0, len(names))
	for _, name := range names {
		var st unix.Stat_t
		if err := ctx.Err(); err != nil {
			return out, err
		}
		if err := unix.Fstatat(p.fd(), name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT); err != nil {
			continue // gone since
		}
		kind := st.Mode & unix.S_IFMT
		out = append(out, entry{
			path: path.Join(p.path(), name), dir: kind == unix.S_IFDIR, file: kind == unix.S_IFREG,
			bytes: uint64(max(st.Blocks, 0)) * 512, dev: st.Dev, //nolint:gosec // not negative
		})
	}
	return out, nil
}

// statfs returns the figures of the file system at a path.
func (t *tree) statfs(name string) (unix.Statfs_t, error) {
	var st unix.Statfs_t
	p, err := t.find(name, true)
	if err != nil {
		return st, err
	}
	defer p.close()
	f, err := p.open(0)
	if err != nil {
		return st, err
	}
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return st, err
	}
	var serr error
	err = conn.Control(func(fd uintptr) { serr = unix.Fstatfs(int(fd), &st) }) //nolint:gosec // a file descriptor
	return st, errors.Join(err, serr)
}

// device reads from a block device. Only one with the number that the kernel gives to the
// name is read.
func (t *tree) device(name string, number string, at int64, n int) ([]byte, error) {
	p, err := t.find("dev/"+name, true)
	if err != nil {
		return nil, err
	}
	defer p.close()
	is := fmt.Sprintf("%d:%d", unix.Major(p.stat.Rdev), unix.Minor(p.stat.Rdev))
	if !p.is(unix.S_IFBLK) || is != number {
		return nil, fmt.Errorf("/dev/%s is not the block device %s", name, number)
	}
	f, err := p.open(0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := make([]byte, n)
	got, err := f.ReadAt(out, at)
	if got == n {
		err = nil
	}
	return out[:got], err
}
