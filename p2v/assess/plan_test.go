package assess

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/p2v/report"
)

var update = flag.Bool("update", false, "write the golden files and the guide's table anew")

// good is a wish with all that a plan for the sample needs.
func good() Wish {
	return Wish{GuestDriver: "580.65.06", LicenceToken: true, MemoryBytes: 64 * gib, Threads: 16, CopyRate: 500e6, DowntimeSeconds: 3600}
}

func TestPlanIsReady(t *testing.T) {
	p := NewPlan(sample(), good(), hostOf(), Policy{}, BuiltInDrivers())
	if p.Verdict.State != Ready || p.Verdict.Text != "Ready." || p.Fittings[0].Choice.Profile != "H100XM-2-20C" {
		t.Errorf("%+v\n%+v", p.Verdict, p.Fittings[0].Choice)
	}
}

// Each concern of a plan has a test that makes it.
func TestPlanConcerns(t *testing.T) {
	type planCase struct {
		source   func(*report.Report)
		wish     func(*Wish)
		host     func(*HostState)
		severity Severity
		evidence string
	}
	all := map[string][]planCase{
		noPartition:          {{host: func(h *HostState) { h.GPUs = nil }, severity: Blocker, evidence: `gpu "0000:41:00.0": 0 candidates were rejected`}},
		"wish-unknown":       {{wish: func(w *Wish) { w.Partitions = []WishPartition{{Source: "0000:99:00.0"}} }, severity: Blocker, evidence: "0000:99:00.0"}, {wish: func(w *Wish) { w.Disks = []string{"sdq", "nvme0n1"} }, severity: Blocker, evidence: "sdq"}},
		"disk-left-out":      {{source: func(r *report.Report) { r.Disks = append(r.Disks, report.Disk{Name: "sdb"}) }, wish: func(w *Wish) { w.Disks = []string{"sdb"} }, severity: Warning, evidence: "nvme0n1"}},
		"no-key":             {{source: func(r *report.Report) { r.Disks[0].Partitions[0].Content = luks }, severity: Blocker, evidence: "nvme0n1p1"}},
		"gpu-left-out":       {{source: func(r *report.Report) { r.Processes, r.Usage = nil, nil }, severity: Info, evidence: "not known well"}},
		"other-architecture": {{source: func(r *report.Report) { r.GPUs[0].Capability = "8.0" }, severity: Warning, evidence: `"8.0", and 9.0`}},
		"drivers-do-not-match": {
			{wish: func(w *Wish) { w.GuestDriver = "550.90.07" }, severity: Blocker, evidence: "allowed are branches 580 570 535"},
			{wish: func(w *Wish) { w.Prefer = "card" }, source: func(r *report.Report) { r.Driver.Version = "470.1" }, severity: Blocker, evidence: "need branch 520"},
		},
		"drivers-unknown": {
			{wish: func(w *Wish) { w.GuestDriver = "" }, severity: Blocker, evidence: "no driver for the guest is named"},
			{host: func(h *HostState) { h.GPUs[0].GPU.Driver.Version = "999.1" }, severity: Blocker, evidence: "branch 999"},
		},
		"cuda-too-old": {
			{source: func(r *report.Report) {
				r.Containers = []report.Workload{{ID: "1", Image: "new", RequireCUDA: "cuda>=13.1"}}
			}, severity: Blocker, evidence: "serves 13.0"},
			{source: func(r *report.Report) {
				r.Containers = []report.Workload{{ID: "1", Image: "new", RequireCUDA: "cuda>=12.5"}}
			}, wish: func(w *Wish) { w.Prefer = "card" }, severity: Blocker, evidence: "serves 12.4"},
		},
		"no-licence-token": {{wish: func(w *Wish) { w.LicenceToken = false }, severity: Warning, evidence: "H100XM-2-20C is of series C"}},
		"no-converter": {
			{host: func(h *HostState) {
				h.Tools.Converter = Found(gpu.Errorf(gpu.CodeUnavailable, "virt-v2v-in-place is missing").WithHint("install virt-v2v"))
			}, severity: Blocker, evidence: "virt-v2v-in-place is missing; install virt-v2v"},
			{host: func(h *HostState) { h.Tools.Converter = Presence{} }, severity: Warning, evidence: "not known"},
		},
		"no-firmware": {
			{host: func(h *HostState) { h.Tools.UEFI = Found(errors.New("no plain one")) }, severity: Blocker, evidence: "no plain one"},
			{host: func(h *HostState) { h.Tools.SecureBoot = Found(errors.New("no signed one")) }, source: func(r *report.Report) { r.Firmware.SecureBoot = &truth }, severity: Blocker, evidence: "no signed one"},
			{host: func(h *HostState) { h.Tools.TPM = Found(errors.New("no swtpm")) }, source: func(r *report.Report) { r.Volumes = []report.Volume{{Name: "dm-0", TPM: true}} }, severity: Blocker, evidence: "no swtpm"},
			{host: func(h *HostState) { h.Tools.UEFI = Presence{} }, severity: Warning, evidence: "not known"},
		},
		"guest-files": {{host: func(h *HostState) { h.Brought.Packages = Found(errors.New("not allowed")) }, severity: Blocker, evidence: "not allowed"}},
		"no-licence-file": {
			{host: func(h *HostState) { h.Brought.Licence = Found(errors.New("no such file")) }, severity: Blocker, evidence: "no such file"},
			{host: func(h *HostState) { h.Brought.Licence = Presence{} }, severity: Warning, evidence: "not known"},
		},
		"no-guest-driver": {
			{host: func(h *HostState) { h.Brought.Driver = nil }, severity: Warning, evidence: `no packages of it for "debian-12"`},
			{host: func(h *HostState) {
				h.Brought.Driver = []string{"nvidia-linux-grid-535_535.129.03_amd64.deb", "x5801.deb"}
			}, severity: Warning, evidence: "no package is of branch 580"},
			{host: func(h *HostState) { h.Brought.Packages = Presence{} }, severity: Warning, evidence: "not known"},
		},
		"no-agent": {
			{source: func(r *report.Report) { r.OS.GuestAgent = &untruth }, severity: Warning, evidence: `no packages of it for "debian-12"`},
			{source: func(r *report.Report) { r.OS.GuestAgent = &untruth }, wish: func(w *Wish) { w.Unconverted = true }, severity: Warning, evidence: "nobody installs it"},
			{source: func(r *report.Report) { r.OS.GuestAgent = &untruth }, host: func(h *HostState) { h.Brought.Packages = Presence{} }, severity: Warning, evidence: "not known"},
			{source: func(r *report.Report) { r.OS.GuestAgent, r.OS.ID = &untruth, "rocky" }, host: func(h *HostState) { h.Brought.Agent = []string{"a.rpm"} }, severity: Warning, evidence: "see agent-blocked"},
			{source: func(r *report.Report) { r.OS.GuestAgent = nil }, severity: Warning, evidence: "inspect anew"},
		},
		"disk-room": {
			{host: func(h *HostState) { h.DiskBytes = 600 * gib }, severity: Blocker, evidence: "600.0 GiB are free, needed are 1290.0 GiB"},
			{host: func(h *HostState) { h.DiskBytes, h.DiskKept = 1290*gib+gib/2, gib }, severity: Blocker, evidence: "1290.5 GiB are free, needed are 1290.0 GiB, and 1.0 GiB that are kept free"},
			{host: func(h *HostState) { h.DiskBytes = 0 }, severity: Warning, evidence: "not known"},
		},
		"memory-room": {
			{host: func(h *HostState) { h.MemoryBytes = 60 * gib }, severity: Blocker, evidence: "needed are 64.0 GiB: all of the VM's memory is pinned"},
			{host: func(h *HostState) { h.MemoryBytes = 0 }, severity: Warning, evidence: "not known"},
		},
		"hugepages-room":  {{source: func(r *report.Report) { r.Memory.HugepagesBytes = 63 * gib }, severity: Blocker, evidence: "63.0 GiB are reserved, the VM has 64.0 GiB"}},
		"processor-flags": {{source: func(r *report.Report) { r.CPU.Flags = []string{"avx512f", "aes"} }, host: func(h *HostState) { h.CPUFlags = []string{"aes"} }, severity: Warning, evidence: "avx512f"}},
		"downtime": {
			{wish: func(w *Wish) { w.DowntimeSeconds = 300 }, severity: Blocker, evidence: "at least are expected, allowed are 5 min"},
			{wish: func(w *Wish) { w.DowntimeSeconds = 600 }, severity: Warning, evidence: "are expected, allowed are 10 min"},
		},
	}
	for _, r := range planRules() {
		if len(all[r.ID]) == 0 {
			t.Errorf("rule %q has no test", r.ID)
		}
		for _, test := range all[r.ID] {
			t.Run(r.ID, func(t *testing.T) {
				in, wish, host := sample(), good(), hostOf()
				if test.source != nil {
					test.source(&in)
				}
				if test.wish != nil {
					test.wish(&wish)
				}
				if test.host != nil {
					test.host(&host)
				}
				p := NewPlan(in, wish, host, Policy{}, BuiltInDrivers())
				c := &checker{look: newLook(in, Policy{}), plan: &p, host: sortedHost(host), wish: wish, drivers: BuiltInDrivers()}
				got := find(c.concerns(), r.ID)
				if got == nil || got.Severity != test.severity || !strings.Contains(strings.Join(got.Evidence, "\n"), test.evidence) {
					t.Errorf("got %+v, want %s with %q", got, test.severity, test.evidence)
				}
				if test.severity == Blocker && (p.Verdict.State != Blocked || find(p.Verdict.Blockers, r.ID) == nil) {
					t.Errorf("verdict %+v", p.Verdict)
				}
			})
		}
	}
}

