package gpu

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
)

// A Timeslicer is a Backend that says and sets how the vGPUs of a GPU share it by time.
// None of it outlives the driver: it is gone after a reboot, and after the virtual
// functions of the GPU were turned on or off.
type Timeslicer interface {
	// Timeslicing reads it: CodeNotFound where no driver of NVIDIA has the GPU. What the
	// driver does not have, or does not tell, is no error: the answer says why.
	Timeslicing(ctx context.Context, id ID) (Timeslicing, error)
	// SetScheduler sets the policy, and the time slice if one is wanted. Where it is right
	// already nothing is written. The driver refuses while there is a vGPU or MIG is on.
	SetScheduler(ctx context.Context, id ID, want Scheduler) error
	// SetMixedSize sets whether vGPUs of the GPU may differ in size. Where it is right
	// already nothing is written. The driver refuses while there is a vGPU or MIG is on.
	SetMixedSize(ctx context.Context, id ID, on bool) error
	// Placements lists where vGPUs of each type may begin while they may differ in size.
	Placements(ctx context.Context, id ID) ([]VGPUPlacements, error)
}

// Timeslicing is how the vGPUs of a GPU share it by time, as its driver says.
type Timeslicing struct {
	MIG       bool // MIG is on: none of it is a matter of the whole GPU then
	MixedSize MixedSizeState
	Scheduler SchedulerState
}

// A MixedSizeState is whether vGPUs of a GPU may differ in size.
type MixedSizeState struct {
	Supported   bool
	Actual      *bool  // nil: the driver does not tell
	Unavailable string // why it is not supported, or not told; empty if neither
}

// VGPUPlacements are where vGPUs of a type may begin on a GPU whose vGPUs may differ in
// size. Each takes Size slots from there.
type VGPUPlacements struct {
	Type   uint32 // the driver's id
	Size   int
	Starts []int // in the order in which the driver tries them
	Free   []int // those of Starts where one fits now
}

// Check refuses what the driver would refuse of wishes, whatever is on the GPU.
func (t Timeslicing) Check(v SRIOV, want VGPUWish) error {
	if t.MIG {
		return Errorf(CodeConflict, "MIG is on: its vGPUs stand on MIG instances, and share each of them")
	}
	if want.MixedSize != nil && *want.MixedSize {
		if err := t.checkMixed(v, want); err != nil {
			return err
		}
	}
	w, mixed := want.Scheduler, t.MixedSize.Actual
	switch {
	case w == nil:
		return nil
	case w.Policy == FixedShare && want.MixedSize == nil && mixed != nil && *mixed && !t.Scheduler.is(*w): // somebody else has turned them on
		return Errorf(CodeConflict, "the policy %s is not for vGPUs of mixed sizes, and these are on", FixedShare).
			WithHint("ask for one size with it")
	default:
		return t.Scheduler.Check(*w)
	}
}

// checkMixed refuses vGPUs of different sizes. NVIDIA's driver schedules them by best
// effort or in equal shares: a fixed share is one of as many as there can be of one size.
func (t Timeslicing) checkMixed(v SRIOV, want VGPUWish) error {
	switch {
	case !t.MixedSize.Supported && v.TotalVFs > 0 && v.NumVFs == 0:
		return Errorf(CodeConflict, "sizes can be mixed on virtual functions only, and none of its %d are on", v.TotalVFs).
			WithHint("turn them on first: gpuvirt sriov set GPU NUMBER")
	case !t.MixedSize.Supported:
		return Errorf(CodeNotFound, "its vGPUs cannot differ in size: %s", t.MixedSize.Unavailable)
	case want.Scheduler != nil && want.Scheduler.Policy == FixedShare:
		return Errorf(CodeInvalid, "the policy %s is not for vGPUs of mixed sizes", FixedShare)
	case want.Scheduler == nil && t.Scheduler.Actual != nil && t.Scheduler.Actual.Policy == FixedShare:
		return Errorf(CodeInvalid, "its policy is %s, which is not for vGPUs of mixed sizes", FixedShare).
			WithHint("ask for another scheduler with it")
	}
	return nil
}

