package sim

import (
	"fmt"
	"strings"
)

// A family is the types of vGPU of one model, as NVIDIA's documentation lists them. Each
// of them is a size in GB with the letter of its series, "=" and how many fit on a card;
// behind a dash comes first how many slices of a GPU instance it takes.
type family struct {
	name, label string // "DC", "NVIDIA RTX Pro 6000 Blackwell DC"
	first       int    // number of the first type; those after it follow, which real ones do not always
	gib, vfs    int
	types       string
	instances   map[string]string // profile of the GPU instance, by what stands before the letter
}

// By PCI device id.
var families = map[string]family{
	"0x25b6": {
		name: "A2", label: "NVIDIA A2", first: 742, gib: 16, vfs: 16,
		types: "1B=16 2B=8 1Q=16 2Q=8 4Q=4 8Q=2 16Q=1 1A=16 2A=8 4A=4 8A=2 16A=1 4C=4 8C=2 16C=1",
	},
	"0x2235": {
		name: "A40", label: "NVIDIA A40", first: 556, gib: 48, vfs: 32,
		types: "1B=32 2B=24 1Q=32 2Q=24 3Q=16 4Q=12 6Q=8 8Q=6 12Q=4 16Q=3 24Q=2 48Q=1 4C=12 6C=8 8C=6 12C=4 16C=3 24C=2 48C=1",
	},
	"0x26b9": {
		name: "L40S", label: "NVIDIA L40S", first: 1145, gib: 48, vfs: 32,
		types: "1B=32 2B=24 1Q=32 2Q=24 3Q=16 4Q=12 6Q=8 8Q=6 12Q=4 16Q=3 24Q=2 48Q=1 1A=32 2A=24 4A=12 8A=6 4C=12 6C=8 8C=6 12C=4 16C=3 24C=2 48C=1",
	},
	"0x20f1": {
		name: "A100", label: "GRID A100", first: 463, gib: 40, vfs: 16,
		types:     "4C=10 5C=8 8C=5 10C=4 20C=2 40C=1 1-5C=7 1-10C=4 2-10C=3 3-20C=2 4-20C=1 7-40C=1",
		instances: map[string]string{"1-5": "1g.5gb", "1-10": "1g.10gb", "2-10": "2g.10gb", "3-20": "3g.20gb", "4-20": "4g.20gb", "7-40": "7g.40gb"},
	},
	"0x2330": {
		name: "H100XM", label: "NVIDIA H100XM", first: 1063, gib: 80, vfs: 32,
		types:     "4C=20 5C=16 8C=10 10C=8 16C=5 20C=4 40C=2 80C=1 1-10C=7 1-20C=4 2-20C=3 3-40C=2 4-40C=1 7-80C=1",
		instances: map[string]string{"1-10": "1g.10gb", "1-20": "1g.20gb", "2-20": "2g.20gb", "3-40": "3g.40gb", "4-40": "4g.40gb", "7-80": "7g.80gb"},
	},
	"0x2bb5": {
		name: "DC", label: "NVIDIA RTX Pro 6000 Blackwell DC", first: 1503, gib: 96, vfs: 48,
		types: "3Q=32 4Q=24 6Q=16 8Q=12 12Q=8 16Q=6 24Q=4 32Q=3 48Q=2 96Q=1 " +
			"1-2QGFX=48 1-3QGFX=32 1-4QGFX=24 1-6QGFX=16 1-8QGFX=12 1-12QGFX=8 1-24QGFX=4 2-12QGFX=8 2-16QGFX=6 2-24QGFX=4 2-48QGFX=2 " +
			"4-24QGFX=4 4-32QGFX=3 4-48QGFX=2 4-96QGFX=1",
		instances: map[string]string{"1": "1g.24gb+gfx", "2": "2g.48gb+gfx", "4": "4g.96gb+gfx"},
	},
}

