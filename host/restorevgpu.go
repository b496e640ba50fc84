package host

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
)

// schedulerPatience is how long a driver that is there may take to have the scheduler that
// was asked for. A vGPU that waits for it can do without.
const schedulerPatience = 10 * time.Second

// A sharing is how vGPUs are to share GPUs, as far as that is restored: errors by GPU, nil
// for what is as it should be.
type sharing struct {
	schedulers map[gpu.ID]error
	since      map[gpu.ID]time.Time // when a scheduler was first refused
}

// newSharing lists what is to be restored. On instances of MIG there is nothing.
func newSharing(gpus []gpu.GPURecord, records []gpu.PartitionRecord) *sharing {
	s := &sharing{schedulers: map[gpu.ID]error{}, since: map[gpu.ID]time.Time{}}
	for _, g := range gpus {
		if !g.Managed || wantsMIG(g, records) || givenAway(g.ID, records) {
			continue
		}
		if g.VGPU.Scheduler != nil {
			s.schedulers[g.ID] = errNotTried
		}
	}
	return s
}

// restore sets what is not as it should be, after the virtual functions and before the
// first vGPU, and reports whether a GPU is waited for.
func (s *sharing) restore(ctx context.Context, gpus []gpu.GPURecord, vfs map[gpu.ID]error, inv *inventory.Inventory, log *slog.Logger) bool {
	return restoreEach(gpus, s.schedulers,
		func(g gpu.GPURecord) (bool, error) {
			if err := vfs[g.ID]; err != nil {
				return false, fmt.Errorf("its virtual functions are not restored: %w", err)
			}
			changed, err := restoreSharing(ctx, g, gpu.VGPUWish{Scheduler: g.VGPU.Scheduler}, inv)
			return changed, s.impatient(g.ID, err)
		},
		func(g gpu.GPURecord, err error) { tellSharing(log, g, err, "scheduler of vGPUs") })
}

func tellSharing(log *slog.Logger, g gpu.GPURecord, err error, what string) {
	if err != nil {
		log.Error("cannot restore how vGPUs share the gpu", "gpu", g.ID, "setting", what, "err", err)
	} else {
		log.Info("how vGPUs share the gpu is restored", "gpu", g.ID, "setting", what)
	}
}

// impatient gives a scheduler up that vGPUs would wait for too long, and one that cannot
// be set any more because they are there.
func (s *sharing) impatient(id gpu.ID, err error) error {
	code := gpu.CodeOf(err)
	if err == nil || code == gpu.CodeNotFound || !comesLater(code) {
		return err
	}
	if s.since[id].IsZero() {
		s.since[id] = time.Now()
	}
	if code != gpu.CodeGPUBusy && time.Since(s.since[id]) < schedulerPatience {
		return err
	}
	return gpu.Errorf(gpu.CodeConflict, "given up: %w", err)
}

// restoreSharing sets what of a wish is not so.
func restoreSharing(ctx context.Context, r gpu.GPURecord, want gpu.VGPUWish, inv *inventory.Inventory) (changed bool, err error) {
	t, err := timeslicerOf(inv)
	if err != nil {
		return false, err
	}
	l, err := lookAgain(ctx, inv, r.ID, r.Identity)
	if err != nil {
		return false, err
	}
	is, err := t.Timeslicing(ctx, r.ID)
	if err != nil {
		return false, err
	}
	left := is.Changes(want)
	if is.MIG || len(left) == 0 {
		return false, nil // somebody else has turned MIG on, or it is so
	}
	if err := is.Check(l.GPU.SRIOV, want); err != nil {
		if gpu.CodeOf(err) == gpu.CodeNotFound { // the driver may not be ready
			err = gpu.Errorf(gpu.CodeUnavailable, "not yet: %w", err)
		}
		return false, err
	}
	for _, c := range left {
		if err := setVGPU(ctx, t, r.ID, c.Want); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}

// missing says what of how a GPU is to be shared a vGPU has to wait for, or go without.
func (s *sharing) missing(r gpu.PartitionRecord) error {
	if err := s.schedulers[r.GPU]; isVGPU(r.Kind) && err != nil && comesLater(gpu.CodeOf(err)) {
		return fmt.Errorf("the scheduler of its gpu is not restored: %w", err)
	}
	return nil // without its scheduler a GPU is Degraded, and of use
}

// errs are what could not be restored.
func (s *sharing) errs(id gpu.ID) (out []error) {
	if err := s.schedulers[id]; err != nil {
		out = append(out, fmt.Errorf("cannot restore the scheduler of vGPUs of gpu %s: %w", id, err))
	}
	return out
}
