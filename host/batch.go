package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/inventory"
	"gpuvirt/operation"
)

const kindApply = "assignment.apply"

// A claim is what a wish will have taken when its operation is done.
type claim struct {
	assignment gpu.AssignmentRecord
	placed
	profile gpu.Profile
}

// A batch is what the wishes take that are planned already, of those that are carried out
// together. The kernel knows nothing of it yet, so whoever plans the next has to. A nil
// batch is that of a wish that stands alone.
type batch struct {
	claims []claim
	seen   map[gpu.ID]inventory.Look // each GPU is looked at once for all of them
	mixed  map[gpu.ID]*mixedCard     // those of them whose vGPUs may differ in size
}

func (b *batch) list() []claim {
	if b == nil {
		return nil
	}
	return b.claims
}

// offerFor is offer, once for each GPU of a batch.
func (h *Host) offerFor(ctx context.Context, id gpu.ID, b *batch) (inventory.Look, error) {
	if b == nil {
		return h.offer(ctx, id)
	}
	if l, ok := b.seen[id]; ok {
		return l, nil
	}
	busy := h.held([]string{"gpu/" + string(id)})
	l, err := h.offer(ctx, id)
	if err == nil && busy == nil { // else the next wish looks for itself
		h.see(ctx, l, b)
	}
	return l, err
}

// see has a batch know a GPU as it was looked at.
func (h *Host) see(ctx context.Context, l inventory.Look, b *batch) {
	if b == nil {
		return
	}
	if _, ok := b.seen[l.GPU.ID]; ok {
		return
	}
	b.seen[l.GPU.ID] = l
	if m := mixed(ctx, h.cfg.Inventory, l); m != nil {
		b.mixed[l.GPU.ID] = m
	}
}

func (b *batch) handles() (out []gpu.Handle) {
	for _, c := range b.list() {
		out = append(out, c.part.Handle)
	}
	return out
}

// reduce takes from what GPUs offer what the batch will have taken.
func (b *batch) reduce(offers []inventory.Look) []inventory.Look {
	if len(b.list()) == 0 {
		return offers
	}
	offers = slices.Clone(offers)
	for i := range offers {
		offers[i].Profiles = slices.Clone(offers[i].Profiles)
		m := b.mixed[offers[i].GPU.ID]
		for _, c := range b.list() {
			if c.part.GPU != offers[i].GPU.ID {
				continue
			}
			for j, p := range offers[i].Profiles {
				if m != nil && sharesByTime(p) && isVGPU(c.part.Kind) {
					continue // reckoned below, for all of them at once
				}
				if p.On != "" && p.On == c.profile.On {
					offers[i].Profiles[j] = c.onInstances(p)
					continue
				}
				n := max(0, left(offers[i].GPU, p, c.profile))
				offers[i].Profiles[j].Available, offers[i].Profiles[j].Ahead = n, min(p.Ahead, n)
			}
		}
		if _, planned := b.vgpus(offers[i].GPU.ID); m != nil && len(planned) > 0 {
			offers[i].Profiles = m.reduce(offers[i].Profiles, planned)
		}
	}
	return offers
}

// vgpus lists the vGPUs of a batch on a GPU, by their indices and by what they are.
func (b *batch) vgpus(id gpu.ID) (at []int, of []gpu.Profile) {
	for i, c := range b.list() {
		if c.part.GPU == id && isVGPU(c.part.Kind) {
			at, of = append(at, i), append(of, gpu.Profile{NativeID: c.part.Native, MemoryBytes: c.profile.MemoryBytes})
		}
	}
	return at, of
}

// making is the order in which what is claimed is made, as indices: of vGPUs of different
// sizes on one GPU each has to find its place.
func (b *batch) making() []int {
	order := make([]int, len(b.claims))
	for i := range order {
		order[i] = i
	}
	for id, m := range b.mixed {
		at, profiles := b.vgpus(id)
		for k, j := range m.order(profiles) {
			order[at[k]] = at[j]
		}
	}
	return order
}

// onInstances is what a profile has left on instances beside a claim on one of the same kind:
// a seat is taken, and from another size, as far as can be told, a whole instance.
func (c claim) onInstances(p gpu.Profile) gpu.Profile {
	alike := p.MemoryBytes == c.profile.MemoryBytes
	now, take := p.Available-p.Ahead, perInstance(p)
	if alike {
		take = 1
	}
	switch {
	case p.Name == c.profile.Name && p.MaxInstances == 0: // how many fit is not known: one is only what is certain
	case c.placed.ahead && c.base == nil && !alike: // it is on an instance that another has begun
	case c.placed.ahead:
		p.Ahead = max(0, p.Ahead-take)
	default:
		now = max(0, now-take)
	}
	p.Available = now + p.Ahead
	return p
}

