package inspect

import (
	"path"
	"strings"

	"gpuvirt/internal/mountinfo"
	"gpuvirt/p2v/report"
)

func (s *scene) boot() report.Boot {
	var out report.Boot
	switch {
	case s.any("boot/grub/grub.cfg", "boot/grub2/grub.cfg", "etc/default/grub", "boot/grub/menu.lst"):
		out.Loader = "grub"
	case s.any("boot/loader/loader.conf", "efi/loader/loader.conf", "boot/efi/loader/loader.conf"):
		out.Loader = "systemd-boot"
	}
	switch {
	case s.any("usr/sbin/update-initramfs", "etc/initramfs-tools/initramfs.conf"):
		out.Initramfs, out.Modules = "initramfs-tools", s.initramfsModules()
	case s.any("usr/bin/dracut", "usr/sbin/dracut"):
		out.Initramfs, out.Modules = "dracut", s.dracutModules()
	case s.any("etc/mkinitcpio.conf"):
		out.Initramfs = "mkinitcpio"
		if strings.Contains(s.tree.text("etc/mkinitcpio.conf"), "autodetect") {
			out.Modules = "hostonly"
		}
	}
	for _, f := range s.rows("boot.fstab", "etc/fstab", 3) {
		row := report.FstabRow{Spec: maskLine(mountinfo.Unescape(f[0])), Mount: mountinfo.Unescape(f[1]), Type: f[2]}
		if len(f) > 3 {
			row.Options = maskOptions(f[3])
		}
		out.Fstab = append(out.Fstab, row)
	}
	for _, f := range s.rows("boot.crypttab", "etc/crypttab", 2) {
		out.Crypttab = append(out.Crypttab, f[0])
	}
	out.CryptRows = s.cryptRows()
	return out
}

// cryptRows reads what the volumes of crypttab lie on.
func (s *scene) cryptRows() (out []report.CryptRow) {
	text, _ := s.tree.read("etc/crypttab", small) // what cannot be read is told with the names
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || strings.HasPrefix(f[0], "#") {
			continue
		}
		row := report.CryptRow{Name: f[0], Source: maskLine(f[1]), KernelName: report.KernelName(f[1])}
		if row.KernelName {
			row.Stable, row.Line = s.stable(f[1]), exact(line, len(text) == small)
		}
		out = append(out, row)
	}
	return out
}

// stable is what a device that only this machine names so is called wherever it is; empty: it is
// not known. Where LUKS is not written on it, what else is there may be chance.
func (s *scene) stable(device string) string {
	if target, err := s.tree.link(strings.TrimPrefix(device, "/")); err == nil {
		device = target
	}
	db := s.tree.udev(s.devno(path.Base(device)))
	switch {
	case db["ID_FS_TYPE"] == "crypto_LUKS" && db["ID_FS_UUID"] != "":
		return "UUID=" + db["ID_FS_UUID"]
	case db["ID_PART_ENTRY_UUID"] != "":
		return "PARTUUID=" + db["ID_PART_ENTRY_UUID"]
	}
	return ""
}

func (s *scene) any(names ...string) bool {
	for _, name := range names {
		if s.tree.exists(name) {
			return true
		}
	}
	return false
}

// rows returns the fields of a file's lines that have as many.
func (s *scene) rows(what, name string, fields int) [][]string {
	text, err := s.tree.read(name, small)
	if err != nil && s.tree.exists(name) {
		s.miss(what, "%s", cause(err))
	}
	var out [][]string
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= fields && !strings.HasPrefix(f[0], "#") {
			out = append(out, f)
		}
	}
	return out
}

// configDir returns the settings files of a folder, in the order in which they count.
func (s *scene) configDir(dir, suffix string) []string {
	var out []string
	for _, name := range s.tree.names(dir) {
		if strings.HasSuffix(name, suffix) && !strings.HasPrefix(name, ".") && !strings.HasSuffix(name, "~") {
			out = append(out, path.Join(dir, name))
		}
	}
	return out
}

func (s *scene) initramfsModules() string {
	modules := "most" // what the package brings
	for _, name := range append([]string{"etc/initramfs-tools/initramfs.conf"}, s.configDir("etc/initramfs-tools/conf.d", "")...) {
		if v := assignments(s.tree.text(name))["MODULES"]; v != "" {
			modules = v
		}
	}
	return modules
}

func (s *scene) dracutModules() string {
	modules := "all"
	files := append(s.configDir("usr/lib/dracut/dracut.conf.d", ".conf"), "etc/dracut.conf")
	for _, name := range append(files, s.configDir("etc/dracut.conf.d", ".conf")...) {
		switch assignments(s.tree.text(name))["hostonly"] {
		case "yes", "1":
			modules = "hostonly"
		case "no", "0":
			modules = "all"
		}
	}
	return modules
}