// A VGPUChange is one setting to be changed.
type VGPUChange struct {
	Want, Was VGPUWish // Was is empty where it is not known
}

// Changes lists what has to be set for what is wanted, in the order in which the driver
// takes it: a policy that is not for mixed sizes goes before they come, and comes after
// they have gone.
func (t Timeslicing) Changes(want VGPUWish) (out []VGPUChange) {
	if w := want.Scheduler; w != nil && !t.Scheduler.is(*w) {
		c := VGPUChange{Want: VGPUWish{Scheduler: w}}
		if is := t.Scheduler.Actual; is != nil {
			was := *is
			if was.Adaptive { // only without a wish for a time slice
				was.TimeSliceNS, was.Adaptive = 0, false
			}
			c.Was.Scheduler = &was
		}
		out = append(out, c)
	}
	// Where it is not told it is off.
	if w, is := want.MixedSize, t.MixedSize.Actual; w != nil && *w != (is != nil && *is) {
		c := VGPUChange{Want: VGPUWish{MixedSize: w}, Was: VGPUWish{MixedSize: is}}
		if *w {
			return append(out, c)
		}
		return append([]VGPUChange{c}, out...)
	}
	return out
}

// SchedulerPolicy is how the vGPUs of a GPU get its time.
type SchedulerPolicy string

// The policies, as NVIDIA calls them.
const (
	BestEffort SchedulerPolicy = "best-effort" // whoever has work gets time
	EqualShare SchedulerPolicy = "equal-share" // all that run get as much
	FixedShare SchedulerPolicy = "fixed-share" // each gets the share of its size, whoever else runs
)

// A Scheduler is a policy and the length of a turn.
type Scheduler struct {
	Policy      SchedulerPolicy `json:"policy"`
	TimeSliceNS uint32          `json:"time_slice_ns,omitempty"` // 0: the driver's own; best effort has none
	// Adaptive says that the driver shortens the turns of those that took longer (adaptive
	// round robin). It is only told: a wish for a time slice turns it off.
	Adaptive bool `json:"-"`
}

// String is the scheduler in words: "fixed-share, 2000000 ns".
func (s Scheduler) String() string {
	if s.TimeSliceNS == 0 {
		return string(s.Policy)
	}
	return fmt.Sprintf("%s, %d ns", s.Policy, s.TimeSliceNS)
}

// Is reports whether a scheduler is what is wanted. Without a wish for a time slice each
// is right. What is lost where a driver counts in microseconds is no difference.
func (s Scheduler) Is(want Scheduler) bool {
	near := max(s.TimeSliceNS, want.TimeSliceNS)-min(s.TimeSliceNS, want.TimeSliceNS) < 1000
	return s.Policy == want.Policy && (want.TimeSliceNS == 0 || near && !s.Adaptive)
}

// A SchedulerState is the scheduler of a GPU, and what it could be.
type SchedulerState struct {
	Policies []SchedulerPolicy // none: it cannot be chosen
	// MinTimeSliceNS and MaxTimeSliceNS are what the driver takes; both 0: it does not say.
	MinTimeSliceNS, MaxTimeSliceNS uint32
	Actual                         *Scheduler // nil: the driver does not tell
	Unavailable                    string     // why it cannot be chosen, or is not told; empty if neither
}

// is reports whether the scheduler is what is wanted. A driver that says why it has none
// to choose does by best effort.
func (s SchedulerState) is(want Scheduler) bool {
	if s.Actual == nil {
		return len(s.Policies) == 0 && s.Unavailable != "" && want == Scheduler{Policy: BestEffort}
	}
	return s.Actual.Is(want)
}

