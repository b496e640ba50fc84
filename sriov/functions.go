package sriov

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/internal/pci"
	"gpuvirt/internal/sysfs"
	"gpuvirt/internal/writer"
)

// Functions gives plain virtual functions to VMs, one as a partition of kind vf, and
// turns those of any GPU on and off. It is a gpu.Backend, a gpu.Placer and a
// gpu.Virtualizer.
//
// A partition is there when VFIO has the function, whoever gave it that. It lists the
// GPUs that can have virtual functions, unless these carry vGPUs.
type Functions struct{ bus }

var (
	_ gpu.Backend     = (*Functions)(nil)
	_ gpu.Placer      = (*Functions)(nil)
	_ gpu.Virtualizer = (*Functions)(nil)
)

// NewFunctions returns a backend over a sysfs.
func NewFunctions(fs Sysfs, opts Options) *Functions { return &Functions{newBus(fs, opts)} }

// A carrier is a GPU with plain virtual functions.
type carrier struct {
	function
	total, num int
	vfDevice   string
	virtuals   []function
}

// profile is the name of what its virtual functions are.
func (c carrier) profile() string { return "vf-" + c.vendor + ":" + c.vfDevice }

func (c carrier) id() gpu.ID { return gpu.ID(c.address) }

// IDs lists the GPUs that can have plain virtual functions, sorted.
func (b *Functions) IDs(context.Context) ([]gpu.ID, error) {
	all, err := b.gpus()
	if err != nil {
		return nil, writer.Wrap(err, "cannot list gpus")
	}
	var out []gpu.ID
	for _, address := range all {
		if ok, err := b.fs.Exists(path.Join(pci.Devices, address, "sriov_totalvfs")); err == nil && !ok {
			continue // most have none
		}
		_, err := b.carrier(gpu.ID(address))
		if code := gpu.CodeOf(err); err == nil || code != gpu.CodeNotFound {
			out = append(out, gpu.ID(address)) // one that cannot be read is listed, too
		}
	}
	return out, nil
}

