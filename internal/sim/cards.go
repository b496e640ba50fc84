package sim

import (
	"fmt"
	"slices"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/mig/cards"
)

// A Card is a parent on the simulated mdev bus and the rule by which its driver
// gives out devices.
type Card struct {
	Name          string // PCI address, or the device's name
	PCI           *PCI   // nil: a virtual device, as of the kernel's sample drivers
	Driver        string // prefix of its type directories
	DriverVersion string // of the driver's module, empty: none
	Types         []Type
	// OneSize is NVIDIA's rule: while there is a device, only its size can be made.
	OneSize bool
	// Budget is what devices share where there is no such rule, in two resources.
	Budget [2]int

	AppearAt time.Time // not there before; zero: there
	Hidden   bool      // not there until shown
	Leaked   int       // devices that the driver still counts though they are gone
	// Renumber is how a driver of another version numbers the types: added to the
	// number in the directory's name.
	Renumber int

	MIG *MIG // nil: MIG cannot cut it

	Modes gpu.Modes // as the driver's library tells them

	SRIOV      *SRIOV // nil: no virtual functions
	VGPU       *VGPU  // nil: they have no vGPUs
	BootVGA    bool   // the firmware has shown itself on it
	Companions []PCIFunction
}

// MIG is what a card is in mig/cards, and how its mode behaves.
type MIG struct {
	Model         string
	ResetsForMode bool // the mode takes a reset of the GPU
	KeepsMode     bool // over a reboot
}

func (m *MIG) model() *cards.Model {
	i := slices.IndexFunc(cards.Models, func(c cards.Model) bool { return c.Name == m.Model })
	return &cards.Models[i]
}

// PCI is what sysfs says of a PCI card.
type PCI struct {
	Vendor, Device, SubsystemVendor, SubsystemDevice, Class string // "0x10de"
	NUMANode                                                int
	Group                                                   int    // IOMMU group; below 0: none, as with the IOMMU off
	Serial                                                  string // empty: the driver has no such file
	NoReset                                                 bool   // the kernel knows no way to reset it
}

// A Type is one entry of mdev_supported_types. Use is what one device takes: of
// the card's budget, or, with OneSize, its framebuffer in MiB.
type Type struct {
	Number      int    // of NVIDIA's directories
	Suffix      string // of the others': "small"
	Name        string // attribute "name"
	Description string // empty: no such file
	Use         [2]int
	Max         int // with OneSize
}

func (c Card) dirName(t Type) string {
	if t.Suffix != "" {
		return c.Driver + "-" + t.Suffix
	}
	return fmt.Sprintf("%s-%d", c.Driver, t.Number+c.Renumber)
}

// available is what the driver answers for one type, given the types of the
// devices that exist.
func (c Card) available(t Type, used []Type) int {
	if c.OneSize {
		for _, u := range used {
			if u.Use != t.Use {
				return 0
			}
		}
		return max(0, t.Max-len(used)-c.Leaked)
	}
	fits := -1
	for i, budget := range c.Budget {
		for _, u := range used {
			budget -= u.Use[i]
		}
		if t.Use[i] == 0 {
			continue
		}
		if n := max(0, budget/t.Use[i]-c.Leaked); fits < 0 || n < fits {
			fits = n
		}
	}
	return max(0, fits)
}

// DefaultCards is a host with two NVIDIA T4 on different NUMA nodes, an A100 that MIG
// can cut, an Intel GPU with GVT-g, and the kernel's mbochs sample driver.
func DefaultCards() []Card {
	return []Card{T4("0000:08:00.0", 0), T4("0000:88:00.0", 1), A100("0000:41:00.0", 0), GVTg("0000:00:02.0"), Mbochs()}
}

