package guest

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/report"
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

var (
	// stableSource is what crypttab may call a volume: by the UUID of LUKS, or of its partition.
	stableSource = regexp.MustCompile(`^(UUID=[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}|PARTUUID=[0-9A-Fa-f]{8}-([0-9A-Fa-f]{2}|([0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}))$`)
	cryptLine    = regexp.MustCompile(`^(\s*(\S+)\s+)(\S+)((?:\s.*)?)$`)
)

// deviceNames has crypttab name by UUID what it names as the kernel of this server does: virt-v2v
// sees to fstab, and leaves crypttab as it is.
func (m *maker) deviceNames() {
	var rows []string
	for _, r := range m.Boot.Fstab {
		if report.KernelName(r.Spec) {
			rows = append(rows, r.Spec+" "+r.Mount)
		}
	}
	if len(rows) > 0 {
		m.leave(ByConversion, "virt-v2v names disks in fstab as the VM has them", rows...)
	}
	for _, r := range m.Boot.CryptRows {
		if !r.KernelName {
			continue
		}
		item := r.Name + " " + r.Source
		g := cryptLine.FindStringSubmatch(r.Line)
		switch {
		case !stableSource.MatchString(r.Stable):
			m.leave(ByPerson, "it is not known what the volume is called in the VM: name it by UUID= in /etc/crypttab", item)
		case g == nil || g[2] != r.Name || g[3] != r.Source:
			m.leave(ByPerson, "the inspection does not have its line as it stands: name it by UUID= in /etc/crypttab", item)
		default:
			m.line("/etc/crypttab", r.Line, g[1]+r.Stable+g[4], item)
		}
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
