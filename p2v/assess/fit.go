package assess

import (
	"cmp"
	"fmt"
	"slices"

	"gpuvirt/gpu"
)

// A Fitting is what this host has for one need: all that it could make, those that are
// enough first, in the order of choice, and then those that are not, each with the reason.
type Fitting struct {
	Need       Need        `json:"need"`
	Candidates []Candidate `json:"candidates"`
	Choice     *Choice     `json:"choice,omitempty"` // nil: nothing fits, or nothing is needed
}

// A Candidate is a profile of one of this host's GPUs, judged for a need.
type Candidate struct {
	GPU      gpu.ID   `json:"gpu"`
	Model    string   `json:"model"`
	Profile  string   `json:"profile"`
	Kind     gpu.Kind `json:"kind"`
	Sharing  string   `json:"sharing"` // card, mig-backed, time-sliced, function, instance
	Fits     bool     `json:"fits"`
	Reasons  []string `json:"reasons"`  // why it is enough, or why it is not
	Cautions []string `json:"cautions"` // what to know of one that is enough
	// Available is how many more fit now, beside those that this plan takes.
	Available int `json:"available"`
	// MemoryBytes is what a workload has of it; 0: not known.
	MemoryBytes uint64 `json:"memory_bytes"`
	// SMs is how many multiprocessors it has at worst; 0: not known.
	SMs int `json:"sms"`
	// Params are those of a vGPU that the workload needs, "enable_uvm=1"; empty: none.
	Params string `json:"vgpu_params,omitempty"`

	vgpuSeries string // empty: it is no vGPU of NVIDIA
	series     string // as it is ordered by: empty comes first
	rank       int
}

// A Choice is the candidate that a plan takes.
type Choice struct {
	Candidate
	// Reasoning is a paragraph that a person can argue with.
	Reasoning string `json:"reasoning"`
	// Waived is set where it does not fit, and somebody has said that this does not count.
	Waived bool `json:"waived,omitempty"`
}

// Fit finds partitions of this host for needs. What one need takes, another cannot have;
// where it is not known whether two profiles fit on one GPU together, they do not. All
// partitions are for one VM. What was reserved for it is what it gets, without being weighed once
// more.
func Fit(needs []Need, host HostState, w Wish, p Policy) []Fitting {
	f := fitter{host: sortedHost(host.known(w.Reserved)), wish: w, policy: p.WithDefaults(), taken: map[gpu.ID]taken{}, left: slices.Clone(w.Reserved)}
	all := w.wanted(needs)
	order := make([]int, len(all))
	for i, n := range all {
		order[i] = i
		if n.Required {
			f.partitions++
		}
	}
	if w.Reserved != nil {
		return f.settled(all)
	}
	slices.SortStableFunc(order, func(a, b int) int { // the largest first: they have the least choice
		return cmp.Or(less(all[b].WholeGPU, all[a].WholeGPU), cmp.Compare(all[b].MemoryBytes, all[a].MemoryBytes))
	})
	out := make([]Fitting, len(all))
	for _, i := range order {
		out[i] = f.fit(all[i])
	}
	return out
}

// less orders what is not before what is.
func less(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

func sortedHost(h HostState) HostState {
	h.GPUs = slices.Clone(h.GPUs)
	for i := range h.GPUs {
		h.GPUs[i].Profiles = slices.Clone(h.GPUs[i].Profiles)
		slices.SortStableFunc(h.GPUs[i].Profiles, func(a, b gpu.Profile) int {
			return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.On, b.On), cmp.Compare(a.NativeID, b.NativeID), all(a, b))
		})
	}
	slices.SortStableFunc(h.GPUs, func(a, b HostGPU) int { return cmp.Or(cmp.Compare(a.GPU.ID, b.GPU.ID), all(a, b)) })
	return h
}

// all orders what is the same by all that it has: no answer depends on the order of a list.
func all(a, b any) int { return cmp.Compare(fmt.Sprintf("%+v", a), fmt.Sprintf("%+v", b)) }

// A fitter gives out what a host has.
type fitter struct {
	host       HostState
	wish       Wish
	policy     Policy
	partitions int // that the VM gets
	taken      map[gpu.ID]taken
	left       []Reserved // that no need has yet
}

// taken is what the plan has of a GPU already.
type taken struct {
	profile string
	n       int
}

// candidates are all that this host has, judged for a need, those that are better first.
func (f *fitter) candidates(n wanted) []Candidate {
	out := []Candidate{}
	for _, g := range f.host.GPUs {
		for _, p := range g.Profiles {
			out = append(out, f.judge(n, g, p))
		}
	}
	slices.SortStableFunc(out, func(a, b Candidate) int { return f.better(a, b) })
	return out
}

