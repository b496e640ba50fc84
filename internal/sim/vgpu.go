package sim

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gpuvirt/gpu"
)

// VGPU is what vGPUs a card's virtual functions can have, one on each, and how its driver
// offers them: on the mdev bus, or with a file of each function that takes a type.
type VGPU struct {
	Types     []VGPUType
	Mdev      bool
	MemoryMiB int
	// OneSize is a driver, or a card, that has no mode for sizes that differ.
	OneSize bool
	// Emptiest is a driver that puts a vGPU on the emptiest of its instances that have room,
	// and not on the first. NVIDIA says neither.
	Emptiest bool
	// Terse makes the driver answer with the errors of the upstream proposal, and leave
	// out the header of an empty list.
	Terse bool
	// Linger is how long the driver's process for a vGPU outlives the VM. The driver does
	// not let go of it before.
	Linger time.Duration
}

// A VGPUType is a type of vGPU; the numbers of Type count on the whole card.
type VGPUType struct {
	Type
	Class, License string
	Heads          int
	Resolution     string
	MaxPerVM       int
	// Profile is that of the GPU instance that it lives on, PerInstance how many do on one;
	// empty for one that shares the whole card by time.
	Profile     string
	PerInstance int
}

func (t VGPUType) mib() int { return t.Use[0] }

// A vgpu is on a virtual function.
type vgpu struct {
	Card      string    `json:"card"`
	Type      int       `json:"type"`                // index in the card's types
	Instance  int       `json:"instance"`            // GPU instance, -1: none
	Placement int       `json:"placement,omitempty"` // where it begins, where sizes may differ
	Open      bool      `json:"open,omitempty"`
	Params    string    `json:"params,omitempty"`
	LingersTo time.Time `json:"lingers_to"`
}

// mdevVFs reports whether a card's virtual functions are on the mdev bus.
func (c *Card) mdevVFs() bool { return c.VGPU != nil && c.VGPU.Mdev }

// vgpusOn lists the vGPUs of a card, on whichever bus.
func (s *state) vgpusOn(c *Card) []vgpu {
	var out []vgpu
	for _, v := range s.VGPUs {
		if v.Card == c.Name {
			out = append(out, *v)
		}
	}
	for _, m := range s.Mdevs {
		if m.Card == c.Name && m.VF != "" {
			out = append(out, vgpu{Card: c.Name, Type: m.Type, Instance: m.Instance, Placement: m.Placement})
		}
	}
	return out
}

// seat is the GPU instance that one more vGPU of a type would live on beside those that
// are there, or -1 for one that needs none, and where it begins; it is false where the
// driver would refuse.
func (s *state) seat(c *Card, there []vgpu, t VGPUType) (instance, placement int, ok bool) {
	m := s.MIG[c.Name]
	if on := m != nil && m.Current; on != (t.Profile != "") {
		return 0, 0, false
	}
	if t.Profile == "" && s.Timeslices[c.Name].Mixed {
		if free := c.places(t, there); len(free) > 0 {
			return -1, free[0], true
		}
		return 0, 0, false
	}
	if t.Profile == "" {
		for _, v := range there {
			if c.VGPU.Types[v.Type].mib() != t.mib() {
				return 0, 0, false
			}
		}
		return -1, 0, len(there) < t.Max
	}
	fewest := 0
	for _, in := range m.Instances {
		n, fits := 0, in.Profile == t.Profile
		for _, v := range there {
			if v.Instance == in.ID {
				n++
				fits = fits && c.VGPU.Types[v.Type].mib() == t.mib()
			}
		}
		if !fits || n >= t.PerInstance || ok && n >= fewest {
			continue
		}
		instance, fewest, ok = in.ID, n, true
		if !c.VGPU.Emptiest {
			break
		}
	}
	return instance, 0, ok
}

// creatable is what the driver lists for a virtual function.
func (s *state) creatable(f function) string {
	c, out := f.card, "ID    : vGPU Name\n"
	if c.VGPU.Terse {
		out = ""
	}
	if s.VGPUs[f.address] != nil {
		return out
	}
	there := s.vgpusOn(c)
	for _, t := range c.VGPU.Types {
		if _, _, ok := s.seat(c, there, t); ok {
			out += fmt.Sprintf("%-5d : %s\n", t.Number+c.Renumber, t.Name)
		}
	}
	return out
}

// ownVF reports whether a card's own driver has a virtual function, and the card.
func (s *state) ownVF(f function) bool {
	return f.vf >= 0 && f.card.VGPU != nil && s.driven(f.card) && s.bound(f) == f.driver
}

// addVGPU adds what a virtual function with vGPUs has in sysfs.
func (h *Host) addVGPU(t *tree, s *state, f function) {
	if !s.ownVF(f) {
		return
	}
	if f.card.mdevVFs() {
		h.addMdevVF(t, s, f)
		return
	}
	v := s.VGPUs[f.address]
	number, instance, placement := 0, node{errno: syscall.ENXIO}, node{errno: syscall.ENXIO}
	if v != nil {
		number = f.card.VGPU.Types[v.Type].Number + f.card.Renumber
		instance, placement = node{text: fmt.Sprintf("%d\n", max(0, v.Instance))}, node{text: fmt.Sprintf("%d\n", v.Placement)}
	}
	at := path.Join(f.dir, "nvidia")
	t.file(path.Join(at, "creatable_vgpu_types"), s.creatable(f))
	t.add(path.Join(at, "current_vgpu_type"), node{
		text: strconv.Itoa(number) + "\n", act: func(value string) error { return h.setVGPU(f.address, value) },
	})
	h.addParams(t, s, f.dir, f.address)
	t.add(path.Join(at, "gpu_instance_id"), instance)
	t.add(path.Join(at, "placement_id"), placement)
}

