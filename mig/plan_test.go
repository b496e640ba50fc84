package mig_test

import (
	"errors"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"gpuvirt/gpu"
	"gpuvirt/mig"
	"gpuvirt/mig/cards"
)

func model(t *testing.T, name string) *cards.Model {
	t.Helper()
	for _, m := range cards.Models {
		if m.Name == name {
			return &m
		}
	}
	t.Fatalf("no card %q", name)
	return nil
}

func TestLayout(t *testing.T) {
	const free = mig.Anywhere
	one := func(id, start int, busy bool) mig.Instance {
		return mig.Instance{ID: id, Profile: "1g.5gb", Start: start, Size: 1, InUse: busy}
	}
	for name, c := range map[string]struct {
		have           []mig.Instance
		want           []mig.Placement
		create, remove []int // starts; ids
		code           gpu.Code
		blockers       []string
	}{
		"nothing": {},
		"R57 one more beside those in use": {
			have:   []mig.Instance{one(1, 6, true), {ID: 2, Profile: "3g.20gb", Start: 0, Size: 4, InUse: true}},
			want:   []mig.Placement{{Profile: "1g.5gb", Start: free}, {Profile: "1g.5gb", Start: free}, {Profile: "3g.20gb", Start: free}},
			create: []int{5},
		},
		"as it is: nothing to do (T10)": {
			have: []mig.Instance{one(1, 0, false), one(2, 3, true)},
			want: []mig.Placement{{Profile: "1g.5gb", Start: free}, {Profile: "1g.5gb", Start: 3}},
		},
		"an idle one that is in the way goes, the other stays": {
			have:   []mig.Instance{one(1, 1, false), one(2, 6, false)},
			want:   []mig.Placement{{Profile: "4g.20gb", Start: free}, {Profile: "1g.5gb", Start: free}},
			create: []int{0}, remove: []int{1},
		},
		"one in use blocks": {
			have: []mig.Instance{one(1, 1, true), one(2, 6, true)},
			want: []mig.Placement{{Profile: "4g.20gb", Start: free}, {Profile: "1g.5gb", Start: free}, {Profile: "1g.5gb", Start: free}},
			code: gpu.CodeGPUBusy, blockers: []string{"1"},
		},
		"one in use that is not wanted blocks": {
			have: []mig.Instance{one(5, 1, true)},
			code: gpu.CodeGPUBusy, blockers: []string{"5"},
		},
		"T31 seven and a mixed one": {
			want:   []mig.Placement{{Profile: "1g.5gb", Start: free}, {Profile: "1g.5gb", Start: free}, {Profile: "1g.5gb", Start: free}, {Profile: "1g.5gb+me", Start: free}, {Profile: "1g.5gb", Start: free}, {Profile: "1g.5gb", Start: free}, {Profile: "1g.5gb", Start: free}},
			create: []int{0, 1, 2, 3, 4, 5, 6},
		},
		"too much for any card": {
			want: []mig.Placement{{Profile: "4g.20gb", Start: free}, {Profile: "4g.20gb", Start: free}},
			code: gpu.CodeNoCapacity,
		},
		"media engines are a budget of their own": {
			want: []mig.Placement{{Profile: "1g.5gb+me", Start: free}, {Profile: "1g.5gb+me", Start: free}},
			code: gpu.CodeNoCapacity,
		},
		"no such profile": {want: []mig.Placement{{Profile: "5g.25gb", Start: free}}, code: gpu.CodeProfileUnknown},
		"no such place":   {want: []mig.Placement{{Profile: "3g.20gb", Start: 2}}, code: gpu.CodeInvalid},
		"two at one place": {
			have: []mig.Instance{one(1, 1, true), one(2, 1, true)},
			code: gpu.CodeInvalid,
		},
		"a profile that the card does not list keeps its place": {
			have: []mig.Instance{{ID: 3, Profile: "?", Start: 0, Size: 4, InUse: true}},
			want: []mig.Placement{{Profile: "3g.20gb", Start: free}},
			code: gpu.CodeGPUBusy, blockers: []string{"3"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := model(t, "A100-PCIE-40GB").Layout(c.have, c.want)
			if gpu.CodeOf(err) != c.code && (err != nil || c.code != "") {
				t.Fatalf("error %v, want %q", err, c.code)
			}
			var create, remove []int
			for _, a := range p.Create {
				create = append(create, a.Start)
			}
			for _, in := range p.Remove {
				remove = append(remove, in.ID)
			}
			for what, diff := range map[string]string{
				"create": cmp.Diff(c.create, create), "remove": cmp.Diff(c.remove, remove), "blockers": cmp.Diff(c.blockers, blockers(err)),
			} {
				if diff != "" {
					t.Errorf("%s (-want +got):\n%s", what, diff)
				}
			}
		})
	}
}

func blockers(err error) []string {
	e, ok := errors.AsType[*gpu.Error](err)
	if !ok {
		return nil
	}
	var ids []string
	for _, b := range e.Blockers {
		ids = append(ids, b.ID)
	}
	return ids
}

