package mig_test

import (
	"strconv"
	"strings"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/mig"
)

// vgpuTypes are the types of a card from the table of totals in NVIDIA's notation,
// "1-6Q=16": on a GPU instance of one slice, 6 GB each, 16 on a whole card.
func vgpuTypes(t *testing.T, table string, profile func(slices int) (name string, instances int)) map[string]mig.VGPUType {
	t.Helper()
	out := map[string]mig.VGPUType{}
	for field := range strings.FieldsSeq(table) {
		name, total, _ := strings.Cut(field, "=")
		slices, size, _ := strings.Cut(name, "-")
		n, err1 := strconv.Atoi(total)
		g, err2 := strconv.Atoi(slices)
		gb, err3 := strconv.Atoi(strings.TrimRight(size, "QC"))
		if err1 != nil || err2 != nil || err3 != nil {
			t.Fatalf("%q is no type and number", field)
		}
		p, instances := profile(g)
		out[name] = mig.VGPUType{Name: "DC-" + name, Profile: p, MemoryMiB: gb << 10, PerInstance: n / instances}
	}
	return out
}

// rtxTypes are the MIG-backed types of RTX PRO 6000 Blackwell that have graphics.
func rtxTypes(t *testing.T) map[string]mig.VGPUType {
	return vgpuTypes(t, "1-2Q=48 1-3Q=32 1-4Q=24 1-6Q=16 1-8Q=12 1-12Q=8 1-24Q=4 1-12C=8 2-12Q=8 2-16Q=6 2-24Q=4 2-48Q=2 4-24Q=4 4-32Q=3 4-48Q=2 4-96Q=1",
		func(slices int) (string, int) {
			return map[int]string{1: "1g.24gb+gfx", 2: "2g.48gb+gfx", 4: "4g.96gb+gfx"}[slices], 4 / slices
		})
}

func rtxInstance(profile string, start, size int) mig.Instance {
	return mig.Instance{Profile: profile, Start: start, Size: size}
}

// What fits is counted in vGPUs: several share an instance where they have one size,
// and there is one virtual function for each (T35, R88, R89).
func TestVGPUCapacity_T35(t *testing.T) {
	card, types := &model(t, "RTX PRO 6000 Blackwell Server Edition").Card, rtxTypes(t)
	quarter := func(start, vgpus, gb int) mig.Host {
		return mig.Host{Instance: rtxInstance("1g.24gb+gfx", start, 3), VGPUs: vgpus, MemoryMiB: gb << 10}
	}
	for _, c := range []struct {
		name      string
		have      []mig.Host
		of        string
		functions int
		want      int
	}{
		{"an empty card, 48 and not the four instances", nil, "1-2Q", 48, 48},
		{"an empty card, other sizes", nil, "1-6Q", 48, 16},
		{"an empty card, whole", nil, "4-96Q", 48, 1},
		{"fewer functions than room", nil, "1-2Q", 20, 20},
		{"four empty instances are not four vGPUs", []mig.Host{quarter(0, 0, 0), quarter(3, 0, 0), quarter(6, 0, 0), quarter(9, 0, 0)}, "1-2Q", 48, 48},
		{"one size on an instance: no room on that of another size", []mig.Host{quarter(0, 1, 6)}, "1-12Q", 48, 6},
		{"letters mix where the size is one", []mig.Host{quarter(0, 1, 12)}, "1-12C", 48, 7},
		{"a full one, an other size and two to be made", []mig.Host{quarter(0, 4, 6), quarter(3, 1, 12)}, "1-6Q", 48, 8},
		{"an instance that somebody computes on", []mig.Host{{Instance: mig.Instance{Profile: "1g.24gb+gfx", Start: 0, Size: 3, InUse: true}}}, "1-24Q", 48, 3},
		{"a half in the way of a whole", []mig.Host{{Instance: rtxInstance("2g.48gb+gfx", 6, 6)}}, "4-48Q", 48, 0},
		{"halves beside a quarter", []mig.Host{quarter(9, 0, 0)}, "2-12Q", 48, 4},
		{"an instance without graphics carries none", []mig.Host{{Instance: rtxInstance("1g.24gb", 0, 3)}}, "1-24Q", 48, 3},
		{"more than there should be", []mig.Host{quarter(0, 99, 2)}, "1-2Q", 48, 36},
	} {
		got, err := card.VGPUCapacity(c.have, types[c.of], c.functions)
		if err != nil || got != c.want {
			t.Errorf("%s: %d more of %s, %v; want %d", c.name, got, c.of, err, c.want)
		}
	}
	if _, err := card.VGPUCapacity(nil, mig.VGPUType{Name: "A100-1-5C", Profile: "1g.5gb", PerInstance: 1}, 16); gpu.CodeOf(err) != gpu.CodeProfileUnknown {
		t.Errorf("a type of another card: %v", err)
	}
}

