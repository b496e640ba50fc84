package block

import (
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const benchSize = 1 << 30

// BenchmarkFirstPass copies a file and reports how that compares with nbdcopy,
// which copies the same file from nbdkit over a unix socket in the same run,
// with a flush at the end as here. nbdcopy compares nothing and cannot go on
// after a cut; here both sides hash. The goal of 0.95 is of the default.
func BenchmarkFirstPass(b *testing.B) {
	disk := benchDisk(b)
	s := serve(b, disk)
	for _, n := range []int{0, 1, 4, 8} {
		name := fmt.Sprintf("connections-%d", n)
		if n == 0 {
			name = fmt.Sprintf("default-%d", DefaultConnections)
		}
		b.Run(name, func(b *testing.B) {
			var ours, theirs time.Duration
			b.SetBytes(benchSize)
			for b.Loop() {
				uncache(b, disk)
				theirs += nbdcopy(b, disk)
				uncache(b, disk)
				ours += firstPass(b, disk, s, n)
			}
			if theirs > 0 {
				b.ReportMetric(theirs.Seconds()/ours.Seconds(), "of-nbdcopy")
			}
			b.ReportMetric(float64(b.N)*benchSize/1e6/ours.Seconds(), "pass-MB/s")
		})
	}
}

func firstPass(b *testing.B, disk string, s *source, n int) time.Duration {
	dir := b.TempDir()
	defer removeAll(b, dir) // not a copy for each round
	start := time.Now()
	m := mirrorOf(b, dir, disk, DefaultChunkSize)
	defer m.Close()
	if _, err := Pull(b.Context(), m, "sda", Options{Dial: dialUnix(s.socket), Connections: n}); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

func removeAll(b *testing.B, path string) {
	if err := os.RemoveAll(path); err != nil {
		b.Error(err)
	}
}

// nbdcopy takes no time where it is not installed.
func nbdcopy(b *testing.B, disk string) time.Duration {
	for _, tool := range []string{"nbdkit", "nbdcopy"} {
		if _, err := exec.LookPath(tool); err != nil {
			return 0
		}
	}
	to := filepath.Join(b.TempDir(), "nbdcopy.raw")
	defer removeAll(b, to)
	f, err := os.Create(to)
	if err != nil {
		b.Fatal(err)
	}
	if err := f.Truncate(benchSize); err != nil {
		b.Fatal(err)
	}
	f.Close()
	start := time.Now()
	cmd := exec.CommandContext(b.Context(), "nbdcopy", "--flush", "--destination-is-zero",
		"--", "[", "nbdkit", "-r", "file", disk, "]", to)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("nbdcopy: %v: %s", err, out)
	}
	return time.Since(start)
}

// uncache makes both read from the disk, as they do on a server whose disks are
// larger than its memory.
func uncache(b *testing.B, disk string) {
	f, err := os.Open(disk)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkNextPass reads and hashes what has not changed.
func BenchmarkNextPass(b *testing.B) {
	disk := benchDisk(b)
	s := serve(b, disk)
	m := mirrorOf(b, b.TempDir(), disk, DefaultChunkSize)
	defer m.Close()
	o := Options{Dial: dialUnix(s.socket)}
	if _, err := Pull(b.Context(), m, "sda", o); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(benchSize)
	for b.Loop() {
		p, err := Pull(b.Context(), m, "sda", o)
		if err != nil || p.Changed != 0 {
			b.Fatal(p, err)
		}
	}
}

func benchDisk(b *testing.B) string {
	path := filepath.Join(b.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.Reader, benchSize); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	return path
}
