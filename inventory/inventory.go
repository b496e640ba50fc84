// Package inventory says what is there now: it merges what the backends and
// libvirt answer into one picture, and tells a listener when it may have changed.
// It keeps nothing between calls: the kernel and libvirt are asked each time.
package inventory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"gpuvirt/gpu"
)

// VMs is what the inventory needs of libvirt.
type VMs interface {
	VMs(ctx context.Context) ([]gpu.VM, error)
	VM(ctx context.Context, nameOrUUID string) (gpu.VM, error)
	VMHead(ctx context.Context, nameOrUUID string) (gpu.VMHead, error)
	// LibvirtVersion is that of the daemon that has the VMs: "11.3.0".
	LibvirtVersion(ctx context.Context) (string, error)
	Events() <-chan gpu.VMEvent
}

// Holders tells which processes hold a partition's device file. An error means
// that it is not known, never that nobody does.
type Holders interface {
	Holders(ctx context.Context, p gpu.Partition) ([]gpu.Holder, error)
	// GPUHolders tells which processes hold a GPU itself.
	GPUHolders(ctx context.Context, id gpu.ID) ([]gpu.Holder, error)
}

// Config is what New needs.
type Config struct {
	Backends map[gpu.Kind]gpu.Backend
	VMs      VMs
	Holders  Holders
	// Devices delivers the name of a device that the kernel says has changed;
	// an empty name means that events were missed. May be nil.
	Devices <-chan string
}

// Inventory answers what is there now.
type Inventory struct {
	cfg   Config
	kinds []gpu.Kind // sorted, so that answers have one order
}

// New returns an inventory over the given sources.
func New(cfg Config) *Inventory {
	return &Inventory{cfg: cfg, kinds: slices.Sorted(maps.Keys(cfg.Backends))}
}

// Backend returns the backend that makes partitions of a kind.
func (i *Inventory) Backend(kind gpu.Kind) (gpu.Backend, error) {
	b, ok := i.cfg.Backends[kind]
	if !ok {
		return nil, gpu.Errorf(gpu.CodeInvalid, "cannot handle partitions of kind %q: no backend for it on this host", kind)
	}
	return b, nil
}

// A Look is one GPU as it is now.
type Look struct {
	GPU      gpu.GPU
	Profiles []gpu.Profile // what it can make, over all kinds
	Err      error         // why it, or its profiles, could not be read wholly
}

// Looks reads all GPUs, one entry each, sorted by ID. The GPUs of a backend that
// fails are missing from the answer, and the error says so: the others are
// returned with it.
func (i *Inventory) Looks(ctx context.Context) ([]Look, error) {
	var ids []gpu.ID
	var errs []error
	for _, kind := range i.kinds {
		of, err := i.cfg.Backends[kind].IDs(ctx)
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot list gpus for %s: %w", kind, err))
		}
		ids = append(ids, of...)
	}
	slices.Sort(ids)
	var out []Look
	for _, id := range slices.Compact(ids) {
		if ctx.Err() != nil {
			return nil, gpu.Errorf(gpu.CodeUnavailable, "cannot list gpus: %w", context.Cause(ctx))
		}
		l, err := i.Look(ctx, id)
		switch {
		case err == nil:
			out = append(out, l)
		case gpu.CodeOf(err) != gpu.CodeNotFound: // else it went away while we looked
			errs = append(errs, err)
		}
	}
	return out, errors.Join(errs...)
}

