package move

import (
	"fmt"
	"slices"
	"time"

	"gpuvirt/p2v/verify"
)

// AttemptKind is what was tried.
type AttemptKind string

// The kinds of attempt.
const (
	Rehearsal AttemptKind = "rehearsal" // the VM starts on a copy, without a network, and goes again
	Cutover   AttemptKind = "cutover"
)

// AttemptState is how far an attempt has come.
type AttemptState string

// The states of an attempt.
const (
	Asked   AttemptState = "asked"
	Running AttemptState = "running"
	// Moved is a cut-over whose source is off: its VM is to start, and to be looked at.
	Moved AttemptState = "moved"
	// Passed is a rehearsal, or a cut-over, whose VM was found to be well, or was taken as it is.
	Passed AttemptState = "passed"
	Failed AttemptState = "failed" // the source goes on as before
	// Withdrawn is one that somebody did not want any more; the source goes on as before.
	Withdrawn AttemptState = "withdrawn"
	// TakenBack is a cut-over that was rolled back when its source was off.
	TakenBack AttemptState = "taken-back"
)

// AttemptStates are all there are.
func AttemptStates() []AttemptState {
	return []AttemptState{Asked, Running, Moved, Passed, Failed, Withdrawn, TakenBack}
}

// Attempt is a rehearsal or a cut-over.
type Attempt struct {
	Kind  AttemptKind  `json:"kind"`
	Wish  CutWish      `json:"wish"`
	Actor string       `json:"actor"`
	Asked time.Time    `json:"asked"`
	State AttemptState `json:"state"`
	Began time.Time    `json:"began,omitzero"`
	Ended time.Time    `json:"ended,omitzero"`
	// Phase is what it is doing, or was when it failed.
	Phase string `json:"phase,omitempty"`
	// AtRest is when the source was told to come to rest, and Rest for how long it was, seconds.
	// Downtime is from then until the VM was known to be well, or taken as it is.
	AtRest   time.Time `json:"at_rest,omitzero"`
	Rest     float64   `json:"rest_seconds"`
	Downtime float64   `json:"downtime_seconds,omitempty"`
	// What the parts of it have taken that it has come through, seconds: comparing all of the disks, making the
	// VM's, and, of rehearsals that found nothing wrong, from its start until it was looked at. 0: it was not.
	Comparison float64 `json:"comparison_seconds,omitempty"`
	Conversion float64 `json:"conversion_seconds,omitempty"`
	Boot       float64 `json:"boot_seconds,omitempty"`
	// ConversionCut is after how many seconds the limit has ended the making of disks; 0: it has not.
	ConversionCut float64 `json:"conversion_cut_seconds,omitempty"`
	// CopyWaits is why no pass is made beside a rehearsal, which goes on; empty: passes are made.
	CopyWaits string `json:"copy_waits,omitempty"`
	// Problem is why it failed.
	Problem string `json:"problem,omitempty"`
	// Driver is the kernel's driver that is to hold the GPU of what was made; empty: none, or it is a person's to say.
	Driver string `json:"driver,omitempty"`
	// Left is what of the plan nobody has changed in the guest.
	Left []Left `json:"left"`
	// Before is what the person's checks said of the source.
	Before *verify.Baseline `json:"before,omitempty"`
	Report *verify.Report   `json:"report,omitempty"`
}

// Left is a change of the plan, or a part of it, that nobody has made in the guest.
type Left struct {
	ID    string   `json:"id"` // of the change
	What  string   `json:"what"`
	By    string   `json:"by"` // who makes it instead: conversion, guest, person, nobody
	Why   string   `json:"why"`
	Items []string `json:"items"`
}

// Over reports whether it has come to its end. The VM of one that has moved is still to be looked at.
func (a Attempt) Over() bool { return a.State != Asked && a.State != Running }

// CutWish says how the source is brought to rest.
type CutWish struct {
	// Stop are services of the source that are stopped before: what they hold in memory is
	// on the disk then. They are started again if the source goes on.
	Stop []string `json:"stop_services"`
	// Limit is for how long the source may be at rest, seconds; then it goes on by itself, and
	// the attempt has failed. 0: the plan's downtime.
	Limit int `json:"limit_seconds"`
	// Verify compares all of the disks with the mirrors meanwhile, and not only what was
	// written.
	Verify bool `json:"verify"`
	// Live is of rehearsals only: the source is not brought to rest, and the copy is as if
	// its cable had been pulled over a while.
	Live bool `json:"live,omitempty"`
	// WhenReady has it wait until all of it fits the limit and the budget, days if need be.
	WhenReady bool `json:"when_ready,omitempty"`
	// Unrehearsed is of cut-overs only: why there need be no rehearsal that passed.
	Unrehearsed string `json:"unrehearsed,omitempty"`
	// SourceOff is of cut-overs of servers whose disks alone are read: whoever asks says that the
	// server is off, and stays so. Nobody can see that from here.
	SourceOff bool `json:"source_off,omitempty"`
}

// Limits of what is asked for.
const (
	MaxLimit = 24 * time.Hour
	MaxStop  = 32
)

// Check refuses what makes no sense. The error says which field is wrong.
func (w CutWish) Check() error {
	switch {
	case w.Limit < 0 || w.Limit > int(MaxLimit.Seconds()):
		return fmt.Errorf("limit_seconds %d: it must be 1 to %d, or 0 for the plan's", w.Limit, int(MaxLimit.Seconds()))
	case len(w.Stop) > MaxStop:
		return fmt.Errorf("stop_services are %d, and %d at most", len(w.Stop), MaxStop)
	case w.Live && (w.Verify || len(w.Stop) > 0):
		return fmt.Errorf("live excludes verify and stop_services: the source is not brought to rest")
	}
	for i, s := range w.Stop {
		if !unitName.MatchString(s) {
			return fmt.Errorf("stop_services[%d] %q is no name of a unit", i, s)
		}
	}
	return nil
}

// MaxAttempts is how many attempts are kept.
const MaxAttempts = 20

// Pending is the attempt that is asked for or under way; nil: none is.
func (r *Record) Pending() *Attempt {
	if n := len(r.Attempts); n > 0 && !r.Attempts[n-1].Over() {
		return &r.Attempts[n-1]
	}
	return nil
}

// Last is the newest attempt of a kind; nil: there was none.
func (r *Record) Last(kind AttemptKind) *Attempt {
	for i := range slices.Backward(r.Attempts) {
		if r.Attempts[i].Kind == kind {
			return &r.Attempts[i]
		}
	}
	return nil
}

// Settle says what has become of a cut-over whose source is off.
func (r *Record) Settle(as AttemptState) {
	a := r.Last(Cutover)
	if a == nil || r.Fence == FenceNone || a.State != Moved && a.State != Passed { // as a version before had it
		return
	}
	a.State = as
}

// Try adds an attempt, and forgets the oldest of too many.
func (r *Record) Try(a Attempt) {
	r.Attempts = append(r.Attempts, a)
	if n := len(r.Attempts) - MaxAttempts; n > 0 {
		r.Attempts = r.Attempts[n:]
	}
}

// Fence says whether the source can still write, and be met.
type Fence string

// The fences.
const (
	FenceNone  Fence = ""      // it runs
	FenceAsked Fence = "asked" // it was told to power off, or that it is done, and it is not known whether it is off
	FenceOff   Fence = "off"   // it is off: from here on there is only the VM
)
