package host

import (
	"cmp"
	"slices"
)

// A piece takes size slots from one of its starts on.
type piece struct {
	size   int
	starts []int
}

// maxSlots is more than any card has: NVIDIA's driver counts slots of 1 GB, up to as many.
const maxSlots = 512

// slots is a set of slots.
type slots [maxSlots / 64]uint64

func (s *slots) free(from, size int) bool {
	for i := from; i < from+size; i++ {
		if s[i/64]&(1<<(i%64)) != 0 {
			return false
		}
	}
	return true
}

func (s slots) with(from, size int) slots {
	for i := from; i < from+size; i++ {
		s[i/64] |= 1 << (i % 64)
	}
	return s
}

// maxTries is how many places are tried before the answer is left to the driver.
const maxTries = 20_000

// packs reports whether all pieces find a place beside one another. It says no only where
// that is certain.
func packs(pieces []piece) bool {
	end, sum := 0, 0
	for _, p := range pieces {
		sum += p.size
		for _, at := range p.starts {
			if at < 0 || p.size < 1 || at+p.size > maxSlots {
				return true // nothing is known of such a card
			}
			end = max(end, at+p.size)
		}
	}
	if sum > end {
		return false
	}
	pieces = slices.Clone(pieces)
	for i := range pieces {
		pieces[i].starts = slices.Sorted(slices.Values(pieces[i].starts))
	}
	slices.SortStableFunc(pieces, func(a, b piece) int {
		return cmp.Or(cmp.Compare(b.size, a.size), cmp.Compare(len(a.starts), len(b.starts)), slices.Compare(a.starts, b.starts))
	})
	k := packing{pieces: pieces, dead: map[dead]bool{}}
	return k.from(0, 0, slots{}) || k.tries > maxTries
}

// A packing is a search for places, the largest pieces first.
type packing struct {
	pieces []piece
	dead   map[dead]bool
	tries  int
}

// dead is a state that leads nowhere: so many pieces lie, the next begins at this start of
// its own or behind it, and this is taken.
type dead struct {
	laid, start int
	taken       slots
}

func (k *packing) from(laid, start int, taken slots) bool {
	if laid == len(k.pieces) {
		return true
	}
	at := dead{laid, start, taken}
	if k.dead[at] || k.tries > maxTries {
		return false
	}
	p := k.pieces[laid]
	if !k.hope(laid, start, taken) {
		k.dead[at] = true
		return false
	}
	for i := start; i < len(p.starts); i++ {
		if !taken.free(p.starts[i], p.size) {
			continue
		}
		k.tries++
		next := 0
		if laid+1 < len(k.pieces) && p.like(k.pieces[laid+1]) { // of two alike the order means nothing
			next = i + 1
		}
		if k.from(laid+1, next, taken.with(p.starts[i], p.size)) {
			return true
		}
	}
	k.dead[at] = true
	return false
}

// hope reports whether of each kind as many find a place as are left, were the other kinds
// not there: the next of its kind from a start of its own on.
func (k *packing) hope(laid, start int, taken slots) bool {
	for laid < len(k.pieces) {
		p, n := k.pieces[laid], 0
		for ; laid < len(k.pieces) && p.like(k.pieces[laid]); laid++ {
			n++
		}
		end := 0
		for _, at := range p.starts[start:] {
			if n > 0 && at >= end && taken.free(at, p.size) {
				n, end = n-1, at+p.size
			}
		}
		if n > 0 {
			return false
		}
		start = 0
	}
	return true
}

func (p piece) like(q piece) bool { return p.size == q.size && slices.Equal(p.starts, q.starts) }

// moreOf counts how many more of a piece find a place beside others, at most limit.
func moreOf(p piece, beside []piece, limit int) int {
	n, bad := 0, limit+1
	for n+1 < bad { // fewer fit wherever more do
		mid := (n + bad) / 2
		if packs(append(slices.Clone(beside), slices.Repeat([]piece{p}, mid)...)) {
			n = mid
		} else {
			bad = mid
		}
	}
	return n
}
