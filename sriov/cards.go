package sriov

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/internal/pci"
	"gpuvirt/internal/writer"
)

// Cards gives GPUs to VMs whole, each as one partition of kind card, with the functions
// of its slot: sound, and USB where it has that. It is a gpu.Backend and a gpu.Placer.
//
// The partition is there when VFIO has the GPU, whoever gave it that. Whether programs
// of the host use the GPU, or MIG has cut it, is for the caller to know.
type Cards struct{ bus }

var (
	_ gpu.Backend = (*Cards)(nil)
	_ gpu.Placer  = (*Cards)(nil)
)

// NewCards returns a backend over a sysfs.
func NewCards(fs Sysfs, opts Options) *Cards { return &Cards{newBus(fs, opts)} }

// The one place that a card has.
const cardSlot = "0"

// IDs lists all GPUs on the PCI bus, sorted.
func (b *Cards) IDs(context.Context) ([]gpu.ID, error) {
	all, err := b.gpus()
	if err != nil {
		return nil, writer.Wrap(err, "cannot list gpus")
	}
	out := make([]gpu.ID, len(all))
	for i, address := range all {
		out[i] = gpu.ID(address)
	}
	return out, nil
}

// cardProfile is the name of the profile of a GPU.
func cardProfile(f function) string { return "card-" + f.model() }

// Look reads a GPU and the one profile that it is.
func (b *Cards) Look(_ context.Context, id gpu.ID) (gpu.GPU, []gpu.Profile, error) {
	g := gpu.GPU{ID: id, Kinds: []gpu.Kind{gpu.KindCard}, NUMANode: -1, Conditions: b.w.Conditions(id)}
	f, err := b.find(id)
	if err == nil {
		err = pci.Describe(b.fs, f.dir, &g)
	}
	var p gpu.Profile
	if err == nil {
		p, err = b.profile(f)
	}
	if err != nil {
		return unread(g, b.gone(id, err))
	}
	return g, []gpu.Profile{p}, nil
}

func (b *Cards) profile(f function) (gpu.Profile, error) {
	p := gpu.Profile{
		Name: cardProfile(f), Kind: gpu.KindCard, GPU: gpu.ID(f.address), MaxInstances: 1, NativeID: f.model(),
		DeviceAPI: vfioPCI, Attributes: map[string]string{},
	}
	method, err := b.resetMethod(f)
	if err != nil {
		return p, err
	}
	if p.Attributes["reset_method"] = method; method == "none" {
		// A warning and no refusal: many such cards do well with one VM for as long as the
		// host runs, and it is their owner who knows.
		p.Attributes["note"] = "the kernel knows no way to reset this card: when a VM has had it, it may work again only after the host is rebooted"
	}
	with, err := b.slot(f)
	if err != nil {
		return p, err
	}
	for _, c := range with {
		p.Attributes["with"] = strings.TrimPrefix(p.Attributes["with"]+" "+c.address, " ")
	}
	if f.vfio {
		return p, nil
	}
	refusal, err := b.refusal(f, with)
	if err != nil {
		return p, err
	}
	if refusal != nil {
		p.NotCreatable = refusal.Detail
		return p, nil
	}
	p.Available = 1
	return p, nil
}

// slot lists the functions that go along with a GPU: the others of its device, which are
// reset with it and may have been made to work with it alone.
func (b *Cards) slot(f function) ([]function, error) {
	a, err := gpu.ParseAddress(f.address)
	if err != nil {
		return nil, err
	}
	var out []function
	for n := range uint8(8) {
		if n == a.Function {
			continue
		}
		other := a
		other.Function = n
		c, err := b.read(other.String())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !c.virtual && !c.bridge() && !b.isGPU(c) {
			out = append(out, c)
		}
	}
	return out, nil
}

