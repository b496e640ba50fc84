package host

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// brute tries every place of every piece.
func brute(pieces []piece, taken slots) bool {
	if len(pieces) == 0 {
		return true
	}
	for _, at := range pieces[0].starts {
		if taken.free(at, pieces[0].size) && brute(pieces[1:], taken.with(at, pieces[0].size)) {
			return true
		}
	}
	return false
}

func drawPieces(t *rapid.T, most int) []piece {
	kinds := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) piece {
		size := rapid.IntRange(1, 5).Draw(t, "size")
		starts := rapid.SliceOfNDistinct(rapid.IntRange(0, 10-size), 0, 6, func(at int) int { return at }).Draw(t, "starts")
		return piece{size, starts}
	}), 1, 3).Draw(t, "kinds")
	return rapid.SliceOfN(rapid.SampledFrom(kinds), 0, most).Draw(t, "pieces")
}

func TestPacksIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pieces := drawPieces(t, 6)
		if got, want := packs(pieces), brute(pieces, slots{}); got != want {
			t.Fatalf("packs(%+v) is %t", pieces, got)
		}
	})
}

func TestMoreOf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		beside := drawPieces(t, 3)
		p := drawPieces(t, 4)
		if len(p) == 0 || !packs(beside) {
			t.Skip("nothing to add, or it does not fit by itself")
		}
		want := 0
		for want < 4 && brute(append(slices.Clone(beside), slices.Repeat(p[:1], want+1)...), slots{}) {
			want++
		}
		if got := moreOf(p[0], beside, 4); got != want {
			t.Fatalf("moreOf(%+v, %+v) is %d, not %d", p[0], beside, got, want)
		}
	})
}

// On a card that nobody knows, and where the search would take too long, the driver is to
// say.
func TestPacksDoesNotRefuseWhatItCannotTell(t *testing.T) {
	if !packs([]piece{{size: 1, starts: []int{maxSlots}}, {size: 4, starts: []int{-1}}}) {
		t.Error("a card with too many slots")
	}
	// Odd places on a card that has even ones: it takes long to see.
	var even, odd []int
	for at := 0; at < 120; at += 4 {
		even, odd = append(even, at), append(odd, at+1, at+3)
	}
	pieces := slices.Concat(slices.Repeat([]piece{{3, even}}, 15), slices.Repeat([]piece{{2, odd}}, 16), slices.Repeat([]piece{{1, odd}}, 12))
	k := packing{pieces: pieces, dead: map[dead]bool{}}
	_ = k.from(0, 0, slots{})
	if k.tries > 2*maxTries {
		t.Errorf("%d tries", k.tries)
	}
}
