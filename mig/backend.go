package mig

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/pci"
)

// Options are the choices of a Backend. The zero value is right for a host.
type Options struct {
	Log *slog.Logger // default: none
	// Unused is asked immediately before a partition is removed; its error keeps the
	// partition, and is the answer. Default: whoever calls Remove has made sure.
	Unused func(ctx context.Context, p gpu.Partition) error
	// ReadTimeout and ChangeTimeout are how long the library may take over a question
	// and over a change before it counts as stuck. Default 1 and 2 min: the first question
	// after a while may wake every GPU of the host, and a change may take a reset.
	ReadTimeout, ChangeTimeout time.Duration
	// GlanceTimeout is how long somebody waits for what is left out where it takes longer.
	// Default 3 s.
	GlanceTimeout time.Duration
}

// Backend makes MIG partitions: GPU instances with their compute instances. It is a
// gpu.Backend. A partition takes no name from us, so its place is its identity: its ID
// is "<gpu>/mig/<first memory slice>".
//
// Each call has a session with the library of its own, and resolves GPUs and profiles
// anew: the same profile has other ids on other cards.
type Backend struct {
	lib    Library
	fs     pci.Sysfs
	opts   Options
	turn   chan struct{} // holds a token while somebody changes something: the driver takes one at a time
	absent atomic.Bool   // there was no driver when last looked for, and that was told
	glance chan struct{} // holds a token while a glance is on its way

	mu   sync.Mutex
	hung []*question // those that the library has not come back from in time
}

var _ gpu.Backend = (*Backend)(nil)

// NewBackend returns a backend over a library and a sysfs.
func NewBackend(lib Library, fs pci.Sysfs, opts Options) *Backend {
	opts.Log = cmp.Or(opts.Log, slog.New(slog.DiscardHandler))
	opts.ReadTimeout = cmp.Or(opts.ReadTimeout, time.Minute)
	opts.ChangeTimeout = cmp.Or(opts.ChangeTimeout, 2*time.Minute)
	opts.GlanceTimeout = cmp.Or(opts.GlanceTimeout, 3*time.Second)
	return &Backend{lib: lib, fs: fs, opts: opts, turn: make(chan struct{}, 1), glance: make(chan struct{}, 1)}
}

// open begins a session; without a driver the answer is CodeDriverMissing, which is
// told once until there is one.
func (b *Backend) open() (Session, error) {
	s, err := b.lib.Open()
	switch {
	case err == nil:
		if b.absent.Swap(false) {
			b.opts.Log.Info("the driver of NVIDIA is there: gpus can be cut by MIG")
		}
		return s, nil
	case errors.Is(err, ErrLibraryNotFound), errors.Is(err, ErrDriverNotLoaded):
		if !b.absent.Swap(true) {
			b.opts.Log.Info("no driver of NVIDIA: nothing is cut by MIG here", "code", gpu.CodeDriverMissing, "err", err)
		}
		return nil, gpu.Errorf(gpu.CodeDriverMissing, "the driver of NVIDIA is not there: %w", err).
			WithHint("install it, or load it: modprobe nvidia")
	case errors.Is(err, ErrVersionMismatch):
		return nil, gpu.Errorf(gpu.CodeDriverMismatch, "the library and the kernel module of NVIDIA's driver are of different versions: %w", err).
			WithHint("reload the module or restart the host; then restart gpuvirtd")
	case errors.Is(err, ErrFunctionNotFound): // of use for cards that are cut in another way
		if !b.absent.Swap(true) {
			b.opts.Log.Warn("NVIDIA's driver is too old: nothing is cut by MIG here", "err", err)
		}
		return nil, gpu.Errorf(gpu.CodeDriverMissing, "NVIDIA's driver is too old to be cut by MIG: %w", err)
	default:
		return nil, err
	}
}

const vendor = "0x10de" // NVIDIA, as sysfs has it

