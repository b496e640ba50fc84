package run

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Confine is what a program is kept from, with all that it starts: for programs that read
// what nobody trusts. The zero value takes the right to gain rights, and core dumps.
// The program dies with the thread that waits for it, so also with this process.
//
// Without a Unit it is set up by setpriv, prlimit, nice and ionice, which every Linux system has: the
// program never runs without it.
type Confine struct {
	// UID and GID are who it runs as, without any capability; both 0: as this process.
	UID, GID uint32
	// Groups are its further groups where it has a UID of its own, such as that of /dev/kvm.
	Groups []uint32
	// FileBytes bounds each file that it writes; 0: nothing does.
	FileBytes uint64
	// OpenFiles bounds what each of its processes has open; 0: as this process.
	OpenFiles uint64
	// Processes bounds those of its UID, others' too; 0: nothing does. Root has no bound.
	Processes uint64
	// CPU bounds the time that each of its processes computes, in whole seconds; 0: nothing does.
	CPU time.Duration
	// Idle has it compute, read and write only when nobody else does.
	Idle bool
	// Unit has systemd do all that; nil: it is done as above.
	Unit *Unit
}

// wrap returns the command line that runs another one confined.
func (c Confine) wrap(path string, args []string) []string {
	out := []string{"setpriv", "--no-new-privs", "--pdeathsig=KILL"}
	if c.UID != 0 || c.GID != 0 {
		out = append(out, fmt.Sprintf("--reuid=%d", c.UID), fmt.Sprintf("--regid=%d", c.GID),
			"--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all")
		if len(c.Groups) == 0 {
			out = append(out, "--clear-groups")
		} else {
			var groups []string
			for _, g := range c.Groups {
				groups = append(groups, strconv.FormatUint(uint64(g), 10))
			}
			out = append(out, "--groups="+strings.Join(groups, ","))
		}
	}
	out = append(out, "--", "prlimit", "--core=0")
	for _, limit := range []struct {
		name  string
		value uint64
	}{
		{"fsize", c.FileBytes},
		{"nofile", c.OpenFiles},
		{"nproc", c.Processes},
		{"cpu", uint64(max(0, c.CPU/time.Second))},
	} {
		if limit.value != 0 {
			out = append(out, fmt.Sprintf("--%s=%d", limit.name, limit.value))
		}
	}
	if c.Idle {
		out = append(out, "--", "nice", "-n", "19", "ionice", "-c", "3")
	} else {
		out = append(out, "--")
	}
	return append(append(out, path), args...)
}
