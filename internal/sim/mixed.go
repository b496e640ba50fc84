package sim

import (
	"fmt"
	"slices"

	"gpuvirt/gpu"
	"gpuvirt/mig"
)

// Where vGPUs of different sizes may begin, by the rule that the published source of
// NVIDIA's driver has (branch 550, for cards with SR-IOV): the framebuffer is halved again
// and again. A type that fits two, four, eight… times begins at both ends of each part; of
// another the next smaller power of two fit, one at the outer end of each part.

// denied are slots that types of 1 GB do not get on cards of 48 GB, by PCI device: they
// would reach into what begins there.
var denied = map[string][]int{
	"0x2235": {8, 32},
	"0x26b9": {2, 3, 8, 9, 14, 15, 20, 21, 26, 27, 32, 33, 38, 39, 44, 45},
}

// mixable reports whether a card can have vGPUs of different sizes: its virtual functions
// are on, and its driver is new enough.
func (s *state) mixable(c *Card) bool {
	st := s.PCI[c.Name]
	return c.VGPU != nil && !c.VGPU.OneSize && st != nil && st.VFs > 0
}

// starts lists where vGPUs of a type may begin, in slots of 1 GB, in the driver's order.
func (c *Card) starts(t VGPUType) (out []int) {
	size, end, fit := t.mib()>>10, c.VGPU.MemoryMiB>>10, 1
	for fit*2 <= t.Max {
		fit *= 2
	}
	add := func(at int) {
		if size > 1 || !slices.Contains(denied[c.PCI.Device], at) {
			out = append(out, at)
		}
	}
	var part func(from, to, parts int, left bool)
	part = func(from, to, parts int, left bool) {
		if parts > 16 {
			return
		}
		switch {
		case parts*2 == t.Max:
			add(from)
			add(to - size)
		case fit < t.Max && fit == parts, parts == 1 && t.Max == 1:
			if left {
				add(from)
			} else {
				add(to - size)
			}
		}
		half := (from + to) / 2
		part(from, half, parts*2, true)
		part(half, to, parts*2, false)
	}
	part(0, end, 1, true)
	return out
}

// places lists where one more vGPU of a type fits beside those that are there.
func (c *Card) places(t VGPUType, there []vgpu) []int {
	size := t.mib() >> 10
	return slices.DeleteFunc(c.starts(t), func(at int) bool {
		return slices.ContainsFunc(there, func(v vgpu) bool {
			return at < v.Placement+c.VGPU.Types[v.Type].mib()>>10 && v.Placement < at+size
		})
	})
}

func (d *migDevice) mixed(f func(*state, *Card) error) error {
	return d.h.view(func(s *state) error {
		return d.of(s, func(c *Card, m *migState) error {
			if m.Current || !s.mixable(c) {
				return mig.ErrNotSupported
			}
			return f(s, c)
		})
	})
}

func (d *migDevice) MixedSize() (out mig.MixedSize, err error) {
	err = d.mixed(func(s *state, c *Card) error {
		out = mig.MixedSize{Supported: true, On: s.Timeslices[c.Name].Mixed}
		return nil
	})
	return out, err
}

func (d *migDevice) SetMixedSize(on bool) error {
	return d.do("SetVgpuHeterogeneousMode", []any{on}, func(s *state, c *Card, m *migState) error { return s.mix(c, m, on) })
}

// mix is what the driver does with the mode.
func (s *state) mix(c *Card, m *migState, on bool) error {
	switch {
	case m.Current || !s.mixable(c):
		return mig.ErrNotSupported
	case s.vgpuExists(c):
		return mig.ErrInUse
	}
	s.setTimeslice(c, func(t *timeslice) { t.Mixed = on })
	return nil
}

// Mix turns mixed sizes on or off as somebody else does, with nvidia-smi.
func (h *Host) Mix(card string, on bool) error {
	return h.update(func(s *state) ([]string, error) {
		c := s.card(card)
		if c == nil || !s.present(c) {
			return nil, fmt.Errorf("cannot mix sizes on card %q: NVIDIA's driver has none there", card)
		}
		return []string{card}, s.mix(c, s.mig(card), on)
	})
}

func (d *migDevice) Placements(typ uint32) (out gpu.VGPUPlacements, err error) {
	err = d.mixed(func(s *state, c *Card) error {
		if !s.Timeslices[c.Name].Mixed {
			return mig.ErrNotSupported
		}
		i := slices.IndexFunc(c.VGPU.Types, func(t VGPUType) bool {
			return uint32(t.Number+c.Renumber) == typ && t.Profile == "" //nolint:gosec // a type's number
		})
		if i < 0 {
			return mig.ErrInvalidArgument
		}
		t := c.VGPU.Types[i]
		out = gpu.VGPUPlacements{Type: typ, Size: t.mib() >> 10, Starts: c.starts(t), Free: c.places(t, s.vgpusOn(c))}
		return nil
	})
	return out, err
}
