package sim

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/mig"
	"gpuvirt/mig/cards"
)

// NVML stands in for NVIDIA's library on a simulated host: it has the cards with that
// vendor, and refuses what hardware refuses. It is a mig.Library.
type NVML struct{ h *Host }

// A migState is how a card is cut now.
type migState struct {
	Current, Pending bool
	Instances        []migInstance
	Clients          []mig.Process
	Watchers         []hold // have it open without computing: the library does not list them
	Made             int    // compute instances since the host was set up: each has another UUID
	Resets           int
}

type migInstance struct {
	ID, Start int
	Profile   string
	Compute   []mig.ComputeInstance // ProfileID is the index
}

// Call is one call of the library that changes something, and what became of it.
type Call struct {
	Card string // PCI address
	Name string // as in nvml.h, without "nvml" and what it is called on
	Args string
	Err  error
}

// String is the call with its answer.
func (c Call) String() string { return fmt.Sprintf("%s %s(%s): %v", c.Card, c.Name, c.Args, c.Err) }

// Calls returns the changing calls of this process so far.
func (n *NVML) Calls() []Call {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	return slices.Clone(n.h.calledNVML)
}

// Sessions returns how many sessions of this process are open.
func (n *NVML) Sessions() int {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	return n.h.sessions
}

// Compute makes a process use a GPU instance, or with -1 the GPU beside its
// instances, until Idle.
func (h *Host) Compute(card string, p mig.Process) error {
	return h.changeMIG(card, func(s *migState) { s.Clients = append(s.Clients, p) })
}

// Watch makes a process have a GPU open without computing on it, as a monitor does,
// until Idle. The library says that the GPU is in use, and not by whom.
func (h *Host) Watch(card string, pid int, name string) error {
	return h.changeMIG(card, func(s *migState) { s.Watchers = append(s.Watchers, hold{PID: pid, Name: name}) })
}

// Idle ends every process on a GPU.
func (h *Host) Idle(card string) error {
	return h.changeMIG(card, func(s *migState) { s.Clients, s.Watchers = nil, nil })
}

func (h *Host) changeMIG(card string, f func(*migState)) error {
	return h.update(func(s *state) ([]string, error) {
		c := s.card(card)
		if c == nil || c.PCI == nil || c.PCI.Vendor != nvidia {
			return nil, fmt.Errorf("cannot change card %q: NVIDIA's driver has none there", card)
		}
		f(s.mig(card))
		return nil, nil
	})
}

func (s *state) mig(card string) *migState {
	if s.MIG == nil {
		s.MIG = map[string]*migState{}
	}
	if s.MIG[card] == nil {
		s.MIG[card] = &migState{}
	}
	return s.MIG[card]
}

// forget is what a reboot leaves of MIG: the mode, on cards that keep it.
func (s *state) forget() {
	for name, m := range s.MIG {
		m.Instances, m.Clients, m.Watchers = nil, nil, nil
		if c := s.card(name); c != nil && c.MIG != nil && c.MIG.KeepsMode {
			m.Current = m.Pending
		} else {
			m.Current, m.Pending = false, false
		}
	}
}

const nvidia = "0x10de"

