package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"gpuvirt/config"
	"gpuvirt/gpu"
	"gpuvirt/p2v"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/atrest"
)

// inspector opens the program that looks at servers.
func inspector(path string) func() (p2v.Inspector, error) {
	return func() (p2v.Inspector, error) {
		f, err := os.Open(path) //nolint:gosec // an administrator names it
		if err != nil {
			return nil, gpu.Errorf(gpu.CodeConflict, "cannot open the inspector: %w", err).WithHint("set p2v.inspector to where the command gpuvirt is")
		}
		info, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return program{f, info.Size()}, nil
	}
}

// diskReader opens disks of servers that are off, with the certificates of a folder of the
// credentials.
func diskReader(c config.Config, log *slog.Logger) func(context.Context, []atrest.Disk, string) (p2v.Server, error) {
	return func(ctx context.Context, disks []atrest.Disk, certificates string) (p2v.Server, error) {
		o := atrest.Options{Folders: c.Images, Log: log}
		if certificates != "" {
			o.NBD.Certificates = filepath.Join(c.Credentials, certificates)
		}
		s, err := atrest.Dial(ctx, disks, o)
		if err != nil {
			return nil, err // and no server that is nil
		}
		return s, nil
	}
}

// assumptions are what assessments and plans are made with, as the configuration says by now.
type assumptions struct {
	now atomic.Pointer[struct {
		policy  assess.Policy
		drivers assess.Drivers
	}]
}

// set takes them over, once at least before they are asked for.
func (a *assumptions) set(c config.Config) error {
	drivers, err := assess.BuiltInDrivers().Extend(c.Drivers...)
	if err != nil {
		return err
	}
	a.now.Store(&struct {
		policy  assess.Policy
		drivers assess.Drivers
	}{c.Policy, drivers})
	return nil
}

func (a *assumptions) policy() assess.Policy { return a.now.Load().policy }

func (a *assumptions) drivers() assess.Drivers { return a.now.Load().drivers }

// program is a file with its size.
type program struct {
	*os.File
	size int64
}

func (p program) Size() int64 { return p.size }

// hostFacts is what this host has for a VM beside GPUs, as far as it is known.
func hostFacts(mirrors string, tools assess.HostTools, log *slog.Logger) assess.HostState {
	state := assess.HostState{Threads: runtime.NumCPU(), Tools: tools}
	var err1, err2, err3 error
	state.MemoryBytes, err1 = memoryAvailable("/proc/meminfo")
	state.CPUFlags, err2 = cpuFlags("/proc/cpuinfo")
	state.DiskBytes, err3 = room(mirrors)
	if err := errors.Join(err1, err2, err3); err != nil {
		log.Warn("not all is known of what this host has for a VM", "err", err)
	}
	return state
}

// memoryAvailable is what a VM could have now, in bytes.
func memoryAvailable(path string) (uint64, error) {
	text, err := os.ReadFile(path) //nolint:gosec // of the kernel
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, found := strings.CutPrefix(line, "MemAvailable:"); found {
			kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 54)
			return kib << 10, err
		}
	}
	return 0, errors.New("the kernel does not tell how much memory is available")
}

// cpuFlags are those of the first processor.
func cpuFlags(path string) ([]string, error) {
	text, err := os.ReadFile(path) //nolint:gosec // of the kernel
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		if name, flags, found := strings.Cut(line, ":"); found && slices.Contains([]string{"flags", "Features"}, strings.TrimSpace(name)) {
			return strings.Fields(flags), nil
		}
	}
	return nil, errors.New("the kernel does not tell what its processor can do")
}

// room is what is free where a folder is, or will be, in bytes.
func room(folder string) (uint64, error) {
	for {
		var fsys unix.Statfs_t
		err := unix.Statfs(folder, &fsys)
		if errors.Is(err, fs.ErrNotExist) && folder != "/" {
			folder = filepath.Dir(folder)
			continue
		}
		if err != nil {
			return 0, &fs.PathError{Op: "statfs", Path: folder, Err: err}
		}
		return fsys.Bavail * uint64(fsys.Bsize), nil //nolint:gosec // it is a size
	}
}
