package assess

import (
	"slices"

	"gpuvirt/gpu"
)

// Wish is what a person asks of a plan. All of it may be left out.
type Wish struct {
	Partitions []WishPartition `json:"partitions"`
	// Prefer is a way of sharing that comes first among those that fit: card, mig-backed,
	// time-sliced.
	Prefer string `json:"prefer,omitempty"`
	// GuestDriver is the version of the vGPU guest driver that the operator has ready.
	GuestDriver string `json:"guest_driver,omitempty"`
	// LicenceToken tells that a licence token for the guest is ready.
	LicenceToken bool `json:"licence_token"`
	// MemoryBytes and Threads are the VM's; 0: as the source has.
	MemoryBytes uint64 `json:"memory_bytes"`
	Threads     int    `json:"threads"`
	// Disks are the names of those that are moved; none: all that are not removable.
	Disks []string `json:"disks"`
	// CopyRate is what the copy is known to reach, ChangeRate what the source was measured to
	// write to other places, both in bytes a second; 0: assumed.
	CopyRate   uint64 `json:"copy_bytes_per_second"`
	ChangeRate uint64 `json:"change_bytes_per_second"`
	// DowntimeSeconds is the budget; 0: none.
	DowntimeSeconds float64  `json:"downtime_seconds"`
	Waivers         []Waiver `json:"waivers"`

	// Keys are the encrypted volumes that a passphrase was given for, by what they lie on or the UUID
	// of their header, and Unconverted is set where the disks are taken as they are. Both are said
	// elsewhere.
	Keys        []string `json:"-"`
	Unconverted bool     `json:"-"`
	// Reserved are the partitions that the VM has been given: they are what is chosen, and are free
	// for it. Nil: nothing is chosen yet; empty: the VM gets none.
	Reserved []Reserved `json:"-"`
}

// Reserved is a partition that a plan has chosen before.
type Reserved struct {
	Source  string // the address of the source's GPU that it is for; empty: it is for none that was seen
	GPU     gpu.ID
	Model   string // of the GPU, which may not be seen while a VM has it; empty: not known
	Profile string
	Params  string
	// MemoryBytes is what a workload has of it; 0: not known, or not written down.
	MemoryBytes uint64
	// Kind, Sharing and Series are as the candidate had them; empty Sharing: they were not written down, and
	// are those that this host knows of now.
	Kind            gpu.Kind
	Sharing, Series string
}

// WishPartition is what is asked for one GPU of the source.
type WishPartition struct {
	// Source is its address; empty: a partition beside those for what was seen, which Profile
	// must name.
	Source  string `json:"source,omitempty"`
	GPU     string `json:"gpu,omitempty"`     // of this host; empty: any
	Profile string `json:"profile,omitempty"` // empty: any
	// MemoryBytes, SMs and Class replace what was measured; zero: that stays.
	MemoryBytes uint64 `json:"memory_bytes"`
	SMs         int    `json:"sms"`
	Class       Class  `json:"class,omitempty"`
	// None asks for no partition for this GPU.
	None bool `json:"none,omitempty"`
}

// Listed returns the wish with empty lists where it has none, as it goes on the wire.
func (w Wish) Listed() Wish {
	w.Partitions = append([]WishPartition{}, w.Partitions...)
	w.Disks = append([]string{}, w.Disks...)
	w.Waivers = append([]Waiver{}, w.Waivers...)
	return w
}

// A Waiver is somebody's word that a blocker does not count.
type Waiver struct {
	ID     string `json:"id"` // of the concern
	Reason string `json:"reason"`
	By     string `json:"by"`
}

// waiver finds the one for a concern that says why and who.
func (w Wish) waiver(id string) (Waiver, bool) {
	i := slices.IndexFunc(w.Waivers, func(v Waiver) bool { return v.ID == id && v.Reason != "" && v.By != "" })
	if i < 0 {
		return Waiver{}, false
	}
	return w.Waivers[i], true
}

func (w Wish) partition(source string) WishPartition {
	i := slices.IndexFunc(w.Partitions, func(p WishPartition) bool { return p.Source == source && source != "" })
	if i < 0 {
		return WishPartition{}
	}
	return w.Partitions[i]
}

// A wanted is a need as a person wants it.
type wanted struct {
	Need
	wish WishPartition
}

// wanted lays the wish over what was measured, and adds what is asked for beside it.
func (w Wish) wanted(needs []Need) []wanted {
	out := make([]wanted, 0, len(needs))
	for _, n := range needs {
		v := wanted{Need: n, wish: w.partition(n.Source.PCI)}
		v.Explanation = slices.Clone(n.Explanation)
		v.apply()
		out = append(out, v)
	}
	for _, p := range w.Partitions {
		if p.Source == "" {
			v := wanted{wish: p, Need: Need{MemoryBasis: BasisWish, ComputeBasis: BasisWish, Features: []string{}, Together: []string{}}}
			v.explain("use", BasisWish, "it is asked for beside what was seen")
			v.apply()
			out = append(out, v)
		}
	}
	return out
}

func (v *wanted) apply() {
	if v.wish.None {
		if v.Required {
			v.explain("use", BasisWish, "the wish says that the VM needs none for it")
		}
		v.Required = false
		return
	}
	if v.wish != (WishPartition{Source: v.wish.Source}) && !v.Required {
		v.Required = true
		v.explain("use", BasisWish, "the wish asks for a partition for it")
	}
	if v.wish.MemoryBytes > 0 {
		v.MemoryBytes, v.MemoryBasis = v.wish.MemoryBytes, BasisWish
		v.explain("memory", BasisWish, "the wish says that %s are needed", size(v.MemoryBytes))
	}
	if v.wish.SMs > 0 {
		v.SMs, v.ComputeBasis = v.wish.SMs, BasisWish
		v.explain("compute", BasisWish, "the wish says that %d multiprocessors are needed", v.SMs)
	}
	if v.wish.Class == Compute || v.wish.Class == Graphics {
		v.Class = v.wish.Class
		v.explain("class", BasisWish, "the wish says that it is for %s", v.Class)
	}
}
