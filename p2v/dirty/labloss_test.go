//go:build lab

package dirty_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
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

// A write that is on its way is marked once it is done: one that was sent before the
// tracking began, and one that was sent before others were taken. The disk is one whose
// writes take seconds.
func TestLabInFlight(t *testing.T) {
	if !*slow {
		t.Skip("no slow disk")
	}
	d := scratch(t)
	send := func(offset int64) <-chan error {
		done := make(chan error, 1)
		data := aligned(sector)
		go func() {
			_, err := d.file.WriteAt(data, offset)
			done <- err
		}()
		// In flight is what the kernel counts as such.
		for inFlight(t, d) == 0 {
			<-time.After(time.Millisecond)
		}
		return done
	}
	take := func(tr *dirty.Tracker) int64 {
		chunks, err := tr.Take(d.Name)
		fatal(t, err)
		return chunks.Count()
	}
	done := send(0)
	tr := start(t, d)
	if inFlight(t, d) == 0 {
		t.Fatal("the write was done before the tracking began: the test proves nothing")
	}
	fatal(t, <-done)
	if n := take(tr); n != 1 {
		t.Errorf("sent before the tracking began: %d chunks", n)
	}
	done = send(chunk)
	early := take(tr)
	if inFlight(t, d) == 0 {
		t.Fatal("the write was done before the first Take: the test proves nothing")
	}
	fatal(t, <-done)
	if n := take(tr); n != 1 {
		t.Errorf("sent before others were taken: %d chunks, and %d before", n, early)
	}
}

var slow = flag.Bool("slow", false, "the disk takes seconds for a write")

// inFlight is how many writes a disk has been given and has not done.
func inFlight(t *testing.T, d device) (writes int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/sys/class/block", d.Name, "inflight"))
	fatal(t, err)
	var reads int
	_, err = fmt.Sscan(string(text), &reads, &writes)
	fatal(t, err)
	return writes
}
