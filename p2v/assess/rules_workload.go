package assess

import (
	"fmt"
	"slices"
	"strings"

	"gpuvirt/p2v/report"
)

// licenceServices are parts of the names of programs that serve or guard licences which
// are bound to a machine.
var licenceServices = []string{"lmgrd", "flexlm", "flexnet", "rlm.", "hasplm", "aksusb", "sentinel", "codemeter", "lserv", "licsrv"}

// workloadRules are about programs, containers and models.
func workloadRules() []rule {
	return []rule{
		{
			Rule{
				ID: "preallocator", Severity: Warning, Subject: "workload", Title: "A program takes memory in advance",
				Why: "It takes a share of whatever it sees, so what it was measured to have is not what it needs. On a smaller partition the same " +
					"share gives it a smaller cache, with fewer requests at a time, or too little to start.",
				Remedy: "Run it with a smaller share until it suffers, or add up its weights, cache and graphs, and say what it needs (--need 0000:41:00.0=memory:20GiB).",
			},
			func(l *look) []hit {
				return each(l.users, func(p report.Process) string {
					if !p.Preallocates {
						return ""
					}
					share := "a share that is not known"
					if p.Share > 0 {
						share = percent(min(p.Share, 1))
					}
					return fmt.Sprintf("%s takes %s of the memory that it sees, %s now", program(p), share, size(p.MemoryBytes))
				})
			},
		},
		{
			Rule{
				ID: "started-by-hand", Severity: Warning, Subject: "workload", Title: "A program on a GPU belongs to no service and no container",
				Why:    "It was started by hand or by something that was not seen, so it does not start by itself in the VM, and no check can wait for it.",
				Remedy: "Make a unit of it before the move, or note how it is started.",
			},
			func(l *look) []hit {
				return each(l.users, func(p report.Process) string {
					if p.Unit != "" && !strings.HasSuffix(p.Unit, ".scope") || p.Container != "" {
						return ""
					}
					return program(p)
				})
			},
		},
		{
			Rule{
				ID: "service-failed", Severity: Warning, Subject: "service", Title: "A service of the GPUs is not well on the source",
				Why:    "What does not work before the move cannot be a check after it.",
				Remedy: "Repair it first, or leave it out of the checks.",
			},
			func(l *look) []hit {
				return each(l.Services, func(s report.Service) string {
					if s.State != "failed" {
						return ""
					}
					return quote(s.Unit) + " has failed"
				})
			},
		},
		{
			Rule{
				ID: "kubernetes-node", Severity: Warning, Subject: "workload", Title: "The source is a node of Kubernetes",
				Why:    "The cluster knows the node by its name, address and GPUs, and moves its work elsewhere while it is away.",
				Remedy: "Drain the node, or make the VM a new node and leave the move out.",
			},
			func(l *look) []hit {
				return each(l.Containers, func(c report.Workload) string {
					if c.Runtime != "kubernetes" {
						return ""
					}
					return "container " + quote(c.Name) + " is of Kubernetes"
				})
			},
		},
		{
			Rule{
				ID: "pins", Severity: Warning, Subject: "workload", Title: "GPUs are named where they will have another name",
				Why:    "UUIDs and addresses are others in the VM, always; a number may be. A program that names one that is not there finds no GPU.",
				Remedy: "The plan lists each: those in files whose new number is certain are rewritten, the rest you change on the source before the cut-over or in the VM after it.",
			},
			func(l *look) []hit {
				var out []hit
				for _, p := range l.Pins {
					if p.Kind == "all" {
						continue
					}
					h := hit{evidence: fmt.Sprintf("%s has %s=%s", quote(p.Where), quote(p.Key), quote(p.Value))}
					if p.Kind == "index" {
						h.severity = Info
					}
					out = append(out, h)
				}
				return out
			},
		},
		{
			Rule{
				ID: "cdi-files", Severity: Info, Subject: "workload", Title: "Container devices are described in files",
				Why:    "They hold device numbers and paths of the source's driver.",
				Remedy: "The plan has them written anew at first boot (nvidia-ctk cdi generate).",
			},
			func(l *look) []hit {
				return each(l.Configs, func(c report.Config) string {
					if c.Kind != "cdi" {
						return ""
					}
					return quote(c.Path)
				})
			},
		},
		{
			Rule{
				ID: "built-engines", Severity: Warning, Subject: "workload", Title: "Models were built for one kind of GPU",
				Why:    "TensorRT engines run on the model of GPU and the version that they were built for; on another they fail to load.",
				Remedy: "Build them again on the partition, which takes minutes to hours for each, or take a card of the same model.",
			},
			func(l *look) []hit {
				return each(l.Models, func(m report.Models) string {
					if m.Engines <= 0 && m.Kind != "tensorrt" {
						return ""
					}
					return fmt.Sprintf("%s: %s", quote(m.Path), Count(max(m.Engines, 0), "engine", "engines"))
				})
			},
		},
		{
			Rule{
				ID: "large-models", Severity: Info, Subject: "workload", Title: "Models are much of what would be copied",
				Why:    "They seldom change and are often on other servers too, but every pass reads them.",
				Remedy: "Where they have a disk of their own, leave it out (--disk names the others), and mount them in the VM from where they are kept.",
			},
			func(l *look) []hit {
				return each(l.Models, func(m report.Models) string {
					if m.SizeBytes < 100*gib {
						return ""
					}
					at := ""
					if !m.Complete {
						at = "at least "
					}
					return fmt.Sprintf("%s: %s%s", quote(m.Path), at, size(m.SizeBytes))
				})
			},
		},
		{
			Rule{
				ID: "cuda-requirement", Severity: Info, Subject: "workload", Title: "Images ask for a version of CUDA",
				Why:    "The container runtime refuses to start them under a driver that serves an older one.",
				Remedy: "Take a guest driver that serves it; the plan compares.",
			},
			func(l *look) []hit {
				return each(l.Containers, func(c report.Workload) string {
					if c.RequireCUDA == "" {
						return ""
					}
					return "image " + quote(c.Image) + " asks for " + quote(c.RequireCUDA)
				})
			},
		},
		{
			Rule{
				ID: "bound-licence", Severity: Warning, Subject: "workload", Title: "A licence may be bound to the hardware",
				Why:    "Serial number, SMBIOS UUID, MAC address, disk or dongle are what such licences know a machine by.",
				Remedy: "Ask the vendor before the move for a licence that a VM can have: it keeps the MAC addresses, and has another serial number, SMBIOS UUID and other disks.",
			},
			func(l *look) []hit {
				known := func(s string) bool {
					s = strings.ToLower(s)
					return slices.ContainsFunc(licenceServices, func(part string) bool { return strings.Contains(s, part) })
				}
				out := each(l.Services, func(s report.Service) string {
					if !known(s.Unit) && !known(s.Exec) {
						return ""
					}
					return "service " + quote(s.Unit)
				})
				return append(out, each(l.Processes, func(p report.Process) string {
					if !known(p.Exe) {
						return ""
					}
					return program(p)
				})...)
			},
		},
	}
}
