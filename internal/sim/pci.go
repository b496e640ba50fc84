package sim

import (
	"path"
	"slices"
	"strings"

	"gpuvirt/gpu"
)

// SRIOV is what virtual functions a card can have.
type SRIOV struct {
	TotalVFs, Offset, Stride int
	VFDevice                 string // "0x56c0"
	VFDriver                 string // takes them where nobody says otherwise, empty: none
	// ToolOnly is NVIDIA's driver: it refuses to be told by sysfs, and lets its own
	// sriov-manage, which takes it off the card for that.
	ToolOnly bool
}

// A PCIFunction is something else on the PCI bus that is there with a card: its sound,
// or whatever shares its IOMMU group.
type PCIFunction struct {
	Address               string
	Vendor, Device, Class string // "0x10de"
	Driver                string // empty: none
	Group                 int    // IOMMU group; 0: the card's
}

// A function is one function of the PCI bus: a card, what is there with it, or a
// virtual function of it.
type function struct {
	address               string
	dir                   string
	vendor, device, class string
	group                 int    // below 0: none
	driver                string // takes it where nobody says otherwise
	card                  *Card
	vf                    int // -1: it is none
}

// isCard reports whether it is the card itself.
func (f function) isCard() bool { return f.address == f.card.Name }

// A pciState is what became of a function since boot. The zero value is how it comes up.
type pciState struct {
	Driver   string `json:"driver,omitempty"` // bound to it; empty: the default one
	Override string `json:"override,omitempty"`
	Leaving  bool   `json:"leaving,omitempty"` // its driver waits for whoever holds it
	Locked   bool   `json:"locked,omitempty"`  // NVIDIA's unbindLock

	VFs     int  `json:"vfs,omitempty"`
	Fewer   bool `json:"fewer,omitempty"` // they go when nobody holds one
	NoProbe bool `json:"no_probe,omitempty"`
}

// Drivers. noDriver stands for none where an empty name means the default.
const (
	noDriver = "-"
	vfioPCI  = "vfio-pci"
)

// isVFIO reports whether a driver gives its devices to VMs: vfio-pci, or one made from
// it for one kind of device.
func isVFIO(driver string) bool { return driver == vfioPCI || strings.HasSuffix(driver, "-"+vfioPCI) }

func (s *state) pci(address string) *pciState {
	if s.PCI == nil {
		s.PCI = map[string]*pciState{}
	}
	if s.PCI[address] == nil {
		s.PCI[address] = &pciState{}
	}
	return s.PCI[address]
}

// functions lists all there is on the PCI bus.
func (s *state) functions() []function {
	var out []function
	for i := range s.Cards {
		c := &s.Cards[i]
		if c.PCI == nil {
			continue
		}
		dir := deviceDir(c)
		out = append(out, function{
			address: c.Name, dir: dir, vendor: c.PCI.Vendor, device: c.PCI.Device, class: c.PCI.Class,
			group: c.PCI.Group, driver: c.Driver, card: c, vf: -1,
		})
		for _, x := range c.Companions {
			f := function{
				address: x.Address, dir: siblingDir(dir, x.Address), vendor: x.Vendor, device: x.Device, class: x.Class,
				group: x.Group, driver: x.Driver, card: c, vf: -1,
			}
			if f.group == 0 {
				f.group = c.PCI.Group
			}
			out = append(out, f)
		}
		if st := s.PCI[c.Name]; c.SRIOV != nil && st != nil {
			for vf := range st.VFs {
				out = append(out, c.virtual(i, vf))
			}
		}
	}
	return out
}

// virtual is a virtual function of the card at a place in the list of cards.
func (c *Card) virtual(place, vf int) function {
	address := c.vfAddress(vf)
	f := function{
		address: address, dir: path.Join(path.Dir(deviceDir(c)), address), vendor: c.PCI.Vendor, device: c.SRIOV.VFDevice,
		class: c.PCI.Class, group: 1000 + 256*place + vf, driver: c.SRIOV.VFDriver, card: c, vf: vf,
	}
	if c.PCI.Group < 0 {
		f.group = -1
	}
	return f
}

