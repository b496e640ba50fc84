//go:build lab

package dirty_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"gpuvirt/p2v/dirty"
)

// What the package promises, as root on a kernel: built with the tag lab, and run inside the
// lab's hypervisor by its scenario TestDirtyChunks on disks of several drivers. Without
// -disk each test makes itself a loop device.

var diskName = flag.String("disk", "", "name of a disk to overwrite, of some hundred MB at most")

const (
	chunk  = 64 << 10
	sector = 4096 // what reads and writes are aligned to
)

// A device is a disk that is open.
type device struct {
	dirty.Disk
	file *os.File // O_DIRECT
}

func sysRoot(t testing.TB) *os.Root {
	t.Helper()
	sys, err := os.OpenRoot("/sys")
	fatal(t, err)
	t.Cleanup(func() { sys.Close() })
	return sys
}

// scratch is the disk to try on.
func scratch(t testing.TB) device {
	t.Helper()
	name := *diskName
	if name == "" {
		name = loop(t, 96<<20)
	}
	return open(t, name)
}

func open(t testing.TB, name string) device {
	t.Helper()
	d := device{Disk: dirty.Disk{Name: name}}
	read := func(file string) string {
		text, err := os.ReadFile(filepath.Join("/sys/class/block", name, file))
		fatal(t, err)
		return strings.TrimSpace(string(text))
	}
	_, err := fmt.Sscanf(read("dev"), "%d:%d", &d.Major, &d.Minor)
	fatal(t, err)
	sectors, err := strconv.ParseInt(read("size"), 10, 64)
	fatal(t, err)
	d.Size = sectors * 512
	d.file, err = os.OpenFile("/dev/"+name, os.O_RDWR|unix.O_DIRECT, 0)
	fatal(t, err)
	t.Cleanup(func() { d.file.Close() })
	return d
}

// loop makes a loop device and returns its name.
func loop(t testing.TB, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	backing, err := os.Create(name)
	fatal(t, err)
	defer backing.Close()
	fatal(t, backing.Truncate(size))
	return loopOn(t, name)
}

// loopOn makes one of a file.
func loopOn(t testing.TB, file string) string {
	t.Helper()
	backing, err := os.OpenFile(file, os.O_RDWR, 0)
	fatal(t, err)
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	fatal(t, err)
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		fatal(t, err)
		name := fmt.Sprintf("loop%d", n)
		dev, err := os.OpenFile("/dev/"+name, os.O_RDWR, 0)
		fatal(t, err)
		err = unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_FD, int(backing.Fd()))
		if errors.Is(err, unix.EBUSY) { // somebody was faster
			dev.Close()
			continue
		}
		fatal(t, err)
		t.Cleanup(func() {
			_ = unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0)
			dev.Close()
		})
		return name
	}
}

func start(t testing.TB, disks ...device) *dirty.Tracker {
	t.Helper()
	var all []dirty.Disk
	for _, d := range disks {
		all = append(all, d.Disk)
	}
	tr, err := dirty.Start(t.Context(), sysRoot(t), all, chunk)
	fatal(t, err)
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	return tr
}

func fatal(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// aligned is memory that O_DIRECT takes.
func aligned(n int) []byte {
	b := make([]byte, n+sector)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) % sector)
	return b[skip : skip+n : skip+n]
}

// A mirror is a copy of a disk.
type mirror struct {
	of   device
	data []byte
}

func newMirror(d device) *mirror { return &mirror{of: d, data: aligned(int(d.Size))} }

func (m *mirror) copy(r dirty.Range) error {
	_, err := m.of.file.ReadAt(m.data[r.Offset:r.Offset+r.Length], r.Offset)
	return err
}

func (m *mirror) all() error {
	const piece = 1 << 20
	for at := int64(0); at < m.of.Size; at += piece {
		if err := m.copy(dirty.Range{Offset: at, Length: min(piece, m.of.Size-at)}); err != nil {
			return err
		}
	}
	return nil
}

// take copies what was written since the last time, and returns how many chunks that were.
func (m *mirror) take(tr *dirty.Tracker) (int64, error) {
	chunks, err := tr.Take(m.of.Name)
	if err != nil {
		return 0, err
	}
	for r := range chunks.Ranges() {
		if err := m.copy(r); err != nil {
			return 0, err
		}
	}
	return chunks.Count(), nil
}

// differs are the chunks in which two mirrors differ.
func (m *mirror) differs(other *mirror) (chunks []int64) {
	for at := int64(0); at < m.of.Size; at += chunk {
		end := min(at+chunk, m.of.Size)
		if !bytes.Equal(m.data[at:end], other.data[at:end]) {
			chunks = append(chunks, at/chunk)
		}
	}
	return chunks
}

// equal fails the test unless the mirror is what the disk is now.
func (m *mirror) equal(t *testing.T) {
	t.Helper()
	now := newMirror(m.of)
	fatal(t, now.all())
	if wrong := m.differs(now); len(wrong) > 0 {
		t.Errorf("%d of %d chunks were missed: %v", len(wrong), (m.of.Size-1)/chunk+1, wrong[:min(len(wrong), 20)])
	}
}

