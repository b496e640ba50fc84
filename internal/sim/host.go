// Package sim is a simulated host: a sysfs that answers as the kernel and the
// drivers do, and a libvirt that hot-plugs, over one state. It is a double for
// tests and for trying the daemon without a GPU; it says so wherever it is asked.
//
// The state lives in a directory, so that it outlives the daemon as a kernel
// does, and several processes may look at and change one host: a test can kill
// the daemon at any point, start a VM behind its back, or make a write hang.
package sim

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/sysfs"
)

// Host is a simulated host. Its methods beside those of the doubles are what
// happens to a host: reboots, faults, processes that hold a device.
type Host struct {
	Sysfs   *Sysfs
	Proc    *Sysfs // of /proc what NVIDIA's driver has there
	Libvirt *Libvirt
	NVML    *NVML

	dir    string
	calls  sync.WaitGroup // calls into the kernel
	closed chan struct{}

	mu      sync.Mutex
	state   *state // nil: to be loaded
	stamp   stamp
	tree    *tree // of state; nil: to be built
	proc    *tree // likewise
	changed chan struct{}
	devices watchers[string]
	events  watchers[gpu.VMEvent]

	// Of this process.
	sessions   int
	calledNVML []Call
	nvmlFaults []nvmlFault
	onNVML     func(Call)
}

// Open opens the host kept in a directory. In an empty one it sets up a new host
// with the given cards, or with DefaultCards, and with three VMs: web1 and web2
// running, db1 shut off.
func Open(dir string, cards ...Card) (*Host, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot open the simulated host: %w", err)
	}
	h := &Host{dir: dir, closed: make(chan struct{}), changed: make(chan struct{})}
	h.Sysfs = &Sysfs{h: h, guard: sysfs.Guard{}}
	h.Proc = &Sysfs{h: h, guard: sysfs.Guard{}, proc: true}
	h.Libvirt = &Libvirt{h: h}
	h.NVML = &NVML{h: h}
	unlock, err := h.flock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if !h.missing() {
		return h, h.view(func(*state) error { return nil })
	}
	if len(cards) == 0 {
		cards = DefaultCards()
	}
	h.state = &state{HostID: newID(), BootID: newID(), Cards: cards, Mdevs: map[string]*mdev{}, PIDs: 4000}
	h.state.Networks = []network{{Name: "default", UUID: newID(), Persistent: true}}
	for _, v := range DefaultVMs() {
		if err := h.state.define(v); err != nil {
			return nil, err
		}
	}
	if err := h.save(); err != nil {
		return nil, err
	}
	h.state = nil
	return h, nil
}

// Close lets every hanging call return, waits for it, and ends the channels of
// events. The host itself stays in its directory.
func (h *Host) Close() error {
	h.mu.Lock()
	select {
	case <-h.closed:
		h.mu.Unlock()
		return nil
	default:
	}
	close(h.closed)
	h.devices.close()
	h.events.close()
	h.mu.Unlock()
	h.calls.Wait()
	return nil
}

// begin counts a call into the kernel that Close must wait for.
func (h *Host) begin() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.closed:
		return false
	default:
		h.calls.Add(1)
		return true
	}
}

// HostID returns the host's machine id.
func (h *Host) HostID() (string, error) { return h.text(func(s *state) string { return s.HostID }) }

// BootID returns the id of the running boot.
func (h *Host) BootID() (string, error) { return h.text(func(s *state) string { return s.BootID }) }

func (h *Host) text(get func(*state) string) (out string, err error) {
	err = h.view(func(s *state) error { out = get(s); return nil })
	return out, err
}

// Holders returns the processes that hold a partition, as a scan of /proc would.
func (h *Host) Holders(_ context.Context, p gpu.Partition) (out []gpu.Holder, err error) {
	err = h.view(func(s *state) error {
		if s.Blind {
			return gpu.Errorf(gpu.CodeUnavailable, "cannot tell who holds partition %q: permission denied", p.ID)
		}
		if out = s.holders(strings.ToLower(p.Handle.MdevUUID)); p.Handle.PCIAddress != "" {
			out = s.groupHolders(p.Handle.PCIAddress)
		}
		return nil
	})
	return out, err
}

// GPUHolders lists the processes that have a GPU open.
func (h *Host) GPUHolders(_ context.Context, id gpu.ID) (out []gpu.Holder, err error) {
	err = h.view(func(s *state) error {
		if s.Blind {
			return gpu.Errorf(gpu.CodeUnavailable, "cannot tell who holds gpu %q: permission denied", id)
		}
		out = append(out, s.groupHolders(string(id))...)
		m := s.MIG[string(id)]
		if m == nil {
			return nil
		}
		for _, p := range m.Clients {
			out = append(out, gpu.Holder{Kind: "process", ID: strconv.Itoa(p.PID), Name: "python3"})
		}
		for _, w := range m.Watchers {
			out = append(out, gpu.Holder{Kind: "process", ID: strconv.Itoa(w.PID), Name: w.Name})
		}
		return nil
	})
	return out, err
}

// Devices returns a channel with the name of each device that changes; an empty
// name says that some were missed. Close ends it.
func (h *Host) Devices() <-chan string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.devices.add()
}

