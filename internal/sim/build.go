package sim

import (
	"fmt"
	"path"
	"strings"
)

// build lays out sysfs as the kernel would with this state.
func (h *Host) build(s *state) *tree {
	t := newTree()
	for _, dir := range []string{"bus/pci/devices", "bus/pci/drivers", "class", "devices/virtual", "kernel/iommu_groups", "module"} {
		t.mkdir(dir)
	}
	h.addBus(t, s)
	for _, f := range s.functions() {
		h.addPCI(t, s, f)
		h.addVGPU(t, s, f)
	}
	for i := range s.Cards {
		c := &s.Cards[i]
		if !s.driven(c) {
			continue // it may be in its slot; its driver has not registered it
		}
		if c.PCI == nil {
			addVirtual(t, c)
		}
		if len(c.Types) == 0 {
			continue
		}
		dir := deviceDir(c)
		h.addTypes(t, s, c, dir)
		t.symlink("class/mdev_bus/"+c.Name, dir)
		t.mkdir("bus/mdev/devices")
	}
	for uuid, m := range s.Mdevs {
		h.addMdev(t, s, uuid, m)
	}
	t.sort()
	return t
}

func deviceDir(c *Card) string {
	if c.PCI == nil {
		return path.Join("devices/virtual", c.Driver, c.Name)
	}
	domainBus := c.Name[:strings.LastIndexByte(c.Name, ':')]
	if strings.HasSuffix(domainBus, ":00") {
		return path.Join("devices/pci"+domainBus, c.Name)
	}
	// Behind a root port of its own node.
	domain := domainBus[:strings.IndexByte(domainBus, ':')]
	port := fmt.Sprintf("%s:00:%02x.0", domain, max(0, c.PCI.NUMANode)+1)
	return path.Join("devices/pci"+domain+":00", port, c.Name)
}

// addVirtual adds a device that is on no bus.
func addVirtual(t *tree, c *Card) {
	dir := deviceDir(c)
	t.mkdir(dir)
	t.symlink(path.Join(dir, "subsystem"), "class/"+c.Driver)
	t.symlink(path.Join("class", c.Driver, c.Name), dir)
}

func addGroup(t *tree, dir string, number int) {
	group := fmt.Sprintf("kernel/iommu_groups/%d", number)
	t.symlink(path.Join(dir, "iommu_group"), group)
	t.symlink(path.Join(group, "devices", path.Base(dir)), dir)
}

func (h *Host) addTypes(t *tree, s *state, c *Card, dir string) {
	t.mkdir(path.Join(dir, "mdev_supported_types"))
	used := s.used(c)
	for i, typ := range c.Types {
		at := path.Join(dir, "mdev_supported_types", c.dirName(typ))
		h.addType(t, at, typ, c.available(typ, used), func(value string) error { return h.create(c.Name, i, value) })
	}
}

func (h *Host) addType(t *tree, at string, typ Type, available int, create func(string) error) {
	t.mkdir(path.Join(at, "devices"))
	t.file(path.Join(at, "available_instances"), fmt.Sprintf("%d\n", available))
	t.file(path.Join(at, "device_api"), "vfio-pci\n")
	if typ.Name != "" {
		t.file(path.Join(at, "name"), typ.Name+"\n")
	}
	if typ.Description != "" {
		t.file(path.Join(at, "description"), typ.Description+"\n")
	}
	t.add(path.Join(at, "create"), writeOnly(create))
}

func (h *Host) addMdev(t *tree, s *state, uuid string, m *mdev) {
	c := s.card(m.Card)
	parent := deviceDir(c)
	var of Type
	if m.VF == "" {
		of = c.Types[m.Type]
	} else {
		parent, of = path.Join(path.Dir(parent), m.VF), c.VGPU.Types[m.Type].Type
	}
	dir := path.Join(parent, uuid)
	typ := path.Join(parent, "mdev_supported_types", c.dirName(of))
	t.symlink(path.Join(dir, "mdev_type"), typ)
	t.symlink(path.Join(dir, "subsystem"), "bus/mdev")
	t.symlink("bus/mdev/devices/"+uuid, dir)
	t.symlink(path.Join(typ, "devices", uuid), dir)
	addGroup(t, dir, m.Group)
	if c.Driver == "nvidia" {
		h.addParams(t, s, dir, uuid)
	}
	t.add(path.Join(dir, "remove"), writeOnly(func(value string) error { return h.remove(uuid, value) }))
}
