package api

import (
	"time"

	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/move"
)

// MigrationRequest asks for the move of an assessed server into a VM.
type MigrationRequest struct {
	// Name may be left out in a dry run: then nothing is told of it.
	Name       string       `json:"name,omitempty"`
	Assessment string       `json:"assessment"`
	Plan       *PlanRequest `json:"plan,omitempty"`
	Copy       *CopyRequest `json:"copy,omitempty"`
	VM         *VMRequest   `json:"vm,omitempty"`
	// DisksFrom says where each disk is read of a server that is off; left out: it runs, and is
	// reached as it was when it was assessed. Certificates names a folder, in the host's folder of
	// credentials, with those of NBD.
	DisksFrom    []DiskFromRequest `json:"disks_from,omitempty"`
	Certificates string            `json:"certificates,omitempty"`
	// LeaseSeconds is for how long its partitions are kept while nobody does anything with it; 0:
	// until it ends. Left out: as the host's setting p2v.lease has it.
	LeaseSeconds *int `json:"lease_seconds,omitempty"`
	// Keys open its encrypted volumes for the conversion.
	Keys []KeyRequest `json:"keys,omitempty"`
}

// KeyRequest opens an encrypted volume: one of Credential and Passphrase.
type KeyRequest struct {
	// Volume is the partition or the disk that it lies on, as the server names it ("nvme0n1p3"), or
	// the UUID of its LUKS header.
	Volume string `json:"volume"`
	// Credential is the name of a file with the passphrase in the host's folder of credentials.
	Credential string `json:"credential,omitempty"`
	// Passphrase is held in the daemon's memory, and asked for again when that was started anew.
	Passphrase string `json:"passphrase,omitempty"`
}

// Key is what an encrypted volume is opened with. A passphrase is never shown.
type Key struct {
	Volume     string `json:"volume"`
	Credential string `json:"credential,omitempty"` // empty: a passphrase was sent
	Wanted     bool   `json:"wanted"`               // it was sent, and is wanted again
}

// DiskFromRequest says where a disk is read: one of Image and NBD.
type DiskFromRequest struct {
	Disk  string `json:"disk"`            // as the server was inspected with: "nvme0n1"
	Image string `json:"image,omitempty"` // the absolute path of a raw image or a block device of the host
	NBD   string `json:"nbd,omitempty"`   // the URI of an export, or move.VirtP2V
}

// VMRequest says what the VM is to be like, beside what the plan has. All of it may be left
// out.
type VMRequest struct {
	Name string `json:"name,omitempty"` // as the migration if left out
	// Network and Bridge are where NICs are plugged in that NICs does not name: a network of
	// libvirt, or a bridge of the host. Neither: their cable is out.
	Network string       `json:"network,omitempty"`
	Bridge  string       `json:"bridge,omitempty"`
	NICs    []NICRequest `json:"nics,omitempty"`
	// CPU is a model of libvirt, or host-passthrough, host-model, maximum; left out:
	// host-passthrough.
	CPU string `json:"cpu,omitempty"`
	// Emulated has it run without the processor's help, which is slow.
	Emulated bool `json:"emulated,omitempty"`
	// Convert is virt-v2v, which is the default, or none.
	Convert string         `json:"convert,omitempty"`
	Checks  []CheckRequest `json:"checks,omitempty"`
}

// NICRequest says where a NIC of the server is plugged in. Neither: its cable is out.
type NICRequest struct {
	MAC     string `json:"mac"`
	Network string `json:"network,omitempty"`
	Bridge  string `json:"bridge,omitempty"`
}

// CheckRequest is a command that tells whether the workload is well, in the VM and on the
// server before.
type CheckRequest struct {
	Name    string   `json:"name"`
	Command []string `json:"command"`           // its words; there is no shell
	Seconds int      `json:"seconds,omitempty"` // it has; default 60
	Exit    int      `json:"exit,omitempty"`    // its exit status when all is well
	Output  string   `json:"output,omitempty"`  // an expression (RE2) that its output matches
}

