package mig_test

import (
	"slices"
	"testing"

	"gpuvirt/mig"
)

// Which place the driver chooses where none is given is not published. These are
// listings of "nvidia-smi mig -cgi" with the places that came of it, on cards of seven
// slices: the first five are in NVIDIA's MIG user guide ("Creating GPU Instances",
// "Instance Geometry"), the next in that of its Kubernetes device plugin ("9,14,19"), and
// the rest in public notes of people with A100, H100 and GH200, drivers 450 to 570. The
// number of an instance tells its place (7 to 14 those of one slice, 3 to 6 of two, 1 and 2
// of four); on a card whose halves are numbered the other way round they agree as well.
var driverListings = []struct{ profiles, places []int }{
	{[]int{9, 9}, []int{4, 0}},
	{[]int{19, 14, 5}, []int{6, 4, 0}},
	{[]int{19, 19, 14}, []int{6, 4, 0}}, // and then no 9 (3g) fits
	{[]int{9, 19, 14, 19}, []int{4, 0, 2, 1}},
	{[]int{14, 19, 19, 19, 19, 19}, []int{4, 6, 0, 1, 2, 3}},
	{[]int{9, 14, 19}, []int{4, 0, 2}},
	{[]int{19, 19, 19, 19, 19, 19, 19}, []int{6, 4, 5, 0, 1, 2, 3}},
	{[]int{14, 14, 14, 20}, []int{4, 0, 2, 6}},
	{[]int{15, 15, 15}, []int{4, 0, 2}},
	{[]int{9, 14}, []int{4, 0}},
}

// driverOrder tries places in an order that each size has: the simplest rule that all
// listings agree with. For cards of four slices nothing is published; there it takes the
// highest.
func driverOrder(c *mig.Card, have []mig.Instance, p mig.Profile) (int, bool) {
	order := map[int][]int{1: {6, 4, 5, 0, 1, 2, 3}, 2: {4, 0, 2, 6}, 4: {4, 0}}[p.Size]
	if c.Slices != 8 || order == nil {
		return lastFit(c, have, p)
	}
	for _, s := range order {
		if legal(c, have, p, s) {
			return s, true
		}
	}
	return 0, false
}

// driverCount leaves the most places for all profiles together, and takes the lowest of
// equals: what is said to be the driver's rule, under the name of configuration capability
// (Siavashi and Momtazpour, arXiv:2502.01909, of which only the abstract was at hand). The
// listings agree, but for 1g with the memory of two: that lies where a 2g would, and at the
// end only if nowhere else.
func driverCount(c *mig.Card, have []mig.Instance, p mig.Profile) (int, bool) {
	as := p
	if i := slices.IndexFunc(c.Profiles, func(q mig.Profile) bool { return q.Size == p.Size && q.Engines.Compute == p.Size }); i >= 0 && p.Size == 2 {
		as = c.Profiles[i]
	}
	at, most := 0, -1
	for _, s := range p.Starts {
		if !legal(c, have, p, s) {
			continue
		}
		n := 0
		if slices.Contains(as.Starts, s) {
			with := append(slices.Clone(have), mig.Instance{Profile: as.Name, Start: s, Size: p.Size})
			for _, q := range c.Profiles {
				for _, t := range q.Starts {
					if legal(c, with, q, t) {
						n++
					}
				}
			}
			n++ // before one where no 2g could be
		}
		if n > most {
			at, most = s, n
		}
	}
	return at, most >= 0
}

// The rules that stand for the driver choose what it chose. The others do not: the
// highest place that fits, long taken for the driver's, is not its rule.
func TestDriversChoices(t *testing.T) {
	m := model(t, "A100-SXM4-80GB")
	agrees := func(place placer) (n int) {
		for _, l := range driverListings {
			var have []mig.Instance
			var places []int
			for _, id := range l.profiles {
				p := m.Profiles[slices.IndexFunc(m.Profiles, func(p mig.Profile) bool { return p.ID == id })]
				at, ok := place(&m.Card, have, p)
				if !ok {
					break
				}
				places, have = append(places, at), append(have, mig.Instance{Profile: p.Name, Start: at, Size: p.Size})
			}
			if slices.Equal(places, l.places) {
				n++
			}
		}
		return n
	}
	for _, r := range []struct {
		name  string
		place placer
		want  int
	}{{"driver, by order", driverOrder, 10}, {"driver, by count", driverCount, 10}, {"highest", lastFit, 2}, {"first fit", firstFit, 0}} {
		if n := agrees(r.place); n != r.want {
			t.Errorf("%s agrees with %d of %d listings, want %d", r.name, n, len(driverListings), r.want)
		}
	}
}
