package operationtest

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"gpuvirt/operation"
)

// A Store is a store that is open.
type Store interface {
	operation.Store
	Close() error
}

// A Subject is a kind of store to walk.
type Subject struct {
	// Open opens the store of dir: an empty one at first, then what was there when
	// it was closed.
	Open func(dir string) (Store, error)
	// Row makes a row that the store accepts; the empty value deletes.
	Row func(key, value string) operation.Row
	// Rows returns what such rows have left in the store.
	Rows func(Store) (map[string]string, error)
	// Check looks for inconsistencies of the store's own; may be nil.
	Check func(Store) error
}

// Walk draws scenarios of several operations at a time, and kills, and plays them,
// in so many rounds of rapid's number of checks.
func Walk(t *testing.T, s Subject, rounds int) {
	t.Helper()
	var (
		base         = t.TempDir()
		runs, struck int
	)
	walk := func(t *rapid.T) {
		ops := rapid.SliceOfN(rapid.Custom(drawOp), 1, 4).Draw(t, "ops")
		for i := range ops {
			ops[i].ID = "op" + strconv.Itoa(i)
		}
		kills := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) kill {
			return kill{N: rapid.IntRange(1, 25).Draw(t, "n"), Took: rapid.Bool().Draw(t, "took")}
		}), 0, 5).Draw(t, "kills")
		runs++
		_, n, err := play(s, filepath.Join(base, strconv.Itoa(runs)), ops, kills)
		if err != nil {
			t.Fatalf("after %d kills: %v", n, err)
		}
		struck += n
	}
	for range rounds {
		rapid.Check(t, walk)
	}
	t.Logf("%d walks, %d kills", runs, struck)
}

// drawOp draws an operation without id. Its cells are of its own slots, each cell
// once: a step must be able to tell its own half-done work.
func drawOp(t *rapid.T) Op {
	o := Op{
		Slots:     rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"g0", "g1", "g2"}), 1, 2, rapid.ID[string]).Draw(t, "slots"),
		Forget:    rapid.IntRange(0, 3).Draw(t, "forget") == 0,
		AbortWait: rapid.Bool().Draw(t, "abortWait"),
	}
	few := rapid.SampledFrom([]int{0, 0, 0, 1, 2})
	for i := range rapid.IntRange(1, 4).Draw(t, "steps") {
		if rapid.IntRange(0, 5).Draw(t, "look") == 0 {
			o.Steps = append(o.Steps, Step{})
			continue
		}
		o.Steps = append(o.Steps, Step{
			Cell:       fmt.Sprintf("%s/%d", rapid.SampledFrom(o.Slots).Draw(t, "slot"), i),
			DoError:    rapid.IntRange(0, 4).Draw(t, "doError") == 0,
			UndoErrors: few.Draw(t, "undoErrors"),
			Retries:    few.Draw(t, "retries"),
			Waits:      few.Draw(t, "waits"),
			UndoWaits:  few.Draw(t, "undoWaits"),
			Abort:      rapid.SampledFrom([]string{"", "", "", "", "obey", "finish"}).Draw(t, "abort"),
		})
	}
	return o
}

// Exhaust plays an operation of three steps in every way it can go, with a kill at
// every event, before and after it took effect; where ways are given only in those.
// The ways that pairs names are played with every two kills, one after the other,
// too.
func Exhaust(t *testing.T, s Subject, ways, pairs []string) {
	t.Helper()
	var (
		base         = t.TempDir()
		runs, struck int
	)
	all := variants()
	if ways == nil {
		ways = slices.Sorted(maps.Keys(all))
	}
	for _, name := range ways {
		change, known := all[name]
		if !known {
			t.Fatalf("way %q is unknown", name)
		}
		o := Op{ID: "op0", Slots: []string{"g0", "g1"}, Steps: []Step{{Cell: "g0/0"}, {Cell: "g0/1"}, {Cell: "g1/0"}}}
		change(&o)
		depth := 1
		if slices.Contains(pairs, name) {
			depth = 2
		}
		var try func(kills []kill)
		try = func(kills []kill) {
			runs++
			events, n, err := play(s, filepath.Join(base, strconv.Itoa(runs)), []Op{o}, kills)
			if err != nil {
				t.Fatalf("%s with kills %+v: %v", name, kills, err)
			}
			if n != len(kills) {
				t.Fatalf("%s with kills %+v: only %d struck", name, kills, n)
			}
			struck += n
			if len(kills) == depth {
				return
			}
			for i := range events {
				try(append(kills[:len(kills):len(kills)], kill{N: i + 1}))
				try(append(kills[:len(kills):len(kills)], kill{N: i + 1, Took: true}))
			}
		}
		try(nil)
	}
	t.Logf("%d runs, %d kills", runs, struck)
}

// variants are the ways an operation of three steps can go.
func variants() map[string]func(*Op) {
	all := map[string]func(*Op){"success": func(*Op) {}}
	for i := range 3 {
		at := func(name string, change func(*Op, *Step)) {
			all[fmt.Sprintf("%s at step %d", name, i+1)] = func(o *Op) { change(o, &o.Steps[i]) }
		}
		at("do error", func(_ *Op, s *Step) { s.DoError = true })
		at("abort obeyed", func(_ *Op, s *Step) { s.Abort = "obey" })
		at("abort too late", func(_ *Op, s *Step) { s.Abort = "finish" })
		at("wait", func(_ *Op, s *Step) { s.Waits = 1 })
		at("wait aborted", func(o *Op, s *Step) { s.Waits, o.AbortWait = 1, true })
		at("retry", func(_ *Op, s *Step) { s.Retries = 1 })
		at("no undo", func(o *Op, s *Step) { s.Cell = ""; o.Steps[2].DoError = i < 2 })
		if i == 2 {
			continue // the step whose do fails is not undone
		}
		at("undo error", func(o *Op, s *Step) { s.UndoErrors = 1; o.Steps[2].DoError = true })
		at("undo error forgotten", func(o *Op, s *Step) { s.UndoErrors = 9; o.Steps[2].DoError, o.Forget = true, true })
		at("undo wait", func(o *Op, s *Step) { s.UndoWaits = 1; o.Steps[2].DoError = true })
	}
	return all
}
