package mig

import (
	"cmp"
	"fmt"
	"iter"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"gpuvirt/gpu"
)

// Anywhere leaves the place of a wish to the planner.
const Anywhere = -1

// maxInstances bounds a layout: plans are found by trying every set of instances
// to keep. No card has more than 7.
const maxInstances = 16

// A Plan turns one layout into another. Removals come before creations, which are
// in the order of their places.
type Plan struct {
	Keep   []Instance
	Remove []Instance
	Create []Placement
}

// Layout plans how the instances that are there become those that are wanted, with
// as few removals as possible, and of all ways to do that the one that leaves the
// most room for large profiles. An instance that is wanted at any place is wanted
// where it is. An instance in use stays as it is, always: where that makes the
// layout impossible the error (gpu.CodeGPUBusy) names the fewest that would have to
// go. What does not even fit on an empty card is gpu.CodeNoCapacity.
func (c *Card) Layout(have []Instance, want []Placement) (Plan, error) {
	if err := c.admit(have, want); err != nil {
		return Plan{}, err
	}
	inUse := uint(0)
	for i, in := range have {
		if in.InUse {
			inUse |= 1 << i
		}
	}
	l := c.layouter(have, want)
	for idle := range subsets(inUse) {
		p, ok := l.best(inUse &^ idle)
		switch {
		case ok && idle == 0:
			return p, nil
		case ok:
			return Plan{}, blocked(attempt(want), "kept, and would have to go", pickSet(have, idle), gpu.CodeGPUBusy)
		}
		if idle == 0 && !c.holds(want) {
			break // no matter who lets go
		}
	}
	return Plan{}, gpu.Errorf(gpu.CodeNoCapacity, "cannot cut %s: they do not fit together on this card, whatever is on it now", list(want)).
		WithHint("leave some out, or ask for smaller ones")
}

// holds reports whether an empty card has room for all.
func (c *Card) holds(want []Placement) bool {
	_, ok := c.layouter(nil, want).best(0)
	return ok
}

// Place finds the place for one more instance beside all that are there, the one
// that leaves the most room for large profiles; start is Anywhere or the place
// asked for. Where there is none the error (gpu.CodeNoCapacity) names the fewest
// instances that would have to go, idle ones rather than those in use.
func (c *Card) Place(have []Instance, profile string, start int) (Placement, error) {
	wish := Placement{Profile: profile, Start: start}
	if err := c.admit(have, []Placement{wish}); err != nil {
		return Placement{}, err
	}
	l := c.layouter(nil, []Placement{wish})
	on := func(gone uint) (Placement, bool) {
		b := board{card: c}
		for i, in := range have {
			if gone&(1<<i) == 0 {
				b.put(in)
			}
		}
		placed, ok := l.fill(b, l.wishes)
		if !ok {
			return Placement{}, false
		}
		return placed.at[0], true
	}
	var blockers []Instance
	for gone := range subsets(everyOne(have)) {
		if blockers != nil && bits.OnesCount(gone) > len(blockers) {
			break
		}
		p, ok := on(gone)
		if ok && gone == 0 {
			return p, nil
		}
		if in := pickSet(have, gone); ok && (blockers == nil || countInUse(in) < countInUse(blockers)) {
			blockers = in
		}
	}
	return Placement{}, blocked("cannot place "+wish.String(), "in the way", blockers, gpu.CodeNoCapacity)
}

func countInUse(in []Instance) (n int) {
	for _, i := range in {
		if i.InUse {
			n++
		}
	}
	return n
}

// String is the profile, with the place if one is given and compute instances that do
// not fill it: "3g.40gb@4=1c.3g.40gb,2c.3g.40gb".
func (p Placement) String() string {
	text := p.Profile
	if p.Start != Anywhere {
		text += "@" + strconv.Itoa(p.Start)
	}
	if p.Compute != "" && p.Compute != p.Profile {
		text += "=" + p.Compute
	}
	return text
}

