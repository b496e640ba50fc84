package host_test

import (
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
)

// The modes of NVIDIA's cards are shown, of one and of all, and what is wrong with the
// library hides no card.
func TestModesAreShown(t *testing.T) {
	l := newLab(t, sim.T4("0000:08:00.0", 0), sim.A100(string(ampere), 0), sim.GVTg("0000:00:02.0"), sim.Mbochs())
	for _, fails := range []bool{false, true} {
		all, err := l.GPUs(t.Context())
		if err != nil || len(all) != 4 {
			t.Fatalf("%+v, %v", all, err)
		}
		for _, g := range all {
			one, err := l.GPU(t.Context(), g.ID)
			nvidia := g.Vendor == "NVIDIA"
			for _, m := range []gpu.Modes{g.Modes, one.Modes} {
				if shown := m.ECC != nil && m.Compute == gpu.ComputeDefault; err != nil || shown != (nvidia && !fails) {
					t.Errorf("fails=%t: %s has %+v, %v", fails, g.ID, m, err)
				}
			}
		}
		l.sim.NVML.Fail("GetModes", mig.ErrUnknown, 100)
	}
}
