package vmapi

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gpuvirt/gpu"
)

var (
	aliasPattern = regexp.MustCompile(`^ua-[A-Za-z0-9_-]+$`)
	modelPattern = regexp.MustCompile(`^vfio-[a-z]+$`)
	uuidPattern  = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
)

// hostdevXML prints the XML that adds or removes a device. The alias is ours to
// choose, so that the device is found again by it and by nothing else.
func hostdevXML(dev gpu.Hostdev) (string, error) {
	if err := checkAlias(dev.Alias); err != nil {
		return "", err
	}
	h := libvirtxml.DomainHostdev{
		Managed: "no",
		Alias:   &libvirtxml.DomainAlias{Name: dev.Alias},
	}
	if dev.RamFB && !dev.Display {
		return "", errors.New("a device that is no display shows no firmware")
	}
	mdev, pci := dev.Handle.MdevUUID, dev.Handle.PCIAddress
	switch {
	case (mdev == "") == (pci == ""):
		return "", errors.New("a device has an mdev UUID or a PCI address, and not both")
	case mdev != "":
		if _, err := parseUUID(mdev); err != nil {
			return "", fmt.Errorf("mdev %q: %w", mdev, err)
		}
		model := dev.Model
		if model == "" {
			model = "vfio-pci"
		}
		if !modelPattern.MatchString(model) {
			return "", fmt.Errorf("model %q is none that libvirt has", model)
		}
		h.SubsysMDev = &libvirtxml.DomainHostdevSubsysMDev{
			Model:  model,
			Source: &libvirtxml.DomainHostdevSubsysMDevSource{Address: &libvirtxml.DomainAddressMDev{UUID: mdev}},
		}
		h.SubsysMDev.Display, h.SubsysMDev.RamFB = on(dev.Display), on(dev.RamFB)
	default:
		addr, err := gpu.ParseAddress(pci)
		if err != nil {
			return "", err
		}
		domain, bus, slot, function := uint(addr.Domain), uint(addr.Bus), uint(addr.Slot), uint(addr.Function)
		h.SubsysPCI = &libvirtxml.DomainHostdevSubsysPCI{
			Display: on(dev.Display), RamFB: on(dev.RamFB),
			Source: &libvirtxml.DomainHostdevSubsysPCISource{Address: &libvirtxml.DomainAddressPCI{
				Domain: &domain, Bus: &bus, Slot: &slot, Function: &function,
			}},
		}
	}
	return h.Marshal()
}

// on is an attribute of the XML that is left out where it says what is so by itself.
func on(is bool) string {
	if is {
		return "on"
	}
	return ""
}

// checkAlias refuses an alias that libvirt would replace by one of its own.
func checkAlias(alias string) error {
	if !aliasPattern.MatchString(alias) {
		return fmt.Errorf("alias %q does not match %s", alias, aliasPattern)
	}
	return nil
}

// parseUUID accepts the form that libvirt prints, in either case of letters.
func parseUUID(s string) (string, error) {
	s = strings.ToLower(s)
	if !uuidPattern.MatchString(s) {
		return "", errors.New("not a UUID")
	}
	return s, nil
}

// pciString prints a PCI address of the XML as the kernel does.
func pciString(a *libvirtxml.DomainAddressPCI) (string, error) {
	if a == nil || a.Bus == nil || a.Slot == nil || a.Function == nil {
		return "", errors.New("an incomplete PCI address")
	}
	var domain uint
	if a.Domain != nil {
		domain = *a.Domain
	}
	addr, err := gpu.ParseAddress(fmt.Sprintf("%04x:%02x:%02x.%x", domain, *a.Bus, *a.Slot, *a.Function))
	if err != nil {
		return "", err
	}
	return addr.String(), nil
}

// canonical returns a handle, which hostdevXML has accepted, in the spelling that
// reading a VM gives.
func canonical(h gpu.Handle) gpu.Handle {
	h.MdevUUID = strings.ToLower(h.MdevUUID)
	if a, err := gpu.ParseAddress(h.PCIAddress); err == nil {
		h.PCIAddress = a.String()
	}
	return h
}

// handleName names a device for people.
func handleName(h gpu.Handle) string {
	if h.MdevUUID != "" {
		return "mdev " + h.MdevUUID
	}
	return "PCI device " + h.PCIAddress
}
