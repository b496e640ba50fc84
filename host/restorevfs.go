package host

import (
	"context"
	"fmt"
	"log/slog"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
)

// restoreVFs turns on the virtual functions that were asked for where there are none,
// and reports whether a GPU is waited for.
func restoreVFs(ctx context.Context, gpus []gpu.GPURecord, modes, vfs map[gpu.ID]error, inv *inventory.Inventory, log *slog.Logger) bool {
	return restoreEach(gpus, vfs,
		func(g gpu.GPURecord) (bool, error) {
			if mode := modes[g.ID]; mode != nil {
				return false, fmt.Errorf("its MIG mode is not restored: %w", mode)
			}
			return restoreVFsOf(ctx, g, inv)
		},
		func(g gpu.GPURecord, err error) {
			switch {
			case modes[g.ID] != nil: // that has been told
			case err != nil:
				log.Error("cannot restore the virtual functions", "gpu", g.ID, "err", err)
			default:
				log.Info("virtual functions restored", "gpu", g.ID, "num", *g.VFs)
			}
		})
}

func restoreVFsOf(ctx context.Context, r gpu.GPURecord, inv *inventory.Inventory) (changed bool, err error) {
	v, err := virtualizerOf(inv)
	if err != nil {
		return false, err
	}
	l, err := lookAgain(ctx, inv, r.ID, r.Identity)
	switch {
	case err != nil:
		return false, err
	case l.GPU.SRIOV.TotalVFs == 0:
		return false, gpu.Errorf(gpu.CodeNotFound, "it has no SR-IOV, as far as can be told")
	}
	there, err := v.Functions(ctx, r.ID)
	switch {
	case err != nil:
		return false, err
	case len(there) == *r.VFs:
		return false, nil
	case len(there) > 0: // to change the number they would have to go, and they are not ours
		return false, gpu.Errorf(gpu.CodeConflict, "somebody else has turned on %d of them, not %d", len(there), *r.VFs)
	}
	on, err := inv.Partitions(ctx, l.GPU)
	if err != nil {
		return false, err
	}
	if len(on) > 0 {
		return false, gpu.Errorf(gpu.CodeConflict, "%d partitions are on it, which turning them on may take", len(on)).
			WithBlockers(gpu.Blocker{Kind: "partition", ID: on[0].ID, Name: on[0].Profile})
	}
	err = v.SetVFs(ctx, r.ID, *r.VFs)
	return err == nil, err
}
