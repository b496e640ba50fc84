package gpu

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// An Address is the place of a PCI function: all four parts, always. It is
// comparable; the zero value is 0000:00:00.0.
type Address struct {
	Domain   uint32 // 0x10000 and above behind a VMD controller
	Bus      uint8
	Slot     uint8 // 0…0x1f
	Function uint8 // 0…7
}

// ParseAddress reads an address as sysfs writes it ("0000:41:00.0", with five or
// more digits of domain where they are needed) or as NVML does
// ("00000000:41:00.0"), in either case of letters. An address without its domain
// is refused: it would name another card on a host with two domains.
func ParseAddress(s string) (Address, error) {
	domain, rest, ok1 := strings.Cut(s, ":")
	bus, rest, ok2 := strings.Cut(rest, ":")
	slot, function, ok3 := strings.Cut(rest, ".")
	if !ok1 || !ok2 || !ok3 || len(domain) < 4 || len(domain) > 8 || len(bus) != 2 || len(slot) != 2 || len(function) != 1 {
		return Address{}, fmt.Errorf("cannot read pci address %q: want domain:bus:slot.function as in 0000:41:00.0", s)
	}
	a, err := parseParts(domain, bus, slot, function)
	if err != nil {
		return Address{}, fmt.Errorf("cannot read pci address %q: %w", s, err)
	}
	return a, nil
}

// ParseAddressFields reads the four attributes of libvirt's <address type='pci'>,
// which are hexadecimal with 0x in front. libvirt leaves a zero domain out in
// places, so an empty domain is 0.
func ParseAddressFields(domain, bus, slot, function string) (Address, error) {
	if domain == "" {
		domain = "0x0"
	}
	parts := [4]string{domain, bus, slot, function}
	for i, p := range parts {
		hex, ok := strings.CutPrefix(strings.ToLower(p), "0x")
		if !ok {
			return Address{}, fmt.Errorf("cannot read pci address part %q: want hexadecimal with 0x in front", p)
		}
		parts[i] = hex
	}
	return parseParts(parts[0], parts[1], parts[2], parts[3])
}

func parseParts(domain, bus, slot, function string) (Address, error) {
	var out [4]uint32
	parts := [4]struct {
		name, text string
		limit      uint64
	}{{"domain", domain, 1<<32 - 1}, {"bus", bus, 0xff}, {"slot", slot, 0x1f}, {"function", function, 7}}
	for i, p := range parts {
		n, err := strconv.ParseUint(p.text, 16, 32)
		if err != nil || n > p.limit {
			return Address{}, fmt.Errorf("%s %q is not hexadecimal from 0 to %x", p.name, p.text, p.limit)
		}
		out[i] = uint32(n)
	}
	return Address{Domain: out[0], Bus: uint8(out[1]), Slot: uint8(out[2]), Function: uint8(out[3])}, nil //nolint:gosec // within the limits above
}

// String writes the address as sysfs does: 4+2+2+1 digits, lower case, with more
// digits of domain only where they are needed.
func (a Address) String() string {
	return fmt.Sprintf("%04x:%02x:%02x.%x", a.Domain, a.Bus, a.Slot, a.Function)
}

// ID returns the ID of a GPU at this address.
func (a Address) ID() ID { return ID(a.String()) }

// Compare orders addresses by domain, bus, slot and function.
func (a Address) Compare(b Address) int {
	return cmp.Or(
		cmp.Compare(a.Domain, b.Domain), cmp.Compare(a.Bus, b.Bus),
		cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.Function, b.Function),
	)
}

// MarshalText writes the address as String does.
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads what ParseAddress reads.
func (a *Address) UnmarshalText(text []byte) error {
	parsed, err := ParseAddress(string(text))
	if err != nil {
		return err
	}
	*a = parsed
	return nil
}
