package assess

import (
	"gpuvirt/p2v/report"
)

// driverRules are about NVIDIA's driver on the source and what belongs to it.
func driverRules() []rule {
	return []rule{
		{
			Rule{
				ID: "no-driver", Severity: Warning, Subject: "driver", Title: "A GPU of NVIDIA has no driver of NVIDIA",
				Why:    "Nothing of its use could be seen: that it is not used is likely and not known.",
				Remedy: "Say whether the VM needs a GPU for it: a profile, or none (--profile 0000:41:00.0=none).",
			},
			func(l *look) []hit {
				return each(l.GPUs, func(g report.GPU) string {
					if g.Vendor != nvidia || l.Driver != nil {
						return ""
					}
					return name(g) + ": kernel driver " + quote(g.Driver)
				})
			},
		},
		{
			Rule{
				ID: "vgpu-driver", Severity: Warning, Subject: "driver", Title: "A driver of NVIDIA's vGPU software is installed already",
				Why: "A guest's driver means that the source is a VM, or was one; a host's means that it has VMs with GPUs of its own. " +
					"Neither is the driver of a physical server.",
				Remedy: "Find out which it is. A guest's driver can stay where its branch goes with this host's.",
			},
			func(l *look) []hit {
				return when(l.Driver != nil && l.Driver.Guest, "driver "+l.driverVersion())
			},
		},
		{
			Rule{
				ID: "driver-build", Severity: Warning, Subject: "driver", Title: "The driver's modules may not be built anew",
				Why:    "Another driver, or another kernel, needs modules that are built in the VM, with the headers of its kernel.",
				Remedy: "Install the headers of the running kernel, and DKMS, before the move, or have packages with modules ready.",
			},
			func(l *look) []hit {
				if l.Driver == nil {
					return nil
				}
				out := when(!l.OS.Headers, "the headers of kernel "+quote(l.OS.Kernel)+" are not there")
				return append(out, when(!l.Driver.DKMS, "the driver is not under DKMS")...)
			},
		},
		{
			Rule{
				ID: "driver-runfile", Severity: Info, Subject: "driver", Title: "The driver was installed by NVIDIA's .run file",
				Why:    "No package manager knows its files: it is removed by its own program, and a package over it breaks both.",
				Remedy: "The plan removes it with nvidia-uninstall where it has to go.",
			},
			func(l *look) []hit {
				return when(l.Driver != nil && l.Driver.Origin == "runfile", "driver "+l.driverVersion())
			},
		},
		{
			Rule{
				ID: "persistence-daemon", Severity: Info, Subject: "service", Title: "nvidia-persistenced keeps the GPUs awake",
				Why:    "On a vGPU it is not needed, and at first boot it holds the device while the driver is changed.",
				Remedy: "The plan turns it off where the driver is changed; with a whole card it stays.",
			},
			func(l *look) []hit { return l.serviceHits("persistence") },
		},
		{
			Rule{
				ID: "licence-client", Severity: Info, Subject: "service", Title: "A client of NVIDIA's licence service is there",
				Why:    "Its settings and token are for the source's product; a vGPU's guest needs those of its own.",
				Remedy: "Have a token for the VM ready; the plan lays it.",
			},
			func(l *look) []hit {
				return append(l.serviceHits("gridd"), each(l.Configs, func(c report.Config) string {
					if c.Kind != "gridd" && c.Kind != "licence-token" {
						return ""
					}
					return quote(c.Path)
				})...)
			},
		},
		{
			Rule{
				ID: "mig-scripts", Severity: Warning, Subject: "service", Title: "MIG instances are made at boot",
				Why:    "A vGPU does not take that layout: the unit fails, and what waits for it does not start.",
				Remedy: "The plan turns it off; keep it only where the VM has the whole card.",
			},
			func(l *look) []hit {
				return append(l.serviceHits("mig-manager"), each(l.Configs, func(c report.Config) string {
					if c.Kind != "mig" {
						return ""
					}
					return quote(c.Path)
				})...)
			},
		},
	}
}

func (l *look) driverVersion() string {
	if l.Driver == nil || l.Driver.Version == "" {
		return "of an unknown version"
	}
	return quote(l.Driver.Version)
}
