package sim

import (
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

var _ mig.Device = (*migDevice)(nil)
