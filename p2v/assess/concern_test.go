package assess

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/p2v/report"
)

// A change makes one concern of the sample, and says how much it weighs and what is shown.
type change struct {
	severity Severity
	evidence string // in one of its lines
	make     func(*report.Report)
}

func nic(n report.NIC) func(*report.Report) {
	return func(r *report.Report) { r.NICs = append(r.NICs, n) }
}

func config(kind string) func(*report.Report) {
	return func(r *report.Report) {
		r.Configs = append(r.Configs, report.Config{Path: "/etc/x.conf", Kind: kind})
	}
}

func service(role string) func(*report.Report) {
	return func(r *report.Report) {
		r.Services = append(r.Services, report.Service{Unit: "x.service", State: "active", Enabled: "enabled", Role: role})
	}
}

func volume(v report.Volume) func(*report.Report) {
	return func(r *report.Report) { r.Volumes = append(r.Volumes, v) }
}

// changesByID has one or more changes for each rule.
func changesByID() map[string][]change {
	word := "a sign"
	return map[string][]change{
		"not-privileged": {{Warning, "the report says so", func(r *report.Report) { r.Privileged = false }}},
		"unseen": {{Warning, `"containers": "docker: permission denied"`, func(r *report.Report) {
			r.Unseen = []report.Unseen{{What: "containers", Reason: "docker: permission denied"}}
		}}},
		"not-watched":      {{Warning, "no samples", func(r *report.Report) { r.Usage = nil }}},
		"window-short":     {{Warning, "watched for 60 min, wanted are 24.0 h", func(r *report.Report) { r.Usage.End = r.Usage.Start.Add(time.Hour) }}},
		"samples-missed":   {{Warning, "100 samples came, 12 did not", func(r *report.Report) { r.Usage.Missed = 12 }}},
		"utilisation-only": {{Warning, `gpu "0000:41:00.0"`, func(r *report.Report) { r.Usage.GPUs[0].Activity = false }}},

		"no-gpu": {{Info, "lists none", func(r *report.Report) { r.GPUs, r.Driver, r.Usage, r.Processes = nil, nil, nil, nil }}},
		"too-many-gpus": {{Blocker, "36 more than 64", func(r *report.Report) {
			for i := range 99 {
				r.GPUs = append(r.GPUs, report.GPU{PCI: fmt.Sprintf("0001:%02x:00.0", i), Vendor: nvidia})
			}
		}}},
		"other-vendor": {{Info, `of "matrox"`, func(r *report.Report) {
			r.GPUs = append(r.GPUs, report.GPU{PCI: "0000:03:00.0", Vendor: "matrox", BootVGA: true})
		}}},
		"nouveau": {
			{Warning, "bound to nouveau", func(r *report.Report) { r.GPUs[0].Driver = "nouveau" }},
			{Warning, "module nouveau", func(r *report.Report) { r.Driver.Modules = append(r.Driver.Modules, "nouveau") }},
		},
		"gpu-passed-on": {{Warning, "vfio-pci", func(r *report.Report) { r.GPUs[0].Driver = "vfio-pci" }}},
		"mig-on-source": {{Warning, `MIG is on, "3g.40gb"`, func(r *report.Report) {
			r.GPUs[0].MIG, r.GPUs[0].Instances = "enabled", []report.MIGInstance{{ID: 1, Profile: "3g.40gb"}}
		}}},
		"gpu-settings": {
			{Warning, "ECC is off", func(r *report.Report) { r.GPUs[0].ECC = "disabled" }},
			{Warning, `compute mode "exclusive-process"`, func(r *report.Report) { r.GPUs[0].ComputeMode = "exclusive-process" }},
			{Warning, "/etc/x.conf", config("power")},
		},
		"display-attached": {{Warning, "drives a display", func(r *report.Report) { r.GPUs[0].DisplayActive = true }}},

		"unified-memory": {{Warning, word, func(r *report.Report) { r.Features.UnifiedMemory = []string{word} }}},
		"nvlink": {
			{Warning, word, func(r *report.Report) { r.Features.NVLink = []string{word} }},
			{Warning, word, func(r *report.Report) { r.Features.P2P = []string{word} }},
			{Warning, "up to 2.0 GiB a second over NVLink", func(r *report.Report) { r.Usage.GPUs[0].NVLink.Add(2 * gib) }},
		},
		"nvswitch":          {{Warning, word, func(r *report.Report) { r.Features.NVSwitch = []string{word} }}},
		"fabric-manager":    {{Warning, `"x.service" is "active", "enabled"`, service("fabric-manager")}},
		"gpudirect-rdma":    {{Warning, word, func(r *report.Report) { r.Features.GPUDirectRDMA = []string{word} }}},
		"gpudirect-storage": {{Warning, word, func(r *report.Report) { r.Features.GPUDirectIO = []string{word} }}},
		"mps": {
			{Info, word, func(r *report.Report) { r.Features.MPS = []string{word} }},
			{Info, "x.service", service("mps")},
		},
		"profilers": {{Warning, word, func(r *report.Report) { r.Features.Profilers = []string{word} }}},
		"media-engines": {
			{Warning, word, func(r *report.Report) { r.Features.Encoder = []string{word} }},
			{Warning, word, func(r *report.Report) { r.Features.Decoder = []string{word} }},
			{Warning, "JPEG", func(r *report.Report) { r.Usage.GPUs[0].JPEG.Add(0.1) }},
		},
		"graphics": {
			{Warning, word, func(r *report.Report) { r.Features.Graphics = []string{word} }},
			{Warning, "graphics context", func(r *report.Report) { r.Processes[0].Type = "both" }},
			{Warning, "x.service", service("display-manager")},
			{Warning, "configures Xorg", config("xorg")},
		},
		"several-gpus": {{Warning, `uses "0000:41:00.0", "0000:42:00.0"`, func(r *report.Report) { r.Processes[0].GPUs = append(r.Processes[0].GPUs, "0000:42:00.0") }}},

		"preallocator": {{Warning, "takes 90 % of the memory", func(r *report.Report) { r.Processes[0].Preallocates, r.Processes[0].Share = true, 0.9 }}},
		"started-by-hand": {
			{Warning, "/opt/infer/bin/serve", func(r *report.Report) { r.Processes[0].Unit = "" }},
			{Warning, "session-4.scope", func(r *report.Report) { r.Processes[0].Unit = "session-4.scope" }},
		},
		"service-failed":  {{Warning, "infer.service", func(r *report.Report) { r.Services[0].State = "failed" }}},
		"kubernetes-node": {{Warning, "of Kubernetes", func(r *report.Report) { r.Containers = []report.Workload{{ID: "1", Name: "x", Runtime: "kubernetes"}} }}},
		"pins": {
			{Warning, `"CUDA_VISIBLE_DEVICES"="GPU-1"`, func(r *report.Report) {
				r.Pins = []report.Pin{{Where: "process 812", Key: "CUDA_VISIBLE_DEVICES", Value: "GPU-1", Kind: "gpu-uuid"}}
			}},
			{Info, `="0"`, func(r *report.Report) { r.Pins = []report.Pin{{Where: "x", Key: "K", Value: "0", Kind: "index"}} }},
		},
		"cdi-files":     {{Info, "/etc/x.conf", config("cdi")}},
		"built-engines": {{Warning, "3 engines", func(r *report.Report) { r.Models = []report.Models{{Path: "/m", Engines: 3}} }}},
		"large-models":  {{Info, "at least 200.0 GiB", func(r *report.Report) { r.Models = []report.Models{{Path: "/m", SizeBytes: 200 * gib}} }}},
		"cuda-requirement": {{Info, `asks for "cuda>=12.4"`, func(r *report.Report) {
			r.Containers = []report.Workload{{ID: "1", Image: "i", RequireCUDA: "cuda>=12.4"}}
		}}},
		"bound-licence": {
			{Warning, "lmgrd.service", func(r *report.Report) {
				r.Services = append(r.Services, report.Service{Unit: "lmgrd.service", State: "active"})
			}},
			{Warning, "hasplmd", func(r *report.Report) {
				r.Processes = append(r.Processes, report.Process{Exe: "/usr/sbin/hasplmd", Unit: "h.service"})
			}},
		},

		"no-driver":          {{Warning, "kernel driver", func(r *report.Report) { r.Driver = nil }}},
		"vgpu-driver":        {{Warning, "550.90.07", func(r *report.Report) { r.Driver.Guest = true }}},
		"driver-build":       {{Warning, "headers", func(r *report.Report) { r.OS.Headers = false }}, {Warning, "DKMS", func(r *report.Report) { r.Driver.DKMS = false }}},
		"driver-runfile":     {{Info, "550.90.07", func(r *report.Report) { r.Driver.Origin = "runfile" }}},
		"persistence-daemon": {{Info, "x.service", service("persistence")}},
		"licence-client":     {{Info, "x.service", service("gridd")}, {Info, "/etc/x.conf", config("licence-token")}},
		"mig-scripts":        {{Warning, "x.service", service("mig-manager")}, {Warning, "/etc/x.conf", config("mig")}},

		"not-x86-64":         {{Blocker, "aarch64", func(r *report.Report) { r.OS.Arch = "aarch64" }}, {Blocker, "i686", func(r *report.Report) { r.OS.Arch = "i686" }}},
		"os-not-convertible": {{Blocker, "nixos", func(r *report.Report) { r.OS.ID = "nixos" }}},
		"source-is-vm":       {{Warning, "kvm", func(r *report.Report) { r.System.Virtual = "kvm" }}},
		"wide-vector-units":  {{Warning, "avx512f", func(r *report.Report) { r.CPU.Flags = []string{"avx512f", "aes"} }}, {Warning, "amx_tile", func(r *report.Report) { r.CPU.Flags = []string{"amx_tile"} }}},
		"hugepages":          {{Warning, "64.0 GiB of 256.0 GiB", func(r *report.Report) { r.Memory.HugepagesBytes = 64 * gib }}},
		"numa":               {{Info, "2 nodes", func(r *report.Report) { r.CPU.NUMA = 2 }}},
		"selinux":            {{Info, "enforcing", func(r *report.Report) { r.OS.SELinux = "enforcing" }}},
		"agent-blocked": {
			{Warning, "its settings forbid", func(r *report.Report) { r.OS.GuestAgentRuns = &untruth }},
			{Warning, "does not tell", func(r *report.Report) { r.OS.ID, r.OS.GuestAgentRuns = "rhel", nil }},
			{Warning, "as it comes", func(r *report.Report) { r.OS.ID, r.OS.GuestAgent, r.OS.GuestAgentRuns = "rocky", &untruth, nil }},
		},
		"reboot-pending": {{Warning, "6.1.0-99", func(r *report.Report) { r.OS.Kernel = "6.1.0-99" }}},

		"secure-boot":      {{Warning, "the firmware", func(r *report.Report) { r.Firmware.SecureBoot = &truth }}},
		"bios-boot":        {{Info, "bios", func(r *report.Report) { r.Firmware.Type = "bios" }}},
		"firmware-unknown": {{Blocker, `firmware ""`, func(r *report.Report) { r.Firmware.Type = "" }}},
		"tpm-bound-disk":   {{Blocker, "dm-0", volume(report.Volume{Name: "dm-0", Kind: "crypt", TPM: true})}},
		"encrypted-disk": {
			{Warning, "dm-0", volume(report.Volume{Name: "dm-0", Kind: "crypt"})},
			{Warning, "crypttab", func(r *report.Report) { r.Boot.Crypttab = []string{"root_crypt"} }},
		},
		"tpm": {{Info, "2.0", func(r *report.Report) { r.Firmware.TPM = "2.0" }}},
		"device-names": {{Warning, "/dev/sda1", func(r *report.Report) {
			r.Boot.Fstab = append(r.Boot.Fstab, report.FstabRow{Spec: "/dev/sda1", Mount: "/data"})
		}}, {Warning, `crypttab has "/dev/nvme0n1p3" for "data"`, func(r *report.Report) {
			r.Boot.CryptRows = []report.CryptRow{{Name: "data", Source: "/dev/nvme0n1p3", KernelName: true}, {Name: "x", Source: "UUID=x"}}
		}}, {Warning, "only names are known", func(r *report.Report) { r.Boot.Crypttab = []string{"data"} }}},
		"initramfs-lean": {
			{Warning, "dep", func(r *report.Report) { r.Boot.Modules = "dep" }},
			{Warning, "hostonly", func(r *report.Report) { r.Boot.Modules = "hostonly" }},
		},
		"no-initramfs-tool": {{Blocker, `""`, func(r *report.Report) { r.Boot.Initramfs = "" }}, {Blocker, "mkinitcpio", func(r *report.Report) { r.Boot.Initramfs = "mkinitcpio" }}},
		"boot-loader":       {{Warning, "systemd-boot", func(r *report.Report) { r.Boot.Loader = "systemd-boot" }}},
		"no-room-to-convert": {
			{Blocker, `"/" has 99 MiB free, needed are 100 MiB`, func(r *report.Report) { r.Filesystems[1].UsedBytes = r.Filesystems[1].SizeBytes - 99*mib }},
			{Blocker, `"/boot" has 49 MiB free, needed are 50 MiB`, func(r *report.Report) {
				r.Filesystems = append(r.Filesystems, report.Filesystem{Source: "nvme0n1p3", Type: "ext4", Mount: "/boot", SizeBytes: 100 * mib, UsedBytes: 51 * mib})
			}},
			{Blocker, `needed are 10 MiB`, func(r *report.Report) { r.Filesystems[0].UsedBytes = r.Filesystems[0].SizeBytes }},
			{Blocker, "99 inodes free", func(r *report.Report) { r.Filesystems[1].FreeInodes = 99 }},
		},

		"several-disks": {{Warning, `"sda", "nvme0n1"`, func(r *report.Report) {
			r.Disks = append(r.Disks, report.Disk{Name: "sda", Partitions: []report.Partition{{Name: "sda1"}}})
			r.Boot.Fstab = append(r.Boot.Fstab, report.FstabRow{Spec: "/dev/sda1", Mount: "none", Type: "swap"})
		}}, {Warning, `"sda", "nvme0n1"`, func(r *report.Report) { // through LVM
			r.Disks = append(r.Disks, report.Disk{Name: "sda", Partitions: []report.Partition{{Name: "sda1"}}})
			r.Volumes = []report.Volume{{Name: "dm-0", Kind: "lvm", On: []string{"nvme0n1p2", "sda1"}}}
			r.Filesystems[1].Source = "dm-0"
		}}},
		"multipath":     {{Warning, "dm-3", volume(report.Volume{Name: "dm-3", Kind: "multipath", On: []string{"sda", "sdb"}})}},
		"san-disk":      {{Warning, "iscsi", func(r *report.Report) { r.Disks[0].Transport = "iscsi" }}, {Warning, "fc", func(r *report.Report) { r.Disks[0].Transport = "fc" }}},
		"hardware-raid": {{Info, "PERC", func(r *report.Report) { r.Disks[0].Model = "PERC H755" }}},
		"md-raid":       {{Warning, `("raid1")`, volume(report.Volume{Name: "md0", Kind: "md", Level: "raid1"})}},
		"zfs":           {{Blocker, "is zfs", func(r *report.Report) { r.Filesystems[1].Type = "zfs" }}, {Blocker, "zfs_member", func(r *report.Report) { r.Disks[0].Content = "zfs_member" }}},
		"btrfs-devices": {{Warning, "nvme0n1p2", func(r *report.Report) {
			r.Disks[0].Partitions[0].Content, r.Disks[0].Partitions[1].Content = "btrfs", "btrfs"
		}}},
		"removable-disk": {
			{Info, "sdz", func(r *report.Report) { r.Disks = append(r.Disks, report.Disk{Name: "sdz", Transport: "usb"}) }},
			{Warning, "nvme0n1", func(r *report.Report) { r.Disks[0].Removable = true }},
		},
		"read-only-disk": {{Info, "nvme0n1", func(r *report.Report) { r.Disks[0].ReadOnly = true }}},
		"large-sectors": {
			{Blocker, "4096 bytes", func(r *report.Report) { r.Disks[0].BlockBytes = 4096 }},
			{Warning, "sdz", func(r *report.Report) { r.Disks = append(r.Disks, report.Disk{Name: "sdz", BlockBytes: 4096}) }},
		},
		"network-storage": {{Warning, "nas:/models", func(r *report.Report) {
			r.Filesystems = append(r.Filesystems, report.Filesystem{Source: "nas:/models", Type: "nfs4", Mount: "/models"})
		}}},

		"nic-names":        {{Warning, "enp65s0", nic(report.NIC{Name: "enp65s0", Kind: "physical", MAC: "aa", Config: "ifupdown"})}},
		"static-addresses": {{Warning, "10.1.2.3/24", nic(report.NIC{Name: "br0", Kind: "other", Addresses: []string{"10.1.2.3/24"}})}},
		"built-networks": {
			{Warning, `bond "bond0" on "a", "b"`, nic(report.NIC{Name: "bond0", Kind: "bond", On: []string{"b", "a"}})},
			{Warning, "vlan", nic(report.NIC{Name: "v", Kind: "vlan"})},
			{Warning, "bridge", nic(report.NIC{Name: "b", Kind: "bridge"})},
		},
		"rdma-nic":     {{Warning, "mlx5_core", nic(report.NIC{Name: "ib0", Kind: "physical", Driver: "mlx5_core", RDMA: true})}},
		"jumbo-frames": {{Warning, "MTU 9000", nic(report.NIC{Name: "e", Kind: "physical", MTU: 9000})}},
	}
}

