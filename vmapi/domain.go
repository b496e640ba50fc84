package vmapi

import (
	"encoding/xml"
	"errors"
	"fmt"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gpuvirt/gpu"
)

// domainXML is the part of a domain's XML that is read. The rest is not even
// parsed, so that a strange disk does not make a VM unreadable; it is never
// written back.
type domainXML struct {
	ID         string                     `xml:"id,attr"`
	UUID       string                     `xml:"uuid"`
	Name       string                     `xml:"name"`
	Hostdevs   []libvirtxml.DomainHostdev `xml:"devices>hostdev"`
	Interfaces []interfaceXML             `xml:"devices>interface"`
	NUMATune   *libvirtxml.DomainNUMATune `xml:"numatune"`
	Metadata   metadataXML                `xml:"metadata"`
}

// interfaceXML is a network interface. One of type hostdev holds a PCI function.
type interfaceXML struct {
	Type    string `xml:"type,attr"`
	Managed string `xml:"managed,attr"`
	Source  struct {
		Address *libvirtxml.DomainAddress `xml:"address"`
	} `xml:"source"`
	Alias   *libvirtxml.DomainAlias   `xml:"alias"`
	Address *libvirtxml.DomainAddress `xml:"address"`
}

// isActive reports whether a domain's XML is that of a running domain: libvirt
// prints the id of those only.
func isActive(doc string) bool {
	d := xml.NewDecoder(strings.NewReader(doc))
	for {
		tok, err := d.Token()
		if err != nil {
			return false
		}
		if start, ok := tok.(xml.StartElement); ok {
			for _, a := range start.Attr {
				if a.Name.Local == "id" {
					return true
				}
			}
			return false
		}
	}
}

// interpret turns what libvirt says of a domain into a VM. Anything that is not
// understood is an error, never a device left out.
func interpret(def definition) (gpu.VM, error) {
	if def.live == "" && def.config == "" {
		return gpu.VM{}, errors.New("libvirt gave no definition")
	}
	vm := gpu.VM{
		State:      stateOf(def),
		Autostart:  def.autostart,
		Persistent: def.persistent,
	}
	var live, config []gpu.Hostdev
	for _, part := range []struct {
		name, doc string
		devs      *[]gpu.Hostdev
	}{{"persistent", def.config, &config}, {"live", def.live, &live}} {
		if part.doc == "" {
			continue
		}
		dom, devs, err := parseDomain(part.doc)
		if err != nil {
			return gpu.VM{}, fmt.Errorf("cannot parse the %s XML: %w", part.name, err)
		}
		if vm.UUID != "" && dom.UUID != vm.UUID {
			return gpu.VM{}, fmt.Errorf("the %s XML is of another domain, %q", part.name, dom.UUID)
		}
		vm.UUID, vm.Name, vm.MemoryNodes, *part.devs = dom.UUID, dom.Name, memoryNodes(dom.NUMATune), devs
		if part.doc == def.config || def.config == "" {
			vm.Mark = dom.Metadata.mark().By
		}
		vm.Trial = dom.Metadata.mark().Trial != "" && part.doc == def.live
	}
	vm.Hostdevs = merge(live, config)
	return vm, nil
}

// stateOf says what a domain does. Whether a hypervisor process exists is told by
// the live XML alone: a domain that "crashed" but was preserved still holds its
// devices, and so counts as paused.
func stateOf(def definition) gpu.VMState {
	switch {
	case def.live != "" && def.state == stateOther:
		return gpu.VMRunning
	case def.live != "":
		return gpu.VMPaused
	case def.state == stateCrashed:
		return gpu.VMCrashed
	default:
		return gpu.VMShutoff
	}
}

