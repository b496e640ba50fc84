package sim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"gpuvirt/gpu"
)

// A state is everything the simulated host knows, as it is kept in its directory.
type state struct {
	HostID         string           `json:"host_id"`
	BootID         string           `json:"boot_id"`
	Cards          []Card           `json:"cards"`
	Mdevs          map[string]*mdev `json:"mdevs"`
	Groups         int              `json:"groups"` // IOMMU groups given to mdevs since boot
	VMs            []*vm            `json:"vms"`
	PIDs           int              `json:"pids"` // given to processes since boot
	Down           bool             `json:"down"` // libvirt does not answer
	LibvirtVersion string           `json:"libvirt_version,omitempty"`
	Blind          bool             `json:"blind"`
	Holds          []hold           `json:"holds"`
	Faults         []Fault          `json:"faults"`

	MIG map[string]*migState `json:"mig,omitempty"` // by card

	PCI        map[string]*pciState `json:"pci,omitempty"`        // by address
	VGPUs      map[string]*vgpu     `json:"vgpus,omitempty"`      // by address of the virtual function
	Timeslices map[string]timeslice `json:"timeslices,omitempty"` // by card, where somebody has set something
	Unloaded   []string             `json:"unloaded,omitempty"`
	ToolFaults []ToolFault          `json:"tool_faults,omitempty"`
	Guests     map[string]Guest     `json:"guests,omitempty"` // by UUID or address of the vGPU

	Networks []network        `json:"networks,omitempty"`
	Agents   map[string]Agent `json:"agents,omitempty"` // by name of the VM
}

type mdev struct {
	Card      string    `json:"card"`
	VF        string    `json:"vf,omitempty"`        // virtual function that it is on; empty: on the card itself
	Type      int       `json:"type"`                // index in the card's types, or in those of its virtual functions
	Instance  int       `json:"instance,omitempty"`  // GPU instance, for one on a virtual function; -1: none
	Placement int       `json:"placement,omitempty"` // where it begins, where sizes may differ
	Group     int       `json:"group"`
	Params    string    `json:"params,omitempty"`
	Removing  bool      `json:"removing,omitempty"` // waits for whoever holds it
	VanishAt  time.Time `json:"vanish_at"`          // the driver removes it by itself then
}

type vm struct {
	UUID        string        `json:"uuid"`
	Name        string        `json:"name"`
	State       gpu.VMState   `json:"state"`
	Autostart   bool          `json:"autostart"`
	Persistent  bool          `json:"persistent"`
	PID         int           `json:"pid"`
	Stubborn    bool          `json:"stubborn"` // the guest never lets go of a device
	MemoryNodes []int         `json:"memory_nodes,omitempty"`
	Live        []gpu.Hostdev `json:"live"`
	Config      []gpu.Hostdev `json:"config"`

	Doc   string `json:"doc,omitempty"`  // as it was defined
	Mark  string `json:"mark,omitempty"` // of the migration that made it
	Trial *trial `json:"trial,omitempty"`
	Guest guest  `json:"guest,omitzero"` // what its agent has open
}

// A hold is a process that is no VM of libvirt's and holds a device.
type hold struct {
	UUID string `json:"uuid"` // or the PCI address
	PID  int    `json:"pid"`
	Name string `json:"name"`
}

func (s *state) card(name string) *Card {
	for i := range s.Cards {
		if s.Cards[i].Name == name {
			return &s.Cards[i]
		}
	}
	return nil
}

// used lists the types of a card's devices.
func (s *state) used(card *Card) []Type {
	var out []Type
	for _, m := range s.Mdevs {
		if m.Card == card.Name && m.VF == "" {
			out = append(out, card.Types[m.Type])
		}
	}
	return out
}

