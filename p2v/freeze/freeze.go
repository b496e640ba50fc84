// Package freeze brings a physical server to rest for the last pass over its disks, and back
// to life. Serve runs on the server: it stops services that are named, freezes the filesystems
// on the disks, tells what is written to the disks nevertheless, and can power the server off.
// A Client is the other end, on this host.
//
// A server that is frozen and that nobody thaws is a dead server. So Serve thaws by itself: when
// the connection ends, when the time that was asked for is over, on a signal, on whatever goes
// wrong. The kernel keeps a filesystem frozen also when the process that froze it is killed:
// for that a second process, the guard, thaws when the first has ended, and the other way
// round. Only an acknowledged order to power off is not taken back.
//
// Both sides speak lines of JSON. Neither trusts the other: lines, lists and times are bounded.
package freeze

import (
	"fmt"
	"regexp"
	"time"
)

// version of what is spoken. Both ends are of one build; another one is refused.
const version = 1

// Limits of what is said.
const (
	maxQuestion    = 64 << 10 // bytes of a line
	maxAnswer      = 4 << 20  // bytes of a line
	maxFilesystems = 512
	maxDevices     = 4096
	maxUnits       = 64
	// MaxLimit is the longest that a server may be frozen.
	MaxLimit = 24 * time.Hour
)

// A Filesystem is one that is mounted and lies on the disks, or may do so.
type Filesystem struct {
	Mount  string `json:"mount"`  // where; one of several places
	Type   string `json:"type"`   // ext4, xfs, …
	Source string `json:"source"` // what it lies on, as the kernel tells
	// Freezable is not set where writes to it go on while the others are frozen. Before Freeze
	// this is judged by the type.
	Freezable bool `json:"freezable"`
}

// Facts are what is to be known before a server is frozen.
type Facts struct {
	// BootID is that of its kernel: another one each time it starts. It is empty where the server
	// is off, see ServeOff.
	BootID string `json:"boot_id"`
	// Filesystems are those on the disks, in the order in which they are frozen.
	Filesystems []Filesystem `json:"filesystems"`
	// HungTaskPanic is set where the kernel panics when a task hangs for HungTaskSeconds (0: it
	// does not look), as each does that writes to a frozen filesystem.
	HungTaskPanic   bool `json:"hung_task_panic"`
	HungTaskSeconds int  `json:"hung_task_seconds"`
	// WatchdogSeconds is after how long the hardware resets the server where nobody feeds its
	// watchdog, 0: none is active, or it is not known. systemd feeds it, which may hang, too.
	WatchdogSeconds int `json:"watchdog_seconds"`
}

// Written is what was written to a device, below all filesystems or into one that cannot be
// frozen.
type Written struct {
	Device string `json:"device"` // a partition, or a disk where it was in none
	Bytes  uint64 `json:"bytes"`  // discarded ones, too
}

// A RefusedError is what a source says of why it does not do what it was asked. After Freeze
// it says that nothing is frozen.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return "the source refuses: " + e.Reason }

// A LostError says that the source does not answer, or not as it has to. The connection is
// closed then, on which a source thaws.
type LostError struct{ Reason string }

func (e *LostError) Error() string { return "cannot speak with the source: " + e.Reason }

// An UnsureError says that a source was told to power off and has not acknowledged it: it
// may do it, or may have thawed and go on.
type UnsureError struct{ Err error }

func (e *UnsureError) Error() string {
	return "it is not known whether the source powers off: " + e.Err.Error()
}

// Unwrap returns why.
func (e *UnsureError) Unwrap() error { return e.Err }

type hello struct {
	Version int    `json:"version"`
	Facts   Facts  `json:"facts"`
	Error   string `json:"error,omitempty"`
}

// What a source is asked.
const (
	doFreeze = "freeze"
	doQuiet  = "quiet"
	doThaw   = "thaw"
	doOff    = "off"
	doHeard  = "heard" // the acknowledgement of off has arrived; not answered but where off fails
)

type question struct {
	Do      string   `json:"do"`
	LimitMS int64    `json:"limit_ms,omitempty"` // of freeze: after how long it thaws by itself
	Stop    []string `json:"stop,omitempty"`     // of freeze: units
}

func (q question) check() error {
	switch q.Do {
	case doFreeze:
		if q.LimitMS < 1 || q.LimitMS > MaxLimit.Milliseconds() {
			return fmt.Errorf("cannot freeze for %d ms: at most %s", q.LimitMS, MaxLimit)
		}
		return checkUnits(q.Stop)
	case doQuiet, doThaw, doOff, doHeard:
		return nil
	}
	return fmt.Errorf("cannot do %q", q.Do)
}

type answer struct {
	Error       string       `json:"error,omitempty"`
	Filesystems []Filesystem `json:"filesystems,omitempty"` // after freeze
	Written     []Written    `json:"written,omitempty"`     // after quiet
}

// unitName is what systemd takes as the name of a unit, and no option or pattern.
var unitName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9:_.\\@-]{0,254}$`)

func checkUnits(names []string) error {
	if len(names) > maxUnits {
		return fmt.Errorf("cannot stop %d units: at most %d", len(names), maxUnits)
	}
	for _, name := range names {
		if !unitName.MatchString(name) {
			return fmt.Errorf("cannot stop %q: it is no name of a unit", name)
		}
	}
	return nil
}
