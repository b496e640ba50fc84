package guest

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/report"
)

func mapping(disks int) Mapping {
	m := Mapping{Name: "metal1", UUID: "5e9f3a52-5dd1-4d0c-9b5e-2f64d7a7a001", SerialLog: "/m/serial.log"}
	for i := range disks {
		m.Disks = append(m.Disks, fmt.Sprintf("/m/%d.qcow2", i))
	}
	return m
}

// A server with UEFI that had a card, and one with BIOS whose disks open with a TPM.
func TestDomainXML(t *testing.T) {
	uefi, bios := inspected(t, "debian-a100"), inspected(t, "ubuntu-luks")
	for name, c := range map[string]struct {
		r report.Report
		w assess.Wish
		m func(*Mapping)
	}{
		"uefi.xml": {uefi, assess.Wish{MemoryBytes: 64*gib + 1, Threads: 16}, func(m *Mapping) {
			m.VFIO, m.NICs = true, map[string]NIC{"eno1": {Bridge: "br0"}}
		}},
		"bios.xml": {bios, assess.Wish{}, func(m *Mapping) { m.MemoryBytes, m.VCPUs, m.CPU = 8*gib, 4, "EPYC-Rome" }},
	} {
		m := mapping(len(assess.Disks(c.r, c.w)))
		c.m(&m)
		d, err := Domain(c.r, c.w, m)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := d.XML()
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, doc)
	}
}

// bare is a server about which only that is known which has to be.
func bare() report.Report {
	return report.Report{
		Firmware: report.Firmware{Type: "uefi"}, CPU: report.CPU{Threads: 8}, Memory: report.Memory{TotalBytes: 8 * gib},
		Disks: []report.Disk{{Name: "sda"}, {Name: "nvme0n1", Boots: true}},
		NICs: []report.NIC{
			{Name: "eth10", MAC: "52:54:00:aa:bb:10", Kind: "physical"},
			{Name: "eth2", MAC: "52:54:00:AA:BB:02", Kind: "physical"},
			{Name: "bond0", MAC: "52:54:00:aa:bb:02", Kind: "bond"},
			{Name: "eth2.7", MAC: "52:54:00:aa:bb:02", Kind: "vlan"},
			{Name: "wlp1s0", MAC: "52:54:00:aa:bb:03", Kind: "physical"},
			{Name: "ib0", MAC: "00:11", Kind: "physical"},
			{Name: "eth11", MAC: "52:54:00:aa:bb:10", Kind: "physical"},
			{Name: "eth12", MAC: "01:54:00:aa:bb:10", Kind: "physical"},
			{Name: "eth13", MAC: "00:00:00:00:00:00", Kind: "physical"},
		},
	}
}

func TestDomain(t *testing.T) {
	yes := true
	down := []convert.DomainNIC{{MAC: "52:54:00:aa:bb:02", Down: true}, {MAC: "52:54:00:aa:bb:10", Down: true}}
	for name, c := range map[string]struct {
		change func(*report.Report, *assess.Wish, *Mapping)
		want   func(*convert.Domain)
	}{
		"the server's": {nil, func(*convert.Domain) {}},
		"the plan's":   {func(_ *report.Report, w *assess.Wish, _ *Mapping) { w.MemoryBytes, w.Threads = gib, 2 }, func(d *convert.Domain) { d.MemoryBytes, d.VCPUs = gib, 2 }},
		"what is said": {func(_ *report.Report, w *assess.Wish, m *Mapping) {
			w.MemoryBytes, w.Threads, m.MemoryBytes, m.VCPUs = gib, 2, 2*gib, 3
		}, func(d *convert.Domain) { d.MemoryBytes, d.VCPUs = 2*gib, 3 }},
		"whole MiB":    {func(r *report.Report, _ *assess.Wish, _ *Mapping) { r.Memory.TotalBytes = 8*gib - 1 }, func(*convert.Domain) {}},
		"many threads": {func(r *report.Report, _ *assess.Wish, _ *Mapping) { r.CPU.Threads = 512 }, func(d *convert.Domain) { d.VCPUs = 255 }},
		"bios": {func(r *report.Report, _ *assess.Wish, _ *Mapping) {
			r.Firmware.Type, r.Firmware.SecureBoot = "bios", &yes
		}, func(d *convert.Domain) { d.Firmware = convert.FirmwareBIOS }},
		"secure boot":    {func(r *report.Report, _ *assess.Wish, _ *Mapping) { r.Firmware.SecureBoot = &yes }, func(d *convert.Domain) { d.SecureBoot = true }},
		"a TPM for none": {func(r *report.Report, _ *assess.Wish, _ *Mapping) { r.Firmware.TPM = "2.0" }, func(*convert.Domain) {}},
		"a TPM":          {func(r *report.Report, _ *assess.Wish, _ *Mapping) { r.Volumes = []report.Volume{{TPM: true}} }, func(d *convert.Domain) { d.TPM = true }},
		"one disk": {func(_ *report.Report, w *assess.Wish, m *Mapping) {
			w.Disks, m.Disks = []string{"nvme0n1"}, m.Disks[:1]
		}, func(d *convert.Domain) {
			d.Disks, d.Boot = d.Disks[:1], 0
		}},
		"disks in another order": {func(r *report.Report, _ *assess.Wish, _ *Mapping) { slices.Reverse(r.Disks) }, func(d *convert.Domain) { d.Boot = 0 }},
		"NICs in another order":  {func(r *report.Report, _ *assess.Wish, _ *Mapping) { slices.Reverse(r.NICs) }, func(*convert.Domain) {}},
		"no boot disk":           {func(r *report.Report, _ *assess.Wish, _ *Mapping) { r.Disks[1].Boots = false }, func(d *convert.Domain) { d.Boot = 0 }},
		"mapped": {func(_ *report.Report, _ *assess.Wish, m *Mapping) {
			m.NICs, m.Default = map[string]NIC{"52:54:00:AA:bb:10": {Network: "storage", Down: true}}, NIC{Bridge: "br0"}
		}, func(d *convert.Domain) {
			d.NICs = []convert.DomainNIC{{MAC: "52:54:00:aa:bb:02", Bridge: "br0"}, {MAC: "52:54:00:aa:bb:10", Network: "storage", Down: true}}
		}},
		"unplugged": {func(_ *report.Report, _ *assess.Wish, m *Mapping) {
			m.NICs, m.Default = map[string]NIC{"eth2": {}}, NIC{Network: "lan"}
		}, func(d *convert.Domain) {
			d.NICs = []convert.DomainNIC{{MAC: "52:54:00:aa:bb:02", Down: true}, {MAC: "52:54:00:aa:bb:10", Network: "lan"}}
		}},
		"as it is run": {func(_ *report.Report, _ *assess.Wish, m *Mapping) { m.VFIO, m.Emulated, m.CPU = true, true, "maximum" }, func(d *convert.Domain) { d.VFIO, d.Emulated, d.CPU = true, true, "maximum" }},
	} {
		t.Run(name, func(t *testing.T) {
			r, w, m := bare(), assess.Wish{}, mapping(2)
			if c.change != nil {
				c.change(&r, &w, &m)
			}
			want := convert.Domain{
				Name: m.Name, UUID: m.UUID, MemoryBytes: 8 * gib, VCPUs: 8, Firmware: convert.FirmwareUEFI, Disks: []string{"/m/0.qcow2", "/m/1.qcow2"}, Boot: 1,
				NICs: down, SerialLog: "/m/serial.log",
			}
			c.want(&want)
			got, err := Domain(r, w, m)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("%v -want +got\n%s", err, diff)
			}
		})
	}
}

func TestDomainRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*report.Report, *assess.Wish, *Mapping)
		why    string
	}{
		"name":            {func(_ *report.Report, _ *assess.Wish, m *Mapping) { m.Name = "a b" }, "no name of a VM"},
		"firmware":        {func(r *report.Report, _ *assess.Wish, _ *Mapping) { r.Firmware.Type = "" }, "what firmware"},
		"disks":           {func(_ *report.Report, _ *assess.Wish, m *Mapping) { m.Disks = m.Disks[:1] }, "2 disks are moved, and 1 overlays"},
		"no disk":         {func(_ *report.Report, w *assess.Wish, m *Mapping) { w.Disks, m.Disks = []string{"x"}, nil }, "no disk"},
		"disk":            {func(_ *report.Report, _ *assess.Wish, m *Mapping) { m.Disks[0] = "a" }, "cannot use the path"},
		"memory in MiB":   {func(_ *report.Report, _ *assess.Wish, m *Mapping) { m.MemoryBytes = 65536 }, "not enough"},
		"too much":        {func(_ *report.Report, w *assess.Wish, _ *Mapping) { w.MemoryBytes = math.MaxUint64 }, "more than any host has"},
		"no memory":       {func(r *report.Report, _ *assess.Wish, _ *Mapping) { r.Memory.TotalBytes = 0 }, "how much memory"},
		"CPUs below none": {func(_ *report.Report, _ *assess.Wish, m *Mapping) { m.VCPUs = -1 }, "-1 CPUs"},
		"too many CPUs":   {func(_ *report.Report, w *assess.Wish, _ *Mapping) { w.Threads = 256 }, "256 CPUs"},
		"no CPUs":         {func(r *report.Report, _ *assess.Wish, _ *Mapping) { r.CPU.Threads = 0 }, "how many threads"},
		"no such NIC":     {func(_ *report.Report, _ *assess.Wish, m *Mapping) { m.NICs = map[string]NIC{"eth7": {Bridge: "br0"}} }, `no NIC "eth7"`},
		"a bond":          {func(_ *report.Report, _ *assess.Wish, m *Mapping) { m.NICs = map[string]NIC{"bond0": {Bridge: "br0"}} }, `no NIC "bond0"`},
		"wireless":        {func(_ *report.Report, _ *assess.Wish, m *Mapping) { m.NICs = map[string]NIC{"wlp1s0": {Bridge: "br0"}} }, `no NIC "wlp1s0"`},
		"twice": {func(_ *report.Report, _ *assess.Wish, m *Mapping) {
			m.NICs = map[string]NIC{"eth2": {Bridge: "br0"}, "52:54:00:aa:bb:02": {Bridge: "br1"}}
		}, "mapped twice"},
		"network": {func(_ *report.Report, _ *assess.Wish, m *Mapping) { m.Default = NIC{Network: "a/b"} }, "no name of a network"},
		"both":    {func(_ *report.Report, _ *assess.Wish, m *Mapping) { m.Default = NIC{Network: "a", Bridge: "b"} }, "either a network or a bridge"},
	} {
		r, w, m := bare(), assess.Wish{}, mapping(2)
		c.change(&r, &w, &m)
		if d, err := Domain(r, w, m); gpu.CodeOf(err) != gpu.CodeInvalid || !strings.Contains(err.Error(), c.why) || d.Name != "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestJob(t *testing.T) {
	d, err := Domain(bare(), assess.Wish{}, mapping(2))
	if err != nil {
		t.Fatal(err)
	}
	want := convert.Job{Name: "metal1", NICs: []convert.NIC{{MAC: "52:54:00:aa:bb:02"}, {MAC: "52:54:00:aa:bb:10"}}, MemoryBytes: 8 * gib, VCPUs: 8}
	if diff := cmp.Diff(want, Job(d)); diff != "" {
		t.Error(diff)
	}
}
