package freeze

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"

	"golang.org/x/sys/unix"
)

// A Kernel is what is asked of the kernel. Its methods may take for ever, and are called
// concurrently.
type Kernel interface {
	// Open opens a mount point for its filesystem, if it is the mount with that ID.
	Open(path string, mount int) (*os.File, error)
	// Sync writes out what is dirty of all filesystems, SyncFS of one.
	Sync()
	SyncFS(f *os.File) error
	// Freeze and Thaw are FIFREEZE and FITHAW.
	Freeze(f *os.File) error
	Thaw(f *os.File) error
	// PowerOff powers the machine off at once. It returns only with an error.
	PowerOff() error
	// Pin keeps this process in memory and out of the way of what ends processes, as far as that
	// is allowed.
	Pin()
}

// linux is the kernel that runs.
type linux struct{}

const fifreeze, fithaw = 0xc0045877, 0xc0045878 // FIFREEZE and FITHAW of linux/fs.h

func (linux) Open(name string, mount int) (*os.File, error) {
	// Not opened as yet: what is there may be something else, which one does not want to open.
	at, err := unix.Open(name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(at) //nolint:errcheck // nothing is behind it
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return nil, err
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFDIR && kind != unix.S_IFREG {
		return nil, errors.New("it is neither a folder nor a file")
	}
	if is, err := mountOf(at); err != nil || is != mount {
		return nil, errors.Join(err, errors.New("something else is mounted over it"))
	}
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", at), os.O_RDONLY|unix.O_NOATIME, 0)
}

// mountOf returns the ID of the mount that a file was opened by.
func mountOf(fd int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		if id, found := bytes.CutPrefix(line, []byte("mnt_id:")); found {
			return strconv.Atoi(string(bytes.TrimSpace(id)))
		}
	}
	return 0, errors.New("this kernel does not tell mounts")
}

func (linux) Sync()                   { unix.Sync() }
func (linux) SyncFS(f *os.File) error { return onFile(f, unix.Syncfs) }

func (linux) Freeze(f *os.File) error {
	return onFile(f, func(fd int) error { return unix.IoctlSetInt(fd, fifreeze, 0) })
}

func (linux) Thaw(f *os.File) error {
	return onFile(f, func(fd int) error { return unix.IoctlSetInt(fd, fithaw, 0) })
}

// onFile calls with the descriptor of a file that is not closed meanwhile.
func onFile(f *os.File, call func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var cerr error
	err = conn.Control(func(fd uintptr) { cerr = call(int(fd)) }) //nolint:gosec // a file descriptor
	return errors.Join(err, cerr)
}

func (linux) PowerOff() error {
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		return err
	}
	return errors.New("the kernel came back from it")
}

func (linux) Pin() {
	// What is in memory stays there. What was never needed is not brought in: it lies in memory
	// itself, and a frozen filesystem can be read.
	_ = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
	const never = "-1000"
	if f, err := os.OpenFile("/proc/self/oom_score_adj", os.O_WRONLY, 0); err == nil {
		_, _ = f.WriteString(never)
		_ = f.Close()
	}
}

// facts reads what is to be known before. What is not there is not known.
func (t *tree) facts() (Facts, error) {
	boot, err := t.text("proc/sys/kernel/random/boot_id")
	if err != nil {
		return Facts{}, fmt.Errorf("cannot tell which boot this is: %w", err)
	}
	f := Facts{BootID: boot, HungTaskPanic: t.number("proc/sys/kernel/hung_task_panic") != 0, HungTaskSeconds: t.number("proc/sys/kernel/hung_task_timeout_secs")}
	for _, name := range t.names("sys/class/watchdog") {
		dir := path.Join("sys/class/watchdog", name)
		if state, _ := t.text(dir + "/state"); state != "active" {
			continue
		}
		if s := t.number(dir + "/timeout"); s > 0 && (f.WatchdogSeconds == 0 || s < f.WatchdogSeconds) {
			f.WatchdogSeconds = s
		}
	}
	return f, nil
}