// TryRequest says how the server is brought to rest for a rehearsal or a cut-over.
type TryRequest struct {
	// StopServices are services of the server that are stopped before, and started again if it
	// goes on.
	StopServices []string `json:"stop_services,omitempty"`
	// LimitSeconds is for how long it may be at rest; then it goes on by itself, and the try
	// has failed. 0: the plan's downtime.
	LimitSeconds int `json:"limit_seconds,omitempty"`
	// Verify compares all of the disks meanwhile.
	Verify bool `json:"verify,omitempty"`
	// Live is of rehearsals: the server is not brought to rest.
	Live bool `json:"live,omitempty"`
	// WhenReady is of cut-overs: it waits until all of it fits the limit, and its downtime the budget.
	WhenReady bool `json:"when_ready,omitempty"`
	// Unrehearsed is of cut-overs: why no rehearsal has to have passed.
	Unrehearsed string `json:"unrehearsed,omitempty"`
	// SourceOff is of cut-overs of servers whose disks alone are read: the server is off, and stays
	// so. Nobody can see that from the host.
	SourceOff bool `json:"source_off,omitempty"`
}

// ReserveRequest keeps the partitions of a migration for longer, or reserves them again.
type ReserveRequest struct {
	// LeaseSeconds is for how long from now, and from whatever is done with it then; 0: until it
	// ends. Left out: as before.
	LeaseSeconds *int `json:"lease_seconds,omitempty"`
}

// AcceptRequest takes a VM as it is though a check of it has failed.
type AcceptRequest struct {
	Reason string `json:"reason"`
}

// MigrationPatch changes how the disks of a migration are copied, and gives keys in place of those of
// the same volumes.
type MigrationPatch struct {
	Copy *CopyRequest `json:"copy,omitempty"`
	Keys []KeyRequest `json:"keys,omitempty"`
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
	Hostname   string     `json:"hostname"`         // as the server said
	Source     *Source    `json:"source,omitempty"` // nil: it was never reached from the host
	Phase      string     `json:"phase"`
	Reason     string     `json:"reason,omitempty"` // why a person must act
	Operation  string     `json:"operation"`
	CreatedBy  string     `json:"created_by"`
	Created    time.Time  `json:"created"`
	Heard      *time.Time `json:"heard,omitempty"` // when the source was heard of last; nil: never

	Plan  assess.Wish `json:"plan"` // as it was asked for
	Copy  move.Copy   `json:"copy"`
	Disks []move.Disk `json:"disks"`
	// Progress is how far the pass over a disk is that is under way; nil: none is.
	Progress *move.Progress `json:"progress,omitempty"`
	// Forecast is what a cut-over would take; nil: there was no pass yet, or the server was told to power off.
	Forecast *move.Forecast `json:"forecast,omitempty"`

	Wanted move.VMWish `json:"wanted"`       // of the VM
	VM     *move.VM    `json:"vm,omitempty"` // nil: it was begun by a version that only copied
	// Reservation tells whether the VM's partitions are held for it; nil: it gets none, or has them
	// for good.
	Reservation *Reservation `json:"reservation,omitempty"`
	// ReservedUntil is when they are given back if nobody does anything with the migration; nil:
	// not by themselves.
	ReservedUntil *time.Time `json:"reserved_until,omitempty"`
	// Attempts are the last rehearsals and cut-overs, oldest first.
	Attempts []move.Attempt `json:"attempts"`
	// DisksFrom says where each disk is read of a server that is off, and Certificates what with.
	DisksFrom    []move.DiskFrom `json:"disks_from,omitempty"`
	Certificates string          `json:"certificates,omitempty"`
	// Keys are what its encrypted volumes are opened with.
	Keys []Key `json:"keys,omitempty"`
	// Fence is empty while the server runs, asked where it is not known whether it is off, and
	// off.
	Fence    string `json:"fence,omitempty"`
	Accepted string `json:"accepted,omitempty"` // who has taken the VM though a check failed, and why
}

// Reservation tells whether partitions are held for a migration.
type Reservation struct {
	State string `json:"state"` // reserving, reserved, ending, releasing, released
	// LeaseSeconds is for how long they are kept while nobody does anything with it; 0: until it
	// ends.
	LeaseSeconds int    `json:"lease_seconds"`
	Problem      string `json:"problem,omitempty"` // why they could not be reserved again, or given back
}

// MigrationPlan says how a server would be moved to this host as it is now.
type MigrationPlan struct {
	assess.Plan

	// Problem is why the request would be refused for another reason than the plan's own, such
	// as a name that is taken; absent if there is none.
	Problem *Problem `json:"problem,omitempty"`
}