var truth, untruth = true, false

func find(list []Concern, id string) *Concern {
	i := slices.IndexFunc(list, func(c Concern) bool { return c.ID == id })
	if i < 0 {
		return nil
	}
	return &list[i]
}

// Without a change there is nothing to say: each rule is silent where its reason is not there.
func TestNoConcerns(t *testing.T) {
	if got := Assess(sample(), Policy{}).Concerns; len(got) > 0 {
		t.Errorf("a server about which there is nothing to say: %+v", got)
	}
}

func TestConcerns(t *testing.T) {
	all := changesByID()
	for _, r := range rules() {
		if len(all[r.ID]) == 0 {
			t.Errorf("rule %q has no test", r.ID)
		}
		for _, c := range all[r.ID] {
			t.Run(r.ID, func(t *testing.T) {
				in := sample()
				c.make(&in)
				got := find(Assess(in, Policy{}).Concerns, r.ID)
				if got == nil {
					t.Fatal("not found")
				}
				if got.Severity != c.severity {
					t.Errorf("severity %s, want %s", got.Severity, c.severity)
				}
				if !strings.Contains(strings.Join(got.Evidence, "\n"), c.evidence) {
					t.Errorf("evidence %q, want %q in it", got.Evidence, c.evidence)
				}
				if c.severity.weight() > r.Severity.weight() {
					t.Errorf("heavier than the catalogue says: %s", r.Severity)
				}
			})
		}
		delete(all, r.ID)
	}
	for id := range all {
		t.Errorf("test of %q, which is no rule", id)
	}
}

