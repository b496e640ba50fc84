package host

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
)

// A taker is the VM that is to have a partition. What there is to know of it beyond its
// head is read where it is needed, and once.
type taker struct {
	gpu.VMHead

	inv  *inventory.Inventory
	read *gpu.VM
}

func (h *Host) taker(vm gpu.VMHead) *taker { return &taker{VMHead: vm, inv: h.cfg.Inventory} }

func (t *taker) vm(ctx context.Context) (gpu.VM, error) {
	if t.read == nil {
		vm, err := t.inv.VM(ctx, t.UUID)
		if err != nil {
			return gpu.VM{}, err
		}
		t.read = &vm
	}
	return *t.read, nil
}

// near lists the NUMA nodes that a GPU for a VM is best on: those that the VM's memory is
// bound to. Nobody is asked where all that offer the profile are on one node.
func near(ctx context.Context, t *taker, profile string, offers []inventory.Look) ([]int, error) {
	var nodes []int
	for _, o := range offers {
		if _, ok := find(o.Profiles, profile); ok && o.GPU.NUMANode >= 0 && !slices.Contains(nodes, o.GPU.NUMANode) {
			nodes = append(nodes, o.GPU.NUMANode)
		}
	}
	if t == nil || len(nodes) < 2 {
		return nil, nil
	}
	vm, err := t.vm(ctx)
	return vm.MemoryNodes, err
}

// farFrom says, for people, that a VM's memory is known to be elsewhere than a GPU.
func (t *taker) farFrom(g gpu.GPU) string {
	if t.read == nil || g.NUMANode < 0 || len(t.read.MemoryNodes) == 0 || slices.Contains(t.read.MemoryNodes, g.NUMANode) {
		return ""
	}
	return fmt.Sprintf(", whose memory is on NUMA node %s and not on the gpu's (%d)",
		strings.Trim(fmt.Sprint(t.read.MemoryNodes), "[]"), g.NUMANode)
}

// byDistance compares GPUs by where they are for a VM whose memory is on some nodes: there,
// nobody knows where, elsewhere.
func byDistance(nodes []int, a, b gpu.GPU) int {
	distance := func(g gpu.GPU) int {
		switch {
		case len(nodes) == 0 || slices.Contains(nodes, g.NUMANode):
			return 0
		case g.NUMANode < 0:
			return 1
		default:
			return 2
		}
	}
	return cmp.Compare(distance(a), distance(b))
}
