package mdev

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/pci"
	"gpuvirt/internal/sysfs"
	"gpuvirt/internal/writer"
)

// VendorOptions are the choices of a Vendor. The zero value is right for a host whose
// libvirt and kernel can give such a virtual function to a VM.
type VendorOptions struct {
	Log *slog.Logger // default: none
	// WriteTimeout is how long the driver may take over one write before the GPU counts
	// as stuck. Default 30 s.
	WriteTimeout time.Duration
	// ClearWait is how long the driver is told again to remove a vGPU that it will not
	// let go of yet: its own process for the vGPU outlives the VM by some seconds.
	// Default 10 s; negative: it is told once.
	ClearWait time.Duration
	// Unused is asked immediately before each time the driver is told to remove a vGPU;
	// its error keeps the vGPU, and is the answer. Default: whoever calls Remove has made
	// sure.
	Unused func(ctx context.Context, p gpu.Partition) error
	// Types lists all types that a GPU can have, which sysfs does not: it lists what
	// fits now, without sizes. Default: that is all that is known.
	Types func(ctx context.Context, id gpu.ID) ([]gpu.VGPUType, error)
}

// Vendor makes vGPUs on the virtual functions of a GPU whose driver is itself their
// VFIO driver: a function has one vGPU or none, and its file current_vgpu_type says
// which and takes another. It is a gpu.Backend, a gpu.Placer and a gpu.Stacker. A vGPU
// takes no name from us, so its place is its identity: its ID is
// "<gpu>/vgpu/<index of the function>".
//
// A GPU is a PCI device with virtual functions of which one at least has that file. One
// whose functions are not on is not listed: what its driver will offer on them is not
// known before.
//
// Of types it remembers how the driver calls those it has listed. On a full card it
// lists none, and sysfs does not say otherwise what an existing vGPU is.
type Vendor struct {
	kernel

	opts VendorOptions

	seen   sync.Mutex
	labels map[gpu.ID]map[uint32]string
}

var (
	_ gpu.Backend = (*Vendor)(nil)
	_ gpu.Placer  = (*Vendor)(nil)
	_ gpu.Stacker = (*Vendor)(nil)
)

// NewVendor returns a backend over a sysfs.
func NewVendor(fs Sysfs, opts VendorOptions) *Vendor {
	opts.Log = cmp.Or(opts.Log, slog.New(slog.DiscardHandler))
	opts.WriteTimeout = cmp.Or(opts.WriteTimeout, 30*time.Second)
	opts.ClearWait = cmp.Or(opts.ClearWait, 10*time.Second)
	return &Vendor{kernel: newKernel(fs, opts.Log), opts: opts, labels: map[gpu.ID]map[uint32]string{}}
}

// IDs lists the GPUs with such virtual functions, sorted. One that cannot be looked at
// is listed.
func (v *Vendor) IDs(context.Context) ([]gpu.ID, error) {
	names, err := v.fs.List(pci.Devices)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // no PCI
	}
	if err != nil {
		return nil, writer.Wrap(err, "cannot list gpus")
	}
	var out []gpu.ID
	for _, name := range names {
		is, err := v.isCard(name)
		if is || err != nil && !errors.Is(err, fs.ErrNotExist) {
			out = append(out, gpu.ID(name))
		}
	}
	slices.Sort(out)
	return out, nil
}

