package host

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
)

// A mixedCard is a GPU whose vGPUs may differ in size.
type mixedCard struct {
	places map[string]gpu.VGPUPlacements // by the number of the type; nil: the driver does not tell
	there  []piece                       // vGPUs that are on it, with all places that they could have
	free   int                           // virtual functions that have none; without SR-IOV nothing counts them
}

// typeNumber is a type's number, of whichever kind of vGPU.
func typeNumber(native string) string { return strings.TrimPrefix(native, "nvidia-") }

// sharesByTime reports whether a profile is of vGPUs that share the whole GPU.
func sharesByTime(p gpu.Profile) bool { return isVGPU(p.Kind) && p.On == "" }

// mixed says where vGPUs of different sizes can be on a GPU, nil where they may not differ,
// or that cannot be told.
func mixed(ctx context.Context, inv *inventory.Inventory, l inventory.Look) *mixedCard {
	if l.GPU.Vendor != "NVIDIA" || l.GPU.MIG.Current || !slices.ContainsFunc(l.Profiles, sharesByTime) {
		return nil
	}
	t, err := timeslicerOf(inv)
	if err != nil {
		return nil
	}
	s, err := t.Timeslicing(ctx, l.GPU.ID)
	if err != nil || s.MixedSize.Actual == nil || !*s.MixedSize.Actual {
		return nil
	}
	all, err := t.Placements(ctx, l.GPU.ID)
	if err != nil {
		return &mixedCard{} // the driver has the last word in any case
	}
	m := &mixedCard{places: map[string]gpu.VGPUPlacements{}, free: l.GPU.SRIOV.NumVFs}
	if l.GPU.SRIOV.TotalVFs == 0 {
		m.free = math.MaxInt
	}
	for _, p := range all {
		m.places[strconv.FormatUint(uint64(p.Type), 10)] = p
	}
	on, err := inv.Partitions(ctx, l.GPU)
	if err != nil {
		return m
	}
	for _, p := range on {
		if q, ok := m.places[typeNumber(p.Native)]; ok && isVGPU(p.Kind) {
			m.there = append(m.there, piece{q.Size, q.Starts})
		}
	}
	m.free = max(0, m.free-len(on)) // each is on a function of its own
	return m
}

// room is how many more of a type fit beside what is planned, at most limit. Some versions
// of the driver give a vGPU its place when it is made, others when its VM starts. So what
// is planned has to fit into what is free now, and together with all that is there.
func (m *mixedCard) room(p gpu.VGPUPlacements, planned []gpu.Profile, limit int) int {
	var now []piece
	whole := slices.Clone(m.there)
	for _, o := range planned {
		if q, ok := m.places[typeNumber(o.NativeID)]; ok {
			now, whole = append(now, piece{q.Size, q.Free}), append(whole, piece{q.Size, q.Starts})
		}
	}
	limit = moreOf(piece{p.Size, p.Free}, now, limit)
	return moreOf(piece{p.Size, p.Starts}, whole, limit)
}

// order is an order in which to make vGPUs, as indices, so that the driver finds a place
// for each: the largest first where it does not tell which there are.
func (m *mixedCard) order(profiles []gpu.Profile) []int {
	pieces := make([]piece, len(profiles))
	for i, p := range profiles {
		q, ok := m.places[typeNumber(p.NativeID)]
		if !ok {
			q.Size = int(p.MemoryBytes >> 30) //nolint:gosec // GB of a card
		}
		pieces[i] = piece{q.Size, q.Free}
	}
	order, _ := makingOrder(pieces)
	return order
}

// mixedRoom corrects how many more of each size fit on a GPU whose vGPUs are to differ in
// size: what the driver lists says only that one does.
func (h *Host) mixedRoom(ctx context.Context, l inventory.Look) inventory.Look {
	rec, err := h.gpuRecord(l.GPU)
	if err != nil || rec.VGPU.MixedSize == nil || !*rec.VGPU.MixedSize {
		return l
	}
	if m := mixed(ctx, h.cfg.Inventory, l); m != nil {
		l.Profiles = m.reduce(l.Profiles, nil)
	}
	return l
}

// reduce is what a GPU offers beside what is planned. Where the driver does not tell the
// places only that is taken off which can be on no card: more than the largest has.
func (m *mixedCard) reduce(profiles []gpu.Profile, planned []gpu.Profile) []gpu.Profile {
	profiles = slices.Clone(profiles)
	var card, sum uint64
	for _, p := range profiles {
		if sharesByTime(p) {
			card = max(card, p.MemoryBytes)
		}
	}
	for _, p := range planned {
		sum += p.MemoryBytes
	}
	known := map[string]int{} // by the places that a type has: series of one size share them
	for i, p := range profiles {
		if !sharesByTime(p) || p.Available < 1 {
			continue
		}
		q, ok := m.places[typeNumber(p.NativeID)]
		if !ok {
			if sum+p.MemoryBytes > card {
				profiles[i].Available = 0
			}
			continue
		}
		key := fmt.Sprint(q.Size, q.Starts, q.Free)
		if _, ok := known[key]; !ok {
			known[key] = m.room(q, planned, min(max(p.Available, p.MaxInstances), max(0, m.free-len(planned))))
		}
		profiles[i].Available = known[key]
	}
	return profiles
}