// carrier reads a GPU with its virtual functions.
func (b *Functions) carrier(id gpu.ID) (c carrier, err error) {
	none := gpu.Errorf(gpu.CodeNotFound, "there is no such gpu with plain virtual functions")
	if c.function, err = b.find(id); err != nil {
		return c, err
	}
	if c.total, c.num, err = b.counts(c.function); err != nil {
		return c, b.gone(id, err)
	}
	// Those of NVIDIA's cards come from its driver and carry vGPUs, also when that driver
	// has not come up yet.
	if c.total == 0 || c.vendor == nvidiaVendor {
		return c, none
	}
	if c.virtuals, err = b.bus.virtuals(c.function); err != nil {
		return c, b.gone(id, err)
	}
	for _, vf := range c.virtuals {
		for _, sign := range []string{"nvidia", "mdev_supported_types"} {
			carries, err := b.fs.Exists(path.Join(vf.dir, sign))
			if err != nil {
				return c, err
			}
			if carries {
				return c, none
			}
		}
	}
	text, err := b.fs.Read(path.Join(c.dir, "sriov_vf_device"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return c, err
	}
	if c.vfDevice = strings.TrimPrefix(text, "0x"); len(c.vfDevice) < 4 { // sysfs leaves zeros in front out
		c.vfDevice = strings.Repeat("0", 4-len(c.vfDevice)) + c.vfDevice
	}
	if len(c.virtuals) > 0 {
		c.vfDevice = c.virtuals[0].device
	}
	return c, nil
}

// Look reads a GPU and the one profile that its virtual functions have.
func (b *Functions) Look(_ context.Context, id gpu.ID) (gpu.GPU, []gpu.Profile, error) {
	g := gpu.GPU{ID: id, Kinds: []gpu.Kind{gpu.KindVF}, NUMANode: -1, Conditions: b.w.Conditions(id)}
	c, err := b.carrier(id)
	if err == nil {
		err = pci.Describe(b.fs, c.dir, &g)
	}
	var p gpu.Profile
	if err == nil {
		p, err = b.profile(c)
	}
	if err != nil {
		return unread(g, b.gone(id, err))
	}
	return g, []gpu.Profile{p}, nil
}

// profile is what a GPU offers. Where it offers nothing there is a reason, as the number
// alone would look like a GPU that is full.
func (b *Functions) profile(c carrier) (gpu.Profile, error) {
	p := gpu.Profile{
		Name: c.profile(), Kind: gpu.KindVF, GPU: c.id(), MaxInstances: c.total, NativeID: c.vendor + ":" + c.vfDevice,
		DeviceAPI: vfioPCI, Attributes: map[string]string{"num_vfs": strconv.Itoa(c.num)},
	}
	if len(c.virtuals) > 0 {
		method, err := b.resetMethod(c.virtuals[0])
		if err != nil {
			return p, err
		}
		p.Attributes["reset_method"] = method
	}
	free, why, err := b.free(c)
	switch {
	case err != nil:
		return p, err
	case c.vfio:
		p.NotCreatable = "the gpu itself is taken for VMs, whole"
	case len(c.virtuals) == 0 && c.driver == "":
		p.NotCreatable = "no driver is bound to the gpu"
	case len(c.virtuals) == 0:
		p.NotCreatable = fmt.Sprintf("no virtual functions are on: gpuvirt sriov set %s <n>", c.address)
	case len(free) == 0 && why != nil:
		p.NotCreatable = why.Error()
	}
	p.Available = len(free)
	return p, nil
}

// resetMethod is how the kernel can reset a function, in the order in which it tries.
func (b *bus) resetMethod(f function) (string, error) {
	text, err := b.fs.Read(path.Join(f.dir, "reset_method"))
	text, err = sysfs.File{Text: text, Err: err}.Optional()
	if text == "" {
		text = "none"
	}
	return text, err
}

// free lists the virtual functions that can be taken, by index, and why one cannot that
// nobody has taken.
func (b *Functions) free(c carrier) (out []function, why, err error) {
	for _, vf := range c.virtuals {
		if vf.vfio {
			continue
		}
		refusal, err := b.refusal(vf)
		switch {
		case err != nil:
			return nil, nil, err
		case refusal != nil:
			why = refusal
		default:
			out = append(out, vf)
		}
	}
	return out, why, nil
}

// refusal says why a virtual function cannot be given to a VM; nil if it can. Whoever has
// a part of an IOMMU group has all of it, so nothing in it may belong to the host.
func (b *Functions) refusal(vf function) (refusal, err error) {
	if vf.group == "" {
		return gpu.Errorf(gpu.CodeProfileNotCreatable, "virtual function %s: %s", vf.address, noIOMMU), nil
	}
	others, err := b.others(vf, func(o function) bool { return o.vfio || o.driver == "" })
	if err != nil || len(others) == 0 {
		return nil, err
	}
	names, blockers := naming(others)
	return gpu.Errorf(gpu.CodeProfileNotCreatable, "virtual function %s: its IOMMU group %s has devices that the host uses: %s",
		vf.address, vf.group, names).WithBlockers(blockers...), nil
}

func partitionID(id gpu.ID, kind gpu.Kind, slot string) string {
	return string(id) + "/" + string(kind) + "/" + slot
}

func (c carrier) partition(vf function) gpu.Partition {
	slot := strconv.Itoa(vf.index)
	return gpu.Partition{
		ID: partitionID(c.id(), gpu.KindVF, slot), GPU: c.id(), Parent: vf.address, Kind: gpu.KindVF, Profile: c.profile(),
		Native: vf.model(), Slot: slot, Handle: gpu.Handle{PCIAddress: vf.address}, DeviceAPI: vfioPCI, IOMMUGroup: vf.group,
	}
}

// Partitions lists the virtual functions that VFIO has, sorted by ID.
func (b *Functions) Partitions(_ context.Context, id gpu.ID) ([]gpu.Partition, error) {
	c, err := b.carrier(id)
	if err != nil {
		return nil, writer.Wrap(b.gone(id, err), "cannot list the partitions of gpu %q", id)
	}
	out := []gpu.Partition{}
	for _, vf := range c.virtuals {
		if vf.vfio {
			out = append(out, c.partition(vf))
		}
	}
	slices.SortFunc(out, func(a, b gpu.Partition) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// Place chooses the first virtual function that nobody has, and tells which driver it
// has now.
func (b *Functions) Place(_ context.Context, id gpu.ID, profile string, taken []gpu.Handle) (gpu.Partition, error) {
	p, err := b.place(id, profile, taken)
	if err != nil {
		return gpu.Partition{}, writer.Wrap(b.gone(id, err), "cannot place %q on gpu %q", profile, id)
	}
	return p, nil
}

func (b *Functions) place(id gpu.ID, profile string, taken []gpu.Handle) (gpu.Partition, error) {
	c, err := b.carrier(id)
	if err != nil {
		return gpu.Partition{}, err
	}
	if profile != c.profile() {
		return gpu.Partition{}, unknownProfile(profile, c.profile())
	}
	if err := b.loaded(); err != nil {
		return gpu.Partition{}, err
	}
	p, err := b.profile(c)
	if err != nil {
		return gpu.Partition{}, err
	}
	if p.NotCreatable != "" {
		return gpu.Partition{}, gpu.Errorf(gpu.CodeProfileNotCreatable, "%s", p.NotCreatable)
	}
	free, _, err := b.free(c)
	if err != nil {
		return gpu.Partition{}, err
	}
	for _, vf := range free {
		if !slices.Contains(taken, gpu.Handle{PCIAddress: vf.address}) {
			out := c.partition(vf)
			out.FormerDrivers = map[string]string{vf.address: vf.driver}
			return out, nil
		}
	}
	return gpu.Partition{}, c.full()
}

// full says that no virtual function is free.
func (c carrier) full() error {
	err := gpu.Errorf(gpu.CodeNoCapacity, "all %d virtual functions that are on are taken", len(c.virtuals))
	if c.num < c.total {
		err.Hint = fmt.Sprintf("%d of %d are on; the number can be changed when nothing uses them", c.num, c.total)
	}
	for _, vf := range c.virtuals {
		if vf.vfio {
			p := c.partition(vf)
			err.Blockers = append(err.Blockers, gpu.Blocker{Kind: "partition", ID: p.ID, Name: p.Profile})
		}
	}
	return err
}

func unknownProfile(want, have string) error {
	return gpu.Errorf(gpu.CodeProfileUnknown, "it has no profile %q", want).WithHint("it has %s", have)
}

// Functions lists the virtual functions that a GPU has, by index, whatever they carry.
func (b *Functions) Functions(_ context.Context, id gpu.ID) ([]gpu.Function, error) {
	pf, err := b.find(id)
	var all []function
	if err == nil {
		all, err = b.virtuals(pf)
	}
	if err != nil {
		return nil, writer.Wrap(b.gone(id, err), "cannot list the virtual functions of gpu %q", id)
	}
	out := make([]gpu.Function, len(all))
	for i, f := range all {
		out[i] = gpu.Function{Index: f.index, PCIAddress: f.address, IOMMUGroup: f.group, Driver: f.driver}
	}
	return out, nil
}
