// Package cards describes the cards that can be cut by MIG, for simulators and
// tests: a host reads what its card can do from the driver.
//
// Sources: profiles, ids, placements and numbers as "nvidia-smi mig -lgip" and
// "-lgipp" print them on A100, H100 and RTX PRO 6000, NVIDIA's MIG user guide for
// A30 and for the engines of A30 and A100. The engines of Hopper and Blackwell are
// not checked against a card or the guide yet. The memory of Hopper and Blackwell is
// rounded, and all memory differs a little with ECC and driver.
package cards

import (
	"strings"

	"gpuvirt/mig"
)

// A Model is one kind of card.
type Model struct {
	Name string // as NVML names the product, without "NVIDIA "
	mig.Card
	// MemoryMiB is what an instance of a profile has, by its name.
	MemoryMiB map[string]int
}

// Profile finds one of the model's profiles by name; the zero value if it has none.
func (m *Model) Profile(name string) mig.Profile {
	for _, p := range m.Profiles {
		if p.Name == name {
			return p
		}
	}
	return mig.Profile{}
}

// doubled is the id of 1g with the memory of two, on cards with seven compute slices.
const doubled = 15

// Index is the number by which NVML is asked for a profile, the same on all cards
// (NVML_GPU_INSTANCE_PROFILE_* of nvml.h).
func Index(p mig.Profile) int {
	_, suffix, _ := strings.Cut(p.Name, "gb")
	bySlices := map[string]map[int]int{
		"":        {1: 0x0, 2: 0x1, 3: 0x2, 4: 0x3, 7: 0x4},
		"+me":     {1: 0x7, 2: 0x8},
		"+gfx":    {1: 0xa, 2: 0xb, 3: 0x11, 4: 0xc},
		"-me":     {1: 0xd, 2: 0xe},
		"+me.all": {1: 0xf, 2: 0x10},
	}
	if p.ID == doubled {
		return 0x9
	}
	return bySlices[suffix][p.Engines.Compute]
}

// Models are the cards of the table.
var Models = []Model{
	a30(),
	seven("A100-PCIE-40GB", ampere, [6]size{{"1g.5gb", 4864}, {"1g.10gb", 9856}, {"2g.10gb", 9856}, {"3g.20gb", 19968}, {"4g.20gb", 19968}, {"7g.40gb", 40192}}),
	seven("A100-SXM4-80GB", ampere, [6]size{{"1g.10gb", 9728}, {"1g.20gb", 19968}, {"2g.20gb", 19968}, {"3g.40gb", 40192}, {"4g.40gb", 40192}, {"7g.80gb", 80384}}),
	seven("H100 80GB HBM3", hopper, [6]size{{"1g.10gb", 9728}, {"1g.20gb", 19968}, {"2g.20gb", 19968}, {"3g.40gb", 40448}, {"4g.40gb", 40448}, {"7g.80gb", 81152}}),
	seven("H100 NVL", hopper, [6]size{{"1g.12gb", 10880}, {"1g.24gb", 22016}, {"2g.24gb", 22016}, {"3g.47gb", 47232}, {"4g.47gb", 47232}, {"7g.94gb", 94848}}),
	seven("GH200 96GB HBM3", hopper, [6]size{{"1g.12gb", 11264}, {"1g.24gb", 23552}, {"2g.24gb", 23552}, {"3g.48gb", 47616}, {"4g.48gb", 47616}, {"7g.96gb", 95232}}),
	seven("H200", hopper, [6]size{{"1g.18gb", 16384}, {"1g.35gb", 33280}, {"2g.35gb", 33280}, {"3g.71gb", 71168}, {"4g.71gb", 71168}, {"7g.141gb", 143360}}),
	seven("B200", hopper, [6]size{{"1g.23gb", 22528}, {"1g.45gb", 45056}, {"2g.45gb", 45056}, {"3g.90gb", 91136}, {"4g.90gb", 91136}, {"7g.180gb", 182272}}),
	rtxPro6000(),
}

type size struct {
	name string
	mib  int
}

// engines per profile of a card with seven compute slices, in the order of the
// sizes: 1g, 1g with double memory, 2g, 3g, 4g, 7g. "+me" is 1g with withMedia.
type engines struct {
	by        [6]mig.Engines
	withMedia mig.Engines
}

var (
	ampere = engines{
		by: [6]mig.Engines{
			{Compute: 1},
			{Compute: 1, Decoders: 1},
			{Compute: 2, Decoders: 1},
			{Compute: 3, Decoders: 2},
			{Compute: 4, Decoders: 2},
			{Compute: 7, Decoders: 5, JPEG: 1, OFA: 1},
		},
		withMedia: mig.Engines{Compute: 1, Decoders: 1, JPEG: 1, OFA: 1},
	}
	hopper = engines{
		by: [6]mig.Engines{
			{Compute: 1, Decoders: 1, JPEG: 1},
			{Compute: 1, Decoders: 1, JPEG: 1},
			{Compute: 2, Decoders: 2, JPEG: 2},
			{Compute: 3, Decoders: 3, JPEG: 3},
			{Compute: 4, Decoders: 4, JPEG: 4},
			{Compute: 7, Decoders: 7, JPEG: 7, OFA: 1},
		},
		withMedia: mig.Engines{Compute: 1, Decoders: 1, JPEG: 1, OFA: 1},
	}
)

