package assess

import (
	"fmt"
	"slices"
	"strings"

	"gpuvirt/p2v/report"
)

// bootRules are about how the system is brought up.
func bootRules() []rule {
	return []rule{
		{
			Rule{
				ID: "secure-boot", Severity: Warning, Subject: "system", Title: "Secure Boot is on",
				Why: "Keys that were enrolled for modules (MOK) are in the firmware of the source and not in the VM's, so that a driver signed with " +
					"them is not loaded.",
				Remedy: "Enrol the key in the VM at its first start. To have a VM without Secure Boot, turn it off on the source and inspect that anew.",
			},
			func(l *look) []hit {
				return when(l.Firmware.SecureBoot != nil && *l.Firmware.SecureBoot, "the firmware says so")
			},
		},
		{
			Rule{
				ID: "bios-boot", Severity: Info, Subject: "system", Title: "The source starts by BIOS",
				Why:    "The VM keeps it (SeaBIOS). Cards with large memory regions may need UEFI firmware to be given to a VM.",
				Remedy: "Try the card in a rehearsal; a change to UEFI is a step of its own, before or after the move.",
			},
			func(l *look) []hit { return when(l.Firmware.Type == "bios", "firmware "+quote(l.Firmware.Type)) },
		},
		{
			Rule{
				ID: "firmware-unknown", Severity: Blocker, Subject: "system", Title: "It is not known what firmware starts the source",
				Why:    "A VM with the wrong one finds no boot loader.",
				Remedy: "Inspect the source anew: no VM is defined of one whose firmware is not known.",
			},
			func(l *look) []hit {
				return when(l.Firmware.Type != "bios" && l.Firmware.Type != "uefi", "firmware "+quote(l.Firmware.Type))
			},
		},
		{
			Rule{
				ID: "tpm-bound-disk", Severity: Blocker, Subject: "disk", Title: "An encrypted volume opens with this machine's TPM",
				Why:    "The VM has another TPM: the volume stays closed, for the conversion as well.",
				Remedy: "Add a passphrase to the volume on the source (cryptsetup luksAddKey) and bind it to the VM's TPM after the move.",
			},
			func(l *look) []hit {
				return each(l.Volumes, func(v report.Volume) string {
					if v.Kind != "crypt" || !v.TPM {
						return ""
					}
					return "volume " + quote(v.Name) + " (" + quote(v.Label) + ")"
				})
			},
		},
		{
			Rule{
				ID: "encrypted-disk", Severity: Warning, Subject: "disk", Title: "Encrypted volumes may ask for a passphrase at boot",
				Why:    "Somebody types it on the VM's console at each start, or a key file or server gives it; the conversion needs it too.",
				Remedy: "Have the passphrase at hand, or a server for it that the VM's network reaches.",
			},
			func(l *look) []hit {
				out := each(l.Volumes, func(v report.Volume) string {
					if v.Kind != "crypt" || v.TPM {
						return ""
					}
					return "volume " + quote(v.Name) + " (" + quote(v.Label) + ")"
				})
				return append(out, each(l.Boot.Crypttab, func(s string) string { return "crypttab has " + quote(s) })...)
			},
		},
		{
			Rule{
				ID: "tpm", Severity: Info, Subject: "system", Title: "The source has a TPM",
				Why:    "What else is sealed in it (keys of services, measured boot) is not in the VM's.",
				Remedy: "Ask what uses it.",
			},
			func(l *look) []hit {
				bound := slices.ContainsFunc(l.Volumes, func(v report.Volume) bool { return v.TPM })
				return when(l.Firmware.TPM != "" && !bound, "TPM "+quote(l.Firmware.TPM))
			},
		},
		{
			Rule{
				ID: "device-names", Severity: Warning, Subject: "disk", Title: "Disks are named by the kernel's names",
				Why:    "/dev/sda1 or /dev/nvme0n1p1 is /dev/vda1 in the VM. Conversion renames the usual ones in fstab, old versions not those of NVMe, and none in crypttab.",
				Remedy: "Use UUID= or LABEL= in fstab and crypttab before the move; the plan rewrites what is left, as far as it is known.",
			},
			func(l *look) []hit {
				out := each(l.Boot.CryptRows, func(r report.CryptRow) string {
					if !r.KernelName {
						return ""
					}
					return "crypttab has " + quote(r.Source) + " for " + quote(r.Name)
				})
				if len(l.Boot.CryptRows) == 0 && len(l.Boot.Crypttab) > 0 {
					out = append(out, hit{evidence: "of crypttab only names are known: inspect anew with this version"})
				}
				return append(out, each(l.Boot.Fstab, func(r report.FstabRow) string {
					if !report.KernelName(r.Spec) {
						return ""
					}
					return "fstab has " + quote(r.Spec) + " for " + quote(r.Mount)
				})...)
			},
		},
		{
			Rule{
				ID: "initramfs-lean", Severity: Warning, Subject: "system", Title: "The initramfs holds only what this machine needs",
				Why:    "It has no virtio drivers: a VM started from it before the conversion finds no disk.",
				Remedy: "Nothing: conversion builds it anew. Building it with the virtio drivers on the source beforehand does no harm and saves time.",
			},
			func(l *look) []hit {
				return when(l.Boot.Modules == "dep" || l.Boot.Modules == "hostonly", quote(l.Boot.Initramfs)+" is set to "+quote(l.Boot.Modules))
			},
		},
		{
			Rule{
				ID: "no-initramfs-tool", Severity: Blocker, Subject: "system", Title: "No known program builds the initramfs",
				Why:    "Conversion needs initramfs-tools, dracut or mkinitrd to put the virtio drivers in.",
				Remedy: "Install it on the source, or prepare the initramfs by hand and waive this.",
			},
			func(l *look) []hit {
				if l.unseen("boot.initramfs") {
					return nil // told as unseen
				}
				known := slices.Contains([]string{"initramfs-tools", "dracut", "mkinitrd"}, l.Boot.Initramfs)
				return when(!known, "found: "+quote(l.Boot.Initramfs))
			},
		},
		{
			Rule{
				ID: "boot-loader", Severity: Warning, Subject: "system", Title: "It is not known what loads the kernel, or conversion does not know it",
				Why:    "Conversion changes kernel arguments through GRUB.",
				Remedy: "Try a rehearsal, and look at the console.",
			},
			func(l *look) []hit {
				return when(l.Boot.Loader != "grub" && !l.unseen("boot.loader"), "boot loader "+quote(l.Boot.Loader))
			},
		},
		{
			Rule{
				ID: "no-room-to-convert", Severity: Blocker, Subject: "disk", Title: "A file system has too little room for the conversion",
				Why:    "virt-v2v refuses below 100 MiB free on /, 50 on /boot and 10 on others, or below 100 free inodes.",
				Remedy: "Remove old kernels or other files on the source.",
			},
			func(l *look) []hit { return each(l.Filesystems, noRoom) },
		},
	}
}