// A host of the other vendor has its own way to run VMs.
func TestProcessorFlagsOfVendors(t *testing.T) {
	in, host := sample(), hostOf()
	for _, flags := range [][2]string{{"svm", "vmx"}, {"vmx", "svm"}} {
		in.CPU.Flags, host.CPUFlags = []string{"aes", flags[0]}, []string{"aes", flags[1]}
		if got := find(NewPlan(in, good(), host, Policy{}, BuiltInDrivers()).Verdict.Warnings, "processor-flags"); got != nil {
			t.Errorf("%q: %+v", flags, got)
		}
	}
}

func TestWaivers(t *testing.T) {
	in := sample()
	in.OS.ID = "nixos"
	w := good()
	w.Waivers = []Waiver{{ID: "os-not-convertible", By: "ops"}}
	if p := NewPlan(in, w, hostOf(), Policy{}, BuiltInDrivers()); p.Verdict.State != Blocked || p.Verdict.Text != "Blocked: virt-v2v does not know this operating system." {
		t.Errorf("a waiver without a reason: %+v", p.Verdict)
	}
	w.Waivers[0].Reason = "drivers are in the initramfs"
	if p := NewPlan(in, w, hostOf(), Policy{}, BuiltInDrivers()); p.Verdict.State != ReadyWithWarnings || len(p.Verdict.Waived) != 1 || p.Verdict.Waived[0].Waiver != w.Waivers[0] {
		t.Errorf("%+v", p.Verdict)
	}
}

