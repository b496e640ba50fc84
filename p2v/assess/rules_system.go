package assess

import (
	"fmt"
	"slices"
	"strings"
)

// convertible are the distributions, as os-release names them, that virt-v2v's conversion of
// Linux knows (its manual, and the families in libguestfs' inspection).
var convertible = []string{
	"debian", "ubuntu", "linuxmint", "kali", "pop",
	"rhel", "centos", "fedora", "rocky", "almalinux", "ol", "scientific", "amzn", "openEuler", "anolis",
	"sles", "sled", "opensuse", "opensuse-leap", "opensuse-tumbleweed", "sle-micro",
	"altlinux",
}

// wideUnits are flags of processors that programs are built for and that a VM has only
// where its processor is the host's.
var wideUnits = []string{"avx512", "amx", "avx_vnni", "avx10"}

// systemRules are about the machine and its operating system.
func systemRules() []rule {
	return []rule{
		{
			Rule{
				ID: "not-x86-64", Severity: Blocker, Subject: "system", Title: "The source is no 64-bit x86 system",
				Why:    "A VM under KVM has the architecture of its host, and conversion knows x86-64 only.",
				Remedy: "Install the workload anew on a system of the host's architecture.",
			},
			func(l *look) []hit {
				return when(l.OS.Arch != "x86_64", "its architecture is "+quote(l.OS.Arch))
			},
		},
		{
			Rule{
				ID: "os-not-convertible", Severity: Blocker, Subject: "system", Title: "virt-v2v does not know this operating system",
				Why:    "It refuses to convert what it does not know, since it would not boot from virtual disks.",
				Remedy: "Prepare the drivers by hand and waive this, or install the workload anew.",
			},
			func(l *look) []hit {
				return when((l.OS.ID != "" || !l.unseen("os")) && !slices.Contains(convertible, l.OS.ID), "os-release says "+quote(l.OS.ID)+", "+quote(l.OS.PrettyName))
			},
		},
		{
			Rule{
				ID: "source-is-vm", Severity: Warning, Subject: "system", Title: "The source is a VM itself",
				Why:    "Its GPU is a virtual one or one that was passed on, and its measured speed is a VM's. Agents of its hypervisor are in it.",
				Remedy: "Move it with the tools for its hypervisor (virt-v2v) if they can, else go on: conversion removes the known agents.",
			},
			func(l *look) []hit { return when(l.System.Virtual != "", "hypervisor "+quote(l.System.Virtual)) },
		},
		{
			Rule{
				ID: "wide-vector-units", Severity: Warning, Subject: "system", Title: "The processor has AVX-512 or AMX",
				Why:    "A program that was built for them dies with an illegal instruction where the VM's processor has none.",
				Remedy: "Take a host that has them too, and leave the VM that host's processor (no --cpu).",
			},
			func(l *look) []hit {
				found := slices.DeleteFunc(slices.Clone(l.CPU.Flags), func(f string) bool {
					return !slices.ContainsFunc(wideUnits, func(w string) bool { return strings.HasPrefix(f, w) })
				})
				return when(len(found) > 0, quote(l.CPU.Model)+" has "+quotes(found))
			},
		},
		{
			Rule{
				ID: "hugepages", Severity: Warning, Subject: "system", Title: "Memory is reserved as huge pages",
				Why:    "The same number in a VM with less memory leaves too little for all else, and it does not start.",
				Remedy: "Give the VM as much memory as the source has (no --memory), or reserve fewer on the source before the cut-over.",
			},
			func(l *look) []hit {
				return when(l.Memory.HugepagesBytes > 0, fmt.Sprintf("%s of %s", size(l.Memory.HugepagesBytes), size(l.Memory.TotalBytes)))
			},
		},
		{
			Rule{
				ID: "numa", Severity: Info, Subject: "system", Title: "The source has several NUMA nodes",
				Why:    "A VM that spans nodes without knowing it reads memory far from its GPU.",
				Remedy: "After the cut-over, with the VM off, bind it to the node of its GPU (`gpuvirt gpu show`; virsh numatune and vcpupin with --config).",
			},
			func(l *look) []hit { return when(l.CPU.NUMA > 1, Count(l.CPU.NUMA, "node", "nodes")) },
		},
		{
			Rule{
				ID: "selinux", Severity: Info, Subject: "system", Title: "SELinux enforces",
				Why:    "Files that the conversion writes are labelled anew at first boot, which takes minutes and a reboot on large file systems.",
				Remedy: "Count it into the downtime (--downtime): a rehearsal measures how long the VM boots.",
			},
			func(l *look) []hit { return when(l.OS.SELinux == "enforcing", "it is "+quote(l.OS.SELinux)) },
		},
		{
			Rule{
				ID: "agent-blocked", Severity: Warning, Subject: "system", Title: "The guest agent is not allowed to run programs",
				Why: "Devices, their driver, services, containers and your own checks are looked at by programs that it runs in the VM. They stay unknown, " +
					"so that a rehearsal fails and a cut-over waits for a person.",
				Remedy: "On the server, before the move, let it run guest-exec and guest-exec-status: in /etc/sysconfig/qemu-ga take them out of BLACKLIST_RPC or BLOCK_RPCS, " +
					"or add them to --allow-rpcs in FILTER_RPC_ARGS, whichever is there; elsewhere in /etc/qemu/qemu-ga.conf. Or look at the VM yourself, and accept it.",
			},
			agentBlocked,
		},
		{
			Rule{
				ID: "reboot-pending", Severity: Warning, Subject: "system", Title: "The running kernel is not installed any more",
				Why:    "The VM boots another kernel than the one that was tried with this driver.",
				Remedy: "Reboot the source and see the workload run before the move.",
			},
			func(l *look) []hit {
				return when(l.OS.Kernel != "" && len(l.OS.Kernels) > 0 && !slices.Contains(l.OS.Kernels, l.OS.Kernel),
					quote(l.OS.Kernel)+" runs, installed are "+quotes(l.OS.Kernels))
			},
		},
	}
}

// forbidding tells whether a distribution's package of the guest agent has settings that do not let
// it run programs.
func forbidding(id string) bool {
	return slices.Contains([]string{"rhel", "centos", "fedora", "rocky", "almalinux", "ol"}, id)
}

func agentBlocked(l *look) []hit {
	there, runs := l.OS.GuestAgent, l.OS.GuestAgentRuns
	switch {
	case there == nil:
		return nil
	case !*there:
		return when(forbidding(l.OS.ID), "it is not installed, and the package of it for "+quote(l.OS.ID)+" does not allow that as it comes")
	case runs == nil:
		return when(forbidding(l.OS.ID), "the inspection does not tell what its settings allow, and those of "+quote(l.OS.ID)+" do not as they come")
	}
	return when(!*runs, "its settings forbid guest-exec or guest-exec-status, or do not name them among what is allowed")
}
