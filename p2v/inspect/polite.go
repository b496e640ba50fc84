package inspect

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// GiveWay lets this process, and what it runs, take only what of processor and disks others
// leave. It cannot be taken back without rights. It returns whether the kernel agreed.
func GiveWay() bool {
	// Linux has these of each thread; later ones have them from those that begin them.
	threads, err := os.ReadDir("/proc/self/task")
	ok := err == nil
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		const (
			lowest = 19
			idle   = 3 << 13 // the class, of ioprio_set
			thread = 1       // whose: that of one id
		)
		if unix.Setpriority(unix.PRIO_PROCESS, id, lowest) != nil {
			ok = false
		}
		if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, thread, uintptr(id), idle); errno != 0 { //nolint:gosec // an id is positive
			ok = false
		}
	}
	return ok
}
