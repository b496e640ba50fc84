// Package verify finds out whether a VM is what the physical server was that it was made
// of: does it boot, are its devices, filesystems and addresses there, do the services run
// that used the GPU, do a person's own checks pass? It asks the same of the source before,
// so that there is a report of before and after.
//
// It only speaks through interfaces: to the guest by commands of qemu-guest-agent, to the
// source by whatever runs programs there. Both are machines that nobody here trusts: what
// they answer is bounded and cleaned, and none of it is a path or a word of a command.
// What could not be looked at is unknown, which is never taken for good.
package verify

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Expect is what the VM should be like, worked out from the plan and the inspection.
type Expect struct {
	// Up is how long the guest agent may take to answer for the first time, Deadline how
	// long it may take from the beginning until all is there. The person's own checks have
	// their own time after it.
	Up       time.Duration `json:"up_nanoseconds"`
	Deadline time.Duration `json:"deadline_nanoseconds"`
	Hostname string        `json:"hostname"` // empty: not looked at
	Devices  []Device      `json:"devices"`
	// Driver is the name of the kernel's driver that should hold each of the devices; empty:
	// none is installed yet.
	Driver string `json:"driver,omitempty"`
	// Services are units of systemd that used the GPU and were active on the source.
	Services []string `json:"services"`
	// Containers used the GPU, and ran on the source.
	Containers []Container `json:"containers"`
	// MayFail are units whose failure is told and not held against the VM, as they serve
	// hardware that a VM lacks.
	MayFail   []string  `json:"may_fail"`
	Mounts    []Mount   `json:"mounts"`
	Addresses []Address `json:"addresses"`
	Checks    []Check   `json:"checks"`
	// Network is false in a rehearsal, which has no network: neither addresses nor what needs
	// them are expected.
	Network bool `json:"network"`
}

// Device is a PCI device that should be there, by the numbers of its kind in lower-case
// hexadecimal digits. Without a device number it is any of the vendor, without both any;
// but then none of those that QEMU emulates itself.
type Device struct {
	Vendor string `json:"vendor,omitempty"` // "10de"
	Device string `json:"device,omitempty"` // "2330"
}

func (d Device) String() string {
	switch {
	case d.Vendor == "":
		return "any device that was handed in"
	case d.Device == "":
		return "any device of " + d.Vendor
	}
	return d.Vendor + ":" + d.Device
}

// Mount is a place where a filesystem should be mounted.
type Mount struct {
	Path string `json:"path"`
	Type string `json:"type,omitempty"` // "ext4"; empty: any
}

// Address is the IP addresses that a network device should have.
type Address struct {
	MAC string   `json:"mac"` // empty: it does not matter which device has them
	IPs []string `json:"ips"` // "10.1.2.3" or "10.1.2.3/24"; link-local ones do not count
}

// Check is a person's own check: a program, and what it should say.
type Check struct {
	Name    string   `json:"name"`
	Command []string `json:"command"` // the program and its arguments; no shell reads them
	// Seconds is how long it may take; 0: 60. In the VM it is tried again within that time
	// until it passes.
	Seconds int `json:"seconds,omitempty"`
	Exit    int `json:"exit,omitempty"` // the exit status that is right
	// Output is a regular expression (RE2) that its output matches, without the line ends
	// that it ends with; empty: any output is right.
	Output string `json:"output,omitempty"`
}

// Limits of what is expected.
const (
	MaxChecks       = 32
	MaxCheckSeconds = 3600
	maxListed       = 256 // devices, services, containers, mounts, addresses
	defaultSeconds  = 60
)

var (
	checkName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	unitName  = regexp.MustCompile(`^[A-Za-z0-9:_.@][A-Za-z0-9:_.\\@-]{0,254}$`)
	pciNumber = regexp.MustCompile(`^[0-9a-f]{4}$`)
	driver    = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
)

