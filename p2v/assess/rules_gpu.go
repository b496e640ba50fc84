package assess

import (
	"fmt"
	"strings"

	"gpuvirt/p2v/report"
)

// nvidia is the vendor as a report names it.
const nvidia = "nvidia"

// gpuRules are about the source's GPUs and their settings.
func gpuRules() []rule {
	return []rule{
		{
			Rule{
				ID: "no-gpu", Severity: Info, Subject: "gpu", Title: "The source has no GPU",
				Why:    "Nothing can be measured; the move is one of an ordinary server.",
				Remedy: "Name a profile (--profile) if the VM is to have a GPU.",
			},
			func(l *look) []hit { return when(len(l.GPUs) == 0, "the report lists none") },
		},
		{
			Rule{
				ID: "too-many-gpus", Severity: Blocker, Subject: "inspection", Title: "The report lists more GPUs than a server has",
				Why:    "Those beyond the first 64 were not looked at.",
				Remedy: "Find out what wrote the report, and inspect again.",
			},
			func(l *look) []hit { return when(l.more > 0, fmt.Sprintf("%d more than %d", l.more, maxGPUs)) },
		},
		{
			Rule{
				ID: "other-vendor", Severity: Info, Subject: "gpu", Title: "A GPU is not NVIDIA's",
				Why:    "Its use is not measured. It is replaced by a card of the same vendor only; the VM has a display of its own.",
				Remedy: "Nothing for a server's display adapter. Else name its address and a profile of this host (--profile 0000:41:00.0=PROFILE).",
			},
			func(l *look) []hit {
				return each(l.GPUs, func(g report.GPU) string {
					if g.Vendor == nvidia {
						return ""
					}
					return name(g) + " of " + quote(g.Vendor)
				})
			},
		},
		{
			Rule{
				ID: "nouveau", Severity: Warning, Subject: "driver", Title: "The open driver nouveau has a GPU",
				Why:    "It keeps NVIDIA's driver away, also from the GPU of the VM.",
				Remedy: "The plan puts it on a deny list in the guest and builds the initramfs anew.",
			},
			func(l *look) []hit {
				out := each(l.GPUs, func(g report.GPU) string {
					if g.Driver != "nouveau" {
						return ""
					}
					return name(g) + " is bound to nouveau"
				})
				if l.Driver != nil {
					for _, m := range l.Driver.Modules {
						out = append(out, when(m == "nouveau", "the module nouveau is loaded")...)
					}
				}
				return out
			},
		},
		{
			Rule{
				ID: "gpu-passed-on", Severity: Warning, Subject: "gpu", Title: "The source gives a GPU to VMs of its own",
				Why:    "The workload is in those VMs and was not inspected; to run them in a VM needs nested virtualisation.",
				Remedy: "Move those VMs instead, each by itself.",
			},
			func(l *look) []hit {
				return each(l.GPUs, func(g report.GPU) string {
					if g.Driver != "vfio-pci" {
						return ""
					}
					return name(g) + " is bound to vfio-pci"
				})
			},
		},
		{
			Rule{
				ID: "mig-on-source", Severity: Warning, Subject: "gpu", Title: "A GPU of the source is cut by MIG",
				Why: "A VM does not cut its partition as the server cut its card: on a vGPU there are other instances or none, their UUIDs are " +
					"others, and a script that makes them fails. Figures of use are of the whole card.",
				Remedy: "Give the VM one partition for each instance that is used, or the whole card and the same layout in it.",
			},
			func(l *look) []hit {
				return each(l.GPUs, func(g report.GPU) string {
					if g.MIG != "enabled" && len(g.Instances) == 0 {
						return ""
					}
					var names []string
					for _, i := range g.Instances {
						names = append(names, i.Profile)
					}
					return strings.TrimSuffix(name(g)+": MIG is on, "+quotes(names), ", ")
				})
			},
		},
		{
			Rule{
				ID: "gpu-settings", Severity: Warning, Subject: "gpu", Title: "Settings of a GPU are not the usual ones",
				Why:    "ECC, compute mode, power limit and clocks belong to the host's card. A VM with a vGPU cannot set them.",
				Remedy: "Set them on the host where they are needed; the plan turns the scripts off in the guest.",
			},
			func(l *look) []hit {
				out := each(l.GPUs, func(g report.GPU) string {
					var odd []string
					if g.ECC == "disabled" {
						odd = append(odd, "ECC is off")
					}
					if g.ComputeMode != "" && g.ComputeMode != "default" {
						odd = append(odd, "compute mode "+quote(g.ComputeMode))
					}
					if len(odd) == 0 {
						return ""
					}
					return name(g) + ": " + strings.Join(odd, ", ")
				})
				return append(out, each(l.Configs, func(c report.Config) string {
					if c.Kind != "power" {
						return ""
					}
					return "clocks or power are set by " + quote(c.Path)
				})...)
			},
		},
		{
			Rule{
				ID: "display-attached", Severity: Warning, Subject: "gpu", Title: "A display hangs on a GPU",
				Why:    "A partition has no connector; with the card, its connectors stay with the new host.",
				Remedy: "Find out whether anybody looks at it; a VM is seen over VNC, SPICE or a remote desktop.",
			},
			func(l *look) []hit {
				return each(l.GPUs, func(g report.GPU) string {
					if !g.DisplayActive || g.Vendor != nvidia {
						return ""
					}
					return name(g) + " drives a display"
				})
			},
		},
	}
}
