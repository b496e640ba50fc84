package move

import (
	"fmt"
	"slices"
	"time"
)

// ReservationState is whether the partitions of a move are held.
type ReservationState string

// The states of a reservation.
const (
	Reserving ReservationState = "reserving" // they are being reserved, at first or again
	Reserved  ReservationState = "reserved"
	// Ending is as Reserved, and they are given back soon unless somebody does something.
	Ending    ReservationState = "ending"
	Releasing ReservationState = "releasing" // they are being given back
	Released  ReservationState = "released"  // others may have them
)

// ReservationStates are all there are.
func ReservationStates() []ReservationState {
	return []ReservationState{Reserving, Reserved, Ending, Releasing, Released}
}

// Limits of leases.
const (
	MinLease = time.Hour
	MaxLease = 365 * 24 * time.Hour
	// mostNotice is how long before the end of a lease it is told, at most; else it is a quarter of the lease.
	mostNotice = 7 * 24 * time.Hour
)

// CheckLease refuses what is no lease, in seconds; 0 is one without an end.
func CheckLease(seconds int) error {
	if seconds != 0 && (seconds < int(MinLease.Seconds()) || seconds > int(MaxLease.Seconds())) {
		return fmt.Errorf("lease_seconds %d: it must be %d to %d, or 0 for no end", seconds, int(MinLease.Seconds()), int(MaxLease.Seconds()))
	}
	return nil
}

// Reservation tells how long the partitions of a move are kept.
type Reservation struct {
	State ReservationState `json:"state"`
	// Lease is for how long they are kept while nobody does anything with the move, seconds; 0:
	// until it ends.
	Lease int `json:"lease_seconds"`
	// Until is when they are given back; zero: not by themselves.
	Until time.Time `json:"until,omitzero"`
	// Copied is when all of the disks had been passed over for the first time. Before that the
	// lease does not run while they are copied.
	Copied time.Time `json:"copied,omitzero"`
	// Problem is why they could not be reserved again, or given back.
	Problem string `json:"problem,omitempty"`
}

// Held reports whether the VM has its partitions.
func (r *Reservation) Held() bool { return r == nil || r.State == Reserved || r.State == Ending }

// GoesOn reports whether a move needs what is reserved for it: it has not ended, and is not taken back.
func (m Migration) GoesOn() bool {
	return m.Ended == "" && !m.Abandoned && m.Phase != PhaseRollingBack && m.Phase != PhaseFailed
}

// Needs reports whether a move that goes on has its VM's partition by an assignment of this name. When its source
// is off, another partition may be what it needs.
func (m Migration) Needs(assignment, vm string) bool {
	return m.GoesOn() && m.Fence == FenceNone && m.VM != nil && m.VM.UUID == vm && slices.ContainsFunc(m.VM.Slices, func(s Slice) bool { return s.Assignment == assignment })
}

// Ends is when the partitions of a move are given back if nobody does anything with it; zero: they
// are not by themselves, or not while what is under way is.
func (r *Record) Ends() time.Time {
	if l := r.Reservation; l != nil && l.Held() && r.Fence == FenceNone && r.Pending() == nil {
		return l.Until
	}
	return time.Time{}
}

// Renew begins the lease anew: somebody has done something. Of partitions that are not held there
// is nothing to renew.
func (r *Reservation) Renew(now time.Time) {
	if r == nil || !r.Held() {
		return
	}
	r.State, r.Until, r.Problem = Reserved, time.Time{}, ""
	if r.Lease > 0 {
		r.Until = now.Add(r.lease()).UTC()
	}
}

// Want has partitions that were given back reserved again, and the lease of others begin anew.
func (r *Reservation) Want(now time.Time) {
	if r == nil || r.Held() {
		r.Renew(now)
		return
	}
	r.State, r.Until, r.Problem = Reserving, time.Time{}, ""
}

// Pass moves it on as time has passed, while nobody does anything. They are never given back
// before it was told for as long as Notice says: this clock may have been wrong, or off.
func (r *Reservation) Pass(now time.Time) {
	if r == nil || r.Lease == 0 || !r.Held() {
		return
	}
	if latest := now.Add(r.lease()); r.Until.IsZero() || r.Until.After(latest) { // the clock has gone back
		r.Until = latest.UTC()
	}
	switch soon := !now.Before(r.Until.Add(-r.Notice())); {
	case !soon:
		r.State = Reserved
	case r.State == Reserved:
		r.State = Ending
		if told := now.Add(r.Notice()); r.Until.Before(told) {
			r.Until = told.UTC()
		}
	case !now.Before(r.Until):
		r.State, r.Until = Releasing, time.Time{}
	}
}

// Notice is how long before the end it is told.
func (r *Reservation) Notice() time.Duration { return min(r.lease()/4, mostNotice) }

func (r *Reservation) lease() time.Duration { return time.Duration(r.Lease) * time.Second }
