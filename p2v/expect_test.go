package p2v

import (
	"fmt"
	"slices"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
	"gpuvirt/p2v/verify"
)

// A VM is asked for the addresses that its server had of itself, and for none that a router of the
// server's network gave it.
func TestLearnedAddressesAreNotAskedFor(t *testing.T) {
	r := report.Report{NICs: []report.NIC{
		{Name: "eno1", MAC: "ac:1f:6b:00:00:01", Kind: "physical", Up: true, Addresses: []string{"10.1.2.3/24", "2001:db8::ae1f:6bff:fe00:1/64", "2001:db8::1/64"}, Learned: []string{"2001:db8::ae1f:6bff:fe00:1/64"}},
		{Name: "eno2", MAC: "ac:1f:6b:00:00:02", Kind: "physical", Up: true, Addresses: []string{"2001:db8:1::ae1f:6bff:fe00:2/64"}, Learned: []string{"2001:db8:1::ae1f:6bff:fe00:2/64"}},
	}}
	e := expected(r, move.Record{Wanted: move.VMWish{Bridge: "br0"}})
	if len(e.Addresses) != 1 || !slices.Equal(e.Addresses[0].IPs, []string{"10.1.2.3/24", "2001:db8::1/64"}) {
		t.Errorf("%+v", e.Addresses)
	}
	if len(r.NICs[0].Addresses) != 3 {
		t.Error("the report was changed")
	}
}

// What ran on the source with a GPU is looked at in the VM, each of one name once, and not what
// stood still there.
func TestContainersThatRanAreLookedAt(t *testing.T) {
	r := report.Report{Containers: []report.Workload{
		{ID: "1", Name: "vllm", Runtime: "docker", State: "running", Restart: "always"},
		{ID: "2", Name: "old", Runtime: "docker", State: "exited", Restart: "always"},
		{ID: "3", Name: "infer", Runtime: "kubernetes", State: "running"},
		{ID: "4", Name: "infer", Runtime: "kubernetes", State: "running"},
		{ID: "5", Name: "vllm", Runtime: "podman", State: "running"},
	}}
	for i := range 1000 {
		r.Containers = append(r.Containers, report.Workload{ID: "x", Name: fmt.Sprintf("n%d", i), Runtime: "docker", State: "running"})
	}
	e := expected(r, move.Record{})
	want := []verify.Container{
		{Runtime: "docker", Name: "vllm", ID: "1", Restart: "always"}, {Runtime: "kubernetes", Name: "infer", ID: "3"}, {Runtime: "podman", Name: "vllm", ID: "5"},
	}
	if len(e.Containers) != mostContainers || !slices.Equal(e.Containers[:3], want) {
		t.Errorf("%d: %+v", len(e.Containers), e.Containers)
	}
}

// What a guest sees of each kind of partition, by the numbers of PCI, as far as it is known.
func TestDeviceOf(t *testing.T) {
	nvidia := gpu.GPU{Vendor: "NVIDIA", Identity: gpu.Identity{Model: "10de:2331", Subsystem: "10de:1626"}}
	intel := gpu.GPU{Vendor: "Intel", Identity: gpu.Identity{Model: "8086:5912"}}
	amd := gpu.GPU{Vendor: "AMD", Identity: gpu.Identity{Model: "1002:74a1"}}
	for name, test := range map[string]struct {
		gpu     gpu.GPU
		profile string
		want    verify.Device
	}{
		"a card":                            {nvidia, "card-10de:2331", verify.Device{Vendor: "10de", Device: "2331"}},
		"a card of another vendor":          {gpu.GPU{Vendor: "1b36"}, "card-1b36:0010", verify.Device{Vendor: "1b36", Device: "0010"}},
		"a vGPU has its card's":             {nvidia, "H100-20C", verify.Device{Vendor: "10de", Device: "2331"}},
		"a vGPU on an instance":             {nvidia, "H100-1-10C", verify.Device{Vendor: "10de", Device: "2331"}},
		"a mediated vGPU":                   {gpu.GPU{Vendor: "NVIDIA", Identity: gpu.Identity{Model: "10DE:1EB8"}}, "T4-2Q", verify.Device{Vendor: "10de", Device: "1eb8"}},
		"GVT-g has its parent's":            {intel, "i915-GVTg_V5_4", verify.Device{Vendor: "8086", Device: "5912"}},
		"a function has what its card says": {amd, "vf-1002:74b5", verify.Device{Vendor: "1002", Device: "74b5"}},
		"and not what the card has":         {gpu.GPU{Vendor: "Intel", Identity: gpu.Identity{Model: "8086:0bd5"}}, "vf-8086:0bd6", verify.Device{Vendor: "8086", Device: "0bd6"}},
		"another kind of AMD's":             {amd, "something", verify.Device{Vendor: "1002"}},
		"a card that nobody could read":     {gpu.GPU{Vendor: "NVIDIA"}, "H100-20C", verify.Device{Vendor: "10de"}},
		"numbers that are none":             {gpu.GPU{Vendor: "NVIDIA", Identity: gpu.Identity{Model: "10de:x"}}, "card-10de", verify.Device{Vendor: "10de"}},
		"ids of another vendor":             {gpu.GPU{Vendor: "NVIDIA", Identity: gpu.Identity{Model: "8086:5912"}}, "H100-20C", verify.Device{Vendor: "10de"}},
		"a sample of the kernel's":          {gpu.GPU{Vendor: "mtty"}, "mtty-1", verify.Device{Vendor: "4348", Device: "3253"}},
		"one that looks like QEMU's":        {gpu.GPU{Vendor: "mbochs"}, "mbochs-small", verify.Device{Vendor: "1234", Device: "1111"}},
		"who knows":                         {gpu.GPU{Vendor: "other"}, "x", verify.Device{}},
	} {
		got := deviceOf(test.gpu, test.profile)
		if got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
		e := verify.Expect{Up: 1, Deadline: 1, Devices: []verify.Device{got}}
		if err := e.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
