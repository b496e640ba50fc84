package gpu

import "context"

// A Backend makes and removes the partitions of one kind. Its calls are
// idempotent: making a partition that is there with the same profile and parent,
// or removing one that is gone, succeeds. Every call reads the machine afresh.
type Backend interface {
	// IDs lists the GPUs that this backend could cut, sorted.
	IDs(ctx context.Context) ([]ID, error)
	// Look reads one GPU and, sorted by name, what it can make, with how many more
	// fit now. Of a GPU that is there but cannot be read it returns what is known,
	// with the condition Unknown, and the error; of one that is not there, no GPU
	// and CodeNotFound.
	Look(ctx context.Context, id ID) (GPU, []Profile, error)
	// Partitions lists what is there, foreign ones too.
	Partitions(ctx context.Context, id ID) ([]Partition, error)
	// Make makes the partition want describes (ID, GPU, Parent, Profile, Native) and
	// returns it as read back. A failed Make leaves nothing behind.
	Make(ctx context.Context, want Partition) (Partition, error)
	// Remove removes a partition and waits until it is gone. The caller has made
	// sure that it is ours and that nobody uses it.
	Remove(ctx context.Context, p Partition) error
}

// A Placer is a Backend whose partitions take no name from us. Their place is their
// identity, and the backend chooses it.
type Placer interface {
	// Place returns one more partition of a profile as Make wants it. A device of taken
	// is not chosen though it is free as far as the kernel knows: some VM's definition
	// names it.
	Place(ctx context.Context, id ID, profile string, taken []Handle) (Partition, error)
}

// A Stacker is a Placer some of whose partitions stand on one of another kind: a vGPU on
// a MIG instance (Profile.On).
type Stacker interface {
	Placer
	// PlaceAhead is Place for a time when there will be a partition for it to stand on.
	PlaceAhead(ctx context.Context, id ID, profile string, taken []Handle) (Partition, error)
}

// An Adopter is a Backend that has to know more of a partition that somebody else made than
// is seen of it.
type Adopter interface {
	// Adopt returns a partition that is there as it is to be recorded. The error says why it
	// could not be made again, or given back, as it is.
	Adopt(ctx context.Context, p Partition) (Partition, error)
}

// A Virtualizer is a Backend that turns a GPU's virtual functions on and off (PCI
// Express SR-IOV).
type Virtualizer interface {
	// Functions lists the virtual functions that a GPU has now, by index.
	Functions(ctx context.Context, id ID) ([]Function, error)
	// CheckVFs refuses what SetVFs would refuse before it touches anything.
	CheckVFs(ctx context.Context, id ID, n int) error
	// SetVFs gives a GPU n virtual functions, none with 0; it has them when SetVFs
	// returns. Where it has another number than 0, those go first. The caller has made
	// sure that nobody uses them. Where it fails, the GPU has its driver, and as many
	// virtual functions as it had or none.
	SetVFs(ctx context.Context, id ID, n int) error
}

// A Monitor is a Backend whose driver tells of GPUs what no file says. That is for people:
// nothing is decided by it, and a driver that takes long is not waited for.
type Monitor interface {
	// Modes reads the modes of GPUs, all at once. A GPU that has none, or does not tell,
	// is left out.
	Modes(ctx context.Context, ids ...ID) (map[ID]Modes, error)
	// VGPUTypes lists the types of vGPU that the driver knows for a GPU, whatever fits now,
	// sorted by id; CodeNotFound where it is none of its driver's.
	VGPUTypes(ctx context.Context, id ID) ([]VGPUType, error)
	// RunningVGPUs lists the vGPUs of a GPU that run in VMs, whoever made them, in any
	// order; CodeNotFound where it is none of its driver's.
	RunningVGPUs(ctx context.Context, id ID) ([]RunningVGPU, error)
}

// A Cutter is a Backend that cuts a GPU by a layout.
type Cutter interface {
	// PlanLayout plans how what is there becomes what is wanted, with the fewest
	// removals. What is pinned stays, by partition ID with the reason, and what the
	// driver knows to be in use: where that makes the layout impossible the error names
	// what would have to go.
	PlanLayout(ctx context.Context, id ID, want Layout, pinned map[string]string) (LayoutPlan, error)
	// SetMode turns the mode on or off that cutting takes, on this GPU only. Where it is
	// not in force afterwards nothing has changed (CodeGPUBusy), or it waits for a reset
	// (CodeNeedsReset).
	SetMode(ctx context.Context, id ID, on bool) error
}