// A writer changes a disk at random, and keeps which chunks it may have changed.
type writer struct {
	of      device
	random  *rand.Rand
	discard bool
	touched map[int64]bool // those since somebody has emptied it; guarded by mu
	mu      sync.Mutex
	data    []byte
}

func newWriter(d device, seed uint64, discard bool) *writer {
	return &writer{
		of: d, random: rand.New(rand.NewPCG(seed, 1)), discard: discard,
		touched: map[int64]bool{}, data: aligned(1 << 20),
	}
}

// write makes one change: mostly small ones, now and then one of many chunks.
func (w *writer) write() error {
	length := sector * (1 + w.random.Int64N(4))
	if w.random.IntN(8) == 0 {
		length = sector * (1 + w.random.Int64N(int64(len(w.data))/sector))
	}
	offset := w.random.Int64N((w.of.Size-length)/sector) * sector
	kind := w.random.IntN(20)
	if w.discard && kind < 2 {
		length = min(length*16, w.of.Size-offset)
	}
	w.mu.Lock()
	for i := offset / chunk; i <= (offset+length-1)/chunk; i++ {
		w.touched[i] = true
	}
	w.mu.Unlock()
	if w.discard && kind < 2 {
		request := []uint{unix.BLKDISCARD, blkZeroOut}[kind]
		return ioctlRange(w.of.file, request, offset, length)
	}
	data := w.data[:length]
	for i := 0; i < len(data); i += 512 {
		*(*uint64)(unsafe.Pointer(&data[i])) = w.random.Uint64()
	}
	_, err := w.of.file.WriteAt(data, offset)
	return err
}

func (w *writer) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.touched)
}

const blkZeroOut = 0x127f // BLKZEROOUT of linux/fs.h

func ioctlRange(f *os.File, request uint, offset, length int64) error {
	r := [2]uint64{uint64(offset), uint64(length)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(unsafe.Pointer(&r)))
	if errno != 0 {
		return fmt.Errorf("ioctl %#x: %w", request, errno)
	}
	return nil
}

func discards(t testing.TB, d device) bool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/sys/class/block", d.Name, "queue/discard_max_bytes"))
	fatal(t, err)
	return strings.TrimSpace(string(text)) != "0"
}

// A copy that is made while several write, and brought up to date by what is taken while
// they go on, is the disk once they have stopped.
func TestLabMirror(t *testing.T) {
	d := scratch(t)
	const writers, writes, least = 4, 1500, 3 // once the tracking has begun; and rounds
	var began atomic.Bool
	var rounds atomic.Int64
	var writing atomic.Int32
	var running sync.WaitGroup
	var errs [writers]error
	discard := discards(t, d)
	writing.Store(writers)
	for i := range writers {
		w := newWriter(d, uint64(i), discard)
		running.Go(func() {
			defer writing.Add(-1)
			for n := 0; (n < writes || rounds.Load() < least) && errs[i] == nil; {
				if began.Load() {
					n++
				}
				errs[i] = w.write()
			}
		})
	}
	tr := start(t, d) // while they write
	began.Store(true)
	m := newMirror(d)
	err := m.all()
	var taken int64
	for writing.Load() > 0 && err == nil {
		var n int64
		n, err = m.take(tr)
		taken += n
		rounds.Add(1)
	}
	rounds.Add(least) // where one has failed
	running.Wait()
	fatal(t, errors.Join(append(errs[:], err)...))
	n, err := m.take(tr)
	fatal(t, err)
	m.equal(t)
	t.Logf("%s: %d rounds took %d chunks, the last one %d; discards: %v", d.Name, rounds.Load()-least, taken, n, discard)
	if taken == 0 {
		t.Error("nothing was taken while they wrote: the test proves little")
	}
	if n, err = m.take(tr); err != nil || n != 0 {
		t.Errorf("%d chunks (%v) while nothing was written", n, err)
	}
}

// What is taken is what was written, and not much more.
func TestLabOverReport(t *testing.T) {
	d := scratch(t)
	tr := start(t, d)
	for _, c := range []struct {
		name    string
		discard bool
		bound   float64
	}{{"writes", false, 1.2}, {"discards", true, 1.5}} {
		if c.discard && !discards(t, d) {
			continue
		}
		var touched, taken int
		for round := range uint64(30) {
			w := newWriter(d, round, c.discard)
			for range 10 {
				fatal(t, w.write())
			}
			chunks, err := tr.Take(d.Name)
			fatal(t, err)
			for i := range w.touched {
				if !chunks.Has(i) {
					t.Fatalf("%s, round %d: chunk %d was written and is not there", c.name, round, i)
				}
			}
			touched += w.count()
			taken += int(chunks.Count())
		}
		ratio := float64(taken) / float64(touched)
		t.Logf("%s: %d chunks written, %d taken: %.3f", c.name, touched, taken, ratio)
		if ratio > c.bound {
			t.Errorf("%s: %.3f times what was written, want %.1f at most", c.name, ratio, c.bound)
		}
	}
}
