package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A pciDevice is one that the kernel sees.
type pciDevice struct {
	Address   string // "0000:05:00.0"
	Class     string // six digits: "030200"
	Vendor    string // "10de"
	Device    string // "2330"
	Subsystem string // "10de:1658"
	Driver    string // empty: none
}

func (d pciDevice) String() string {
	driver := d.Driver
	if driver == "" {
		driver = "no driver"
	}
	return oneLine(fmt.Sprintf("%s %s:%s (%s)", d.Address, d.Vendor, d.Device, driver), 120)
}

// handedIn tells a device that was given to the VM from those that QEMU emulates: bridges,
// and what has the numbers of QEMU's, as a device of its own or as another's subsystem.
func (d pciDevice) handedIn() bool {
	return !strings.HasPrefix(d.Class, "06") && !slices.Contains([]string{"1af4", "1b36", "1234"}, d.Vendor) && d.Subsystem != "1af4:1100"
}

func (d Device) matches(p pciDevice) bool {
	if d.Device != "" {
		return d.Vendor == p.Vendor && d.Device == p.Device
	}
	return p.handedIn() && (d.Vendor == "" || d.Vendor == p.Vendor)
}

// lookTime is for one program of ours.
const lookTime = 30 * time.Second

// pciDevices asks a machine's kernel for its PCI devices.
func pciDevices(ctx context.Context, m machine) ([]pciDevice, error) {
	out, err := m.within(ctx, lookTime, "find", "-L", "/sys/bus/pci/devices", "-mindepth", "2", "-maxdepth", "2", "-name", "uevent", "-exec", "cat", "{}", "+")
	if err != nil {
		return nil, err
	}
	all := parseUevents(out.Stdout)
	if len(all) == 0 && out.Exit != 0 {
		return nil, fmt.Errorf("cannot list PCI devices: exit status %d: %s", out.Exit, out.lastLine())
	}
	return all, nil
}

// parseUevents reads the kernel's descriptions of PCI devices, one after the other. Each
// has its driver, if there is one, before all else, and its address after its numbers.
func parseUevents(text string) (all []pciDevice) {
	var d pciDevice
	for line := range strings.SplitSeq(text, "\n") {
		key, value, _ := strings.Cut(strings.ToLower(line), "=")
		value = oneLine(value, 60)
		switch key {
		case "driver":
			_, value, _ = strings.Cut(line, "=")
			d.Driver = oneLine(value, 60)
		case "pci_class":
			d.Class = strings.Repeat("0", max(0, 6-len(value))) + value
		case "pci_id":
			d.Vendor, d.Device, _ = strings.Cut(value, ":")
		case "pci_subsys_id":
			d.Subsystem = value
		case "pci_slot_name":
			d.Address = value
		case "modalias": // the last of each
			if d.Vendor != "" && len(all) < maxNamed {
				all = append(all, d)
			}
			d = pciDevice{}
		}
	}
	return all
}

// assign gives each wish a device of its own, to those that ask for most first. It returns
// the devices, and the wishes that got none.
func assign(want []Device, have []pciDevice) (got []pciDevice, lacking []string) {
	want = slices.SortedStableFunc(slices.Values(want), func(a, b Device) int { return b.asks() - a.asks() })
	have = slices.Clone(have)
	for _, w := range want {
		i := slices.IndexFunc(have, w.matches)
		if i < 0 {
			lacking = append(lacking, w.String())
			continue
		}
		got = append(got, have[i])
		have = slices.Delete(have, i, i+1)
	}
	return got, lacking
}

// asks is how much a wish asks for.
func (d Device) asks() int { return len(d.Vendor) + len(d.Device) }

// devices looks for the devices of the VM's partitions. The kernel finds them before it
// starts anything, so they do not come later.
func (v *verification) devices(ctx context.Context) seen {
	have, err := pciDevices(ctx, v.machine)
	if err != nil {
		return unseen(err)
	}
	got, lacking := assign(v.expect.Devices, have)
	if len(lacking) == 0 {
		return seen{state: StateOK, text: listed(texts(got))}
	}
	others := slices.DeleteFunc(slices.Clone(have), func(d pciDevice) bool { return !d.handedIn() })
	there := "none that was handed in"
	if len(others) > 0 {
		there = listed(texts(others))
	}
	return seen{state: StateFailed, text: fmt.Sprintf("not there: %s; there is %s", listed(lacking), there)}
}

func texts[T fmt.Stringer](all []T) (out []string) {
	for _, a := range all {
		out = append(out, a.String())
	}
	return out
}

// driverLook looks whether the driver that is installed holds the devices.
func (v *verification) driverLook() func(context.Context) seen {
	if v.expect.Driver == "" {
		return func(context.Context) seen {
			return seen{state: StateSkipped, text: "none is installed yet"}
		}
	}
	return v.program(func(ctx context.Context) seen {
		have, err := pciDevices(ctx, v.machine)
		if err != nil {
			return unseen(err)
		}
		got, _ := assign(v.expect.Devices, have)
		if len(got) == 0 {
			return unseen(errors.New("none of the devices is there"))
		}
		others := slices.DeleteFunc(got, func(d pciDevice) bool {
			return d.Driver == v.expect.Driver || v.expect.Driver == nvidia && d.Vendor != nvidiaVendor // it is not for it
		})
		if len(others) > 0 {
			return seen{state: StateFailed, text: fmt.Sprintf("%s does not hold %s", v.expect.Driver, listed(texts(others))), wait: short}
		}
		return seen{state: StateOK, text: v.expect.Driver + " holds all that are for it"}
	})
}
