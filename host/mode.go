package host

import (
	"context"
	"errors"
	"slices"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

const stepMode = "mig.mode"

// modeArgs are the arguments of mig.mode.
type modeArgs struct {
	GPU      gpu.ID       `json:"gpu"`
	Identity gpu.Identity `json:"identity"`
	On       bool         `json:"on"`
	Was      bool         `json:"was"` // in force before
	// WithoutVFs says that virtual functions go before, and come back in a step of their own.
	WithoutVFs bool `json:"without_vfs,omitempty"`
	// Before is what was asked of the GPU, where that changes with the mode: it comes back with
	// it, as a boot before an undo has ended goes by it.
	Before *gpu.GPURecord `json:"before,omitempty"`
}

func (h *Host) doMode(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a modeArgs
	if err := t.Args(&a); err != nil {
		return nil, err
	}
	err := h.setMode(ctx, a, a.On)
	switch gpu.CodeOf(err) { //nolint:exhaustive // the others are as they are
	case gpu.CodeUnavailable:
		if t.Resumed() {
			err = h.patient(t, err) // a GPU that is not there just after boot is not gone
		}
	case gpu.CodeNeedsReset, gpu.CodeNeedsReboot:
		return nil, waitForReset(err) // what follows goes on when it is in force
	}
	return nil, unclean(err)
}

// waitForReset has a person act on a mode that the driver has stored and that is not in
// force.
func waitForReset(err error) error {
	reason := err.Error()
	if e, ok := errors.AsType[*gpu.Error](err); ok && e.Hint != "" {
		reason += "; " + e.Hint
	}
	return &operation.WaitError{Reason: reason + ", then retry this operation"}
}

// undoMode puts the mode back that was in force: a step that has only taken back what
// waited for a reset leaves nothing to do. What was made meanwhile has been removed before.
func (h *Host) undoMode(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var a modeArgs
	if err := t.Args(&a); err != nil {
		return nil, err
	}
	err := h.patient(t, h.setMode(ctx, a, a.Was))
	switch gpu.CodeOf(err) { //nolint:exhaustive // the others are as they are
	case gpu.CodeNeedsReset, gpu.CodeNeedsReboot:
		return nil, waitForReset(err)
	case gpu.CodeGPUBusy:
		if _, again := errors.AsType[*operation.RetryError](err); !again {
			// What is on it is not ours: ours has been removed. Whoever made it needs the mode.
			h.cfg.Log.WarnContext(ctx, "the mode of MIG stays, as somebody uses the gpu", "gpu", a.GPU, "err", err)
			return nil, nil
		}
	}
	if err != nil || a.Before == nil {
		return nil, err
	}
	return []operation.Row{operation.Put(gpu.RecordGPU, string(a.GPU), *a.Before)}, nil
}

func (h *Host) setMode(ctx context.Context, a modeArgs, on bool) error {
	c, l, err := h.cutter(ctx, a.GPU)
	if err != nil {
		return err
	}
	if !sameCard(a.Identity, l.GPU.Identity) {
		return gpu.Errorf(gpu.CodeDrift, "another card (%s) is where %s was when its layout was asked for", describe(l.GPU.Identity), describe(a.Identity))
	}
	if a.WithoutVFs && l.GPU.SRIOV.NumVFs > 0 && l.GPU.MIG.Current != on { // a boot has turned them on meanwhile
		if err := h.setVFs(ctx, vfsArgs{GPU: a.GPU, Identity: a.Identity}, 0); err != nil {
			return err
		}
	}
	err = c.SetMode(context.WithoutCancel(ctx), a.GPU, on)
	if gpu.CodeOf(err) == gpu.CodeGPUBusy {
		return h.withGPUHolders(ctx, a.GPU, err)
	}
	return err
}

// withGPUHolders adds to a refusal which processes have a GPU open: the driver knows only
// those that compute or draw, and refuses because of the others as well (T32).
func (h *Host) withGPUHolders(ctx context.Context, id gpu.ID, refusal error) error {
	holders, err := h.cfg.Inventory.GPUHolders(ctx, id)
	if err != nil {
		return errors.Join(refusal, err)
	}
	e, ok := errors.AsType[*gpu.Error](refusal)
	if !ok {
		return refusal
	}
	for _, hd := range holders {
		i := slices.IndexFunc(e.Blockers, func(b gpu.Blocker) bool { return b.Kind == hd.Kind && b.ID == hd.ID })
		if i < 0 {
			e = e.WithBlockers(gpu.Blocker{Kind: hd.Kind, ID: hd.ID, Name: hd.Name})
		} else if e.Blockers[i].Name == "" {
			e.Blockers[i].Name = hd.Name
		}
	}
	return refusal
}
