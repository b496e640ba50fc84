// Package move is the vocabulary of moves: what was asked for, how far a move is, and
// what its copy has done so far. Sizes are bytes, times UTC, durations seconds.
package move

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"time"

	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/report"
)

// RecordMigration is the kind of record that moves are kept as; its key is the name.
const RecordMigration = "migration"

// Phase is how far a move is. It is told by the operation that carries the move out, and
// kept only where that has ended.
type Phase string

// The phases of a move.
const (
	PhasePlanned     Phase = "planned"      // its VM is being defined, its partitions are being reserved
	PhaseReserved    Phase = "reserved"     // that is done, and the source has not been reached yet
	PhaseSyncing     Phase = "syncing"      // the disks are copied, the source runs
	PhaseReady       Phase = "ready"        // a cut-over would take no longer than the downtime that is allowed
	PhaseRehearsing  Phase = "rehearsing"   // the VM is tried on a copy of the mirrors, the source runs and is copied on
	PhaseCuttingOver Phase = "cutting-over" // the source is at rest, then off; the VM is made of its mirrors
	PhaseVerifying   Phase = "verifying"    // the VM runs, and is looked at
	PhaseDone        Phase = "done"         // the VM is what the server was
	PhaseWaiting     Phase = "waiting"      // a person must act: see the operation's reason
	PhaseRollingBack Phase = "rolling-back" // what was made here is taken away
	PhaseRolledBack  Phase = "rolled-back"  // nothing of it is left here; the source is as it was
	PhaseFailed      Phase = "failed"       // taking it away failed: see the operation
)

// Phases are all there are.
func Phases() []Phase {
	return []Phase{PhasePlanned, PhaseReserved, PhaseSyncing, PhaseReady, PhaseRehearsing, PhaseCuttingOver, PhaseVerifying, PhaseDone, PhaseWaiting, PhaseRollingBack, PhaseRolledBack, PhaseFailed}
}

// Limits of what is asked for.
const (
	DefaultInterval = 10 * time.Minute
	MinInterval     = 10 * time.Second
	MaxInterval     = 24 * time.Hour
	MaxConnections  = 16
	// DefaultConnections was closest to nbdcopy of one to eight (ADR 28).
	DefaultConnections = 2
	// DefaultDowntime is the budget where nobody has given one.
	DefaultDowntime = 10 * time.Minute
)

// Wish asks for a move.
type Wish struct {
	Name       string
	Assessment string // of the server that is moved
	Plan       assess.Wish
	Copy       Copy
	VM         VMWish
	// DisksFrom says where each disk is read of a server that is off; none: it runs, and is
	// reached by ssh. Certificates names a folder with those of NBD.
	DisksFrom    []DiskFrom
	Certificates string
	// Lease is for how long its partitions are kept while nobody does anything with it, seconds, 0:
	// until it ends; nil: as the host has it.
	Lease *int
	// Keys open its encrypted volumes.
	Keys []Key
}

// Copy says how the disks are copied. Zero values are the defaults.
type Copy struct {
	// Bandwidth bounds what comes from the source, in bytes a second; 0: nothing does.
	Bandwidth uint64 `json:"bandwidth_bytes_per_second"`
	// Interval is between the beginnings of two passes, in seconds.
	Interval int `json:"interval_seconds"`
	// Connections are how many there are to the source at once; 0: 2.
	Connections int `json:"connections"`
	// Compress has the source compress what that makes smaller: for slow networks.
	Compress bool `json:"compress"`
}

// Complete fills in what was left out.
func (c Copy) Complete() Copy {
	c.Interval = cmp.Or(c.Interval, int(DefaultInterval.Seconds()))
	c.Connections = cmp.Or(c.Connections, DefaultConnections)
	return c
}

// Check refuses what makes no sense. The error says which field is wrong.
func (c Copy) Check() error {
	switch {
	case c.Bandwidth != 0 && c.Bandwidth < 64<<10 || c.Bandwidth > math.MaxInt64:
		return fmt.Errorf("bandwidth_bytes_per_second %d: it must be 65536 or more, or 0 for no bound", c.Bandwidth)
	case c.Interval != 0 && (c.Interval < int(MinInterval.Seconds()) || c.Interval > int(MaxInterval.Seconds())):
		return fmt.Errorf("interval_seconds %d: it must be %d to %d", c.Interval, int(MinInterval.Seconds()), int(MaxInterval.Seconds()))
	case c.Connections < 0 || c.Connections > MaxConnections:
		return fmt.Errorf("connections %d: it must be 1 to %d", c.Connections, MaxConnections)
	}
	return nil
}