// WithVGPU gives a card of a model that has them vGPUs on its virtual functions, of the
// mdev generation or with a driver that is their VFIO driver.
func (c Card) WithVGPU(mdev bool) Card {
	f := families[c.PCI.Device]
	c.VGPU = &VGPU{Mdev: mdev, MemoryMiB: f.gib << 10}
	for i, word := range strings.Fields(f.types) {
		c.VGPU.Types = append(c.VGPU.Types, f.typ(c, i, word))
	}
	if c.SRIOV == nil {
		c.SRIOV = &SRIOV{TotalVFs: f.vfs, Offset: 4, Stride: 1, VFDevice: c.PCI.Device, VFDriver: c.Driver, ToolOnly: true}
	}
	return c
}

func (f family) typ(c Card, i int, word string) VGPUType {
	short, most, _ := strings.Cut(word, "=")
	size := strings.TrimRight(short, "ABCQGFX")
	series := strings.TrimPrefix(short, size)[:1]
	slices, gib, on := strings.Cut(size, "-")
	if !on {
		gib = size
	}
	t := VGPUType{Type: Type{
		Number: f.first + i, Name: f.label + "-" + short, Use: [2]int{atoi(gib) << 10}, Max: atoi(most),
	}}.of(series)
	t.Description = fmt.Sprintf("num_heads=%d, frl_config=60, framebuffer=%dM, max_resolution=%s, max_instance=%d",
		t.Heads, t.mib(), t.Resolution, t.Max)
	if !on {
		return t
	}
	t.MaxPerVM = 1
	if t.Profile = f.instances[size]; t.Profile == "" {
		t.Profile = f.instances[slices]
	}
	t.PerInstance = t.Max / c.MIG.model().Profile(t.Profile).Max
	return t
}

// of is a type with what all of its series have.
func (t VGPUType) of(series string) VGPUType {
	t.Heads, t.Resolution, t.MaxPerVM = 4, "7680x4320", 1
	switch series {
	case "C":
		t.Class, t.License, t.Heads, t.Resolution, t.MaxPerVM = "Compute", "NVIDIA-vComputeServer,9.0", 1, "4096x2160", 16
	case "Q":
		t.Class, t.License, t.MaxPerVM = "Quadro", "Quadro-Virtual-DWS,5.0;GRID-Virtual-WS,2.0", 16
	case "B":
		t.Class, t.License, t.Resolution = "NVS", "GRID-Virtual-PC,2.0;GRID-Virtual-WS,2.0", "5120x2880"
	case "A":
		t.Class, t.License, t.Heads, t.Resolution = "NVS", "GRID-Virtual-Apps,3.0", 1, "1280x1024"
	}
	return t
}

// vgpuTypes are the types that NVIDIA's driver knows for a card, wherever it offers them.
func (c *Card) vgpuTypes() (out []VGPUType) {
	for _, t := range c.Types {
		out = append(out, VGPUType{Type: t}.of(t.Name[len(t.Name)-1:]))
	}
	if c.VGPU != nil {
		out = append(out, c.VGPU.Types...)
	}
	return out
}

// atoi reads a number of the tables above.
func atoi(text string) (n int) {
	for _, d := range text {
		n = 10*n + int(d-'0')
	}
	return n
}

// A40 is an NVIDIA A40, which is an A2 with 32 virtual functions and more memory.
func A40(address string, numa int) Card {
	c := A2(address, numa)
	c.PCI.Device, c.PCI.SubsystemDevice, c.PCI.Group = "0x2235", "0x145a", 58+numa
	c.SRIOV.TotalVFs, c.SRIOV.VFDevice = 32, "0x2235"
	return c
}

// RTXPro6000 is an NVIDIA RTX PRO 6000 Blackwell Server Edition: several vGPUs share one
// GPU instance by time.
func RTXPro6000(address string, numa int) Card {
	c := H100(address, numa)
	c.PCI.Device, c.PCI.SubsystemDevice, c.PCI.Group = "0x2bb5", "0x204e", 64+numa
	c.MIG.Model = "RTX PRO 6000 Blackwell Server Edition"
	return c
}
