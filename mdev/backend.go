// Package mdev makes typed virtual devices, through either interface that kernels have
// for them: on the mediated-device bus (Backend), and on virtual functions whose driver
// takes a type for each (Vendor). It owns the reading of both, the words in which drivers
// describe their types, and the making and removing of devices.
//
// On the bus there are NVIDIA vGPUs, on the physical function before Ampere and on the
// virtual functions since, Intel GVT-g, and whatever else registers there. Newer kernels
// have the vGPUs of the same cards in the other place. A profile has the same name in
// each, so that what was asked for outlives such a change. A virtual function is never a
// GPU: it belongs to its physical one.
//
// Everything is read afresh on each call. The only things it remembers are which writes
// into the kernel have not come back, and what Vendor says.
package mdev

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/sysfs"
	"gpuvirt/internal/writer"
)

// Sysfs is what the backend needs of sysfs; *sysfs.Root has it. Errors wrap
// syscall.Errno, and *sysfs.HungError where the kernel did not answer in time.
type Sysfs interface {
	Read(path string) (string, error)
	ReadEach(dir string, names ...string) ([]sysfs.File, error)
	List(dir string) ([]string, error)
	Readlink(path string) (string, error)
	Exists(path string) (bool, error)
	Write(ctx context.Context, path, value string) error
}

// Paths of the bus, and how often a state is looked at again while waiting for it.
const (
	busDir    = "class/mdev_bus"
	deviceDir = "bus/mdev/devices"
	typesDir  = "mdev_supported_types"

	availableFile = "available_instances"

	pollEvery = 200 * time.Millisecond
)

// Options are the choices of a Backend. The zero value is right for a host.
type Options struct {
	Log *slog.Logger // default: none
	// WriteTimeout is how long the driver may take over one device before the GPU
	// counts as stuck. Default 30 s.
	WriteTimeout time.Duration
	// VanishWait is how long an NVIDIA driver is given to remove a device by itself
	// before it is told to: some do after the VM stops, and telling them at the same
	// time leaks. Default 10 s, as long as others wait; negative: not at all.
	VanishWait time.Duration
	// Unused is asked immediately before a device is removed; its error keeps the
	// device, and is the answer. Default: whoever calls Remove has made sure.
	Unused func(ctx context.Context, p gpu.Partition) error
}

// Backend makes mdevs. It is a gpu.Backend.
type Backend struct {
	kernel

	opts Options
}

var _ gpu.Backend = (*Backend)(nil)

// New returns a backend over a sysfs.
func New(fs Sysfs, opts Options) *Backend {
	opts.Log = cmp.Or(opts.Log, slog.New(slog.DiscardHandler))
	opts.WriteTimeout = cmp.Or(opts.WriteTimeout, 30*time.Second)
	opts.VanishWait = cmp.Or(opts.VanishWait, 10*time.Second)
	return &Backend{kernel: newKernel(fs, opts.Log), opts: opts}
}

// IDs lists the parents on the bus, sorted.
func (b *Backend) IDs(context.Context) ([]gpu.ID, error) {
	ids, err := b.ids()
	if err != nil {
		return nil, gpu.Errorf(gpu.CodeUnavailable, "cannot list gpus: %w", err)
	}
	return ids, nil
}

// Look reads a GPU and its types, in one pass: profiles are sorted by name.
func (b *Backend) Look(_ context.Context, id gpu.ID) (gpu.GPU, []gpu.Profile, error) {
	g := gpu.GPU{ID: id, Kinds: []gpu.Kind{gpu.KindMdev}, NUMANode: -1, Conditions: b.writes.Conditions(id)}
	p, err := b.parent(id)
	var types []mdevType
	if err == nil {
		types, err = b.types(p)
	}
	if err == nil {
		err = b.describe(p, &g, types)
	}
	if err == nil {
		profiles := make([]gpu.Profile, len(types))
		for i, t := range types {
			profiles[i] = t.profile(p)
		}
		slices.SortFunc(profiles, func(a, b gpu.Profile) int { return cmp.Compare(a.Name, b.Name) })
		return g, profiles, nil
	}
	if p.dir != "" {
		err = b.gone(p, err)
	}
	err = writer.Wrap(err, "cannot read gpu %q", id)
	if gpu.CodeOf(err) == gpu.CodeNotFound {
		return gpu.GPU{}, nil, err
	}
	g.Conditions = append(g.Conditions, gpu.Condition{Type: gpu.Unknown, Status: true, Reason: "NotReadable", Message: err.Error()})
	return g, nil, err
}

// Partitions lists the devices on a GPU, whoever made them, sorted by UUID.
func (b *Backend) Partitions(_ context.Context, id gpu.ID) ([]gpu.Partition, error) {
	p, err := b.parent(id)
	if err != nil {
		return nil, writer.Wrap(err, "cannot list the partitions of gpu %q", id)
	}
	out, err := b.devices(p)
	if err != nil {
		return nil, writer.Wrap(b.gone(p, err), "cannot list the partitions of gpu %q", id)
	}
	return out, nil
}
