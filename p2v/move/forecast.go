package move

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"gpuvirt/p2v/assess"
)

// Forecast is what a cut-over would take now, part by part: for how long the source would be at rest,
// and for how long its service would be away.
type Forecast struct {
	FinalSeconds   float64 `json:"final_seconds"`   // the last pass, as the passes before it lead to
	SettledSeconds float64 `json:"settled_seconds"` // what that comes to after many more; below 0: nothing
	BudgetSeconds  float64 `json:"budget_seconds"`  // the downtime that is allowed
	// The parts beside the last pass; zero: of a version before, which did not count them. Comparison is of
	// cut-overs alone that compare all of the disks, and in no sum.
	Comparison Part `json:"comparison,omitzero"`
	Conversion Part `json:"conversion,omitzero"`
	PowerOff   Part `json:"power_off,omitzero"`
	Boot       Part `json:"boot,omitzero"`
	// RestSeconds is the last pass and the conversion: until then the source is at rest, and goes on where
	// something fails. DowntimeSeconds is all of it, as far as it is known.
	RestSeconds     float64 `json:"rest_seconds"`
	DowntimeSeconds float64 `json:"downtime_seconds"`
	Fits            bool    `json:"fits"`      // the downtime is within the budget
	Converges       bool    `json:"converges"` // it comes to be so, or stays so
}

// Ahead is the forecast of a cut-over that is still to come; nil: there is none, or the source was told to
// power off, and of what has happened there is no forecast.
func (r *Record) Ahead() *Forecast {
	if r.Fence != FenceNone {
		return nil
	}
	return r.Forecast
}

// Basis is how a part of a forecast is known.
type Basis string

// The bases of a part.
const (
	Measured  Basis = "measured"  // of an attempt of this move
	Estimated Basis = "estimated" // as of any server
	Unknown   Basis = "unknown"   // it counts nothing
)

// Part is a part of the time that a cut-over takes.
type Part struct {
	Seconds float64 `json:"seconds"`
	Basis   Basis   `json:"basis"`
	// At is when the attempt began that it was measured of; zero: it was not.
	At   time.Time `json:"measured_at,omitzero"`
	Text string    `json:"text"` // of which that was, or why it is not known
}

func (p Part) String() string {
	if p.Basis == Measured {
		return fmt.Sprintf("measured %s, %s", p.At.UTC().Format(time.RFC3339), p.Text)
	}
	return fmt.Sprintf("%s: %s", p.Basis, p.Text)
}

// spare is how much more somebody is told to allow than is forecast, and how much longer what was ended is taken
// to be at least.
const spare = 1.2

// Weigh works out what follows from the last pass that is forecast, and from what was tried.
func (r *Record) Weigh() {
	if r.Forecast == nil {
		return
	}
	f := *r.Forecast // which others may have
	f.Comparison = r.measured(func(a Attempt) float64 { return a.Comparison }, Part{Basis: Unknown, Text: "the disks were not compared yet"})
	f.Conversion = r.conversion()
	f.PowerOff = Part{Basis: Unknown, Text: "the server was not powered off yet"}
	if r.AtRest() && !r.Comes() {
		f.PowerOff = Part{Basis: Estimated, Text: "the server is off"}
	}
	f.Boot = r.measured(func(a Attempt) float64 { return a.Boot }, Part{Basis: Unknown, Text: "no rehearsal has passed yet"})
	f.RestSeconds, f.DowntimeSeconds = f.rest(CutWish{}), f.down(CutWish{})
	r.Forecast = &f
	f.Fits = r.excess(CutWish{}) == nil
	more := f.DowntimeSeconds - f.FinalSeconds
	f.Converges = f.SettledSeconds >= 0 && f.SettledSeconds+more <= f.BudgetSeconds
}

// Planned is what making the VM's disks takes where nothing was converted yet, as plans have it.
func Planned(p assess.Policy) Part {
	return Part{Seconds: p.WithDefaults().ConversionSeconds, Basis: Estimated, Text: "as the plan has it of any server, as nothing was converted yet"}
}

// conversion is what making the VM's disks takes: as the newest attempt has measured it that came through it. What
// the limit has ended since takes longer than it did by then.
func (r *Record) conversion() Part {
	if r.Wanted.Convert == ConvertNone {
		return Part{Basis: Estimated, Text: "nothing is converted"}
	}
	p := Planned(assess.Policy{})
	if r.Forecast.Conversion.Text == p.Text {
		p = r.Forecast.Conversion
	}
	for _, a := range r.Attempts {
		switch {
		case a.Conversion > 0:
			p = a.measured(a.Conversion)
		case a.ConversionCut*spare > p.Seconds:
			p = Part{Seconds: a.ConversionCut * spare, Basis: Estimated, Text: fmt.Sprintf("the limit of a cut-over has ended it after %.0f s", a.ConversionCut)}
		}
	}
	return p
}

// measured is what the newest attempt has measured that has come so far, or else what is given.
func (r *Record) measured(of func(Attempt) float64, otherwise Part) Part {
	for _, a := range slices.Backward(r.Attempts) {
		if s := of(a); s > 0 {
			return a.measured(s)
		}
	}
	return otherwise
}