// attempt says what a layout asks for, when it is refused.
func attempt(want []Placement) string {
	if len(want) == 0 {
		return "cannot remove all instances"
	}
	return "cannot cut " + list(want)
}

func list(want []Placement) string {
	names := make([]string, len(want))
	for i, w := range want {
		names[i] = w.String()
	}
	return strings.Join(names, ", ")
}

// admit refuses what no plan can be made from.
func (c *Card) admit(have []Instance, want []Placement) error {
	if err := c.check(); err != nil {
		return err
	}
	if err := c.known(want); err != nil {
		return err
	}
	return c.sane(have)
}

// known refuses wishes that the card does not offer.
func (c *Card) known(want []Placement) error {
	for _, w := range want {
		i := c.find(w.Profile)
		if i < 0 {
			names := make([]string, len(c.Profiles))
			for j, p := range c.Profiles {
				names[j] = p.Name
			}
			return gpu.Errorf(gpu.CodeProfileUnknown, "cannot cut %q: this card has no such profile", w.Profile).
				WithHint("profiles here: %s", strings.Join(names, ", "))
		}
		if p := c.Profiles[i]; w.Start != Anywhere && !slices.Contains(p.Starts, w.Start) {
			return gpu.Errorf(gpu.CodeInvalid, "cannot cut %s: it may begin at the memory slices %v only", w, p.Starts)
		}
	}
	return nil
}

// sane refuses a state that cannot be: a plan made from it would be wrong.
func (c *Card) sane(have []Instance) error {
	if len(have) > maxInstances {
		return gpu.Errorf(gpu.CodeInvalid, "cannot plan with %d instances: at most %d are supported", len(have), maxInstances)
	}
	var taken uint64
	for _, in := range have {
		s := span(in.Start, in.Size)
		if s == 0 || in.Start+in.Size > c.Slices || taken&s != 0 {
			return gpu.Errorf(gpu.CodeInvalid, "cannot plan: instance %d (%s) at memory slice %d, size %d is off the card or over another one",
				in.ID, in.Profile, in.Start, in.Size)
		}
		taken |= s
	}
	return nil
}

// blocked is a refusal that names instances.
func blocked(what, why string, in []Instance, code gpu.Code) error {
	e := gpu.Errorf(code, "%s: %d instances are %s", what, len(in), why)
	if len(in) == 1 {
		e = gpu.Errorf(code, "%s: instance %d (%s) is %s", what, in[0].ID, in[0].Profile, why)
	}
	for _, i := range in {
		note := fmt.Sprintf("%s at memory slices %d to %d", i.Profile, i.Start, i.Start+i.Size-1)
		if i.InUse {
			note += ", in use"
		}
		e = e.WithBlockers(gpu.Blocker{Kind: "partition", ID: strconv.Itoa(i.ID), Name: i.Profile, Note: note})
	}
	return e
}

// everyOne is the set of all instances.
func everyOne(have []Instance) uint { return uint(1)<<len(have) - 1 }

// subsets yields the subsets of a set, the smaller first.
func subsets(set uint) iter.Seq[uint] {
	return func(yield func(uint) bool) {
		if !yield(0) {
			return
		}
		for n := 1; n <= bits.OnesCount(set); n++ {
			for s := set; s != 0; s = (s - 1) & set {
				if bits.OnesCount(s) == n && !yield(s) {
					return
				}
			}
		}
	}
}

func pickSet(have []Instance, set uint) []Instance {
	var out []Instance
	for i, in := range have {
		if set&(1<<i) != 0 {
			out = append(out, in)
		}
	}
	return out
}

// A layouter tries ways from one layout to another.
type layouter struct {
	card   *Card
	order  []int
	have   []Instance
	wishes []wish
}

// A wish is a Placement by the index of its profile.
type wish struct {
	profile, start int
	compute        string
}

