package assess

import (
	"slices"
	"strings"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/mig/cards"
)

// driverless is a host whose only card is not with NVIDIA's driver: of it there are only ids.
func driverless(id, subsystem string) HostState {
	h := hostOf()
	g := &h.GPUs[0]
	g.GPU.Model, g.GPU.MemoryBytes, g.GPU.Driver = id, 0, gpu.Driver{Name: "vfio-pci"}
	g.GPU.Identity = gpu.Identity{Model: id, Subsystem: subsystem}
	g.Profiles = []gpu.Profile{{Name: "card-" + id, Kind: gpu.KindCard, GPU: g.GPU.ID, MaxInstances: 1, Available: 1}}
	return h
}

// A whole card needs no driver on the host: its ids tell what it is.
func TestCardByID(t *testing.T) {
	for id, want := range map[string]struct{ subsystem, model, why string }{
		"10de:2330": {model: "H100 80GB HBM3"},
		"10de:20b5": {model: "A100 80GB PCIe"},
		"10de:25b6": {subsystem: "10de:157e", model: "A2", why: "a workload has 15.0 GiB of it"},
		"10de:1eb8": {model: "Tesla T4", why: "a workload has 15.0 GiB of it"},
		"10de:ffff": {model: "10de:ffff", why: "how much memory it has is not known"},
	} {
		c := NewPlan(sample(), good(), driverless(id, want.subsystem), Policy{AcceptUnknownCompute: true}, BuiltInDrivers()).Fittings[0].Candidates[0]
		if all := strings.Join(c.Reasons, "\n"); c.Model != want.model || c.Fits != (want.why == "") || !strings.Contains(all, want.why) {
			t.Errorf("%s: %+v", id, c)
		}
	}
	if d := deviceOf("10de:25b6", ""); d != (device{}) {
		t.Errorf("two models have the id, and it is taken for %+v", d)
	}
}

// A card that is reserved has left NVIDIA's driver, and is what it was when it was chosen.
func TestReservedCardIsKnown(t *testing.T) {
	for name, c := range map[string]struct {
		id       string
		reserved Reserved
	}{
		"by the table":         {"10de:20f1", Reserved{Model: "10de:20f1"}},
		"by what was told":     {"10de:ffff", Reserved{Model: "A100-PCIE-40GB", MemoryBytes: 80 * gib}},
		"before the table was": {"10de:20f1", Reserved{}},
	} {
		t.Run(name, func(t *testing.T) {
			in, host, w := sample(), driverless(c.id, ""), good()
			r := c.reserved
			r.Source, r.GPU, r.Profile, r.Kind, r.Sharing = in.GPUs[0].PCI, host.GPUs[0].GPU.ID, "card-"+c.id, gpu.KindCard, string(whole)
			w.Reserved = []Reserved{r}
			host.GPUs[0].Profiles[0].Available = 0
			d := BuiltInDrivers() // as if this card took one flavour only, and the server had the other
			i := slices.IndexFunc(d.Architectures, func(a Architecture) bool { return a.Capability == "8.0" })
			d.Architectures[i].Modules = "proprietary"
			p := NewPlan(in, w, host, Policy{}, d)
			if got := p.Fittings[0].Choice; got == nil || got.Model != "A100-PCIE-40GB" || got.MemoryBytes == 0 || got.SMs != 108 {
				t.Errorf("chosen: %+v", got)
			}
			ids := concernIDs(p.Verdict)
			if slices.Contains(ids, "drivers-unknown") || !slices.Contains(ids, "other-architecture") || !slices.Contains(ids, "drivers-do-not-match") {
				t.Errorf("%q: %+v", ids, p.Drivers)
			}
			if !slices.ContainsFunc(p.Changes, func(c GuestChange) bool { return c.ID == "driver-flavour" }) {
				t.Errorf("%+v", p.Changes)
			}
		})
	}
}

func concernIDs(v Verdict) []string {
	var out []string
	for _, c := range slices.Concat(v.Blockers, v.Warnings) {
		out = append(out, c.ID)
	}
	return out
}

// The table of devices agrees with that of names and with the table of MIG, and no row hides another.
func TestCardTable(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range knownCards().Devices {
		key := d.ID + d.Subsystem
		if !pciID.MatchString(d.ID) || d.Subsystem != "" && !pciID.MatchString(d.Subsystem) || seen[key] || seen[d.ID] || seen[d.Name] || d.MemoryMiB == 0 {
			t.Errorf("%+v", d)
		}
		if c := cardOf(d.Name); c.SMs == 0 || c.Capability == "" {
			t.Errorf("of %q the name tells %+v", d.Name, c)
		}
		seen[key], seen[d.Name] = true, true
		i := slices.IndexFunc(cards.Models, func(m cards.Model) bool { return m.Name == d.Name })
		if i < 0 {
			continue
		}
		most := 0
		for _, m := range cards.Models[i].MemoryMiB {
			most = max(most, m)
		}
		if most > int(d.MemoryMiB) || most < int(d.MemoryMiB)*9/10 { //nolint:gosec // MiB of a card
			t.Errorf("%+v: its largest MIG profile has %d MiB", d, most)
		}
	}
}
