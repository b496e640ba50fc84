// Package api holds the wire types of gpuvirt's REST interface, its problem type
// and its OpenAPI description. It imports only the standard library, so that a
// client can use it without the daemon.
package api

import "time"

// List is a page of items. Next is the cursor of the next page, empty on the last.
type List[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"`
}

// ProfileList is a page of profiles.
type ProfileList struct {
	Items []Profile `json:"items"`
	Next  string    `json:"next,omitempty"`
	// Unknown is why some may be missing, or are not known wholly: something that tells of
	// them does not answer.
	Unknown string `json:"unknown,omitempty"`
}

// Info describes the daemon and its host: GET /v1.
type Info struct {
	Product    string   `json:"product"`
	Version    string   `json:"version"`
	APIVersion string   `json:"api_version"`
	Features   []string `json:"features"`
	HostID     string   `json:"host_id"`
	BootID     string   `json:"boot_id"`
	State      string   `json:"state"` // starting, restoring, ready, degraded
	Reasons    []string `json:"reasons"`
	Simulated  bool     `json:"simulated"`
}

// Condition is one aspect of an object's health.
type Condition struct {
	Type    string     `json:"type"`
	Status  bool       `json:"status"`
	Reason  string     `json:"reason"`
	Message string     `json:"message"`
	Since   *time.Time `json:"since,omitempty"` // nil: not known
}

// GPU is a physical GPU.
type GPU struct {
	ID           string            `json:"id"`
	Vendor       string            `json:"vendor"`
	Model        string            `json:"model"`
	PCIAddress   string            `json:"pci_address,omitempty"`
	PCIID        string            `json:"pci_id,omitempty"`        // vendor:device, "10de:20f1"
	PCISubsystem string            `json:"pci_subsystem,omitempty"` // vendor:device of the subsystem, "10de:145f"
	UUID         string            `json:"uuid,omitempty"`
	Serial       string            `json:"serial,omitempty"`
	NUMANode     *int              `json:"numa_node,omitempty"`
	IOMMUGroup   string            `json:"iommu_group,omitempty"`
	Driver       Driver            `json:"driver"`
	MemoryBytes  uint64            `json:"memory_bytes"`
	Managed      bool              `json:"managed"`
	Quarantined  bool              `json:"quarantined"`
	Policy       string            `json:"policy"`    // report, repair
	Placement    string            `json:"placement"` // on it: pack, spread or, as the host's is, host
	Kinds        []string          `json:"kinds"`
	MIG          MIGMode           `json:"mig"`
	SRIOV        SRIOV             `json:"sriov"`
	ECC          *ECC              `json:"ecc,omitempty"`          // nil: it has none, or it is not known
	ComputeMode  string            `json:"compute_mode,omitempty"` // default, exclusive-process, prohibited; empty: unknown
	Labels       map[string]string `json:"labels"`
	Conditions   []Condition       `json:"conditions"`
}

// Driver is the kernel driver bound to a GPU.
type Driver struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// MIGMode tells whether a GPU can be cut by MIG, and its mode now and after a reset.
type MIGMode struct {
	Capable bool `json:"capable"`
	Current bool `json:"current"`
	Pending bool `json:"pending"`
	// Needs is what a mode waits for that is not in force: "reset" or "reboot".
	Needs string `json:"needs,omitempty"`
}

// ECC tells whether a GPU's memory corrects errors, now and after a reset.
type ECC struct {
	Current bool `json:"current"`
	Pending bool `json:"pending"`
}

// SRIOV tells how many virtual functions a GPU can have and has.
type SRIOV struct {
	TotalVFs int `json:"total_vfs"`
	NumVFs   int `json:"num_vfs"`
}

// VFs is how many virtual functions a GPU should have, and which it has.
type VFs struct {
	GPU       string     `json:"gpu"`
	TotalVFs  int        `json:"total_vfs"`        // at most
	NumVFs    int        `json:"num_vfs"`          // now
	Wanted    *int       `json:"wanted,omitempty"` // nil: nobody has asked
	Functions []Function `json:"functions"`
	Equal     bool       `json:"equal"`
}

// Function is a virtual function of a GPU.
type Function struct {
	Index      int      `json:"index"` // N of the virtfnN link
	PCIAddress string   `json:"pci_address"`
	IOMMUGroup string   `json:"iommu_group,omitempty"`
	Driver     string   `json:"driver,omitempty"`
	Partition  string   `json:"partition,omitempty"` // that was made on it
	Holders    []Holder `json:"holders"`
}

