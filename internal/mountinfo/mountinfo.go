// Package mountinfo reads what the kernel tells of mounts, as in /proc/self/mountinfo.
package mountinfo

import (
	"slices"
	"strconv"
	"strings"
)

// A Mount is a row of mountinfo.
type Mount struct {
	ID     int    // unique on the machine while it is mounted
	Number string // of the device of the superblock, "8:1"; "0:27" where it has no device
	Root   string // the folder of the filesystem that is mounted
	At     string // the mount point, below the root of the process that was asked for
	// Options are those of the mount, Super those of the superblock; comma between two.
	Options, Super string
	Type           string
	Source         string
}

// Parse returns the mounts, in the order in which they were made. What is no row is left out.
func Parse(text string) []Mount {
	var out []Mount
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		dash := slices.Index(f, "-")
		if dash < 6 || len(f) < dash+4 {
			continue
		}
		id, err := strconv.Atoi(f[0])
		if err != nil {
			continue
		}
		out = append(out, Mount{
			ID: id, Number: f[2], Root: Unescape(f[3]), At: Unescape(f[4]), Options: f[5],
			Type: f[dash+1], Source: Unescape(f[dash+2]), Super: f[dash+3],
		})
	}
	return out
}

// Unescape undoes "\040", by which a space does not end a field. /etc/fstab has it, too.
func Unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		octal := func(c byte) bool { return c >= '0' && c <= '7' }
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1]) && octal(s[i+2]) && octal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
