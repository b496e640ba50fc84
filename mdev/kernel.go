package mdev

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/sysfs"
	"gpuvirt/internal/writer"
)

// kernel is how the backends of this package reach the kernel.
type kernel struct {
	fs     Sysfs
	writes *writer.Writer
}

func newKernel(fs Sysfs, log *slog.Logger) kernel { return kernel{fs: fs, writes: writer.New(fs, log)} }

// unwritten is the error of a write that the driver never answered and never
// will: it was not begun, or not by the kernel's rules.
func unwritten(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return writer.Interrupted(ctx)
	}
	return gpu.Errorf(gpu.CodeUnavailable, "the write failed: %w", err)
}

// pause waits until the next look at the machine, or fails when ctx ends.
func pause(ctx context.Context, tick *time.Ticker) error {
	select {
	case <-tick.C:
		return nil
	case <-ctx.Done():
		return writer.Interrupted(ctx)
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