// seven is a card with seven compute and eight memory slices.
func seven(name string, e engines, s [6]size) Model {
	m := Model{Name: name, Card: mig.Card{Slices: 8, Engines: e.by[5]}, MemoryMiB: map[string]int{s[0].name + "+me": s[0].mib}}
	for i, p := range []mig.Profile{
		{ID: 19, Size: 1, Starts: []int{0, 1, 2, 3, 4, 5, 6}, Max: 7},
		{ID: doubled, Size: 2, Starts: []int{0, 2, 4, 6}, Max: 4},
		{ID: 14, Size: 2, Starts: []int{0, 2, 4}, Max: 3},
		{ID: 9, Size: 4, Starts: []int{0, 4}, Max: 2},
		{ID: 5, Size: 4, Starts: []int{0}, Max: 1},
		{ID: 0, Size: 8, Starts: []int{0}, Max: 1},
	} {
		p.Name, p.Engines = s[i].name, e.by[i]
		m.MemoryMiB[p.Name] = s[i].mib
		m.Profiles = append(m.Profiles, p)
	}
	media := m.Profiles[0]
	media.Name, media.ID, media.Max, media.Engines = s[0].name+"+me", 20, 1, e.withMedia
	m.Profiles = append(m.Profiles, media)
	return m
}

func a30() Model {
	quarter, half := []int{0, 1, 2, 3}, []int{0, 2}
	return Model{
		Name: "A30",
		Card: mig.Card{
			Slices: 4, Engines: mig.Engines{Compute: 4, Decoders: 4, JPEG: 1, OFA: 1},
			Profiles: []mig.Profile{
				{Name: "1g.6gb", ID: 14, Size: 1, Starts: quarter, Max: 4, Engines: mig.Engines{Compute: 1}},
				{Name: "1g.6gb+me", ID: 21, Size: 1, Starts: quarter, Max: 1, Engines: mig.Engines{Compute: 1, Decoders: 1, JPEG: 1, OFA: 1}},
				{Name: "2g.12gb", ID: 5, Size: 2, Starts: half, Max: 2, Engines: mig.Engines{Compute: 2, Decoders: 2}},
				{Name: "2g.12gb+me", ID: 6, Size: 2, Starts: half, Max: 1, Engines: mig.Engines{Compute: 2, Decoders: 2, JPEG: 1, OFA: 1}},
				{Name: "4g.24gb", ID: 0, Size: 4, Starts: []int{0}, Max: 1, Engines: mig.Engines{Compute: 4, Decoders: 4, JPEG: 1, OFA: 1}},
			},
		},
		MemoryMiB: map[string]int{"1g.6gb": 5836, "1g.6gb+me": 5836, "2g.12gb": 11672, "2g.12gb+me": 11672, "4g.24gb": 23344},
	}
}

func rtxPro6000() Model {
	media := func(compute, n, ofa int) mig.Engines {
		return mig.Engines{Compute: compute, Decoders: n, Encoders: n, JPEG: n, OFA: ofa}
	}
	quarter, half, all := []int{0, 3, 6, 9}, []int{0, 6}, []int{0}
	m := Model{
		Name: "RTX PRO 6000 Blackwell Server Edition",
		Card: mig.Card{
			Slices: 12, Engines: media(4, 4, 1),
			Profiles: []mig.Profile{
				{Name: "1g.24gb", ID: 14, Size: 3, Starts: quarter, Max: 4, Engines: media(1, 1, 0)},
				{Name: "1g.24gb+me", ID: 21, Size: 3, Starts: quarter, Max: 1, Engines: media(1, 1, 1)},
				{Name: "1g.24gb+gfx", ID: 47, Size: 3, Starts: quarter, Max: 4, Engines: media(1, 1, 0)},
				{Name: "1g.24gb+me.all", ID: 65, Size: 3, Starts: quarter, Max: 1, Engines: media(1, 4, 1)},
				{Name: "1g.24gb-me", ID: 67, Size: 3, Starts: quarter, Max: 4, Engines: media(1, 0, 0)},
				{Name: "2g.48gb", ID: 5, Size: 6, Starts: half, Max: 2, Engines: media(2, 2, 0)},
				{Name: "2g.48gb+gfx", ID: 35, Size: 6, Starts: half, Max: 2, Engines: media(2, 2, 0)},
				{Name: "2g.48gb+me.all", ID: 64, Size: 6, Starts: half, Max: 1, Engines: media(2, 4, 1)},
				{Name: "2g.48gb-me", ID: 66, Size: 6, Starts: half, Max: 2, Engines: media(2, 0, 0)},
				{Name: "4g.96gb", ID: 0, Size: 12, Starts: all, Max: 1, Engines: media(4, 4, 1)},
				{Name: "4g.96gb+gfx", ID: 32, Size: 12, Starts: all, Max: 1, Engines: media(4, 4, 1)},
			},
		},
		MemoryMiB: map[string]int{},
	}
	for _, p := range m.Profiles {
		m.MemoryMiB[p.Name] = map[int]int{3: 24192, 6: 48512, 12: 97280}[p.Size]
	}
	return m
}
