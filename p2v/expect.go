package p2v

import (
	"context"
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
	for _, s := range rec.VM.Slices {
		g, err := m.gpu(ctx, s.GPU)
		if err != nil {
			return e, err
		}
		e.Devices = append(e.Devices, deviceOf(g, s.Profile))
	}
	return e, nil
}

// mostServices is how many services of a server are looked at, each in a result of its own.
const mostServices = 100

// expected is what follows from an inspection.
func expected(r report.Report, rec move.Record) verify.Expect {
	e := verify.Expect{Hostname: r.Hostname, Checks: rec.Wanted.Checks}
	for _, s := range r.Services {
		if s.Role == "workload" && s.State == "active" && len(e.Services) < mostServices {
			e.Services = append(e.Services, s.Unit)
		}
	}
	for _, f := range r.Filesystems {
		if moved(r, rec, f) {
			e.Mounts = append(e.Mounts, verify.Mount{Path: f.Mount, Type: f.Type})
		}
	}
	for _, n := range r.NICs {
		if n.Kind == "physical" && n.Up && len(n.Addresses) > 0 && connected(rec.Wanted, n.MAC) {
			e.Addresses = append(e.Addresses, verify.Address{MAC: n.MAC, IPs: n.Addresses})
		}
	}
	return e
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

// deviceOf is what a guest sees of a partition. A whole card is the card itself; of others it
// is known of which vendor they are, where their GPU is a PCI device, and else that they are
// there.
func deviceOf(g gpu.GPU, profile string) verify.Device {
	vendor := vendors[g.Vendor]
	if number, whole := strings.CutPrefix(profile, "card-"); whole {
		if v, d, found := strings.Cut(number, ":"); found {
			return verify.Device{Vendor: v, Device: d}
		}
	}
	return verify.Device{Vendor: vendor}
}
