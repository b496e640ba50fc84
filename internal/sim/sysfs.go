package sim

import (
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gpuvirt/internal/sysfs"
)

// Sysfs answers as the kernel does. It has the methods of *sysfs.Root, with the
// same errors.
type Sysfs struct {
	h     *Host
	guard sysfs.Guard
	proc  bool // it is not sysfs but a part of /proc
}

// failed is what the kernel answers to a call on a path.
type failed struct {
	path  string
	errno syscall.Errno
}

func (f failed) Error() string { return fmt.Sprintf("%q: %s", f.path, f.errno) }
func (f failed) Unwrap() error { return f.errno }

// cannotDo says what could not be done, as *sysfs.Root does.
func cannotDo(what string, err error) error {
	if _, ok := errors.AsType[failed](err); ok {
		return fmt.Errorf("cannot %s %w", what, err)
	}
	return err
}

// at is where a call has landed.
type at struct {
	path  string
	names []string // of a directory
	node
}

// find looks a path up in the tree of this moment.
func (s *Sysfs) find(name string, follow bool) (at, error) {
	out, _, err := s.look(name, follow)
	return out, err
}

func (s *Sysfs) look(name string, follow bool) (out at, faults bool, err error) {
	err = s.h.view(func(st *state) error {
		at := &s.h.tree
		switch {
		case s.proc && s.h.proc == nil:
			s.h.proc = s.h.buildProc(st)
		case !s.proc && s.h.tree == nil:
			s.h.tree = s.h.build(st)
		}
		if s.proc {
			at = &s.h.proc
		}
		faults = len(st.Faults) > 0
		out.path, out.node, err = (*at).find(name, follow)
		out.names = (*at).names[out.path]
		return err
	})
	return out, faults, err
}

