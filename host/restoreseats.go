package host

import (
	"context"
	"fmt"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
)

// openersFirst changes the order in which partitions are made again, as indices, where vGPUs
// share MIG instances. All instances are there by then, and which one a vGPU comes to stand on
// the driver chooses: it may be the emptiest, and an instance takes vGPUs of one size. So of
// each size as many come first as it needs instances, and then those that go beside them.
func openersFirst(ctx context.Context, order []int, done []Restored, inv *inventory.Inventory) []int {
	looks := map[gpu.ID][]gpu.Profile{}
	for _, d := range done {
		if d.Record.Kind == gpu.KindMIG {
			looks[d.Record.GPU] = nil
		}
	}
	for id := range looks {
		if l, err := inv.Look(ctx, id); err == nil {
			looks[id] = l.Profiles
		}
	}
	before := map[string]int{} // those of a size that come before, by GPU, instance and size
	var first, beside []int
	for _, i := range order {
		r := done[i].Record
		p, ok := findKind(looks[r.GPU], r)
		if !ok || p.On == "" {
			first = append(first, i)
			continue
		}
		size := fmt.Sprint(r.GPU, " ", p.On, " ", p.MemoryBytes)
		if before[size]%perInstance(p) == 0 {
			first = append(first, i)
		} else {
			beside = append(beside, i)
		}
		before[size]++
	}
	return append(first, beside...)
}