// Check refuses what makes no sense. The error says which field is wrong.
func (c Check) Check() error {
	bytes := 0
	for _, word := range c.Command {
		bytes += len(word)
		if !utf8.ValidString(word) || strings.IndexFunc(word, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }) >= 0 {
			return fmt.Errorf("command: %q has a character that no argument has", word)
		}
	}
	switch {
	case !checkName.MatchString(c.Name):
		return fmt.Errorf("name %q is none: lower-case letters, digits and hyphens, 63 at most", c.Name)
	case len(c.Command) == 0 || c.Command[0] == "":
		return errors.New("command is empty")
	case len(c.Command) > 64 || bytes > 16<<10:
		return errors.New("command is too long: 64 words and 16 KiB are the most")
	case c.Seconds < 0 || c.Seconds > MaxCheckSeconds:
		return fmt.Errorf("seconds %d: it must be 1 to %d", c.Seconds, MaxCheckSeconds)
	case c.Exit < 0 || c.Exit > 255:
		return fmt.Errorf("exit %d: it must be 0 to 255", c.Exit)
	case len(c.Output) > 1024:
		return errors.New("output is too long: 1024 bytes are the most")
	}
	if _, err := regexp.Compile(c.Output); err != nil {
		return fmt.Errorf("output is no regular expression: %w", err)
	}
	return nil
}

// CheckAll refuses a list of checks that makes no sense.
func CheckAll(checks []Check) error {
	if len(checks) > MaxChecks {
		return fmt.Errorf("checks: there are %d, %d are the most", len(checks), MaxChecks)
	}
	for i, c := range checks {
		if err := c.Check(); err != nil {
			return fmt.Errorf("checks[%d]: %w", i, err)
		}
		if slices.ContainsFunc(checks[:i], func(o Check) bool { return o.Name == c.Name }) {
			return fmt.Errorf("checks[%d]: there are two of the name %q", i, c.Name)
		}
	}
	return nil
}

func (c Check) limit() time.Duration {
	if c.Seconds == 0 {
		return defaultSeconds * time.Second
	}
	return time.Duration(c.Seconds) * time.Second
}

// Check refuses what cannot be looked at. Names of units and addresses come from the
// source, so a wrong one is an answer of a machine and no fault of a person: they are looked
// at one by one, and unknown where they are wrong.
func (e Expect) Check() error {
	if e.Up <= 0 || e.Deadline < e.Up {
		return fmt.Errorf("up %s and deadline %s are none: up is more than 0, deadline not less than up", e.Up, e.Deadline)
	}
	for _, list := range []struct {
		name string
		n    int
	}{{"devices", len(e.Devices)}, {"services", len(e.Services)}, {"containers", len(e.Containers)}, {"mounts", len(e.Mounts)}, {"addresses", len(e.Addresses)}} {
		if list.n > maxListed {
			return fmt.Errorf("%s: there are %d, %d are the most", list.name, list.n, maxListed)
		}
	}
	for i, d := range e.Devices {
		if d.Vendor != "" && !pciNumber.MatchString(d.Vendor) || d.Device != "" && (d.Vendor == "" || !pciNumber.MatchString(d.Device)) {
			return fmt.Errorf("devices[%d]: %q:%q is none: four digits, such as 10de:2330", i, d.Vendor, d.Device)
		}
	}
	if e.Driver != "" && !driver.MatchString(e.Driver) {
		return fmt.Errorf("driver %q is none", e.Driver)
	}
	return CheckAll(e.Checks)
}

// Longest is how long it may take to verify all of it.
func (e Expect) Longest() time.Duration {
	d := e.Deadline + closing
	for _, c := range e.Checks {
		d += c.limit() + reserve
	}
	return d
}

// wanted returns the IP addresses that count.
func (a Address) wanted() (ips []netip.Addr, err error) {
	for _, text := range a.IPs {
		address, _, _ := strings.Cut(text, "/")
		ip, err := netip.ParseAddr(address)
		if err != nil {
			return nil, errors.New("an address of the source is none")
		}
		if !ip.IsLinkLocalUnicast() && !ip.IsLoopback() {
			ips = append(ips, ip.Unmap().WithZone(""))
		}
	}
	return ips, nil
}
