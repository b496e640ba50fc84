package mdev_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim/fixture"
	"gpuvirt/internal/sysfs"
	"gpuvirt/mdev"
)

// load reads a tree of real files through the real sysfs.
func load(t *testing.T, name string) *mdev.Backend {
	t.Helper()
	root, err := sysfs.Open(fixture.Load(t, "testdata/"+name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return mdev.New(root, mdev.Options{})
}

func TestNVIDIAFixture(t *testing.T) {
	b := load(t, "nvidia-legacy.txtar")
	gpus, err := gpus(t, b)
	want := []gpu.GPU{{
		ID: "0000:08:00.0", Vendor: "NVIDIA", Model: "A2", PCIAddress: "0000:08:00.0", NUMANode: 0, IOMMUGroup: "30",
		Identity: gpu.Identity{Model: "10de:25b6", Subsystem: "10de:157e"},
		Driver:   gpu.Driver{Name: "nvidia", Version: "535.129.03"}, Kinds: []gpu.Kind{gpu.KindMdev},
	}}
	if diff := cmp.Diff(want, gpus); diff != "" || err != nil {
		t.Error(err, diff)
	}

	_, profiles, err := b.Look(t.Context(), "0000:08:00.0")
	if err != nil {
		t.Fatal(err)
	}
	profile := func(name, native, description string, mib uint64, maximum, available int, heads, frl, resolution string) gpu.Profile {
		return gpu.Profile{
			Name: name, Kind: gpu.KindMdev, GPU: "0000:08:00.0", MemoryBytes: mib << 20, MaxInstances: maximum, Available: available,
			NativeID: native, DeviceAPI: "vfio-pci", Attributes: map[string]string{
				"name": "NVIDIA " + name, "num_heads": heads, "frl_config": frl, "max_resolution": resolution, "description": description,
				"series": name[len(name)-1:],
			},
		}
	}
	wantProfiles := []gpu.Profile{
		profile("A2-1B", "nvidia-742", "num_heads=4, frl_config=45, framebuffer=1024M, max_resolution=5120x2880, max_instance=16", 1024, 16, 0, "4", "45", "5120x2880"),
		profile("A2-1Q", "nvidia-744", "num_heads=4, frl_config=60, framebuffer=1024M, max_resolution=5120x2880, max_instance=16", 1024, 16, 0, "4", "60", "5120x2880"),
		profile("A2-2A", "nvidia-750", "num_heads=1, frl_config=60, framebuffer=2048M, max_resolution=1280x1024, max_instance=8", 2048, 8, 0, "1", "60", "1280x1024"),
		profile("A2-2Q", "nvidia-745", "num_heads=4, frl_config=60, framebuffer=2048M, max_resolution=7680x4320, max_instance=8", 2048, 8, 0, "4", "60", "7680x4320"),
		profile("A2-4Q", "nvidia-746", "num_heads=4, frl_config=60, framebuffer=4096M, max_resolution=7680x4320, max_instance=4", 4096, 4, 2, "4", "60", "7680x4320"),
		profile("A2-8Q", "nvidia-747", "num_heads=4, frl_config=60, framebuffer=8192M, max_resolution=7680x4320, max_instance=2", 8192, 2, 0, "4", "60", "7680x4320"),
	}
	if diff := cmp.Diff(wantProfiles, profiles); diff != "" {
		t.Error(diff)
	}

	partitions, err := b.Partitions(t.Context(), "0000:08:00.0")
	partition := func(uuid, group string) gpu.Partition {
		return gpu.Partition{
			ID: uuid, GPU: "0000:08:00.0", Parent: "0000:08:00.0", Kind: gpu.KindMdev, Profile: "A2-4Q", Native: "nvidia-746",
			Handle: gpu.Handle{MdevUUID: uuid}, DeviceAPI: "vfio-pci", IOMMUGroup: group,
		}
	}
	wantPartitions := []gpu.Partition{
		partition("1a51a6ac-2d2b-4e7d-9c05-2f9b0d6a7a11", "51"), partition("c2177883-f1bb-47f0-914d-32a22e3a8804", "50"),
	}
	if diff := cmp.Diff(wantPartitions, partitions); diff != "" || err != nil {
		t.Error(err, diff)
	}
}

func TestIntelFixture(t *testing.T) {
	b := load(t, "i915-gvtg.txtar")
	gpus, err := gpus(t, b)
	want := []gpu.GPU{{
		ID: "0000:00:02.0", Vendor: "Intel", Model: "8086:5912", PCIAddress: "0000:00:02.0", NUMANode: -1, IOMMUGroup: "1",
		Identity: gpu.Identity{Model: "8086:5912", Subsystem: "17aa:3106"}, Driver: gpu.Driver{Name: "i915"}, Kinds: []gpu.Kind{gpu.KindMdev},
	}}
	if diff := cmp.Diff(want, gpus); diff != "" || err != nil {
		t.Error(err, diff)
	}
	_, profiles, err := b.Look(t.Context(), "0000:00:02.0")
	if err != nil || len(profiles) != 3 {
		t.Fatal(profiles, err)
	}
	wantProfile := gpu.Profile{
		Name: "i915-GVTg_V5_4", Kind: gpu.KindMdev, GPU: "0000:00:02.0", MemoryBytes: 640 << 20, Available: 2,
		NativeID: "i915-GVTg_V5_4", DeviceAPI: "vfio-pci", Attributes: map[string]string{
			"low_gm_size": "128MB", "high_gm_size": "512MB", "fence": "4", "resolution": "1920x1200", "weight": "4",
			"description": "low_gm_size: 128MB\nhigh_gm_size: 512MB\nfence: 4\nresolution: 1920x1200\nweight: 4",
		},
	}
	if diff := cmp.Diff(wantProfile, profiles[1]); diff != "" {
		t.Error(diff)
	}
	partitions, err := b.Partitions(t.Context(), "0000:00:02.0")
	if err != nil || len(partitions) != 1 || partitions[0].Profile != "i915-GVTg_V5_4" || partitions[0].IOMMUGroup != "12" {
		t.Error(partitions, err)
	}
}

// No driver has registered: no class, no bus. That is a host without mdevs.
func TestNoBus_T05(t *testing.T) {
	root, err := sysfs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	gpus, err := gpus(t, mdev.New(root, mdev.Options{}))
	if gpus == nil || len(gpus) != 0 || err != nil {
		t.Error(gpus, err)
	}
}
