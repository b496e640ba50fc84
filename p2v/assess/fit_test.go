package assess

import (
	"slices"
	"strings"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/mig/cards"
	"gpuvirt/p2v/report"
)

// A fitCase says what is chosen for the sample after changes, and why others are not.
type fitCase struct {
	source func(*report.Report)
	host   func(*HostState)
	wish   Wish
	policy Policy
	want   string            // profile; empty: none
	why    map[string]string // of profiles: in the reasons
	warn   string            // in the cautions of the choice
	params string
}

func fitCases() map[string]fitCase {
	profile := func(h *HostState, name string) *gpu.Profile {
		i := slices.IndexFunc(h.GPUs[0].Profiles, func(p gpu.Profile) bool { return p.Name == name })
		return &h.GPUs[0].Profiles[i]
	}
	return map[string]fitCase{
		// 18.4 GiB and 32 multiprocessors: 2-20C has 19 GiB and 32; taking turns with 3 others gives 33.
		"a part: on a GPU instance, the smallest": {want: "H100XM-2-20C", why: map[string]string{
			"H100XM-1-10C": "a workload has 9.5 GiB of it, needed are", "H100XM-20B": "series B is for desktops", "2g.20gb": "not given a GPU instance itself",
			"H100XM-10C": "it has 16 multiprocessors at worst, as its turn of 8, needed are 32", "H100XM-20C": "33 multiprocessors at worst, as its turn of 4",
			"card-10de-2330": "same model",
		}, warn: "5 % are assumed"},
		"more activity: a larger instance": {
			source: func(r *report.Report) {
				r.Usage.GPUs[0].SM = report.Series{Samples: 1, Max: 0.3, Buckets: []report.Bucket{{Index: -60, Count: 1}}}
			},
			want: "H100XM-3-40C", why: map[string]string{"H100XM-2-20C": "32 multiprocessors by estimate, needed are 40"},
		},
		"reservation that the driver tells": {
			host: func(h *HostState) { profile(h, "H100XM-2-20C").Attributes["framebuffer_reservation"] = "3221225472" },
			want: "H100XM-3-40C", why: map[string]string{"H100XM-2-20C": "a workload has 17.0 GiB of it"},
		},
		"multiprocessors that the driver tells": {
			host: func(h *HostState) { profile(h, "2g.20gb").Attributes["multiprocessors"] = "30" },
			want: "H100XM-3-40C", why: map[string]string{"H100XM-2-20C": "it has 30 multiprocessors, needed are 32"},
		},
		"instances are full: taking turns": {
			host: func(h *HostState) {
				for i := range h.GPUs[0].Profiles {
					if p := &h.GPUs[0].Profiles[i]; p.On != "" {
						p.Available = 0
					}
				}
			},
			want: "H100XM-20C", why: map[string]string{"H100XM-2-20C": "none is free now"},
		},
		"utilisation is an upper bound: it decides all the same where it is small": {
			source: func(r *report.Report) { r.Usage.GPUs[0].Activity = false }, want: "H100XM-2-20C",
		},
		"in doubt the whole card": {
			source: func(r *report.Report) {
				r.Usage.GPUs[0].Activity = false
				r.Usage.GPUs[0].SM = report.Series{Samples: 1, Max: 1, Buckets: []report.Bucket{{Index: 0, Count: 1}}}
			},
			want: "card-10de-2330", why: map[string]string{"H100XM-3-40C": "whether fewer than the source's 132 are enough is not known"},
		},
		"nobody watched: the whole card": {
			source: func(r *report.Report) { r.Usage = nil }, want: "card-10de-2330",
			why: map[string]string{"H100XM-2-20C": "whether fewer than the source's 132 are enough is not known"},
		},
		"nobody watched, and memory may decide": {
			source: func(r *report.Report) { r.Usage = nil }, policy: Policy{AcceptUnknownCompute: true}, want: "H100XM-2-20C", warn: "whether fewer",
		},
		"the wish decides": {
			source: func(r *report.Report) { r.Usage = nil }, wish: Wish{Partitions: []WishPartition{{Source: "0000:41:00.0", MemoryBytes: 8 * gib, SMs: 10}}}, want: "H100XM-1-10C",
		},
		"the wish prefers":   {wish: Wish{Prefer: "time-sliced"}, want: "H100XM-20C"},
		"by name":            {wish: Wish{Partitions: []WishPartition{{Source: "0000:41:00.0", Profile: "H100XM-3-40C"}}}, want: "H100XM-3-40C", why: map[string]string{"H100XM-2-20C": "another profile is asked for"}},
		"by name, too small": {wish: Wish{Partitions: []WishPartition{{Source: "0000:41:00.0", Profile: "H100XM-1-10C"}}}, want: ""},
		"by name, too small and waived": {
			wish: Wish{Partitions: []WishPartition{{Source: "0000:41:00.0", Profile: "H100XM-1-10C"}}, Waivers: []Waiver{{ID: noPartition, Reason: "it is a test", By: "ops"}}},
			want: "H100XM-1-10C",
		},
		"a waiver without a reason is none": {
			wish: Wish{Partitions: []WishPartition{{Source: "0000:41:00.0", Profile: "H100XM-1-10C"}}, Waivers: []Waiver{{ID: noPartition, By: "ops"}}}, want: "",
		},
		"none is wanted": {wish: Wish{Partitions: []WishPartition{{Source: "0000:41:00.0", None: true}}}, want: ""},
		"a preallocator": {
			source: func(r *report.Report) { r.Processes[0].Preallocates = true; r.Usage.GPUs[0].Memory.Add(72 * gib) },
			want:   "card-10de-2330", why: map[string]string{"H100XM-3-40C": "what it needs is not known, state it in the wish"},
		},
		"graphics": {
			source: func(r *report.Report) { r.Processes[0].Type = "graphics" }, want: "H100XM-20Q", warn: "RTX Virtual Workstation",
			why: map[string]string{"H100XM-20C": "series Q, and this is of series C"},
		},
		"unified memory": {
			source: func(r *report.Report) { r.Features.UnifiedMemory = []string{"x"} }, want: "H100XM-2-20C", params: "enable_uvm=1", warn: "migrated live",
			why: map[string]string{"H100XM-20C": "no unified memory", "H100XM-80C": "needed are 32"},
		},
		"profilers":       {source: func(r *report.Report) { r.Features.Profilers = []string{"x"} }, want: "H100XM-2-20C", params: "enable_profiling=1"},
		"GPUDirect":       {source: func(r *report.Report) { r.Features.GPUDirectIO = []string{"x"} }, want: "card-10de-2330", why: map[string]string{"H100XM-7-80C": "needs a whole GPU"}},
		"an optical flow": {source: func(r *report.Report) { r.Usage.GPUs[0].OFA.Add(1) }, want: "H100XM-20C", why: map[string]string{"H100XM-2-20C": "2g.20gb has no optical-flow engine"}},
		"a decoder":       {source: func(r *report.Report) { r.Usage.GPUs[0].Decoder.Add(1) }, want: "H100XM-2-20C"},
		"engines of an instance that is not listed": {
			source: func(r *report.Report) { r.Usage.GPUs[0].Decoder.Add(1) },
			host: func(h *HostState) {
				h.GPUs[0].Profiles = slices.DeleteFunc(h.GPUs[0].Profiles, func(p gpu.Profile) bool { return p.Kind == gpu.KindMIG })
			},
			want: "H100XM-20C", why: map[string]string{"H100XM-2-20C": "it is not known whether its GPU instance has a media engine"},
		},
		"not managed":          {host: func(h *HostState) { h.GPUs[0].GPU.Managed = false }, want: "", why: map[string]string{"card-10de-2330": "not under management"}},
		"quarantined":          {host: func(h *HostState) { h.GPUs[0].GPU.Quarantined = true }, want: "", why: map[string]string{"card-10de-2330": "quarantined"}},
		"stuck":                {host: func(h *HostState) { h.GPUs[0].GPU.Conditions = []gpu.Condition{{Type: gpu.Stuck, Status: true}} }, want: "", why: map[string]string{"card-10de-2330": "stuck"}},
		"not creatable":        {host: func(h *HostState) { profile(h, "H100XM-2-20C").NotCreatable = "MIG is off" }, want: "H100XM-3-40C", why: map[string]string{"H100XM-2-20C": "it cannot be made: MIG is off"}},
		"another vendor":       {host: func(h *HostState) { h.GPUs[0].GPU.Vendor = "AMD" }, want: "", why: map[string]string{"card-10de-2330": "another vendor (AMD)"}},
		"memory unknown":       {host: func(h *HostState) { profile(h, "H100XM-2-20C").MemoryBytes = 0 }, want: "H100XM-3-40C", why: map[string]string{"H100XM-2-20C": "how much memory it has is not known"}},
		"another architecture": {host: func(h *HostState) { h.GPUs[0].GPU.Model, h.GPUs[0].SMs = "NVIDIA A100-SXM4-80GB", 132 }, want: "H100XM-2-20C", warn: "compute capability 8.0"},
		"a function": {
			host: func(h *HostState) {
				h.GPUs[0].Profiles = []gpu.Profile{{Name: "vf", Kind: gpu.KindVF, MemoryBytes: 80 * gib, Available: 1}}
			}, want: "",
			why: map[string]string{"vf": "plain virtual function"},
		},
		"the idlest of two": {
			host: func(h *HostState) {
				g := h.GPUs[0]
				g.GPU.ID, g.Profiles = "0000:0f:00.0", slices.Clone(g.Profiles)
				g.Profiles[6].Available = 1
				h.GPUs = append(h.GPUs, g)
			},
			want: "H100XM-2-20C",
		},
	}
}