// Open begins a session. On a host without a card of NVIDIA's there is no library.
func (n *NVML) Open() (mig.Session, error) {
	if err := n.h.faultNVML("Init"); err != nil {
		return nil, err
	}
	err := n.h.view(func(s *state) error {
		if !slices.ContainsFunc(s.Cards, func(c Card) bool { return s.present(&c) }) {
			return mig.ErrLibraryNotFound
		}
		n.h.sessions++
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &session{h: n.h}, nil
}

// present reports whether NVIDIA's driver has a card.
func (s *state) present(c *Card) bool {
	return c.PCI != nil && c.PCI.Vendor == nvidia && s.driven(c)
}

type session struct{ h *Host }

func (s *session) Close() error {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	s.h.sessions--
	return nil
}

func (s *session) DriverVersion() (v string, err error) {
	err = s.h.view(func(st *state) error {
		for i := range st.Cards {
			if st.present(&st.Cards[i]) {
				v = cmp.Or(v, st.Cards[i].DriverVersion)
			}
		}
		return nil
	})
	return v, err
}

func (s *session) Addresses() (out []gpu.Address, err error) {
	err = s.h.view(func(st *state) error {
		for i := range st.Cards {
			if !st.present(&st.Cards[i]) {
				continue
			}
			a, err := gpu.ParseAddress(st.Cards[i].Name)
			if err != nil {
				return err
			}
			out = append(out, a)
		}
		return nil
	})
	return out, err
}

func (s *session) Device(a gpu.Address) (mig.Device, error) {
	d := &migDevice{h: s.h, card: a.String()}
	return d, d.view(func(_ *Card, m *migState) error { d.resets = m.Resets; return nil })
}

// A migDevice is a handle: it is void after its GPU was reset.
type migDevice struct {
	h      *Host
	card   string
	resets int
}

func (d *migDevice) of(s *state, f func(*Card, *migState) error) error {
	c := s.card(d.card)
	if c == nil || !s.present(c) {
		return mig.ErrNotFound
	}
	m := s.MIG[d.card]
	if m == nil {
		m = &migState{}
	}
	return f(c, m)
}

func (d *migDevice) view(f func(*Card, *migState) error) error {
	return d.h.view(func(s *state) error { return d.of(s, f) })
}

// read asks a card that MIG can cut.
func (d *migDevice) read(f func(*cards.Model, *migState) error) error {
	return d.view(func(c *Card, m *migState) error { return d.check(c, m, f) })
}

func (d *migDevice) check(c *Card, m *migState, f func(*cards.Model, *migState) error) error {
	if c.MIG == nil {
		return mig.ErrNotSupported
	}
	if m.Resets != d.resets {
		return mig.ErrInvalidArgument
	}
	return f(c.MIG.model(), m)
}

// call changes something of MIG.
func (d *migDevice) call(name string, args []any, f func(*Card, *cards.Model, *migState) error) error {
	return d.do(name, args, func(_ *state, c *Card, m *migState) error {
		return d.check(c, m, func(model *cards.Model, m *migState) error { return f(c, model, m) })
	})
}

// do changes something, and is remembered.
func (d *migDevice) do(name string, args []any, f func(*state, *Card, *migState) error) error {
	if !d.h.begin() {
		return os.ErrClosed
	}
	defer d.h.calls.Done()
	done := Call{Card: d.card, Name: name, Args: strings.TrimSuffix(fmt.Sprintln(args...), "\n")}
	d.h.watch(done)
	err := d.h.faultNVML(name)
	if err == nil {
		err = d.h.update(func(s *state) ([]string, error) {
			s.mig(d.card)
			return []string{d.card}, d.of(s, func(c *Card, m *migState) error { return f(s, c, m) })
		})
	}
	done.Err = err
	d.h.mu.Lock()
	d.h.calledNVML = append(d.h.calledNVML, done)
	d.h.mu.Unlock()
	d.h.watch(done)
	return err
}

// OnCall has f called before and after each call that changes something, in this
// process; nil ends that.
func (n *NVML) OnCall(f func(Call)) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	n.h.onNVML = f
}

func (h *Host) watch(c Call) {
	h.mu.Lock()
	f := h.onNVML
	h.mu.Unlock()
	if f != nil {
		f(c)
	}
}

// Activation is what Fail takes for a mode that is stored and waits for a reset.
const Activation = "SetMigMode activation"

// ResetGPU resets a GPU: a mode that waits comes into force, and instances go.
func (h *Host) ResetGPU(card string) error {
	return h.changeMIG(card, func(m *migState) {
		m.Current, m.Instances, m.Clients, m.Watchers = m.Pending, nil, nil, nil
		m.Resets++
	})
}

// Fail makes the next calls of one name, as in Call or "Init", fail in this process;
// those with the return 0 pass.
func (n *NVML) Fail(name string, ret mig.Return, times int) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	for range times {
		n.h.nvmlFaults = append(n.h.nvmlFaults, nvmlFault{name, ret})
	}
}

type nvmlFault struct {
	name string
	ret  mig.Return
}

func (h *Host) faultNVML(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, f := range h.nvmlFaults {
		if f.name == name {
			h.nvmlFaults = slices.Delete(h.nvmlFaults, i, i+1)
			if f.ret == 0 {
				return nil
			}
			return f.ret
		}
	}
	return nil
}

// model is what a card is called, by its types of vGPU.
func (c *Card) model() string {
	name := c.PCI.Device
	switch {
	case c.VGPU != nil && len(c.VGPU.Types) > 0:
		name = c.VGPU.Types[0].Name
	case len(c.Types) > 0:
		name = c.Types[0].Name
	}
	name = strings.TrimPrefix(strings.TrimPrefix(name, "NVIDIA "), "GRID ")
	if i := strings.LastIndex(name, "-"); i > 0 {
		name = name[:i]
	}
	return name
}

