package inspect

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"

	"gpuvirt/p2v/report"
)

// readTable reads the partition table from the disk itself: opened for reading only.
func (s *scene) readTable(d *report.Disk, devno string) {
	block := int(max(d.BlockBytes, sector))
	head, err := s.tree.device(d.Name, devno, 0, block+34*max(block, sector))
	if err != nil {
		if len(d.Partitions) > 0 {
			s.miss("disks."+d.Name+".table", "udev does not say, and it cannot be read: %s", cause(err))
		}
		return
	}
	table, types := Table(head, block)
	if d.Table = table; table == "" {
		return
	}
	for n := range d.Partitions {
		p := &d.Partitions[n]
		p.Type, p.UUID = types[p.Number].Type, types[p.Number].UUID
		if p.Label == "" {
			p.Label = types[p.Number].Label
		}
	}
}

// Table reads the table in the beginning of a disk of blocks of so many bytes: "gpt", "mbr", or
// empty for none; and by number the type, UUID and label of its partitions.
func Table(head []byte, block int) (string, map[int]report.Partition) {
	out := map[int]report.Partition{}
	if len(head) < sector || head[510] != 0x55 || head[511] != 0xaa {
		return "", out
	}
	if len(head) >= block+92 && bytes.Equal(head[block:block+8], []byte("EFI PART")) {
		header := head[block:]
		at := binary.LittleEndian.Uint64(header[72:])
		count, size := binary.LittleEndian.Uint32(header[80:]), binary.LittleEndian.Uint32(header[84:])
		if at > 1<<20 || size < 128 || size > 4096 {
			return "gpt", out
		}
		for n := range int(min(count, 128)) {
			from := int(at)*block + n*int(size) //nolint:gosec // bounded above
			if from+128 > len(head) {
				break
			}
			e := head[from : from+128]
			if !bytes.Equal(e[:16], make([]byte, 16)) {
				out[n+1] = report.Partition{Type: guid(e[:16]), UUID: guid(e[16:32]), Label: wide(e[56:128])}
			}
		}
		return "gpt", out
	}
	// Also a file system's boot sector ends in 55 aa: what is no table has other states.
	for n := range 4 {
		if e := head[446+16*n : 462+16*n]; e[0]&0x7f != 0 {
			return "", out
		} else if e[4] != 0 {
			out[n+1] = report.Partition{Type: fmt.Sprintf("0x%x", e[4]), UUID: fmt.Sprintf("%08x-%02x", binary.LittleEndian.Uint32(head[440:]), n+1)}
		}
	}
	if len(out) == 0 {
		return "", out
	}
	return "mbr", out
}

func guid(b []byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint16(b[4:]), binary.LittleEndian.Uint16(b[6:]), b[8:10], b[10:16])
}

func wide(b []byte) string {
	var u []uint16
	for i := 0; i+1 < len(b); i += 2 {
		c := binary.LittleEndian.Uint16(b[i:])
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}

// keyInTPM tells whether a LUKS volume is opened by the machine's TPM: crypttab says so, or
// its header has a token of that kind. Of the header only the list of tokens is read, and
// nothing of the keys behind it.
func (s *scene) keyInTPM(v report.Volume) bool {
	for line := range strings.Lines(s.tree.text("etc/crypttab")) {
		f := strings.Fields(line)
		if len(f) >= 4 && f[0] == v.Label && strings.Contains(f[3], "tpm2-device") {
			return true
		}
	}
	for _, on := range v.On {
		head, err := s.tree.device(on, s.devno(on), 0, 16<<10)
		if err != nil {
			s.miss("volumes."+v.Name+".tpm", "crypttab does not say, and the header cannot be read: %s", cause(err))
			continue
		}
		if slices.ContainsFunc(tokens(head), func(t string) bool { return strings.Contains(t, "tpm2") || t == "clevis" }) {
			return true
		}
	}
	return false
}

// tokens returns the kinds of token that a LUKS2 header names.
func tokens(head []byte) []string {
	const binarySize = 4096
	if len(head) < binarySize || !bytes.Equal(head[:6], []byte("LUKS\xba\xbe")) {
		return nil
	}
	var text struct {
		Tokens map[string]struct {
			Type string `json:"type"`
		} `json:"tokens"`
	}
	end := bytes.IndexByte(head[binarySize:], 0)
	if end < 0 || json.Unmarshal(head[binarySize:binarySize+end], &text) != nil {
		return nil
	}
	var out []string
	for _, t := range text.Tokens {
		out = append(out, t.Type)
	}
	return out
}
