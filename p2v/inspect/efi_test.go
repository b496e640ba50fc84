package inspect

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/p2v/report"
)

func utf16Bytes(s string) []byte {
	var out []byte
	for _, u := range utf16.Encode([]rune(s + "\x00")) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out
}

// node is a part of a device path.
func node(kind, sub byte, data []byte) []byte {
	return append(binary.LittleEndian.AppendUint16([]byte{kind, sub}, uint16(4+len(data))), data...)
}

// bootEntry is a variable with an EFI_LOAD_OPTION.
func bootEntry(name string, nodes ...[]byte) []byte {
	list := slices.Concat(append(nodes, node(0x7f, 0xff, nil))...)
	out := append([]byte{7, 0, 0, 0, 1, 0, 0, 0}, binary.LittleEndian.AppendUint16(nil, uint16(len(list)))...)
	return slices.Concat(out, utf16Bytes(name), list, []byte("what the loader is told"))
}

var partition = node(4, 1, make([]byte, 38))

func TestLoaderOf(t *testing.T) {
	good := bootEntry("debian", partition, node(4, 4, utf16Bytes(`\EFI\debian\shimx64.efi`)))
	for name, c := range map[string]struct {
		entry []byte
		want  string
	}{
		"one":       {good, "/EFI/debian/shimx64.efi"},
		"in parts":  {bootEntry("x", partition, node(4, 4, utf16Bytes(`\EFI`)), node(4, 4, utf16Bytes(`a.efi`))), "/EFI/a.efi"},
		"upwards":   {bootEntry("x", node(4, 4, utf16Bytes(`\..\..\etc\shadow`))), "/etc/shadow"},
		"no name":   {bootEntry("", node(4, 4, utf16Bytes(`/b.efi`))), "/b.efi"},
		"network":   {bootEntry("PXE", node(3, 11, make([]byte, 33))), ""},
		"shell":     {bootEntry("EFI Internal Shell", node(4, 7, make([]byte, 16)), node(4, 6, make([]byte, 16))), ""},
		"a disk":    {bootEntry("UEFI QEMU NVMe Ctrl", node(2, 1, make([]byte, 8)), node(1, 1, make([]byte, 2)), node(3, 23, make([]byte, 12))), "/EFI/BOOT/BOOTX64.EFI"},
		"partition": {bootEntry("Hard Drive", partition), "/EFI/BOOT/BOOTX64.EFI"},
		"too short": {bootEntry("x", []byte{4, 4, 3, 0}), ""},
		"too long":  {bootEntry("x", []byte{4, 4, 255, 255, 'a', 0}), ""},
		"endless":   {[]byte{7, 0, 0, 0, 1, 0, 0, 0, 9, 0, 'a', 0}, ""},
		"none":      {nil, ""},
	} {
		if got := loaderOf(c.entry); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	for n := range good {
		loaderOf(good[:n]) // does not panic
	}
}

func TestEFI(t *testing.T) {
	uefi := func(entry []byte) *server {
		s := newServer(t)
		s.file("proc/self/mountinfo", "23 22 259:1 / /boot/efi rw shared:2 - vfat /dev/nvme0n1p1 rw\n")
		s.file("boot/efi/EFI/debian/grubx64.efi", "")
		s.file("boot/efi/EFI/debian/grub.cfg", "")
		s.file("boot/efi/EFI/debian/shimx64.efi", "")
		s.file(efiVariable("BootCurrent"), "\x06\x00\x00\x00\x0a\x00")
		s.file(efiVariable("Boot000A"), string(entry))
		return s
	}
	good := bootEntry("debian", partition, node(4, 4, utf16Bytes(`\EFI\debian\shimx64.efi`)))
	want := report.EFI{Mount: "/boot/efi", Loader: "/EFI/debian/shimx64.efi", Programs: []string{"grubx64.efi", "shimx64.efi"}}

	s := uefi(good)
	if diff := cmp.Diff(&want, s.inspect().Firmware.EFI); diff != "" {
		t.Error(diff)
	}
	s.file("boot/efi/EFI/BOOT/BOOTX64.EFI", "")
	want.Fallback = true
	if diff := cmp.Diff(&want, s.inspect().Firmware.EFI); diff != "" {
		t.Error(diff)
	}

	s.file(efiVariable("Boot000A"), string(bootEntry("UEFI QEMU NVMe Ctrl", node(3, 23, make([]byte, 12)))))
	want = report.EFI{Mount: "/boot/efi", Loader: "/EFI/BOOT/BOOTX64.EFI", Programs: []string{"BOOTX64.EFI"}, Fallback: true}
	if diff := cmp.Diff(&want, s.inspect().Firmware.EFI); diff != "" {
		t.Error(diff)
	}

	for name, change := range map[string]func(s *server){
		"disk without":  func(s *server) { s.file(efiVariable("Boot000A"), string(bootEntry("x", partition))) },
		"not mounted":   func(s *server) { s.file("proc/self/mountinfo", "") },
		"gone":          func(s *server) { s.remove("boot/efi/EFI/debian/shimx64.efi") },
		"no current":    func(s *server) { s.remove(efiVariable("BootCurrent")) },
		"odd current":   func(s *server) { s.file(efiVariable("BootCurrent"), "x") },
		"no such entry": func(s *server) { s.remove(efiVariable("Boot000A")) },
		"odd entry":     func(s *server) { s.file(efiVariable("Boot000A"), strings.Repeat("a", 100)) },
	} {
		s := uefi(good)
		change(s)
		r := s.inspect()
		told := slices.ContainsFunc(r.Unseen, func(u report.Unseen) bool { return u.What == "firmware.efi" && u.Reason != "" })
		if r.Firmware.Type != "uefi" || r.Firmware.EFI != nil || !told {
			t.Errorf("%s: %+v, %+v", name, r.Firmware, r.Unseen)
		}
	}
}
