package mdev_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/gpu/gputest"
	"gpuvirt/internal/sim"
	"gpuvirt/mdev"
)

// types are what the driver's library knows of the simulated cards' vGPUs.
func types(h *sim.Host) func(context.Context, gpu.ID) ([]gpu.VGPUType, error) {
	return func(_ context.Context, id gpu.ID) ([]gpu.VGPUType, error) {
		a, err := gpu.ParseAddress(string(id))
		if err != nil {
			return nil, err
		}
		s, err := h.NVML.Open()
		if err != nil {
			return nil, err
		}
		d, err := s.Device(a)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		out, err1 := d.VGPUTypes()
		profiles, err2 := d.Profiles()
		for _, p := range profiles {
			for i, t := range out {
				if t.GPUInstanceProfile != nil && *t.GPUInstanceProfile == p.ID {
					out[i].On = p.Name
				}
			}
		}
		if len(profiles) == 0 {
			err2 = nil // MIG cannot cut it
		}
		return out, errors.Join(err1, err2, s.Close())
	}
}

// on is the partition of a virtual function.
func on(id gpu.ID, index int, profile string) gpu.Partition {
	slot := strconv.Itoa(index)
	return gpu.Partition{ID: fmt.Sprintf("%s/vgpu/%s", id, slot), GPU: id, Kind: gpu.KindVGPU, Profile: profile, Slot: slot}
}

func TestVendorContract_T04_T06_T40(t *testing.T) {
	for _, o := range []struct {
		name          string
		terse, static bool
	}{{"as NVIDIA answers", false, true}, {"without sizes", false, false}, {"as upstream proposes", true, true}, {"neither", true, false}} {
		t.Run(o.name, func(t *testing.T) {
			card := sim.L40S(string(l40s), 0).WithVGPU(false)
			card.VGPU.Terse = o.terse
			other := sim.L40S("0000:c1:00.0", 1).WithVGPU(false)
			card.SRIOV.TotalVFs, other.SRIOV.TotalVFs = 6, 1
			h := vfHost(t, card, other)
			opts := mdev.VendorOptions{}
			if o.static {
				opts.Types = types(h)
			}
			b := mdev.NewVendor(h.Sysfs, opts)
			// Foreign ones: one of that size on this card, another on the other.
			for _, p := range []gpu.Partition{on(l40s, 2, "L40S-12C"), on("0000:c1:00.0", 0, "L40S-1B")} {
				if _, err := b.Make(t.Context(), p); err != nil {
					t.Fatal(err)
				}
			}
			gputest.Backend(t, b, gputest.Options{
				GPU: l40s, Profile: "L40S-12Q", Other: "L40S-12C", Places: true, Racers: 10, Vague: !o.static,
				Want: func(profile string) gpu.Partition {
					p, err := b.Place(t.Context(), l40s, profile, nil)
					if err != nil {
						return on(l40s, 5, profile)
					}
					return p
				},
			})
		})
	}
}
