package guest

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/report"
)

const gib = 1 << 30

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got+"\n"); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// The servers that the inspector's tests look at: with two cards, UEFI and much that is
// named; with MIG and Secure Boot; with an encrypted disk and BIOS.
var servers = []string{"debian-a100", "rhel-h100", "ubuntu-luks"}

func inspected(t *testing.T, name string) report.Report {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "inspect", "testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := report.Read(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// host has as many cards of a model as a server, each free, with vGPUs of two sizes.
func host(model string, n int) assess.HostState {
	h := assess.HostState{MemoryBytes: 4096 * gib, DiskBytes: 1 << 50, Threads: 256}
	for i := range n {
		id := gpu.ID("0000:1" + string(rune('0'+i)) + ":00.0")
		profile := func(name string, kind gpu.Kind, memory uint64, most int) gpu.Profile {
			return gpu.Profile{
				Name: name, Kind: kind, GPU: id, MemoryBytes: memory, MaxInstances: most, Available: most,
				Attributes: map[string]string{"series": "C", "max_per_vm": "8"},
			}
		}
		h.GPUs = append(h.GPUs, assess.HostGPU{
			GPU: gpu.GPU{
				ID: id, Vendor: "NVIDIA", Model: model, MemoryBytes: 80 * gib, Managed: true,
				Driver: gpu.Driver{Name: "nvidia", Version: "580.65.05"},
			},
			Profiles: []gpu.Profile{
				profile("card", gpu.KindCard, 0, 1), profile("X-80C", gpu.KindVGPU, 80*gib, 1), profile("X-20C", gpu.KindVGPU, 20*gib, 4),
			},
		})
	}
	return h
}

// planned plans the move of a server to a host that has what it has.
func planned(r report.Report, w assess.Wish) assess.Plan {
	model, n := "", 0
	for _, g := range r.GPUs {
		if g.Index >= 0 {
			model = g.Model
			n++
		}
	}
	return assess.NewPlan(r, w, host(model, n), assess.Policy{AcceptUnknownCompute: true}, assess.BuiltInDrivers())
}

// vgpus is a wish for partitions of one profile for all GPUs, with all that they take.
func vgpus(r report.Report, profile string) assess.Wish {
	w := assess.Wish{GuestDriver: "580.65.06", LicenceToken: true}
	for _, g := range r.GPUs {
		if g.Index >= 0 {
			w.Partitions = append(w.Partitions, assess.WishPartition{Source: g.PCI, Profile: profile, MemoryBytes: gib, SMs: 1})
		}
	}
	w.Waivers = []assess.Waiver{{ID: "no-partition", Reason: "a test", By: "a test"}}
	return w
}

// brought is what an operator brings for a server.
func brought(r report.Report) Options {
	kind := ".deb"
	if r.OS.ID == "rhel" {
		kind = ".rpm"
	}
	return Options{
		Agent:  []string{"/srv/packages/qemu-guest-agent" + kind},
		Driver: Driver{Packages: []string{"/srv/packages/nvidia-linux-grid-580" + kind}, Token: []byte("licence")},
	}
}
