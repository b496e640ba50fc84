package sim

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"syscall"
)

// A Fault makes calls on a path fail or hang. It is part of the host's state, so
// that a test can set one in another process.
type Fault struct {
	Op    string        `json:"op"`              // read, write, list or link; empty: any
	Path  string        `json:"path"`            // pattern of path.Match, of the path as called or resolved
	Errno syscall.Errno `json:"errno,omitempty"` // what the kernel answers
	Hang  bool          `json:"hang,omitempty"`  // block until Clear; then go on, or fail with Errno
	Times int           `json:"times,omitempty"` // how often; 0: until Clear
}

func (f Fault) covers(op string, names ...string) bool {
	return (f.Op == "" || f.Op == op) && slices.ContainsFunc(names, func(name string) bool {
		ok, err := path.Match(f.Path, name)
		return ok && err == nil
	})
}

// Inject adds a fault.
func (h *Host) Inject(f Fault) error {
	if _, err := path.Match(f.Path, ""); err != nil {
		return fmt.Errorf("cannot inject a fault on %q: %w", f.Path, err)
	}
	return h.update(func(s *state) ([]string, error) {
		s.Faults = append(s.Faults, f)
		return nil, nil
	})
}

// Clear takes back every fault that was injected on a pattern, or all if it is
// empty. What hung goes on.
func (h *Host) Clear(pattern string) error {
	return h.update(func(s *state) ([]string, error) {
		s.Faults = slices.DeleteFunc(s.Faults, func(f Fault) bool { return pattern == "" || f.Path == pattern })
		return nil, nil
	})
}

// meet carries a fault out.
func (s *Sysfs) meet(op, name string) error {
	there, err := s.find(name, true)
	if err != nil && !isNoEntry(err) {
		return err
	}
	match := func(st *state) int {
		return slices.IndexFunc(st.Faults, func(f Fault) bool { return f.covers(op, name, there.path) })
	}
	var found int
	if err := s.h.view(func(st *state) error { found = match(st); return nil }); err != nil || found < 0 {
		return err
	}
	var f Fault
	err = s.h.update(func(st *state) ([]string, error) {
		i := match(st)
		if i < 0 {
			return nil, nil
		}
		f = st.Faults[i]
		if f.Hang || f.Times == 0 {
			return nil, nil
		}
		if st.Faults[i].Times--; st.Faults[i].Times == 0 {
			st.Faults = slices.Delete(st.Faults, i, i+1)
		}
		return nil, nil
	})
	if err != nil {
		return err
	}
	if f.Hang {
		if err := s.h.await(context.Background(), func(st *state) bool { return match(st) < 0 }); err != nil {
			return err
		}
	}
	if f.Errno != 0 {
		return failed{name, f.Errno}
	}
	return nil
}

func isNoEntry(err error) bool { return errors.Is(err, syscall.ENOENT) }
