package host

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
)

// cardPieces are the kinds of vGPU of a simulated card whose vGPUs may differ in size.
func cardPieces(t *testing.T, c sim.Card) []piece {
	t.Helper()
	h, err := sim.Open(t.TempDir(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if out, err := h.RunTool(t.Context(), "sriov-manage", "-e", c.Name); err != nil {
		t.Fatal(out, err)
	}
	if err := h.Mix(c.Name, true); err != nil {
		t.Fatal(err)
	}
	all, err := mig.NewBackend(h.NVML, h.Sysfs, mig.Options{}).Placements(t.Context(), gpu.ID(c.Name))
	if err != nil {
		t.Fatal(err)
	}
	var out []piece
	for _, p := range all {
		q := piece{p.Size, p.Starts}
		if !slices.ContainsFunc(out, q.like) {
			out = append(out, q)
		}
	}
	return out
}

// driven places pieces in an order as NVIDIA's driver does: each at the first of its starts
// that is free.
func driven(pieces []piece, order []int) bool {
	var taken slots
	for _, i := range order {
		p := pieces[i]
		at := slices.IndexFunc(p.starts, func(at int) bool { return taken.free(at, p.size) })
		if at < 0 {
			return false
		}
		taken = taken.with(p.starts[at], p.size)
	}
	return true
}

// permuted tries every order.
func permuted(pieces []piece, order []int) bool {
	if len(order) == len(pieces) {
		return driven(pieces, order)
	}
	for i := range pieces {
		if !slices.Contains(order, i) && permuted(pieces, append(slices.Clone(order), i)) {
			return true
		}
	}
	return false
}

func TestMakingOrderIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pieces := drawPieces(t, 5)
		order, ok := makingOrder(pieces)
		if want := permuted(pieces, nil); ok != want || ok && !driven(pieces, order) {
			t.Fatalf("makingOrder(%+v) is %v, %t, want %t", pieces, order, ok, want)
		}
		if all := slices.Sorted(slices.Values(order)); len(all) != len(pieces) || len(all) > 0 && all[len(all)-1] != len(all)-1 {
			t.Fatalf("%v is no order of %d", order, len(pieces))
		}
		if ok && !packs(pieces) {
			t.Fatalf("%+v have an order and do not pack", pieces)
		}
	})
}

// On NVIDIA's cards the largest first is nearly always enough: what packs is placed.
func TestMakingOrderOnCards(t *testing.T) {
	const at = "0000:41:00.0"
	for name, c := range map[string]sim.Card{
		"A2": sim.A2(at, 0).WithVGPU(false), "A40": sim.A40(at, 0).WithVGPU(false), "L40S": sim.L40S(at, 0).WithVGPU(false),
		"H100": sim.H100(at, 0).WithVGPU(false), "RTX PRO 6000": sim.RTXPro6000(at, 0).WithVGPU(false),
	} {
		kinds := cardPieces(t, c)
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				pieces := rapid.SliceOfN(rapid.SampledFrom(kinds), 0, 12).Draw(t, "pieces")
				if order, ok := makingOrder(pieces); ok != driven(pieces, order) || ok && !packs(pieces) {
					t.Fatalf("%+v: %v, %t", pieces, order, ok)
				}
			})
		})
	}
	// Two of 4 GB before two of 3 GB would leave no place for the second of 3 GB.
	kinds := cardPieces(t, sim.RTXPro6000(at, 0).WithVGPU(false))
	var pieces []piece
	for _, size := range []int{48, 32, 4, 4, 3, 3} {
		pieces = append(pieces, kinds[slices.IndexFunc(kinds, func(p piece) bool { return p.size == size })])
	}
	order, ok := makingOrder(pieces)
	if largest := []int{0, 1, 2, 3, 4, 5}; !packs(pieces) || driven(pieces, largest) || !ok || !driven(pieces, order) {
		t.Errorf("%v, %t", order, ok)
	}
}
