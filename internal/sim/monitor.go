package sim

import (
	"cmp"
	"hash/fnv"
	"slices"
	"strconv"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/mig"
)

// Modes are those of the card.
func (d *migDevice) Modes() (m gpu.Modes, err error) {
	if err := d.h.faultNVML("GetModes"); err != nil {
		return m, err
	}
	err = d.view(func(c *Card, _ *migState) error { m = c.Modes; return nil })
	return m, err
}

// A Guest is what the driver in a VM tells of a vGPU, and what is seen of it. Of a new
// vGPU it has not loaded.
type Guest struct {
	Driver          string // version; empty: not loaded
	License         gpu.LicenseState
	Expires         time.Time // zero: never
	MemoryUsedBytes uint64
	Samples         []mig.VGPUSample // of which it they are is no matter
}

// SetGuest sets what is known of a vGPU while it is in a VM that runs, by the UUID of its
// mediated device or the PCI address of its virtual function.
func (h *Host) SetGuest(device string, g Guest) error {
	return h.update(func(s *state) ([]string, error) {
		if s.Guests == nil {
			s.Guests = map[string]Guest{}
		}
		s.Guests[device] = g
		return nil, nil
	})
}

// An active vGPU is in a VM that runs.
type active struct {
	device string // UUID or address
	mig.ActiveVGPU
}

// active lists the vGPUs of a card that are in VMs that run. Whoever else holds one has
// no process of the driver for it.
func (s *state) active(c *Card) (out []active) {
	for _, v := range s.VMs {
		for _, d := range v.Live {
			a := active{device: cmp.Or(d.Handle.MdevUUID, d.Handle.PCIAddress)}
			a.VM = v.UUID
			m, vgpu := s.Mdevs[d.Handle.MdevUUID], s.VGPUs[d.Handle.PCIAddress]
			switch {
			case !v.State.Active():
				continue
			case m != nil && m.Card == c.Name:
				a.MdevUUID = d.Handle.MdevUUID
				a.of(c, m.VF != "", m.Type, m.Instance)
			case vgpu != nil && vgpu.Card == c.Name:
				a.MdevUUID = "00000000-0000-0000-0000-000000000000" // the driver has to say something
				a.of(c, true, vgpu.Type, vgpu.Instance)
			default:
				continue
			}
			g := s.Guests[a.device]
			a.Observed.GuestDriver = g.Driver
			if g.Driver != "" {
				a.Observed.License = &gpu.License{State: g.License, Expires: g.Expires}
			}
			a.Observed.Usage = &gpu.Usage{MemoryUsedBytes: &g.MemoryUsedBytes}
			out = append(out, a)
		}
	}
	return out
}

// of says what a vGPU is. Its number is another for each device.
func (a *active) of(c *Card, onVF bool, typ, instance int) {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(a.device)) // it cannot fail
	a.ID = hash.Sum32() | 1
	if !onVF {
		a.Type = uint32(c.Types[typ].Number + c.Renumber) //nolint:gosec // a type's number
		return
	}
	a.Type = uint32(c.VGPU.Types[typ].Number + c.Renumber) //nolint:gosec // the same
	if instance >= 0 && c.VGPU.Types[typ].Profile != "" {
		a.Instance = strconv.Itoa(instance)
	}
}

// VGPUs lists the vGPUs of a card that run.
func (d *migDevice) VGPUs() (out []mig.ActiveVGPU, err error) {
	if err := d.h.faultNVML("GetActiveVgpus"); err != nil {
		return nil, err
	}
	err = d.h.view(func(s *state) error {
		return d.of(s, func(c *Card, _ *migState) error {
			for _, a := range s.active(c) {
				out = append(out, a.ActiveVGPU)
			}
			return nil
		})
	})
	return out, err
}

// VGPUSamples are those that were set of the vGPUs that run.
func (d *migDevice) VGPUSamples() (out []mig.VGPUSample, err error) {
	if err := d.h.faultNVML("GetVgpuUtilization"); err != nil {
		return nil, err
	}
	err = d.h.view(func(s *state) error {
		return d.of(s, func(c *Card, _ *migState) error {
			for _, a := range s.active(c) {
				for _, sample := range slices.Clone(s.Guests[a.device].Samples) {
					sample.VGPU = a.ID
					out = append(out, sample)
				}
			}
			return nil
		})
	})
	return out, err
}
