package sriov

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/run"
	"gpuvirt/internal/sysfs"
	"gpuvirt/internal/writer"
)

// manage has NVIDIA's own tool turn the virtual functions of a card on or off. It takes
// the driver off the card for that, and what it says of how that went is not what counts:
// it has been seen to succeed and do nothing (T06), to fail and have done it, and to
// leave the card without a driver (T07).
func (b *Functions) manage(ctx context.Context, pf function, n int) error {
	open, err := b.closeNVML(ctx)
	if err != nil {
		return err
	}
	defer open()
	before, err := b.overrideOf(pf)
	if err != nil {
		return err
	}
	out, err := b.runTool(ctx, pf, n > 0)
	if errors.Is(err, fs.ErrNotExist) {
		return gpu.Errorf(gpu.CodeDriverMissing, "NVIDIA's vGPU manager is not installed: %w", err).
			WithHint("the tool comes with the host driver for vGPU; the driver for computing alone has no virtual functions")
	}
	if derr := b.keepDriver(ctx, pf, before); derr != nil {
		if err != nil {
			return fmt.Errorf("%w; and %w", err, derr)
		}
		return derr
	}
	if err != nil {
		// Not waited for: what is not there now was not made.
		if have, herr := b.have(pf); herr == nil && have == n {
			b.opts.Log.WarnContext(ctx, "NVIDIA's tool failed and has done it", "gpu", pf.address, "output", out, "err", err)
			return nil
		}
		return err
	}
	err = b.awaitVFs(ctx, pf, n)
	if gpu.CodeOf(err) == gpu.CodeUnavailable {
		err = gpu.Wrap(err, gpu.CodeUnavailable, "NVIDIA's tool reported success, and it is not so")
	}
	return err
}

// runTool runs the tool, again where somebody has the card open: monitoring lets go of it
// every now and then.
func (b *Functions) runTool(ctx context.Context, pf function, on bool) (string, error) {
	what := "-d"
	if on {
		what = "-e"
	}
	limit, cancel := context.WithTimeout(ctx, b.opts.ToolTimeout)
	defer cancel()
	tick := time.NewTicker(lockEvery)
	defer tick.Stop()
	for try := 0; ; try++ {
		out, err := b.opts.Run(limit, b.opts.Tool, what, pf.address)
		if err == nil {
			return out, nil
		}
		if _, ran := errors.AsType[*run.ExitError](err); !ran || !strings.Contains(out, "unbindLock") {
			return out, toolError(limit, err)
		}
		if try == lockTries {
			return out, gpu.Errorf(gpu.CodeGPUBusy, "somebody has the gpu open, and NVIDIA's driver stays on it: %w", err).
				WithHint("monitoring (DCGM, nvidia-persistenced) and every program that uses the gpu have to end first")
		}
		if err := writer.Pause(limit, tick); err != nil {
			return out, err
		}
	}
}

func toolError(limit context.Context, err error) error {
	if limit.Err() != nil {
		return gpu.Errorf(gpu.CodeUnavailable, "NVIDIA's tool was stopped before its end: %w", err)
	}
	return gpu.Errorf(gpu.CodeUnavailable, "NVIDIA's tool failed: %w", err).WithHint("the kernel log may say more")
}

// keepDriver gives the card its driver back where the tool has not. The error says that
// this was needed, because what the tool was to do is then not done in whole.
func (b *Functions) keepDriver(ctx context.Context, pf function, override string) error {
	now, err := sysfs.Base(b.fs, pf.dir+"/driver")
	if err != nil || now == pf.driver {
		return err
	}
	if err := b.drive(ctx, gpu.ID(pf.address), pf.address, goal{driver: pf.driver, override: override}); err != nil {
		return gpu.Wrap(err, gpu.CodeUnavailable, "it left the gpu without its driver %q, which cannot be bound again", pf.driver)
	}
	b.opts.Log.WarnContext(ctx, "NVIDIA's tool left the gpu without its driver, which is bound again", "gpu", pf.address)
	return gpu.Errorf(gpu.CodeUnavailable, "it left the gpu without its driver %q, which is bound again", pf.driver)
}
