package sysfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// ErrTimeout is what a HungError wraps.
var ErrTimeout = errors.New("it did not return in time")

// A HungError says that a call was given up on. It is still under way: it may yet
// succeed, fail, or never return.
type HungError struct {
	Op    string // "write", "read", …
	Path  string
	Since time.Time // when the call began
	cause error     // why it was given up on
	call  *call
}

func (e *HungError) Error() string {
	return fmt.Sprintf("cannot %s %q: it has hung since %s", e.Op, e.Path, e.Since.UTC().Format(time.RFC3339))
}

// Unwrap makes the error an ErrTimeout and whatever ended the wait.
func (e *HungError) Unwrap() []error { return []error{ErrTimeout, e.cause} }

// Done is closed when the call has returned after all.
func (e *HungError) Done() <-chan struct{} { return e.call.done }

// Returned reports whether the call has returned after all, and its result.
func (e *HungError) Returned() (bool, error) {
	select {
	case <-e.call.done:
		return true, e.call.err
	default:
		return false, nil
	}
}

// A Guard runs calls that may never return. A call that is given up on keeps its
// goroutine and its thread: the kernel cannot be told to let go of it, so these
// are the only goroutines of ours that nobody waits for. They are counted, and a
// new call of the same name is refused while one hangs, so that asking again and
// again does not use up the threads. The zero value is ready to use.
type Guard struct {
	Log *slog.Logger // told of calls that hang and of those that come back; may be nil

	mu       sync.Mutex
	hung     []*HungError
	timeouts map[string]uint64 // by op
}

type call struct {
	since    time.Time
	done     chan struct{}
	err      error // valid once done is closed
	returned bool  // guarded by Guard.mu
}

// Do runs f and returns its error, or a *HungError when ctx ends first. Op and
// path name the call; nothing is run if ctx has ended already or if a call of the
// same name still hangs.
func (g *Guard) Do(ctx context.Context, op, path string, f func() error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("cannot %s %q: %w", op, path, context.Cause(ctx))
	}
	if h := g.find(op, path); h != nil {
		return h
	}
	c := &call{since: time.Now(), done: make(chan struct{})}
	go g.run(c, f)
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
	}

	g.mu.Lock()
	defer g.mu.Unlock()
	if c.returned {
		return c.err
	}
	h := &HungError{Op: op, Path: path, Since: c.since, cause: context.Cause(ctx), call: c}
	g.hung = append(g.hung, h)
	if g.timeouts == nil {
		g.timeouts = map[string]uint64{}
	}
	g.timeouts[op]++
	if g.Log != nil {
		g.Log.Warn("gave up on a call into the kernel", "op", op, "path", path, "err", h)
	}
	return h
}

func (g *Guard) find(op, path string) *HungError {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, h := range g.hung {
		if h.Op == op && h.Path == path {
			return h
		}
	}
	return nil
}

func (g *Guard) run(c *call, f func() error) {
	err := f()
	g.mu.Lock()
	defer g.mu.Unlock()
	c.err, c.returned = err, true
	if i := slices.IndexFunc(g.hung, func(h *HungError) bool { return h.call == c }); i >= 0 {
		if g.Log != nil {
			h := g.hung[i]
			g.Log.Info("a call into the kernel came back", "op", h.Op, "path", h.Path, "after", time.Since(c.since), "err", err)
		}
		g.hung = slices.Delete(g.hung, i, i+1)
	}
	close(c.done)
}

// Hung returns how many calls hang now.
func (g *Guard) Hung() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.hung)
}

// Timeouts returns how many calls of a name, such as "write", have been given up on so far.
func (g *Guard) Timeouts(op string) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.timeouts[op]
}
