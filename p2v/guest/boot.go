package guest

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"gpuvirt/p2v/convert"
)

// virtioDrivers is virt-v2v's, but for the guest agent.
func (m *maker) virtioDrivers() {
	m.leave(ByConversion, "virt-v2v puts the drivers into the initramfs")
	switch there, files := m.OS.GuestAgent, m.options.Agent; {
	case there != nil && *there:
		m.leave(ByNobody, "the guest agent is installed")
	case len(files) == 0:
		m.leave(ByConversion, "virt-v2v has the VM install the guest agent, where it reaches packages of its distribution")
	case there == nil:
		m.leave(ByPerson, "the inspection does not tell whether the guest agent is installed: inspect anew")
	case m.strange(files) != "":
		m.leave(ByPerson, "the guest agent: "+m.strange(files))
	default:
		m.brought(convert.Edit{
			Kind: convert.EditPackages, Files: slices.Clone(files), What: "Install the guest agent.",
			Why: "It answers the checks of the VM.", Undo: "Remove the package qemu-guest-agent.",
		})
	}
}

// serialConsole has a login on the serial port. What wants its unit is a file and no link,
// so that nothing of the guest has to be run for it.
func (m *maker) serialConsole() {
	const file = "/etc/systemd/system/getty.target.d/90-gpuvirt-serial.conf"
	m.add(convert.Edit{
		Kind: convert.EditWrite, Path: file, What: "Have a login on the serial port.", Undo: "Remove " + file + ".",
		Content: []byte("# Of the move to a VM: its console can be read on the host.\n[Unit]\nWants=serial-getty@ttyS0.service\n"),
	})
	if !slices.ContainsFunc(strings.Fields(m.OS.Cmdline), func(a string) bool { return a == "console=ttyS0" || strings.HasPrefix(a, "console=ttyS0,") }) {
		m.leave(ByPerson, "for the kernel's own messages add console=ttyS0 to its arguments: each boot loader keeps them elsewhere")
	}
}

// loaderName is a loader that works from another folder: it finds its settings by itself.
var loaderName = regexp.MustCompile(`(?i)^(shim|grub|systemd-boot)[a-z0-9_-]*\.efi$`)

// bootFallback copies what UEFI started to where it looks without an entry, as
// grub-install --force-extra-removable does.
func (m *maker) bootFallback() {
	e := m.Firmware.EFI
	if e == nil || e.Fallback {
		return
	}
	dir, name := path.Split(e.Loader)
	beside := func(want string) string {
		i := slices.IndexFunc(e.Programs, func(p string) bool { return strings.EqualFold(p, want) })
		if i < 0 {
			return ""
		}
		return e.Programs[i]
	}
	copies := [][2]string{{name, "BOOTX64.EFI"}}
	switch shim := strings.HasPrefix(strings.ToLower(name), "shim"); {
	case !loaderName.MatchString(name):
		m.leave(ByPerson, "it is not known whether this loader works from another folder")
		return
	case shim && beside("grubx64.efi") == "":
		m.leave(ByPerson, "what shim loads is not beside it")
		return
	case shim:
		copies = append(copies, [2]string{beside("grubx64.efi"), "grubx64.efi"})
		if mok := beside("mmx64.efi"); mok != "" {
			copies = append(copies, [2]string{mok, "mmx64.efi"})
		}
	}
	for _, c := range copies {
		from, to := e.Mount+dir+c[0], e.Mount+"/EFI/BOOT/"+c[1]
		m.add(convert.Edit{Kind: convert.EditCopy, From: from, Path: to, What: "Copy " + from + " to " + to + ".", Undo: "Remove " + to + "."}, from)
	}
}

// identity is kept, unless the copy has to be another machine.
func (m *maker) identity() {
	if !m.options.Rehearsal {
		m.leave(ByNobody, "the VM takes the server's place, with its machine ID and its ssh host keys")
		return
	}
	m.add(convert.Edit{
		Kind: convert.EditFirstboot, Command: convert.FirstbootNewIdentity,
		What: "Give the copy another machine ID and other ssh host keys, when it starts for the first time.", Undo: "Delete the copy: it is a rehearsal's.",
	})
}
