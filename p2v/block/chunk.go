package block

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"reflect"
)

// Sizes of chunks, in bytes. A chunk size is a power of two.
const (
	MinChunkSize     = 64 << 10
	DefaultChunkSize = 1 << 20
	MaxChunkSize     = 4 << 20
)

// align is what O_DIRECT asks of memory, offsets and lengths, for every
// logical block size that there is.
const align = 4096

// A Hash is the SHA-256 of a chunk. The zero value says that none is held.
type Hash [sha256.Size]byte

// A Range is N chunks that begin with chunk From.
type Range struct {
	From int64 `json:"from"`
	N    int64 `json:"n"`
}

// geometry is how a disk is cut: all chunks have one size but the last.
type geometry struct {
	size  int64 // bytes
	chunk int   // bytes
	// Hashes of a chunk, and of the last chunk, when all bytes are zero.
	zero, zeroLast Hash
}

func newGeometry(size int64, chunk int) (geometry, error) {
	if err := checkChunkSize(chunk); err != nil {
		return geometry{}, err
	}
	if size <= 0 {
		return geometry{}, fmt.Errorf("a disk of %d bytes cannot be copied", size)
	}
	g := geometry{size: size, chunk: chunk}
	zeros := make([]byte, chunk)
	g.zero = sha256.Sum256(zeros)
	g.zeroLast = sha256.Sum256(zeros[:g.length(g.count()-1)])
	return g, nil
}

func checkChunkSize(n int) error {
	if n < MinChunkSize || n > MaxChunkSize || n&(n-1) != 0 {
		return fmt.Errorf("a chunk size of %d is not a power of two from %d to %d", n, MinChunkSize, MaxChunkSize)
	}
	return nil
}

func (g geometry) count() int64 { return (g.size + int64(g.chunk) - 1) / int64(g.chunk) }

func (g geometry) offset(i int64) int64 { return i * int64(g.chunk) }

func (g geometry) length(i int64) int {
	return int(min(int64(g.chunk), g.size-g.offset(i)))
}

func (g geometry) zeroHash(i int64) Hash {
	if i == g.count()-1 {
		return g.zeroLast
	}
	return g.zero
}

// hash is the hash of chunk i, whose bytes are data, and whether all are zero.
// Hashing zeros is saved, as disks are full of them.
func (g geometry) hash(i int64, data []byte) (Hash, bool) {
	if isZero(data) {
		return g.zeroHash(i), true
	}
	return sha256.Sum256(data), false
}

// bytes counts the bytes of a range.
func (g geometry) bytes(r Range) int64 {
	return min(g.offset(r.From+r.N), g.size) - g.offset(r.From)
}

var zeroPage [align]byte

func isZero(b []byte) bool {
	for len(b) > len(zeroPage) {
		if !bytes.Equal(b[:len(zeroPage)], zeroPage[:]) {
			return false
		}
		b = b[len(zeroPage):]
	}
	return bytes.Equal(b, zeroPage[:len(b)])
}

// A buffer holds one chunk, aligned for O_DIRECT, with room for the head of a
// frame right before it, so that both leave in one write.
type buffer struct {
	all    []byte
	start  int    // where the data begins in all
	packed []byte // the chunk compressed, behind room for a head
}

func newBuffer(chunk int) *buffer {
	all := make([]byte, headSize+align+chunk)
	past := (reflect.ValueOf(all).Pointer() + headSize) % align
	return &buffer{all: all, start: headSize + int(align-past)%align}
}

// data is the room for a chunk, of the full size: O_DIRECT wants whole blocks.
func (b *buffer) data() []byte { return b.all[b.start : b.start+len(b.all)-headSize-align] }

// frame is the room for the head and the first n bytes of data.
func (b *buffer) frame(n int) []byte { return b.all[b.start-headSize : b.start+n] }

// addRange adds chunk i, which comes after all of rs.
func addRange(rs []Range, i int64) []Range {
	if n := len(rs); n > 0 && rs[n-1].From+rs[n-1].N == i {
		rs[n-1].N++
		return rs
	}
	return append(rs, Range{From: i, N: 1})
}
