package inspect

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf16"

	"gpuvirt/p2v/report"
)

// efiVariable is where the kernel shows a variable of the firmware's own: four bytes of
// attributes, then the value.
func efiVariable(name string) string {
	return "sys/firmware/efi/efivars/" + name + "-8be4df61-93ca-11d2-aa0d-00e098032b8c"
}

// efi tells what the firmware has started, and whether another one would find it.
func (s *scene) efi() *report.EFI {
	miss := func(format string, args ...any) *report.EFI {
		s.miss("firmware.efi", format, args...)
		return nil
	}
	current, err := s.tree.read(efiVariable("BootCurrent"), 6)
	if err != nil {
		return miss("%s", cause(err))
	}
	if len(current) != 6 {
		return miss("the firmware's BootCurrent has %d bytes", len(current))
	}
	entry, err := s.tree.read(efiVariable(fmt.Sprintf("Boot%04X", binary.LittleEndian.Uint16([]byte(current[4:])))), small)
	if err != nil {
		return miss("%s", cause(err))
	}
	loader := loaderOf([]byte(entry))
	if loader == "" {
		return miss("the entry that was started names no file")
	}
	for _, mount := range []string{"boot/efi", "efi", "boot"} {
		// The file system does not tell capitals from small letters, so neither do names here.
		if s.tree.mounted[mount] && s.tree.exists(path.Join(mount, loader)) {
			out := &report.EFI{Mount: "/" + mount, Loader: loader, Programs: []string{}, Fallback: s.tree.exists(path.Join(mount, fallback))}
			for _, name := range s.tree.names(path.Join(mount, path.Dir(loader))) {
				if strings.EqualFold(path.Ext(name), ".efi") {
					out.Programs = append(out.Programs, name)
				}
			}
			return out
		}
	}
	return miss("what was started is not on a partition that is mounted where it is looked for")
}

// diskNodes are the parts of a device path that a disk has: ATAPI, SCSI, USB, SATA, SAS and
// NVMe. Others are a network's.
var diskNodes = []byte{1, 2, 5, 18, 22, 23}

// fallback is what the firmware starts of a disk where its entry names the disk alone.
const fallback = "/EFI/BOOT/BOOTX64.EFI"

// loaderOf returns the file that an entry of the firmware stands for, as a path with slashes;
// empty: none. The entry is an EFI_LOAD_OPTION behind its attributes as a variable.
func loaderOf(entry []byte) string {
	const head = 4 + 4 + 2 // attributes as a variable, attributes, length of the device path
	if len(entry) < head {
		return ""
	}
	length := int(binary.LittleEndian.Uint16(entry[8:]))
	rest := entry[head:]
	for { // the description
		if len(rest) < 2 {
			return ""
		}
		end := rest[0] == 0 && rest[1] == 0
		if rest = rest[2:]; end {
			break
		}
	}
	rest = rest[:min(length, len(rest))]
	name, disk := "", false
	for len(rest) >= 4 {
		size := int(binary.LittleEndian.Uint16(rest[2:]))
		if size < 4 || size > len(rest) {
			break
		}
		switch kind, sub := rest[0], rest[1]; {
		case kind == 4 && sub == 4: // a file; several are parts of one path
			name += "/" + utf16Text(rest[4:size])
		case kind == 4 && sub == 1, kind == 3 && slices.Contains(diskNodes, sub):
			disk = true
		}
		rest = rest[size:]
	}
	switch {
	case name == "" && disk:
		return fallback
	case name == "":
		return ""
	}
	return path.Clean("/" + strings.ReplaceAll(name, `\`, "/"))
}

func utf16Text(b []byte) string {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	text, _, _ := bytes.Cut([]byte(string(utf16.Decode(units))), []byte{0})
	return string(text)
}
