package host

import (
	"cmp"
	"slices"
)

// makingOrder is an order in which a driver that puts each piece at the first of its starts
// that is free places them all, as indices; ok tells whether one was found. Nearly always
// it is the largest first, which is the answer also where none was found.
func makingOrder(pieces []piece) (order []int, ok bool) {
	for i := range pieces {
		order = append(order, i)
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(pieces[b].size, pieces[a].size) })
	if slices.ContainsFunc(pieces, func(p piece) bool {
		return p.size < 1 || slices.ContainsFunc(p.starts, func(at int) bool { return at < 0 || at+p.size > maxSlots })
	}) {
		return order, false
	}
	s := sequence{dead: map[string]bool{}}
	for _, i := range order {
		k := slices.IndexFunc(s.kinds, pieces[i].like)
		if k < 0 {
			k = len(s.kinds)
			s.kinds, s.members = append(s.kinds, pieces[i]), append(s.members, nil)
		}
		s.members[k] = append(s.members[k], i)
	}
	if !s.place(slots{}) {
		return order, false
	}
	return s.order, true
}

// A sequence is a search for an order: which kind comes next, the largest tried first.
type sequence struct {
	kinds   []piece
	members [][]int // pieces of each kind that are not placed yet
	order   []int
	dead    map[string]bool // what was left to place when it led nowhere
	tries   int
}

func (s *sequence) place(taken slots) bool {
	key := make([]byte, 0, len(s.kinds)+len(taken)*8)
	left := 0
	for _, m := range s.members {
		left += len(m)
		key = append(key, byte(len(m)), byte(len(m)>>8)) //nolint:gosec // both halves
	}
	if left == 0 {
		return true
	}
	for _, w := range taken {
		for shift := 0; shift < 64; shift += 8 {
			key = append(key, byte(w>>shift)) //nolint:gosec // one byte after the other
		}
	}
	if s.dead[string(key)] || s.tries > maxTries {
		return false
	}
	for k, p := range s.kinds {
		if len(s.members[k]) == 0 {
			continue
		}
		i := slices.IndexFunc(p.starts, func(at int) bool { return taken.free(at, p.size) })
		if i < 0 {
			break // nor will it later: there is less room by then
		}
		s.tries++
		next := s.members[k][0]
		s.members[k], s.order = s.members[k][1:], append(s.order, next)
		if s.place(taken.with(p.starts[i], p.size)) {
			return true
		}
		s.members[k], s.order = append([]int{next}, s.members[k]...), s.order[:len(s.order)-1]
	}
	s.dead[string(key)] = true
	return false
}
