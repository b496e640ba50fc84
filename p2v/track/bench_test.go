package track_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gpuvirt/p2v/block"
	"gpuvirt/p2v/dirty"
	"gpuvirt/p2v/freeze"
)

// BenchmarkTimeAtRest is for how long a source is at rest until its mirror is as it is, of a disk of 1 GiB and of one
// of 8 GiB to which the same was written: its filesystem is frozen, the kernel's tracker is asked what was written
// since the pass before, that is copied, and the counters of the disk tell that nothing was written meanwhile. The
// pass is measured by itself as well, and once with what changed found by reading the disk. Of a cut-over this is
// not all: services are stopped before, the VM's disks are made after, and a network lies between. It takes root,
// loop devices, ext4 and eBPF.
func BenchmarkTimeAtRest(b *testing.B) {
	const changed = 64 // chunks
	small, large := newRig(b, 1<<30), newRig(b, 8<<30)
	var rest, last [2][]float64
	rounds := 0
	for b.Loop() {
		rounds++
		for k := range 2 {
			i := (k + rounds) % 2 // in turn: the second finds the machine warmer
			r := []*rig{small, large}[i]
			r.write(b, changed)
			whole, pass := r.rest(b, true)
			rest[i], last[i] = append(rest[i], whole.Seconds()), append(last[i], pass.Seconds())
		}
	}
	var read [2]time.Duration
	for i, r := range []*rig{small, large} { // once: it takes long
		r.write(b, changed)
		_, read[i] = r.rest(b, false)
	}
	b.ReportMetric(middle(rest[1])*1000, "at-rest-8GiB-ms")
	b.ReportMetric(middle(rest[1])/middle(rest[0]), "at-rest-8GiB/1GiB")
	b.ReportMetric(middle(last[1])/middle(last[0]), "last-pass-8GiB/1GiB")
	b.ReportMetric(read[1].Seconds()/read[0].Seconds(), "read-8GiB/1GiB")
	b.ReportMetric(read[1].Seconds()/middle(last[1]), "read/last-pass-8GiB")
}

// middle is the median: others use the machine, too.
func middle(seconds []float64) float64 {
	slices.Sort(seconds)
	return seconds[len(seconds)/2]
}

// A rig is a loop device with a filesystem, that is tracked, frozen, served and mirrored.
type rig struct {
	name    string
	file    *os.File // in the filesystem
	size    int64    // of the file
	tracker *dirty.Tracker
	freezer *freeze.Client
	mirror  *block.Mirror
	disks   []block.Disk
}

func newRig(b *testing.B, size int64) *rig {
	b.Helper()
	if os.Geteuid() != 0 {
		b.Skip("it takes root")
	}
	dir := b.TempDir()
	image := filepath.Join(dir, "image")
	check(b, os.WriteFile(image, nil, 0o600))
	check(b, os.Truncate(image, size))
	out, err := exec.CommandContext(b.Context(), "losetup", "--find", "--show", "--direct-io=on", image).Output()
	if err != nil {
		b.Skipf("no loop device: %v", err)
	}
	path := strings.TrimSpace(string(out))
	b.Cleanup(func() { _ = exec.CommandContext(context.Background(), "losetup", "--detach", path).Run() })
	r := &rig{name: filepath.Base(path), size: size / 4 * 3}
	r.mount(b, path, filepath.Join(dir, "mounted"))
	var st unix.Stat_t
	check(b, unix.Stat(path, &st))
	sys, err := os.OpenRoot("/sys")
	check(b, err)
	disk := dirty.Disk{Name: r.name, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev), Size: size}
	if r.tracker, err = dirty.Start(b.Context(), sys, []dirty.Disk{disk}, block.DefaultChunkSize); err != nil {
		b.Skipf("no tracker: %v", err)
	}
	b.Cleanup(func() { _ = r.tracker.Close() })
	r.freezes(b)
	r.disks = []block.Disk{{Name: r.name, Path: path, ID: "bench"}}
	r.mirror, err = block.OpenMirror(block.Spec{Path: filepath.Join(dir, "mirror"), Map: filepath.Join(dir, "map"), ID: "bench", Size: size})
	check(b, err)
	b.Cleanup(func() { _ = r.mirror.Close() })
	r.write(b, 1)
	_, _ = r.rest(b, false)
	return r
}

