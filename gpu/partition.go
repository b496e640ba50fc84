package gpu

import "time"

// A Partition is a piece of a GPU that was made. A backend fills what the kernel
// says (up to IOMMUGroup); the host adds origin, use and conditions.
type Partition struct {
	ID        string // for an mdev its UUID; else "<gpu>/<kind>/<slot>"
	GPU       ID
	Parent    string // sysfs name of the device it was made on; a MIG instance's id for a vGPU on one
	Kind      Kind
	Profile   string // profile name
	Native    string // the driver's type id
	Slot      string // planned place, for kinds that take no name from us; of MIG the first memory slice
	Instance  string // the driver's id of a MIG partition's GPU instance: another when it is made again
	Compute   []Compute
	Handle    Handle
	DeviceAPI string
	// Params are a vGPU's, as ParseVGPUParams returns those that are asked for; of what is
	// there as the driver states them.
	Params string
	// FormerDrivers are the kernel drivers that the PCI functions of a card or VF had
	// before it was taken for VMs, by PCI address, empty for none: they get them back.
	FormerDrivers map[string]string
	// Companions are the other PCI functions of a card's slot, by address: they go to VFIO
	// with it and come back with it, and no VM is given them.
	Companions []string
	IOMMUGroup string // number as text; its file is /dev/vfio/<number>

	Origin     Origin
	State      PartitionState
	Assignment string
	Holders    []Holder
	Observed   *Observed // in a VM that runs, where it is asked for; nil: nothing is known
	Created    time.Time // zero for foreign partitions
	Conditions []Condition
}

// A Compute is one compute instance of a MIG partition.
type Compute struct {
	Profile string `json:"profile"`        // "1c.3g.20gb"; "3g.20gb" fills its GPU instance
	Start   int    `json:"start"`          // compute slices from the beginning of the GPU instance
	UUID    string `json:"uuid,omitempty"` // by which a program asks for it: the driver's, another when it is made again
}

// Handle is how libvirt names a partition: by the mdev's UUID or the PCI address.
type Handle struct {
	MdevUUID   string `json:"mdev_uuid,omitempty"`
	PCIAddress string `json:"pci_address,omitempty"`
}

// Origin says who made a partition.
type Origin string

// The origins.
const (
	OriginManaged Origin = "managed" // made or adopted by gpuvirt
	OriginForeign Origin = "foreign" // made by somebody else: never touched
)

// PartitionState is where a partition is in its life.
type PartitionState string

// The states of a partition.
const (
	PartitionMaking   PartitionState = "making"   // stored, an operation is making it
	PartitionMade     PartitionState = "made"     // stored and present
	PartitionRemoving PartitionState = "removing" // an operation is removing it
	PartitionMissing  PartitionState = "missing"  // stored, but the kernel does not have it
)

// A Holder is who uses a partition: a process, a VM, or a vGPU that stands on it.
type Holder struct {
	Kind string // "process", "vm" or "partition"
	ID   string // pid, the VM's UUID, or the partition's id
	Name string // command name, the VM's name, or the partition's profile
}
