//go:build lab

package dirty_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"gpuvirt/p2v/dirty"
)

func isUnsupported(err error) bool { return errors.Is(err, dirty.ErrUnsupported) }

// loopAt makes a loop device of a number of its own. The functions resize and remove it, and
// make it anew.
func loopAt(t *testing.T, number int, size int64) (name string, resize func(int64), remove, again func()) {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	fatal(t, err)
	t.Cleanup(func() { control.Close() })
	backing, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	fatal(t, err)
	t.Cleanup(func() { backing.Close() })
	fatal(t, backing.Truncate(size))
	name = fmt.Sprintf("loop%d", number)
	with := func(f func(fd int)) {
		dev, err := os.OpenFile("/dev/"+name, os.O_RDWR, 0)
		fatal(t, err)
		defer dev.Close()
		f(int(dev.Fd()))
	}
	const loopAdd, loopRemove = 0x4c80, 0x4c81
	there := false
	again = func() {
		err := ioctlInt(control, loopAdd, number)
		fatal(t, err)
		with(func(fd int) { fatal(t, unix.IoctlSetInt(fd, unix.LOOP_SET_FD, int(backing.Fd()))) })
		there = true
	}
	remove = func() {
		if !there {
			return
		}
		there = false
		with(func(fd int) { fatal(t, unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0)) })
		// What opens new disks of its own accord may still have it open.
		for try := 0; ; try++ {
			err = ioctlInt(control, loopRemove, number)
			if !errors.Is(err, unix.EBUSY) || try == 200 {
				break
			}
			<-time.After(20 * time.Millisecond)
		}
		fatal(t, err)
	}
	again()
	t.Cleanup(remove)
	resize = func(size int64) {
		fatal(t, backing.Truncate(size))
		with(func(fd int) { fatal(t, unix.IoctlSetInt(fd, unix.LOOP_SET_CAPACITY, 0)) })
	}
	return name, resize, remove, again
}

func ioctlInt(f *os.File, request uint, value int) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(value)); errno != 0 {
		return errno
	}
	return nil
}