// failure puts what was attempted in front of an error. One without a kind says that
// the GPU or its driver does not answer as it should.
func failure(err error, format string, args ...any) error {
	return gpu.Wrap(err, gpu.CodeUnavailable, format, args...)
}

// IDs lists the GPUs that MIG can cut, sorted. Without a driver there are none. Where
// the library is of no use the error says so, and all GPUs of NVIDIA are listed: which
// of them MIG can cut is not known.
func (b *Backend) IDs(context.Context) ([]gpu.ID, error) {
	out, err := ask(b, b.opts.ReadTimeout, func(s Session) (out []gpu.ID, err error) {
		all, err := s.Addresses()
		for _, a := range all {
			d, err := s.Device(a)
			if err != nil {
				continue // it went away while we looked
			}
			if mode, err := d.Mode(); err != nil || mode.Capable {
				out = append(out, a.ID()) // one that cannot tell is listed, and Look says why
			}
		}
		return out, err
	}, nothing)
	if err != nil && gpu.CodeOf(err) != gpu.CodeDriverMissing {
		out, lerr := b.nvidiaGPUs()
		return out, failure(errors.Join(err, lerr), "cannot list gpus")
	}
	slices.Sort(out)
	return out, nil
}

// nvidiaGPUs lists the GPUs of NVIDIA as the kernel knows them, sorted: display
// controllers that are no virtual functions.
func (b *Backend) nvidiaGPUs() (out []gpu.ID, err error) {
	names, err := b.fs.List(pci.Devices)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, name := range names {
		dir := b.dir(gpu.ID(name))
		class, cerr := b.fs.Read(path.Join(dir, "class"))
		maker, verr := b.fs.Read(path.Join(dir, "vendor"))
		vf, ferr := b.fs.Exists(path.Join(dir, "physfn"))
		if cerr == nil && verr == nil && ferr == nil && maker == vendor && strings.HasPrefix(class, "0x03") && !vf {
			out = append(out, gpu.ID(name))
		}
	}
	slices.Sort(out)
	return out, err
}

// Look reads a GPU and what it can be cut into. Of one that MIG cannot cut it tells what
// the driver knows: such a GPU has no kind and no profiles.
func (b *Backend) Look(_ context.Context, id gpu.ID) (gpu.GPU, []gpu.Profile, error) {
	type look struct {
		gpu      gpu.GPU
		profiles []gpu.Profile
	}
	// What is known of it where that fails: without a kind, as nothing can be made.
	partly := gpu.GPU{ID: id, NUMANode: -1}
	l, err := onAny(b, id, b.opts.ReadTimeout, func(d Device) (look, error) {
		mode, err := d.Mode()
		if err != nil {
			return look{}, err
		}
		g := gpu.GPU{ID: id, NUMANode: -1, MIG: mode}
		// Not every driver shows a card in sysfs in the same moment.
		if err := pci.Describe(b.fs, b.dir(id), &g); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return look{g, nil}, err
		}
		facts, err := d.Facts()
		switch {
		case err != nil && !mode.Capable: // it is cut in another way, and others tell of it
			return look{}, notCut()
		case err != nil:
			g.Kinds = []gpu.Kind{gpu.KindMIG}
			return look{g, nil}, err
		}
		g.Vendor, g.Model, g.PCIAddress = "NVIDIA", strings.TrimPrefix(facts.Name, "NVIDIA "), string(id)
		g.UUID, g.Serial, g.MemoryBytes = facts.UUID, cmp.Or(facts.Serial, g.Serial), facts.MemoryBytes
		g.Identity.UUID, g.Identity.Serial = g.UUID, g.Serial
		if !mode.Capable {
			return look{g, nil}, nil
		}
		g.Kinds = []gpu.Kind{gpu.KindMIG}
		if g.MIG.Current != g.MIG.Pending {
			g.MIG.Needs = b.needs(id)
		}
		g.Conditions = modeConditions(g.MIG)
		all, err := d.Profiles()
		var profiles []gpu.Profile
		for _, p := range all {
			profiles = append(profiles, profileOf(id, p, g.MIG))
		}
		slices.SortFunc(profiles, func(a, b gpu.Profile) int { return cmp.Compare(a.Name, b.Name) })
		return look{g, profiles}, err
	}, nothing)
	if err == nil {
		return l.gpu, l.profiles, nil
	}
	err = failure(err, "cannot read gpu %q", id)
	if gpu.CodeOf(err) == gpu.CodeNotFound {
		return gpu.GPU{}, nil, err
	}
	if l.gpu.ID != "" {
		partly = l.gpu
	}
	bad := gpu.Condition{Type: gpu.Unknown, Status: true, Reason: "NotReadable", Message: err.Error()}
	if gpu.CodeOf(err) == gpu.CodeStuck {
		bad.Type, bad.Reason = gpu.Stuck, "LibraryHangs"
	}
	partly.Conditions = append(partly.Conditions, bad)
	return partly, nil, err
}