// Look reads one GPU. The error is CodeNotFound where no backend knows it, and
// whatever kept one of them from telling otherwise.
func (i *Inventory) Look(ctx context.Context, id gpu.ID) (Look, error) {
	var l Look
	var errs []error
	for _, kind := range i.kinds {
		g, profiles, err := i.cfg.Backends[kind].Look(ctx, id)
		if g.ID == "" && gpu.CodeOf(err) == gpu.CodeNotFound {
			continue
		}
		if err != nil {
			errs = append(errs, err)
		}
		switch {
		case g.ID == "":
			continue
		case l.GPU.ID == "":
			l.GPU = g
		default:
			l.GPU = merge(l.GPU, g)
		}
		l.Profiles = append(l.Profiles, profiles...)
	}
	l.Err = errors.Join(errs...)
	switch {
	case l.GPU.ID != "":
		return l, nil
	case l.Err != nil:
		return Look{}, l.Err
	default:
		return Look{}, gpu.Errorf(gpu.CodeNotFound, "cannot find gpu %q", id)
	}
}

// GPUs is Looks without the profiles.
func (i *Inventory) GPUs(ctx context.Context) ([]gpu.GPU, error) {
	looks, err := i.Looks(ctx)
	out := make([]gpu.GPU, len(looks))
	for n, l := range looks {
		out[n] = l.GPU
	}
	return out, err
}

// merge adds to a GPU what a second backend knows of it.
func merge(a, b gpu.GPU) gpu.GPU {
	a.Kinds = append(slices.Clone(a.Kinds), b.Kinds...)
	slices.Sort(a.Kinds)
	a.Kinds = slices.Compact(a.Kinds)
	a.Conditions = append(slices.Clone(a.Conditions), b.Conditions...)
	if a.Model == "" || a.Model == a.Identity.Model { // no more than its ids
		a.Model = cmp.Or(b.Model, a.Model)
	}
	a.MemoryBytes = max(a.MemoryBytes, b.MemoryBytes)
	a.UUID = cmp.Or(a.UUID, b.UUID)
	if b.UUID != "" || a.Serial == "" { // the vendor's own library tells the board's, newer kernels the PCI function's
		a.Serial = cmp.Or(b.Serial, a.Serial)
	}
	a.Identity = gpu.Identity{
		Model: cmp.Or(a.Identity.Model, b.Identity.Model), UUID: cmp.Or(a.Identity.UUID, b.Identity.UUID),
		Serial: cmp.Or(a.Identity.Serial, b.Identity.Serial), Subsystem: cmp.Or(a.Identity.Subsystem, b.Identity.Subsystem),
	}
	a.Driver.Version = cmp.Or(a.Driver.Version, b.Driver.Version)
	if b.MIG.Capable {
		a.MIG = b.MIG
	}
	if b.SRIOV.TotalVFs > 0 {
		a.SRIOV = b.SRIOV
	}
	return a
}

// Partitions lists the partitions that are there on a GPU, foreign ones too.
func (i *Inventory) Partitions(ctx context.Context, g gpu.GPU) ([]gpu.Partition, error) {
	var out []gpu.Partition
	for _, kind := range g.Kinds {
		b, ok := i.cfg.Backends[kind]
		if !ok {
			continue
		}
		ps, err := b.Partitions(ctx, g.ID)
		if err != nil {
			return nil, err
		}
		out = append(out, ps...)
	}
	return out, nil
}

// Modes reads the modes of GPUs from the drivers that tell them. One that is not in the
// answer has none, or they are not known: the error says of some why.
func (i *Inventory) Modes(ctx context.Context, ids ...gpu.ID) (map[gpu.ID]gpu.Modes, error) {
	out := map[gpu.ID]gpu.Modes{}
	var errs []error
	for m := range i.monitors() {
		modes, err := m.Modes(ctx, ids...)
		maps.Copy(out, modes)
		errs = append(errs, err)
	}
	return out, errors.Join(errs...)
}

// VGPUTypes lists the types of vGPU that a GPU's driver knows, whatever fits now; none
// where no driver tells.
func (i *Inventory) VGPUTypes(ctx context.Context, id gpu.ID) ([]gpu.VGPUType, error) {
	for m := range i.monitors() {
		if types, err := m.VGPUTypes(ctx, id); gpu.CodeOf(err) != gpu.CodeNotFound {
			return types, err
		}
	}
	return nil, nil
}

