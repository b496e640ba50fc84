package gpu

import (
	"slices"
	"strconv"
	"strings"
)

// A Layout is how a GPU is cut by MIG, or should be.
type Layout struct {
	Enabled   bool
	Instances []LayoutInstance // by place; those without one last
}

// AnyPlace leaves a place to the planner.
const AnyPlace = -1

// A LayoutInstance is one GPU instance of a layout.
type LayoutInstance struct {
	Profile string
	Place   int      // first memory slice, or AnyPlace
	Compute []string // profiles of its compute instances; none: one that fills it
	AsItIs  bool     // the one that is in its place, with whatever compute instances it has
}

// String is the layout in one line: "1g.5gb@0 3g.20gb@4=1c.3g.20gb,2c.3g.20gb".
func (l Layout) String() string {
	switch {
	case !l.Enabled:
		return "MIG off"
	case len(l.Instances) == 0:
		return "MIG on, no instances"
	}
	words := make([]string, len(l.Instances))
	for i, in := range l.Instances {
		words[i] = in.Profile
		if in.Place != AnyPlace {
			words[i] += "@" + strconv.Itoa(in.Place)
		}
		if len(in.Compute) > 0 && !slices.Equal(in.Compute, []string{in.Profile}) {
			words[i] += "=" + strings.Join(in.Compute, ",")
		}
	}
	return strings.Join(words, " ")
}

// A LayoutPlan turns one layout into another. Removals come before creations; one that
// stays at its place with other compute instances is among both.
type LayoutPlan struct {
	Mode   *bool // to be set first, or where it is turned off, last
	Resets bool  // the GPU is reset for the mode
	Keep   []Partition
	Remove []Partition
	Create []Partition
}

// VFState is how many virtual functions a GPU should have, and which it has.
type VFState struct {
	GPU       ID
	Wanted    *int // nil: nobody has asked
	TotalVFs  int
	Functions []FunctionState // by index
	Equal     bool            // what is wanted is what is
}

// A FunctionState is a virtual function and what it is used for.
type FunctionState struct {
	Function
	Partition string   // id of the partition that was made on it, empty: none
	Holders   []Holder // VMs whose definition names it, processes that have it open
}

// LayoutState is what was asked for and what is.
type LayoutState struct {
	GPU    ID
	Wanted *Layout // nil: nobody has asked
	Actual Layout
	Mode   MIGMode
	Equal  bool // what is wanted is what is
	// Partitions are the instances that are there and those that are missing.
	Partitions []Partition
	Profiles   []Profile
}