// dir is the device's directory: the entry of the bus is a link to it.
func (b *Backend) dir(id gpu.ID) string {
	entry := path.Join(pci.Devices, string(id))
	target, err := b.fs.Readlink(entry)
	if err != nil {
		return entry
	}
	return path.Join(path.Dir(entry), target)
}

const (
	needsReset  = "reset"
	needsReboot = "reboot"
)

// needs is what puts a mode in force that is stored: a GPU that the kernel knows no way
// to reset, as in some virtual machines, takes a reboot.
func (b *Backend) needs(id gpu.ID) string {
	if ways, err := b.fs.Read(path.Join(b.dir(id), "reset_method")); err == nil && ways == "" {
		return needsReboot
	}
	return needsReset
}

// modeConditions tells of a mode that waits (T36).
func modeConditions(m gpu.MIGMode) []gpu.Condition {
	if m.Needs == "" {
		return nil
	}
	reason, when := "NeedsReset", "the next reset of this gpu"
	if m.Needs == needsReboot {
		reason, when = "NeedsReboot", "a reboot"
	}
	word := map[bool]string{true: "on", false: "off"}
	return []gpu.Condition{{
		Type: gpu.Degraded, Status: true, Reason: reason,
		Message: "MIG is " + word[m.Current] + " and will be " + word[m.Pending] + " after " + when,
	}}
}

func profileOf(id gpu.ID, p DeviceProfile, mode gpu.MIGMode) gpu.Profile {
	out := gpu.Profile{
		Name: p.Name, Kind: gpu.KindMIG, GPU: id, MemoryBytes: p.MemoryMiB << 20, MaxInstances: p.Max, Available: p.Available,
		NativeID: strconv.Itoa(p.ID),
		Attributes: map[string]string{
			"compute_slices": strconv.Itoa(p.Engines.Compute), "memory_slices": strconv.Itoa(p.Size),
			"placements": strings.ReplaceAll(strings.Trim(fmt.Sprint(p.Starts), "[]"), " ", ","),
		},
	}
	for name, n := range map[string]int{"decoders": p.Engines.Decoders, "encoders": p.Engines.Encoders, "jpeg": p.Engines.JPEG, "ofa": p.Engines.OFA} {
		if n > 0 {
			out.Attributes[name] = strconv.Itoa(n)
		}
	}
	if !mode.Current {
		out.NotCreatable = "MIG is off on this gpu"
	}
	return out
}

// Partitions lists the GPU instances of a GPU with their compute instances, whoever
// made them.
func (b *Backend) Partitions(_ context.Context, id gpu.ID) ([]gpu.Partition, error) {
	out, err := read(b, id, func(d Device) ([]gpu.Partition, error) {
		c, err := cut(id, d)
		if err != nil {
			return nil, err
		}
		return c.partitions()
	})
	if err != nil {
		return nil, failure(err, "cannot list the partitions of gpu %q", id)
	}
	return out, nil
}

// A cutting is how a GPU is cut, within a session.
type cutting struct {
	id        gpu.ID
	device    Device
	profiles  []DeviceProfile
	instances []DeviceInstance
}

