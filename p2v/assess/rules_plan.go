package assess

import (
	"fmt"
	"slices"
	"strings"
)

// A planCheck finds one concern in a plan.
type planCheck struct {
	Rule
	find func(*checker) []hit
}

func planRules() []Rule {
	var out []Rule
	for _, r := range planChecks() {
		out = append(out, r.Rule)
	}
	return out
}

// planChecks are the concerns that a host and a wish bring.
func planChecks() []planCheck {
	return slices.Concat(partitionChecks(), driverPlanChecks(), toolChecks(), guestChecks(), roomChecks())
}

func partitionChecks() []planCheck {
	return []planCheck{
		{
			Rule{
				ID: noPartition, Severity: Blocker, Subject: "plan", Title: "No partition of this host is known to be enough",
				Why:    "The VM would start without the GPU that its workload needs.",
				Remedy: "Free one of those that were rejected for being taken, say what is needed where the inspection asks for too much (--need), name one that is enough all the same (--profile) and waive this, or take another host.",
			},
			func(c *checker) []hit {
				return each(c.plan.Fittings, func(f Fitting) string {
					if !f.Need.Required || f.Choice != nil && !f.Choice.Waived {
						return ""
					}
					return fmt.Sprintf("%s: %s", needName(f.Need), Count(len(f.Candidates), "candidate was rejected", "candidates were rejected"))
				})
			},
		},
		{
			Rule{
				ID: "wish-unknown", Severity: Blocker, Subject: "plan", Title: "The wish names something that is not there",
				Why:    "What was meant cannot be guessed.",
				Remedy: "Name GPUs (--profile) and disks (--disk) of the source as its inspection does (`gpuvirt assessment inspection`).",
			},
			func(c *checker) []hit {
				var out []hit
				for _, p := range c.wish.Partitions {
					known := p.Source == "" || slices.ContainsFunc(c.plan.Assessment.Needs, func(n Need) bool { return n.Source.PCI == p.Source })
					out = append(out, when(!known, "gpu "+quote(p.Source))...)
				}
				for _, name := range c.wish.Disks {
					known := false
					for _, d := range c.Disks {
						known = known || d.Name == name
					}
					out = append(out, when(!known, "disk "+quote(name))...)
				}
				return out
			},
		},
		{
			Rule{
				ID: "disk-left-out", Severity: Warning, Subject: "plan", Title: "A disk that the system uses is not moved",
				Why:    "The VM may not start, or waits at boot for what is on it.",
				Remedy: "Name it too (--disk), or take its rows out of fstab.",
			},
			func(c *checker) []hit {
				var moved []string
				for _, d := range c.moved(c.wish) {
					moved = append(moved, d.Name)
				}
				return each(c.systemDisks(), func(name string) string {
					if slices.Contains(moved, name) {
						return ""
					}
					return "disk " + quote(name)
				})
			},
		},
		{
			Rule{
				ID: "no-key", Severity: Blocker, Subject: "plan", Title: "An encrypted volume is moved, and nobody has given its passphrase",
				Why:    "The conversion looks into all of them, and fails at the first that it cannot open.",
				Remedy: "Give a passphrase (--passphrase-file, or --key for a file of the host), add one on the source where only a key file or the TPM opens it (cryptsetup luksAddKey), or convert nothing (--convert none).",
			},
			func(c *checker) []hit {
				if c.wish.Unconverted {
					return nil
				}
				return each(c.locked(c.wish), func(name string) string { return "volume on " + quote(name) })
			},
		},
		{
			Rule{
				ID: "gpu-left-out", Severity: Info, Subject: "plan", Title: "The VM gets nothing for a GPU of the source",
				Why:    "Nothing was seen to use it, or it was asked for.",
				Remedy: "Ask for a partition for it if it is needed (--profile 0000:41:00.0=PROFILE).",
			},
			func(c *checker) []hit {
				return each(c.plan.Fittings, func(f Fitting) string {
					if f.Need.Required || f.Need.Source.Vendor != nvidia || len(f.Need.Explanation) == 0 {
						return ""
					}
					return needName(f.Need) + ": " + f.Need.Explanation[len(f.Need.Explanation)-1].Text
				})
			},
		},
		{
			Rule{
				ID: "other-architecture", Severity: Warning, Subject: "plan", Title: "The GPU is of another architecture",
				Why:    "A program without code for it, and without PTX, does not run; speed and memory bandwidth are others.",
				Remedy: "Try the workload in a rehearsal and compare it with the source.",
			},
			func(c *checker) []hit {
				return each(Chosen(c.plan.Fittings), func(f Fitting) string {
					if from, to := f.Need.Source.Capability, f.capability(); from != "" && to != "" && from != to {
						return fmt.Sprintf("%s: compute capability %s, and %s on this host", needName(f.Need), quote(from), to)
					}
					return ""
				})
			},
		},
	}
}

