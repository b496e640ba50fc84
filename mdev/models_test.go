package mdev_test

import (
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/gpu/gputest"
	"gpuvirt/internal/sim"
	"gpuvirt/mdev"
)

// The contract holds on each model that is simulated, in both generations of its driver; and
// where MIG cuts it, with vGPUs on its instances, one on each or several (T35).
func TestModelsContract_T35_T40(t *testing.T) {
	for _, m := range []struct {
		name           string
		card           func(string, int) sim.Card
		profile, other string
		// on is the MIG instance that mounted and its other stand on, at so many places.
		on             string
		starts         []int
		mounted, mount string
	}{
		{name: "L40S", card: sim.L40S, profile: "L40S-16Q", other: "L40S-16C"},
		{name: "A40", card: sim.A40, profile: "A40-16Q", other: "A40-16C"},
		{
			name: "A100", card: sim.A100, profile: "A100-10C", other: "A100-20C",
			on: "1g.5gb", starts: []int{0, 1, 2}, mounted: "A100-1-5C", mount: "A100-2-10C",
		},
		{
			name: "H100", card: sim.H100, profile: "H100XM-20C", other: "H100XM-40C",
			on: "1g.10gb", starts: []int{0, 1, 2}, mounted: "H100XM-1-10C", mount: "H100XM-2-20C",
		},
		{
			name: "RTX PRO 6000", card: sim.RTXPro6000, profile: "DC-24Q", other: "DC-48Q",
			on: "1g.24gb+gfx", starts: []int{0, 3}, mounted: "DC-1-12QGFX", mount: "DC-1-24QGFX",
		},
	} {
		for _, bus := range []bool{false, true} {
			card := m.card(string(l40s), 0).WithVGPU(bus)
			card.SRIOV.TotalVFs = 8
			name := m.name + map[bool]string{false: " by types of functions", true: " on the mdev bus"}[bus]
			t.Run(name, func(t *testing.T) {
				h := vfHost(t, card)
				contractOf(t, h, bus, false, m.profile, m.other)
			})
			if m.on == "" {
				continue
			}
			t.Run(name+", on instances", func(t *testing.T) {
				h := vfHost(t, card)
				instances(t, h, m.on, m.starts)
				contractOf(t, h, bus, true, m.mounted, m.mount)
			})
		}
	}
}

func contractOf(t *testing.T, h *sim.Host, bus, vague bool, profile, other string) {
	t.Helper()
	o := gputest.Options{GPU: l40s, Profile: profile, Other: other, Racers: 6, Vague: vague}
	if bus {
		gputest.Backend(t, mdev.New(h.Sysfs, mdev.Options{VanishWait: -1}), o)
		return
	}
	b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{Types: types(h)})
	o.Places = true
	o.Want = func(profile string) gpu.Partition {
		p, err := b.Place(t.Context(), l40s, profile, nil)
		if err != nil {
			return on(l40s, 7, profile)
		}
		return p
	}
	gputest.Backend(t, b, o)
}

// instances cuts the card into GPU instances of a profile, at some places.
func instances(t *testing.T, h *sim.Host, profile string, starts []int) {
	t.Helper()
	migOn(t, h)
	s, err := h.NVML.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a, err := gpu.ParseAddress(string(l40s))
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Device(a)
	if err != nil {
		t.Fatal(err)
	}
	all, err := d.Profiles()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if p.Name != profile {
			continue
		}
		for _, at := range starts {
			if _, err := d.Create(p.Index, at); err != nil {
				t.Fatal(err)
			}
		}
	}
}