// mount has a filesystem on the device, with a file that has its room.
func (r *rig) mount(b *testing.B, path, dir string) {
	// What ext4 does later on by itself is done at once.
	if out, err := exec.CommandContext(b.Context(), "mkfs.ext4", "-q", "-T", "largefile4", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", path).CombinedOutput(); err != nil {
		b.Skipf("no filesystem: %v: %s", err, out)
	}
	check(b, os.Mkdir(dir, 0o700))
	if err := unix.Mount(path, dir, "ext4", 0, ""); err != nil {
		b.Skipf("cannot mount: %v", err)
	}
	b.Cleanup(func() { check(b, unix.Unmount(dir, 0)) })
	var err error
	r.file, err = os.OpenFile(filepath.Join(dir, "data"), os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	check(b, err)
	b.Cleanup(func() { _ = r.file.Close() })
	check(b, unix.Fallocate(int(r.file.Fd()), 0, 0, r.size))
	check(b, r.file.Sync())
}

// freezes has the program run that brings a source to rest, and connects to it.
func (r *rig) freezes(b *testing.B) {
	near, far := net.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = freeze.Serve(context.WithoutCancel(b.Context()), far, []string{r.name}, freeze.Config{Kernel: kernel{}})
	}()
	b.Cleanup(func() { // it thaws what it has frozen
		_ = near.Close()
		<-ended
	})
	var err error
	r.freezer, err = freeze.Connect(b.Context(), near)
	check(b, err)
}

// kernel is the one that runs, as far as it is about the filesystems of a rig: what others have dirty on this machine
// is not the source's.
type kernel struct{}

// FIFREEZE and FITHAW of linux/fs.h.
const fifreeze, fithaw = 0xc0045877, 0xc0045878

func ioctl(f *os.File, request uint) error { return unix.IoctlSetInt(int(f.Fd()), request, 0) }

func (kernel) Open(path string, _ int) (*os.File, error) { return os.Open(path) }
func (kernel) Sync()                                     {}
func (kernel) SyncFS(f *os.File) error                   { return unix.Syncfs(int(f.Fd())) }
func (kernel) Freeze(f *os.File) error                   { return ioctl(f, fifreeze) }
func (kernel) Thaw(f *os.File) error                     { return ioctl(f, fithaw) }
func (kernel) PowerOff() error                           { return errors.ErrUnsupported }
func (kernel) Pin()                                      {}

// write changes so many chunks, anywhere on the disk.
func (r *rig) write(b *testing.B, chunks int) {
	data, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	check(b, err)
	defer func() { check(b, unix.Munmap(data)) }()
	for _, chunk := range rand.Perm(int(r.size / block.DefaultChunkSize))[:chunks] {
		for i := range 8 {
			data[rand.IntN(4096)] = byte(rand.IntN(255) + i)
		}
		_, err := r.file.WriteAt(data, int64(chunk)*block.DefaultChunkSize+rand.Int64N(block.DefaultChunkSize/4096)*4096)
		check(b, err)
	}
	check(b, r.file.Sync())
}

// rest has the rig at rest until its mirror is as it is, and says how long all of that took, and the passes. The
// tracker says what has changed, or nobody does.
func (r *rig) rest(b *testing.B, tracked bool) (whole, passes time.Duration) {
	began := time.Now()
	check(b, r.freezer.Freeze(b.Context(), freeze.MaxLimit, nil))
	if f := r.freezer.Facts().Filesystems; len(f) != 1 || !f[0].Freezable {
		b.Fatalf("%+v", f)
	}
	before, err := r.freezer.Quiet(b.Context())
	check(b, err)
	for range 5 { // as of a cut-over
		passing := time.Now()
		var only []block.Range
		if tracked {
			only = r.take(b)
		}
		r.pass(b, only)
		passes += time.Since(passing)
		now, err := r.freezer.Quiet(b.Context())
		check(b, err)
		if slices.Equal(now, before) {
			whole = time.Since(began)
			check(b, r.freezer.Thaw(b.Context()))
			return whole, passes
		}
		before = now
	}
	b.Fatalf("it does not come to rest: %+v", before)
	return 0, 0
}

// take is what was written.
func (r *rig) take(b *testing.B) []block.Range {
	chunks, err := r.tracker.Take(r.name)
	check(b, err)
	only := []block.Range{}
	for k := range chunks.Ranges() {
		only = append(only, block.Range{From: k.Offset / block.DefaultChunkSize, N: (k.Length + block.DefaultChunkSize - 1) / block.DefaultChunkSize})
	}
	return only
}

func (r *rig) pass(b *testing.B, only []block.Range) {
	if only != nil && len(only) == 0 {
		return
	}
	_, err := block.Pull(b.Context(), r.mirror, r.name, block.Options{Only: only, Dial: func(context.Context) (io.ReadWriteCloser, error) {
		near, far := net.Pipe()
		go func() { _ = block.Serve(b.Context(), far, r.disks, slog.New(slog.DiscardHandler)) }()
		return near, nil
	}})
	if err != nil {
		b.Fatal(fmt.Errorf("%s: %w", r.name, err))
	}
}

func check(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