// settled gives each need what was reserved for it. Of what an earlier version has reserved it is
// not known for which: it was in the order of the needs.
func (f *fitter) settled(all []wanted) []Fitting {
	out := make([]Fitting, len(all))
	give := func(is func(wanted, Reserved) bool) {
		for i, n := range all {
			at := slices.IndexFunc(f.left, func(r Reserved) bool { return is(n, r) })
			if n.Required && out[i].Choice == nil && at >= 0 {
				out[i].Choice = f.reserved(out[i].Candidates, f.left[at])
				f.left = slices.Delete(f.left, at, at+1)
			}
		}
	}
	for i, n := range all {
		out[i] = Fitting{Need: n.Need, Candidates: []Candidate{}}
		if n.Required {
			out[i].Candidates = f.candidates(n)
		}
	}
	give(func(n wanted, r Reserved) bool { return r.Source == n.Source.PCI })
	give(func(_ wanted, r Reserved) bool { return r.Source == "" })
	return out
}

// reserved is what was chosen before; nil: that is not known, as the host tells of no such profile now.
func (f *fitter) reserved(list []Candidate, r Reserved) *Choice {
	i := slices.IndexFunc(list, func(c Candidate) bool { return c.GPU == r.GPU && c.Profile == r.Profile })
	c := Candidate{
		GPU: r.GPU, Profile: r.Profile, Kind: r.Kind, Sharing: r.Sharing, vgpuSeries: r.Series,
		Fits: true, Reasons: []string{"it is what was chosen; this host does not tell of it now"}, Cautions: []string{},
	}
	switch {
	case i >= 0:
		c = list[i]
	case r.Sharing == "":
		return nil
	}
	c.Model, c.Params = cmp.Or(c.Model, r.Model), r.Params
	_, waived := f.wish.waiver(noPartition)
	return &Choice{Candidate: c, Waived: waived && !c.Fits, Reasoning: fmt.Sprintf("%s of GPU %s is reserved for the VM.", c.Profile, c.GPU)}
}

func (f *fitter) fit(n wanted) Fitting {
	out := Fitting{Need: n.Need, Candidates: []Candidate{}}
	if !n.Required {
		return out
	}
	out.Candidates = f.candidates(n)
	if i, waived := f.pick(n, out.Candidates); i >= 0 {
		c := out.Candidates[i]
		t := f.taken[c.GPU]
		f.taken[c.GPU] = taken{c.Profile, t.n + 1}
		out.Choice = &Choice{Candidate: c, Waived: waived, Reasoning: reasoning(n, out.Candidates, c, waived)}
	}
	return out
}

// better orders candidates: those that fit first, in the order of choice.
func (f *fitter) better(a, b Candidate) int {
	return cmp.Or(
		less(!a.Fits, !b.Fits),
		cmp.Compare(a.rank, b.rank),
		cmp.Compare(a.series, b.series),
		cmp.Compare(a.MemoryBytes, b.MemoryBytes), // the smallest that fits
		cmp.Compare(a.SMs, b.SMs),
		cmp.Compare(b.Available, a.Available), // where the most is free
		cmp.Compare(a.GPU, b.GPU),
		cmp.Compare(a.Profile, b.Profile),
	)
}

// pick returns the index of the candidate that is taken; -1: none. One that is asked for by
// name and does not fit is taken where that was waived and it can be made at all.
func (f *fitter) pick(n wanted, list []Candidate) (index int, waived bool) {
	if len(list) > 0 && list[0].Fits {
		return 0, false
	}
	if _, ok := f.wish.waiver(noPartition); !ok || n.wish.Profile == "" {
		return -1, false
	}
	return slices.IndexFunc(list, func(c Candidate) bool {
		return c.Profile == n.wish.Profile && (n.wish.GPU == "" || string(c.GPU) == n.wish.GPU) && c.Available > 0
	}), true
}

// rank is the place of a way of sharing in the order of choice: a GPU instance has
// multiprocessors of its own and so comes before taking turns; a whole card is the most that
// can be given, and so comes after parts. A vGPU of all the card comes after the card, which
// gives as much without a licence and with the driver that is there.
func (f *fitter) rank(g HostGPU, p gpu.Profile) int {
	k := kindOf(p)
	if f.wish.Prefer == string(k) {
		return -1
	}
	if k == migBacked || k == timeSliced {
		if p.MaxInstances == 1 && (k == timeSliced || g.GPU.MemoryBytes > 0 && p.MemoryBytes >= g.GPU.MemoryBytes/10*9) {
			return 3
		}
	}
	return map[kind]int{migBacked: 0, timeSliced: 1, whole: 2, function: 4, instance: 5}[k]
}

// free is how many of a profile this plan can still take, and why not.
func (f *fitter) free(g HostGPU, p gpu.Profile) (n int, reason string) {
	if slices.ContainsFunc(f.wish.Reserved, func(r Reserved) bool { return r.GPU == g.GPU.ID && r.Profile == p.Name }) {
		return p.Available, g.unhealthy()
	}
	if p.NotCreatable != "" {
		return 0, "it cannot be made: " + p.NotCreatable
	}
	if why := g.unhealthy(); why != "" {
		return 0, why
	}
	t := f.taken[g.GPU.ID]
	switch {
	case p.Available <= 0:
		return 0, "none is free now"
	case t.n == 0:
		return p.Available, ""
	case t.profile != p.Name:
		return 0, fmt.Sprintf("another need takes %s of this GPU, and it is not known whether this fits beside it", t.profile)
	case p.Available <= t.n:
		return 0, "other needs take all that are free"
	default:
		return p.Available - t.n, ""
	}
}