// call is find for a call that may meet a fault. Like one of the real sysfs, it is
// given up on after ten seconds.
func (s *Sysfs) call(op, name string, follow bool) (at, error) {
	out, faults, err := s.look(name, follow)
	if !faults {
		return out, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = s.guard.Do(ctx, op, name, func() error {
		if !s.h.begin() {
			return syscall.ENODEV
		}
		defer s.h.calls.Done()
		return s.meet(op, name)
	})
	if err != nil {
		return at{}, err
	}
	return s.find(name, follow)
}

// Read returns a file without the white space around it.
func (s *Sysfs) Read(name string) (text string, err error) {
	n, err := s.call("read", name, true)
	switch {
	case err != nil:
		return "", cannotDo("read", err)
	case n.dir:
		return "", cannotDo("read", failed{name, syscall.EISDIR})
	case n.unread:
		return "", cannotDo("read", failed{name, syscall.EACCES})
	case n.errno != 0:
		return "", cannotDo("read", failed{name, n.errno})
	}
	return strings.TrimSpace(n.text), nil
}

// ReadEach reads files of one directory. One that hangs is waited for once.
func (s *Sysfs) ReadEach(dir string, names ...string) ([]sysfs.File, error) {
	files := make([]sysfs.File, len(names))
	for i, name := range names {
		text, err := s.Read(path.Join(dir, name))
		if errors.Is(err, sysfs.ErrTimeout) {
			return nil, err
		}
		files[i] = sysfs.File{Text: text, Err: err}
	}
	return files, nil
}

// ReadUint returns a file that holds one number: decimal, or hexadecimal with 0x.
func (s *Sysfs) ReadUint(name string) (uint64, error) {
	text, err := s.Read(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(text, 0, 64)
	if err != nil {
		return 0, fmt.Errorf("cannot read %q: %q is not a number", name, text)
	}
	return n, nil
}

// List returns the names in a directory, sorted.
func (s *Sysfs) List(dir string) ([]string, error) {
	n, err := s.call("list", dir, true)
	switch {
	case err != nil:
		return nil, cannotDo("list", err)
	case !n.dir:
		return nil, cannotDo("list", failed{dir, syscall.ENOTDIR})
	}
	return append([]string{}, n.names...), nil
}

// Readlink returns what a link says, as it stands.
func (s *Sysfs) Readlink(name string) (string, error) {
	n, err := s.call("link", name, false)
	switch {
	case err != nil:
		return "", cannotDo("read link", err)
	case n.link == "":
		return "", cannotDo("read link", failed{name, syscall.EINVAL})
	}
	return n.link, nil
}

// Exists reports whether there is something under a name.
func (s *Sysfs) Exists(name string) (bool, error) {
	_, err := s.call("link", name, false)
	if isNoEntry(err) {
		return false, nil
	}
	if err != nil {
		return false, cannotDo("look for", err)
	}
	return true, nil
}

// Write writes a value and returns what the driver answers, or a *sysfs.HungError
// when ctx ends first.
func (s *Sysfs) Write(ctx context.Context, name, value string) error {
	return s.guard.Do(ctx, "write", name, func() error {
		if !s.h.begin() {
			return syscall.ENODEV
		}
		defer s.h.calls.Done()
		return s.write(name, value)
	})
}

func (s *Sysfs) write(name, value string) error {
	fail := func(err error) error {
		if f, ok := errors.AsType[failed](err); ok {
			err = f.errno
		}
		return fmt.Errorf("cannot write %q to %q: %w", value, name, err)
	}
	if err := s.h.logWrite(name, value); err != nil {
		return err
	}
	if err := s.meet("write", name); err != nil {
		return fail(err)
	}
	n, err := s.find(name, true)
	switch {
	case err != nil:
		return fail(err)
	case n.dir:
		return fail(syscall.EISDIR)
	case n.act == nil:
		return fail(syscall.EACCES)
	}
	if err := n.act(value); err != nil {
		return fail(err)
	}
	return nil
}

// Hung returns how many calls hang now.
func (s *Sysfs) Hung() int { return s.guard.Hung() }

// WriteTimeouts returns how many writes have been given up on so far.
func (s *Sysfs) WriteTimeouts() uint64 { return s.guard.Timeouts("write") }

var uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// uuidIn reads what is written to create.
func uuidIn(value string) (string, error) {
	uuid := strings.ToLower(strings.TrimSuffix(value, "\n"))
	if len(value) > 37 || !uuidPattern.MatchString(uuid) {
		return "", syscall.EINVAL
	}
	return uuid, nil
}

// create is mdev's create_store and the driver behind it.
func (h *Host) create(card string, typ int, value string) error {
	uuid, err := uuidIn(value)
	if err != nil {
		return err
	}
	return h.update(func(s *state) ([]string, error) {
		c := s.card(card)
		switch {
		case !s.driven(c):
			return nil, syscall.ENODEV
		case s.Mdevs[uuid] != nil:
			return nil, syscall.EEXIST
		case c.available(c.Types[typ], s.used(c)) == 0 && c.OneSize:
			return nil, syscall.EIO // NVIDIA says no more than that
		case c.available(c.Types[typ], s.used(c)) == 0:
			return nil, syscall.ENOSPC
		}
		s.Groups++
		s.Mdevs[uuid] = &mdev{Card: card, Type: typ, Group: 100 + s.Groups}
		return []string{uuid}, nil
	})
}

// remove is mdev's remove_store: it blocks while somebody holds the device.
func (h *Host) remove(uuid, value string) error {
	n, err := strconv.ParseUint(strings.TrimSpace(value), 0, 64)
	if err != nil {
		return syscall.EINVAL
	}
	if n == 0 {
		return nil
	}
	err = h.update(func(s *state) ([]string, error) {
		m := s.Mdevs[uuid]
		switch {
		case m == nil:
			return nil, syscall.ENODEV
		case m.Removing:
			return nil, syscall.EAGAIN
		}
		m.Removing = true // settle removes it, now or when it is let go of
		return nil, nil
	})
	if err != nil {
		return err
	}
	return h.await(context.Background(), func(s *state) bool { return s.Mdevs[uuid] == nil })
}

// await blocks until the state is as asked, ctx ends, or the host is closed.
func (h *Host) await(ctx context.Context, is func(*state) bool) error {
	tick := time.NewTicker(50 * time.Millisecond) // other processes and time change the state, too
	defer tick.Stop()
	for {
		var yes bool
		var changed chan struct{}
		if err := h.view(func(s *state) error { yes, changed = is(s), h.changed; return nil }); err != nil || yes {
			return err
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-h.closed:
			return syscall.ENODEV
		}
	}
}