// Check refuses what the driver would refuse of a scheduler.
func (s SchedulerState) Check(want Scheduler) error {
	switch {
	case len(s.Policies) == 0 && want == Scheduler{Policy: BestEffort}:
		return nil // what a driver does that has no choice, so that another wish can be taken back
	case len(s.Policies) == 0:
		return Errorf(CodeNotFound, "it has no scheduler that can be chosen: %s", s.Unavailable)
	case !slices.Contains(s.Policies, want.Policy):
		have := make([]string, len(s.Policies))
		for i, p := range s.Policies {
			have[i] = string(p)
		}
		return Errorf(CodeInvalid, "it has no policy %q: it has %s", want.Policy, strings.Join(have, ", "))
	case want.TimeSliceNS == 0:
		return nil
	case want.Policy == BestEffort:
		return Errorf(CodeInvalid, "the policy %s has no time slice", BestEffort)
	case want.TimeSliceNS < s.MinTimeSliceNS || s.MaxTimeSliceNS > 0 && want.TimeSliceNS > s.MaxTimeSliceNS:
		return Errorf(CodeInvalid, "a time slice of %d ns is not from %d to %d", want.TimeSliceNS, s.MinTimeSliceNS, s.MaxTimeSliceNS)
	}
	return nil
}

// A VGPUWish is how the vGPUs of a GPU should share it. What is nil, nobody has asked for.
type VGPUWish struct {
	MixedSize *bool      `json:"mixed_size,omitempty"`
	Scheduler *Scheduler `json:"scheduler,omitempty"`
}

// Empty reports whether nothing is asked for.
func (w VGPUWish) Empty() bool { return w == VGPUWish{} }

// Equal reports whether two wishes are the same.
func (w VGPUWish) Equal(v VGPUWish) bool {
	return same(w.MixedSize, v.MixedSize) && same(w.Scheduler, v.Scheduler)
}

func same[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }

// Over is the wish laid over one from before: what it leaves out stays.
func (w VGPUWish) Over(old VGPUWish) VGPUWish {
	old.MixedSize, old.Scheduler = cmp.Or(w.MixedSize, old.MixedSize), cmp.Or(w.Scheduler, old.Scheduler)
	return old
}

// String is the wish in words: "mixed sizes on and scheduler equal-share, 2000000 ns".
func (w VGPUWish) String() string {
	var words []string
	if w.MixedSize != nil {
		words = append(words, "mixed sizes "+map[bool]string{true: "on", false: "off"}[*w.MixedSize])
	}
	if w.Scheduler != nil {
		words = append(words, "scheduler "+w.Scheduler.String())
	}
	if len(words) == 0 {
		return "nothing"
	}
	return strings.Join(words, " and ")
}

// VGPUState is how the vGPUs of a GPU should share it, and how they do.
type VGPUState struct {
	GPU    ID
	Wanted VGPUWish
	Actual Timeslicing
	Equal  bool // what is wanted is what is
}

// Differences says in words what is otherwise than wanted. A GPU that has none of its
// virtual functions on has no vGPUs, and one with MIG on has others.
func (s VGPUState) Differences(v SRIOV) (out []string) {
	if s.Actual.MIG || v.TotalVFs > 0 && v.NumVFs == 0 {
		return nil
	}
	for _, c := range s.Actual.Changes(s.Wanted) {
		var is string
		switch {
		case c.Want.MixedSize != nil && s.Actual.MixedSize.Unavailable != "":
			is = s.Actual.MixedSize.Unavailable
		case c.Want.MixedSize != nil:
			is = "they are " + map[bool]string{true: "off", false: "on"}[*c.Want.MixedSize]
		case s.Actual.Scheduler.Actual != nil:
			is = "it is " + s.Actual.Scheduler.Actual.String()
		default:
			is = "what is cannot be told: " + s.Actual.Scheduler.Unavailable
		}
		out = append(out, fmt.Sprintf("asked for %s, but %s", c.Want, is))
	}
	return out
}
