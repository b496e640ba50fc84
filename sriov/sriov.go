// Package sriov gives PCI functions to VMs: a plain virtual function of a GPU (kind vf),
// or a GPU whole (kind card). It owns which PCI functions are GPUs, turning virtual
// functions on and off (PCI Express SR-IOV), and taking functions from their drivers for
// VFIO and giving them back.
//
// Everything is read afresh on each call. The only thing it remembers is which writes
// into the kernel have not come back.
//
// Virtual functions of NVIDIA's carry vGPUs and are never given to VFIO: that is for
// whoever makes vGPUs on them. Here they are only turned on and off.
package sriov

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/run"
	"gpuvirt/internal/sysfs"
	"gpuvirt/internal/writer"
)

// Sysfs is what is needed of sysfs; *sysfs.Root has it. Errors wrap syscall.Errno, and
// *sysfs.HungError where the kernel did not answer in time.
type Sysfs interface {
	Read(path string) (string, error)
	ReadEach(dir string, names ...string) ([]sysfs.File, error)
	List(dir string) ([]string, error)
	Readlink(path string) (string, error)
	Exists(path string) (bool, error)
	Write(ctx context.Context, path, value string) error
}

// DefaultTool is where NVIDIA's vGPU manager installs its own way to turn virtual
// functions on and off.
const DefaultTool = "/usr/lib/nvidia/sriov-manage"

const (
	pollEvery = 200 * time.Millisecond // how often a state is looked at that is waited for
	lockEvery = time.Second            // how often a lock is tried that somebody else has
	lockTries = 5                      // after the first
)

// Options are the choices of both backends. The zero value is right for a host, as far
// as it goes.
type Options struct {
	Log *slog.Logger // default: none
	// Devices are PCI ids that count as GPUs whatever their class says, as ParseDevice
	// returns them.
	Devices []string
	// WriteTimeout is how long a driver may take over one write before the GPU counts
	// as stuck. Default 30 s.
	WriteTimeout time.Duration
	// Unused is asked immediately before functions are taken from VFIO, of each with its
	// own Handle and IOMMUGroup; its error keeps all of them there, and is the answer.
	// Default: whoever calls Remove has made sure.
	Unused func(ctx context.Context, p gpu.Partition) error

	// Tool is NVIDIA's sriov-manage. Default DefaultTool.
	Tool string
	// ToolTimeout is how long it may take: it takes the driver off the GPU and binds it
	// again. Default 3 min.
	ToolTimeout time.Duration
	// Run runs the tool and returns what it wrote; the error is a *run.ExitError where it
	// did not exit with 0. Default: run.Program's.
	Run func(ctx context.Context, name string, args ...string) (string, error)
	// CloseNVML ends our own sessions with NVIDIA's library and lets none begin until
	// open is called: one that is open keeps NVIDIA's driver on the GPU. Default: we have
	// none.
	CloseNVML func(ctx context.Context) (open func(), err error)
	// UnbindLock has NVIDIA's driver promise that nobody opens a GPU any more, so that it
	// can be taken from it; it fails where somebody has it open. Release takes that back
	// where the GPU stays. See UnbindLock for one. Default: it is not asked.
	UnbindLock func(ctx context.Context, address string) (release func(), err error)
}

// ParseDevice reads a PCI id, "vendor:device", each of four hexadecimal digits in either
// case, and returns it as sysfs writes it, without 0x.
func ParseDevice(s string) (string, error) {
	vendor, device, ok := strings.Cut(strings.ToLower(s), ":")
	for _, part := range []string{vendor, device} {
		if _, err := strconv.ParseUint(part, 16, 16); err != nil || len(part) != 4 || !ok {
			return "", fmt.Errorf("cannot read pci id %q: want vendor:device in hexadecimal, as in 8086:56c0", s)
		}
	}
	return vendor + ":" + device, nil
}

// UnbindLock returns an Options.UnbindLock over the tree that is at /proc. The driver
// takes the write in any case: whether it gives the lock, only reading it back tells.
func UnbindLock(proc interface {
	Read(path string) (string, error)
	Write(ctx context.Context, path, value string) error
},
) func(ctx context.Context, address string) (release func(), err error) {
	return func(ctx context.Context, address string) (func(), error) {
		file := "driver/nvidia/gpus/" + address + "/unbindLock"
		release := func() {
			_ = proc.Write(context.WithoutCancel(ctx), file, "0") // a driver that refuses that has lost the lock
		}
		err := proc.Write(ctx, file, "1")
		if errors.Is(err, fs.ErrNotExist) {
			return func() {}, nil // a driver that has no such lock
		}
		if err != nil {
			return nil, err
		}
		got, err := proc.Read(file)
		if err == nil && got != "1" {
			err = gpu.Errorf(gpu.CodeGPUBusy, "NVIDIA's driver does not let go of it: somebody has it open").
				WithHint("monitoring (DCGM, nvidia-persistenced) and every program that uses the gpu have to end first")
		}
		return release, err
	}
}

// bus is what both backends are made of.
type bus struct {
	fs       Sysfs
	opts     Options
	declared map[string]bool
	w        *writer.Writer
}

func newBus(fs Sysfs, opts Options) bus {
	opts.Log = cmp.Or(opts.Log, slog.New(slog.DiscardHandler))
	opts.WriteTimeout = cmp.Or(opts.WriteTimeout, 30*time.Second)
	opts.ToolTimeout = cmp.Or(opts.ToolTimeout, 3*time.Minute)
	opts.Tool = cmp.Or(opts.Tool, DefaultTool)
	if opts.Run == nil {
		opts.Run = run.Program{}.Run
	}
	b := bus{fs: fs, opts: opts, declared: map[string]bool{}, w: writer.New(fs, opts.Log)}
	for _, id := range opts.Devices {
		b.declared[strings.ToLower(id)] = true
	}
	return b
}

// unread is the answer of a Look that could not read everything.
func unread(g gpu.GPU, err error) (gpu.GPU, []gpu.Profile, error) {
	err = writer.Wrap(err, "cannot read gpu %q", g.ID)
	if gpu.CodeOf(err) == gpu.CodeNotFound {
		return gpu.GPU{}, nil, err
	}
	g.Conditions = append(g.Conditions, gpu.Condition{Type: gpu.Unknown, Status: true, Reason: "NotReadable", Message: err.Error()})
	return g, nil, err
}

// await looks again and again until something is so, or fails when ctx ends.
func await(ctx context.Context, is func() (bool, error)) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		if ok, err := is(); ok || err != nil {
			return err
		}
		if err := writer.Pause(ctx, tick); err != nil {
			return err
		}
	}
}
