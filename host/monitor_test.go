package host_test

import (
	"slices"
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

// What a type of vGPU is for, how it is licensed and how many a VM takes is told under the
// same keys in all three generations: mediated devices of the card, those of its virtual
// functions, and functions that take a type (T38).
func TestAttributesOfVGPUs_T38(t *testing.T) {
	const turing = "0000:08:00.0"
	for _, c := range []struct {
		card sim.Card
		kind gpu.Kind
		name string
	}{
		{sim.T4(turing, 0), gpu.KindMdev, "T4-8Q"},
		{sim.A2(turing, 0).WithVGPU(true), gpu.KindMdev, "A2-8Q"},
		{sim.L40S(turing, 0).WithVGPU(false), gpu.KindVGPU, "L40S-8Q"},
	} {
		l := newLab(t, c.card)
		l.manage(turing)
		if c.card.SRIOV != nil {
			l.mustSetVFs(turing, c.card.SRIOV.TotalVFs)
		}
		profile := func() gpu.Profile {
			t.Helper()
			all, _, err := l.Profiles(t.Context(), turing)
			i := slices.IndexFunc(all, func(p gpu.Profile) bool { return p.Name == c.name && p.Kind == c.kind })
			if err != nil || i < 0 {
				t.Fatalf("%s: %+v, %v", c.name, all, err)
			}
			return all[i]
		}
		p := profile()
		if p.MemoryBytes != 8<<30 || p.MaxInstances == 0 {
			t.Errorf("%+v", p)
		}
		for key, want := range map[string]string{
			"series": "Q", "class": "Quadro", "num_heads": "4", "max_resolution": "7680x4320", "max_per_vm": "16",
			"license": "Quadro-Virtual-DWS,5.0;GRID-Virtual-WS,2.0",
		} {
			if got := p.Attributes[key]; got != want {
				t.Errorf("%s: %s is %q, want %q", c.name, key, got, want)
			}
		}
		// Without the library there is what sysfs says.
		l.sim.NVML.Fail("Init", mig.ErrDriverNotLoaded, 100)
		if p := profile(); p.Attributes["series"] != "Q" || p.Attributes["license"] != "" {
			t.Errorf("%+v", p)
		}
	}
}

// What NVIDIA's library knows of a card that MIG cannot cut is told, and kept as what the card
// is known by (T12).
func TestCardsWithoutMIGAreKnown_T12(t *testing.T) {
	l := newLab(t, shared(false), sim.T4(string(t4), 0))
	l.manage(t4, l40s)
	for id, gb := range map[gpu.ID]uint64{t4: 16, l40s: 48} {
		g, err := l.GPU(t.Context(), id)
		if err != nil || g.UUID != "GPU-"+string(id) || g.MemoryBytes != gb<<30 || g.MIG.Capable || slices.Contains(g.Kinds, gpu.KindMIG) {
			t.Errorf("%+v, %v", g, err)
		}
	}
	records, err := l.store.GPURecords()
	if err != nil || len(records) != 2 {
		t.Fatal(records, err)
	}
	for _, r := range records {
		if r.Identity.UUID != "GPU-"+string(r.ID) {
			t.Errorf("%+v", r)
		}
	}
}

// Where the library is sick, what sysfs knows is served, and it says what is not known.
func TestProfilesWithASickLibrary(t *testing.T) {
	l := newLab(t, sim.T4(string(t4), 0), sim.RX(string(rx)))
	l.sim.NVML.Fail("Init", mig.ErrUnknown, 1000)
	all, blind, err := l.Profiles(t.Context(), t4)
	if err != nil || gpu.CodeOf(blind) != gpu.CodeUnavailable {
		t.Errorf("%v, %v", blind, err)
	}
	if p, ok := find(all, "T4-1Q"); !ok || p.Available != 16 {
		t.Errorf("%+v", all)
	}
	if _, blind, err := l.Profiles(t.Context(), rx); blind != nil || err != nil { // none of NVIDIA's
		t.Errorf("%v, %v", blind, err)
	}
	if _, _, err := l.Profiles(t.Context(), "0000:99:00.0"); gpu.CodeOf(err) != gpu.CodeNotFound && gpu.CodeOf(err) != gpu.CodeUnavailable {
		t.Error(err)
	}
}

func find(all []gpu.Profile, name string) (gpu.Profile, bool) {
	i := slices.IndexFunc(all, func(p gpu.Profile) bool { return p.Name == name })
	if i < 0 {
		return gpu.Profile{}, false
	}
	return all[i], true
}
