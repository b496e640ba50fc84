package sim

import (
	"fmt"
	"slices"

	"gpuvirt/gpu"
	"gpuvirt/mig"
)

// A timeslice is how the vGPUs of a card share it by time, where somebody has set it. The
// driver keeps it as long as it has the card.
type timeslice struct {
	Policy   gpu.SchedulerPolicy `json:"policy,omitempty"`
	NS       uint32              `json:"ns,omitempty"`
	Adaptive bool                `json:"adaptive,omitempty"`
	Mixed    bool                `json:"mixed,omitempty"` // sizes may differ
}

// What NVIDIA's driver takes and does by itself, in ns.
const (
	minTimeSlice     = 1_000_000
	maxTimeSlice     = 30_000_000
	defaultTimeSlice = 2_000_000
)

var schedulers = []gpu.SchedulerPolicy{gpu.BestEffort, gpu.EqualShare, gpu.FixedShare}

// hostsVGPUs reports whether a card's driver is one for hosts of VMs.
func (c *Card) hostsVGPUs() bool { return c.VGPU != nil || c.OneSize }

// scheduler is what a card's driver schedules vGPUs by.
func (s *state) scheduler(c *Card) gpu.Scheduler {
	if t := s.Timeslices[c.Name]; t.Policy != "" {
		return gpu.Scheduler{Policy: t.Policy, TimeSliceNS: t.NS, Adaptive: t.Adaptive}
	}
	return gpu.Scheduler{Policy: gpu.BestEffort}
}

// vgpuExists reports whether there is a vGPU on a card, of whichever generation.
func (s *state) vgpuExists(c *Card) bool { return len(s.vgpusOn(c))+len(s.used(c)) > 0 }

// setTimeslice changes what is set on a card.
func (s *state) setTimeslice(c *Card, f func(*timeslice)) {
	if s.Timeslices == nil {
		s.Timeslices = map[string]timeslice{}
	}
	t := s.Timeslices[c.Name]
	f(&t)
	s.Timeslices[c.Name] = t
}

func (d *migDevice) SchedulerCapabilities() (out mig.SchedulerCapabilities, err error) {
	err = d.view(func(c *Card, _ *migState) error {
		if !c.hostsVGPUs() {
			return mig.ErrNotSupported
		}
		out = mig.SchedulerCapabilities{
			Policies: slices.Clone(schedulers), MinTimeSliceNS: minTimeSlice, MaxTimeSliceNS: maxTimeSlice, Adaptive: true,
		}
		return nil
	})
	return out, err
}

func (d *migDevice) Scheduler() (out gpu.Scheduler, err error) {
	err = d.h.view(func(s *state) error {
		return d.of(s, func(c *Card, m *migState) error {
			if m.Current || !c.hostsVGPUs() {
				return mig.ErrNotSupported
			}
			out = s.scheduler(c)
			return nil
		})
	})
	return out, err
}

func (d *migDevice) SetScheduler(want gpu.Scheduler) error {
	args := []any{want.Policy, want.TimeSliceNS}
	return d.do("SetVgpuSchedulerState", args, func(s *state, c *Card, m *migState) error { return s.schedule(c, m, want) })
}

// schedule is what the driver does with a policy.
func (s *state) schedule(c *Card, m *migState, want gpu.Scheduler) error {
	switch {
	case !c.hostsVGPUs() || m.Current || s.vgpuExists(c):
		return mig.ErrNotSupported
	case !slices.Contains(schedulers, want.Policy):
		return mig.ErrInvalidArgument
	case want.TimeSliceNS != 0 && (want.TimeSliceNS < minTimeSlice || want.TimeSliceNS > maxTimeSlice):
		return mig.ErrInvalidArgument
	}
	if want.Policy != gpu.BestEffort && want.TimeSliceNS == 0 {
		want.TimeSliceNS, want.Adaptive = defaultTimeSlice, true
	}
	s.setTimeslice(c, func(t *timeslice) { t.Policy, t.NS, t.Adaptive = want.Policy, want.TimeSliceNS, want.Adaptive })
	return nil
}

// Schedule sets a card's scheduler as somebody else does, with nvidia-smi.
func (h *Host) Schedule(card string, want gpu.Scheduler) error {
	return h.update(func(s *state) ([]string, error) {
		c := s.card(card)
		if c == nil || !s.present(c) {
			return nil, fmt.Errorf("cannot schedule card %q: NVIDIA's driver has none there", card)
		}
		return []string{card}, s.schedule(c, s.mig(card), want)
	})
}
