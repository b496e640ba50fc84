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

func find(profiles []gpu.Profile, name string) (gpu.Profile, bool) {
	for _, p := range profiles {
		if p.Name == name {
			return p, true
		}
	}
	return gpu.Profile{}, false
}

// place finds the GPU for a wish. Those that are not under management are read
// only to explain a refusal. One that an operation was changing while it was read
// is refused as busy: what was read may hold no more when the operation is over. vm is
// who is to have it, nil if nobody; batch is what is taken already.
func (h *Host) place(ctx context.Context, profile string, on gpu.ID, placement gpu.Placement, vm *taker, batch *batch, skip map[gpu.ID]bool) (gpu.GPU, gpu.Profile, error) {
	ids := []gpu.ID{on}
	if on == "" {
		records, err := h.cfg.Store.GPURecords()
		if err != nil {
			return gpu.GPU{}, gpu.Profile{}, err
		}
		ids = ids[:0]
		for _, r := range records {
			if r.Managed {
				ids = append(ids, r.ID)
			}
		}
	}
	var offers []inventory.Look
	busy := map[gpu.ID]error{}
	for _, id := range ids {
		if skip[id] {
			continue
		}
		busy[id] = h.held([]string{"gpu/" + string(id)})
		l, err := h.offerFor(ctx, id, batch)
		switch {
		case err == nil:
			offers = append(offers, l)
		case gpu.CodeOf(err) != gpu.CodeNotFound:
			return gpu.GPU{}, gpu.Profile{}, err
		}
	}
	offers, err := h.offersFor(ctx, vm, offers, batch)
	if err != nil {
		return gpu.GPU{}, gpu.Profile{}, err
	}
	nodes, err := near(ctx, vm, profile, offers)
	if err != nil {
		return gpu.GPU{}, gpu.Profile{}, err
	}
	g, p, err := pick(profile, on, placement, nodes, offers, vm != nil)
	if err == nil {
		return g, p, busy[g.ID]
	}
	if on != "" {
		return g, p, h.inTheWay(ctx, err, profile, on, offers)
	}
	all, err := h.offers(ctx)
	if err == nil {
		all, err = h.offersFor(ctx, vm, all, batch)
	}
	if err != nil {
		return gpu.GPU{}, gpu.Profile{}, err
	}
	return pick(profile, on, placement, nil, all, vm != nil)
}

// settle finds the GPU for a wish and the place on it. Where one that has room refuses
// for a reason that is not seen before, the next is tried; what the first said stands
// where none is left. asked is how to place it, where whoever wishes has said so: else each
// GPU may have a way of its own.
func (h *Host) settle(ctx context.Context, w gpu.Wish, asked gpu.Placement, assignment string, vm *taker, batch *batch) (gpu.GPU, gpu.Profile, placed, error) {
	var first error
	skip := map[gpu.ID]bool{}
	for {
		g, p, err := h.place(ctx, w.Profile, w.GPU, w.Placement, vm, batch, skip)
		if err != nil {
			return g, p, placed{}, cmp.Or(first, err)
		}
		if err := tunable(p, w.Params); err != nil {
			return g, p, placed{}, err
		}
		n, err := h.newRecord(ctx, g, p, assignment, cmp.Or(asked, g.Placement, w.Placement), batch)
		if err == nil {
			n.part.Params = w.Params
			return g, p, n, nil
		}
		if w.GPU != "" || skip[g.ID] || ctx.Err() != nil {
			return g, p, placed{}, cmp.Or(first, err)
		}
		skip[g.ID] = true
		if first == nil {
			first = err
		}
	}
}

// tunable refuses parameters for what is no vGPU of NVIDIA's: nobody else takes any.
func tunable(p gpu.Profile, params string) error {
	if params == "" || p.Kind == gpu.KindVGPU || p.Kind == gpu.KindMdev && strings.HasPrefix(p.NativeID, "nvidia-") {
		return nil
	}
	return gpu.Errorf(gpu.CodeInvalid, "cannot give parameters to %q: it is a %s, and only vGPUs of NVIDIA take vgpu_params", p.Name, p.Kind)
}