func (h *Host) tell(names ...string) {
	for _, name := range names {
		h.devices.send(name)
	}
}

// groupHolders lists the processes that hold a PCI function, or another one of its group,
// which is one file.
func (s *state) groupHolders(address string) []gpu.Holder {
	out := s.holders(address)
	f, ok := s.function(address)
	if !ok || f.group < 0 {
		return out
	}
	for _, other := range s.functions() {
		if other.group != f.group || other.address == address {
			continue
		}
		for _, x := range s.holders(other.address) {
			if !slices.Contains(out, x) {
				out = append(out, x)
			}
		}
	}
	return out
}

// Reboot restarts the host: another boot id, no mdevs, no virtual functions, each PCI
// device with the driver that knows it, no processes. Persistent
// VMs are shut off, those with autostart too, until somebody starts them; what a
// driver has lost count of is found again.
func (h *Host) Reboot() error {
	return h.update(func(s *state) ([]string, error) {
		s.BootID, s.Mdevs, s.PCI, s.VGPUs, s.Timeslices, s.Holds, s.Groups = newID(), map[string]*mdev{}, nil, nil, nil, nil, 0
		for i := range s.Cards {
			s.Cards[i].Leaked = 0
		}
		s.forget()
		kept := s.VMs[:0]
		for _, v := range s.VMs {
			if v.Persistent {
				s.off(v, gpu.VMShutoff)
				kept = append(kept, v)
			}
		}
		s.VMs = kept
		s.Networks = slices.DeleteFunc(s.Networks, func(n network) bool { return !n.Persistent })
		return []string{""}, nil
	})
}

// Change changes a card, as another driver or other hardware would.
func (h *Host) Change(card string, f func(*Card)) error {
	return h.update(func(s *state) ([]string, error) {
		c := s.card(card)
		if c == nil {
			return nil, fmt.Errorf("cannot change card %q: there is none", card)
		}
		f(c)
		return []string{card}, nil
	})
}

// Appear takes a card off the mdev bus and brings it back after a while, as after
// boot, when the driver is not ready yet.
func (h *Host) Appear(card string, after time.Duration) error {
	return h.Change(card, func(c *Card) { c.AppearAt = time.Now().Add(after) })
}

// Vanish makes a driver remove an mdev by itself after a while.
func (h *Host) Vanish(uuid string, after time.Duration) error {
	return h.update(func(s *state) ([]string, error) {
		m := s.Mdevs[uuid]
		if m == nil {
			return nil, fmt.Errorf("cannot let mdev %q vanish: there is none", uuid)
		}
		m.VanishAt = time.Now().Add(after)
		return nil, nil
	})
}

// Hold makes a process that is no VM hold a device until Release: an mdev by its UUID, or
// the VFIO file of a PCI function by its address.
func (h *Host) Hold(device string, pid int, name string) error {
	return h.update(func(s *state) ([]string, error) {
		s.Holds = append(s.Holds, hold{UUID: device, PID: pid, Name: name})
		return nil, nil
	})
}

// Release ends every Hold on a device.
func (h *Host) Release(device string) error {
	return h.update(func(s *state) ([]string, error) {
		var kept []hold
		for _, x := range s.Holds {
			if x.UUID != device {
				kept = append(kept, x)
			}
		}
		s.Holds = kept
		return nil, nil
	})
}

// SetBlind makes Holders fail: it cannot be known who holds what.
func (h *Host) SetBlind(blind bool) error {
	return h.update(func(s *state) ([]string, error) { s.Blind = blind; return nil, nil })
}

// A Write is one write into the simulated sysfs, whatever became of it.
type Write struct {
	Path  string `json:"path"`
	Value string `json:"value"`
}

func (h *Host) writes() string { return filepath.Join(h.dir, "writes.jsonl") }

func (h *Host) logWrite(name, value string) error {
	text, err := json.Marshal(Write{Path: name, Value: value})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(h.writes(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	return errors.Join(err, f.Close())
}

// Writes returns every write that was tried since the host was set up, oldest
// first, from whichever process.
func (h *Host) Writes() ([]Write, error) {
	f, err := os.Open(h.writes())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []Write
	for dec := json.NewDecoder(f); dec.More(); {
		var w Write
		if err := dec.Decode(&w); err != nil {
			return nil, fmt.Errorf("cannot read the writes of the simulated host: %w", err)
		}
		out = append(out, w)
	}
	return out, nil
}

// newID returns a random UUID.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Watchers are channels that get every value; a channel whose reader is too slow
// loses its oldest value and gets the one that says so.
type watchers[T any] struct {
	chans  []chan T
	closed bool
}

func (w *watchers[T]) add() <-chan T {
	c := make(chan T, 256)
	if w.closed {
		close(c)
		return c
	}
	w.chans = append(w.chans, c)
	return c
}

func (w *watchers[T]) send(v T) {
	for _, c := range w.chans {
		select {
		case c <- v:
			continue
		default:
		}
		select {
		case <-c:
		default:
		}
		var missed T
		select {
		case c <- missed:
		default:
		}
	}
}

func (w *watchers[T]) close() {
	for _, c := range w.chans {
		close(c)
	}
	w.chans, w.closed = nil, true
}
