package mdev_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mdev"
)

// On a full card the driver lists nothing, and an existing vGPU keeps its name as long as
// anybody knows it.
func TestVendorNamesOnAFullCard(t *testing.T) {
	h := vfHost(t)
	b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{})
	p, err := b.Make(t.Context(), on(l40s, 0, "L40S-48Q"))
	if err != nil {
		t.Fatal(err)
	}
	name := func(b gpu.Backend) string {
		all, err := b.Partitions(t.Context(), l40s)
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		return all[0].Profile
	}
	if got := name(b); got != "L40S-48Q" {
		t.Errorf("remembered as %q", got)
	}
	if got := profile(t, b, l40s, "L40S-1Q").Available; got != 0 {
		t.Errorf("%d L40S-1Q fit", got)
	}
	if got := name(mdev.NewVendor(h.Sysfs, mdev.VendorOptions{Types: types(h)})); got != "L40S-48Q" {
		t.Errorf("by the library it is %q", got)
	}
	// Nobody knows: it goes by its number, and is found again all the same.
	blind := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{})
	if got := name(blind); got != "nvidia-"+p.Native {
		t.Errorf("without any list it is %q", got)
	}
	if got := condition(t, blind, l40s); got != "Degraded NoTypes" {
		t.Errorf("condition %q", got)
	}
	if again, err := blind.Make(t.Context(), p); err != nil || again.Native != p.Native {
		t.Error(again, err)
	}
	stranger := p
	stranger.Native = "1147"
	if _, err := blind.Make(t.Context(), stranger); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Error(err)
	}
	if err := blind.Remove(t.Context(), stranger); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Error(err)
	}
	if _, err := blind.Make(t.Context(), on(l40s, 1, "L40S-48Q")); gpu.CodeOf(err) != gpu.CodeProfileUnknown {
		t.Error(err)
	}
	if err := blind.Remove(t.Context(), p); err != nil {
		t.Error(err)
	}
	if got := available(t, blind, l40s)["L40S-48Q"]; got != 1 {
		t.Errorf("%d fit", got)
	}
}

// A driver that numbers its types anew is told by the names, and what the one before it
// said is forgotten.
func TestVendorRenumbered_T12(t *testing.T) {
	h := vfHost(t)
	b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{})
	made, err := b.Make(t.Context(), on(l40s, 3, "L40S-8Q"))
	if err != nil || made.Native != "1152" {
		t.Fatal(made, err)
	}
	if err := h.Reboot(); err != nil {
		t.Fatal(err)
	}
	if err := h.Change(string(l40s), func(c *sim.Card) { c.Renumber = 1 }); err != nil {
		t.Fatal(err)
	}
	functionsOn(t, h, sim.L40S(string(l40s), 0))
	again, err := b.Make(t.Context(), made)
	if err != nil || again.Native != "1153" || again.Profile != "L40S-8Q" || again.Slot != "3" {
		t.Error(again, err)
	}
	if err := b.Remove(t.Context(), made); err != nil { // by its name, though the number is another now
		t.Error(err)
	}
}

// Two types of one name mean neither, and no name is a part of another's.
func TestVendorNames_T12_T38(t *testing.T) {
	card := sim.L40S(string(l40s), 0).WithVGPU(false)
	typ := func(number int, name string) sim.VGPUType {
		return sim.VGPUType{Type: sim.Type{Number: number, Name: name, Use: [2]int{1024}, Max: 2}}
	}
	card.VGPU.Types = []sim.VGPUType{
		typ(114, "NVIDIA RTX5000-Ada-1Q"), typ(1145, "NVIDIA DC-1-24QGFX"), typ(11, "GRID M60-0B"), typ(12, "NVIDIA M60-0B"),
	}
	card.VGPU.MemoryMiB = 2048
	h := vfHost(t, card)
	b := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{})
	_, profiles, err := b.Look(t.Context(), l40s)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range profiles {
		names = append(names, p.Name+"="+p.NativeID)
	}
	if diff := cmp.Diff([]string{"DC-1-24QGFX=1145", "RTX5000-Ada-1Q=114", "nvidia-11=11", "nvidia-12=12"}, names); diff != "" {
		t.Error(diff)
	}
	for _, name := range []string{"M60-0B", "RTX5000-ADA-1Q", "RTX5000", "DC-1-24Q", "114", "nvidia-114", "nvidia-1145"} {
		if _, err := b.Make(t.Context(), on(l40s, 0, name)); gpu.CodeOf(err) != gpu.CodeProfileUnknown {
			t.Errorf("%s: %v", name, err)
		}
	}
	if made, err := b.Make(t.Context(), on(l40s, 0, "RTX5000-Ada-1Q")); made.Native != "114" || err != nil {
		t.Error(made, err)
	}
	byNumber := on(l40s, 1, "")
	byNumber.Native = "114"
	if made, err := b.Make(t.Context(), byNumber); made.Profile != "RTX5000-Ada-1Q" || err != nil {
		t.Error(made, err)
	}
}

// A kernel or a driver of another generation: the same names mean the same sizes.
func TestNamesOutliveTheGeneration_T14(t *testing.T) {
	for _, card := range []sim.Card{
		sim.A2(string(a2), 0), sim.A40(string(a2), 0), sim.L40S(string(a2), 0), sim.A100(string(a2), 0), sim.H100(string(a2), 0), sim.RTXPro6000(string(a2), 0),
	} {
		h := vfHost(t, card.WithVGPU(true))
		list := func(b gpu.Backend) map[string]uint64 {
			out := map[string]uint64{}
			_, profiles, err := b.Look(t.Context(), a2)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range profiles {
				out[p.Name] = p.MemoryBytes
			}
			return out
		}
		before := list(mdev.New(h.Sysfs, mdev.Options{}))
		if err := h.Change(string(a2), func(c *sim.Card) { c.VGPU.Mdev, c.Renumber = false, 300 }); err != nil {
			t.Fatal(err)
		}
		if ids, err := mdev.New(h.Sysfs, mdev.Options{}).IDs(t.Context()); len(ids) != 0 || err != nil {
			t.Error(ids, err)
		}
		v := mdev.NewVendor(h.Sysfs, mdev.VendorOptions{Types: types(h)})
		if diff := cmp.Diff(before, list(v)); diff != "" || len(before) < 12 {
			t.Errorf("%d types; %s", len(before), diff)
		}
		name := slices.Sorted(maps.Keys(available(t, v, a2)))[0]
		if made, err := v.Make(t.Context(), on(a2, 0, name)); err != nil || made.Profile != name {
			t.Error(made, err)
		}
	}
}
