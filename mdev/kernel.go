package mdev

import (
	"context"
	"log/slog"

	"gpuvirt/gpu"
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