func needName(n Need) string {
	if n.Source.PCI == "" {
		return "the partition that is asked for"
	}
	return "gpu " + quote(n.Source.PCI)
}

func driverPlanChecks() []planCheck {
	return []planCheck{
		{
			Rule{
				ID: "drivers-do-not-match", Severity: Blocker, Subject: "plan", Title: "The guest's driver does not go with this host's GPU",
				Why:    "The driver does not load, and the VM has no GPU.",
				Remedy: "Bring a guest driver of an allowed branch (setting p2v.guest_files) and name its version (--guest-driver), or change the host's driver.",
			},
			func(c *checker) []hit { return c.driverHits(Incompatible) },
		},
		{
			Rule{
				ID: "drivers-unknown", Severity: Blocker, Subject: "plan", Title: "It is not known whether the guest's driver goes with this host's GPU",
				Why:    "Unknown is not fine: terabytes would be copied before it is found out.",
				Remedy: "Name the guest driver that is ready (--guest-driver), add its branch to those that are known here (setting p2v.drivers), or read NVIDIA's release notes and waive this.",
			},
			func(c *checker) []hit { return c.driverHits(Unknown) },
		},
		{
			Rule{
				ID: "cuda-too-old", Severity: Blocker, Subject: "plan", Title: "An image asks for a newer CUDA than the guest's driver serves",
				Why:    "The container runtime refuses to start it.",
				Remedy: "Take a guest driver of a newer branch, for which the host's may have to be newer too, or an older image.",
			},
			cudaHits,
		},
		{
			Rule{
				ID: "no-licence-token", Severity: Warning, Subject: "plan", Title: "No licence token is named for a vGPU",
				Why:    "Without a licence a vGPU is slowed down after a while, and CUDA may refuse to work.",
				Remedy: "Have a client configuration token made, say that it is ready (--licence-token), and see that the VM's network reaches the licence service.",
			},
			func(c *checker) []hit {
				if c.wish.LicenceToken {
					return nil
				}
				return each(Chosen(c.plan.Fittings), func(f Fitting) string {
					if !f.Choice.nvidiaVGPU() {
						return ""
					}
					return fmt.Sprintf("%s is of series %s", f.Choice.Profile, f.Choice.vgpuSeries)
				})
			},
		},
	}
}

func (c *checker) driverHits(s Agreement) []hit {
	return each(c.plan.Drivers, func(d DriverCheck) string {
		if d.State != s {
			return ""
		}
		out := fmt.Sprintf("gpu %s: %s", d.GPU, d.Why)
		if len(d.Allowed) > 0 {
			out += ", allowed are branches " + strings.Trim(fmt.Sprint(d.Allowed), "[]")
		}
		return out
	})
}

// cudaHits compares what images ask for with what the guest's driver will serve.
func cudaHits(c *checker) []hit {
	driver := c.wish.GuestDriver
	if !target(c.plan.Fittings).vgpu || driver == "" {
		if c.Driver == nil || target(c.plan.Fittings).vgpu && !c.Driver.Guest {
			return nil // that no driver is named is a concern of its own
		}
		driver = c.Driver.Version
	}
	serves, ok := cudaVersion(c.drivers.CUDA(driver))
	if !ok || !target(c.plan.Fittings).nvidia {
		return nil
	}
	var out []hit
	for _, w := range c.Containers {
		if need, asks := requiredCUDA(w.RequireCUDA); asks && slices.Compare(need[:], serves[:]) > 0 {
			out = append(out, hit{evidence: fmt.Sprintf("image %s asks for CUDA %d.%d, and driver %s serves %d.%d",
				quote(w.Image), need[0], need[1], quote(driver), serves[0], serves[1])})
		}
	}
	return out
}

