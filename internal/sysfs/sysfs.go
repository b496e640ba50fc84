package sysfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Where the kernel's trees are on a real host.
const (
	DefaultRoot = "/sys"
	ProcRoot    = "/proc"
)

const (
	maxRead     = 1 << 20 // more than any file we read; a sysfs attribute has 4 KiB at most
	maxRaces    = 64      // tries to open a path while somebody renames in it
	readTimeout = 10 * time.Second
)

// A Root is a tree of kernel files. Paths are relative to it, with slashes; none
// leads out of it, links included: the kernel itself sees to that (openat2, Linux
// 5.6).
type Root struct {
	guard Guard
	dir   *os.File
}

// Open opens the tree at dir.
func Open(dir string) (*Root, error) { return OpenLogged(dir, nil) }

// OpenLogged is Open with a log that is told of calls that hang and come back.
func OpenLogged(dir string, log *slog.Logger) (*Root, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open %q: %w", dir, err)
	}
	return &Root{guard: Guard{Log: log}, dir: os.NewFile(uintptr(fd), dir)}, nil
}

// Close closes the tree. Calls that hang keep it open until they return.
func (r *Root) Close() error { return r.dir.Close() }

// open opens a file of the tree.
func (r *Root) open(name string, flags int) (fd int, err error) {
	how := unix.OpenHow{
		Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS, //nolint:gosec // flags are positive
	}
	conn, err := r.dir.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := conn.Control(func(dir uintptr) {
		for range maxRaces {
			fd, err = unix.Openat2(int(dir), name, &how) //nolint:gosec // a file descriptor
			if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
				return
			}
		}
	})
	return fd, errors.Join(cerr, err)
}

// with opens a file of the tree, and closes it when f has returned.
func (r *Root) with(name string, flags int, f func(fd int) error) error {
	fd, err := r.open(name, flags)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }() // nothing that could still fail
	return f(fd)
}

// Hung returns how many calls into the kernel hang now.
func (r *Root) Hung() int { return r.guard.Hung() }

// WriteTimeouts returns how many writes have been given up on so far.
func (r *Root) WriteTimeouts() uint64 { return r.guard.Timeouts("write") }

// Read returns a file without the white space around it. A driver may answer a
// read as slowly as a write, so after ten seconds Read returns a *HungError.
func (r *Root) Read(name string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	return r.read(ctx, name)
}

func (r *Root) read(ctx context.Context, name string) (string, error) {
	text := make(chan string, 1) // not a variable: a read that hangs may end at any time
	err := r.guard.Do(ctx, "read", name, func() error {
		s, err := r.readAll(name)
		text <- s
		return err
	})
	if err != nil {
		return "", err
	}
	return <-text, nil
}

// A File is what came of reading one file of several.
type File struct {
	Text string // without the white space around it
	Err  error
}

// Optional is the text of a file that may be missing.
func (f File) Optional() (string, error) {
	if errors.Is(f.Err, fs.ErrNotExist) {
		return "", nil
	}
	return f.Text, f.Err
}

// Base returns the last part of what a link points to, empty if there is no link.
func Base(r interface {
	Readlink(path string) (string, error)
}, link string,
) (string, error) {
	target, err := r.Readlink(link)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return path.Base(target), nil
}

// ReadEach reads files below one directory as one call with one deadline, ten
// seconds for all: whoever reads what belongs together pays for one guard, and a
// driver that does not answer is waited for once. Answers are in the order of
// names. The error is a *HungError with the path of the directory.
func (r *Root) ReadEach(dir string, names ...string) ([]File, error) {
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	return r.readEach(ctx, dir, names)
}

func (r *Root) readEach(ctx context.Context, dir string, names []string) ([]File, error) {
	all := make(chan []File, 1) // as in read
	err := r.guard.Do(ctx, "read", dir, func() error {
		files := make([]File, len(names))
		for i, name := range names {
			files[i].Text, files[i].Err = r.readAll(path.Join(dir, name))
		}
		all <- files
		return nil
	})
	if err != nil {
		return nil, err
	}
	return <-all, nil
}

func (r *Root) readAll(name string) (string, error) {
	var out []byte
	err := r.with(name, unix.O_RDONLY, func(fd int) error {
		buf := make([]byte, 4096)
		for len(out) <= maxRead {
			n, err := unix.Read(fd, buf)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case err != nil || n == 0:
				return err
			}
			out = append(out, buf[:n]...)
		}
		return fmt.Errorf("it is longer than %d bytes", maxRead)
	})
	if err != nil {
		return "", fmt.Errorf("cannot read %q: %w", name, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// ReadUint returns a file that holds one number: decimal, or hexadecimal with 0x.
func (r *Root) ReadUint(name string) (uint64, error) {
	s, err := r.Read(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(s, 0, 64)
	if err != nil {
		return 0, fmt.Errorf("cannot read %q: %q is not a number", name, s)
	}
	return n, nil
}

// List returns the names in a directory, sorted.
func (r *Root) List(dir string) ([]string, error) {
	fd, err := r.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("cannot list %q: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), dir) //nolint:gosec // a file descriptor
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("cannot list %q: %w", dir, bare(err))
	}
	slices.Sort(names)
	return names, nil
}

// Readlink returns what a link says, as it stands.
func (r *Root) Readlink(name string) (string, error) {
	target := make([]byte, unix.PathMax)
	var n int
	err := r.with(name, unix.O_PATH|unix.O_NOFOLLOW, func(fd int) (err error) {
		n, err = unix.Readlinkat(fd, "", target)
		if errors.Is(err, unix.ENOENT) {
			err = unix.EINVAL // what is open is there: it is no link
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("cannot read link %q: %w", name, err)
	}
	return string(target[:n]), nil
}

// Exists reports whether there is something under a name. It does not follow a
// link in the last place.
func (r *Root) Exists(name string) (bool, error) {
	err := r.with(name, unix.O_PATH|unix.O_NOFOLLOW, func(int) error { return nil })
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, fmt.Errorf("cannot look for %q: %w", name, err)
	}
}

// Write writes a value to an existing file with one write(2) and returns what the
// driver answered, reachable as a syscall.Errno. When ctx ends before the driver
// answers, it returns a *HungError; the value may still take effect later.
func (r *Root) Write(ctx context.Context, name, value string) error {
	return r.guard.Do(ctx, "write", name, func() error {
		// Opening can hang as well, as on a FIFO that nobody reads.
		err := r.with(name, unix.O_WRONLY, func(fd int) error {
			n, err := unix.Write(fd, []byte(value))
			if err == nil && n != len(value) {
				err = io.ErrShortWrite
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("cannot write %q to %q: %w", value, name, err)
		}
		return nil
	})
}

// bare takes the path off an error of package os: our own text names it.
func bare(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