// vfAddress is where the specification puts a virtual function: as far from its card as
// the card's capability says, on the next bus where this one ends.
func (c *Card) vfAddress(vf int) string {
	a, err := gpu.ParseAddress(c.Name)
	if err != nil {
		return ""
	}
	id := int(a.Bus)<<8 | int(a.Slot)<<3 | int(a.Function)
	id += c.SRIOV.Offset + c.SRIOV.Stride*vf
	return gpu.Address{Domain: a.Domain, Bus: uint8(id >> 8), Slot: uint8(id >> 3 & 0x1f), Function: uint8(id & 7)}.String() //nolint:gosec // the fields of a requester id
}

// siblingDir is where a function lies that shares a card's group: beside it, or on the
// root bus.
func siblingDir(card, address string) string {
	domainBus := address[:strings.LastIndexByte(address, ':')]
	if strings.HasSuffix(domainBus, ":00") {
		return path.Join("devices/pci"+domainBus, address)
	}
	return path.Join(path.Dir(card), address)
}

func (s *state) function(address string) (function, bool) {
	all := s.functions()
	i := slices.IndexFunc(all, func(f function) bool { return f.address == address })
	if i < 0 {
		return function{}, false
	}
	return all[i], true
}

// bound is the driver that has a function, empty for none. A card that is hidden or
// still to appear is one whose own driver has not taken it.
func (s *state) bound(f function) string {
	driver := f.driver
	if st := s.PCI[f.address]; st != nil && st.Driver != "" {
		driver = st.Driver
	}
	if driver == noDriver || !s.loaded(driver) || driver == f.driver && f.isCard() && f.card.away() {
		return ""
	}
	return driver
}

func (c *Card) away() bool { return c.Hidden || !c.AppearAt.IsZero() }

func (s *state) loaded(driver string) bool { return !slices.Contains(s.Unloaded, driver) }

// driven reports whether a card's own driver has it.
func (s *state) driven(c *Card) bool {
	if c.PCI == nil {
		return !c.away()
	}
	st := s.PCI[c.Name]
	return !c.away() && s.loaded(c.Driver) && (st == nil || !st.Leaving && (st.Driver == "" || st.Driver == c.Driver))
}

// matching is the driver that the kernel finds for a function: the one it is told to
// use and no other, else the one that knows it.
func (s *state) matching(f function) string {
	if st := s.PCI[f.address]; st != nil && st.Override != "" {
		if slices.Contains(s.drivers(), st.Override) {
			return st.Override
		}
		return ""
	}
	if !s.loaded(f.driver) || f.isCard() && f.card.away() {
		return ""
	}
	return f.driver
}

// bind gives a function to a driver.
func (s *state) bind(f function, driver string) {
	if driver == f.driver {
		driver = ""
	} else if driver == "" {
		driver = noDriver
	}
	s.pci(f.address).Driver = driver
}

// drivers lists the drivers that are loaded, sorted.
func (s *state) drivers() []string {
	all := []string{vfioPCI}
	for i := range s.Cards {
		c := &s.Cards[i]
		if c.PCI == nil {
			continue
		}
		all = append(all, c.Driver)
		for _, x := range c.Companions {
			all = append(all, x.Driver)
		}
		if c.SRIOV != nil {
			all = append(all, c.SRIOV.VFDriver)
		}
	}
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(d string) bool { return d == "" || !s.loaded(d) })
}

// held reports whether somebody keeps a function's driver from letting go of it.
func (s *state) held(f function) bool {
	if len(s.holders(f.address)) > 0 {
		return true
	}
	if !f.isCard() {
		return false
	}
	if m := s.MIG[f.address]; m != nil && s.bound(f) == f.driver && len(m.Clients)+len(m.Watchers) > 0 {
		return true
	}
	for uuid, m := range s.Mdevs {
		if m.Card == f.address && len(s.holders(uuid)) > 0 {
			return true
		}
	}
	return s.heldVF(f)
}

