package gpu

import "time"

// A Wish is what a client asks for in an assignment. Two wishes are the same if
// they are equal.
type Wish struct {
	VM        string    `json:"vm"` // UUID
	Profile   string    `json:"profile"`
	GPU       ID        `json:"gpu,omitempty"` // empty: any
	Placement Placement `json:"placement"`
	Hotplug   Hotplug   `json:"hotplug"`
	Display   bool      `json:"display,omitempty"`
	RamFB     bool      `json:"ramfb,omitempty"`       // the display shows the firmware, too
	Params    string    `json:"vgpu_params,omitempty"` // of the vGPU, as ParseVGPUParams returns them
}

// A NamedWish is a wish under the name that the client chose for it.
type NamedWish struct {
	Name string
	Wish Wish
}

// Placement is how a GPU is picked where several fit, and on it an instance of MIG where
// several vGPUs can share one.
type Placement string

// The placements.
const (
	Pack   Placement = "pack"   // the fullest GPU that still fits, an instance that has room
	Spread Placement = "spread" // the emptiest GPU, an instance of its own
)

// Hotplug says what to do with a running VM.
type Hotplug string

// The ways to treat a running VM.
const (
	HotplugAuto    Hotplug = "auto"    // live and persistent if it runs, else persistent
	HotplugRequire Hotplug = "require" // refuse unless it runs
	HotplugNever   Hotplug = "never"   // persistent only: seen at the next start
)

// AssignmentState is how far a wish has come.
type AssignmentState string

// The states of an assignment.
const (
	AssignmentAttaching AssignmentState = "attaching" // an operation is carrying it out
	AssignmentAttached  AssignmentState = "attached"
	AssignmentDetaching AssignmentState = "detaching"
	AssignmentUnknown   AssignmentState = "unknown" // libvirt does not answer
	AssignmentDrifted   AssignmentState = "drifted" // what is differs from what was asked
)

// An Assignment is the lasting wish "VM x has a partition of profile p", with
// what is observed beside it.
type Assignment struct {
	Name      string
	Wish      Wish
	VMName    string // as known when it was asked for, or as libvirt says now
	Partition string
	GPU       ID // the GPU that was picked
	Created   time.Time
	// Generation grows with every wish under this name, so that a late release of
	// an old owner cannot hit the next one.
	Generation uint64

	State           AssignmentState
	Live, Config    bool // is the device in the VM's live and persistent XML
	RestartRequired bool
	Operation       string // the operation that works on it now
	Conditions      []Condition
}
