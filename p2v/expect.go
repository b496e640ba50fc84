package p2v

import (
	"context"
	"regexp"
	"slices"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
	"gpuvirt/p2v/verify"
)

// expect is what a VM should be like.
func (m *Migrations) expect(ctx context.Context, rec move.Record, network bool) (verify.Expect, error) {
	seen, err := m.inspected(rec.Assessment)
	if err != nil {
		return verify.Expect{}, err
	}
	e := expected(*seen.Report, rec)
	e.Up, e.Deadline = m.cfg.Patience.Boot, m.cfg.Patience.Boot+m.cfg.Patience.Settle
	e.Network = network
	if n := len(rec.Attempts); n > 0 {
		e.Driver = rec.Attempts[n-1].Driver
	}
	for _, s := range rec.VM.Slices {
		g, err := m.gpu(ctx, s.GPU)
		if err != nil {
			return e, err
		}
		e.Devices = append(e.Devices, deviceOf(g, s.Profile))
	}
	return e, nil
}

// How many services and containers of a server are looked at, each in a result of its own.
const (
	mostServices   = 100
	mostContainers = 50
)

// expected is what follows from an inspection.
func expected(r report.Report, rec move.Record) verify.Expect {
	e := verify.Expect{Hostname: r.Hostname, Checks: rec.Wanted.Checks}
	for _, s := range r.Services {
		if s.Role == "workload" && s.State == "active" && len(e.Services) < mostServices {
			e.Services = append(e.Services, s.Unit)
		}
	}
	e.Containers = containersOf(r)
	for _, f := range r.Filesystems {
		if moved(r, rec, f) {
			e.Mounts = append(e.Mounts, verify.Mount{Path: f.Mount, Type: f.Type})
		}
	}
	for _, n := range r.NICs {
		own := slices.DeleteFunc(slices.Clone(n.Addresses), func(a string) bool { return slices.Contains(n.Learned, a) })
		if n.Kind == "physical" && n.Up && len(own) > 0 && connected(rec.Wanted, n.MAC) {
			e.Addresses = append(e.Addresses, verify.Address{MAC: n.MAC, IPs: own})
		}
	}
	return e
}

// containersOf are the containers that used a GPU and ran. Those of one name count once: of
// Kubernetes each pod may have one of it.
func containersOf(r report.Report) (out []verify.Container) {
	for _, w := range r.Containers {
		c := verify.Container{Runtime: w.Runtime, Name: w.Name, ID: w.ID, Restart: w.Restart}
		same := func(o verify.Container) bool { return o.Runtime == c.Runtime && o.Name == c.Name }
		if w.State == "running" && len(out) < mostContainers && !slices.ContainsFunc(out, same) {
			out = append(out, c)
		}
	}
	return out
}

// moved reports whether a filesystem lies on the disks that are moved, as far as its name
// tells: one on volumes does if all disks are moved.
func moved(r report.Report, rec move.Record, f report.Filesystem) bool {
	if strings.Contains(f.Source, ":") || strings.HasPrefix(f.Source, "//") {
		return false // of the network
	}
	on := func(d move.Disk) bool { return strings.HasPrefix(f.Source, d.Name) }
	whole := !slices.ContainsFunc(r.Disks, func(d report.Disk) bool {
		return !slices.ContainsFunc(rec.Disks, func(m move.Disk) bool { return m.Name == d.Name })
	})
	return whole || slices.ContainsFunc(rec.Disks, on)
}

// connected reports whether a NIC is plugged in somewhere.
func connected(w move.VMWish, mac string) bool {
	for _, n := range w.NICs {
		if strings.EqualFold(n.MAC, mac) {
			return n.Network != "" || n.Bridge != ""
		}
	}
	return w.Network != "" || w.Bridge != ""
}

// vendors are the numbers of those that make GPUs, as PCI has them.
var vendors = map[string]string{"NVIDIA": "10de", "AMD": "1002", "Intel": "8086"}

// samples are what devices of the kernel's sample drivers look like, by the driver. Those of
// mbochs look like QEMU's own display, which a VM that is moved does not have.
var samples = map[string]verify.Device{
	"mbochs": {Vendor: "1234", Device: "1111"}, "mdpy": {Vendor: "1b36", Device: "000f"}, "mtty": {Vendor: "4348", Device: "3253"},
}

// deviceOf is what a guest sees of a partition. A whole card is the card itself, and a virtual
// function has the number that its card says of all of them. NVIDIA's vGPUs have the number of
// their card, and another subsystem for each type; Intel's mediated ones are their parent's
// likeness. Of others it is known of which vendor they are, where their GPU is a PCI device,
// and else that they are there.
func deviceOf(g gpu.GPU, profile string) verify.Device {
	vendor := vendors[g.Vendor]
	if sample, is := samples[g.Vendor]; is {
		return sample
	}
	kind, number, _ := strings.Cut(profile, "-")
	if d, ok := pciDevice(number); ok && (kind == "card" || kind == "vf") {
		return d
	}
	if d, ok := pciDevice(g.Identity.Model); ok && d.Vendor == vendor && (g.Vendor == "NVIDIA" || g.Vendor == "Intel") {
		return d
	}
	return verify.Device{Vendor: vendor}
}

var pciNumbers = regexp.MustCompile(`^[0-9a-f]{4}:[0-9a-f]{4}$`)

// pciDevice reads the numbers of a device, such as "10de:2330".
func pciDevice(text string) (verify.Device, bool) {
	text = strings.ToLower(text)
	vendor, device, _ := strings.Cut(text, ":")
	return verify.Device{Vendor: vendor, Device: device}, pciNumbers.MatchString(text)
}