func (d *migDevice) Facts() (f mig.Facts, err error) {
	err = d.view(func(c *Card, _ *migState) error {
		f = mig.Facts{Name: "NVIDIA " + c.model(), UUID: "GPU-" + d.card, Serial: c.PCI.Serial}
		largest := 0
		for _, t := range c.Types {
			largest = max(largest, t.Use[0])
		}
		if c.VGPU != nil {
			largest = c.VGPU.MemoryMiB
		}
		if c.MIG != nil {
			f.Name, f.ModeResets = "NVIDIA "+c.MIG.Model, c.MIG.ResetsForMode
			largest = slices.Max(slices.Collect(maps.Values(c.MIG.model().MemoryMiB)))
		}
		f.MemoryBytes = uint64(largest) << 20 //nolint:gosec // MiB of a card
		return nil
	})
	return f, err
}

func (d *migDevice) Mode() (mode gpu.MIGMode, err error) {
	err = d.view(func(c *Card, m *migState) error {
		mode = gpu.MIGMode{Capable: c.MIG != nil, Current: m.Current, Pending: m.Pending}
		return nil
	})
	return mode, err
}

func (d *migDevice) SetMode(on bool) (activation, err error) {
	waits := d.h.faultNVML(Activation)
	err = d.do("SetMigMode", []any{on}, func(s *state, c *Card, m *migState) error {
		return d.check(c, m, func(_ *cards.Model, m *migState) error {
			m.Pending = on
			switch {
			case m.Current == on:
			case len(m.Instances)+len(m.Clients)+len(m.Watchers)+s.pci(d.card).VFs > 0:
				activation = mig.ErrInUse // as nvidia-smi says it while there are virtual functions
			case waits != nil:
				activation = waits
			default:
				m.Current = on
				delete(s.Timeslices, c.Name) // the driver begins anew
				if c.MIG.ResetsForMode {
					m.Resets++
				}
			}
			return nil
		})
	})
	return activation, err
}

func (d *migDevice) Processes() (out []mig.Process, err error) {
	err = d.view(func(_ *Card, m *migState) error { out = slices.Clone(m.Clients); return nil })
	return out, err
}

// left counts how many more of a profile fit: the most that do not lie over one
// another, within its number and the engines.
func (m *migState) left(model *cards.Model, p mig.Profile) (n int) {
	if !m.Current {
		return 0
	}
	try := migState{Instances: slices.Clone(m.Instances)}
	for _, start := range p.Starts {
		if try.refuse(model, p, start) == nil {
			try.Instances = append(try.Instances, migInstance{Profile: p.Name, Start: start})
			n++
		}
	}
	return n
}

// refuse says why an instance cannot be made.
func (m *migState) refuse(model *cards.Model, p mig.Profile, start int) error {
	if !slices.Contains(p.Starts, start) {
		return mig.ErrInvalidArgument
	}
	number, sum := 1, p.Engines
	for _, in := range m.Instances {
		q := model.Profile(in.Profile)
		if in.Start < start+p.Size && start < in.Start+q.Size {
			return mig.ErrInsufficientResources
		}
		if q.Name == p.Name {
			number++
		}
		e := q.Engines
		sum.Compute, sum.Decoders, sum.Encoders = sum.Compute+e.Compute, sum.Decoders+e.Decoders, sum.Encoders+e.Encoders
		sum.JPEG, sum.OFA = sum.JPEG+e.JPEG, sum.OFA+e.OFA
	}
	all := model.Engines
	if number > p.Max || sum.Compute > all.Compute || sum.Decoders > all.Decoders || sum.Encoders > all.Encoders ||
		sum.JPEG > all.JPEG || sum.OFA > all.OFA {
		return mig.ErrInsufficientResources
	}
	return nil
}

func (d *migDevice) Profiles() (out []mig.DeviceProfile, err error) {
	err = d.read(func(model *cards.Model, m *migState) error {
		for _, p := range model.Card.Profiles {
			out = append(out, mig.DeviceProfile{
				Profile: p, Index: cards.Index(p),
				MemoryMiB: uint64(model.MemoryMiB[p.Name]), Available: m.left(model, p), //nolint:gosec // MiB of a card
			})
		}
		return nil
	})
	slices.SortFunc(out, func(a, b mig.DeviceProfile) int { return cmp.Compare(a.Index, b.Index) })
	return out, err
}

func (d *migDevice) Instances() (out []mig.DeviceInstance, err error) {
	err = d.read(func(model *cards.Model, m *migState) error {
		for _, in := range m.Instances {
			p := model.Profile(in.Profile)
			out = append(out, mig.DeviceInstance{ID: in.ID, ProfileID: p.ID, Start: in.Start, Size: p.Size, Compute: slices.Clone(in.Compute)})
		}
		return nil
	})
	slices.SortFunc(out, func(a, b mig.DeviceInstance) int { return cmp.Compare(a.ID, b.ID) })
	return out, err
}