func roomChecks() []planCheck {
	return []planCheck{
		{
			Rule{
				ID: "disk-room", Severity: Blocker, Subject: "plan", Title: "This host has too little room for the disks",
				Why:    "A copy that fills the host's disk stops, and other VMs with it.",
				Remedy: "Make room where the copies are kept (setting p2v.mirrors), or move fewer disks (--disk), such as without one that has only models.",
			},
			func(c *checker) []hit {
				need, have, kept := c.plan.Estimates.DiskBytes, c.host.DiskBytes, c.host.DiskKept
				text := "needed are " + size(need)
				if kept > 0 {
					text += ", and " + size(kept) + " that are kept free"
				}
				switch {
				case have == 0:
					return softened(when(true, "free room is not known, "+text), Warning)
				case have < sum(need, kept):
					return when(true, size(have)+" are free, "+text)
				}
				return nil
			},
		},
		{
			Rule{
				ID: "memory-room", Severity: Blocker, Subject: "plan", Title: "This host has too little memory for the VM",
				Why:    "The VM does not start, or this host swaps.",
				Remedy: "Give the VM less memory (--memory), or free some.",
			},
			func(c *checker) []hit {
				need, have := c.memoryBytes(), c.host.MemoryBytes
				switch {
				case have == 0:
					return softened(when(true, "free memory is not known, needed are "+size(need)), Warning)
				case have < need && slices.ContainsFunc(c.plan.Fittings, func(f Fitting) bool { return f.Choice != nil }):
					return when(true, fmt.Sprintf("%s are free, needed are %s: all of the VM's memory is pinned, as it has a GPU of its own", size(have), size(need)))
				case have < need:
					return when(true, fmt.Sprintf("%s are free, needed are %s", size(have), size(need)))
				}
				return nil
			},
		},
		{
			Rule{
				ID: "hugepages-room", Severity: Blocker, Subject: "plan", Title: "Huge pages leave the VM too little memory",
				Why:    "They are taken first at boot, and what is left is too little to start.",
				Remedy: "Reserve fewer on the source and inspect it anew, or give the VM more memory (--memory).",
			},
			func(c *checker) []hit {
				huge, memory := c.Memory.HugepagesBytes, c.memoryBytes()
				return when(huge > 0 && (memory < 2*gib || huge > memory-2*gib),
					fmt.Sprintf("%s are reserved, the VM has %s, and 2 GiB have to be left", size(huge), size(memory)))
			},
		},
		{
			Rule{
				ID: "processor-flags", Severity: Warning, Subject: "plan", Title: "This host's processor lacks what the source's has",
				Why:    "A program that was built for it dies with an illegal instruction.",
				Remedy: "Take a host with such a processor, or see whether the programs find out by themselves.",
			},
			func(c *checker) []hit {
				if len(c.host.CPUFlags) == 0 {
					return nil
				}
				has := func(f string) bool { return slices.Contains(c.host.CPUFlags, f) }
				lacks := slices.DeleteFunc(slices.Clone(c.CPU.Flags), func(f string) bool {
					// Both are what runs VMs, of Intel and of AMD: who uses it asks for either.
					return has(f) || f == "svm" && has("vmx") || f == "vmx" && has("svm")
				})
				return when(len(lacks) > 0, "it lacks "+quotes(lacks))
			},
		},
		{
			Rule{
				ID: "downtime", Severity: Blocker, Subject: "plan", Title: "The downtime is longer than its budget",
				Why:    "The service is away for longer than was agreed.",
				Remedy: "Raise the budget (--downtime), give the copy more bandwidth (--bandwidth), or quieten what writes on the source.",
			},
			func(c *checker) []hit {
				e := c.plan.Estimates
				switch d := e.DowntimeSeconds; {
				case e.BudgetSeconds == 0 || d.To <= e.BudgetSeconds:
					return nil
				case d.From <= e.BudgetSeconds:
					return softened(when(true, fmt.Sprintf("%s to %s are expected, allowed are %s", duration(d.From), duration(d.To), duration(e.BudgetSeconds))), Warning)
				default:
					return when(true, fmt.Sprintf("%s at least are expected, allowed are %s", duration(d.From), duration(e.BudgetSeconds)))
				}
			},
		},
	}
}

// locked are what encrypted volumes lie on that are moved and that no key was given for. A key by a
// UUID may be of any of those that none names.
func (l *look) locked(w Wish) []string {
	var all []string
	add := func(name string) {
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	moved := map[string]bool{}
	for _, d := range l.moved(w) {
		moved[d.Name] = true
		if d.Content == luks {
			add(d.Name)
		}
		for _, p := range d.Partitions {
			moved[p.Name] = true
			if p.Content == luks {
				add(p.Name)
			}
		}
	}
	on := map[string][]string{}
	for _, v := range l.Volumes {
		on[v.Name] = v.On
	}
	var isMoved func(name string, depth int) bool
	isMoved = func(name string, depth int) bool {
		return moved[name] || depth > 0 && slices.ContainsFunc(on[name], func(n string) bool { return isMoved(n, depth-1) })
	}
	for _, v := range l.Volumes {
		if v.Kind == "crypt" && isMoved(v.Name, 8) {
			add(strings.Join(v.On, " and "))
		}
	}
	spare := 0
	for _, k := range w.Keys {
		if !slices.Contains(all, k) {
			spare++
		}
	}
	all = slices.DeleteFunc(all, func(name string) bool { return slices.Contains(w.Keys, name) })
	return all[min(spare, len(all)):]
}

// luks is what an encrypted volume is called by what it lies on.
const luks = "crypto_LUKS"
