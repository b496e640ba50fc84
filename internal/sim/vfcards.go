package sim

import "strings"

// A2 is an NVIDIA A2: vGPUs on 16 virtual functions, which its driver's own tool turns
// on and off.
func A2(address string, numa int) Card {
	return Card{
		Name: address, Driver: "nvidia", DriverVersion: "550.90.05",
		PCI: &PCI{
			Vendor: nvidia, Device: "0x25b6", SubsystemVendor: nvidia, SubsystemDevice: "0x157e",
			Class: "0x030200", NUMANode: numa, Group: 50 + numa,
		},
		SRIOV: &SRIOV{TotalVFs: 16, Offset: 4, Stride: 1, VFDevice: "0x25b6", VFDriver: "nvidia", ToolOnly: true},
		Modes: shipped(),
	}
}

// L40S is an NVIDIA L40S, which is an A2 with 32 virtual functions and more memory.
func L40S(address string, numa int) Card {
	c := A2(address, numa)
	c.PCI.Device, c.PCI.SubsystemDevice, c.PCI.Group = "0x26b9", "0x1851", 54+numa
	c.SRIOV.TotalVFs, c.SRIOV.VFDevice = 32, "0x26b9"
	return c
}

// Flex is an Intel Data Center GPU Flex 170, with 31 virtual functions that anybody can
// turn on through sysfs.
func Flex(address string, numa int) Card {
	return Card{
		Name: address, Driver: "xe",
		PCI: &PCI{
			Vendor: "0x8086", Device: "0x56c0", SubsystemVendor: "0x8086", SubsystemDevice: "0x4905",
			Class: "0x038000", NUMANode: numa, Group: 60 + numa,
		},
		SRIOV: &SRIOV{TotalVFs: 31, Offset: 1, Stride: 1, VFDevice: "0x56c0", VFDriver: "xe"},
	}
}

// RX is a graphics card of AMD's with the sound of its outputs beside it.
func RX(address string) Card {
	return Card{
		Name: address, Driver: "amdgpu",
		PCI: &PCI{
			Vendor: "0x1002", Device: "0x744c", SubsystemVendor: "0x1002", SubsystemDevice: "0x0e3b",
			Class: "0x030000", NUMANode: -1, Group: 70,
		},
		Companions: []PCIFunction{{
			Address: strings.TrimSuffix(address, "0") + "1", Vendor: "0x1002", Device: "0xab30", Class: "0x040300",
			Driver: "snd_hda_intel",
		}},
	}
}