// VFsRequest asks for a number of virtual functions.
type VFsRequest struct {
	NumVFs *int `json:"num_vfs"` // nil is refused: an empty request is not one for none
}

// GPUPatch changes what an administrator decides about a GPU. Absent fields stay.
type GPUPatch struct {
	Managed     *bool              `json:"managed,omitempty"`
	Quarantined *bool              `json:"quarantined,omitempty"`
	Policy      *string            `json:"policy,omitempty"`
	Placement   *string            `json:"placement,omitempty"`
	Labels      *map[string]string `json:"labels,omitempty"` // replaces all labels
}

// Profile is a size of partition that a GPU can make.
type Profile struct {
	Name         string            `json:"name"`
	Kind         string            `json:"kind"`
	GPU          string            `json:"gpu"`
	On           string            `json:"on,omitempty"`
	MemoryBytes  uint64            `json:"memory_bytes"`
	MaxInstances int               `json:"max_instances"`
	Available    int               `json:"available"`
	NativeID     string            `json:"native_id"`
	DeviceAPI    string            `json:"device_api,omitempty"`
	Attributes   map[string]string `json:"attributes"`
	NotCreatable string            `json:"not_creatable,omitempty"`
}

// Compute is a compute instance of a MIG partition.
type Compute struct {
	Profile string `json:"profile"`
	Start   int    `json:"start"` // compute slices from the beginning of its GPU instance
	UUID    string `json:"uuid,omitempty"`
}

// MIG is how a GPU is cut by MIG, as asked for and as it is.
type MIG struct {
	GPU    string  `json:"gpu"`
	Mode   MIGMode `json:"mode"`
	Wanted *Layout `json:"wanted,omitempty"` // nil: nobody has asked
	Actual Layout  `json:"actual"`
	Equal  bool    `json:"equal"`
}

// Layout is a way to cut a GPU by MIG.
type Layout struct {
	Enabled   bool             `json:"enabled"`
	Instances []LayoutInstance `json:"instances"`
}

// LayoutInstance is one GPU instance of a layout.
type LayoutInstance struct {
	Profile   string   `json:"profile"`
	Placement *int     `json:"placement,omitempty"` // first memory slice; nil: where it is best
	Compute   []string `json:"compute,omitempty"`   // profiles of its compute instances; none: one that fills it
}

// Handle is how libvirt names a partition.
type Handle struct {
	MdevUUID   string `json:"mdev_uuid,omitempty"`
	PCIAddress string `json:"pci_address,omitempty"`
}

// Holder is who uses a partition.
type Holder struct {
	Kind string `json:"kind"`
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
}

// Partition is a piece of a GPU that was made.
type Partition struct {
	ID         string      `json:"id"`
	GPU        string      `json:"gpu"`
	Parent     string      `json:"parent"`
	Kind       string      `json:"kind"`
	Profile    string      `json:"profile"`
	Slot       string      `json:"slot,omitempty"` // of MIG the first memory slice
	Instance   string      `json:"instance,omitempty"`
	Compute    []Compute   `json:"compute,omitempty"`
	Native     string      `json:"native"`
	Handle     Handle      `json:"handle"`
	DeviceAPI  string      `json:"device_api,omitempty"`
	VGPUParams string      `json:"vgpu_params,omitempty"` // as the driver states them
	Companions []string    `json:"companions,omitempty"`  // PCI functions that go to VFIO with a card, and into no VM
	IOMMUGroup string      `json:"iommu_group,omitempty"`
	Origin     string      `json:"origin"` // managed, foreign
	State      string      `json:"state"`  // making, made, removing, missing
	Assignment string      `json:"assignment,omitempty"`
	Holders    []Holder    `json:"holders"`
	Observed   *Observed   `json:"observed,omitempty"` // nil: it is in no VM that runs, or nothing is known
	Created    *time.Time  `json:"created,omitempty"`
	Conditions []Condition `json:"conditions"`
}

// Observed is what is seen of a partition in a VM that runs, by the driver of the host and
// by that of the guest.
type Observed struct {
	GuestDriver string   `json:"guest_driver,omitempty"` // version; empty: it has not loaded, or is unknown
	License     *License `json:"license,omitempty"`
	Usage       *Usage   `json:"usage,omitempty"`
	Unknown     string   `json:"unknown,omitempty"` // why something is not told
}

// License is whether a guest has the licence that its vGPU takes.
type License struct {
	State   string     `json:"state"`             // uninitialized, unlicensed-unrestricted, unlicensed-restricted, unlicensed, licensed
	Expires *time.Time `json:"expires,omitempty"` // nil: never, or unknown
}

