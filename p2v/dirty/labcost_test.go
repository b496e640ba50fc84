//go:build lab

package dirty_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"gpuvirt/p2v/dirty"
)

// A pass takes as long as what was written is much, and not as the disk is large.
func TestLabPassBySize(t *testing.T) {
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
	ratio := float64(large) / float64(small)
	t.Logf("%d writes: a pass takes %v of 1 GiB and %v of 8 GiB: %.2f; Take alone %v and %v",
		writes, small, large, ratio, takes[0][turns/2], takes[1][turns/2])
	if ratio > 2 { // of disks that differ by 8; the goal is 1.2, on a machine that does nothing else
		t.Errorf("a pass of 8 GiB takes %.2f times that of 1 GiB", ratio)
	}
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