// noRoom tells where virt-v2v would refuse. Its MB are MiB.
func noRoom(f report.Filesystem) string {
	if network(f) || readOnlyType(f.Type) || f.SizeBytes == 0 {
		return ""
	}
	need := uint64(10 * mib)
	switch f.Mount {
	case "/":
		need = 100 * mib
	case "/boot":
		need = 50 * mib
	}
	switch free := f.SizeBytes - min(f.UsedBytes, f.SizeBytes); {
	case free < need:
		return fmt.Sprintf("%s has %s free, needed are %s", quote(f.Mount), size(free), size(need))
	case f.Inodes > 0 && f.FreeInodes < 100:
		return fmt.Sprintf("%s has %d inodes free, needed are 100", quote(f.Mount), f.FreeInodes)
	}
	return ""
}

func readOnlyType(t string) bool { return t == "iso9660" || t == "squashfs" || t == "udf" }

// network tells whether a file system comes over the network.
func network(f report.Filesystem) bool {
	for _, t := range []string{"nfs", "cifs", "smb", "ceph", "lustre", "glusterfs", "fuse.", "beegfs", "gpfs", "9p", "afs"} {
		if strings.HasPrefix(f.Type, t) {
			return true
		}
	}
	return false
}

// unseen tells whether the inspector says that it could not see a part of the report.
func (l *look) unseen(path string) bool {
	return slices.ContainsFunc(l.Unseen, func(u report.Unseen) bool {
		return u.What == path || strings.HasPrefix(path, u.What+".")
	})
}