func (c *Card) layouter(have []Instance, want []Placement) *layouter {
	l := &layouter{card: c, order: c.order(), have: have}
	for _, w := range want {
		l.wishes = append(l.wishes, wish{c.find(w.Profile), w.Start, w.Compute})
	}
	// What has the least choice comes first: those with a place (Anywhere is less than
	// any), then the largest.
	rank := make([]int, len(c.Profiles))
	for i, p := range l.order {
		rank[p] = i
	}
	slices.SortStableFunc(l.wishes, func(a, b wish) int {
		return cmp.Or(cmp.Compare(b.start, a.start), cmp.Compare(rank[a.profile], rank[b.profile]), cmp.Compare(a.compute, b.compute))
	})
	return l
}

// best is the best plan that keeps a set of instances and may remove all others,
// or false if there is none.
func (l *layouter) best(pinned uint) (Plan, bool) {
	all := everyOne(l.have)
	var plan Plan
	var most filled
	found := false
	for gone := range subsets(all &^ pinned) {
		if found && bits.OnesCount(gone) > len(plan.Remove) {
			break
		}
		rest, b, ok := l.keep(gone)
		if !ok {
			continue
		}
		f, ok := l.fill(b, rest)
		if !ok || found && slices.Compare(f.worth, most.worth) <= 0 {
			continue
		}
		found, most = true, f
		plan = Plan{Keep: pickSet(l.have, all&^gone), Remove: pickSet(l.have, gone), Create: f.at}
	}
	slices.SortFunc(plan.Create, func(a, b Placement) int { return cmp.Compare(a.Start, b.Start) })
	return plan, found
}

// keep matches the instances that stay with wishes and returns the wishes left, or
// false if one that stays is not wanted. A wish for the very place comes before one
// for any: nothing else could have that place.
func (l *layouter) keep(gone uint) (rest []wish, b board, ok bool) {
	rest, b = slices.Clone(l.wishes), board{card: l.card}
	for i, in := range l.have {
		if gone&(1<<i) != 0 {
			continue
		}
		p := l.card.find(in.Profile)
		at := slices.Index(rest, wish{p, in.Start, in.Compute})
		if at < 0 {
			at = slices.Index(rest, wish{p, Anywhere, in.Compute})
		}
		if p < 0 || at < 0 {
			return nil, b, false
		}
		rest = slices.Delete(rest, at, at+1)
		b.put(in)
	}
	return rest, b, true
}

// filled is a board with all wishes placed.
type filled struct {
	at    []Placement
	worth []int
}

// fill places wishes on a board, with the greatest worth; of equals, the one with
// the highest places found first. Every arrangement is tried once: like wishes are
// placed from right to left only, and a board that was reached before is not left
// a second time.
func (l *layouter) fill(b board, wishes []wish) (filled, bool) {
	var out filled
	found := false
	type state struct {
		next  int
		taken uint64
		last  int
	}
	seen := map[state]bool{}
	at := make([]Placement, 0, len(wishes))
	var step func(b board, i, last int)
	step = func(b board, i, last int) {
		if i == len(wishes) {
			if w := b.worth(l.order); !found || slices.Compare(w, out.worth) > 0 {
				found, out = true, filled{slices.Clone(at), w}
			}
			return
		}
		// What wishes before i took besides memory is the same on every way here.
		s := state{i, b.taken, last}
		if seen[s] || !b.allows(wishes[i].profile) {
			return
		}
		seen[s] = true
		p := l.card.Profiles[wishes[i].profile]
		for _, start := range slices.Backward(p.Starts) {
			if w := wishes[i].start; w != Anywhere && w != start || start >= last || !b.fits(wishes[i].profile, start) {
				continue
			}
			next := l.card.Slices
			if i+1 < len(wishes) && wishes[i+1] == wishes[i] {
				next = start
			}
			at = append(at, Placement{p.Name, start, wishes[i].compute})
			step(b.with(wishes[i].profile, start), i+1, next)
			at = at[:len(at)-1]
		}
	}
	step(b, 0, l.card.Slices)
	return out, found
}