func TestFit(t *testing.T) {
	for name, test := range fitCases() {
		t.Run(name, func(t *testing.T) {
			in, host := sample(), hostOf()
			if test.source != nil {
				test.source(&in)
			}
			if test.host != nil {
				test.host(&host)
			}
			f := Fit(Assess(in, test.policy).Needs, host, test.wish, test.policy)[0]
			got := ""
			if f.Choice != nil {
				got = f.Choice.Profile
				if all := strings.Join(f.Choice.Cautions, "\n"); !strings.Contains(all, test.warn) || f.Choice.Params != test.params {
					t.Errorf("cautions %q, params %q", all, f.Choice.Params)
				}
				if f.Choice.GPU != "0000:17:00.0" {
					t.Errorf("on %s", f.Choice.GPU)
				}
			}
			if got != test.want {
				t.Errorf("chosen %q, want %q", got, test.want)
			}
			for profile, why := range test.why {
				i := slices.IndexFunc(f.Candidates, func(c Candidate) bool { return c.Profile == profile && c.GPU == "0000:17:00.0" })
				if all := strings.Join(f.Candidates[i].Reasons, "\n"); !strings.Contains(all, why) {
					t.Errorf("%s: reasons\n%s\nwant %q", profile, all, why)
				}
			}
		})
	}
}

