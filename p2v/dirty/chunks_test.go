package dirty

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestRangesJoinNeighboursAndEndWithTheDisk(t *testing.T) {
	const size = 1 << 20
	c := NewChunks(200*size-100, size)
	if n := len(slices.Collect(c.Ranges())); n != 0 {
		t.Fatalf("an empty set has %d ranges", n)
	}
	for _, i := range []int64{0, 1, 5, 63, 64, 199} {
		c.add(i, i+1)
	}
	c.add(199, 300) // beyond the end
	want := []Range{{0, 2 * size}, {5 * size, size}, {63 * size, 2 * size}, {199 * size, size - 100}}
	if diff := cmp.Diff(want, slices.Collect(c.Ranges())); diff != "" {
		t.Error(diff)
	}
	if c.Len() != 200 || c.Count() != 6 || c.Has(2) || !c.Has(64) || c.Has(200) || c.Has(-1) {
		t.Errorf("%d of %d chunks", c.Count(), c.Len())
	}
	for range c.Ranges() {
		break
	}
}

func TestRangesAreTheChunks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 4096
		bytes := rapid.Int64Range(1, 300*size).Draw(t, "bytes")
		c, other := NewChunks(bytes, size), NewChunks(bytes, size)
		in := map[int64]bool{}
		for _, set := range []*Chunks{c, other} {
			for _, i := range rapid.SliceOf(rapid.Int64Range(0, c.Len()-1)).Draw(t, "chunks") {
				set.add(i, i+1)
				in[i] = true
			}
		}
		c.Merge(other)
		covered := int64(0)
		for r := range c.Ranges() {
			for at := r.Offset; at < r.Offset+r.Length; at += size {
				if !in[at/size] || !c.Has(at/size) {
					t.Fatalf("chunk %d is in a range and was not added", at/size)
				}
				covered++
			}
		}
		if covered != int64(len(in)) || c.Count() != covered {
			t.Fatalf("%d chunks in ranges, %d counted, %d added", covered, c.Count(), len(in))
		}
	})
}