// A disk that has another size, and one that is taken away, is not tracked any more, whatever
// comes in its place with its name and number.
func TestLabGone(t *testing.T) {
	name, resize, remove, again := loopAt(t, 901, 8<<20)
	track := func() *dirty.Tracker {
		d := open(t, name)
		tr := start(t, d)
		fatal(t, d.file.Close())
		_, err := tr.Take(name)
		fatal(t, err)
		return tr
	}
	gone := func(tr *dirty.Tracker, what string) {
		t.Helper()
		if _, err := tr.Take(name); !errors.Is(err, dirty.ErrGone) {
			t.Errorf("%s: %v", what, err)
		}
	}
	tr := track()
	resize(16 << 20)
	gone(tr, "larger")
	resize(8 << 20)
	gone(tr, "larger once")

	tr = track()
	remove()
	gone(tr, "removed")
	again()
	gone(tr, "another one in its place")

	tr = track()
	remove()
	again()
	gone(tr, "another one in its place, not seen in between")

	tr = track()
	fatal(t, tr.Close())
	if _, err := tr.Take(name); !errors.Is(err, dirty.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// A sgIO is the argument of SG_IO of scsi/sg.h.
type sgIO struct {
	interfaceID, direction        int32
	commandLen, maxSense          uint8
	iovecs                        uint16
	length                        uint32
	data, command, sense          unsafe.Pointer
	timeout, flags                uint32
	packID                        int32
	user                          unsafe.Pointer
	status, masked, msg, senseLen uint8
	host, driver                  uint16
	residual                      int32
	duration, info                uint32
}

// What is sent to a SCSI disk as a command of its own is not marked, and is said to be
// missed, once.
func TestLabPassthrough(t *testing.T) {
	d := scratch(t)
	tr := start(t, d)
	data := aligned(sector)
	command := []byte{0x2a, 0, 0, 0, 0, 16, 0, 0, 8, 0} // WRITE(10), 8 blocks at 16
	arg := sgIO{
		interfaceID: 'S', direction: -2, commandLen: 10, length: sector,
		data: unsafe.Pointer(&data[0]), command: unsafe.Pointer(&command[0]), timeout: 10000,
	}
	const sgioRequest = 0x2285
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.file.Fd(), sgioRequest, uintptr(unsafe.Pointer(&arg)))
	if errno == unix.ENOTTY || errno == unix.EINVAL {
		t.Skip("this disk takes no SCSI commands")
	}
	if errno != 0 || arg.status != 0 {
		t.Fatalf("SG_IO: %v, status %d", errno, arg.status)
	}
	_, err := tr.Take(d.Name)
	t.Log(err)
	if !errors.Is(err, dirty.ErrLost) {
		t.Errorf("after a command: %v", err)
	}
	fatal(t, newWriter(d, 1, false).write())
	chunks, err := tr.Take(d.Name)
	fatal(t, err)
	if chunks.Count() == 0 {
		t.Error("a write after that is not there")
	}
}

// A frozen is a disk that takes writes and does none of them until it is thawed: a loop
// device on a file of a file system that is frozen.
type frozen struct {
	device
	t  *testing.T
	at *os.File // the file system
}

func newFrozen(t *testing.T) *frozen {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image")
	command(t, "cp", "--sparse=always", image(t), name)
	at := filepath.Join(t.TempDir(), "mnt")
	fatal(t, os.Mkdir(at, 0o700))
	fatal(t, unix.Mount("/dev/"+loopOn(t, name), at, "ext4", 0, ""))
	t.Cleanup(func() {
		// A loop device that was let go may be busy for a moment.
		for try := 0; unix.Unmount(at, 0) != nil && try < 200; try++ {
			<-time.After(20 * time.Millisecond)
		}
	})
	backing := filepath.Join(at, "disk")
	fatal(t, os.WriteFile(backing, make([]byte, 4<<20), 0o600))
	dir, err := os.Open(at)
	fatal(t, err)
	t.Cleanup(func() { dir.Close() })
	f := &frozen{device: open(t, loopOn(t, backing)), t: t, at: dir}
	t.Cleanup(func() { _ = ioctlInt(dir, fithaw, 0) })
	return f
}

const fifreeze, fithaw = 0xc0045877, 0xc0045878 // FIFREEZE and FITHAW of linux/fs.h

// send has a write on its way when it returns. What it returns waits until it is done.
func (f *frozen) send(offset int64) (done func()) {
	f.t.Helper()
	fatal(f.t, ioctlInt(f.at, fifreeze, 0))
	data := aligned(sector)
	data[0] = 1
	ended := make(chan error, 1)
	go func() {
		_, err := f.file.WriteAt(data, offset)
		ended <- err
	}()
	for f.inFlight() == 0 {
		<-time.After(time.Millisecond)
	}
	return func() {
		f.t.Helper()
		if f.inFlight() == 0 {
			f.t.Fatal("the write was done too early: the test proves nothing")
		}
		fatal(f.t, ioctlInt(f.at, fithaw, 0))
		fatal(f.t, <-ended)
	}
}

// inFlight is how many writes the disk was given and has not done.
func (f *frozen) inFlight() (writes int) {
	f.t.Helper()
	text, err := os.ReadFile(filepath.Join("/sys/class/block", f.Name, "inflight"))
	fatal(f.t, err)
	var reads int
	_, err = fmt.Sscan(string(text), &reads, &writes)
	fatal(f.t, err)
	return writes
}

// A write that is on its way is marked once it is done: one that was sent before the
// tracking began, and one that was sent before others were taken and read.
func TestLabInFlight(t *testing.T) {
	f := newFrozen(t)
	take := func(tr *dirty.Tracker) []int64 {
		t.Helper()
		chunks, err := tr.Take(f.Name)
		fatal(t, err)
		var all []int64
		for i := range chunks.Len() {
			if chunks.Has(i) {
				all = append(all, i)
			}
		}
		return all
	}
	done := f.send(0)
	tr := start(t, f.device)
	done()
	if got := take(tr); !slices.Equal(got, []int64{0}) {
		t.Errorf("sent before the tracking began: %v", got)
	}
	done = f.send(5 * chunk)
	early := take(tr)
	done()
	if got := take(tr); !slices.Equal(got, []int64{5}) {
		t.Errorf("sent before others were taken: %v, and before %v", got, early)
	}
}
