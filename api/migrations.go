package api

import (
	"time"

	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/move"
)

// MigrationRequest asks for the move of an assessed server into a VM.
type MigrationRequest struct {
	Name       string       `json:"name"`
	Assessment string       `json:"assessment"`
	Plan       *PlanRequest `json:"plan,omitempty"`
	Copy       *CopyRequest `json:"copy,omitempty"`
}

// MigrationPatch changes how the disks of a migration are copied.
type MigrationPatch struct {
	Copy CopyRequest `json:"copy"`
}

// CopyRequest says how disks are copied. What is left out has its default; of a migration
// that is there it stays.
type CopyRequest struct {
	BandwidthBytesPerSecond *uint64 `json:"bandwidth_bytes_per_second,omitempty"` // 0: no bound
	IntervalSeconds         *int    `json:"interval_seconds,omitempty"`
	Connections             *int    `json:"connections,omitempty"`
	Compress                *bool   `json:"compress,omitempty"`
}

// PlanRequest is what a person asks of a plan. All of it may be left out.
type PlanRequest struct {
	Partitions   []PlanPartitionRequest `json:"partitions,omitempty"`
	Prefer       string                 `json:"prefer,omitempty"` // card, mig-backed, time-sliced
	GuestDriver  string                 `json:"guest_driver,omitempty"`
	LicenceToken bool                   `json:"licence_token,omitempty"`
	// MemoryBytes and Threads are the VM's; 0: as the source has.
	MemoryBytes uint64 `json:"memory_bytes,omitempty"`
	Threads     int    `json:"threads,omitempty"`
	// Disks are those that are moved; none: all that are not removable.
	Disks []string `json:"disks,omitempty"`
	// CopyRate and ChangeRate are known ones, in bytes a second; 0: assumed.
	CopyRate   uint64 `json:"copy_bytes_per_second,omitempty"`
	ChangeRate uint64 `json:"change_bytes_per_second,omitempty"`
	// DowntimeSeconds is the budget; 0: none.
	DowntimeSeconds float64         `json:"downtime_seconds,omitempty"`
	Waivers         []WaiverRequest `json:"waivers,omitempty"`
}

// PlanPartitionRequest is what is asked for one GPU of the source.
type PlanPartitionRequest struct {
	Source      string `json:"source,omitempty"`  // its address; empty: a partition beside those for what was seen
	GPU         string `json:"gpu,omitempty"`     // of this host; empty: any
	Profile     string `json:"profile,omitempty"` // empty: any
	MemoryBytes uint64 `json:"memory_bytes,omitempty"`
	SMs         int    `json:"sms,omitempty"`
	Class       string `json:"class,omitempty"` // compute, graphics
	None        bool   `json:"none,omitempty"`  // no partition for this GPU
}

// WaiverRequest is somebody's word that a blocker does not count. Who says so is who asks.
type WaiverRequest struct {
	ID     string `json:"id"` // of the concern
	Reason string `json:"reason"`
}

// Migration is the move of a server into a VM.
type Migration struct {
	Name       string     `json:"name"`
	Assessment string     `json:"assessment"`
	Hostname   string     `json:"hostname"` // as the server said
	Source     Source     `json:"source"`
	Phase      string     `json:"phase"`
	Reason     string     `json:"reason,omitempty"` // why a person must act
	Operation  string     `json:"operation"`
	CreatedBy  string     `json:"created_by"`
	Created    time.Time  `json:"created"`
	Heard      *time.Time `json:"heard,omitempty"` // when the source was heard of last; nil: never

	Plan  assess.Wish `json:"plan"` // as it was asked for
	Copy  move.Copy   `json:"copy"`
	Disks []move.Disk `json:"disks"`
	// Forecast is what the last passes lead to; nil: there was none yet.
	Forecast *move.Forecast `json:"forecast,omitempty"`
}

// MigrationPlan says how a server would be moved to this host as it is now.
type MigrationPlan struct {
	assess.Plan

	// Problem is why the request would be refused for another reason than the plan's own, such
	// as a name that is taken; absent if there is none.
	Problem *Problem `json:"problem,omitempty"`
}
