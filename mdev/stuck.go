package mdev

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/sysfs"
)

// A writer writes to the files of drivers: one caller at a time for each GPU. It
// knows which of its writes have not come back.
type writer struct {
	fs  Sysfs
	log *slog.Logger

	mu    sync.Mutex
	turn  map[gpu.ID]chan struct{}      // holds a token while somebody writes to the GPU
	stuck map[gpu.ID][]*sysfs.HungError // writes that have not come back
}

func newWriter(fs Sysfs, log *slog.Logger) *writer {
	return &writer{fs: fs, log: log, turn: map[gpu.ID]chan struct{}{}, stuck: map[gpu.ID][]*sysfs.HungError{}}
}

// take waits for the caller's turn to write to a GPU. One at a time: what fits is
// looked up before a device is made. Other GPUs are not held up.
func (w *writer) take(ctx context.Context, id gpu.ID) (give func(), err error) {
	w.mu.Lock()
	turn := w.turn[id]
	if turn == nil {
		turn = make(chan struct{}, 1)
		w.turn[id] = turn
	}
	w.mu.Unlock()
	if ctx.Err() != nil {
		return nil, interrupted(ctx)
	}
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return nil, interrupted(ctx)
	}
	give = func() { <-turn }
	if err := w.refuseStuck(id); err != nil {
		give()
		return nil, err
	}
	return give, nil
}

// taken reports whether somebody writes to a GPU now.
func (w *writer) taken(id gpu.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.turn[id]) > 0
}

// write writes to a GPU's files and remembers a write that does not come back.
func (w *writer) write(ctx context.Context, id gpu.ID, file, value string) error {
	err := w.fs.Write(ctx, file, value)
	if hung, ok := errors.AsType[*sysfs.HungError](err); ok {
		w.mu.Lock()
		if !slices.Contains(w.stuck[id], hung) {
			w.stuck[id] = append(w.stuck[id], hung)
		}
		w.mu.Unlock()
		w.log.Error("the driver does not answer: the gpu is stuck", "gpu", string(id), "path", hung.Path, "err", err)
	}
	return err
}

// stuckOn returns the writes to a GPU that have not come back.
func (w *writer) stuckOn(id gpu.ID) []*sysfs.HungError {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stuck[id] = slices.DeleteFunc(w.stuck[id], func(h *sysfs.HungError) bool {
		back, _ := h.Returned()
		return back
	})
	return slices.Clone(w.stuck[id])
}

// refuseStuck answers CodeStuck while a write to the GPU has not come back: a
// second one would only take a second thread.
func (w *writer) refuseStuck(id gpu.ID) error {
	for _, h := range w.stuckOn(id) {
		return stuckError(id, h)
	}
	return nil
}

func stuckError(id gpu.ID, h *sysfs.HungError) error {
	return gpu.Errorf(gpu.CodeStuck, "the driver has not answered since %s, when %q was written: %w",
		h.Since.UTC().Format(time.RFC3339), h.Path, h).
		WithHint("the write cannot be cancelled. If a VM still holds the device, shut it down and the write comes back; else look at the kernel log. Nothing new is made or removed on this gpu until then").
		WithBlockers(gpu.Blocker{Kind: "gpu", ID: string(id), Note: "stuck"})
}

func (w *writer) stuckConditions(id gpu.ID) []gpu.Condition {
	var out []gpu.Condition
	for _, h := range w.stuckOn(id) {
		out = append(out, gpu.Condition{
			Type: gpu.Stuck, Status: true, Reason: "WriteHangs", Since: h.Since,
			Message: fmt.Sprintf("a write to %q has not come back", h.Path),
		})
		break
	}
	return out
}

// interrupted is the error of a call whose context ended before it did anything.
func interrupted(ctx context.Context) error {
	return gpu.Errorf(gpu.CodeUnavailable, "it was interrupted: %w", context.Cause(ctx))
}

// unwritten is the error of a write that the driver never answered and never
// will: it was not begun, or not by the kernel's rules.
func unwritten(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return interrupted(ctx)
	}
	return gpu.Errorf(gpu.CodeUnavailable, "the write failed: %w", err)
}

// pause waits until the next look at the machine, or fails when ctx ends.
func pause(ctx context.Context, tick *time.Ticker) error {
	select {
	case <-tick.C:
		return nil
	case <-ctx.Done():
		return interrupted(ctx)
	}
}

// wrap puts what was attempted in front of an error. One without a kind says that the
// machine could not be read.
func wrap(err error, format string, args ...any) error {
	if errors.Is(err, sysfs.ErrTimeout) {
		return gpu.Wrap(err, gpu.CodeStuck, format, args...)
	}
	return gpu.Wrap(err, gpu.CodeUnavailable, format, args...)
}