// On an empty card the first small instance leaves the room for a large one.
func TestPlaceKeepsLargeOnesPossible(t *testing.T) {
	c := model(t, "A100-PCIE-40GB")
	at, err := c.Place(nil, "1g.5gb", mig.Anywhere)
	if err != nil || at.Start != 6 { // 0-3 would cost the 4g, 4 and 5 a place of 2g
		t.Fatalf("%v, %v", at, err)
	}
	have := []mig.Instance{
		{ID: 1, Profile: "1g.5gb", Start: 5, Size: 1},
		{ID: 2, Profile: "1g.5gb", Start: 1, Size: 1, InUse: true},
	}
	_, err = c.Place(have, "3g.20gb", mig.Anywhere)
	if gpu.CodeOf(err) != gpu.CodeNoCapacity {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"1"}, blockers(err)); diff != "" { // either would do: the idle one is named
		t.Error(diff)
	}
}

// drawn is a legal state of a card, some of it in use.
func drawn(t *rapid.T, c *mig.Card) []mig.Instance {
	var have []mig.Instance
	for range rapid.IntRange(0, 7).Draw(t, "instances") {
		p := rapid.SampledFrom(c.Profiles).Draw(t, "profile")
		s := rapid.SampledFrom(p.Starts).Draw(t, "start")
		if legal(c, have, p, s) {
			have = append(have, mig.Instance{ID: 10 + len(have), Profile: p.Name, Start: s, Size: p.Size, InUse: rapid.Bool().Draw(t, "in use"), Compute: rapid.SampledFrom(shapesOfCompute).Draw(t, "compute")})
		}
	}
	return have
}

// wished is a layout of which much may be there already: else nearly all would be refused.
func wished(t *rapid.T, c *mig.Card, have []mig.Instance) (want []mig.Placement) {
	for _, in := range have {
		if in.InUse && rapid.IntRange(0, 9).Draw(t, "kept") > 0 || rapid.Bool().Draw(t, "stays") {
			start := rapid.SampledFrom([]int{mig.Anywhere, in.Start}).Draw(t, "where")
			want = append(want, mig.Placement{Profile: in.Profile, Start: start, Compute: in.Compute})
		}
	}
	for range rapid.IntRange(0, 3).Draw(t, "more") {
		p := rapid.SampledFrom(c.Profiles).Draw(t, "wish")
		want = append(want, mig.Placement{
			Profile: p.Name, Start: rapid.SampledFrom(append([]int{mig.Anywhere}, p.Starts...)).Draw(t, "at"),
			Compute: rapid.SampledFrom(shapesOfCompute).Draw(t, "with"),
		})
	}
	return rapid.Permutation(want).Draw(t, "order")
}

// shapesOfCompute stand for what compute instances one has: it is compared only.
var shapesOfCompute = []string{"", "", "1c,1c"}

// A plan applied gives what was asked for; what is kept is what was there; nothing
// in use is removed. A refusal names instances that are in the way indeed: with them
// idle there is a plan, and with any one of them left in use there is none.
func TestPlansHoldWhatTheyPromise(t *testing.T) {
	for range 10 { // a hundred each: half are refused as too much for any card
		rapid.Check(t, func(t *rapid.T) {
			model := rapid.SampledFrom(cards.Models).Draw(t, "card")
			c := &model.Card
			have := drawn(t, c)
			want := wished(t, c, have)
			plan, err := c.Layout(have, want)
			if err == nil {
				holds(t, c, have, want, plan)
				return
			}
			refused(t, c, have, want, err)
		})
	}
}

func holds(t *rapid.T, c *mig.Card, have []mig.Instance, want []mig.Placement, plan mig.Plan) {
	was := append(slices.Clone(plan.Keep), plan.Remove...)
	byID := cmpopts.SortSlices(func(a, b mig.Instance) bool { return a.ID < b.ID })
	if diff := cmp.Diff(have, was, byID, cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("kept and removed are not what was there:\n%s", diff)
	}
	for _, in := range plan.Remove {
		if in.InUse {
			t.Fatalf("removes %+v", in)
		}
	}
	if n := fewest(c, have, want); n != len(plan.Remove) {
		t.Fatalf("removes %d where %d suffice", len(plan.Remove), n)
	}
	now := slices.Clone(plan.Keep)
	for _, a := range plan.Create {
		i := slices.IndexFunc(c.Profiles, func(p mig.Profile) bool { return p.Name == a.Profile })
		if !legal(c, now, c.Profiles[i], a.Start) {
			t.Fatalf("cannot make %v beside %+v", a, now)
		}
		now = append(now, mig.Instance{Profile: a.Profile, Start: a.Start, Size: c.Profiles[i].Size, Compute: a.Compute})
	}
	for _, fixed := range []bool{true, false} {
		for _, w := range want {
			if fixed != (w.Start != mig.Anywhere) {
				continue
			}
			i := slices.IndexFunc(now, func(in mig.Instance) bool {
				return in.Profile == w.Profile && in.Compute == w.Compute && (!fixed || in.Start == w.Start)
			})
			if i < 0 {
				t.Fatalf("%v is not there in the end", w)
			}
			now = slices.Delete(now, i, i+1)
		}
	}
	if len(now) > 0 {
		t.Fatalf("%+v are left that nobody wants", now)
	}
}