// inTheWay has the backend say why there is no room on the GPU that was named, where
// partitions are placed and it knows which are in the way; else the refusal is as it was.
func (h *Host) inTheWay(ctx context.Context, refusal error, profile string, on gpu.ID, offers []inventory.Look) error {
	if gpu.CodeOf(refusal) != gpu.CodeNoCapacity || len(offers) != 1 {
		return refusal
	}
	p, _ := find(offers[0].Profiles, profile)
	b, err := h.cfg.Inventory.Backend(p.Kind)
	if err != nil {
		return refusal
	}
	if placer, ok := b.(gpu.Placer); ok {
		if _, err := placer.Place(ctx, on, profile, nil); gpu.CodeOf(err) == gpu.CodeNoCapacity {
			return err
		}
	}
	return refusal
}

// closed says why nothing new may be placed on a GPU, empty if it may.
func closed(g gpu.GPU) (gpu.Code, string) {
	if !g.Managed {
		return gpu.CodeGPUUnmanaged, "it is not under management"
	}
	if g.Quarantined {
		return gpu.CodeGPUBusy, "it is in quarantine"
	}
	for _, c := range g.Conditions {
		if !c.Status {
			continue
		}
		switch c.Type {
		case gpu.Stuck:
			return gpu.CodeStuck, c.Message
		case gpu.Unknown:
			return gpu.CodeUnavailable, c.Message
		case gpu.Drifted:
			return gpu.CodeDrift, c.Message
		case gpu.Ready, gpu.Degraded, gpu.Quarantined:
		}
	}
	return "", ""
}

// pick chooses the GPU for a profile: of those that are open and have room, one on the
// NUMA nodes that are named, if there is one; of these the fullest to pack or the emptiest
// to spread; the first by ID among equals. It refuses with the reason of every GPU that
// could have been meant.
func pick(profile string, on gpu.ID, placement gpu.Placement, nodes []int, offers []inventory.Look, forVM bool) (gpu.GPU, gpu.Profile, error) {
	type candidate struct {
		gpu     gpu.GPU
		profile gpu.Profile
	}
	var fits []candidate
	var known []gpu.Blocker // GPUs that have the profile but cannot make it, and why
	var refused []gpu.Code
	refuse := func(code gpu.Code, id gpu.ID, why string) {
		refused = append(refused, code)
		known = append(known, gpu.Blocker{Kind: "gpu", ID: string(id), Note: why})
	}
	if on != "" && !slices.ContainsFunc(offers, func(o inventory.Look) bool { return o.GPU.ID == on }) {
		return gpu.GPU{}, gpu.Profile{}, gpu.Errorf(gpu.CodeNotFound, "cannot place %q: there is no gpu %q", profile, on)
	}
	for _, o := range offers {
		if on != "" && o.GPU.ID != on {
			continue
		}
		if o.Err != nil {
			refuse(gpu.CodeOf(o.Err), o.GPU.ID, o.Err.Error())
			continue
		}
		p, ok := find(o.Profiles, profile)
		if !ok {
			continue
		}
		if forVM && p.Kind == gpu.KindMIG {
			refuse(gpu.CodeInvalid, o.GPU.ID, "a MIG instance lives on the host and cannot be given to a vm by itself")
			continue
		}
		if code, why := closed(o.GPU); code != "" {
			refuse(code, o.GPU.ID, why)
			continue
		}
		if p.NotCreatable != "" {
			refuse(gpu.CodeProfileNotCreatable, o.GPU.ID, p.NotCreatable)
			continue
		}
		if p.Available < 1 {
			refuse(gpu.CodeNoCapacity, o.GPU.ID, noRoom(p))
			continue
		}
		fits = append(fits, candidate{o.GPU, p})
	}
	if len(fits) > 0 {
		best := slices.MinFunc(fits, func(a, b candidate) int {
			room := cmp.Compare(a.profile.Available, b.profile.Available)
			if placement == gpu.Spread {
				room = -room
			}
			return cmp.Or(byDistance(nodes, a.gpu, b.gpu), room, cmp.Compare(a.gpu.ID, b.gpu.ID))
		})
		return best.gpu, best.profile, nil
	}
	if len(known) == 0 {
		return gpu.GPU{}, gpu.Profile{}, unknownProfile(profile, on, offers)
	}
	err := gpu.Errorf(worst(refused), "cannot place %q: %s", profile, because(known)).WithBlockers(known...)
	switch err.Code { //nolint:exhaustive // only these have a remedy we know
	case gpu.CodeGPUUnmanaged:
		err.Hint = "put a gpu under management first: gpuvirt gpu manage " + known[0].ID
	case gpu.CodeNoCapacity:
		err.Hint = "see what fits: gpuvirt capacity"
	}
	return gpu.GPU{}, gpu.Profile{}, err
}

