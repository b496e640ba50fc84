package host

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

const (
	driftSettle = 2 * time.Second // changes come in bursts: look once after each
	driftEvery  = 5 * time.Minute // and now and then without one, as an event may be lost
)

// watchDrift compares what was asked with what is there: at start, after changes,
// and every few minutes.
func (h *Host) watchDrift(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	soon := true
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.dirty:
			if !soon { // a stream of changes must not put the look off for ever
				timer.Reset(driftSettle)
				soon = true
			}
		case <-timer.C:
			h.reportDrift(ctx)
			timer.Reset(driftEvery)
			soon = false
		}
	}
}

// reportDrift says once, when it begins, that what is differs from what was asked.
// It repairs layouts where the GPU's policy says so, and nothing else: a device is not
// put back into a running VM behind the back of whoever took it out.
func (h *Host) reportDrift(ctx context.Context) {
	now := map[string]string{}
	err := errors.Join(h.reportLayouts(ctx, now), h.reportVFs(ctx, now), h.reportVGPUs(ctx, now), h.reportAssignments(ctx, now))
	h.drift = now
	if err != nil {
		h.cfg.Log.Warn("cannot compare all that was asked for with the host", "err", err)
		return
	}
	counts := map[string]int{}
	for key := range now {
		counts[driftKind(key)]++
	}
	h.compared.Store(&gpu.Comparison{At: h.cfg.Now(), Drifted: counts})
}

// driftKind is what has drifted, by the key under which it is noted.
func driftKind(key string) string {
	rest, onGPU := strings.CutPrefix(key, "gpu/")
	switch {
	case !onGPU:
		return gpu.DriftAssignment
	case strings.HasSuffix(rest, "/sriov"):
		return gpu.DriftVFs
	case strings.HasSuffix(rest, "/vgpu"):
		return gpu.DriftVGPU
	}
	return gpu.DriftLayout
}

// Compared is what came of the last time that all that was asked for could be compared with
// what is; the zero value: it was not yet.
func (h *Host) Compared() gpu.Comparison {
	if c := h.compared.Load(); c != nil {
		return *c
	}
	return gpu.Comparison{}
}

// begins notes in what way something has drifted, and reports whether that is news.
func (h *Host) begins(now map[string]string, key, how string) bool {
	now[key] = how
	return h.drift[key] != how
}

// carry notes of what cannot be looked at that it is as it was.
func (h *Host) carry(now map[string]string, key string) {
	if was, ok := h.drift[key]; ok {
		now[key] = was
	}
}

// reportLayouts says which GPUs are cut otherwise than was asked. One that cannot be
// read, or is being cut, is left for the next time.
func (h *Host) reportLayouts(ctx context.Context, now map[string]string) error {
	records, err := h.cfg.Store.GPURecords()
	if err != nil {
		return err
	}
	made, err := h.cfg.Store.PartitionRecords()
	if err != nil {
		return err
	}
	for _, r := range records {
		key := "gpu/" + string(r.ID)
		if r.MIG == nil && !wantsMIG(r, made) || !r.Managed || h.held([]string{key}) != nil {
			continue
		}
		s, err := h.Layout(ctx, r.ID)
		if err != nil {
			h.carry(now, key)
			continue
		}
		if s.Equal || h.held([]string{key}) != nil {
			continue
		}
		message := fmt.Sprintf("asked for %s, but it is %s", s.Wanted, s.Actual)
		if r.Policy == gpu.PolicyRepair {
			message = h.repair(ctx, r.ID, *s.Wanted, message)
		}
		if h.begins(now, key, message) {
			h.cfg.Log.Warn("layout drifted", "gpu", r.ID, "message", message)
			h.hub.emit("gpu.drifted", string(r.ID), map[string]string{"reason": "Layout", "message": message})
		}
	}
	return nil
}

// reportVFs says which GPUs have another number of virtual functions than was asked.
// They are not put back, whatever the policy: something else turned them off, and it may
// be about to do it again.
func (h *Host) reportVFs(ctx context.Context, now map[string]string) error {
	records, err := h.cfg.Store.GPURecords()
	if err != nil {
		return err
	}
	for _, r := range records {
		held := func() bool { return h.held([]string{"gpu/" + string(r.ID)}) != nil }
		if r.VFs == nil || !r.Managed || held() {
			continue
		}
		key := "gpu/" + string(r.ID) + "/sriov"
		s, err := h.VFs(ctx, r.ID)
		if err != nil {
			h.carry(now, key)
			continue
		}
		if s.Equal || held() {
			continue
		}
		message := fmt.Sprintf("asked for %d virtual functions, but there are %d", *s.Wanted, len(s.Functions))
		if h.begins(now, key, message) {
			h.cfg.Log.Warn("virtual functions drifted", "gpu", r.ID, "message", message)
			h.hub.emit("gpu.drifted", string(r.ID), map[string]string{"reason": "VirtualFunctions", "message": message})
		}
	}
	return nil
}

// repairActor is who asks for a repair: nobody but us.
const repairActor = "gpuvirt"

// A repair is an operation that puts a layout back, because of what message says.
type repair struct {
	message, operation string
	at                 time.Time
}

// repair starts putting a layout back, and says what came of that. Whatever is in use,
// or foreign, makes it a refusal: then it is tried again the next time. An operation
// that has not helped is not begun again at each change that it makes itself.
func (h *Host) repair(ctx context.Context, id gpu.ID, wanted gpu.Layout, message string) string {
	back := func(id string) string { return message + "; it is put back by operation " + id }
	if was := h.repairs[id]; was.message == message && h.cfg.Now().Sub(was.at) < driftEvery {
		if op, err := h.cfg.Engine.Get(was.operation); err != nil || op.Status != operation.Done {
			return back(was.operation)
		}
	}
	_, op, err := h.PutLayout(ctx, repairActor, id, wanted)
	switch {
	case err != nil:
		return message + "; it cannot be put back: " + err.Error()
	case op != nil:
		h.repairs[id] = repair{message, op.ID, h.cfg.Now()}
		return back(op.ID)
	default:
		return message
	}
}

func (h *Host) reportAssignments(ctx context.Context, now map[string]string) error {
	as, err := h.Assignments(ctx)
	if err != nil {
		return err
	}
	for _, a := range as {
		for _, c := range a.Conditions {
			if c.Status && c.Type == gpu.Drifted {
				if h.begins(now, a.Name, c.Reason) {
					h.cfg.Log.Warn("assignment drifted", "assignment", a.Name, "reason", c.Reason, "message", c.Message)
					h.hub.emit("assignment.drifted", a.Name, map[string]string{"reason": c.Reason, "message": c.Message})
				}
			}
		}
	}
	return nil
}