// Usage is what a guest uses of its partition. What is nil is not known. The ratios are
// shares of the GPU's time, 0 to 1, over the last seconds before Sampled.
type Usage struct {
	MemoryUsedBytes *uint64    `json:"memory_used_bytes,omitempty"`
	SMRatio         *float64   `json:"sm_ratio,omitempty"`
	MemoryRatio     *float64   `json:"memory_ratio,omitempty"` // in which memory was read or written
	EncoderRatio    *float64   `json:"encoder_ratio,omitempty"`
	DecoderRatio    *float64   `json:"decoder_ratio,omitempty"`
	Sampled         *time.Time `json:"sampled,omitempty"`
}

// PartitionRequest asks for a partition that is not (yet) for a VM.
type PartitionRequest struct {
	GPU        string `json:"gpu,omitempty"` // empty: any managed GPU that fits
	Profile    string `json:"profile"`
	Placement  string `json:"placement,omitempty"`   // pack, spread; empty: as the daemon is set
	VGPUParams string `json:"vgpu_params,omitempty"` // "frame_rate_limiter=0,enable_uvm=1"
}

// Hostdev is a host device in a VM.
type Hostdev struct {
	Alias        string `json:"alias,omitempty"`
	Handle       Handle `json:"handle"`
	Model        string `json:"model,omitempty"`
	Display      bool   `json:"display"`
	RamFB        bool   `json:"ramfb"`
	Live         bool   `json:"live"`
	Config       bool   `json:"config"`
	GuestAddress string `json:"guest_address,omitempty"`
}

// VM is a libvirt domain.
type VM struct {
	UUID        string    `json:"uuid"`
	Name        string    `json:"name"`
	State       string    `json:"state"`
	Autostart   bool      `json:"autostart"`
	Persistent  bool      `json:"persistent"`
	NUMANodes   []int     `json:"numa_nodes,omitempty"` // that its memory is bound to
	Hostdevs    []Hostdev `json:"hostdevs"`
	Assignments []string  `json:"assignments"`
}

// StartCheckRequest tells the devices of the host in the definition that a VM is about to
// be started with: the body of POST /v1/vms/{vm}/check-start.
type StartCheckRequest struct {
	Devices []Handle `json:"devices"`
}

// StartCheck is what speaks against the start of a VM; nothing, if there are no findings.
type StartCheck struct {
	VM       string         `json:"vm"` // UUID
	Findings []StartFinding `json:"findings"`
}

// StartFinding is one thing that speaks against the start of a VM.
type StartFinding struct {
	Code       string `json:"code"` // drift, conflict; unavailable: it is not known
	Message    string `json:"message"`
	Hint       string `json:"hint,omitempty"`
	Assignment string `json:"assignment,omitempty"`
	Partition  string `json:"partition,omitempty"`
}

// AssignmentRequest is a client's wish: the body of PUT /v1/assignments/{name}.
type AssignmentRequest struct {
	VM         string `json:"vm"` // UUID or name
	Profile    string `json:"profile"`
	GPU        string `json:"gpu,omitempty"`
	Placement  string `json:"placement,omitempty"` // pack, spread; empty: as the daemon is set
	Hotplug    string `json:"hotplug,omitempty"`   // auto (default), require, never
	Display    bool   `json:"display,omitempty"`
	RamFB      bool   `json:"ramfb,omitempty"`       // only with Display
	VGPUParams string `json:"vgpu_params,omitempty"` // "frame_rate_limiter=0,enable_uvm=1"
}

// Assignment is the lasting wish "VM x has a partition of profile p", and what is
// observed of it.
type Assignment struct {
	Name            string      `json:"name"`
	VM              string      `json:"vm"` // UUID
	VMName          string      `json:"vm_name"`
	Profile         string      `json:"profile"`
	GPU             string      `json:"gpu,omitempty"` // as asked for
	Placement       string      `json:"placement"`
	Hotplug         string      `json:"hotplug"`
	Display         bool        `json:"display"`
	RamFB           bool        `json:"ramfb"`
	VGPUParams      string      `json:"vgpu_params,omitempty"` // as asked for, sorted
	Partition       string      `json:"partition"`
	PartitionGPU    string      `json:"partition_gpu"` // the GPU that was picked
	State           string      `json:"state"`         // attaching, attached, detaching, unknown, drifted
	Attached        Attached    `json:"attached"`
	RestartRequired bool        `json:"restart_required"`
	Operation       string      `json:"operation,omitempty"`
	Created         time.Time   `json:"created"`
	Conditions      []Condition `json:"conditions"`
}

