package inspect

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// A place is a file of the tree that was found: open for its path only.
type place struct {
	fds   []int    // the root's, those of the folders on the way, and its own; without links
	names []string // of the same, without the root
	stat  unix.Stat_t
	auto  bool // opening it would mount something
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
			if at := p.path(); t.automounts[at] && !t.mounted[path.Join(at, next)] {
				err = errAutomount // even to look for a name there may mount something
			} else {
				err = p.enter(p.fd(), next, next)
			}
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
	p.auto = t.automounts[p.path()]
	return p, nil
}

var errAutomount = errors.New("an automounter would mount something")

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
	if p.auto {
		return nil, &fs.PathError{Op: "open", Path: "/" + p.path(), Err: errAutomount}
	}
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
