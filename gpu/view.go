package gpu

import "time"

// HostState is how far the daemon is.
type HostState string

// The states of a host.
const (
	HostStarting  HostState = "starting"
	HostRestoring HostState = "restoring"
	HostReady     HostState = "ready"
	HostDegraded  HostState = "degraded" // answers, but something is wrong: see the reasons
)

// HostInfo describes the host.
type HostInfo struct {
	HostID    string
	BootID    string
	State     HostState
	Reasons   []string
	Simulated bool
}

// A Comparison is what came of comparing all that was asked for with what is.
type Comparison struct {
	At time.Time
	// Drifted is how many things differ, by kind; of a kind that is not in it, none.
	Drifted map[string]int
}

// The kinds of things that drift.
const (
	DriftLayout     = "layout"     // how MIG cuts a GPU
	DriftVFs        = "sriov"      // how many virtual functions a GPU has
	DriftVGPU       = "vgpu"       // how the vGPUs of a GPU share it
	DriftAssignment = "assignment" // which VM has which partition
)

// A Plan is what would be done for a request: the answer to a dry run.
type Plan struct {
	Summary     string
	Steps       []PlanStep
	MustBeIdle  []string
	NeedsReset  bool
	NeedsReboot bool
	Changes     bool  // false: the wish is already fulfilled
	Refusal     error // why the request would be refused; nil: it would be accepted
}

// A PlanStep is one step of a plan.
type PlanStep struct{ Kind, Summary string }

// ProfileCapacity is how many more of one profile fit, in all and on each GPU.
type ProfileCapacity struct {
	Profile   string
	Kind      Kind
	Available int // on managed, healthy GPUs
	GPUs      []GPUCapacity
}

// GPUCapacity is how many more of a profile fit on one GPU, and why not more.
type GPUCapacity struct {
	GPU       ID
	Available int
	Reasons   []string
}

// GPUPatch changes what an administrator decided about a GPU. Nil fields stay.
type GPUPatch struct {
	Managed     *bool
	Quarantined *bool
	Policy      *Policy
	Placement   *Placement // empty: the host's
	Labels      *map[string]string
}

// PartitionWish asks for a partition that is not for a VM.
type PartitionWish struct {
	GPU       ID // empty: any
	Profile   string
	Placement Placement
	Params    string // of a vGPU, as ParseVGPUParams returns them
}

// Idempotency is a client's Idempotency-Key with the digest of its request; the
// zero value means that none was sent.
type Idempotency struct{ Key, Request string }