// parseDomain reads a domain's identity, with its UUID in our form, and the host devices
// that it names.
func parseDomain(doc string) (dom domainXML, devs []gpu.Hostdev, err error) {
	if err := xml.Unmarshal([]byte(doc), &dom); err != nil {
		return dom, nil, err
	}
	id, err := parseUUID(strings.TrimSpace(dom.UUID))
	if err != nil {
		return dom, nil, fmt.Errorf("uuid %q: %w", dom.UUID, err)
	}
	dom.UUID = id
	for i := range dom.Hostdevs {
		dev, ok, err := readHostdev(&dom.Hostdevs[i])
		if err != nil {
			return dom, nil, fmt.Errorf("hostdev %d: %w", i, err)
		}
		if ok {
			devs = append(devs, dev)
		}
	}
	for i := range dom.Interfaces {
		dev, ok, err := readInterface(&dom.Interfaces[i])
		if err != nil {
			return dom, nil, fmt.Errorf("interface %d: %w", i, err)
		}
		if ok {
			devs = append(devs, dev)
		}
	}
	return dom, devs, nil
}

// readHostdev reads a hostdev of type mdev or pci; others are not ours to know.
func readHostdev(h *libvirtxml.DomainHostdev) (dev gpu.Hostdev, ok bool, err error) {
	switch {
	case h.SubsysMDev != nil:
		m := h.SubsysMDev
		if m.Source == nil || m.Source.Address == nil {
			return dev, false, errors.New("an mdev without source address")
		}
		if dev.Handle.MdevUUID, err = parseUUID(m.Source.Address.UUID); err != nil {
			return dev, false, fmt.Errorf("mdev %q: %w", m.Source.Address.UUID, err)
		}
		dev.Model = m.Model
		dev.Display, dev.RamFB = m.Display == "on", m.RamFB == "on"
	case h.SubsysPCI != nil:
		p := h.SubsysPCI
		if p.Source == nil {
			return dev, false, errors.New("a pci device without source")
		}
		if dev.Handle.PCIAddress, err = pciString(p.Source.Address); err != nil {
			return dev, false, err
		}
		dev.Display, dev.RamFB, dev.Managed = p.Display == "on", p.RamFB == "on", h.Managed == "yes"
	default:
		return dev, false, nil
	}
	dev.Alias, dev.GuestAddress, err = place(h.Alias, h.Address)
	return dev, err == nil, err
}

// readInterface reads an interface that is a host device in disguise.
func readInterface(n *interfaceXML) (dev gpu.Hostdev, ok bool, err error) {
	if n.Type != "hostdev" {
		return dev, false, nil
	}
	if n.Source.Address == nil {
		return dev, false, errors.New("an interface of type hostdev without source address")
	}
	if n.Source.Address.PCI == nil {
		return dev, false, nil // a USB device
	}
	if dev.Handle.PCIAddress, err = pciString(n.Source.Address.PCI); err != nil {
		return dev, false, err
	}
	dev.Managed = n.Managed == "yes"
	dev.Alias, dev.GuestAddress, err = place(n.Alias, n.Address)
	return dev, err == nil, err
}

// place returns a device's alias and its PCI address inside the guest, each empty
// if not told.
func place(alias *libvirtxml.DomainAlias, addr *libvirtxml.DomainAddress) (name, guest string, err error) {
	if alias != nil {
		name = alias.Name
	}
	if addr != nil && addr.PCI != nil {
		guest, err = pciString(addr.PCI)
	}
	return name, guest, err
}

// merge puts the devices of both definitions into one list. A device is the same
// in both if its handle and its user alias are: an alias that means one device
// now and another after the next start stays two entries (T47).
func merge(live, config []gpu.Hostdev) []gpu.Hostdev {
	all := make([]gpu.Hostdev, 0, len(live)+len(config))
	for _, d := range live {
		d.Live = true
		all = append(all, d)
	}
next:
	for _, d := range config {
		for i := range all[:len(live)] {
			l := &all[i]
			if !l.Config && l.Handle == d.Handle && userAlias(l.Alias) == userAlias(d.Alias) {
				l.Config, l.Managed = true, l.Managed || d.Managed
				continue next
			}
		}
		d.Config, d.GuestAddress = true, "" // what the guest has is known from the live XML only
		all = append(all, d)
	}
	return all
}

// userAlias returns an alias if libvirt keeps it across restarts, else "".
func userAlias(alias string) string {
	if strings.HasPrefix(alias, "ua-") {
		return alias
	}
	return ""
}
