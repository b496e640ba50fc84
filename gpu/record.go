package gpu

import (
	"maps"
	"time"
)

// Kinds of record in the store. A record says what was asked and what we made,
// never what the machine looks like now.
const (
	RecordGPU         = "gpu"         // key: GPU id, value: GPURecord
	RecordPartition   = "partition"   // key: partition id, value: PartitionRecord
	RecordAssignment  = "assignment"  // key: assignment name, value: AssignmentRecord
	RecordIdempotency = "idempotency" // key: client's Idempotency-Key, value: IdempotencyRecord
	RecordToken       = "token"       // key: token id, value: TokenRecord
)

// GPURecord is what an administrator decided about a GPU.
type GPURecord struct {
	ID          ID                `json:"id"`
	Managed     bool              `json:"managed"`
	Quarantined bool              `json:"quarantined,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Identity    Identity          `json:"identity"`
	Policy      Policy            `json:"policy,omitempty"`    // empty: report
	Placement   Placement         `json:"placement,omitempty"` // empty: the host's
	MIG         *bool             `json:"mig,omitempty"`       // the mode asked for; nil: nobody has asked
	VFs         *int              `json:"vfs,omitempty"`       // how many were asked for; nil: nobody has asked
	VGPU        VGPUWish          `json:"vgpu,omitzero"`
}

// PartitionRecord is a partition that gpuvirt makes or made: enough to make it
// again in the same place, and to know that it is ours.
type PartitionRecord struct {
	ID        string    `json:"id"`
	GPU       ID        `json:"gpu"`
	Identity  Identity  `json:"identity"` // of the GPU
	Parent    string    `json:"parent"`
	Kind      Kind      `json:"kind"`
	Profile   string    `json:"profile"`
	Native    string    `json:"native"`
	Slot      string    `json:"slot,omitempty"`
	Compute   []Compute `json:"compute,omitempty"` // without UUIDs
	Handle    Handle    `json:"handle"`
	DeviceAPI string    `json:"device_api,omitempty"`
	Params    string    `json:"vgpu_params,omitempty"`
	// FormerDrivers are written before the functions lose them.
	FormerDrivers map[string]string `json:"former_drivers,omitempty"`

	State      PartitionState `json:"state"`
	Assignment string         `json:"assignment,omitempty"`
	Created    time.Time      `json:"created"`
}

// Partition returns the record as the partition a backend is asked to make or remove.
func (r PartitionRecord) Partition() Partition {
	return Partition{
		ID: r.ID, GPU: r.GPU, Parent: r.Parent, Kind: r.Kind, Profile: r.Profile, Native: r.Native,
		Slot: r.Slot, Compute: r.Compute, Handle: r.Handle, DeviceAPI: r.DeviceAPI, Params: r.Params,
		FormerDrivers: maps.Clone(r.FormerDrivers), Origin: OriginManaged, State: r.State, Assignment: r.Assignment, Created: r.Created,
	}
}

// AssignmentRecord is a wish and what was chosen for it.
type AssignmentRecord struct {
	Name       string    `json:"name"`
	Wish       Wish      `json:"wish"`
	VMName     string    `json:"vm_name"`
	Partition  string    `json:"partition"`
	GPU        ID        `json:"gpu"`
	Generation uint64    `json:"generation"`
	Created    time.Time `json:"created"`
	// Bound is set when the operation that carries the wish out has finished.
	Bound bool `json:"bound"`
}

// IdempotencyRecord remembers what a POST under an Idempotency-Key led to.
type IdempotencyRecord struct {
	Key       string    `json:"key"`
	Request   string    `json:"request"` // digest of method, path and body
	Operation string    `json:"operation"`
	Created   time.Time `json:"created"`
}
