package track_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gpuvirt/p2v/block"
	"gpuvirt/p2v/dirty"
)

// BenchmarkLastPass is what a pass takes with the source at rest, which is downtime: of a disk
// of 1 GiB and of one of 8 GiB to which the same was written, told by the kernel's tracker,
// and found by reading the disk. It takes root, loop devices and eBPF.
func BenchmarkLastPass(b *testing.B) {
	const changed = 64 // chunks
	small, large := newRig(b, 1<<30), newRig(b, 8<<30)
	var tracked, read [2]time.Duration
	rounds := 0
	for b.Loop() {
		rounds++
		for k := range 2 {
			i := (k + rounds) % 2 // in turn: the second finds the machine warmer
			r := []*rig{small, large}[i]
			r.write(b, changed)
			began := time.Now()
			chunks, err := r.tracker.Take(r.name)
			if err != nil {
				b.Fatal(err)
			}
			var only []block.Range
			for k := range chunks.Ranges() {
				only = append(only, block.Range{From: k.Offset / block.DefaultChunkSize, N: (k.Length + block.DefaultChunkSize - 1) / block.DefaultChunkSize})
			}
			r.pass(b, only)
			tracked[i] += time.Since(began)

		}
	}
	for i, r := range []*rig{small, large} { // once: it takes long
		r.write(b, changed)
		began := time.Now()
		r.pass(b, nil)
		read[i] = time.Since(began)
	}
	b.ReportMetric(tracked[1].Seconds()/tracked[0].Seconds(), "tracked-8GiB/1GiB")
	b.ReportMetric(read[1].Seconds()/read[0].Seconds(), "read-8GiB/1GiB")
	b.ReportMetric(read[1].Seconds()*float64(rounds)/tracked[1].Seconds(), "read/tracked-8GiB")
}

// A rig is a loop device that is tracked, served and mirrored.
type rig struct {
	name    string
	device  *os.File
	size    int64
	tracker *dirty.Tracker
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
	r := &rig{name: filepath.Base(path), size: size}
	if r.device, err = os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = r.device.Close() })
	var st unix.Stat_t
	check(b, unix.Stat(path, &st))
	sys, err := os.OpenRoot("/sys")
	check(b, err)
	disk := dirty.Disk{Name: r.name, Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev), Size: size}
	if r.tracker, err = dirty.Start(b.Context(), sys, []dirty.Disk{disk}, block.DefaultChunkSize); err != nil {
		b.Skipf("no tracker: %v", err)
	}
	b.Cleanup(func() { _ = r.tracker.Close() })
	r.disks = []block.Disk{{Name: r.name, Path: path, ID: "bench"}}
	r.mirror, err = block.OpenMirror(block.Spec{Path: filepath.Join(dir, "mirror"), Map: filepath.Join(dir, "map"), ID: "bench", Size: size})
	check(b, err)
	b.Cleanup(func() { _ = r.mirror.Close() })
	r.pass(b, nil)
	return r
}

// write changes so many chunks, anywhere on the disk.
func (r *rig) write(b *testing.B, chunks int) {
	data, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	check(b, err)
	defer func() { check(b, unix.Munmap(data)) }()
	for range chunks {
		for i := range 8 {
			data[rand.IntN(4096)] = byte(rand.IntN(255) + i)
		}
		_, err := r.device.WriteAt(data, rand.Int64N(r.size/4096)*4096)
		check(b, err)
	}
	check(b, r.device.Sync())
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
