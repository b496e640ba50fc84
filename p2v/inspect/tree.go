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
	dir  string
}

func openTree(dir string) (*tree, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open %q: %w", dir, err)
	}
	return &tree{root: fd, dir: dir}, nil
}

func (t *tree) close() error { return unix.Close(t.root) }

// A place is a file of the tree that was found: open for its path only.
type place struct {
	fds   []int    // the root's, those of the folders on the way, and its own; without links
	names []string // of the same, without the root
	stat  unix.Stat_t
}

func (p *place) fd() int      { return p.fds[len(p.fds)-1] }
func (p *place) path() string { return strings.Join(p.names, "/") }

// keep goes back to the first n of what is on the way.
func (p *place) keep(n int) {
	for _, fd := range p.fds[n:] {
		_ = unix.Close(fd) // opened for its path: nothing that could fail
	}
	p.fds, p.names = p.fds[:n], p.names[:max(n-1, 0)]
}

func (p *place) close() { p.keep(0) }

func (p *place) is(kind uint32) bool { return p.stat.Mode&unix.S_IFMT == kind }

// find goes to a file, through all links, but not the last where follow is false.
func (t *tree) find(name string, follow bool) (*place, error) {
	p := &place{}
	if err := p.enter(t.root, ".", ""); err != nil {
		return nil, err
	}
	rest := strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		next := rest[0]
		rest = rest[1:]
		var err error
		switch next {
		case "", ".":
		case "..":
			p.keep(max(1, len(p.fds)-1))
		default:
			err = p.enter(p.fd(), next, next)
		}
		if err == nil && p.is(unix.S_IFLNK) && (follow || len(rest) > 0) {
			var target string
			if target, err = readlinkat(p.fd(), ""); path.IsAbs(target) {
				p.keep(1)
			} else {
				p.keep(len(p.fds) - 1)
			}
			p.stat = unix.Stat_t{}
			rest = append(strings.Split(target, "/"), rest...)
			if links++; links > maxLink {
				err = unix.ELOOP
			}
		}
		if err != nil {
			p.close()
			return nil, &fs.PathError{Op: "open", Path: "/" + name, Err: err}
		}
	}
	if err := unix.Fstat(p.fd(), &p.stat); err != nil { // ".." leaves that of what is below
		p.close()
		return nil, &fs.PathError{Op: "open", Path: "/" + name, Err: err}
	}
	return p, nil
}

// enter opens what has a name in a folder.
func (p *place) enter(dir int, file, name string) error {
	fd, err := unix.Openat(dir, file, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	p.fds = append(p.fds, fd)
	if name != "" {
		p.names = append(p.names, name)
	}
	return unix.Fstat(fd, &p.stat)
}

func readlinkat(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// open opens what was found for reading. That nothing else came in its place is looked at
// again afterwards; O_NONBLOCK keeps a pipe that did from holding us up.
func (p *place) open(flags int) (*os.File, error) {
	parent, name := p.fd(), "."
	if n := len(p.names); n > 0 {
		parent, name = p.fds[n-1], p.names[n-1]
	}
	const always = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err := unix.Openat(parent, name, flags|always|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) { // another's file, and we are not root
		fd, err = unix.Openat(parent, name, flags|always, 0)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "/" + p.path(), Err: err}
	}
	var now unix.Stat_t
	if err := unix.Fstat(fd, &now); err != nil || now.Dev != p.stat.Dev || now.Ino != p.stat.Ino {
		_ = unix.Close(fd)
		return nil, &fs.PathError{Op: "open", Path: "/" + p.path(), Err: errors.Join(err, errors.New("it was exchanged"))}
	}
	return os.NewFile(uintptr(fd), "/"+p.path()), nil //nolint:gosec // a file descriptor
}

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

// entries returns what is in a folder, sorted, without following links.
func (t *tree) entries(ctx context.Context, dir string) ([]entry, error) {
	p, err := t.find(dir, true)
	if err != nil {
		return nil, err
	}
	defer p.close()
	names, err := t.list(dir)
	if err != nil {
		return nil, err
	}
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
