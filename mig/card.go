package mig

import (
	"cmp"
	"slices"

	"gpuvirt/gpu"
)

// A Card is what a card can be cut into, as its driver states it.
type Card struct {
	Slices   int     // memory slices: the axis on which instances are placed; at most 64
	Engines  Engines // what all instances together may take
	Profiles []Profile
}

// A Profile is a size of GPU instance. Placements are on the memory axis; that
// the other resources suffice is counted, not placed.
type Profile struct {
	Name    string // "1g.10gb+me", as nvidia-smi prints it without "MIG "
	ID      int    // the number that "nvidia-smi mig -cgi" takes; other cards have other ones
	Size    int    // memory slices
	Starts  []int  // memory slices at which one may begin, ascending
	Max     int    // of this profile on one card
	Engines Engines
}

// Engines are the resources of a card besides its memory slices, in units of NVML.
type Engines struct {
	Compute  int // slices of multiprocessors
	Decoders int
	Encoders int
	JPEG     int
	OFA      int // optical flow
}

// add returns the sum.
func (e Engines) add(f Engines) Engines {
	return Engines{
		Compute: e.Compute + f.Compute, Decoders: e.Decoders + f.Decoders, Encoders: e.Encoders + f.Encoders,
		JPEG: e.JPEG + f.JPEG, OFA: e.OFA + f.OFA,
	}
}

// within reports whether no engine exceeds limit.
func (e Engines) within(limit Engines) bool {
	return e.Compute <= limit.Compute && e.Decoders <= limit.Decoders && e.Encoders <= limit.Encoders &&
		e.JPEG <= limit.JPEG && e.OFA <= limit.OFA
}

// An Instance is a GPU instance that is there.
type Instance struct {
	ID      int    // the driver's id on this card
	Profile string // may be one that Card does not list: it takes its place, and matches no wish
	Start   int    // first memory slice
	Size    int    // memory slices
	InUse   bool   // a VM, a process or another client has it: it is never removed
	// Compute is what compute instances it has, in any form that a wish has as well.
	Compute string
}

// A Placement is a GPU instance to be made.
type Placement struct {
	Profile string
	Start   int    // first memory slice
	Compute string // as of Instance: one that has others is none that is wanted
}

// span is the set of memory slices from start on.
func span(start, size int) uint64 {
	if start < 0 || size <= 0 || start+size > 64 {
		return 0
	}
	return (^uint64(0) >> (64 - size)) << start
}

// check refuses a description that no placement can be computed from.
func (c *Card) check() error {
	if c.Slices < 1 || c.Slices > 64 {
		return gpu.Errorf(gpu.CodeInvalid, "cannot plan on a card of %d memory slices: 1 to 64 are possible", c.Slices)
	}
	if len(c.Profiles) > maxProfiles {
		return gpu.Errorf(gpu.CodeInvalid, "cannot plan on a card with %d profiles: at most %d are supported", len(c.Profiles), maxProfiles)
	}
	names := map[string]bool{}
	for _, p := range c.Profiles {
		if names[p.Name] {
			return gpu.Errorf(gpu.CodeInvalid, "cannot plan: the card has two profiles %q", p.Name)
		}
		names[p.Name] = true
		if !slices.IsSorted(p.Starts) {
			return gpu.Errorf(gpu.CodeInvalid, "cannot plan: the places %v of profile %q do not ascend", p.Starts, p.Name)
		}
		for _, s := range p.Starts {
			if s < 0 || p.Size < 1 || s+p.Size > c.Slices {
				return gpu.Errorf(gpu.CodeInvalid, "cannot plan: profile %q at %d, size %d is not on a card of %d memory slices", p.Name, s, p.Size, c.Slices)
			}
		}
	}
	return nil
}

// find returns the index of a profile, or -1.
func (c *Card) find(name string) int {
	return slices.IndexFunc(c.Profiles, func(p Profile) bool { return p.Name == name })
}

// A board is what is taken on a card. It is a value: to try is to copy.
type board struct {
	card  *Card
	taken uint64 // memory slices
	used  Engines
	count [maxProfiles]uint8 // instances of each profile
}

// maxProfiles is more than NVML knows (18).
const maxProfiles = 32

// put takes the place of an instance that is there, legal or not.
func (b *board) put(in Instance) {
	b.taken |= span(in.Start, in.Size)
	if p := b.card.find(in.Profile); p >= 0 {
		b.charge(p)
	}
}

// charge counts one more of a profile.
func (b *board) charge(p int) {
	b.count[p]++
	b.used = b.used.add(b.card.Profiles[p].Engines)
}

// allows reports whether one more of a profile is within its number and the engines.
func (b *board) allows(p int) bool {
	pr := &b.card.Profiles[p]
	return int(b.count[p]) < pr.Max && b.used.add(pr.Engines).within(b.card.Engines)
}

// fits reports whether a profile's place at start is free.
func (b *board) fits(p, start int) bool {
	return b.taken&span(start, b.card.Profiles[p].Size) == 0
}

// with returns the board with one more instance.
func (b board) with(p, start int) board {
	b.taken |= span(start, b.card.Profiles[p].Size)
	b.charge(p)
	return b
}

// places counts where one more of a profile could go.
func (b *board) places(p int) (n int) {
	if !b.allows(p) {
		return 0
	}
	for _, s := range b.card.Profiles[p].Starts {
		if b.fits(p, s) {
			n++
		}
	}
	return n
}

// order lists the profiles from the largest to the smallest, by compute slices
// among those of one size.
func (c *Card) order() []int {
	idx := make([]int, len(c.Profiles))
	for i := range idx {
		idx[i] = i
	}
	slices.SortStableFunc(idx, func(a, b int) int {
		p, q := c.Profiles[a], c.Profiles[b]
		return cmp.Or(cmp.Compare(q.Size, p.Size), cmp.Compare(q.Engines.Compute, p.Engines.Compute))
	})
	return idx
}

// worth says how good a board is for what may be asked later, better if greater: how
// many places it still has in all, and of boards that have as many, the number for each
// profile, the largest first.
//
// Instances cannot be moved, so what counts is how many of the requests that may come
// would find room. A place of a large profile once broken stays broken until all that
// lies in it is gone, while a small one finds another place: that is why the large ones
// decide between equals. Places and not instances are counted, because of two boards
// that have room for one, the one with more places for it survives the next small
// instance. What else was tried is in ADR 27.
func (b *board) worth(order []int) []int {
	w := make([]int, 1, 1+len(order))
	for _, p := range order {
		n := b.places(p)
		w[0] += n
		w = append(w, n)
	}
	return w
}