// T4 is an NVIDIA T4: types on the physical function, one size at a time. Names,
// numbers of heads and maxima as in NVIDIA's documentation of the type list.
func T4(address string, numa int) Card {
	c := Card{
		Name: address, Driver: "nvidia", DriverVersion: "535.183.04", OneSize: true,
		PCI: &PCI{
			Vendor: "0x10de", Device: "0x1eb8", SubsystemVendor: "0x10de", SubsystemDevice: "0x12a2",
			Class: "0x030200", NUMANode: numa, Group: 30 + numa,
		},
		Modes: shipped(),
	}
	add := func(number int, name string, gib, heads, frl int, resolution string) {
		c.Types = append(c.Types, Type{
			Number: number, Name: "GRID T4-" + name, Use: [2]int{gib << 10}, Max: 16 / gib,
			Description: fmt.Sprintf("num_heads=%d, frl_config=%d, framebuffer=%dM, max_resolution=%s, max_instance=%d",
				heads, frl, gib<<10, resolution, 16/gib),
		})
	}
	add(222, "1B", 1, 4, 45, "5120x2880")
	add(223, "2B", 2, 4, 45, "5120x2880")
	add(225, "1A", 1, 1, 60, "1280x1024")
	add(226, "2A", 2, 1, 60, "1280x1024")
	add(227, "4A", 4, 1, 60, "1280x1024")
	add(228, "8A", 8, 1, 60, "1280x1024")
	add(229, "16A", 16, 1, 60, "1280x1024")
	add(230, "1Q", 1, 4, 60, "5120x2880")
	add(231, "2Q", 2, 4, 60, "7680x4320")
	add(232, "4Q", 4, 4, 60, "7680x4320")
	add(233, "8Q", 8, 4, 60, "7680x4320")
	add(234, "16Q", 16, 4, 60, "7680x4320")
	add(319, "4C", 4, 1, 60, "4096x2160")
	add(320, "8C", 8, 1, 60, "4096x2160")
	add(321, "16C", 16, 1, 60, "4096x2160")
	return c
}

// A100 is an NVIDIA A100 with 40 GB: the mode takes a reset and lasts.
func A100(address string, numa int) Card {
	return Card{
		Name: address, Driver: "nvidia", DriverVersion: "535.183.04",
		PCI: &PCI{
			Vendor: nvidia, Device: "0x20f1", SubsystemVendor: "0x10de", SubsystemDevice: "0x145f",
			Class: "0x030200", NUMANode: numa, Group: 40 + numa, Serial: "1320922000" + address[5:7],
		},
		MIG:   &MIG{Model: "A100-PCIE-40GB", ResetsForMode: true, KeepsMode: true},
		Modes: shipped(),
	}
}

// shipped are the modes of a card for servers of NVIDIA's as it comes.
func shipped() gpu.Modes {
	return gpu.Modes{ECC: &gpu.ECC{Current: true, Pending: true}, Compute: gpu.ComputeDefault}
}

// H100 is an NVIDIA H100 with 80 GB: the mode takes no reset and is lost at reboot.
func H100(address string, numa int) Card {
	c := A100(address, numa)
	c.PCI.Device, c.PCI.SubsystemDevice = "0x2330", "0x16c1"
	c.MIG = &MIG{Model: "H100 80GB HBM3"}
	return c
}

// GVTg is an Intel GPU of the ninth generation with GVT-g: its types share two
// ranges of graphics memory, in MiB. The largest type does not fit at all, and the
// driver does not list what can never fit.
func GVTg(address string) Card {
	c := Card{
		Name: address, Driver: "i915", Budget: [2]int{448, 3712},
		PCI: &PCI{
			Vendor: "0x8086", Device: "0x5912", SubsystemVendor: "0x17aa", SubsystemDevice: "0x3106",
			Class: "0x030000", NUMANode: -1, Group: 1,
		},
	}
	for _, t := range []struct {
		n, low, high, weight int
		resolution           string
	}{{2, 256, 1024, 8, "1920x1200"}, {4, 128, 512, 4, "1920x1200"}, {8, 64, 384, 2, "1024x768"}} {
		c.Types = append(c.Types, Type{
			Suffix: fmt.Sprintf("GVTg_V5_%d", t.n), Name: fmt.Sprintf("GVTg_V5_%d", t.n), Use: [2]int{t.low, t.high},
			Description: fmt.Sprintf("low_gm_size: %dMB\nhigh_gm_size: %dMB\nfence: 4\nresolution: %s\nweight: %d",
				t.low, t.high, t.resolution, t.weight),
		})
	}
	return c
}

// Mbochs is the kernel's sample driver of that name: 256 MB that three sizes share.
func Mbochs() Card {
	c := Card{Name: "mbochs", Driver: "mbochs", Budget: [2]int{256}}
	for _, t := range []struct {
		suffix string
		size   int
	}{{"small", 4}, {"medium", 16}, {"large", 64}} {
		c.Types = append(c.Types, Type{
			Suffix: t.suffix, Name: "mbochs-" + t.suffix, Use: [2]int{t.size},
			Description: fmt.Sprintf("virtual display, %d MB video memory", t.size),
		})
	}
	return c
}