func (s *state) heldVF(card function) bool {
	for _, f := range s.functions() {
		if f.card == card.card && f.vf >= 0 && len(s.holders(f.address)) > 0 {
			return true
		}
	}
	for uuid, m := range s.Mdevs {
		if m.Card == card.address && m.VF != "" && len(s.holders(uuid)) > 0 {
			return true
		}
	}
	return false
}

// settlePCI lets drivers go on that have waited for somebody. It returns the names of
// the functions that changed.
func (s *state) settlePCI() (changed []string) {
	waits := false
	for _, st := range s.PCI {
		waits = waits || st.Leaving || st.Fewer
	}
	if !waits {
		return nil
	}
	for _, f := range s.functions() {
		st := s.PCI[f.address]
		if st == nil {
			continue
		}
		if st.Leaving && !s.held(f) {
			changed = append(changed, s.unbind(f)...)
		}
		if st.Fewer && !s.heldVF(f) {
			changed = append(changed, s.dropVFs(f)...)
		}
	}
	return changed
}

// unbind takes a function's driver off, with all that the driver made of it.
func (s *state) unbind(f function) []string {
	st := s.pci(f.address)
	changed := append(s.loseVGPUs(f.address), f.address)
	if f.isCard() {
		delete(s.Timeslices, f.address)
		changed = append(changed, s.dropVFs(f)...)
		for uuid, m := range s.Mdevs {
			if m.Card == f.address {
				delete(s.Mdevs, uuid)
				changed = append(changed, uuid)
			}
		}
		if m := s.MIG[f.address]; m != nil && st.Driver == "" {
			m.Instances = nil
			m.Resets++
		}
	}
	st.Driver, st.Leaving, st.Locked = noDriver, false, false
	return changed
}

func (s *state) dropVFs(card function) (changed []string) {
	for _, f := range s.functions() {
		if f.card == card.card && f.vf >= 0 {
			delete(s.PCI, f.address)
			changed = append(append(changed, s.loseVGPUs(f.address)...), f.address)
		}
	}
	st := s.pci(card.address)
	st.VFs, st.Fewer = 0, false
	return append(changed, card.address)
}

// addVFs makes n virtual functions.
func (s *state) addVFs(card function, n int) (changed []string) {
	st := s.pci(card.address)
	st.VFs = n
	for _, f := range s.functions() {
		if f.card != card.card || f.vf < 0 {
			continue
		}
		if st.NoProbe {
			s.pci(f.address).Driver = noDriver
		}
		changed = append(changed, f.address)
	}
	return append(changed, card.address)
}

// plugPCI is what libvirt and QEMU ask of a PCI device that a VM is given and libvirt
// does not manage.
func (s *state) plugPCI(address string) error {
	f, ok := s.function(address)
	if !ok {
		return gpu.Errorf(gpu.CodeNotFound, "device %s not found: could not access /sys/bus/pci/devices/%s/config: No such file or directory", address, address)
	}
	if !s.vfio(f) {
		return gpu.Errorf(gpu.CodeConflict, "Unmanaged PCI device %s must be manually detached from the host", address)
	}
	if s.ownVF(f) && s.VGPUs[address] == nil {
		return gpu.Errorf(gpu.CodeUnavailable, "vfio %s: error getting device from group %d: No such device", address, f.group)
	}
	for _, other := range s.functions() {
		bridge := strings.HasPrefix(other.class, "0x0604")
		if other.group != f.group || bridge || s.bound(other) == "" || s.vfio(other) {
			continue
		}
		return gpu.Errorf(gpu.CodeConflict,
			"vfio %s: group %d is not viable: %s is bound to %s. Please ensure all devices within the iommu_group are bound to their vfio bus driver.",
			address, f.group, other.address, s.bound(other))
	}
	return nil
}

// vfio reports whether VMs can be given a function. NVIDIA's own driver does that for
// the virtual functions of cards that only its tool turns on.
func (s *state) vfio(f function) bool {
	if st := s.PCI[f.address]; st != nil && st.Leaving {
		return false
	}
	driver := s.bound(f)
	return isVFIO(driver) || f.vf >= 0 && (f.card.SRIOV.ToolOnly || f.card.VGPU != nil) && !f.card.mdevVFs() && driver != "" && driver == f.driver
}
