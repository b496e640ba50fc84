package virtp2v

import (
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/p2v/report"
)

// recorded is what virt-p2v 1.42.3 of Debian 12 has sent.
func recorded(t testing.TB) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/physical.xml")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestPhysical(t *testing.T) {
	p, disks, err := readPhysical(recorded(t))
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != "gpu7" || p.Memory.KiB != 786432 || p.VCPUs != 1 || p.OS.Type.Arch != "x86_64" || p.CPU.Vendor != "AMD" {
		t.Errorf("%+v", p)
	}
	if !slices.Equal(disks, []exported{{"sda", 20000}}) {
		t.Errorf("%+v", disks)
	}
	nics, networks := p.nics()
	if len(nics) != 1 || nics[0].Name != "eth0" || nics[0].MAC != "02:fc:00:00:00:01" || networks["02:fc:00:00:00:01"] != "default" {
		t.Errorf("%+v %v", nics, networks)
	}
}

// What no virt-p2v writes is refused, whatever it would do.
func TestHostilePhysical(t *testing.T) {
	text := string(recorded(t))
	disk := text[strings.Index(text, "<disk "):strings.Index(text, "<interface")]
	swap := func(old, with string) string {
		if !strings.Contains(text, old) {
			t.Fatalf("%q is not there", old)
		}
		return strings.Replace(text, old, with, 1)
	}
	for name, tc := range map[string]struct{ text, want string }{
		"nothing":           {"", "EOF"},
		"no XML":            {"{}", "EOF"},
		"cut":               {text[:len(text)/2], "EOF"},
		"another domain":    {swap(`type="physical"`, `type="kvm"`), `of type "kvm"`},
		"an entity":         {swap(`<domain`, `<!DOCTYPE d [<!ENTITY a SYSTEM "file:///etc/shadow">]><domain`), "declares a type of document"},
		"unknown entity":    {swap(`<name>gpu7`, `<name>&a;`), "entity"},
		"large":             {text + strings.Repeat(" ", maxPhysical), "more than"},
		"deep":              {swap(`<features>`, strings.Repeat("<a>", maxDepth)+strings.Repeat("</a>", maxDepth)+"<features>"), "nested deeper"},
		"another host":      {swap(`name="localhost"`, `name="10.0.0.1"`), "not exported by NBD over this connection"},
		"a file":            {swap(`type="network"`, `type="file"`), "not exported by NBD over this connection"},
		"another protocol":  {swap(`protocol="nbd"`, `protocol="http"`), "not exported by NBD over this connection"},
		"qcow2":             {swap(`type="raw"`, `type="qcow2"`), "not exported by NBD over this connection"},
		"port 0":            {swap(`port="20000"`, `port="0"`), "not exported by NBD over this connection"},
		"port -1":           {swap(`port="20000"`, `port="-1"`), "invalid syntax"},
		"port above":        {swap(`port="20000"`, `port="65536"`), "out of range"},
		"a path":            {swap(`dev="sda"`, `dev="../sda"`), "no name of a disk"},
		"twice":             {swap("</devices>", disk+"</devices>"), "there twice"},
		"no disk":           {strings.Replace(text, disk, "", 1), "no disk that is to be moved"},
		"no memory":         {swap(`<memory unit="KiB">786432`, `<memory unit="KiB">0`), "memory are none"},
		"memory":            {swap(`<memory unit="KiB">786432`, `<memory unit="KiB">999999999999999`), "memory are none"},
		"memory in GiB":     {swap(`<memory unit="KiB">`, `<memory unit="GiB">`), "memory are none"},
		"processors":        {swap(`<vcpu>1`, `<vcpu>-1`), "processors are none"},
		"another charset":   {swap(`<?xml version="1.0"?>`, `<?xml version="1.0" encoding="utf-7"?>`), "utf-7"},
		"many":              {swap(disk, strings.Repeat(disk, maxDisks+1)), "there twice"},
		"unbalanced":        {swap("</devices>", "</disks>"), "element"},
		"another namespace": {swap(`<domain `, `<x `), "element"},
	} {
		if _, _, err := readPhysical([]byte(tc.text)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A NIC that the VM could not have is left out, and the rest is taken.
func TestOddNICs(t *testing.T) {
	text := strings.Replace(string(recorded(t)), "<interface", `<interface><target dev="ib0"/><mac address="80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:31:78:f2"/></interface><interface><target dev="x"/></interface><interface`, 1)
	p, _, err := readPhysical([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if nics, _ := p.nics(); len(nics) != 1 || nics[0].Name != "eth0" {
		t.Errorf("%+v", nics)
	}
}

const pciList = `lspci: Unable to load libkmod resources: error -2
00:00.0 Host bridge: Intel Corporation Device 0d57
	Region 1: Memory at 1000 (32-bit, non-prefetchable) [size=1G]

02:00.0 VGA compatible controller: ASPEED Technology, Inc. ASPEED Graphics Family (rev 41) (prog-if 00 [VGA controller])
	Kernel driver in use: ast

17:00.0 3D controller: NVIDIA Corporation GA100 [A100 PCIe 40GB] (rev a1)
	Subsystem: NVIDIA Corporation Device 145f
	NUMA node: 1
	Region 0: Memory at 9c000000 (32-bit, non-prefetchable) [size=16M]
	Region 1: Memory at 2f000000000 (64-bit, prefetchable) [size=64G]
	Kernel driver in use: nouveau
	Kernel modules: nouveau

0001:18:00.0 3D controller: NVIDIA Corporation Device 2330 (rev a1)
	Region 1: Memory at <ignored> (64-bit, prefetchable) [size=99999999999999G]

19:00.0 Display controller: Advanced Micro Devices, Inc. [AMD/ATI] Aldebaran/MI200 [Instinct MI210] (rev 02)
`

func TestGPUs(t *testing.T) {
	node := 1
	want := []report.GPU{
		{Index: -1, PCI: "0000:17:00.0", Vendor: "nvidia", Model: "A100 PCIe 40GB", BAR1Bytes: 64 << 30, Driver: "nouveau", NUMANode: &node, Instances: []report.MIGInstance{}},
		{Index: -1, PCI: "0001:18:00.0", PCIID: "10de:2330", Vendor: "nvidia", Instances: []report.MIGInstance{}},
		{Index: -1, PCI: "0000:19:00.0", Vendor: "amd", Model: "Instinct MI210", Instances: []report.MIGInstance{}},
	}
	if diff := cmp.Diff(want, gpusIn(pciList)); diff != "" {
		t.Error(diff)
	}
	many := strings.Repeat("17:00.0 3D controller: NVIDIA Corporation GA100 [A100 PCIe 40GB] (rev a1)\n", 10000)
	if got := gpusIn(many); len(got) != maxGPUs {
		t.Errorf("%d GPUs", len(got))
	}
}

// gpt is the beginning of a disk with partitions of these types, as sgdisk writes it.
func gpt(block int, types ...string) []byte {
	b := make([]byte, headBytes)
	b[450], b[510], b[511] = 0xee, 0x55, 0xaa
	copy(b[block:], "EFI PART")
	binary.LittleEndian.PutUint64(b[block+72:], 2)
	binary.LittleEndian.PutUint32(b[block+80:], uint32(len(types)))
	binary.LittleEndian.PutUint32(b[block+84:], 128)
	for i, id := range types {
		at := b[2*block+128*i:]
		hex := strings.ReplaceAll(id, "-", "")
		raw := make([]byte, 16)
		for n := range raw {
			v := strings.IndexByte("0123456789abcdef", hex[2*n])<<4 | strings.IndexByte("0123456789abcdef", hex[2*n+1])
			raw[n] = byte(v)
		}
		slices.Reverse(raw[0:4])
		slices.Reverse(raw[4:6])
		slices.Reverse(raw[6:8])
		copy(at, raw)
	}
	return b
}

func TestFirmware(t *testing.T) {
	mbr := make([]byte, headBytes)
	mbr[450], mbr[510], mbr[511] = 0x83, 0x55, 0xaa
	const efi = "[    0.000000] efi: EFI v2.70 by American Megatrends\n"
	for name, tc := range map[string]struct {
		head         []byte
		dmesg        string
		table, want  string
		block        uint32
		bootsFromSDB bool
	}{
		"an empty disk":                  {make([]byte, headBytes), "", "", "bios", 512, true},
		"shorter than a table":           {make([]byte, 512), "", "", "bios", 512, true},
		"MBR":                            {mbr, efi, "mbr", "bios", 512, false},
		"GPT, UEFI":                      {gpt(512, typeESP), "", "gpt", "uefi", 512, false},
		"GPT, BIOS":                      {gpt(512, typeBIOSBoot), efi, "gpt", "bios", 512, false},
		"GPT for both, started by UEFI":  {gpt(512, typeBIOSBoot, typeESP), efi, "gpt", "uefi", 512, false},
		"GPT for both, started by BIOS":  {gpt(512, typeBIOSBoot, typeESP), "ACPI: ", "gpt", "bios", 512, false},
		"GPT with blocks of 4096 bytes":  {gpt(4096, typeESP), "", "gpt", "uefi", 4096, false},
		"a protecting MBR before no GPT": {gpt(512)[:512], "", "", "bios", 512, true},
	} {
		files := map[string][]byte{fileDmesg: []byte(tc.dmesg), fileVersion: []byte("virt-p2v 1.42.3\n\x1b")}
		r := reportOf(physical{Name: "gpu7"}, files, []Disk{{Name: "sda", Size: 1 << 20, head: tc.head}, {Name: "sdb", Size: 1 << 20, head: mbr}}, time.Now())
		if d := r.Disks[0]; r.Firmware.Type != tc.want || d.Table != tc.table || d.BlockBytes != tc.block || r.Disks[1].Boots != tc.bootsFromSDB || d.Boots == tc.bootsFromSDB {
			t.Errorf("%s: %s, %+v", name, r.Firmware.Type, r.Disks)
		}
		if r.Inspector != "virt-p2v 1.42.3" || r.Check() != nil {
			t.Errorf("%s: %q, %v", name, r.Inspector, r.Check())
		}
	}
}

// Whatever comes: a report that all others take, or an error.
func FuzzBrought(f *testing.F) {
	f.Add(recorded(f), []byte(pciList), []byte("x"), gpt(512, typeESP))
	f.Fuzz(func(t *testing.T, xml, lspci, dmesg, head []byte) {
		p, disks, err := readPhysical(xml)
		if err != nil {
			return
		}
		var have []Disk
		for _, d := range disks {
			have = append(have, Disk{Name: d.Name, Size: 1 << 20, head: head})
		}
		r := reportOf(p, map[string][]byte{fileLSPCI: lspci, fileDmesg: dmesg, fileVersion: dmesg}, have, time.Now())
		if err := r.Check(); err != nil {
			t.Error(err)
		}
	})
}
