package mig_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"gpuvirt/mig"
	"gpuvirt/mig/cards"
)

// A trace is requests that come and go on one card.
type trace []event

type event struct {
	request int
	profile int  // of the card
	leaves  bool // else it arrives
}

// randomTrace has n requests of any profile, each as likely; at load 1 as many
// slices are asked for at a time, on average, as the card has.
func randomTrace(r *rand.Rand, c *mig.Card, n int, load float64) trace {
	type moment struct {
		at float64
		event
	}
	mean := 0.0
	for _, p := range c.Profiles {
		mean += float64(p.Size) / float64(len(c.Profiles))
	}
	every := mean / (load * float64(c.Slices)) // between arrivals, where a stay is 1
	var all []moment
	now := 0.0
	for i := range n {
		now += r.ExpFloat64() * every
		p := r.IntN(len(c.Profiles))
		all = append(all, moment{now, event{i, p, false}}, moment{now + r.ExpFloat64(), event{i, p, true}})
	}
	slices.SortStableFunc(all, func(a, b moment) int { return cmp.Compare(a.at, b.at) })
	t := make(trace, len(all))
	for i, m := range all {
		t[i] = m.event
	}
	return t
}

// A placer chooses a place for one more instance, or none.
type placer func(c *mig.Card, have []mig.Instance, p mig.Profile) (start int, ok bool)

// play counts the requests that a placer could serve.
func play(c *mig.Card, t trace, place placer) (accepted int) {
	var have []mig.Instance
	for _, e := range t {
		if e.leaves {
			have = slices.DeleteFunc(have, func(in mig.Instance) bool { return in.ID == e.request })
			continue
		}
		p := c.Profiles[e.profile]
		if start, ok := place(c, have, p); ok {
			have = append(have, mig.Instance{ID: e.request, Profile: p.Name, Start: start, Size: p.Size, InUse: true})
			accepted++
		}
	}
	return accepted
}

func ours(c *mig.Card, have []mig.Instance, p mig.Profile) (int, bool) {
	at, err := c.Place(have, p.Name, mig.Anywhere)
	return at.Start, err == nil
}

func firstFit(c *mig.Card, have []mig.Instance, p mig.Profile) (int, bool) {
	for _, s := range p.Starts {
		if legal(c, have, p, s) {
			return s, true
		}
	}
	return 0, false
}

// lastFit takes the highest place.
func lastFit(c *mig.Card, have []mig.Instance, p mig.Profile) (int, bool) {
	for _, s := range slices.Backward(p.Starts) {
		if legal(c, have, p, s) {
			return s, true
		}
	}
	return 0, false
}

// largeFirst is how ours chose before ADR 27: the most places for the largest profile,
// then for the next, and the highest of equals.
func largeFirst(c *mig.Card, have []mig.Instance, p mig.Profile) (int, bool) {
	bySize := slices.SortedStableFunc(slices.Values(c.Profiles), func(a, b mig.Profile) int {
		return cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(b.Engines.Compute, a.Engines.Compute))
	})
	at, best := 0, []int(nil)
	for _, s := range slices.Backward(p.Starts) {
		if !legal(c, have, p, s) {
			continue
		}
		with := append(slices.Clone(have), mig.Instance{Profile: p.Name, Start: s, Size: p.Size})
		worth := make([]int, len(bySize))
		for i, q := range bySize {
			for _, t := range q.Starts {
				if legal(c, with, q, t) {
					worth[i]++
				}
			}
		}
		if best == nil || slices.Compare(worth, best) > 0 {
			at, best = s, worth
		}
	}
	return at, best != nil
}

// legal says whether an instance may be put somewhere, computed apart from the
// planner: slice by slice, with nothing remembered.
func legal(c *mig.Card, have []mig.Instance, p mig.Profile, start int) bool {
	used, same := p.Engines, 1
	for _, in := range have {
		if start < in.Start+in.Size && in.Start < start+p.Size {
			return false
		}
		i := slices.IndexFunc(c.Profiles, func(q mig.Profile) bool { return q.Name == in.Profile })
		q := c.Profiles[i]
		if q.Name == p.Name {
			same++
		}
		used.Compute += q.Engines.Compute
		used.Decoders += q.Engines.Decoders
		used.Encoders += q.Engines.Encoders
		used.JPEG += q.Engines.JPEG
		used.OFA += q.Engines.OFA
	}
	l := c.Engines
	return slices.Contains(p.Starts, start) && same <= p.Max && used.Compute <= l.Compute && used.Decoders <= l.Decoders &&
		used.Encoders <= l.Encoders && used.JPEG <= l.JPEG && used.OFA <= l.OFA
}

