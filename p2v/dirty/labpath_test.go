//go:build lab

package dirty_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuvirt/p2v/dirty"
)

// pathsOf are the hidden disks that lead to an NVMe disk.
func pathsOf(t *testing.T, d device) []string {
	t.Helper()
	subsystem, namespace, _ := strings.Cut(strings.TrimPrefix(d.Name, "nvme"), "n")
	paths, err := filepath.Glob("/sys/block/nvme" + subsystem + "c*n" + namespace)
	fatal(t, err)
	return paths
}

// What goes over a path that has come after the tracking began is not marked, and is said
// to be missed; from then on the path is known. The disk is one with two paths, of which
// this test takes one away for a while.
func TestLabPath(t *testing.T) {
	d := scratch(t)
	put := func(file, text string) {
		t.Helper()
		fatal(t, os.WriteFile(file, []byte(text), 0))
	}
	waitFor := func(n int) []string {
		t.Helper()
		for try := 0; ; try++ {
			paths := pathsOf(t, d)
			if len(paths) == n {
				return paths
			}
			if try == 1000 {
				t.Fatalf("paths: %q, want %d", paths, n)
			}
			<-time.After(20 * time.Millisecond)
		}
	}
	paths := waitFor(2)
	for _, policy := range glob(t, "/sys/class/nvme-subsystem/*/iopolicy") {
		put(policy, "round-robin") // each write takes the next path
	}
	card, err := filepath.EvalSymlinks(filepath.Join(paths[1], "device/device"))
	fatal(t, err)
	put(filepath.Join(card, "remove"), "1")
	waitFor(1)
	tr := start(t, d)
	w := newWriter(d, 1, false)
	write := func() {
		for range 40 {
			fatal(t, w.write())
		}
	}
	write()
	took := func(when string) {
		t.Helper()
		chunks, err := tr.Take(d.Name)
		fatal(t, err)
		for i := range w.touched {
			if !chunks.Has(i) {
				t.Errorf("%s: chunk %d is not there", when, i)
			}
		}
		clear(w.touched)
	}
	took("one path")

	put("/sys/bus/pci/rescan", "1")
	waitFor(2)
	write()
	_, err = tr.Take(d.Name)
	t.Log(err)
	if !errors.Is(err, dirty.ErrLost) {
		t.Errorf("a new path: %v", err)
	}
	clear(w.touched)
	write()
	took("two paths")
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	fatal(t, err)
	return names
}
