package mig_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/test/lab/nvml"
)

func TestVGPUTypes(t *testing.T) {
	h := simulated(t, sim.H100("0000:41:00.0", 0).WithVGPU(false), sim.A2("0000:08:00.0", 0).WithVGPU(true), sim.T4("0000:05:00.0", 1), sim.A100("0000:88:00.0", 1), sim.Mbochs())
	b := mig.NewBackend(h.NVML, h.Sysfs, mig.Options{})
	list := func(id gpu.ID) map[string]gpu.VGPUType {
		t.Helper()
		all, err := b.VGPUTypes(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]gpu.VGPUType{}
		for i, x := range all {
			if out[x.Name] = x; i > 0 && x.ID <= all[i-1].ID {
				t.Errorf("%d behind %d", x.ID, all[i-1].ID)
			}
		}
		return out
	}
	id := 19
	want := gpu.VGPUType{
		ID: 1071, Name: "NVIDIA H100XM-1-10C", Class: "Compute", FramebufferBytes: 10 << 30, MaxInstances: 7, MaxPerVM: 1, Heads: 1,
		Resolution: "4096x2160", License: "NVIDIA-vComputeServer,9.0", GPUInstanceProfile: &id, MaxPerInstance: 1, On: "1g.10gb",
	}
	all := list("0000:41:00.0")
	if diff := cmp.Diff(want, all[want.Name]); diff != "" || len(all) != 14 || all["NVIDIA H100XM-4C"].GPUInstanceProfile != nil {
		t.Errorf("%d types; %s", len(all), diff)
	}
	// A card that MIG cannot cut has types all the same, of mediated devices too, and one
	// without any has none.
	if got := list("0000:05:00.0")["GRID T4-1Q"]; got.ID != 230 || got.Class != "Quadro" {
		t.Errorf("%+v", got)
	}
	if got := list("0000:08:00.0")["NVIDIA A2-4Q"]; got.ID != 746 || got.MaxInstances != 4 {
		t.Errorf("%+v", got)
	}
	if got := list("0000:88:00.0"); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	for _, id := range []gpu.ID{"0000:99:00.0", "mbochs", ""} {
		if _, err := b.VGPUTypes(t.Context(), id); gpu.CodeOf(err) != gpu.CodeNotFound {
			t.Errorf("%q: %v", id, err)
		}
	}
	if n := h.NVML.Sessions(); n != 0 {
		t.Errorf("%d sessions are open", n)
	}
	h.NVML.Fail("Init", mig.ErrDriverNotLoaded, 1)
	if _, err := b.VGPUTypes(t.Context(), "0000:41:00.0"); gpu.CodeOf(err) != gpu.CodeDriverMissing {
		t.Error(err)
	}
}

// A library without the functions says so and is of use for all else.
func TestVGPUTypesOfAnOldLibrary(t *testing.T) {
	m := *model(t, "A30")
	lib, _ := lookAlike(t, nvml.GPU{Address: target, Model: &m})
	s, err := lib.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d, err := s.Device(target)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.VGPUTypes(); !errors.Is(err, mig.ErrFunctionNotFound) {
		t.Error(err)
	}
	if p, err := d.Profiles(); len(p) == 0 || err != nil {
		t.Error(p, err)
	}
}