// optimum counts the requests that could be served by one who knows the whole
// trace but cannot move what runs. It goes through the trace with every layout
// that may have come about by then, and how many were served on the best way there.
// Nobody who does not know the future can do as well: a chain has the optimum of those.
func optimum(c *mig.Card, t trace) (best int) {
	type slot struct{ request, profile, start int8 }
	type layout [8]slot // by request; profile -1 is none
	none := slot{-1, -1, -1}
	empty := layout{none, none, none, none, none, none, none, none}
	now := map[layout]int{empty: 0}
	put := func(m map[layout]int, l layout, n int) {
		if was, ok := m[l]; !ok || n > was {
			m[l] = n
		}
	}
	for _, e := range t {
		next := make(map[layout]int, len(now))
		for l, n := range now {
			if e.leaves {
				if i := slices.IndexFunc(l[:], func(s slot) bool { return int(s.request) == e.request }); i >= 0 {
					copy(l[i:], l[i+1:])
					l[len(l)-1] = none
				}
				put(next, l, n)
				continue
			}
			have := make([]mig.Instance, 0, len(l))
			for _, s := range l {
				if s.profile >= 0 {
					p := c.Profiles[s.profile]
					have = append(have, mig.Instance{ID: int(s.request), Profile: p.Name, Start: int(s.start), Size: p.Size})
				}
			}
			p := c.Profiles[e.profile]
			served := false
			for _, s := range p.Starts {
				if legal(c, have, p, s) {
					with := l
					with[len(have)] = slot{int8(e.request), int8(e.profile), int8(s)}
					put(next, with, n+1)
					served = true
				}
			}
			if !served {
				put(next, l, n)
			}
		}
		now = next
	}
	for _, n := range now {
		best = max(best, n)
	}
	return best
}

// shares plays traces and returns what share of the optimum each placer serves.
func shares(c *mig.Card, traces int, load float64, placers ...placer) []float64 {
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same traces each time
	sums, best := make([]float64, len(placers)), 0.0
	for range traces {
		t := randomTrace(r, c, 40, load)
		for i, p := range placers {
			sums[i] += float64(play(c, t, p))
		}
		best += float64(optimum(c, t))
	}
	for i := range sums {
		sums[i] /= best
	}
	return sums
}

func BenchmarkTraces(b *testing.B) {
	for _, m := range cards.Models {
		for _, load := range []float64{0.3, 0.5, 0.8, 1.2} {
			b.Run(fmt.Sprintf("%s/load=%.1f", m.Name, load), func(b *testing.B) {
				for b.Loop() {
					s := shares(&m.Card, 100, load, ours, firstFit, driverOrder, driverCount)
					b.ReportMetric(s[0], "of-optimum")
					b.ReportMetric(s[0]/s[1], "vs-first-fit")
					b.ReportMetric(s[0]/max(s[2], s[3]), "vs-driver")
				}
			})
		}
	}
}

// The dearest plans: everything idle and nothing wanted where it is, and a refusal
// that tries every set of blockers.
func BenchmarkLayout(b *testing.B) {
	c := &cards.Models[1].Card
	var idle, busy []mig.Instance
	for i := range 7 {
		in := mig.Instance{ID: i, Profile: "1g.5gb", Start: i, Size: 1}
		idle = append(idle, in)
		in.InUse = true
		busy = append(busy, in)
	}
	want := []mig.Placement{{Profile: "3g.20gb", Start: mig.Anywhere}, {Profile: "2g.10gb", Start: mig.Anywhere}, {Profile: "1g.5gb+me", Start: mig.Anywhere}, {Profile: "1g.5gb", Start: mig.Anywhere}}
	for name, have := range map[string][]mig.Instance{"idle": idle, "in-use": busy} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				_, _ = c.Layout(have, want)
			}
		})
	}
}