// RunningVGPUs lists the vGPUs of a GPU that run in VMs, whoever made them; none where no
// driver tells.
func (i *Inventory) RunningVGPUs(ctx context.Context, id gpu.ID) ([]gpu.RunningVGPU, error) {
	for m := range i.monitors() {
		if running, err := m.RunningVGPUs(ctx, id); gpu.CodeOf(err) != gpu.CodeNotFound {
			return running, err
		}
	}
	return nil, nil
}

// monitors are the backends whose drivers tell more than how GPUs are cut.
func (i *Inventory) monitors() iter.Seq[gpu.Monitor] {
	return func(yield func(gpu.Monitor) bool) {
		for _, kind := range i.kinds {
			if m, ok := i.cfg.Backends[kind].(gpu.Monitor); ok && !yield(m) {
				return
			}
		}
	}
}

// VMs lists the VMs.
func (i *Inventory) VMs(ctx context.Context) ([]gpu.VM, error) { return i.cfg.VMs.VMs(ctx) }

// VM finds one by UUID or name.
func (i *Inventory) VM(ctx context.Context, nameOrUUID string) (gpu.VM, error) {
	return i.cfg.VMs.VM(ctx, nameOrUUID)
}

// VMHead is VM without devices, for a fraction of its cost.
func (i *Inventory) VMHead(ctx context.Context, nameOrUUID string) (gpu.VMHead, error) {
	return i.cfg.VMs.VMHead(ctx, nameOrUUID)
}

// LibvirtVersion returns the version of the libvirt that has the VMs.
func (i *Inventory) LibvirtVersion(ctx context.Context) (string, error) {
	return i.cfg.VMs.LibvirtVersion(ctx)
}

// Holders lists the VMs and processes that use a partition: every VM of vms that
// names it, or a function that goes with it, in its live or persistent definition, and
// every process that has its device file open. An error means unknown.
func (i *Inventory) Holders(ctx context.Context, p gpu.Partition, vms []gpu.VM) ([]gpu.Holder, error) {
	var out []gpu.Holder
	for _, vm := range vms {
		for _, d := range vm.Hostdevs {
			if Same(d.Handle, p.Handle) || d.Handle.PCIAddress != "" && slices.Contains(p.Companions, d.Handle.PCIAddress) {
				out = append(out, gpu.Holder{Kind: "vm", ID: vm.UUID, Name: vm.Name})
				break
			}
		}
	}
	procs, err := i.cfg.Holders.Holders(ctx, p)
	return append(out, procs...), err
}

// GPUHolders lists the processes that have a GPU itself open, not one of its
// partitions. An error means unknown.
func (i *Inventory) GPUHolders(ctx context.Context, id gpu.ID) ([]gpu.Holder, error) {
	return i.cfg.Holders.GPUHolders(ctx, id)
}

// Same reports whether two handles name the same device.
func Same(a, b gpu.Handle) bool {
	if a.MdevUUID != "" || b.MdevUUID != "" {
		return a.MdevUUID == b.MdevUUID
	}
	return a.PCIAddress != "" && a.PCIAddress == b.PCIAddress
}

// A Change says that something may look different now.
type Change struct {
	Device string       // the kernel's name of a device, for changes of devices
	VM     *gpu.VMEvent // for changes of VMs
}

// Follow calls fn for every change that the kernel or libvirt tells of, until ctx
// ends. Calls do not overlap.
func (i *Inventory) Follow(ctx context.Context, fn func(Change)) {
	devices, vms := i.cfg.Devices, i.cfg.VMs.Events()
	for {
		select {
		case <-ctx.Done():
			return
		case d, ok := <-devices:
			if !ok {
				devices = nil
				continue
			}
			fn(Change{Device: d})
		case e, ok := <-vms:
			if !ok {
				vms = nil
				continue
			}
			fn(Change{VM: &e})
		}
	}
}
