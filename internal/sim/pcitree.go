package sim

import (
	"fmt"
	"path"
	"strconv"
	"strings"
)

// addPCI adds a function of the PCI bus.
func (h *Host) addPCI(t *tree, s *state, f function) {
	dir, p := f.dir, f.card.PCI
	t.mkdir(dir)
	t.symlink("bus/pci/devices/"+f.address, dir)
	t.symlink(path.Join(dir, "subsystem"), "bus/pci")
	file := func(name, text string) { t.file(path.Join(dir, name), text+"\n") }
	file("vendor", f.vendor)
	file("device", f.device)
	file("class", f.class)
	file("subsystem_vendor", p.SubsystemVendor)
	file("subsystem_device", p.SubsystemDevice)
	file("numa_node", strconv.Itoa(p.NUMANode))
	if strings.HasPrefix(f.class, "0x0300") {
		file("boot_vga", strconv.Itoa(number(f.isCard() && f.card.BootVGA)))
	}
	if p.Serial != "" && f.isCard() {
		file("serial_number", p.Serial)
	}
	if !p.NoReset {
		file("reset_method", "flr bus")
		t.add(path.Join(dir, "reset"), writeOnly(resetPCI))
	}
	st := s.PCI[f.address]
	if st == nil {
		st = &pciState{}
	}
	override := st.Override
	if override == "" {
		override = "(null)"
	}
	t.add(path.Join(dir, "driver_override"), node{
		text: override + "\n", act: func(v string) error { return h.overridePCI(f.address, v) },
	})
	if f.group >= 0 {
		addGroup(t, dir, f.group)
	}
	h.addDriver(t, s, f)
	switch {
	case f.vf >= 0:
		t.symlink(path.Join(dir, "physfn"), deviceDir(f.card))
		t.symlink(path.Join(deviceDir(f.card), fmt.Sprintf("virtfn%d", f.vf)), dir)
	case f.isCard() && f.card.SRIOV != nil:
		h.addSRIOV(t, f, st)
	}
}

// addDriver adds what tells of the driver that a function is bound to. The kernel takes
// it away before the driver has let go.
func (h *Host) addDriver(t *tree, s *state, f function) {
	driver := s.bound(f)
	st := s.PCI[f.address]
	power := "D0"
	if driver != "" && (st == nil || !st.Leaving) {
		t.symlink(path.Join(f.dir, "driver"), "bus/pci/drivers/"+driver)
		t.symlink(path.Join("bus/pci/drivers", driver, f.address), f.dir)
	}
	if s.vfio(f) {
		name := fmt.Sprintf("vfio%d", f.card.place(s)*300+f.vf+1+int(f.address[len(f.address)-1]-'0'))
		t.mkdir(path.Join(f.dir, "vfio-dev", name))
		if len(s.holders(f.address)) == 0 && isVFIO(driver) {
			power = "D3hot" // as long as nobody has it open
		}
	}
	t.file(path.Join(f.dir, "power_state"), power+"\n")
}

func (h *Host) addSRIOV(t *tree, f function, st *pciState) {
	v := f.card.SRIOV
	for name, n := range map[string]int{
		"sriov_totalvfs": v.TotalVFs, "sriov_offset": v.Offset, "sriov_stride": v.Stride,
	} {
		t.file(path.Join(f.dir, name), strconv.Itoa(n)+"\n")
	}
	// The one id in sysfs that has no 0x in front.
	t.file(path.Join(f.dir, "sriov_vf_device"), strings.TrimPrefix(v.VFDevice, "0x")+"\n")
	t.add(path.Join(f.dir, "sriov_numvfs"), node{
		text: strconv.Itoa(st.VFs) + "\n", act: func(value string) error { return h.numVFs(f.address, value) },
	})
	t.add(path.Join(f.dir, "sriov_drivers_autoprobe"), node{
		text: strconv.Itoa(number(!st.NoProbe)) + "\n", act: func(value string) error { return h.autoprobe(f.address, value) },
	})
}

func (c *Card) place(s *state) int {
	for i := range s.Cards {
		if &s.Cards[i] == c {
			return i
		}
	}
	return -1
}

func number(yes bool) int {
	if yes {
		return 1
	}
	return 0
}
