package host

import (
	"testing"

	"gpuvirt/gpu"
)

// A serial number of another kind, as a newer kernel tells, makes no other card, also where
// VFIO has it and nobody tells its UUID; one of the same kind does then (T12).
func TestSameCard_T12(t *testing.T) {
	board := gpu.Identity{Model: "10de:26b9", UUID: "GPU-1", Serial: "1322923004711", Subsystem: "10de:1851"}
	for name, tc := range map[string]struct {
		now  func(*gpu.Identity)
		same bool
	}{
		"as it was":          {func(*gpu.Identity) {}, true},
		"the kernel's":       {func(i *gpu.Identity) { i.Serial = "8a-2b-01-ff-ff-2d-b0-48" }, true},
		"another uuid":       {func(i *gpu.Identity) { i.UUID = "GPU-2" }, false},
		"another model":      {func(i *gpu.Identity) { i.Model = "10de:2235" }, false},
		"another, no uuid":   {func(i *gpu.Identity) { i.UUID, i.Serial = "", "2" }, false},
		"on vfio, kernel's":  {func(i *gpu.Identity) { i.UUID, i.Serial = "", "8a-2b-01-ff-ff-2d-b0-48" }, true},
		"no uuid, no serial": {func(i *gpu.Identity) { i.UUID, i.Serial = "", "" }, true},
	} {
		now := board
		tc.now(&now)
		if got := sameCard(board, now); got != tc.same {
			t.Errorf("%s: %v", name, got)
		}
	}
}
