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
	"syscall"
	"time"
)

// Where the kernel's trees are on a real host.
const (
	DefaultRoot = "/sys"
	ProcRoot    = "/proc"
)

const (
	maxRead     = 1 << 20 // more than any file we read; a sysfs attribute has 4 KiB at most
	maxLinks    = 40      // as in the kernel
	readTimeout = 10 * time.Second
)

// A Root is a tree of kernel files. Paths are relative to it, with slashes; none
// leads out of it, links included.
type Root struct {
	guard Guard
	root  *os.Root
}

// Open opens the tree at dir.
func Open(dir string) (*Root, error) { return OpenLogged(dir, nil) }

// OpenLogged is Open with a log that is told of calls that hang and come back.
func OpenLogged(dir string, log *slog.Logger) (*Root, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open %q: %w", dir, bare(err))
	}
	return &Root{guard: Guard{Log: log}, root: root}, nil
}

// Close closes the tree. Calls that hang keep it open until they return.
func (r *Root) Close() error { return r.root.Close() }

// Hung returns how many calls into the kernel hang now.
func (r *Root) Hung() int { return r.guard.Hung() }

// Timeouts returns how many calls into the kernel have been given up on so far.
func (r *Root) Timeouts() uint64 { return r.guard.Timeouts() }

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

func (r *Root) readAll(name string) (string, error) {
	f, err := r.root.Open(name)
	if err != nil {
		return "", fmt.Errorf("cannot read %q: %w", name, bare(err))
	}
	defer f.Close()
	var out []byte
	buf := make([]byte, 4096)
	for len(out) <= maxRead {
		n, err := rawCall(f, func(fd int) (int, error) { return syscall.Read(fd, buf) })
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return "", fmt.Errorf("cannot read %q: %w", name, err)
		case n == 0:
			return strings.TrimSpace(string(out)), nil
		}
		out = append(out, buf[:n]...)
	}
	return "", fmt.Errorf("cannot read %q: it is longer than %d bytes", name, maxRead)
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
	f, err := r.root.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot list %q: %w", dir, bare(err))
	}
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
	target, err := r.root.Readlink(name)
	if err != nil {
		return "", fmt.Errorf("cannot read link %q: %w", name, bare(err))
	}
	return target, nil
}

// Exists reports whether there is something under a name. It does not follow a
// link in the last place.
func (r *Root) Exists(name string) (bool, error) {
	_, err := r.root.Lstat(name)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, fmt.Errorf("cannot look for %q: %w", name, bare(err))
	}
}

// Resolve returns the path, within the root, of what a name stands for after all
// links: readlink -f.
func (r *Root) Resolve(name string) (string, error) {
	rest := strings.Split(name, "/")
	var done []string
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(done) == 0 {
				return "", fmt.Errorf("cannot resolve %q: it leads out of the tree", name)
			}
			done = done[:len(done)-1]
			continue
		}
		here := path.Join(path.Join(done...), part)
		target, err := r.root.Readlink(here)
		switch {
		case errors.Is(err, syscall.EINVAL): // no link
			done = append(done, part)
			continue
		case err != nil:
			return "", fmt.Errorf("cannot resolve %q: %w", name, bare(err))
		case path.IsAbs(target):
			return "", fmt.Errorf("cannot resolve %q: it leads out of the tree", name)
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("cannot resolve %q: %w", name, syscall.ELOOP)
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return path.Join(done...), nil
}

// Write writes a value to an existing file with one write(2) and returns what the
// driver answered, reachable as a syscall.Errno. When ctx ends before the driver
// answers, it returns a *HungError; the value may still take effect later.
func (r *Root) Write(ctx context.Context, name, value string) error {
	return r.guard.Do(ctx, "write", name, func() error {
		// Opening can hang as well, as on a FIFO that nobody reads.
		f, err := r.root.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("cannot write %q to %q: %w", value, name, bare(err))
		}
		defer f.Close()
		n, err := rawCall(f, func(fd int) (int, error) { return syscall.Write(fd, []byte(value)) })
		if err == nil && n != len(value) {
			err = io.ErrShortWrite
		}
		if err != nil {
			return fmt.Errorf("cannot write %q to %q: %w", value, name, err)
		}
		return nil
	})
}

// rawCall makes one system call on a file, past Go's poller.
func rawCall(f *os.File, call func(fd int) (int, error)) (n int, err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	if cerr := conn.Control(func(fd uintptr) { n, err = call(int(fd)) }); cerr != nil {
		return 0, cerr
	}
	return n, err
}

// bare takes the path off an error of package os: our own text names it.
func bare(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
