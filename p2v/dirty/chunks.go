package dirty

import (
	"iter"
	"math/bits"
)

// Chunks is a set of the chunks of one disk.
type Chunks struct {
	chunkBytes int64
	diskBytes  int64
	words      []uint64
}

// NewChunks is the empty set of a disk of so many bytes. The last chunk may be a short one.
func NewChunks(diskBytes, chunkBytes int64) *Chunks {
	n := countOf(diskBytes, chunkBytes)
	return &Chunks{chunkBytes: chunkBytes, diskBytes: diskBytes, words: make([]uint64, (n+63)/64)}
}

func countOf(diskBytes, chunkBytes int64) int64 { return (diskBytes + chunkBytes - 1) / chunkBytes }

// A Range is a piece of a disk, in bytes.
type Range struct{ Offset, Length int64 }

// Len is the number of chunks that the disk has, in the set or not.
func (c *Chunks) Len() int64 { return countOf(c.diskBytes, c.chunkBytes) }

// Count is the number of chunks in the set.
func (c *Chunks) Count() int64 {
	var n int
	for _, w := range c.words {
		n += bits.OnesCount64(w)
	}
	return int64(n)
}

// Has says whether chunk i, counted from 0, is in the set.
func (c *Chunks) Has(i int64) bool {
	return i >= 0 && i < c.Len() && c.words[i/64]&(1<<(i%64)) != 0
}

// Merge adds what is in another set of the same disk.
func (c *Chunks) Merge(other *Chunks) {
	for i, w := range other.words {
		c.words[i] |= w
	}
}

// Ranges are the chunks of the set, neighbours as one, in the order of the disk. The last
// one ends with the disk.
func (c *Chunks) Ranges() iter.Seq[Range] {
	return func(yield func(Range) bool) {
		for from := c.next(0, true); from < c.Len(); {
			to := c.next(from, false)
			r := Range{Offset: from * c.chunkBytes}
			r.Length = min(to*c.chunkBytes, c.diskBytes) - r.Offset
			if !yield(r) {
				return
			}
			from = c.next(to, true)
		}
	}
}

// next is the first chunk from i on that is in the set, or not; Len where there is none.
func (c *Chunks) next(i int64, in bool) int64 {
	for i < c.Len() {
		w := c.words[i/64]
		if !in {
			w = ^w
		}
		if w >>= i % 64; w != 0 {
			return min(i+int64(bits.TrailingZeros64(w)), c.Len())
		}
		i = (i/64 + 1) * 64
	}
	return c.Len()
}

// add puts chunks [from, to) into the set, as far as the disk has them.
func (c *Chunks) add(from, to int64) {
	for i := from; i < min(to, c.Len()); i++ {
		c.words[i/64] |= 1 << (i % 64)
	}
}
