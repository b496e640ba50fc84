// Package move is the vocabulary of moves: what was asked for, how far a move is, and
// what its copy has done so far. Sizes are bytes, times UTC, durations seconds.
package move

import (
	"cmp"
	"fmt"
	"math"
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
	PhasePlanned     Phase = "planned"      // its VM is defined and its partitions are reserved
	PhaseSyncing     Phase = "syncing"      // the disks are copied, the source runs
	PhaseReady       Phase = "ready"        // so little changes that the last pass fits the downtime
	PhaseRehearsing  Phase = "rehearsing"   // the VM is tried on a copy of the mirrors, the source runs
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
	return []Phase{PhasePlanned, PhaseSyncing, PhaseReady, PhaseRehearsing, PhaseCuttingOver, PhaseVerifying, PhaseDone, PhaseWaiting, PhaseRollingBack, PhaseRolledBack, PhaseFailed}
}

// Limits of what is asked for.
const (
	DefaultInterval = 10 * time.Minute
	MinInterval     = 10 * time.Second
	MaxInterval     = 24 * time.Hour
	MaxConnections  = 16
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
}

// Copy says how the disks are copied. Zero values are the defaults.
type Copy struct {
	// Bandwidth bounds what comes from the source, in bytes a second; 0: nothing does.
	Bandwidth uint64 `json:"bandwidth_bytes_per_second"`
	// Interval is between the beginnings of two passes, in seconds.
	Interval int `json:"interval_seconds"`
	// Connections are how many there are to the source at once; 0: 4.
	Connections int `json:"connections"`
	// Compress has the source compress what that makes smaller: for slow networks.
	Compress bool `json:"compress"`
}

// Complete fills in what was left out.
func (c Copy) Complete() Copy {
	c.Interval = cmp.Or(c.Interval, int(DefaultInterval.Seconds()))
	c.Connections = cmp.Or(c.Connections, 4)
	return c
}

// Check refuses what makes no sense. The error says which field is wrong.
func (c Copy) Check() error {
	switch {
	case c.Bandwidth != 0 && c.Bandwidth < 64<<10 || c.Bandwidth > math.MaxInt64:
		return fmt.Errorf("bandwidth_bytes_per_second %d is none: 65536 or more, or 0 for no bound", c.Bandwidth)
	case c.Interval != 0 && (c.Interval < int(MinInterval.Seconds()) || c.Interval > int(MaxInterval.Seconds())):
		return fmt.Errorf("interval_seconds %d is none: %d to %d", c.Interval, int(MinInterval.Seconds()), int(MaxInterval.Seconds()))
	case c.Connections < 0 || c.Connections > MaxConnections:
		return fmt.Errorf("connections %d is none: 1 to %d", c.Connections, MaxConnections)
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
	// VM is the VM to be; nil: it was begun by a version that only copied.
	VM *VM `json:"vm,omitempty"`
	// Attempts are the last rehearsals and cut-overs, oldest first.
	Attempts []Attempt `json:"attempts,omitempty"`
	Fence    Fence     `json:"fence,omitempty"`
	// BootID is the source's when it was told to power off.
	BootID string `json:"boot_id,omitempty"`
	// Accepted is who has taken the VM though a check failed, and why.
	Accepted string `json:"accepted,omitempty"`
	// Heard is when the source was heard of last.
	Heard time.Time `json:"heard,omitzero"`
	// Forecast is what the last passes lead to; nil: there was none yet.
	Forecast *Forecast `json:"forecast,omitempty"`
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
	// Unverified is set where it waits as a check of its VM has failed.
	Unverified bool
}

// Disk is a disk that is moved.
type Disk struct {
	Name string `json:"name"` // of the source's kernel: "nvme0n1"
	ID   string `json:"id"`   // what tells it from all other disks
	Size uint64 `json:"size_bytes"`
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

// Forecast is what the last pass would take now, with the source at rest.
type Forecast struct {
	FinalSeconds   float64 `json:"final_seconds"`
	SettledSeconds float64 `json:"settled_seconds"` // what it comes to after many more; below 0: nothing
	BudgetSeconds  float64 `json:"budget_seconds"`
	Fits           bool    `json:"fits"`
	Converges      bool    `json:"converges"`
}

// FitsIn reports whether the last pass fits a limit, seconds; 0: the budget.
func (f Forecast) FitsIn(limit int) bool {
	if limit > 0 {
		return f.FinalSeconds <= float64(limit)
	}
	return f.Fits
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