func (a Attempt) measured(seconds float64) Part {
	return Part{Seconds: seconds, Basis: Measured, At: a.Began, Text: "by a " + map[AttemptKind]string{Rehearsal: "rehearsal", Cutover: "cut-over"}[a.Kind]}
}

func (f Forecast) rest(w CutWish) float64 {
	sum := f.FinalSeconds + f.Conversion.Seconds
	if w.Verify {
		sum += f.Comparison.Seconds
	}
	return sum
}

func (f Forecast) down(w CutWish) float64 {
	return f.rest(w) + f.PowerOff.Seconds + f.Boot.Seconds
}

// An excess is what of a cut-over would take longer than it may.
type excess struct {
	forecast Forecast
	wish     CutWish
	down     bool // the downtime; else the time at rest
	allowed  float64
}

// excess says what of a cut-over as somebody wants it would take too long now, nil: nothing. A limit is of
// the time at rest, in place of the budget. One that is longer than that allows as long a downtime.
func (r *Record) excess(w CutWish) *excess {
	f := r.Forecast
	limit := cmp.Or(float64(w.Limit), f.BudgetSeconds)
	switch {
	case r.AtRest() && w.Limit == 0: // it is down all the time
	case f.rest(w) > limit:
		return &excess{*f, w, false, limit}
	case r.AtRest():
	case f.down(w) > max(limit, f.BudgetSeconds):
		return &excess{*f, w, true, max(limit, f.BudgetSeconds)}
	}
	return nil
}

// Waits reports whether an attempt is not begun before it would take no longer than it may.
func (r *Record) Waits(a Attempt) bool {
	return a.State == Asked && a.Wish.WhenReady && (r.Forecast == nil || r.excess(a.Wish) != nil)
}

// WaitsInVain says why a cut-over that is asked for when it fits does not come to fit by waiting; empty:
// it may, or is not waited for.
func (r *Record) WaitsInVain() string {
	a := r.Pending()
	if a == nil || r.Forecast == nil || !r.Waits(*a) {
		return ""
	}
	quick := *r
	f := *r.Forecast
	f.FinalSeconds = 0
	quick.Forecast = &f
	if quick.excess(a.Wish) == nil {
		return ""
	}
	return fmt.Sprintf("the cut-over waits, and does not come to fit by waiting: %s; withdraw it (gpuvirt migrate withdraw %s), and then: %s",
		r.excess(a.Wish), r.Name, quick.excess(a.Wish).hint(r.Name))
}

// A share is a part of a time with its name.
type share struct {
	name string
	Part
}

const comparing = "comparing all of the disks"

// shares are the parts of it, the longest first.
func (e *excess) shares() []share {
	f := e.forecast
	all := []share{{"the last pass", Part{Seconds: f.FinalSeconds}}, {"the conversion", f.Conversion}}
	if e.wish.Verify {
		all = append(all, share{comparing, f.Comparison})
	}
	if e.down {
		all = append(all, share{"powering off", f.PowerOff}, share{"the boot and the looks", f.Boot})
	}
	slices.SortStableFunc(all, func(a, b share) int { return cmp.Compare(b.Seconds, a.Seconds) })
	return all
}

func (e *excess) needs() float64 {
	if e.down {
		return e.forecast.down(e.wish)
	}
	return e.forecast.rest(e.wish)
}

// String says what would take how long, and how long it may.
func (e *excess) String() string {
	text, atLeast := "the source would be at rest for %.0f s%s, and may be for %.0f s: ", ""
	if e.down {
		text = "the downtime would be %.0f s%s, and %.0f s are allowed: "
	}
	var parts []string
	for _, s := range e.shares() {
		verb, basis := "", ""
		if len(parts) == 0 {
			verb = "are "
		}
		if s.Basis != "" {
			basis = " (" + s.Part.String() + ")"
		}
		if s.Basis == Unknown {
			atLeast = " at least"
			continue
		}
		parts = append(parts, fmt.Sprintf("%.0f s %s%s%s", s.Seconds, verb, s.name, basis))
	}
	return fmt.Sprintf(text, e.needs(), atLeast, e.allowed) + strings.Join(parts, ", ")
}

// hint says what to do about it.
func (e *excess) hint(name string) string {
	whole := e.forecast // what is enough for the time at rest is to be enough for the downtime
	enough := whole.rest(e.wish)
	if down := whole.down(e.wish); down > max(enough, whole.BudgetSeconds) {
		enough = down
	}
	more := fmt.Sprintf("allow more, with some to spare: --limit %.0fs", math.Ceil(enough*spare))
	switch most := e.shares()[0]; {
	case most.Basis == "":
		return fmt.Sprintf("wait until less changes (--when-ready does), copy more often (gpuvirt migrate set %s --every 1m), or %s", name, more)
	case most.Basis == Estimated:
		return fmt.Sprintf("gpuvirt migrate rehearse %s measures what it takes here; or %s", name, more)
	case most.name == comparing:
		return "leave out --verify, or " + more
	}
	return fmt.Sprintf("%s; or rehearse it again, if it is quicker now: gpuvirt migrate rehearse %s", more, name)
}