// refusal says why a GPU cannot be given to a VM; nil if it can. With are the functions
// that go along.
func (b *Cards) refusal(f function, with []function) (*gpu.Error, error) {
	refuse := func(format string, args ...any) *gpu.Error {
		return gpu.Errorf(gpu.CodeProfileNotCreatable, format, args...)
	}
	if boot, err := b.fs.Read(path.Join(f.dir, "boot_vga")); err == nil && boot == "1" {
		return refuse("the host's own console is on it (boot_vga)"), nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, g := range append([]function{f}, with...) {
		if g.group == "" {
			return refuse("function %s: %s", g.address, noIOMMU), nil
		}
	}
	if _, num, err := b.counts(f); err != nil {
		return nil, err
	} else if num > 0 {
		return refuse("%d of its virtual functions are on, and would go with it: gpuvirt sriov set %s 0", num, f.address), nil
	}
	mdevs, err := b.mdevs(f)
	if err != nil {
		return nil, err
	}
	if len(mdevs) > 0 {
		e := refuse("%d mediated devices are on it", len(mdevs))
		for _, uuid := range mdevs {
			e.Blockers = append(e.Blockers, gpu.Blocker{Kind: "partition", ID: uuid})
		}
		return e, nil
	}
	goes := func(o function) bool {
		return slices.ContainsFunc(with, func(c function) bool { return c.address == o.address }) || o.address == f.address
	}
	for _, g := range append([]function{f}, with...) {
		others, err := b.others(g, goes)
		if err != nil {
			return nil, err
		}
		if len(others) > 0 {
			names, blockers := naming(others)
			return refuse("its IOMMU group %s has other devices, which the VM could reach: %s", g.group, names).WithBlockers(blockers...), nil
		}
	}
	return nil, nil
}

// mdevs lists the mediated devices on a GPU.
func (b *Cards) mdevs(f function) ([]string, error) {
	const dir = "bus/mdev/devices"
	uuids, err := b.fs.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // no such bus
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, uuid := range uuids {
		target, err := b.fs.Readlink(path.Join(dir, uuid))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if path.Dir(path.Join(dir, target)) == f.dir {
			out = append(out, uuid)
		}
	}
	return out, nil
}

func cardPartition(f function, with []function) gpu.Partition {
	id := gpu.ID(f.address)
	p := gpu.Partition{
		ID: partitionID(id, gpu.KindCard, cardSlot), GPU: id, Parent: f.address, Kind: gpu.KindCard, Profile: cardProfile(f),
		Native: f.model(), Slot: cardSlot, Handle: gpu.Handle{PCIAddress: f.address}, DeviceAPI: vfioPCI, IOMMUGroup: f.group,
	}
	for _, g := range with {
		p.Companions = append(p.Companions, g.address)
	}
	return p
}

// Partitions lists the card itself where VFIO has it.
func (b *Cards) Partitions(_ context.Context, id gpu.ID) ([]gpu.Partition, error) {
	f, err := b.find(id)
	var with []function
	if err == nil && f.vfio {
		with, err = b.slot(f)
	}
	if err != nil {
		return nil, writer.Wrap(b.gone(id, err), "cannot list the partitions of gpu %q", id)
	}
	if !f.vfio {
		return []gpu.Partition{}, nil
	}
	return []gpu.Partition{cardPartition(f, with)}, nil
}

// Place returns the card where nobody has it, and tells which drivers its functions have
// now.
func (b *Cards) Place(_ context.Context, id gpu.ID, profile string, taken []gpu.Handle) (gpu.Partition, error) {
	p, err := b.place(id, profile, taken)
	if err != nil {
		return gpu.Partition{}, writer.Wrap(b.gone(id, err), "cannot place %q on gpu %q", profile, id)
	}
	return p, nil
}

func (b *Cards) place(id gpu.ID, profile string, taken []gpu.Handle) (gpu.Partition, error) {
	f, with, err := b.card(id, profile)
	if err != nil {
		return gpu.Partition{}, err
	}
	if err := b.loaded(); err != nil {
		return gpu.Partition{}, err
	}
	out := cardPartition(f, with)
	if f.vfio {
		return gpu.Partition{}, gpu.Errorf(gpu.CodeNoCapacity, "driver %q has it already", f.driver).
			WithBlockers(gpu.Blocker{Kind: "partition", ID: out.ID, Name: out.Profile})
	}
	if refusal, err := b.refusal(f, with); err != nil {
		return gpu.Partition{}, err
	} else if refusal != nil {
		return gpu.Partition{}, refusal
	}
	out.FormerDrivers = map[string]string{}
	for _, g := range append([]function{f}, with...) {
		if slices.Contains(taken, gpu.Handle{PCIAddress: g.address}) {
			return gpu.Partition{}, gpu.Errorf(gpu.CodeNoCapacity, "the definition of a vm names its function %s", g.address)
		}
		out.FormerDrivers[g.address] = g.driver
	}
	return out, nil
}

// Adopt names all functions of a card that VFIO has: they go back with it. Which drivers they
// had is forgotten. A function that the host uses would be taken from it at the next boot.
func (b *Cards) Adopt(_ context.Context, p gpu.Partition) (gpu.Partition, error) {
	f, with, err := b.card(p.GPU, p.Profile)
	if err != nil {
		return p, writer.Wrap(b.gone(p.GPU, err), "cannot adopt partition %q", p.ID)
	}
	p.FormerDrivers = map[string]string{f.address: ""}
	for _, g := range with {
		if !g.vfio && g.driver != "" {
			return p, gpu.Errorf(gpu.CodeConflict, "cannot adopt partition %q: function %s, which goes with it, has driver %q, and a boot would take it from that", p.ID, g.address, g.driver).
				WithBlockers(gpu.Blocker{Kind: "driver", ID: g.driver}).WithHint("give VFIO that function as well")
		}
		p.FormerDrivers[g.address] = ""
	}
	return p, nil
}

// card reads a GPU and what goes along with it, if that is the profile.
func (b *Cards) card(id gpu.ID, profile string) (f function, with []function, err error) {
	if f, err = b.find(id); err != nil {
		return f, nil, err
	}
	if profile != "" && profile != cardProfile(f) {
		return f, nil, unknownProfile(profile, cardProfile(f))
	}
	with, err = b.slot(f)
	return f, with, err
}