// Capacity is what can be placed one after another, on every card and size.
func TestHostVGPU_T35(t *testing.T) {
	for _, c := range []struct {
		model string
		types map[string]mig.VGPUType
	}{
		{"RTX PRO 6000 Blackwell Server Edition", rtxTypes(t)},
		{"A100-PCIE-40GB", vgpuTypes(t, "1-5C=7 2-10C=3 3-20C=2 4-20C=1 7-40C=1", func(g int) (string, int) {
			return map[int]string{1: "1g.5gb", 2: "2g.10gb", 3: "3g.20gb", 4: "4g.20gb", 7: "7g.40gb"}[g], map[int]int{1: 7, 2: 3, 3: 2, 4: 1, 7: 1}[g]
		})},
	} {
		card := &model(t, c.model).Card
		for name, typ := range c.types {
			var have []mig.Host
			n, err := card.VGPUCapacity(nil, typ, 64)
			if err != nil || n == 0 {
				t.Fatalf("%s: %d of %s: %v", c.model, n, name, err)
			}
			for left := n; ; left-- {
				if more, err := card.VGPUCapacity(have, typ, 64); err != nil || more != left {
					t.Fatalf("%s: %d more of %s, %v; want %d of %d", c.model, more, name, err, left, n)
				}
				at, place, err := card.HostVGPU(have, typ)
				if err != nil {
					if left > 0 || gpu.CodeOf(err) != gpu.CodeNoCapacity {
						t.Fatalf("%s: %s with room for %d: %v", c.model, name, left, err)
					}
					break
				}
				if at < 0 {
					i := len(have)
					have = append(have, mig.Host{Instance: mig.Instance{ID: i, Profile: place.Profile, Start: place.Start, Size: sizeOf(card, place.Profile)}})
					at = i
				}
				have[at].VGPUs++
				have[at].MemoryMiB = typ.MemoryMiB
			}
		}
	}
}

func sizeOf(c *mig.Card, profile string) int {
	for _, p := range c.Profiles {
		if p.Name == profile {
			return p.Size
		}
	}
	return 0
}

// The fullest instance that takes it is chosen, so that an empty one stays for another size.
func TestHostVGPUPacks(t *testing.T) {
	card, types := &model(t, "RTX PRO 6000 Blackwell Server Edition").Card, rtxTypes(t)
	have := []mig.Host{
		{Instance: rtxInstance("1g.24gb+gfx", 0, 3)},
		{Instance: rtxInstance("1g.24gb+gfx", 3, 3), VGPUs: 3, MemoryMiB: 6 << 10},
		{Instance: rtxInstance("1g.24gb+gfx", 6, 3), VGPUs: 1, MemoryMiB: 6 << 10},
	}
	for _, want := range []int{1, 2, 2, 2, 0} {
		at, _, err := card.HostVGPU(have, types["1-6Q"])
		if err != nil || at != want {
			t.Fatalf("on instance %d, %v; want %d", at, err, want)
		}
		have[at].VGPUs, have[at].MemoryMiB = have[at].VGPUs+1, 6<<10
	}
}
