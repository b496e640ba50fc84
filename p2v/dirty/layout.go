package dirty

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"
)

const (
	// pageBytes is the size of an entry of the kernel's array of marks. It is not the
	// machine's page: the array is one piece of memory whatever its entries are.
	pageBytes = 4096
	// A mark is a byte. A level is a map of the whole disk; a mark of the next one stands
	// for four of it.
	fanBits   = 2
	maxLevels = 16
	// maxRun is how many marks one range may take. A longer range goes to the next level:
	// what is set there beyond its ends is less than two marks, and it has seven quarters
	// of one itself.
	maxRun = 8
	// maxRequestBytes bounds a request: its length has 32 bits in the kernel.
	maxRequestBytes = 1 << 32
	// maxMarksBytes bounds the kernel's memory, which cannot be swapped.
	maxMarksBytes = 1 << 30
	// minChunkBytes is a page: a disk is not written in smaller pieces by anything that
	// goes through the page cache.
	minChunkBytes = 4096
)

// A slot says where the marks of one disk are.
type slot struct {
	chunks int64
	base   []uint32 // where each level begins, in bytes from the begin of the marks
	flags  uint32   // where its flags are
}

// A layout says where the marks of all disks are. The first page holds flags, a byte
// for each reason and eight bytes for each disk, the first eight for all of them.
type layout struct {
	chunkShift uint
	slots      []slot
	pages      uint32
}

const (
	flagBytes = 8
	maxDisks  = pageBytes/flagBytes - 1
)

// A reason says why the marks of a disk do not tell all that was written.
type reason int

const (
	reasonPassthrough reason = iota
	reasonBeyond
	reasonRanges
	reasonPath
	reasonNoDisk
)

func (r reason) String() string {
	switch r {
	case reasonPassthrough:
		return "a command with data was sent past the block layer"
	case reasonBeyond:
		return "something was written beyond the end that the disk had"
	case reasonRanges:
		return "one request discarded more ranges than are looked at"
	case reasonPath:
		return "something was written on a path that was not known"
	case reasonNoDisk:
		return "a command with data was sent past the block layer to a disk without a name"
	default:
		return fmt.Sprintf("reason %d", int(r))
	}
}

// layOut places the marks of disks of so many bytes.
func layOut(diskBytes []int64, chunkBytes int64) (layout, error) {
	var l layout
	if chunkBytes < minChunkBytes || chunkBytes > maxRequestBytes || chunkBytes&(chunkBytes-1) != 0 {
		return l, fmt.Errorf("cannot track chunks of %d bytes: the size is a power of two from %d to %d", chunkBytes, minChunkBytes, maxRequestBytes)
	}
	if len(diskBytes) == 0 || len(diskBytes) > maxDisks {
		return l, fmt.Errorf("cannot track %d disks: there are 1 to %d", len(diskBytes), maxDisks)
	}
	for chunkBytes>>l.chunkShift != 1 {
		l.chunkShift++
	}
	end := int64(pageBytes)
	for i, size := range diskBytes {
		s := slot{chunks: countOf(size, chunkBytes), flags: uint32(flagBytes * (i + 1))} //nolint:gosec // at most 4096
		for level := range levelsFor(chunkBytes) {
			if end > maxMarksBytes {
				return l, fmt.Errorf("cannot track %d disks in chunks of %d bytes: the marks take more than %d bytes", len(diskBytes), chunkBytes, maxMarksBytes)
			}
			s.base = append(s.base, uint32(end)) //nolint:gosec // just bounded
			marks := (s.chunks-1)>>(fanBits*level) + 1
			end += (marks + pageBytes - 1) / pageBytes * pageBytes
		}
		l.slots = append(l.slots, s)
	}
	if end > maxMarksBytes {
		return l, fmt.Errorf("cannot track %d disks in chunks of %d bytes: the marks take more than %d bytes", len(diskBytes), chunkBytes, maxMarksBytes)
	}
	l.pages = uint32(end / pageBytes) //nolint:gosec // just bounded
	return l, nil
}

// levelsFor is how many levels the longest request needs.
func levelsFor(chunkBytes int64) int {
	levels := 1
	for marks := int64(maxRequestBytes)/chunkBytes + 1; marks > maxRun; levels++ {
		marks = (marks-1)>>fanBits + 2 // it may begin and end anywhere
	}
	return levels
}

// Marks are the memory that the kernel's program sets bytes in.
type marks []byte

// word is the aligned eight bytes at a position. The program stores single bytes and never
// reads one to write it back, so that an exchange of eight at once loses none.
func (m marks) word(at int64) *uint64 {
	_ = m[at+7]
	return (*uint64)(unsafe.Pointer(&m[at])) //nolint:gosec // in bounds, and aligned: see layOut
}

// take clears eight marks and returns them as they were.
func (m marks) take(at int64) (set [8]byte) {
	w := m.word(at)
	if atomic.LoadUint64(w) != 0 {
		binary.NativeEndian.PutUint64(set[:], atomic.SwapUint64(w, 0))
	}
	return set
}

// collect clears the marks of a disk and adds the chunks that they stand for.
func (m marks) collect(s slot, to *Chunks) {
	for level, base := range s.base {
		shift := fanBits * level
		count := (s.chunks-1)>>shift + 1
		for i := int64(0); i < count; i += 8 {
			set := m.take(int64(base) + i)
			if set == [8]byte{} {
				continue
			}
			for j, b := range set {
				if b != 0 {
					to.add((i+int64(j))<<shift, (i+int64(j)+1)<<shift)
				}
			}
		}
	}
}

// reasons clears eight flags and returns what was set.
func (m marks) reasons(at uint32) (why []reason) {
	for r, b := range m.take(int64(at)) {
		if b != 0 {
			why = append(why, reason(r))
		}
	}
	return why
}
