package gpu

import "time"

// ID names a GPU on this host: its full PCI address ("0000:41:00.0"), or the
// parent's device name ("mbochs") where the parent is no PCI device.
type ID string

// A GPU is a physical GPU: a PCI physical function, or another mdev parent.
// A virtual function is never a GPU. Backends fill what they observe; the host
// adds what was asked (Managed, Quarantined, Labels) and the conditions.
type GPU struct {
	ID          ID
	Vendor      string // "NVIDIA", "Intel", or the driver's name where there is no PCI vendor
	Model       string
	PCIAddress  string // empty where the parent is no PCI device
	UUID        string // the vendor's UUID, empty if it has none
	Serial      string
	NUMANode    int    // -1: unknown or none
	IOMMUGroup  string // empty: none
	Driver      Driver
	MemoryBytes uint64 // 0: unknown
	Kinds       []Kind // kinds of partition that it can make
	MIG         MIGMode
	SRIOV       SRIOV
	Modes       Modes // only where they are asked for
	Identity    Identity

	Managed     bool
	Quarantined bool
	Policy      Policy
	Placement   Placement // on it, where a wish does not say; empty: the host's
	Labels      map[string]string
	Conditions  []Condition
}

// Policy is what happens where a GPU is cut otherwise than was asked.
type Policy string

// The policies.
const (
	PolicyReport Policy = "report" // it is told
	PolicyRepair Policy = "repair" // and put back, where nothing in use and nothing foreign is touched
)

// Driver is the kernel driver bound to a GPU.
type Driver struct{ Name, Version string }

// MIGMode tells whether a GPU can be cut into MIG instances, and its mode now
// and after the next reset.
type MIGMode struct {
	Capable, Current, Pending bool
	// Needs is what a mode waits for that is not in force: "reset" of this GPU, or
	// "reboot" of the machine; empty if none waits.
	Needs string
}

// SRIOV tells how many virtual functions a GPU can have and has.
type SRIOV struct{ TotalVFs, NumVFs int }

// A Function is one virtual function of a GPU.
type Function struct {
	Index      int    // N of the virtfnN link
	PCIAddress string // "0000:41:00.4"
	IOMMUGroup string // empty: none
	Driver     string // kernel driver bound to it, empty: none
}

// Identity is what a record keeps of a GPU so that another card which comes up
// at the same address after a reboot is not taken for it.
type Identity struct {
	Model     string `json:"model,omitempty"`
	UUID      string `json:"uuid,omitempty"`
	Serial    string `json:"serial,omitempty"`
	Subsystem string `json:"subsystem,omitempty"` // PCI "vendor:device" of the subsystem
}

// ConditionType is one aspect of an object's health.
type ConditionType string

// The conditions of api.md.
const (
	Ready       ConditionType = "Ready"
	Degraded    ConditionType = "Degraded"
	Drifted     ConditionType = "Drifted"
	Stuck       ConditionType = "Stuck"
	Quarantined ConditionType = "Quarantined"
	Unknown     ConditionType = "Unknown"
)

// A Condition says that an aspect of an object holds, and since when.
type Condition struct {
	Type    ConditionType
	Status  bool
	Reason  string // one CamelCase word for programs
	Message string // a sentence for people
	Since   time.Time
}
