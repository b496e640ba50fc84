package mdev_test

import (
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/gpu/gputest"
	"gpuvirt/internal/sim"
	"gpuvirt/mdev"
)

func host(t *testing.T, cards ...sim.Card) *sim.Host {
	t.Helper()
	h, err := sim.Open(t.TempDir(), cards...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// gpus looks at all GPUs, as the inventory does.
func gpus(t *testing.T, b *mdev.Backend) ([]gpu.GPU, error) {
	t.Helper()
	ids, err := b.IDs(t.Context())
	out := []gpu.GPU{}
	for _, id := range ids {
		if g, _, _ := b.Look(t.Context(), id); g.ID != "" {
			out = append(out, g)
		}
	}
	return out, err
}

func TestContract_T04_T06_T40_T43(t *testing.T) {
	for _, o := range []gputest.Options{
		{GPU: "0000:08:00.0", Profile: "T4-4Q", Other: "T4-4C", Racers: 10},
		{GPU: "0000:00:02.0", Profile: "i915-GVTg_V5_4", Other: "i915-GVTg_V5_8", Racers: 10},
		{GPU: "mbochs", Profile: "mbochs-large", Other: "mbochs-small"},
	} {
		t.Run(string(o.GPU), func(t *testing.T) {
			h := host(t)
			b := mdev.New(h.Sysfs, mdev.Options{VanishWait: -1})
			// Foreign devices: one beside ours, one on each other card. They must stay.
			for id, profile := range map[gpu.ID]string{"0000:08:00.0": "T4-4A", "0000:88:00.0": "T4-1B", "mbochs": "mbochs-small"} {
				if _, err := b.Make(t.Context(), gpu.Partition{ID: gputest.NewUUID(), GPU: id, Profile: profile}); err != nil {
					t.Fatal(err)
				}
			}
			gputest.Backend(t, b, o)
		})
	}
}
