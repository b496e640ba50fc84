package mig_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/test/lab/nvml"
)

// nvml.h lets a driver keep the names of its profiles to itself while MIG is off. Such a
// card is readable all the same, is turned on, and cut then.
func TestProfilesHiddenWhileOff(t *testing.T) {
	m := model(t, "A100-PCIE-40GB")
	lib, f := lookAlike(t, nvml.GPU{Address: target, Model: m})
	b := mig.NewBackend(lib, simulated(t, sim.A100(string(id), 0)).Sysfs, mig.Options{})
	if err := f.Fail("nvmlDeviceGetGpuInstanceProfileInfoV", mig.ErrNotSupported, -1); err != nil {
		t.Fatal(err)
	}
	g, profiles, err := b.Look(t.Context(), id)
	if err != nil || !g.MIG.Capable || len(profiles) > 0 {
		t.Errorf("%+v, %+v, %v", g, profiles, err)
	}
	_, err = b.PlanLayout(t.Context(), id, layout("3g.20gb"), nil)
	if e, ok := errors.AsType[*gpu.Error](err); !ok || e.Code != gpu.CodeProfileNotCreatable || !strings.Contains(e.Hint, "mig set "+string(id)+" --empty") {
		t.Errorf("%v", err)
	}
	plan, err := b.PlanLayout(t.Context(), id, layout(""), nil)
	if err != nil || plan.Mode == nil || !*plan.Mode {
		t.Errorf("%+v, %v", plan, err)
	}
	if err := b.SetMode(t.Context(), id, true); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Look(t.Context(), id); !errors.Is(err, mig.ErrNotSupported) {
		t.Errorf("a card that tells of no profile while MIG is on counts as readable: %v", err)
	}
	err = f.Edit("", func(lines []string) []string {
		return slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, "fail ") })
	})
	if err != nil {
		t.Fatal(err)
	}
	if plan, err = b.PlanLayout(t.Context(), id, layout("3g.20gb"), nil); err != nil || places(plan.Create) != "3g.20gb@4" {
		t.Errorf("%+v, %v", plan, err)
	}
}

// The same name is another profile on another card: a quarter of the one, an eighth of the
// other, by another number.
func TestProfilesAreOfTheirCard(t *testing.T) {
	small, large := model(t, "A100-PCIE-40GB"), model(t, "A100-SXM4-80GB")
	lib, _ := lookAlike(t, nvml.GPU{Address: target, Model: small}, nvml.GPU{Address: gpu.Address{Bus: 0x42}, Model: large})
	b := mig.NewBackend(lib, simulated(t, sim.A100(string(id), 0), sim.A100(string(other), 1)).Sysfs, mig.Options{})
	for card, want := range map[gpu.ID]struct {
		native string
		places string
	}{
		id:    {"15", "1g.10gb@6 1g.10gb@4 1g.10gb@2 1g.10gb@0"},
		other: {"19", "1g.10gb@6 1g.10gb@5 1g.10gb@4 1g.10gb@3 1g.10gb@2 1g.10gb@1 1g.10gb@0"},
	} {
		if err := b.SetMode(t.Context(), card, true); err != nil {
			t.Fatal(err)
		}
		var made []gpu.Partition
		for range 7 {
			p, err := b.Place(t.Context(), card, "1g.10gb", nil)
			if gpu.CodeOf(err) == gpu.CodeNoCapacity {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if p, err = b.Make(t.Context(), p); err != nil || p.Native != want.native {
				t.Fatalf("%s: %+v, %v", card, p, err)
			}
			made = append(made, p)
		}
		if got := places(made); got != want.places {
			t.Errorf("%s: %s, want %s", card, got, want.places)
		}
	}
}
