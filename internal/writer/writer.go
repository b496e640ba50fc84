// Package writer writes to the files of drivers for backends: one caller at a time for
// each GPU, and none while a write to it has not come back.
package writer

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

// Files is where it writes to; *sysfs.Root has it. Errors wrap syscall.Errno, and
// *sysfs.HungError where the kernel did not answer before ctx ended.
type Files interface {
	Write(ctx context.Context, path, value string) error
}

// Writer writes. It remembers which of its writes have not come back, and nothing else.
type Writer struct {
	fs  Files
	log *slog.Logger

	mu    sync.Mutex
	turn  map[gpu.ID]chan struct{}      // holds a token while somebody writes to the GPU
	stuck map[gpu.ID][]*sysfs.HungError // writes that have not come back
}

// New returns a writer.
func New(fs Files, log *slog.Logger) *Writer {
	return &Writer{fs: fs, log: log, turn: map[gpu.ID]chan struct{}{}, stuck: map[gpu.ID][]*sysfs.HungError{}}
}

// Take waits for the caller's turn to write to a GPU. One at a time: what is free is
// looked up before it is taken. Other GPUs are not held up. A GPU on which a write hangs
// is refused with CodeStuck.
func (w *Writer) Take(ctx context.Context, id gpu.ID) (give func(), err error) {
	w.mu.Lock()
	turn := w.turn[id]
	if turn == nil {
		turn = make(chan struct{}, 1)
		w.turn[id] = turn
	}
	w.mu.Unlock()
	if err := w.Refuse(id); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, Interrupted(ctx)
	}
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return nil, Interrupted(ctx)
	}
	give = func() { <-turn }
	if err := w.Refuse(id); err != nil {
		give()
		return nil, err
	}
	return give, nil
}

// Write writes for a GPU. One that does not come back in time is remembered, and its
// error is CodeStuck.
func (w *Writer) Write(ctx context.Context, id gpu.ID, file, value string) error {
	err := w.fs.Write(ctx, file, value)
	hung, ok := errors.AsType[*sysfs.HungError](err)
	if !ok {
		return err
	}
	w.mu.Lock()
	if !slices.Contains(w.stuck[id], hung) {
		w.stuck[id] = append(w.stuck[id], hung)
	}
	w.mu.Unlock()
	w.log.Error("the driver does not answer: the gpu is stuck", "gpu", string(id), "path", hung.Path, "err", err)
	return stuckError(id, hung)
}

// Stuck returns the writes to a GPU that have not come back.
func (w *Writer) Stuck(id gpu.ID) []*sysfs.HungError {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stuck[id] = slices.DeleteFunc(w.stuck[id], func(h *sysfs.HungError) bool {
		back, _ := h.Returned()
		return back
	})
	return slices.Clone(w.stuck[id])
}

// Conditions says of a GPU that it is stuck, where it is.
func (w *Writer) Conditions(id gpu.ID) []gpu.Condition {
	for _, h := range w.Stuck(id) {
		return []gpu.Condition{{
			Type: gpu.Stuck, Status: true, Reason: "WriteHangs", Since: h.Since,
			Message: fmt.Sprintf("a write to %q has not come back", h.Path),
		}}
	}
	return nil
}

// Taken reports whether somebody has the turn at a GPU now.
func (w *Writer) Taken(id gpu.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.turn[id]) > 0
}

// Refuse answers CodeStuck while a write to the GPU has not come back: a second one
// would only take a second thread. Take does so itself.
func (w *Writer) Refuse(id gpu.ID) error {
	for _, h := range w.Stuck(id) {
		return stuckError(id, h)
	}
	return nil
}

func stuckError(id gpu.ID, h *sysfs.HungError) error {
	return gpu.Errorf(gpu.CodeStuck, "the driver has not answered since %s, when %q was written: %w",
		h.Since.UTC().Format(time.RFC3339), h.Path, h).
		WithHint("the write cannot be cancelled. If a VM or a program still holds the device, end it and the write comes back; else look at the kernel log. Nothing new is made or removed on this gpu until then").
		WithBlockers(gpu.Blocker{Kind: "gpu", ID: string(id), Note: "stuck"})
}

// Interrupted is the error of a call whose context ended before it did anything.
func Interrupted(ctx context.Context) error {
	return gpu.Errorf(gpu.CodeUnavailable, "it was interrupted: %w", context.Cause(ctx))
}

// Pause waits until the next look at the machine, or fails when ctx ends.
func Pause(ctx context.Context, tick *time.Ticker) error {
	select {
	case <-tick.C:
		return nil
	case <-ctx.Done():
		return Interrupted(ctx)
	}
}

// Wrap puts what was attempted in front of an error. One without a kind says that the
// machine could not be read, or did not answer in time.
func Wrap(err error, format string, args ...any) error {
	if errors.Is(err, sysfs.ErrTimeout) {
		return gpu.Wrap(err, gpu.CodeStuck, format, args...)
	}
	return gpu.Wrap(err, gpu.CodeUnavailable, format, args...)
}