// holders lists the processes that hold a device, by its UUID or PCI address.
func (s *state) holders(id string) []gpu.Holder {
	out := []gpu.Holder{}
	if id == "" {
		return out
	}
	is := func(d gpu.Hostdev) bool { return d.Handle.MdevUUID == id || d.Handle.PCIAddress == id }
	for _, v := range s.VMs {
		if v.State.Active() && slices.ContainsFunc(v.Live, is) {
			out = append(out, gpu.Holder{Kind: "process", ID: fmt.Sprint(v.PID), Name: "qemu-system-x86"})
		}
	}
	for _, h := range s.Holds {
		if h.UUID == id {
			out = append(out, gpu.Holder{Kind: "process", ID: fmt.Sprint(h.PID), Name: h.Name})
		}
	}
	return out
}

// settle does what time has brought: cards appear, devices vanish. It returns the
// names of the devices that changed.
func (s *state) settle(now time.Time) []string {
	var changed []string
	for i := range s.Cards {
		if c := &s.Cards[i]; !c.AppearAt.IsZero() && !now.Before(c.AppearAt) {
			c.AppearAt = time.Time{}
			changed = append(changed, c.Name)
		}
	}
	for _, uuid := range slices.Sorted(maps.Keys(s.Mdevs)) {
		m := s.Mdevs[uuid]
		vanishes := !m.VanishAt.IsZero() && !now.Before(m.VanishAt)
		if vanishes || (m.Removing && len(s.holders(uuid)) == 0) {
			delete(s.Mdevs, uuid)
			changed = append(changed, uuid)
		}
	}
	s.settleVGPUs(now)
	return append(changed, s.settlePCI()...)
}

// stamp tells one version of the state file from the next: it is replaced, never
// changed.
type stamp struct {
	inode uint64
	size  int64
	time  time.Time
}

func (h *Host) file() string { return filepath.Join(h.dir, "host.json") }

// load makes h.state what the directory says; another process may have changed it.
func (h *Host) load() error {
	info, err := os.Stat(h.file())
	if err != nil {
		return fmt.Errorf("cannot load the simulated host: %w", err)
	}
	now := stamp{size: info.Size(), time: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		now.inode = st.Ino
	}
	if h.state != nil && h.stamp == now {
		return nil
	}
	text, err := os.ReadFile(h.file())
	if err != nil {
		return fmt.Errorf("cannot load the simulated host: %w", err)
	}
	s := &state{}
	if err := json.Unmarshal(text, s); err != nil {
		return fmt.Errorf("cannot load the simulated host from %q: %w", h.file(), err)
	}
	h.state, h.stamp, h.tree, h.proc = s, now, nil, nil
	return nil
}

// save replaces the state file, whole, as a kernel's memory survives whatever happens
// to the daemon. It does not wait for the disk: a machine that loses its power takes the
// simulated one with it, as it would a kernel's memory.
func (h *Host) save() (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot save the simulated host: %w", err)
		}
	}()
	text, err := json.MarshalIndent(h.state, "", " ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(h.dir, "host-*.tmp")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), h.file())
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// view runs f on the state as it is now.
func (h *Host) view(f func(*state) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.load(); err != nil {
		return err
	}
	if changed := h.state.settle(time.Now()); len(changed) > 0 {
		h.tree, h.proc = nil, nil
		h.tell(changed...)
	}
	return f(h.state)
}

// update runs f on the state and keeps what it changed, unless it fails. Names are
// the devices to tell listeners about.
func (h *Host) update(f func(*state) (names []string, err error)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	unlock, err := h.flock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := h.load(); err != nil {
		return err
	}
	changed := h.state.settle(time.Now())
	names, err := f(h.state)
	if err != nil {
		h.state = nil // f may have changed half of it
		return err
	}
	changed = append(changed, names...)
	changed = append(changed, h.state.settle(time.Now())...)
	if err := h.save(); err != nil {
		h.state = nil
		return err
	}
	h.state = nil
	if err := h.load(); err != nil {
		return err
	}
	close(h.changed)
	h.changed = make(chan struct{})
	h.tell(changed...)
	return nil
}

// flock keeps other processes from changing the directory at the same time.
func (h *Host) flock() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(h.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the simulated host: %w", err)
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot lock the simulated host: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// missing reports whether there is no state yet.
func (h *Host) missing() bool {
	_, err := os.Stat(h.file())
	return errors.Is(err, fs.ErrNotExist)
}