func (h *Host) addMdevVF(t *tree, s *state, f function) {
	t.symlink("class/mdev_bus/"+f.address, f.dir)
	t.mkdir("bus/mdev/devices")
	taken := false
	for _, m := range s.Mdevs {
		taken = taken || m.VF == f.address
	}
	there := s.vgpusOn(f.card)
	for i, typ := range f.card.VGPU.Types {
		at := path.Join(f.dir, "mdev_supported_types", f.card.dirName(typ.Type))
		_, _, fits := s.seat(f.card, there, typ)
		h.addType(t, at, typ.Type, number(fits && !taken), func(value string) error { return h.createOnVF(f.address, i, value) })
	}
}

// createOnVF is mdev's create_store on a virtual function, and the driver behind it.
func (h *Host) createOnVF(address string, typ int, value string) error {
	uuid, err := uuidIn(value)
	if err != nil {
		return err
	}
	return h.update(func(s *state) ([]string, error) {
		f, ok := s.function(address)
		if !ok || !s.ownVF(f) {
			return nil, syscall.ENODEV
		}
		if s.Mdevs[uuid] != nil {
			return nil, syscall.EEXIST
		}
		for _, m := range s.Mdevs {
			if m.VF == address {
				return nil, syscall.EIO
			}
		}
		instance, placement, fits := s.seat(f.card, s.vgpusOn(f.card), f.card.VGPU.Types[typ])
		if !fits {
			return nil, syscall.EIO // NVIDIA says no more than that
		}
		s.Groups++
		s.Mdevs[uuid] = &mdev{Card: f.card.Name, VF: address, Type: typ, Instance: instance, Placement: placement, Group: 100 + s.Groups}
		return []string{uuid}, nil
	})
}

// setVGPU is what a virtual function's driver does with a type written to it: 0 takes the
// vGPU away.
func (h *Host) setVGPU(address, value string) error {
	n, err := strconv.ParseUint(strings.TrimSuffix(value, "\n"), 10, 31)
	if err != nil {
		return syscall.EINVAL
	}
	return h.update(func(s *state) ([]string, error) {
		f, ok := s.function(address)
		if !ok || !s.ownVF(f) {
			return nil, syscall.ENODEV
		}
		c := f.card
		or := func(usual, terse syscall.Errno) error {
			if c.VGPU.Terse {
				return terse
			}
			return usual
		}
		have := s.VGPUs[address]
		switch {
		case n == 0 && have == nil:
			return nil, or(syscall.EPERM, syscall.EINVAL)
		case n == 0 && (len(s.holders(address)) > 0 || time.Now().Before(have.LingersTo)):
			return nil, or(syscall.EIO, syscall.EBUSY)
		case n == 0:
			delete(s.VGPUs, address)
			return []string{address}, nil
		case have != nil:
			return nil, or(syscall.EPERM, syscall.EINVAL)
		}
		i := slices.IndexFunc(c.VGPU.Types, func(t VGPUType) bool { return uint64(t.Number+c.Renumber) == n }) //nolint:gosec // a type's number
		if i < 0 {
			return nil, or(syscall.EIO, syscall.ENODEV)
		}
		instance, placement, fits := s.seat(c, s.vgpusOn(c), c.VGPU.Types[i])
		if !fits {
			return nil, or(syscall.EIO, syscall.ENOSPC)
		}
		if s.VGPUs == nil {
			s.VGPUs = map[string]*vgpu{}
		}
		s.VGPUs[address] = &vgpu{Card: c.Name, Type: i, Instance: instance, Placement: placement}
		return []string{address}, nil
	})
}

// settleVGPUs starts the time that a vGPU's process outlives its VM.
func (s *state) settleVGPUs(now time.Time) {
	for address, v := range s.VGPUs {
		open := len(s.holders(address)) > 0
		if c := s.card(v.Card); v.Open && !open && c != nil && c.VGPU != nil {
			v.LingersTo = now.Add(c.VGPU.Linger)
		}
		v.Open = open
	}
}

// loseVGPUs is what becomes of the vGPU of a function that loses its driver.
func (s *state) loseVGPUs(address string) (changed []string) {
	delete(s.VGPUs, address)
	for _, uuid := range slices.Sorted(maps.Keys(s.Mdevs)) {
		if s.Mdevs[uuid].VF == address {
			delete(s.Mdevs, uuid)
			changed = append(changed, uuid)
		}
	}
	return changed
}

// VGPUTypes lists the types of vGPU that the driver knows for a card.
func (d *migDevice) VGPUTypes() (out []gpu.VGPUType, err error) {
	if err := d.h.faultNVML("GetSupportedVgpus"); err != nil {
		return nil, err
	}
	err = d.view(func(c *Card, _ *migState) error {
		for _, t := range c.vgpuTypes() {
			x := gpu.VGPUType{
				ID: uint32(t.Number + c.Renumber), Name: t.Name, Class: t.Class, License: t.License, Heads: t.Heads, //nolint:gosec // a type's number
				FramebufferBytes: uint64(t.mib()) << 20, MaxInstances: t.Max, MaxPerVM: t.MaxPerVM, Resolution: t.Resolution, //nolint:gosec // MiB of a card
			}
			if t.Profile != "" {
				id := c.MIG.model().Profile(t.Profile).ID
				x.GPUInstanceProfile, x.MaxPerInstance = &id, t.PerInstance
			}
			out = append(out, x)
		}
		return nil
	})
	return out, err
}
