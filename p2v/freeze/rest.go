package freeze

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// How long calls of the kernel are waited for that cannot be ended.
const (
	syncLimit  = 30 * time.Second // freezing writes out as well, only slower
	thawLinger = 2 * time.Second  // for each: the next one must not wait for one that hangs
)

// A rest is a server at rest, or on the way there or back. begin and end are called by one
// goroutine.
type rest struct {
	calls

	kernel    Kernel
	systemctl Systemctl
	guard     *guard // nil: none

	targets []*target
	units   []string // that were stopped, to be started again
	before  count    // when all was frozen

	clean bool // all was thawed and started
}

// A target is a filesystem that is frozen, or is to be.
type target struct {
	superblock

	file *os.File // nil: it cannot be reached

	mu     sync.Mutex
	frozen bool
	// given is set when nobody waits for its freezing any more: who froze it thaws it.
	given bool
}

// begin stops the units and freezes all. When ctx ends it returns, also where a call of the
// kernel hangs. After an error some may be stopped and frozen: end makes that good.
func (r *rest) begin(ctx context.Context, t *tree, disks, units []string) error {
	active, err := r.systemctl.running(ctx, units)
	if err != nil {
		return orCause(ctx, err)
	}
	if len(active) > 0 {
		r.units = active
		if err := r.guard.tell(note{Do: noteStopped, Units: active}, nil); err != nil {
			return err
		}
		if err := r.systemctl.stop(ctx, active); err != nil {
			return orCause(ctx, err)
		}
	}
	if err := r.open(t, disks); err != nil {
		return err
	}
	// While all can still be written: what is frozen then has little to write any more.
	if err := r.call(ctx, syncLimit, func() error { r.kernel.Sync(); return nil }); err != nil && !errors.Is(err, errSlow) {
		return err
	}
	for i := range r.targets {
		if err := r.freeze(ctx, i); err != nil {
			return err
		}
	}
	for _, g := range r.targets {
		if g.Freezable || g.file == nil {
			continue
		}
		if err := r.call(ctx, 0, func() error { return r.kernel.SyncFS(g.file) }); err != nil {
			return fmt.Errorf("cannot write out %s (%s): %w", g.Mount, g.Type, err)
		}
	}
	r.before, err = t.count(disks)
	return err
}

func orCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// open opens all that is to be frozen: afterwards nothing is opened on it.
func (r *rest) open(t *tree, disks []string) error {
	found, err := t.find(disks)
	if err != nil {
		return err
	}
	for _, s := range found {
		g := &target{superblock: s}
		for _, p := range s.places {
			if g.file, err = r.kernel.Open(p.path, p.id); err == nil {
				g.Mount = p.path
				break
			}
		}
		// One that cannot be reached was left to those that have it open, or is below another.
		g.Freezable = g.Freezable && g.file != nil
		r.targets = append(r.targets, g)
	}
	return nil
}

// freeze freezes one. What the kernel has no way to freeze is none after that.
func (r *rest) freeze(ctx context.Context, i int) error {
	g := r.targets[i]
	if !g.Freezable {
		return nil
	}
	cannot := func(err error) error {
		return fmt.Errorf("cannot freeze %s (%s on %s): %w", g.Mount, g.Type, g.Source, err)
	}
	if err := r.guard.tell(note{Do: noteFreezing, Index: i}, g.file); err != nil {
		return cannot(err)
	}
	done := make(chan error, 1)
	r.running.Go(func() {
		err := r.kernel.Freeze(g.file)
		g.mu.Lock()
		g.frozen = err == nil
		late := g.frozen && g.given
		g.mu.Unlock()
		if late {
			_ = r.kernel.Thaw(g.file)
		}
		done <- err
	})
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		g.mu.Lock()
		g.given = !g.frozen
		g.mu.Unlock()
		return cannot(fmt.Errorf("%w: %w", errSlow, context.Cause(ctx)))
	}
	if err == nil {
		return nil
	}
	if terr := r.guard.tell(note{Do: noteClear, Index: i}, nil); terr != nil {
		return cannot(terr)
	}
	switch {
	case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOTTY):
		g.Freezable = false
		return nil
	case errors.Is(err, syscall.EBUSY):
		err = fmt.Errorf("somebody else has frozen it: %w", err)
	}
	return cannot(err)
}

// filesystems returns what was found, and what of that is not frozen.
func (r *rest) filesystems() []Filesystem {
	out := make([]Filesystem, 0, len(r.targets))
	for _, g := range r.targets {
		out = append(out, g.Filesystem)
	}
	return out
}

// end thaws all, the last first, and starts the units again. The error says what could not be.
// It is called once, and close after it.
func (r *rest) end() error {
	var errs []error
	for i, g := range slices.Backward(r.targets) {
		g.mu.Lock()
		frozen := g.frozen
		g.mu.Unlock()
		if !frozen {
			continue
		}
		if err := r.thaw(r.kernel, g.file); err != nil {
			errs = append(errs, fmt.Errorf("cannot thaw %s: %w", g.Mount, err))
			continue
		}
		_ = r.guard.tell(note{Do: noteClear, Index: i}, nil)
	}
	if err := r.systemctl.start(r.units); err != nil {
		errs = append(errs, err)
	}
	r.clean = len(errs) == 0
	return errors.Join(errs...)
}

// close waits for calls that hang, and lets the guard go.
func (r *rest) close() {
	r.running.Wait()
	// It is there until now: where this process is killed, what hangs ends first, and may have
	// frozen something. What could not be thawed it tries once more.
	r.guard.end(r.clean)
	for _, g := range r.targets {
		if g.file != nil {
			_ = g.file.Close() // only read from
		}
	}
}

// calls are those of the kernel, which cannot be ended.
type calls struct{ running sync.WaitGroup }

var errSlow = errors.New("the kernel has not done it yet")

// call calls, and does not wait longer than until ctx ends, or for d (0: as long as it takes).
func (c *calls) call(ctx context.Context, d time.Duration, f func() error) error {
	done := make(chan error, 1)
	c.running.Go(func() { done <- f() })
	var slow <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		slow = t.C
	}
	select {
	case err := <-done:
		return err
	case <-slow:
		select {
		case err := <-done: // in time, and it was we who did not run meanwhile
			return err
		default:
			return errSlow
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// thaw thaws, if that is frozen.
func (c *calls) thaw(k Kernel, f *os.File) error {
	err := c.call(context.Background(), thawLinger, func() error { return k.Thaw(f) })
	if errors.Is(err, syscall.EINVAL) { // it is not
		return nil
	}
	return err
}

// oneLine is what errors say, as one sentence.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