// What one need takes another cannot have, and all are for one VM.
func TestFitSeveral(t *testing.T) {
	in := sample()
	second := in.GPUs[0]
	second.PCI = "0000:42:00.0"
	in.GPUs = append(in.GPUs, second)
	p, u := in.Processes[0], in.Usage.GPUs[0]
	p.GPUs, u.PCI = []string{second.PCI}, second.PCI
	in.Processes, in.Usage.GPUs = append(in.Processes, p), append(in.Usage.GPUs, u)

	host := hostOf()
	fits := Fit(Assess(in, Policy{}).Needs, host, Wish{}, Policy{})
	if c := fits[0].Choice; c == nil || c.Profile != "card-10de-2330" {
		t.Fatalf("a VM can have one of each vGPU only, so the card is left: %+v", c)
	}
	if fits[1].Choice != nil {
		t.Fatalf("the only card is given twice: %+v", fits[1].Choice)
	}
	for i := range host.GPUs[0].Profiles {
		delete(host.GPUs[0].Profiles[i].Attributes, "max_per_vm")
	}
	fits = Fit(Assess(in, Policy{}).Needs, host, Wish{}, Policy{})
	for i, free := range []int{3, 2} {
		c := fits[i].Choice
		if c == nil || c.Profile != "H100XM-2-20C" || c.Available != free || !strings.Contains(strings.Join(c.Cautions, " "), "whether a VM can have 2") {
			t.Errorf("%d: %+v", i, c)
		}
	}
	i := slices.IndexFunc(fits[1].Candidates, func(c Candidate) bool { return c.Profile == "H100XM-3-40C" })
	if got := strings.Join(fits[1].Candidates[i].Reasons, " "); !strings.Contains(got, "another need takes H100XM-2-20C") {
		t.Errorf("beside it: %s", got)
	}
}

// A partition that is asked for beside what was seen, as for a source without a GPU.
func TestFitAsked(t *testing.T) {
	host := HostState{GPUs: []HostGPU{{
		GPU:      gpu.GPU{ID: "mbochs", Vendor: "mbochs", Managed: true},
		Profiles: []gpu.Profile{{Name: "mbochs-small", Kind: gpu.KindMdev, Available: 2}, {Name: "mbochs-big", Kind: gpu.KindMdev, Available: 1}},
	}}}
	fits := Fit(nil, host, Wish{Partitions: []WishPartition{{Profile: "mbochs-small"}}}, Policy{})
	if len(fits) != 1 || fits[0].Choice == nil || fits[0].Choice.Profile != "mbochs-small" || fits[0].Choice.Waived {
		t.Errorf("%+v", fits)
	}
	if fits = Fit(nil, host, Wish{Partitions: []WishPartition{{GPU: "mbochs"}}}, Policy{}); fits[0].Choice != nil {
		t.Errorf("chosen without a profile: %+v", fits[0].Choice)
	}
}

// The estimate of an instance's multiprocessors is never more than cards have (nvidia-smi mig
// -lgip of A100 and H100, NVIDIA's MIG guide for A30).
func TestInstanceSMs(t *testing.T) {
	for model, want := range map[string]map[string]int{
		"A30":            {"1g.6gb": 14, "2g.12gb": 28, "4g.24gb": 56},
		"A100-PCIE-40GB": {"1g.5gb": 14, "2g.10gb": 28, "3g.20gb": 42, "4g.20gb": 56, "7g.40gb": 98},
		"H100 80GB HBM3": {"1g.10gb": 16, "2g.20gb": 32, "3g.40gb": 60, "4g.40gb": 64, "7g.80gb": 132},
	} {
		i := slices.IndexFunc(cards.Models, func(m cards.Model) bool { return m.Name == model })
		g := HostGPU{GPU: gpu.GPU{Model: "NVIDIA " + model}}
		for _, p := range cards.Models[i].Profiles {
			g.Profiles = append(g.Profiles, gpu.Profile{Name: p.Name, Kind: gpu.KindMIG, Attributes: map[string]string{"compute_slices": string(rune('0' + p.Engines.Compute))}})
		}
		for profile, most := range want {
			got, estimated := g.instanceSMs(profile)
			if !estimated || got > most || float64(got) < 0.78*float64(most) {
				t.Errorf("%s %s: %d, want at most %d", model, profile, got, most)
			}
		}
	}
}