func cut(id gpu.ID, d Device) (*cutting, error) {
	c := &cutting{id: id, device: d}
	var err error
	if c.profiles, err = d.Profiles(); err != nil {
		return nil, err
	}
	c.instances, err = d.Instances()
	return c, err
}

// card is what the planner needs to know. The library does not say what a card has in
// all; no instance has more of anything than it.
func (c *cutting) card() *Card {
	var card Card
	for _, p := range c.profiles {
		for _, s := range p.Starts {
			card.Slices = max(card.Slices, s+p.Size)
		}
		e := &card.Engines
		e.Compute, e.Decoders, e.Encoders = max(e.Compute, p.Engines.Compute), max(e.Decoders, p.Engines.Decoders), max(e.Encoders, p.Engines.Encoders)
		e.JPEG, e.OFA = max(e.JPEG, p.Engines.JPEG), max(e.OFA, p.Engines.OFA)
		card.Profiles = append(card.Profiles, p.Profile)
	}
	return &card
}

// have is what is there, for the planner; notes says of those in use why, by their place.
func (c *cutting) have(notes map[int]string) []Instance {
	var out []Instance
	for _, in := range c.instances {
		out = append(out, Instance{ID: in.ID, Profile: c.name(in.ProfileID), Start: in.Start, Size: in.Size, InUse: notes[in.Start] != ""})
	}
	return out
}

// name is the name of a profile by its id, or the id itself where the driver does not
// list it any more.
func (c *cutting) name(profile int) string {
	for _, p := range c.profiles {
		if p.ID == profile {
			return p.Name
		}
	}
	return strconv.Itoa(profile)
}

// at finds the instance that begins at a place, or nil.
func (c *cutting) at(start int) *DeviceInstance {
	for i := range c.instances {
		if c.instances[i].Start == start {
			return &c.instances[i]
		}
	}
	return nil
}

// partitions lists them with the processes that the driver knows on each. Who has an
// instance open without computing is not among those.
func (c *cutting) partitions() ([]gpu.Partition, error) {
	processes, err := c.device.Processes()
	if err != nil {
		return nil, err
	}
	var out []gpu.Partition
	for _, in := range c.instances {
		p, err := c.partition(in)
		if err != nil {
			return nil, err
		}
		for _, q := range processes {
			if q.Instance == in.ID {
				p.Holders = append(p.Holders, gpu.Holder{Kind: "process", ID: strconv.Itoa(q.PID)})
			}
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b gpu.Partition) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// partition says what an instance is to the rest of gpuvirt.
func (c *cutting) partition(in DeviceInstance) (gpu.Partition, error) {
	slot := strconv.Itoa(in.Start)
	p := gpu.Partition{
		ID: PartitionID(c.id, slot), GPU: c.id, Parent: string(c.id), Kind: gpu.KindMIG, Slot: slot,
		Profile: c.name(in.ProfileID), Native: strconv.Itoa(in.ProfileID), Instance: strconv.Itoa(in.ID),
	}
	if len(in.Compute) == 0 {
		return p, nil
	}
	profiles, err := c.device.ComputeProfiles(in.ID)
	if err != nil {
		return p, err
	}
	for _, ci := range in.Compute {
		name := strconv.Itoa(ci.ProfileID)
		if i := slices.IndexFunc(profiles, func(p ComputeProfile) bool { return p.ID == ci.ProfileID }); i >= 0 {
			name = profiles[i].Name
		}
		p.Compute = append(p.Compute, gpu.Compute{Profile: name, Start: ci.Start, UUID: ci.UUID})
	}
	slices.SortFunc(p.Compute, func(a, b gpu.Compute) int { return cmp.Compare(a.Start, b.Start) })
	return p, nil
}

// PartitionID is the ID of the partition that begins at a place of a GPU.
func PartitionID(id gpu.ID, slot string) string {
	return string(id) + "/" + string(gpu.KindMIG) + "/" + slot
}
