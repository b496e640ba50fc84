package p2v_test

import (
	"strings"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/move"
)

// Plans are made with the operator's figures and rows, as they are when somebody asks.
func TestPlansOfThePolicy(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	const id = "0000:17:00.0"
	y.holders.gpus = []gpu.GPU{{ID: id, Vendor: "NVIDIA", Model: "NVIDIA A40", MemoryBytes: 48 << 30, Managed: true, Driver: gpu.Driver{Name: "nvidia", Version: "9999.1.2"}}}
	y.holders.profiles = []gpu.Profile{{
		Name: "A40-8C", Kind: gpu.KindVGPU, GPU: id, MemoryBytes: 8 << 30, MaxInstances: 6, Available: 6, Attributes: map[string]string{"series": "C", "max_per_vm": "1"},
	}}
	plan := func() assess.Plan {
		t.Helper()
		p, err := y.Plan(t.Context(), move.Wish{Assessment: "gpu7", Plan: assess.Wish{GuestDriver: "9999.1.2", Partitions: []assess.WishPartition{{Profile: "A40-8C"}}}})
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Drivers) != 1 {
			t.Fatalf("%+v, %+v", p.Drivers, p.Fittings)
		}
		return p
	}
	if p := plan(); p.Assessment.Policy.BootSeconds != 120 || p.Drivers[0].State != assess.Unknown || y.assessments.Policy().BootSeconds != 0 {
		t.Errorf("%+v, %+v", p.Assessment.Policy, p.Drivers)
	}
	y.policy = assess.Policy{BootSeconds: 240}
	var err error
	if y.drivers, err = assess.BuiltInDrivers().Extend("branch=9999 vgpu=99"); err != nil {
		t.Fatal(err)
	}
	p := plan()
	if p.Assessment.Policy.BootSeconds != 240 || !strings.Contains(p.Estimates.DowntimeSeconds.Basis, "4 min") || y.assessments.Policy().BootSeconds != 240 {
		t.Errorf("%+v, %q", p.Assessment.Policy, p.Estimates.DowntimeSeconds.Basis)
	}
	if p.Drivers[0].State != assess.Compatible {
		t.Errorf("%+v", p.Drivers)
	}
}
