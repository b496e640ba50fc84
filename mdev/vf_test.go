package mdev_test

import (
	"slices"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
)

const (
	l40s = gpu.ID("0000:41:00.0")
	a2   = gpu.ID("0000:08:00.0")
)

// vfHost is a host with an L40S whose driver is the VFIO driver of its virtual functions,
// and which are on.
func vfHost(t *testing.T, cards ...sim.Card) *sim.Host {
	t.Helper()
	if len(cards) == 0 {
		cards = []sim.Card{sim.L40S(string(l40s), 0).WithVGPU(false)}
	}
	h := host(t, cards...)
	functionsOn(t, h, cards...)
	return h
}

func functionsOn(t *testing.T, h *sim.Host, cards ...sim.Card) {
	t.Helper()
	for _, c := range cards {
		if c.SRIOV == nil || !c.SRIOV.ToolOnly {
			continue
		}
		if out, err := h.RunTool(t.Context(), "sriov-manage", "-e", c.Name); err != nil {
			t.Fatal(err, out)
		}
	}
}

// migOn turns MIG on, for which there may be no virtual functions meanwhile.
func migOn(t *testing.T, h *sim.Host) {
	t.Helper()
	if out, err := h.RunTool(t.Context(), "sriov-manage", "-d", string(l40s)); err != nil {
		t.Fatal(err, out)
	}
	s, err := h.NVML.Open()
	if err != nil {
		t.Fatal(err)
	}
	a, err := gpu.ParseAddress(string(l40s))
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Device(a)
	if err != nil {
		t.Fatal(err)
	}
	if waits, err := d.SetMode(true); waits != nil || err != nil {
		t.Fatal(waits, err)
	}
	s.Close() // the tool wants the driver for itself
	if out, err := h.RunTool(t.Context(), "sriov-manage", "-e", string(l40s)); err != nil {
		t.Fatal(err, out)
	}
}

// available returns what fits, by name; nothing of what does not.
func available(t *testing.T, b gpu.Backend, id gpu.ID) map[string]int {
	t.Helper()
	_, profiles, err := b.Look(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, p := range profiles {
		if p.Available > 0 {
			out[p.Name] = p.Available
		}
	}
	return out
}

func profile(t *testing.T, b gpu.Backend, id gpu.ID, name string) gpu.Profile {
	t.Helper()
	_, profiles, err := b.Look(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(profiles, func(p gpu.Profile) bool { return p.Name == name })
	if i < 0 {
		t.Fatalf("%s has no profile %q", id, name)
	}
	return profiles[i]
}