func (v *Vendor) isCard(name string) (bool, error) {
	dir, err := v.real(path.Join(pci.Devices, name))
	if err != nil {
		return false, err
	}
	all, err := v.functions(dir)
	if err != nil {
		return false, err
	}
	for _, f := range all {
		if ok, err := v.fs.Exists(path.Join(f.dir, currentFile)); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// Look reads a GPU and the types that it is known to have.
func (v *Vendor) Look(ctx context.Context, id gpu.ID) (gpu.GPU, []gpu.Profile, error) {
	g := gpu.GPU{ID: id, Kinds: []gpu.Kind{gpu.KindVGPU}, NUMANode: -1, Conditions: v.writes.Conditions(id)}
	c, err := v.card(id)
	if err == nil {
		err = pci.Describe(v.fs, c.dir, &g)
	}
	if err != nil {
		err = writer.Wrap(err, "cannot read gpu %q", id)
		if gpu.CodeOf(err) == gpu.CodeNotFound {
			return gpu.GPU{}, nil, err
		}
		g.Conditions = append(g.Conditions, gpu.Condition{Type: gpu.Unknown, Status: true, Reason: "NotReadable", Message: err.Error()})
		return g, nil, err
	}
	if err := v.catalogue(ctx, c); err != nil {
		g.Conditions = append(g.Conditions, gpu.Condition{
			Type: gpu.Degraded, Status: true, Reason: "TypesUnknown",
			Message: "the sizes of its vGPU types are not known, nor how many of them fit: " + err.Error(),
		})
	}
	names := c.names()
	if len(names) == 0 {
		g.Conditions = append(g.Conditions, gpu.Condition{
			Type: gpu.Degraded, Status: true, Reason: "NoTypes",
			Message: "the driver lists no vGPU types for it: in MIG mode it does so only while there is a GPU instance for them",
		})
	}
	g.Model = cmp.Or(commonModel(slices.Collect(maps.Values(names))), g.Model)
	profiles := make([]gpu.Profile, 0, len(names))
	for n := range names {
		profiles = append(profiles, c.profile(n, names[n], v.notCreatable(c)))
	}
	slices.SortFunc(profiles, func(a, b gpu.Profile) int { return cmp.Compare(a.Name, b.Name) })
	return g, profiles, nil
}

// notCreatable says why no vGPU can be made on a GPU or attached, empty if one can.
func (v *Vendor) notCreatable(c *card) string {
	if !slices.ContainsFunc(c.functions, func(f vf) bool { return f.vfio }) {
		return "the driver of its virtual functions does not offer them to VFIO: they have no " + vfioDir
	}
	return ""
}

// Partitions lists the vGPUs on a GPU, whoever made them, sorted by ID.
func (v *Vendor) Partitions(ctx context.Context, id gpu.ID) ([]gpu.Partition, error) {
	c, err := v.card(id)
	if err != nil {
		return nil, writer.Wrap(err, "cannot list the partitions of gpu %q", id)
	}
	out, err := v.partitions(ctx, c)
	if err != nil {
		return nil, writer.Wrap(err, "cannot list the partitions of gpu %q", id)
	}
	return out, nil
}

func (v *Vendor) partitions(ctx context.Context, c *card) ([]gpu.Partition, error) {
	out := []gpu.Partition{}
	for _, f := range c.functions {
		if f.current == 0 {
			continue
		}
		p, err := v.partition(ctx, c, f)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b gpu.Partition) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// partition is the vGPU of a function as a client sees it.
func (v *Vendor) partition(ctx context.Context, c *card, f vf) (gpu.Partition, error) {
	group, err := sysfs.Base(v.fs, path.Join(f.dir, "iommu_group"))
	if err != nil {
		return gpu.Partition{}, err
	}
	p := place(c.id, f)
	p.Profile, p.Native, p.DeviceAPI, p.IOMMUGroup = v.nameOf(ctx, c, f.current), nativeID(f.current), deviceAPI, group
	v.addParams(&p, f.dir)
	if !c.onInstance(f.current, p.Profile) {
		return p, nil
	}
	// The file is there for every vGPU; of one that shares the whole GPU it says nothing.
	text, err := v.fs.Read(path.Join(f.dir, instanceFile))
	if _, perr := strconv.ParseUint(text, 10, 31); err == nil && perr == nil {
		p.Instance = text
	}
	return p, nil
}

// nameOf returns the profile name of an existing vGPU's type. Only where sysfs does not
// tell are the driver's types asked for.
func (v *Vendor) nameOf(ctx context.Context, c *card, typ uint32) string {
	if _, ok := c.labels[typ]; !ok {
		_ = v.catalogue(ctx, c) // Look tells
	}
	return cmp.Or(c.names()[typ], typeDir(typ)) // the driver does not list it any more
}

// place is the partition on a function, without what it is.
func place(id gpu.ID, f vf) gpu.Partition {
	slot := strconv.Itoa(f.index)
	return gpu.Partition{
		ID: placePrefix(id) + slot, GPU: id, Parent: f.address(), Kind: gpu.KindVGPU, Slot: slot,
		Handle: gpu.Handle{PCIAddress: f.address()}, DeviceAPI: deviceAPI,
	}
}

func placePrefix(id gpu.ID) string { return string(id) + "/" + string(gpu.KindVGPU) + "/" }

// placeOf returns the index of the function that a partition is to be on.
func placeOf(p gpu.Partition) (int, error) {
	slot, ok := strings.CutPrefix(p.ID, placePrefix(p.GPU))
	index, err := strconv.ParseUint(slot, 10, 16)
	if !ok || err != nil || strconv.Itoa(int(index)) != slot {
		return 0, gpu.Errorf(gpu.CodeInvalid, "its id is not %q and the index of a virtual function", placePrefix(p.GPU))
	}
	if p.Slot != "" && p.Slot != slot {
		return 0, gpu.Errorf(gpu.CodeInvalid, "its id and its slot %q differ", p.Slot)
	}
	return int(index), nil
}
