//go:build lab

package dirty_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"gpuvirt/p2v/dirty"
)

// A pass reads what was written, whatever the size of the disk.
func TestLabPassBySize(t *testing.T) {
	const writes = 200
	disks := []device{open(t, loop(t, 1<<30)), open(t, loop(t, 8<<30))}
	tr := start(t, disks...)
	data, random := aligned(chunk), rand.New(rand.NewPCG(3, 3))
	for _, d := range disks {
		_, err := tr.Take(d.Name)
		fatal(t, err)
		written := map[int64]bool{}
		for range writes {
			at := random.Int64N(d.Size/chunk) * chunk
			_, err := d.file.WriteAt(data[:sector], at)
			fatal(t, err)
			written[at] = true
		}
		chunks, err := tr.Take(d.Name)
		fatal(t, err)
		taken := int64(0)
		for r := range chunks.Ranges() {
			taken += r.Length / chunk
			for at := r.Offset; at < r.Offset+r.Length; at += chunk {
				delete(written, at)
			}
		}
		if len(written) > 0 || taken > writes*3/2 {
			t.Errorf("of a disk of %d GiB with %d writes, %d chunks are taken, and %d that were written are not", d.Size>>30, writes, taken, len(written))
		}
	}
}

// How long a pass takes over disks that differ by 8 in size, with as many writes.
func TestLabPassTime(t *testing.T) {
	const turns, writes = 25, 200
	disks := []device{open(t, loop(t, 1<<30)), open(t, loop(t, 8<<30))}
	tr := start(t, disks...)
	data, random := aligned(chunk), rand.New(rand.NewPCG(3, 3))
	passes, takes := make([][]time.Duration, len(disks)), make([][]time.Duration, len(disks))
	for turn := range 2 * turns {
		for i, d := range disks {
			if i == turn%2 {
				continue // in turn, and the other one has its writes behind it
			}
			for range writes {
				_, err := d.file.WriteAt(data[:sector], random.Int64N(1<<30/chunk)*chunk)
				fatal(t, err)
			}
			began := time.Now()
			chunks, err := tr.Take(d.Name)
			fatal(t, err)
			takes[i] = append(takes[i], time.Since(began))
			for r := range chunks.Ranges() {
				for at := r.Offset; at < r.Offset+r.Length; at += chunk {
					_, err := d.file.ReadAt(data, at)
					fatal(t, err)
				}
			}
			passes[i] = append(passes[i], time.Since(began))
		}
	}
	for _, p := range append(passes, takes...) {
		slices.Sort(p)
	}
	small, large := passes[0][turns/2], passes[1][turns/2]
	t.Logf("%d writes: a pass takes %v of 1 GiB and %v of 8 GiB: %.2f (goal 1.2); Take alone %v and %v",
		writes, small, large, float64(large)/float64(small), takes[0][turns/2], takes[1][turns/2])
}

// What it costs: the time of small writes, with and without.
func TestLabCost(t *testing.T) {
	d := scratch(t)
	const turns, writes = 9, 4000
	data := aligned(sector)
	random := rand.New(rand.NewPCG(7, 7))
	lap := func() time.Duration {
		began := time.Now()
		for range writes {
			_, err := d.file.WriteAt(data, random.Int64N(d.Size/sector)*sector)
			fatal(t, err)
		}
		return time.Since(began)
	}
	lap() // the disk has what it needs
	best := [2]time.Duration{1 << 62, 1 << 62}
	for range turns {
		best[0] = min(best[0], lap())
		tr, err := dirty.Start(t.Context(), sysRoot(t), []dirty.Disk{d.Disk}, chunk)
		fatal(t, err)
		lap() // what Start leaves to be done is no part of it
		best[1] = min(best[1], lap())
		fatal(t, tr.Close())
	}
	t.Logf("%s: a write takes %v, tracked %v: %.3f", d.Name, best[0]/writes, best[1]/writes, float64(best[1])/float64(best[0]))
}