func because(known []gpu.Blocker) string {
	parts := make([]string, len(known))
	for i, b := range known {
		parts[i] = b.ID + ": " + b.Note
	}
	return strings.Join(parts, "; ")
}

// worst is the code of a refusal by several GPUs: the reason that the client is
// nearest to being able to mend. A full GPU says more than one not managed.
func worst(codes []gpu.Code) gpu.Code {
	for _, c := range []gpu.Code{
		gpu.CodeInvalid, gpu.CodeNoCapacity, gpu.CodeProfileNotCreatable, gpu.CodeGPUBusy, gpu.CodeDrift, gpu.CodeStuck,
		gpu.CodeUnavailable, gpu.CodeGPUUnmanaged,
	} {
		if slices.Contains(codes, c) {
			return c
		}
	}
	return codes[0]
}

func noRoom(p gpu.Profile) string {
	if p.Reserved > 0 {
		return fmt.Sprintf("definitions of VMs name the devices that are left (%d)", p.Reserved)
	}
	if p.MaxInstances > 0 {
		return fmt.Sprintf("no room for another (at most %d of this profile fit, fewer beside other partitions)", p.MaxInstances)
	}
	return "no room for another beside the partitions that are there"
}

func unknownProfile(profile string, on gpu.ID, offers []inventory.Look) error {
	var names []string
	for _, o := range offers {
		if on != "" && o.GPU.ID != on {
			continue
		}
		for _, p := range o.Profiles {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	where := "on this host"
	if on != "" {
		where = fmt.Sprintf("on gpu %q", on)
	}
	err := gpu.Errorf(gpu.CodeProfileUnknown, "cannot place %q: no such profile %s", profile, where)
	for _, n := range names {
		if strings.EqualFold(n, profile) {
			return err.WithHint("did you mean %q? names are compared exactly", n)
		}
	}
	for _, o := range offers {
		// What a card offers on its functions is not known before they are on.
		if g := o.GPU; (on == "" || on == g.ID) && g.SRIOV.TotalVFs > 0 && g.SRIOV.NumVFs == 0 {
			return err.WithHint("gpu %s has none of its %d virtual functions on, and may offer it on these: gpuvirt sriov set %s NUMBER", g.ID, g.SRIOV.TotalVFs, g.ID)
		}
	}
	if len(names) > 0 {
		err.Hint = "profiles here: " + strings.Join(names[:min(len(names), 24)], ", ")
	}
	return err
}

// capacity answers how many more of each profile (or of one) fit, GPU by GPU.
func capacity(profile string, offers []inventory.Look) []gpu.ProfileCapacity {
	byName := map[string]*gpu.ProfileCapacity{}
	var order []string
	for _, o := range offers {
		for _, p := range o.Profiles {
			if profile != "" && p.Name != profile {
				continue
			}
			c, ok := byName[p.Name]
			if !ok {
				c = &gpu.ProfileCapacity{Profile: p.Name, Kind: p.Kind}
				byName[p.Name] = c
				order = append(order, p.Name)
			}
			room := gpu.GPUCapacity{GPU: o.GPU.ID, Available: p.Available, Reasons: []string{}}
			if p.Available < 1 {
				room.Reasons = append(room.Reasons, noRoom(p))
			}
			if p.NotCreatable != "" {
				room.Available = 0
				room.Reasons = append(room.Reasons, p.NotCreatable)
			}
			if _, why := closed(o.GPU); why != "" {
				room.Available = 0
				room.Reasons = append(room.Reasons, why)
			}
			c.Available += room.Available
			c.GPUs = append(c.GPUs, room)
		}
	}
	slices.Sort(order)
	out := make([]gpu.ProfileCapacity, len(order))
	for i, name := range order {
		out[i] = *byName[name]
	}
	return out
}