// fewest is how few instances have to go for a layout, computed apart from the planner:
// all are kept or not, and all places are tried.
func fewest(c *mig.Card, have []mig.Instance, want []mig.Placement) int {
	best := len(have) + 1
	for set := range 1 << len(have) {
		var kept []mig.Instance
		gone := 0
		for i, in := range have {
			switch {
			case set&(1<<i) == 0:
				kept = append(kept, in)
			case in.InUse:
				gone = best
			default:
				gone++
			}
		}
		if gone < best && placeable(c, kept, nil, want) {
			best = gone
		}
	}
	return best
}

// placeable reports whether each wish can be one of those that are kept or one made beside
// them, and none that is kept is left over.
func placeable(c *mig.Card, kept, made []mig.Instance, want []mig.Placement) bool {
	if len(want) == 0 {
		return len(kept) == 0
	}
	w := want[0]
	is := func(start int) bool { return w.Start == mig.Anywhere || w.Start == start }
	for i, in := range kept {
		if in.Profile == w.Profile && in.Compute == w.Compute && is(in.Start) {
			rest := slices.Delete(slices.Clone(kept), i, i+1)
			if placeable(c, rest, append(slices.Clone(made), in), want[1:]) {
				return true
			}
		}
	}
	p := c.Profiles[slices.IndexFunc(c.Profiles, func(p mig.Profile) bool { return p.Name == w.Profile })]
	for _, start := range p.Starts {
		if !is(start) || !legal(c, slices.Concat(kept, made), p, start) {
			continue
		}
		next := append(slices.Clone(made), mig.Instance{Profile: p.Name, Start: start, Size: p.Size})
		if placeable(c, kept, next, want[1:]) {
			return true
		}
	}
	return false
}

func refused(t *rapid.T, c *mig.Card, have []mig.Instance, want []mig.Placement, err error) {
	names := blockers(err)
	if gpu.CodeOf(err) == gpu.CodeNoCapacity {
		if _, err := c.Layout(nil, want); err == nil {
			t.Fatal("refused as too much for any card, and fits an empty one")
		}
		return
	}
	if gpu.CodeOf(err) != gpu.CodeGPUBusy || len(names) == 0 {
		t.Fatalf("%v blocked by %v", err, names)
	}
	idle := func(but string) []mig.Instance {
		out := slices.Clone(have)
		for i := range out {
			if id := out[i].ID; slices.Contains(names, strconv.Itoa(id)) && strconv.Itoa(id) != but {
				if !out[i].InUse {
					t.Fatalf("%d is idle, and named as a blocker", id)
				}
				out[i].InUse = false
			}
		}
		return out
	}
	if _, err := c.Layout(idle(""), want); err != nil {
		t.Fatalf("with the blockers %v idle: %v", names, err)
	}
	for _, n := range names {
		if _, err := c.Layout(idle(n), want); err == nil {
			t.Fatalf("%s is named as a blocker, and there is a plan with it in use", n)
		}
	}
}

// One instance more is found a place exactly where there is one, and the instances
// named otherwise are in the way indeed.
func TestPlacesHoldWhatTheyPromise(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		model := rapid.SampledFrom(cards.Models).Draw(t, "card")
		c := &model.Card
		have := drawn(t, c)
		p := rapid.SampledFrom(c.Profiles).Draw(t, "wish")
		possible := slices.ContainsFunc(p.Starts, func(s int) bool { return legal(c, have, p, s) })
		at, err := c.Place(have, p.Name, mig.Anywhere)
		switch {
		case possible != (err == nil):
			t.Fatalf("possible: %v, but %v, %v", possible, at, err)
		case err == nil && !legal(c, have, p, at.Start):
			t.Fatalf("%v cannot be made", at)
		case err != nil:
			names := blockers(err)
			rest := slices.DeleteFunc(slices.Clone(have), func(in mig.Instance) bool { return slices.Contains(names, strconv.Itoa(in.ID)) })
			if !slices.ContainsFunc(p.Starts, func(s int) bool { return legal(c, rest, p, s) }) {
				t.Fatalf("without %v there is no room either", names)
			}
		}
	})
}

// The table: what the driver's own listings say of how many fit.
func TestCards(t *testing.T) {
	for _, m := range cards.Models {
		for _, p := range m.Profiles {
			var want []mig.Placement
			for range p.Max {
				want = append(want, mig.Placement{Profile: p.Name, Start: mig.Anywhere})
			}
			if _, err := m.Layout(nil, want); err != nil {
				t.Errorf("%s: %d of %s: %v", m.Name, p.Max, p.Name, err)
			}
			if _, err := m.Layout(nil, append(want, want[0])); gpu.CodeOf(err) != gpu.CodeNoCapacity {
				t.Errorf("%s: %d of %s: %v", m.Name, p.Max+1, p.Name, err)
			}
			if m.MemoryMiB[p.Name] == 0 {
				t.Errorf("%s: no memory for %s", m.Name, p.Name)
			}
		}
	}
}