// ApplyRequest asks for several assignments at once: all of them or none.
type ApplyRequest struct {
	Assignments []NamedAssignmentRequest `json:"assignments"`
}

// NamedAssignmentRequest is an AssignmentRequest with the name that the client chose.
type NamedAssignmentRequest struct {
	Name       string `json:"name"`
	VM         string `json:"vm"` // UUID or name
	Profile    string `json:"profile"`
	GPU        string `json:"gpu,omitempty"`
	Placement  string `json:"placement,omitempty"` // pack, spread; empty: as the daemon is set
	Hotplug    string `json:"hotplug,omitempty"`   // auto (default), require, never
	Display    bool   `json:"display,omitempty"`
	RamFB      bool   `json:"ramfb,omitempty"`       // only with Display
	VGPUParams string `json:"vgpu_params,omitempty"` // "frame_rate_limiter=0,enable_uvm=1"
}

// Attached says in which of the VM's definitions the device is.
type Attached struct {
	Live   bool `json:"live"`
	Config bool `json:"config"`
}

// Capacity answers how many more partitions of each profile fit.
type Capacity struct {
	Profiles []ProfileCapacity `json:"profiles"`
}

// ProfileCapacity is how many more of one profile fit, in all and on each GPU.
type ProfileCapacity struct {
	Profile   string        `json:"profile"`
	Kind      string        `json:"kind"`
	Available int           `json:"available"` // on managed, healthy GPUs
	GPUs      []GPUCapacity `json:"gpus"`
}

// GPUCapacity is how many more of a profile fit on one GPU, and why not more.
type GPUCapacity struct {
	GPU       string   `json:"gpu"`
	Available int      `json:"available"`
	Reasons   []string `json:"reasons"`
}

// Plan is the answer to a dry run: what would be done, or why it cannot be.
type Plan struct {
	Summary     string     `json:"summary"`
	Steps       []PlanStep `json:"steps"`
	Blockers    []Blocker  `json:"blockers"`
	MustBeIdle  []string   `json:"must_be_idle"`
	NeedsReset  bool       `json:"needs_reset"`
	NeedsReboot bool       `json:"needs_reboot"`
	// Changes is false where the wish is already fulfilled.
	Changes bool `json:"changes"`
	// Problem is why the request would be refused, absent if it would be accepted.
	Problem *Problem `json:"problem,omitempty"`
}

// PlanStep is one step of a plan.
type PlanStep struct {
	Kind    string `json:"kind"`
	Summary string `json:"summary"`
}

// Operation is a persisted list of steps that carries a wish out.
type Operation struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind"`
	Summary string    `json:"summary"`
	Actor   string    `json:"actor"`
	Status  string    `json:"status"`
	Reason  string    `json:"reason,omitempty"`
	Abort   bool      `json:"abort"`
	Forgot  bool      `json:"forgot"`
	Steps   []Step    `json:"steps"`
	Keys    []string  `json:"keys"`
	Problem *Problem  `json:"problem,omitempty"`
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
}

// Step is one step of an operation.
type Step struct {
	Kind    string    `json:"kind"`
	Summary string    `json:"summary"`
	Status  string    `json:"status"`
	Done    int64     `json:"done"`
	Total   int64     `json:"total"`
	Log     []LogLine `json:"log"`
}

// LogLine is something a step said.
type LogLine struct {
	Time time.Time `json:"time"`
	Text string    `json:"text"`
}

// Event is one event of the stream GET /v1/events.
type Event struct {
	ID     string            `json:"id"`
	Time   time.Time         `json:"time"`
	Type   string            `json:"type"`
	Object string            `json:"object"`
	Detail map[string]string `json:"detail,omitempty"`
}

// Health is the answer of the health routes.
type Health struct {
	Status  string   `json:"status"` // ok, not-ready
	Reasons []string `json:"reasons"`
}

// Settings is the configuration that a daemon works with.
type Settings struct {
	Files []string  `json:"files"` // that were read, in their order
	Items []Setting `json:"items"`
}

// Setting is one thing that can be configured.
type Setting struct {
	Key          string   `json:"key"` // "libvirt.uri"
	Description  string   `json:"description"`
	Values       []string `json:"values"`                  // one, but for lists
	Origin       string   `json:"origin,omitempty"`        // "file:line" or "command line"; empty: nobody has said it
	Reload       bool     `json:"reload"`                  // a reload takes it over; else it takes a restart
	AfterRestart []string `json:"after_restart,omitempty"` // what the files say by now
}