// A warning is there to be read: nobody can waive it away.
func TestWarningsStay(t *testing.T) {
	in := sample()
	in.System.Virtual = "vmware"
	w := good()
	w.Waivers = []Waiver{{ID: "source-is-vm", Reason: "we know", By: "ops"}}
	if v := NewPlan(in, w, hostOf(), Policy{}, BuiltInDrivers()).Verdict; len(v.Warnings) != 1 || len(v.Waived) != 0 || v.Text != "Ready, with 1 warning to read." {
		t.Errorf("%+v", v)
	}
}

func changeIDs(p Plan) string {
	var out []string
	for _, c := range p.Changes {
		out = append(out, c.ID)
	}
	return strings.Join(out, " ")
}

func TestGuestChanges(t *testing.T) {
	full := func(r *report.Report) {
		for _, s := range []string{"persistence", "mig-manager", "fabric-manager", "dcgm"} {
			service(s)(r)
		}
		for _, k := range []string{"modprobe", "modules-load", "xorg", "power", "cdi", "gridd"} {
			config(k)(r)
		}
		r.Pins = []report.Pin{{Where: "/etc/systemd/system/infer.service:7", Key: "CUDA_VISIBLE_DEVICES", Value: "GPU-1", Kind: "gpu-uuid"}}
		r.NICs = []report.NIC{{Name: "enp65s0", MAC: "aa", Kind: "physical"}, {Name: "bond0", Kind: "bond"}}
		r.Boot.CryptRows = []report.CryptRow{{Name: "data", Source: "/dev/nvme0n1p3", KernelName: true}}
		r.Models = []report.Models{{Path: "/m", Engines: 2}}
		r.Memory.HugepagesBytes = gib
		truth := true
		r.Firmware.SecureBoot, r.Firmware.EFI = &truth, &report.EFI{Mount: "/boot/efi", Loader: "/EFI/debian/shimx64.efi"}
		r.OS.SELinux = "enforcing"
		r.Volumes = []report.Volume{{Name: "dm-0", Kind: "crypt", TPM: true}}
	}
	for name, test := range map[string]struct {
		source func(*report.Report)
		wish   func(*Wish)
		want   string
	}{
		"the least, for a vGPU": {nil, nil, "virtio-drivers serial-console nouveau driver-remove driver-vgpu driver-headers licence hardware-services identity"},
		"the least, for a card": {func(r *report.Report) {
			r.Pins = []report.Pin{{Where: "/x:1", Key: "NVIDIA_VISIBLE_DEVICES", Value: "all", Kind: "all"}} // stays right
		}, func(w *Wish) { w.Prefer = "card" }, "virtio-drivers serial-console driver-keep hardware-services identity"},
		"the least, for none": {nil, func(w *Wish) { w.Partitions = []WishPartition{{Source: "0000:41:00.0", None: true}} }, "virtio-drivers serial-console hardware-services identity"},
		"a guest's driver stays": {
			func(r *report.Report) { r.Driver.Guest = true }, func(w *Wish) { w.GuestDriver = "" },
			"virtio-drivers serial-console nouveau driver-headers licence hardware-services identity",
		},
		"no driver, for a card": {
			func(r *report.Report) { r.Driver = nil }, func(w *Wish) { w.Prefer = "card" },
			"virtio-drivers serial-console nouveau driver-install hardware-services identity",
		},
		"all, for a vGPU": {full, nil, "virtio-drivers serial-console boot-fallback device-names selinux-relabel tpm-binding nic-names built-networks " +
			"nouveau driver-modules driver-remove driver-vgpu driver-headers licence persistence-daemon mig-scripts gpu-settings fabric-manager data-centre-agents xorg-busid " +
			"cdi-files engines hugepages module-key pins-by-hand hardware-services identity"},
		"all, for a card": {full, func(w *Wish) { w.Prefer = "card" }, "virtio-drivers serial-console boot-fallback device-names selinux-relabel tpm-binding nic-names built-networks " +
			"driver-keep gpu-settings fabric-manager xorg-busid cdi-files engines hugepages module-key pins-by-hand hardware-services identity"},
	} {
		t.Run(name, func(t *testing.T) {
			in, w := sample(), good()
			if test.source != nil {
				test.source(&in)
			}
			if test.wish != nil {
				test.wish(&w)
			}
			p := NewPlan(in, w, hostOf(), Policy{}, BuiltInDrivers())
			if diff := cmp.Diff(test.want, changeIDs(p)); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

func TestEstimates(t *testing.T) {
	e := newLook(sample(), Policy{}).estimates(Wish{CopyRate: 500e6})
	used := uint64(300*gib + 20*mib)
	if e.MirrorBytes != 960*gib || e.FlattenBytes != used || e.OverlayBytes != bytesOf(float64(used)*0.1) || e.DiskBytes != 960*gib+used+e.OverlayBytes {
		t.Errorf("room %+v", e)
	}
	if want := float64(used) / 500e6; e.CopySeconds.From != want || e.CopySeconds.To != 960*gib/500e6 {
		t.Errorf("copy %+v, want %v", e.CopySeconds, want)
	}
	if want := float64(used)*0.01/500e6 + 360; e.DowntimeSeconds.From != want {
		t.Errorf("downtime %+v, want %v", e.DowntimeSeconds, want)
	}

	assumed := newLook(sample(), Policy{}).estimates(Wish{})
	if assumed.CopySeconds.From >= assumed.CopySeconds.To || !strings.Contains(assumed.CopySeconds.Basis, "assumed rates") {
		t.Errorf("assumed %+v", assumed.CopySeconds)
	}
	slow := newLook(sample(), Policy{}).estimates(Wish{CopyRate: 500e6, ChangeRate: 600e6})
	if !strings.Contains(slow.DowntimeSeconds.Basis, "do not get shorter") || slow.DowntimeSeconds.To < slow.CopySeconds.To {
		t.Errorf("it changes faster than it is copied: %+v", slow.DowntimeSeconds)
	}

	sealed := sample()
	sealed.Volumes = []report.Volume{{Name: "dm-0", Kind: "crypt"}}
	if e := newLook(sealed, Policy{}).estimates(Wish{}); e.FlattenBytes != 960*gib {
		t.Errorf("encrypted volumes are counted whole: %+v", e)
	}
	usb := sample()
	usb.Disks = append(usb.Disks, report.Disk{Name: "sdz", SizeBytes: 4000 * gib, Transport: "usb"})
	if e := newLook(usb, Policy{}).estimates(Wish{}); !strings.HasPrefix(e.DiskBasis, `1 disk ("nvme0n1"):`) {
		t.Errorf("a disk on USB is moved: %+v", e)
	}
}

// Where nothing is converted, that takes neither time nor room; what is in use counts all the same.
func TestEstimatesUnconverted(t *testing.T) {
	with, without := newLook(sample(), Policy{}).estimates(Wish{}), newLook(sample(), Policy{}).estimates(Wish{Unconverted: true})
	if d := with.DowntimeSeconds.From - without.DowntimeSeconds.From; d < 179.9 || d > 180.1 {
		t.Errorf("conversion takes %v s of %+v", d, with.DowntimeSeconds)
	}
	small := sample()
	small.Disks[0].SizeBytes = gib
	for i := range small.Filesystems {
		small.Filesystems[i].UsedBytes = gib / 100
	}
	l := newLook(small, Policy{})
	if a, b := l.estimates(Wish{}).OverlayBytes, l.estimates(Wish{Unconverted: true}).OverlayBytes; a != 4*gib || b == 0 || b > gib {
		t.Errorf("overlays of %d, and %d", a, b)
	}
	if text := l.estimates(Wish{Unconverted: true}).DowntimeSeconds.Basis; strings.Contains(text, "conversion") {
		t.Error(text)
	}
}

// Encrypted volumes that are moved need a key each, however they are seen.
func TestPlanAsksForKeys(t *testing.T) {
	on := func(change func(*report.Report)) report.Report {
		r := sample()
		r.Disks = append(r.Disks, report.Disk{Name: "sda", SizeBytes: gib, Transport: "sata"})
		change(&r)
		return r
	}
	inMD := func(r *report.Report) {
		r.Volumes = []report.Volume{{Name: "md0", Kind: "md", On: []string{"sda"}}, {Name: "dm-0", Kind: "crypt", On: []string{"md0"}}}
	}
	const uuid = "0b6f9d3a-6f0c-4a55-8d6e-3f1c9a5e7b21"
	for name, c := range map[string]struct {
		r    report.Report
		wish Wish
		want []string
	}{
		"none":              {on(func(*report.Report) {}), Wish{}, nil},
		"a disk":            {on(func(r *report.Report) { r.Disks[1].Content = luks }), Wish{}, []string{"sda"}},
		"a disk with a key": {on(func(r *report.Report) { r.Disks[1].Content = luks }), Wish{Keys: []string{"sda"}}, nil},
		"another's key":     {on(func(r *report.Report) { r.Disks[1].Content, r.Disks[0].Partitions[0].Content = luks, luks }), Wish{Keys: []string{"sda"}}, []string{"nvme0n1p1"}},
		"not moved":         {on(func(r *report.Report) { r.Disks[1].Content = luks }), Wish{Disks: []string{"nvme0n1"}}, nil},
		"on an array":       {on(inMD), Wish{}, []string{"md0"}},
		"by its UUID":       {on(inMD), Wish{Keys: []string{uuid}}, nil},
		"open and seen": {on(func(r *report.Report) {
			r.Disks[1].Content = luks
			r.Volumes = []report.Volume{{Name: "dm-0", Kind: "crypt", On: []string{"sda"}}}
		}), Wish{}, []string{"sda"}},
		"not converted": {on(inMD), Wish{Unconverted: true}, nil},
	} {
		var got []string
		for _, b := range NewPlan(c.r, c.wish, hostOf(), Policy{}, BuiltInDrivers()).Verdict.Blockers {
			if b.ID == "no-key" {
				for _, n := range []string{"nvme0n1p1", "sda", "md0"} {
					if strings.Contains(strings.Join(b.Evidence, " "), quote(n)) {
						got = append(got, n)
					}
				}
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// Whole plans, as a person reads them: a service that fits a part of a card, a server for
// language models that nobody watched, and one that cannot be moved as it is.
func TestPlansRead(t *testing.T) {
	chat := sample()
	chat.Usage.GPUs[0].Activity = false
	chat.Processes = []report.Process{{
		PID: 4711, Exe: "python3", GPUs: []string{"0000:41:00.0"}, Type: "compute", MemoryBytes: 72 * gib, Container: "c1", Unit: "docker.service",
		Framework: "vllm", Preallocates: true, Share: 0.9,
	}}
	chat.Containers = []report.Workload{{ID: "c1", Name: "chat", Image: "vllm/vllm-openai:v0.8", Runtime: "docker", State: "running", GPUs: []string{"device=0"}, RequireCUDA: "cuda>=12.4"}}
	chat.Models = []report.Models{{Path: "/srv/models", Kind: "safetensors", SizeBytes: 140 * gib, Files: 30, Complete: true}}
	chat.NICs = []report.NIC{{Name: "enp65s0f0", MAC: "b4:96:91:00:00:01", Kind: "physical", Driver: "ice", MTU: 9000, Up: true, Addresses: []string{"10.1.2.3/24"}, Config: "netplan"}}
	chat.Pins = []report.Pin{{Where: "/srv/chat/compose.yaml:14", Key: "device_ids", Value: "0", Kind: "index"}}

	hard := sample()
	hard.Firmware.TPM, hard.Volumes = "2.0", []report.Volume{{Name: "dm-0", Label: "root_crypt", Kind: "crypt", On: []string{"nvme0n1p2"}, TPM: true}}
	hard.Filesystems[1].Source = "dm-0"
	hard.Features = report.Features{NVLink: []string{"nvidia-smi topo: NV12 between 0000:41:00.0 and 0000:42:00.0"}, UnifiedMemory: []string{"serve maps /dev/nvidia-uvm"}}
	hard.Boot.Fstab = append(hard.Boot.Fstab, report.FstabRow{Spec: "/dev/nvme0n1p3", Mount: "none", Type: "swap"})
	hard.Unseen = []report.Unseen{{What: "containers", Reason: "docker: permission denied"}}
	hard.Usage = nil

	for name, test := range map[string]struct {
		in   report.Report
		wish Wish
	}{"part": {sample(), good()}, "chat": {chat, Wish{DowntimeSeconds: 900}}, "hard": {hard, Wish{}}} {
		t.Run(name, func(t *testing.T) {
			got, err := json.MarshalIndent(NewPlan(test.in, test.wish, hostOf(), Policy{}, BuiltInDrivers()), "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join("testdata", name+".golden.json"), string(got)+"\n")
		})
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil { //nolint:forbidigo,gosec // a golden file of the tree
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("-want +got (if it is right: go test ./p2v/assess -update)\n%s", diff)
	}
}

// The guide's table of concerns is the catalogue.
func TestGuideListsConcerns(t *testing.T) {
	const begin, end = "<!-- concerns: written by go test ./p2v/assess -update -->\n", "<!-- end of concerns -->\n"
	path := filepath.Join("..", "..", "docs", "guides", "p2v-assess.md")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(data), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatal("the guide has no place for the table")
	}
	var table strings.Builder
	table.WriteString("\n| id | at most | what is | what comes of it | what helps |\n|---|---|---|---|---|\n")
	for _, r := range Catalogue() {
		table.WriteString("| `" + strings.Join([]string{r.ID + "`", string(r.Severity), r.Title, r.Why, r.Remedy}, " | ") + " |\n")
	}
	golden(t, path, head+begin+table.String()+"\n"+end+tail)
	if !slices.ContainsFunc(Catalogue(), func(r Rule) bool { return r.ID == noPartition }) {
		t.Error("the catalogue has no concerns of plans")
	}
}

// What virt-v2v would refuse is in the way of those alone whom it is to convert.
func TestConversionIsInTheWayOfConversionOnly(t *testing.T) {
	r := sample()
	r.OS.ID, r.Boot.Initramfs = "slackware", "mkinitcpio"
	for i := range r.Filesystems {
		r.Filesystems[i].UsedBytes = r.Filesystems[i].SizeBytes
	}
	w, h, gone := good(), hostOf(), Found(errors.New("gone"))
	h.Tools.Converter, h.Brought = gone, Brought{Packages: gone, Licence: gone}
	for unconverted, want := range map[bool]bool{false: true, true: false} {
		w.Unconverted = unconverted
		v := NewPlan(r, w, h, Policy{}, BuiltInDrivers()).Verdict
		for _, id := range ofConversion {
			if got := find(slices.Concat(v.Blockers, v.Warnings), id) != nil; got != want {
				t.Errorf("unconverted %t: %s is in the way: %t", unconverted, id, got)
			}
		}
	}
}

// Memory is pinned for a GPU: of a VM that has none nothing of that is said.
func TestMemoryIsPinnedForGPUs(t *testing.T) {
	w, h := good(), hostOf()
	w.Partitions, h.MemoryBytes = []WishPartition{{Source: "0000:41:00.0", None: true}}, 60*gib
	p := NewPlan(sample(), w, h, Policy{}, BuiltInDrivers())
	i := slices.IndexFunc(p.Verdict.Blockers, func(c Concern) bool { return c.ID == "memory-room" })
	if i < 0 || strings.Contains(fmt.Sprint(p.Verdict.Blockers[i]), "pinned") {
		t.Errorf("%+v", p.Verdict.Blockers)
	}
}

// What is there is no concern: packages for the VM, of the branch that is named; firmware and a TPM
// where the server has none of them.
func TestWhatIsThereIsNoConcern(t *testing.T) {
	in, h := sample(), hostOf()
	in.OS.GuestAgent, h.Brought.Agent = &untruth, []string{"qemu-guest-agent.deb"}
	in.Firmware.Type = "bios"
	h.Tools = HostTools{Converter: Found(nil)}
	for _, id := range []string{"no-converter", "no-firmware", "guest-files", "no-licence-file", "no-guest-driver", "no-agent"} {
		v := NewPlan(in, good(), h, Policy{}, BuiltInDrivers()).Verdict
		if c := slices.Concat(v.Blockers, v.Warnings); find(c, id) != nil {
			t.Errorf("%+v", find(c, id))
		}
	}
}
