package assess

import (
	"fmt"
	"slices"
	"strings"

	"gpuvirt/p2v/report"
)

// featureRules are about what the workload asks of its GPUs that not every partition has.
func featureRules() []rule {
	return []rule{
		{
			Rule{
				ID: "unified-memory", Severity: Warning, Subject: "workload", Title: "The workload uses unified memory",
				Why: "A time-sliced vGPU that has not all the memory of its card lacks it. vGPUs on MIG instances and those with all memory have it " +
					"on Linux, where the parameter enable_uvm=1 is set; they cannot be migrated live then.",
				Remedy: "Take a card or a vGPU on a MIG instance; the plan leaves the others out.",
			},
			func(l *look) []hit { return quoted(l.Features.UnifiedMemory) },
		},
		{
			Rule{
				ID: "nvlink", Severity: Warning, Subject: "workload", Title: "GPUs talk to one another directly",
				Why: "Of vGPUs only time-sliced ones with all memory of cards with NVLink do, all in one VM; MIG instances never do. There is no " +
					"such way over PCIe between vGPUs.",
				Remedy: "Give the VM whole cards that are linked as on the source.",
			},
			func(l *look) []hit {
				out := append(quoted(l.Features.NVLink), quoted(l.Features.P2P)...)
				return append(out, each(l.GPUs, func(g report.GPU) string {
					u := l.usage[g.PCI]
					if !(u.NVLink.Max > 0) { //nolint:staticcheck // so that NaN is none
						return ""
					}
					return fmt.Sprintf("%s: up to %s a second over NVLink", name(g), size(bytesOf(u.NVLink.Max)))
				})...)
			},
		},
		{
			Rule{
				ID: "nvswitch", Severity: Warning, Subject: "gpu", Title: "The GPUs hang on NVSwitch",
				Why: "Its fabric belongs to the whole board. Which GPUs a VM can have together follows the partitions of the Fabric Manager, and it " +
					"runs in the guest where the VM has the switches too, and on the host where they are shared.",
				Remedy: "Choose the model with NVIDIA's Fabric Manager guide before the move; gpuvirt does not drive it.",
			},
			func(l *look) []hit { return quoted(l.Features.NVSwitch) },
		},
		{
			Rule{
				ID: "fabric-manager", Severity: Warning, Subject: "service", Title: "The Fabric Manager runs on the source",
				Why:    "In a VM without switches it fails at every start, and where switches are shared it must not run there.",
				Remedy: "The plan turns it off in the guest, unless the VM gets the switches.",
			},
			func(l *look) []hit { return l.serviceHits("fabric-manager") },
		},
		{
			Rule{
				ID: "gpudirect-rdma", Severity: Warning, Subject: "workload", Title: "A network adapter reaches the GPUs directly",
				Why:    "In a VM it needs the adapter, or a function of it, beside the GPU under one root complex, and few vGPUs have it.",
				Remedy: "Give the VM the card and a function of the adapter, or let the workload go over TCP and measure.",
			},
			func(l *look) []hit { return quoted(l.Features.GPUDirectRDMA) },
		},
		{
			Rule{
				ID: "gpudirect-storage", Severity: Warning, Subject: "workload", Title: "Disks are read into the GPUs directly",
				Why: "On vGPUs of Ampere cards there is no GPUDirect Storage, on those of later ones with the open kernel modules only, and the VM's " +
					"virtual disks are no NVMe.",
				Remedy: "Give the VM card and NVMe disk, or let cuFile fall back to ordinary reads and measure.",
			},
			func(l *look) []hit { return quoted(l.Features.GPUDirectIO) },
		},
		{
			Rule{
				ID: "mps", Severity: Info, Subject: "workload", Title: "Processes share a GPU by MPS",
				Why:    "It works within one VM as it does on a server, and never between VMs.",
				Remedy: "Keep its unit; the plan rewrites the GPUs that it names.",
			},
			func(l *look) []hit { return append(quoted(l.Features.MPS), l.serviceHits("mps")...) },
		},
		{
			Rule{
				ID: "profilers", Severity: Warning, Subject: "workload", Title: "Profilers or debuggers look into the GPUs",
				Why:    "On a vGPU they are off unless its parameters enable_profiling=1 or enable_debugging=1 are set; few profiles allow it.",
				Remedy: "For profilers the plan sets enable_profiling=1 where it takes a vGPU. For debuggers take a card (--prefer card).",
			},
			func(l *look) []hit { return quoted(l.Features.Profilers) },
		},
		{
			Rule{
				ID: "media-engines", Severity: Warning, Subject: "workload", Title: "Video or JPEG engines are used",
				Why:    "Small MIG instances have no decoder or JPEG engine, and none has an encoder on cards that lack it.",
				Remedy: "Take a profile with media engines; the plan leaves out those that are known to have none.",
			},
			mediaHits,
		},
		{
			Rule{
				ID: "graphics", Severity: Warning, Subject: "workload", Title: "Graphics are drawn on a GPU",
				Why:    "vGPUs of series C have no graphics; series Q has, under a licence of its own (RTX Virtual Workstation).",
				Remedy: "Take a profile of series Q or a card.",
			},
			func(l *look) []hit { return l.graphics() },
		},
		{
			Rule{
				ID: "several-gpus", Severity: Warning, Subject: "workload", Title: "One program uses several GPUs at once",
				Why:    "The VM needs as many partitions as it uses GPUs. Not every vGPU may be in a VM more than once, and what goes between them may be slower.",
				Remedy: "Move it with whole cards, or let it run on one larger partition.",
			},
			func(l *look) []hit {
				return each(l.users, func(p report.Process) string {
					if len(slices.Compact(slices.Clone(p.GPUs))) < 2 {
						return ""
					}
					return program(p) + " uses " + quotes(p.GPUs)
				})
			},
		},
	}
}

func (l *look) serviceHits(role string) []hit {
	return each(l.Services, func(s report.Service) string {
		if s.Role != role || s.Enabled == "masked" || s.State != "active" && s.Enabled == "disabled" {
			return ""
		}
		return quote(s.Unit) + " is " + quote(s.State) + ", " + quote(s.Enabled)
	})
}

// graphics is what tells that graphics are drawn.
func (l *look) graphics() []hit {
	out := append(quoted(l.Features.Graphics), l.serviceHits("display-manager")...)
	out = append(out, each(l.users, func(p report.Process) string {
		if p.Type != "graphics" && p.Type != "both" {
			return ""
		}
		return program(p) + " has a graphics context"
	})...)
	return append(out, each(l.Configs, func(c report.Config) string {
		if c.Kind != "xorg" {
			return ""
		}
		return quote(c.Path) + " configures Xorg"
	})...)
}

func mediaHits(l *look) []hit {
	out := append(quoted(l.Features.Encoder), quoted(l.Features.Decoder)...)
	return append(out, each(l.GPUs, func(g report.GPU) string {
		if used := l.engines(g).names(); len(used) > 0 {
			return name(g) + ": seen at work: " + strings.Join(used, ", ")
		}
		return ""
	})...)
}