// Record is a move as it is kept.
type Record struct {
	Name       string        `json:"name"`
	Assessment string        `json:"assessment"`
	Hostname   string        `json:"hostname"` // as the source said
	Source     report.Source `json:"source"`   // zero: nobody has said how it is reached
	Plan       assess.Wish   `json:"plan"`
	Copy       Copy          `json:"copy"`
	Actor      string        `json:"actor"`
	Created    time.Time     `json:"created"`
	Operation  string        `json:"operation"`
	Disks      []Disk        `json:"disks"`
	Wanted     VMWish        `json:"wanted"`
	// DisksFrom says where each disk is read of a source that is off, with the certificates of this
	// name; none: it is reached by ssh.
	DisksFrom    []DiskFrom `json:"disks_from,omitempty"`
	Certificates string     `json:"certificates,omitempty"`
	// Keys open its encrypted volumes. Passphrases that were sent are not in here.
	Keys []Key `json:"keys,omitempty"`
	// VM is the VM to be; nil: it was begun by a version that only copied.
	VM *VM `json:"vm,omitempty"`
	// Reservation is how long its partitions are kept; nil: there are none, it has ended, or a
	// version has begun it that kept them until then.
	Reservation *Reservation `json:"reservation,omitempty"`
	// Attempts are the last rehearsals and cut-overs, oldest first.
	Attempts []Attempt `json:"attempts,omitempty"`
	Fence    Fence     `json:"fence,omitempty"`
	// BootID is the source's when it was told to power off.
	BootID string `json:"boot_id,omitempty"`
	// CameFrom is the address of a server that came to us, was told that it is done, and is off when
	// nothing answers there any more; zero: none, or a person says that it is off.
	CameFrom netip.Addr `json:"came_from,omitzero"`
	// Accepted is who has taken the VM though a check failed, and why.
	Accepted string `json:"accepted,omitempty"`
	// SeenIn is the boot ID of the source when it was known last which of its disks are these; empty:
	// a version has begun it that did not ask.
	SeenIn string `json:"seen_in_boot,omitempty"`
	// Heard is when the source was heard of last.
	Heard time.Time `json:"heard,omitzero"`
	// Forecast is what a cut-over would take; nil: there was no pass yet.
	Forecast *Forecast `json:"forecast,omitempty"`
	// Why is what one ended for that took itself back; empty: somebody has asked for it, or a version
	// before did not keep it.
	Why string `json:"why,omitempty"`
	// Ended is the phase of a move whose operation has ended; empty: it goes on.
	Ended Phase `json:"ended,omitempty"`
}

// Migration is a move with how far it is.
type Migration struct {
	Record

	Phase  Phase
	Reason string // why a person must act, empty: nobody must
	// Abandoned is set where nobody works on it any more though it has not ended: its mirrors
	// may still be here.
	Abandoned bool
	// Locked are the volumes whose passphrase was sent and is not held any more, as the daemon was
	// started since.
	Locked []string
	// Unverified is set where it waits as a check of its VM has failed.
	Unverified bool
	// Progress is how far the pass over a disk is that is under way; nil: none is.
	Progress *Progress
}

// Progress is how far a pass over a disk is, while it is under way. It is not kept.
type Progress struct {
	Disk  string `json:"disk"`
	Done  uint64 `json:"done_bytes"`       // that are settled, by copying or as equal
	Total uint64 `json:"total_bytes"`      // that the pass looks at
	Rate  uint64 `json:"bytes_per_second"` // of Done, in the last seconds
	// Remaining is what is left at that rate, seconds; nil: it is not known.
	Remaining *float64 `json:"remaining_seconds,omitempty"`
}

// Disk is a disk that is moved.
type Disk struct {
	Name string `json:"name"` // as the source's kernel called it when it was assessed: "nvme0n1"
	ID   string `json:"id"`   // what tells it from all other disks
	Size uint64 `json:"size_bytes"`
	// Twins are the other disks that only their names told from it when the source was assessed.
	Twins int `json:"twins,omitempty"`
	// Passes are the last ones, oldest first, and how many there were in all.
	Passes []Pass `json:"passes"`
	Total  int    `json:"passes_total"`
}

// Pass is one pass over a disk.
type Pass struct {
	Started  time.Time `json:"started"`
	Seconds  float64   `json:"seconds"`
	Bytes    uint64    `json:"bytes"`         // that were looked at
	Written  uint64    `json:"written_bytes"` // that had changed
	Sent     uint64    `json:"sent_bytes"`    // that came over the network
	Complete bool      `json:"complete"`      // it was not broken off
	// Tracked is set where the source told what had changed, so that only that was looked at.
	Tracked bool `json:"tracked"`
}

// MaxPasses is how many passes of a disk are kept.
const MaxPasses = 50

// Add adds a pass, and forgets the oldest of too many, but never the first.
func (d *Disk) Add(p Pass) {
	d.Passes = append(d.Passes, p)
	d.Total++
	if len(d.Passes) > MaxPasses {
		d.Passes = append(d.Passes[:1], d.Passes[2:]...)
	}
}
