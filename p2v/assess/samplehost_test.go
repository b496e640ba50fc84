package assess

import (
	"gpuvirt/gpu"
)

// hostOf is a host with an H100 that is free, with a few of its profiles: the card, MIG
// instances and vGPUs on them and without them.
func hostOf() HostState {
	id := gpu.ID("0000:17:00.0")
	on := func(name, mig string, memory uint64, n int) gpu.Profile {
		return gpu.Profile{
			Name: name, Kind: gpu.KindVGPU, GPU: id, On: mig, MemoryBytes: memory, MaxInstances: n, Available: n,
			Attributes: map[string]string{"series": "C", "max_per_vm": "1", "max_per_instance": "1"},
		}
	}
	instances := func(name, slices, decoders string, memory uint64, n int) gpu.Profile {
		a := map[string]string{"compute_slices": slices}
		if decoders != "" {
			a["decoders"], a["jpeg"] = decoders, decoders
		}
		return gpu.Profile{Name: name, Kind: gpu.KindMIG, GPU: id, MemoryBytes: memory, MaxInstances: n, Available: n, Attributes: a}
	}
	turns := func(name, letter string, memory uint64, n int) gpu.Profile {
		return gpu.Profile{
			Name: name, Kind: gpu.KindVGPU, GPU: id, MemoryBytes: memory, MaxInstances: n, Available: n,
			Attributes: map[string]string{"series": letter, "max_per_vm": "1"},
		}
	}
	return HostState{
		MemoryBytes: 512 * gib, DiskBytes: 2000 * gib, Threads: 96,
		Tools:   HostTools{Converter: Found(nil), UEFI: Found(nil), SecureBoot: Found(nil), TPM: Found(nil)},
		Brought: Brought{Packages: Found(nil), Licence: Found(nil), Driver: []string{"nvidia-linux-grid-580_580.65.06_amd64.deb"}},
		GPUs: []HostGPU{{
			GPU: gpu.GPU{
				ID: id, Vendor: "NVIDIA", Model: "NVIDIA H100 80GB HBM3", MemoryBytes: 80 * gib, Managed: true,
				Driver: gpu.Driver{Name: nvidia, Version: "580.65.05"},
			},
			Profiles: []gpu.Profile{
				{Name: "card-10de-2330", Kind: gpu.KindCard, GPU: id, MaxInstances: 1, Available: 1},
				instances("1g.10gb", "1", "1", 9728*mib, 7), instances("2g.20gb", "2", "2", 19968*mib, 3),
				instances("3g.40gb", "3", "3", 40448*mib, 2), instances("7g.80gb", "7", "7", 81152*mib, 1),
				on("H100XM-1-10C", "1g.10gb", 10*gib, 7), on("H100XM-2-20C", "2g.20gb", 20*gib, 3),
				on("H100XM-3-40C", "3g.40gb", 40*gib, 2), on("H100XM-7-80C", "7g.80gb", 80*gib, 1),
				turns("H100XM-10C", "C", 10*gib, 8), turns("H100XM-20C", "C", 20*gib, 4), turns("H100XM-80C", "C", 80*gib, 1),
				turns("H100XM-20Q", "Q", 20*gib, 4), turns("H100XM-20B", "B", 20*gib, 4),
			},
		}},
	}
}
