package assess

import (
	"time"

	"gpuvirt/p2v/report"
)

// sample is the inspection of a server about which there is nothing to say but that its
// network names and addresses go with it: one H100 with one service, watched for two days.
// Each test changes what it is about.
func sample() report.Report {
	secure := false
	start := time.Date(2026, 5, 4, 8, 0, 0, 0, time.UTC)
	u := report.GPUUsage{PCI: "0000:41:00.0", Activity: true}
	for i := range 100 {
		u.Memory.Add(float64(12*gib + i*(4*gib)/100))
		u.SM.Add(float64(i) / 400)
		for _, s := range []*report.Series{&u.Encoder, &u.Decoder, &u.JPEG, &u.OFA, &u.NVLink} {
			s.Add(0)
		}
	}
	return report.Report{
		Version: report.Version, Inspector: "test", Taken: start.Add(48 * time.Hour), Privileged: true,
		Hostname: "gpu7",
		System:   report.System{Vendor: "Dell Inc.", Product: "PowerEdge R750xa"},
		OS: report.OS{
			ID: "debian", VersionID: "12", PrettyName: "Debian GNU/Linux 12 (bookworm)", Arch: "x86_64",
			Kernel: "6.1.0-21-amd64", Kernels: []string{"6.1.0-21-amd64"}, Headers: true, GuestAgent: &truth, GuestAgentRuns: &truth,
		},
		Firmware: report.Firmware{Type: "uefi", SecureBoot: &secure},
		CPU:      report.CPU{Model: "AMD EPYC 7443", Sockets: 1, Cores: 24, Threads: 48, NUMA: 1},
		Memory:   report.Memory{TotalBytes: 256 * gib},
		Disks: []report.Disk{{
			Name: "nvme0n1", SizeBytes: 960 * gib, BlockBytes: 512, Model: "Dell Ent NVMe", Transport: "nvme", Table: "gpt", Boots: true,
			Partitions: []report.Partition{{Name: "nvme0n1p1", Number: 1, Content: "vfat"}, {Name: "nvme0n1p2", Number: 2, Content: "ext4"}},
		}},
		Filesystems: []report.Filesystem{
			{Source: "nvme0n1p1", Type: "vfat", Mount: "/boot/efi", SizeBytes: 512 * mib, UsedBytes: 20 * mib},
			{Source: "nvme0n1p2", Type: "ext4", Mount: "/", SizeBytes: 900 * gib, UsedBytes: 300 * gib, Inodes: 1e7, FreeInodes: 9e6},
		},
		Boot: report.Boot{
			Loader: "grub", Initramfs: "initramfs-tools", Modules: "most",
			Fstab: []report.FstabRow{{Spec: "UUID=aaaa", Mount: "/", Type: "ext4"}},
		},
		GPUs: []report.GPU{{
			Index: 0, PCI: "0000:41:00.0", PCIID: "10de:2330", Vendor: nvidia, Model: "NVIDIA H100 80GB HBM3", UUID: "GPU-1",
			MemoryBytes: 80 * gib, Driver: nvidia, Multiprocessors: 132, Capability: "9.0", ECC: "enabled", ComputeMode: "default", MIG: "disabled",
		}},
		Driver: &report.Driver{Version: "550.90.07", CUDA: "12.4", Flavour: "open", Origin: "deb", DKMS: true, Packages: []string{"nvidia-driver=550.90.07-1"}, Modules: []string{"nvidia", "nvidia_uvm"}},
		Processes: []report.Process{{
			PID: 812, Exe: "/opt/infer/bin/serve", User: "infer", GPUs: []string{"0000:41:00.0"}, Type: "compute",
			MemoryBytes: 13 * gib, Unit: "infer.service", Framework: "pytorch",
		}},
		Services: []report.Service{{Unit: "infer.service", State: "active", Enabled: "enabled", Role: "workload", Exec: "/opt/infer/bin/serve"}},
		Usage: &report.Usage{
			Start: start, End: start.Add(48 * time.Hour), IntervalSeconds: 1, Samples: 100, Source: "dcgm",
			GPUs: []report.GPUUsage{u},
			Processes: []report.ProcessUsage{{
				PCI: "0000:41:00.0", Exe: "/opt/infer/bin/serve", Unit: "infer.service", Memory: u.Memory, SM: u.SM,
			}},
		},
	}
}
