package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"gpuvirt/api"
)

// A domain is what a hook has to know of a VM's definition.
type domain struct {
	uuid    string
	devices []api.Handle // of the host: mediated devices and PCI functions
}

// hostdevXML is a device of the host in libvirt's XML, or a network interface that is one.
type hostdevXML struct {
	Type    string `xml:"type,attr"`
	Address struct {
		UUID     string `xml:"uuid,attr"`
		Domain   string `xml:"domain,attr"`
		Bus      string `xml:"bus,attr"`
		Slot     string `xml:"slot,attr"`
		Function string `xml:"function,attr"`
	} `xml:"source>address"`
}

// parseDomain reads libvirt's XML. The rest of it is not looked at.
func parseDomain(text []byte) (domain, error) {
	var doc struct {
		XMLName    xml.Name     `xml:"domain"`
		UUID       string       `xml:"uuid"`
		Hostdevs   []hostdevXML `xml:"devices>hostdev"`
		Interfaces []hostdevXML `xml:"devices>interface"`
	}
	if err := xml.Unmarshal(text, &doc); err != nil {
		return domain{}, err
	}
	d := domain{uuid: strings.ToLower(strings.TrimSpace(doc.UUID)), devices: []api.Handle{}}
	if d.uuid == "" {
		return domain{}, errors.New("it has no uuid")
	}
	for _, h := range doc.Hostdevs {
		switch h.Type {
		case "mdev":
			d.devices = append(d.devices, api.Handle{MdevUUID: strings.ToLower(h.Address.UUID)})
		case "pci":
			a, err := h.pci()
			if err != nil {
				return domain{}, err
			}
			d.devices = append(d.devices, api.Handle{PCIAddress: a})
		}
	}
	for _, i := range doc.Interfaces {
		if i.Type != "hostdev" {
			continue
		}
		a, err := i.pci()
		if err != nil {
			return domain{}, err
		}
		d.devices = append(d.devices, api.Handle{PCIAddress: a})
	}
	return d, nil
}

// pci is the address as the kernel writes it. libvirt writes its numbers in any base, and may
// leave out a domain of 0.
func (h hostdevXML) pci() (string, error) {
	var n [4]uint64
	for i, part := range []struct {
		text string
		bits int
	}{{h.Address.Domain, 32}, {h.Address.Bus, 8}, {h.Address.Slot, 5}, {h.Address.Function, 3}} {
		if part.text == "" && i == 0 {
			continue
		}
		v, err := strconv.ParseUint(part.text, 0, part.bits)
		if err != nil {
			return "", fmt.Errorf("the address of a PCI device: %w", err)
		}
		n[i] = v
	}
	return fmt.Sprintf("%04x:%02x:%02x.%d", n[0], n[1], n[2], n[3]), nil
}
