package inspect

import (
	"bufio"
	"path"
	"strconv"
	"strings"

	"gpuvirt/p2v/report"
)

// vendors of GPUs that have a name here.
var vendors = map[string]string{"10de": "nvidia", "1002": "amd", "8086": "intel"}

// pciGPUs finds the GPUs by their PCI class, which needs no driver: displays, and the
// accelerators of those who make GPUs. Virtual functions are parts of others.
func (s *scene) pciGPUs() []report.GPU {
	const devices = "sys/bus/pci/devices"
	names, err := s.tree.list(devices)
	if err != nil {
		s.miss("gpus", "%s", cause(err))
	}
	var out []report.GPU
	for _, name := range names {
		dir := path.Join(devices, name)
		class := strings.TrimPrefix(s.tree.text(dir+"/class"), "0x")
		vendor := id(s.tree.text(dir + "/vendor"))
		accelerator := strings.HasPrefix(class, "1200") && vendors[vendor] != ""
		if !strings.HasPrefix(class, "03") && !accelerator || s.tree.exists(dir+"/physfn") {
			continue
		}
		out = append(out, s.pciGPU(name, dir, vendor))
	}
	return out
}

func id(text string) string { return strings.TrimPrefix(strings.ToLower(text), "0x") }

func (s *scene) pciGPU(address, dir, vendor string) report.GPU {
	g := report.GPU{
		Index: -1, PCI: address, PCIID: vendor + ":" + id(s.tree.text(dir+"/device")), Vendor: vendor, Driver: s.tree.base(dir + "/driver"),
		BootVGA: s.tree.text(dir+"/boot_vga") == "1", Model: s.tree.text(dir + "/product_name"),
	}
	if name, known := vendors[vendor]; known {
		g.Vendor = name
	}
	if sub := id(s.tree.text(dir + "/subsystem_vendor")); sub != "" {
		g.Subsystem = sub + ":" + id(s.tree.text(dir+"/subsystem_device"))
	}
	if n, err := strconv.Atoi(s.tree.text(dir + "/numa_node")); err == nil && n >= 0 {
		g.NUMANode = &n
	}
	switch g.Vendor {
	case "nvidia":
		g.BAR1Bytes = s.barBytes(dir, 1)
		info := s.nvidiaInformation(address)
		if model := info["Model"]; model != "" && g.Model == "" && model != "Unknown" {
			g.Model = model
		}
		g.UUID, g.VBIOS = sure(info["GPU UUID"]), sure(info["Video BIOS"])
	case "amd":
		g.MemoryBytes, g.BAR1Bytes = number(s.tree.text(dir+"/mem_info_vram_total")), s.barBytes(dir, 0)
		g.VBIOS, g.Serial = s.tree.text(dir+"/vbios_version"), s.tree.text(dir+"/serial_number")
		g.UUID = s.tree.text(dir + "/unique_id")
	}
	if g.Model == "" {
		g.Model = s.pciName(g.PCIID)
	}
	return g
}

// sure is a value of the driver's files, empty where the driver does not know it: it writes
// question marks then.
func sure(v string) string {
	if strings.Contains(v, "?") || strings.EqualFold(v, "N/A") {
		return ""
	}
	return v
}

// nvidiaInformation reads what NVIDIA's driver says of a GPU in /proc.
func (s *scene) nvidiaInformation(address string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(s.tree.text(path.Join("proc/driver/nvidia/gpus", address, "information"))) {
		key, value, _ := strings.Cut(line, ":")
		out[strings.TrimSpace(key)] = strings.TrimSpace(value)
	}
	return out
}

// barBytes is the size of one of a device's address ranges.
func (s *scene) barBytes(dir string, bar int) uint64 {
	lines := strings.Split(s.tree.text(dir+"/resource"), "\n")
	if bar >= len(lines) {
		return 0
	}
	f := strings.Fields(lines[bar])
	if len(f) < 2 {
		return 0
	}
	from, err1 := strconv.ParseUint(f[0], 0, 64)
	to, err2 := strconv.ParseUint(f[1], 0, 64)
	if err1 != nil || err2 != nil || to <= from {
		return 0
	}
	return to - from + 1
}

// pciName looks a device up in the list of PCI ids that the server may have.
func (s *scene) pciName(pciID string) string {
	vendor, device, _ := strings.Cut(pciID, ":")
	for _, file := range []string{"usr/share/hwdata/pci.ids", "usr/share/misc/pci.ids"} {
		text := s.textOf(file, large)
		lines := bufio.NewScanner(strings.NewReader(text))
		in := false
		for lines.Scan() {
			line := lines.Text()
			switch {
			case strings.HasPrefix(line, "#") || line == "":
			case line[0] != '\t':
				in = strings.HasPrefix(line, vendor+" ")
			case in && strings.HasPrefix(line, "\t"+device+" "):
				return strings.TrimSpace(line[len(device)+1:])
			}
		}
	}
	return ""
}

// index returns which GPU of a list is at an address, -1 where none is.
func index(gpus []report.GPU, pci string) int {
	for n, g := range gpus {
		if g.PCI == pci {
			return n
		}
	}
	return -1
}