// What would be a concern elsewhere is none in these places.
func TestSilent(t *testing.T) {
	for name, test := range map[string]struct {
		id   string
		make func(*report.Report)
	}{
		"a pin to all": {"pins", func(r *report.Report) { r.Pins = []report.Pin{{Where: "x", Key: "K", Value: "all", Kind: "all"}} }},
		"a monitor by hand": {"started-by-hand", func(r *report.Report) {
			r.Processes = append(r.Processes, report.Process{Exe: "nvtop", Framework: "monitor", GPUs: []string{"0000:41:00.0"}})
		}},
		"a masked service": {"fabric-manager", func(r *report.Report) {
			r.Services = append(r.Services, report.Service{Unit: "f", Role: "fabric-manager", State: "inactive", Enabled: "masked"})
		}},
		"full network storage": {"no-room-to-convert", func(r *report.Report) {
			r.Filesystems = append(r.Filesystems, report.Filesystem{Source: "n:/", Type: "nfs", Mount: "/n", SizeBytes: 10, UsedBytes: 10})
		}},
		"a full image": {"no-room-to-convert", func(r *report.Report) {
			r.Filesystems = append(r.Filesystems, report.Filesystem{Source: "loop0", Type: "squashfs", Mount: "/snap", SizeBytes: 10, UsedBytes: 10})
		}},
		"an unseen initramfs":      {"no-initramfs-tool", func(r *report.Report) { r.Boot.Initramfs, r.Unseen = "", []report.Unseen{{What: "boot", Reason: "x"}} }},
		"an unseen system":         {"os-not-convertible", func(r *report.Report) { r.OS.ID, r.Unseen = "", []report.Unseen{{What: "os", Reason: "x"}} }},
		"an agent of Debian":       {"agent-blocked", func(r *report.Report) { r.OS.GuestAgentRuns = nil }},
		"no agent on Debian":       {"agent-blocked", func(r *report.Report) { r.OS.GuestAgent = &untruth }},
		"a NIC without use":        {"nic-names", nic(report.NIC{Name: "eno4", Kind: "physical", MAC: "aa"})},
		"a loopback MTU":           {"jumbo-frames", nic(report.NIC{Name: "lo", Kind: "other", MTU: 65536})},
		"one btrfs":                {"btrfs-devices", func(r *report.Report) { r.Disks[0].Partitions[1].Content = "btrfs" }},
		"LUKS with TPM: no prompt": {"encrypted-disk", volume(report.Volume{Name: "dm-0", Kind: "crypt", TPM: true})},
	} {
		t.Run(name, func(t *testing.T) {
			in := sample()
			test.make(&in)
			if got := find(Assess(in, Policy{}).Concerns, test.id); got != nil {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestEvidenceIsBounded(t *testing.T) {
	in := sample()
	for i := range 300 {
		in.Pins = append(in.Pins, report.Pin{Where: strconv.Itoa(i) + strings.Repeat("é", 2000), Key: "K", Value: "\"quoted\"", Kind: "pci"})
	}
	got := find(Assess(in, Policy{}).Concerns, "pins").Evidence
	if len(got) != maxEvidence+1 || got[maxEvidence] != "and 295 more" {
		t.Errorf("got %d lines: %q", len(got), got)
	}
	for _, line := range got {
		if len(line) > 2*maxQuoted {
			t.Errorf("%d bytes: %q", len(line), line)
		}
	}
}

// The largest lists that a report may have make an answer of a bounded size, in a time that
// nobody notices.
func TestLargeReport(t *testing.T) {
	in := sample()
	for i := range 4096 {
		pci := fmt.Sprintf("%04x:41:00.0", i)
		in.GPUs = append(in.GPUs, report.GPU{PCI: pci, Vendor: nvidia})
		in.Volumes = append(in.Volumes, report.Volume{Name: fmt.Sprint("dm-", i), Kind: "lvm", On: []string{fmt.Sprint("dm-", i+1), fmt.Sprint("dm-", i*2), "sda"}})
		in.Filesystems = append(in.Filesystems, report.Filesystem{Source: fmt.Sprint("dm-", i), Type: "ext4", Mount: pci})
		in.NICs = append(in.NICs, report.NIC{Name: pci, Kind: "physical", On: []string{"x", "y"}})
		p := in.Processes[0]
		p.Exe, p.GPUs = pci, nil
		for j := range 20 {
			p.GPUs = append(p.GPUs, fmt.Sprintf("%04x:41:00.0", i+j))
		}
		in.Processes = append(in.Processes, p)
	}
	p := NewPlan(in, Wish{}, hostOf(), Policy{}, BuiltInDrivers())
	text, err := json.Marshal(p)
	if err != nil || len(p.Fittings) != maxGPUs || len(text) > 8<<20 {
		t.Errorf("%d fittings, %d bytes, %v", len(p.Fittings), len(text), err)
	}
}

func TestCatalogue(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Catalogue() {
		if seen[r.ID] {
			t.Errorf("%q is there twice", r.ID)
		}
		seen[r.ID] = true
		for _, text := range []string{r.ID, r.Subject, r.Title, r.Why, r.Remedy, string(r.Severity)} {
			if text == "" {
				t.Errorf("%q lacks a text", r.ID)
			}
		}
		if strings.Trim(r.ID, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			t.Errorf("%q is no id", r.ID)
		}
		if strings.HasSuffix(r.Title, ".") || !strings.HasSuffix(r.Why, ".") || !strings.HasSuffix(r.Remedy, ".") {
			t.Errorf("%q: titles have no full stop, sentences have", r.ID)
		}
	}
}

func TestWorkloads(t *testing.T) {
	in := sample()
	in.Processes = append(in.Processes,
		report.Process{Exe: "/opt/infer/bin/worker", Unit: "infer.service", GPUs: []string{"0000:42:00.0"}, MemoryBytes: 1 * gib},
		report.Process{Exe: "nvtop", Framework: "monitor", GPUs: []string{"0000:41:00.0"}},
		report.Process{Exe: "python3", Container: "c1", Unit: "docker.service", Framework: "vllm", GPUs: []string{"0000:41:00.0"}, MemoryBytes: 2 * gib},
	)
	in.Containers = []report.Workload{
		{ID: "c1", Name: "chat", Image: "vllm:1", State: "running", GPUs: []string{"all"}},
		{ID: "c2", Name: "batch", Image: "batch:1", State: "exited", GPUs: []string{"device=0"}},
		{ID: "c3", Name: "web", State: "running"}, // has nothing to do with GPUs
	}
	want := []Workload{
		{Kind: "service", Name: "infer.service", State: "active", Programs: []string{"/opt/infer/bin/serve", "/opt/infer/bin/worker"}, Frameworks: []string{"pytorch"}, GPUs: []string{"0000:41:00.0", "0000:42:00.0"}, Asks: []string{}, MemoryBytes: 14 * gib, PeakBytes: bytesOf(in.Usage.GPUs[0].Memory.Max)},
		{Kind: "container", Name: "chat", Image: "vllm:1", State: "running", Programs: []string{"python3"}, Frameworks: []string{"vllm"}, GPUs: []string{"0000:41:00.0"}, Asks: []string{"all"}, MemoryBytes: 2 * gib},
		{Kind: "container", Name: "batch", Image: "batch:1", State: "exited", Programs: []string{}, Frameworks: []string{}, GPUs: []string{}, Asks: []string{"device=0"}},
	}
	if diff := cmp.Diff(want, Assess(in, Policy{}).Workloads); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}
