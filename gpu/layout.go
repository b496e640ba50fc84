package gpu

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
}

// A LayoutPlan turns one layout into another. Removals come before creations; one that
// stays at its place with other compute instances is among both.
type LayoutPlan struct {
	Mode   *bool // to be set first, or where it is turned off, last
	Keep   []Partition
	Remove []Partition
	Create []Partition
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
