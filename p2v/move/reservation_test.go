package move

import (
	"testing"
	"time"
)

// A lease is told of before it ends, ends when it was, and whatever a clock does nobody loses
// partitions who was not told for as long as it is promised.
func TestLease(t *testing.T) {
	begin := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	lease := 20 * day // which is told of 5 days before
	type at struct {
		after time.Duration // since the beginning, as the clock says
		renew bool
		state ReservationState
		until time.Duration // since the beginning; 0: nothing is said
	}
	for name, steps := range map[string][]at{
		"it ends": {
			{after: 15*day - 1, state: Reserved, until: 20 * day},
			{after: 15 * day, state: Ending, until: 20 * day},
			{after: 20*day - 1, state: Ending, until: 20 * day},
			{after: 20 * day, state: Releasing},
			{after: 400 * day, state: Releasing},
		},
		"it is renewed": {
			{after: 10 * day, renew: true, state: Reserved, until: 30 * day},
			{after: 20 * day, state: Reserved, until: 30 * day},
			{after: 25 * day, state: Ending, until: 30 * day},
			{after: 29 * day, renew: true, state: Reserved, until: 49 * day},
		},
		"the host was off while it ended": {
			{after: 40 * day, state: Ending, until: 45 * day}, {after: 45*day - 1, state: Ending, until: 45 * day}, {after: 45 * day, state: Releasing},
		},
		"the host was off after it was told": {{after: 16 * day, state: Ending, until: 21 * day}, {after: 90 * day, state: Releasing}},
		"the clock goes ahead, and back": {
			{after: 9000 * day, state: Ending, until: 9005 * day},
			{after: day, state: Reserved, until: 21 * day},
			{after: 20 * day, state: Ending, until: 21*day + 4*day},
			{after: 25 * day, state: Releasing},
		},
		"the clock goes back": {{after: -9000 * day, state: Reserved, until: -8980 * day}},
	} {
		r := Reservation{State: Reserved, Lease: int(lease.Seconds())}
		r.Renew(begin)
		for _, s := range steps {
			now := begin.Add(s.after)
			if s.renew {
				r.Renew(now)
			}
			r.Pass(now)
			want := time.Time{}
			if s.until != 0 {
				want = begin.Add(s.until)
			}
			if r.State != s.state || !r.Until.Equal(want) {
				t.Errorf("%s: after %s it is %s until %s, want %s until %s", name, s.after, r.State, r.Until, s.state, want)
			}
		}
	}
}

// One without an end has none, and what is not held is neither renewed nor given back.
func TestLeaseWithoutEnd(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	for _, s := range ReservationStates() {
		r := Reservation{State: s}
		r.Pass(now.Add(1000 * time.Hour))
		if r.State != s || !r.Until.IsZero() {
			t.Errorf("%s became %+v", s, r)
		}
		if r = (Reservation{State: s, Lease: 3600}); !r.Held() {
			r.Renew(now)
			r.Pass(now.Add(1000 * time.Hour))
			if r != (Reservation{State: s, Lease: 3600}) {
				t.Errorf("%s became %+v", s, r)
			}
			if r.Want(now); r.State != Reserving {
				t.Errorf("%s became %+v", s, r)
			}
		}
	}
	var none *Reservation // of a version before
	none.Renew(now)
	none.Want(now)
	none.Pass(now)
	if !none.Held() {
		t.Error("it is not held")
	}
	for _, n := range []int{-1, 1, 3599, 366 * 24 * 3600} {
		if CheckLease(n) == nil {
			t.Errorf("%d is a lease", n)
		}
	}
	for _, n := range []int{0, 3600, 30 * 24 * 3600} {
		if err := CheckLease(n); err != nil {
			t.Error(err)
		}
	}
}

// Of partitions that could not be given back, and are wanted again, nothing is left of when that was
// to be tried again.
func TestLeaseIsWanted(t *testing.T) {
	r := Reservation{State: Releasing, Lease: 3600, Problem: "the VM runs", Until: time.Now().Add(time.Hour)}
	if r.Want(time.Now()); r != (Reservation{State: Reserving, Lease: 3600}) {
		t.Errorf("%+v", r)
	}
}

// What a migration has its partition by is its own until the source is off: then it may need another.
func TestNeeds(t *testing.T) {
	m := Migration{Record: Record{VM: &VM{UUID: "u", Slices: []Slice{{Assignment: "a"}}}}, Phase: PhaseReady}
	if !m.Needs("a", "u") || m.Needs("b", "u") || m.Needs("a", "v") {
		t.Error("another assignment or VM is taken for its own, or its own is not")
	}
	m.Fence = FenceOff
	if m.Needs("a", "u") {
		t.Error("its source is off")
	}
}