func (d *migDevice) Create(index, start int) (id int, err error) {
	err = d.call("CreateGpuInstance", []any{index, start}, func(_ *Card, model *cards.Model, m *migState) error {
		i := slices.IndexFunc(model.Card.Profiles, func(p mig.Profile) bool { return cards.Index(p) == index })
		if i < 0 || !m.Current {
			return mig.ErrNotSupported
		}
		p := model.Card.Profiles[i]
		if err := m.refuse(model, p, start); err != nil {
			return err
		}
		for id = 1; m.find(id) != nil; id++ {
		}
		m.Instances = append(m.Instances, migInstance{ID: id, Start: start, Profile: p.Name})
		return nil
	})
	return id, err
}

func (m *migState) find(id int) *migInstance {
	for i := range m.Instances {
		if m.Instances[i].ID == id {
			return &m.Instances[i]
		}
	}
	return nil
}

func (m *migState) busy(instance int) bool {
	return slices.ContainsFunc(m.Clients, func(p mig.Process) bool { return p.Instance == instance })
}

func (d *migDevice) Destroy(id int) error {
	return d.call("DestroyGpuInstance", []any{id}, func(_ *Card, _ *cards.Model, m *migState) error {
		in := m.find(id)
		switch {
		case in == nil:
			return mig.ErrNotFound
		case len(in.Compute) > 0 || m.busy(id):
			return mig.ErrInUse
		}
		m.Instances = slices.DeleteFunc(m.Instances, func(in migInstance) bool { return in.ID == id })
		return nil
	})
}

// computeProfiles are those of a GPU instance: sizes up to its own.
func computeProfiles(p mig.Profile) (out []mig.ComputeProfile) {
	for index, slots := range []int{1, 2, 3, 4, 7} {
		c := mig.ComputeProfile{Name: fmt.Sprintf("%dc.%s", slots, p.Name), Index: index, ID: index, Slices: slots}
		if slots == p.Engines.Compute {
			c.Name = p.Name
		}
		step := slots
		if slots == 3 {
			step = 4
		}
		for at := 0; at+slots <= p.Engines.Compute; at += step {
			c.Starts = append(c.Starts, at)
		}
		if c.Max = len(c.Starts); c.Max > 0 {
			out = append(out, c)
		}
	}
	return out
}

func (d *migDevice) ComputeProfiles(instance int) (out []mig.ComputeProfile, err error) {
	err = d.read(func(model *cards.Model, m *migState) error {
		in := m.find(instance)
		if in == nil {
			return mig.ErrNotFound
		}
		out = computeProfiles(model.Profile(in.Profile))
		return nil
	})
	return out, err
}

func (d *migDevice) CreateCompute(instance, index, start int) (id int, err error) {
	err = d.call("CreateComputeInstance", []any{instance, index, start}, func(_ *Card, model *cards.Model, m *migState) error {
		in := m.find(instance)
		if in == nil {
			return mig.ErrNotFound
		}
		all := computeProfiles(model.Profile(in.Profile))
		i := slices.IndexFunc(all, func(c mig.ComputeProfile) bool { return c.Index == index && slices.Contains(c.Starts, start) })
		if i < 0 {
			return mig.ErrInvalidArgument
		}
		for _, c := range in.Compute {
			if c.Start < start+all[i].Slices && start < c.Start+c.Size {
				return mig.ErrInsufficientResources
			}
		}
		for slices.ContainsFunc(in.Compute, func(c mig.ComputeInstance) bool { return c.ID == id }) {
			id++
		}
		m.Made++
		in.Compute = append(in.Compute, mig.ComputeInstance{
			ID: id, ProfileID: index, Start: start, Size: all[i].Slices, UUID: fmt.Sprintf("MIG-%s-%d", d.card, m.Made),
		})
		slices.SortFunc(in.Compute, func(a, b mig.ComputeInstance) int { return cmp.Compare(a.ID, b.ID) })
		return nil
	})
	return id, err
}

func (d *migDevice) DestroyCompute(instance, id int) error {
	return d.call("DestroyComputeInstance", []any{instance, id}, func(_ *Card, _ *cards.Model, m *migState) error {
		in := m.find(instance)
		if in == nil {
			return mig.ErrNotFound
		}
		kept := slices.DeleteFunc(slices.Clone(in.Compute), func(c mig.ComputeInstance) bool { return c.ID == id })
		switch {
		case len(kept) == len(in.Compute):
			return mig.ErrNotFound
		case m.busy(instance):
			return mig.ErrInUse
		}
		in.Compute = kept
		return nil
	})
}
