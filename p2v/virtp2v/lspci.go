package virtp2v

import (
	"regexp"
	"strconv"
	"strings"

	"gpuvirt/p2v/report"
)

const maxGPUs = 64

var (
	pciSlot = regexp.MustCompile(`^([0-9a-f]{4}:)?([0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) (VGA compatible controller|3D controller|Display controller|Processing accelerators): (.*)$`)
	// What lspci calls those who make GPUs, and what they are called here.
	makers = []struct{ name, vendor, id string }{
		{"NVIDIA Corporation ", "nvidia", "10de"},
		{"Advanced Micro Devices, Inc. [AMD/ATI] ", "amd", "1002"},
		{"Intel Corporation ", "intel", "8086"},
	}
	pciModel  = regexp.MustCompile(`\[([^\[\]]+)\](?: \(rev [0-9a-f]+\))?$`)
	pciDevice = regexp.MustCompile(`^Device ([0-9a-f]{4})\b`)
	pciRegion = regexp.MustCompile(`^Region 1: Memory at .*\[size=([0-9]+)([KMGT])\]$`)
)

// gpusIn finds the GPUs in what "lspci -vvv" wrote: by the names of their classes and of who
// makes them, as it writes no numbers where it knows names.
func gpusIn(text string) []report.GPU {
	var out []report.GPU
	var g *report.GPU // whose lines these are; nil: something else's
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if line != "" && line[0] != '\t' && line[0] != ' ' {
			g = nil
			if found, is := gpuOf(line); is && len(out) < maxGPUs {
				out = append(out, found)
				g = &out[len(out)-1]
			}
			continue
		}
		if g == nil {
			continue
		}
		line = strings.TrimSpace(line)
		if driver, is := strings.CutPrefix(line, "Kernel driver in use: "); is {
			g.Driver = driver
		}
		if node, is := strings.CutPrefix(line, "NUMA node: "); is {
			if n, err := strconv.Atoi(node); err == nil && n >= 0 {
				g.NUMANode = &n
			}
		}
		if m := pciRegion.FindStringSubmatch(line); m != nil {
			if n, err := strconv.ParseUint(m[1], 10, 20); err == nil {
				g.BAR1Bytes = n << (10 * (1 + strings.Index("KMGT", m[2])))
			}
		}
	}
	return out
}

func gpuOf(line string) (report.GPU, bool) {
	m := pciSlot.FindStringSubmatch(line)
	if m == nil {
		return report.GPU{}, false
	}
	domain := m[1]
	if domain == "" {
		domain = "0000:"
	}
	for _, by := range makers {
		name, is := strings.CutPrefix(m[4], by.name)
		if !is {
			continue
		}
		g := report.GPU{Index: -1, PCI: domain + m[2], Vendor: by.vendor, Instances: []report.MIGInstance{}}
		if known := pciModel.FindStringSubmatch(name); known != nil {
			g.Model = known[1]
		}
		if bare := pciDevice.FindStringSubmatch(name); bare != nil {
			g.PCIID = by.id + ":" + bare[1]
		}
		return g, true
	}
	return report.GPU{}, false
}