// left is how many of a profile a GPU can make after one of another. The driver decides
// when it is done; a plan that it refuses is undone.
func left(g gpu.GPU, p, taken gpu.Profile) int {
	switch {
	case p.Available < 1, p.Kind == gpu.KindCard, taken.Kind == gpu.KindCard:
		return 0
	case p.Name == taken.Name && p.Kind == gpu.KindVGPU && p.MaxInstances == 0:
		return p.Available // how many fit is not known: one is only what is certain
	case p.Name == taken.Name:
		return p.Available - 1
	case p.On != "":
		return p.Available // where its instance goes is planned beside those before it
	case p.MemoryBytes == 0, taken.MemoryBytes == 0, p.Kind != taken.Kind:
		return p.Available
	case g.Vendor == "NVIDIA" && isVGPU(p.Kind) && p.MemoryBytes != taken.MemoryBytes:
		return 0 // vGPUs of one card have one size
	}
	room := uint64(p.Available) * p.MemoryBytes //nolint:gosec // positive, see above
	if room < taken.MemoryBytes {
		return 0
	}
	return int((room - taken.MemoryBytes) / p.MemoryBytes) //nolint:gosec // at most p.Available
}

// applyPlan is a batch of wishes as planned.
type applyPlan struct {
	op      operation.Plan
	running *operation.Operation // what is carrying all of them out
}

// planApply plans wishes one after the other, each beside those before it: the first that
// is impossible makes all of them so.
func (h *Host) planApply(ctx context.Context, wishes []gpu.NamedWish) (applyPlan, error) {
	var out applyPlan
	planned := &batch{seen: map[gpu.ID]inventory.Look{}, mixed: map[gpu.ID]*mixedCard{}}
	var plans []operation.Plan
	for _, w := range wishes {
		p, err := h.planAttach(ctx, w.Name, w.Wish, planned)
		if err != nil {
			return applyPlan{}, named(err, w.Name)
		}
		switch {
		case p.running != nil && out.running != nil && p.running.ID != out.running.ID, p.running != nil && len(plans) > 0:
			return applyPlan{}, &operation.ConflictError{Key: "assignment/" + w.Name, Holder: p.running.ID, Summary: p.running.Summary}
		case p.running != nil:
			out.running = p.running
		case p.stored == nil:
			plans = append(plans, p.op)
			planned.claims = append(planned.claims, p.next)
		}
	}
	if out.running != nil && len(plans) > 0 {
		return applyPlan{}, &operation.ConflictError{Key: out.running.Keys[0], Holder: out.running.ID, Summary: out.running.Summary}
	}
	out.op = joinPlans(plans, planned.making())
	return out, nil
}

// named says which of several assignments a refusal is of. What an operation holds is
// told as that.
func named(err error, name string) error {
	if _, held := errors.AsType[*operation.ConflictError](err); held {
		return err
	}
	return gpu.Wrap(err, gpu.CodeInternal, "cannot carry out assignment %q", name)
}

// joinPlans makes one operation of several. All devices are made before the first VM is
// touched, in the given order, and what is given up goes last: it cannot come back.
func joinPlans(plans []operation.Plan, making []int) operation.Plan {
	out := operation.Plan{Kind: kindApply, Summary: fmt.Sprintf("carry out %d assignments", len(plans))}
	if len(plans) == 1 {
		out.Summary = plans[0].Summary
	}
	for _, p := range plans {
		out.Keys = append(out.Keys, p.Keys...)
		out.Rows = append(out.Rows, p.Rows...)
		out.Release = append(p.Release, out.Release...) //nolint:gocritic // newest first
	}
	steps := func(p operation.Plan, kind string) {
		for _, s := range p.Steps {
			if s.Kind == kind {
				out.Steps = append(out.Steps, s)
			}
		}
	}
	for _, i := range making {
		steps(plans[i], stepMake)
	}
	for _, kind := range []string{stepDetach, stepAttach, stepRemove} {
		for _, p := range plans {
			steps(p, kind)
		}
	}
	slices.Sort(out.Keys)
	out.Keys = slices.Compact(out.Keys)
	return out
}

// ApplyAssignments starts carrying out several wishes in one operation: all of them or
// none. Where all are stored and carried out it writes nothing and returns no operation.
// The same Idempotency-Key with the same request answers the operation it started before.
func (h *Host) ApplyAssignments(ctx context.Context, actor string, wishes []gpu.NamedWish, idem gpu.Idempotency) ([]gpu.Assignment, *operation.Operation, error) {
	h.planning.Lock()
	defer h.planning.Unlock()
	before, err := h.before(idem, "apply assignments")
	if before != nil || err != nil {
		return nil, before, err
	}
	p, err := h.planApply(ctx, wishes)
	if err != nil {
		return nil, nil, err
	}
	if len(p.op.Steps) == 0 {
		var out []gpu.Assignment
		for _, w := range wishes {
			a, err := h.Assignment(ctx, w.Name)
			if err != nil {
				return nil, nil, err
			}
			out = append(out, a)
		}
		return out, p.running, nil
	}
	p.op.Actor = actor
	h.remember(&p.op, idem)
	op, err := h.add(ctx, p.op)
	if err != nil {
		return nil, nil, err
	}
	return nil, &op, nil
}

// PlanApplyAssignments is the dry run of ApplyAssignments.
func (h *Host) PlanApplyAssignments(ctx context.Context, wishes []gpu.NamedWish) (gpu.Plan, error) {
	p, err := h.planApply(ctx, wishes)
	if err == nil && len(p.op.Steps) == 0 {
		names := make([]string, len(wishes))
		for i, w := range wishes {
			names[i] = w.Name
		}
		return gpu.Plan{Summary: "all is as asked: " + strings.Join(names, ", "), Steps: []gpu.PlanStep{}}, nil
	}
	return h.plan(p.op, err)
}
