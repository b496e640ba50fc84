package assess

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"

	"gpuvirt/p2v/report"
)

// hits are none where a thing is there. That it is not known is a warning.
func (p Presence) hits(what string) []hit {
	switch {
	case !p.Known:
		return softened(when(true, "it is not known whether "+what+" is there"), Warning)
	case p.Lacks != "":
		return when(true, p.Lacks)
	}
	return nil
}

// toolChecks are about the programs of this host: what lacks is found out before days of copying.
func toolChecks() []planCheck {
	return []planCheck{
		{
			Rule{
				ID: "no-converter", Severity: Blocker, Subject: "plan", Title: "This host cannot convert the disks",
				Why: "They would be copied, for days perhaps, and each rehearsal and cut-over would fail.",
				Remedy: "Install the packages that are named, which takes effect at once; waive this to install them while the disks are copied; " +
					"or convert nothing (--convert none).",
			},
			func(c *checker) []hit { return c.host.Tools.Converter.hits("what converts") },
		},
		{
			Rule{
				ID: "no-firmware", Severity: Blocker, Subject: "plan", Title: "This host lacks the firmware or the TPM that the VM is to have",
				Why:    "libvirt refuses the VM.",
				Remedy: "Install the packages that are named (ovmf or edk2-ovmf; swtpm and swtpm-tools), which takes effect at once.",
			},
			func(c *checker) []hit {
				var out []hit
				switch {
				case c.Firmware.Type != "uefi":
				case c.Firmware.SecureBoot != nil && *c.Firmware.SecureBoot:
					out = c.host.Tools.SecureBoot.hits("UEFI firmware with Secure Boot")
				default:
					out = c.host.Tools.UEFI.hits("UEFI firmware")
				}
				if slices.ContainsFunc(c.Volumes, func(v report.Volume) bool { return v.TPM }) {
					out = append(out, c.host.Tools.TPM.hits("swtpm")...)
				}
				return out
			},
		},
	}
}

// guestChecks are about what the VM is to get, and what looks at it.
func guestChecks() []planCheck {
	return []planCheck{
		{
			Rule{
				ID: "guest-files", Severity: Blocker, Subject: "plan", Title: "The packages for VMs cannot be read",
				Why:    "A rehearsal and a cut-over fail where it is not known what to install.",
				Remedy: "Let the daemon read the folder (setting p2v.guest_files), or remove it.",
			},
			func(c *checker) []hit {
				return when(c.host.Brought.Packages.Lacks != "", c.host.Brought.Packages.Lacks)
			},
		},
		{
			Rule{
				ID: "no-licence-file", Severity: Blocker, Subject: "plan", Title: "The licence token that the wish tells of cannot be read",
				Why:    "A rehearsal and a cut-over fail where it is not there to be laid into the VM.",
				Remedy: "Bring it as licence.tok in the folder of credentials, or plan without it.",
			},
			func(c *checker) []hit {
				if !c.wish.LicenceToken {
					return nil
				}
				return c.host.Brought.Licence.hits("the token")
			},
		},
		{
			Rule{
				ID: "no-guest-driver", Severity: Warning, Subject: "plan", Title: "The vGPU guest driver is not at hand for the VM",
				Why:    "Nobody installs it then: the VM starts without its GPU, and what needs it fails its rehearsal.",
				Remedy: "Lay its packages, of the branch that the wish names, into driver/ of the server's system (setting p2v.guest_files), or install it in the VM by hand.",
			},
			func(c *checker) []hit {
				if !slices.ContainsFunc(c.plan.Changes, func(g GuestChange) bool { return g.ID == "driver-vgpu" }) {
					return nil
				}
				return c.driverPackages()
			},
		},
		{
			Rule{
				ID: "no-agent", Severity: Warning, Subject: "system", Title: "The server has no guest agent",
				Why:    "What is in the VM is seen through its agent alone: without one that answers a rehearsal fails, and a cut-over waits for a person.",
				Remedy: "Install qemu-guest-agent on the server before the move, or lay its packages into agent/ of the server's system (setting p2v.guest_files).",
			},
			(*checker).agent,
		},
	}
}

// system is what packages for the server's system are looked for by.
func (c *checker) system() string { return quote(c.OS.ID + "-" + c.OS.VersionID) }

func (c *checker) driverPackages() []hit {
	b := c.host.Brought
	branch := branchOf(c.wish.GuestDriver)
	switch {
	case !b.Packages.Known:
		return when(true, "it is not known whether there are packages of it")
	case len(b.Driver) == 0:
		return when(true, "there are no packages of it for "+c.system())
	case branch == 0: // which is a concern of its own
		return nil
	}
	named := regexp.MustCompile(`(^|[^0-9])` + strconv.Itoa(branch) + `([^0-9]|$)`)
	return when(!slices.ContainsFunc(b.Driver, named.MatchString),
		fmt.Sprintf("by their names no package is of branch %d: %s", branch, quotes(b.Driver)))
}

func (c *checker) agent() []hit {
	there, b := c.OS.GuestAgent, c.host.Brought
	switch {
	case there == nil:
		return when(true, "the inspection does not tell whether it is installed: inspect anew")
	case *there:
		return nil
	case c.wish.Unconverted:
		return when(true, "the disks are taken as they are, and nobody installs it")
	case !b.Packages.Known:
		return when(true, "it is not known whether there are packages of it")
	case len(b.Agent) == 0:
		return when(true, "there are no packages of it for "+c.system()+
			": the VM installs it from its distribution's where it reaches them, which a rehearsal's VM, without a network, does not")
	}
	return when(forbidding(c.OS.ID), "it is installed, and its package for "+c.system()+" does not let it run programs: see agent-blocked")
}
