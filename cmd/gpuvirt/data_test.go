package main

import (
	"strconv"

	"gpuvirt/api"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/verify"
)

const (
	webUUID  = "6f3a2c1e-0000-4000-8000-000000000001"
	secret   = "gpuvirt_01KAR2Z7T4Y2M8Q6V0R9X3B0AA_" + "0123456789012345678901234567890123456789012"
	hostKey  = "SHA256:jjB1Zc0nMUMnVdNSdEWzjQKkhB3Zc3i0bPBnEbyzpX8"
	partUUID = "c0ffee00-0000-4000-8000-00000000000a"
)

var (
	zero = 0

	tokens = []api.Token{
		{ID: "01KAR2Z7T4Y2M8Q6V0R9X3B0AA", Name: "ci", Role: "operator", CreatedBy: "root", Created: at(0), Expires: at(0).AddDate(50, 0, 0), LastUsed: moment(60)},
		{ID: "01KAR2Z7T4Y2M8Q6V0R9X3B0AB", Name: "old", Role: "viewer", CreatedBy: "cert:CN=alice", Created: at(1).AddDate(-2, 0, 0), Expires: at(1).AddDate(-1, 0, 0)},
	}

	assessments = []api.Assessment{
		{Name: "carried", State: "done", Created: at(0), CreatedBy: "root", Heard: moment(-3600), Hostname: "db1"},
		{
			Name: "gpu7", State: "watching", WindowSeconds: 86400, IntervalSeconds: 5, WatchedSeconds: 3605.2, Samples: 721, Operation: "assess",
			Source:  &api.Source{Address: "gpu7.example", Port: 22, User: "root", HostKey: hostKey, Credential: "gpu7"},
			Created: at(0), CreatedBy: "uid:1000", Heard: moment(60), Hostname: "gpu7",
		},
	}

	migrations = []api.Migration{
		{
			Name: "gpu7", Assessment: "gpu7", Hostname: "gpu7", Phase: "ready", Operation: "01KAR2Z7T4Y2M8Q6V0R9X3B0AD", CreatedBy: "root", Created: at(0), Heard: moment(60),
			Source: &api.Source{Address: "gpu7.example", Port: 22, User: "root", HostKey: hostKey, Credential: "gpu7"},
			Copy:   move.Copy{Bandwidth: 200e6, Interval: 600, Connections: 4},
			Disks: []move.Disk{{Name: "nvme0n1", ID: "wwn:eui.0025388b91b0a1c2", Size: 960197124096, Total: 3, Passes: []move.Pass{
				{Started: at(0), Seconds: 4810.2, Bytes: 960197124096, Written: 412316860416, Sent: 412316860416},
				{Started: at(6000), Seconds: 6.115, Bytes: 2147483648, Tracked: true, Written: 2147483648, Sent: 2181038080, Complete: true},
				{Started: at(6600), Seconds: 6.251, Bytes: 2147483648, Tracked: true, Written: 2147483648, Sent: 2181038080, Complete: true},
			}}},
			Forecast: &move.Forecast{
				FinalSeconds: 6.2, SettledSeconds: -1, BudgetSeconds: 600, Fits: true, RestSeconds: 318.6, DowntimeSeconds: 378.6,
				Conversion: move.Part{Seconds: 312.4, Basis: move.Measured, At: at(8000), Text: "by a rehearsal"},
				PowerOff:   move.Part{Basis: move.Unknown, Text: "the server was not powered off yet"},
				Boot:       move.Part{Seconds: 60, Basis: move.Measured, At: at(8000), Text: "by a rehearsal"},
			},
			VM:          &move.VM{UUID: "5f0c8a5e-3f0e-4b64-9a0b-8c2a4a1d9c10", Name: "gpu7", Slices: []move.Slice{{Assignment: "gpu7", Profile: "H100-2-20C", GPU: "0000:17:00.0"}}},
			Reservation: &api.Reservation{State: "ending", LeaseSeconds: 2592000}, ReservedUntil: moment(600000),
			Keys: []api.Key{{Volume: "nvme0n1p3", Wanted: true}, {Volume: "nvme0n1p4", Credential: "gpu7-luks"}},
			Attempts: []move.Attempt{
				{Kind: move.Rehearsal, Actor: "root", Asked: at(7000), State: move.Failed, Phase: "converting", Rest: 4.2, Problem: "cannot convert: the guest has no initramfs tool"},
				{
					Kind: move.Rehearsal, Actor: "root", Asked: at(8000), State: move.Passed, Phase: "looking at the VM", Rest: 4.3,
					Left: []move.Left{
						{ID: "driver-install", What: "Install the vGPU guest driver.", By: "person", Why: "no packages were given"},
						{ID: "identity", What: "Keep machine-id.", By: "nobody", Why: "the VM takes the server's place"},
					},
					Before: &verify.Baseline{Results: []verify.Result{
						{ID: "system", Title: "The system is up", State: verify.StateWarning, Text: "it is degraded: these units have failed: postfix.service, snapd.service"},
						{ID: "service:vllm.service", Title: "Service vllm.service", State: verify.StateOK, Text: "active"},
						{ID: "check:health", Title: "Check health", State: verify.StateOK, Text: "exit status 0"},
					}},
					Report: &verify.Report{Verdict: verify.StateOK, Results: []verify.Result{
						{ID: "agent", Title: "The guest agent answers", State: verify.StateOK, Text: "version 8.2"},
						{ID: "system", Title: "The system is up", State: verify.StateWarning, Text: "degraded, as it was", Before: "warning: it is degraded"},
						{ID: "check:health", Title: "Check health", State: verify.StateWarning, Text: "x\x1b[31m"},
					}},
				},
			},
		},
		{
			Attempts: []move.Attempt{{Kind: move.Cutover, Asked: at(9000), State: move.Passed, Phase: "looking at the VM", Rest: 312.4, Downtime: 459.2}},
			Name:     "old", Assessment: "old", Hostname: "db1", Phase: "waiting", Reason: "the source has not been heard of since 2026-11-22T10:00:00Z", Created: at(0), CreatedBy: "root", Copy: move.Copy{Interval: 600, Connections: 4},
			Source: &api.Source{Address: "db1.example", Port: 22, User: "root", HostKey: hostKey, Credential: "db1"},
		},
		{
			Name: "rest", Assessment: "carried", Hostname: "db1", Phase: "rehearsing", Created: at(0), CreatedBy: "root", Copy: move.Copy{Interval: 600, Connections: 4},
			DisksFrom:    []move.DiskFrom{{Disk: "sda", Image: "/srv/images/db1.raw"}, {Disk: "sdb", NBD: "nbds://db1.example/"}},
			Certificates: "db1",
			Attempts: []move.Attempt{{
				Kind: move.Rehearsal, Actor: "root", Asked: at(7000), State: move.Running, Phase: "converting", Rest: 4.2,
				CopyWaits: `cannot store "/mirrors/rest/sda.map.ahead.raw": up to 64 MiB are still to come; the file system has 400 MiB free, of which 1024 MiB are kept free: 688 MiB are missing`,
			}},
		},
		{
			Name: "stop", Assessment: "carried", Hostname: "db1", Phase: "syncing", Operation: "copying", Created: at(0), CreatedBy: "root", Copy: move.Copy{Interval: 600, Connections: 4},
			Disks:    []move.Disk{{Name: "sda", ID: "serial:1", Size: 480 << 30, Total: 1, Passes: []move.Pass{{Started: at(0), Seconds: 4810, Complete: true}}}},
			Forecast: &move.Forecast{FinalSeconds: 598.1, SettledSeconds: -1, BudgetSeconds: 600, Fits: true},
			Attempts: []move.Attempt{{Kind: move.Cutover, Asked: at(9000), State: move.Running, Phase: "converting", AtRest: at(9060)}},
		},
		copied("new1", 216466351718, 110100480, 2715.2),
	}

	gpus = []api.GPU{
		{
			ID: "0000:3b:00.0", Vendor: "NVIDIA", Model: "Tesla T4", PCIAddress: "0000:3b:00.0",
			UUID: "GPU-11111111-2222-3333-4444-555555555555", Serial: "1320220000001", NUMANode: &zero, IOMMUGroup: "17",
			Driver: api.Driver{Name: "nvidia", Version: "550.90.05"}, MemoryBytes: 16 << 30, Managed: true,
			Kinds: []string{"mdev"}, SRIOV: api.SRIOV{TotalVFs: 16, NumVFs: 4},
			Labels:     map[string]string{"rack": "b2", "class": "vdi"},
			Conditions: []api.Condition{{Type: "Ready", Status: true, Reason: "Present", Message: "it answers", Since: moment(0)}},
		},
		{
			ID: "0000:5a:00.0", Vendor: "NVIDIA", Model: "A100-PCIE-40GB", PCIAddress: "0000:5a:00.0", PCIID: "10de:20f1", PCISubsystem: "10de:145f",
			Driver: api.Driver{Name: "nvidia", Version: "580.95.05"}, MemoryBytes: 40 << 30, Managed: true, Kinds: []string{"mig"},
			MIG: api.MIGMode{Capable: true, Current: true}, ECC: &api.ECC{Current: true}, ComputeMode: "default", Labels: map[string]string{}, Conditions: []api.Condition{},
		},
		{
			ID: "0000:d8:00.0", Vendor: "NVIDIA", Model: "Tesla T4\x1b[31m", PCIAddress: "0000:d8:00.0", Driver: api.Driver{Name: "nvidia", Version: "535.1"},
			MemoryBytes: 15<<30 + 1<<29, Kinds: []string{"mdev"}, Labels: map[string]string{},
			Conditions: []api.Condition{
				{Type: "Ready", Reason: "DriverOld", Message: "the driver is too old"},
				{Type: "Degraded", Status: true},
			},
		},
		{ID: "mbochs", Vendor: "mbochs", Model: "mbochs", Kinds: []string{"mdev"}, Labels: map[string]string{}, Quarantined: true, Conditions: []api.Condition{}},
	}

	profiles = []api.Profile{
		{Name: "T4-1Q", Kind: "mdev", GPU: "0000:3b:00.0", On: "0000:3b:00.0", MemoryBytes: 1 << 30, MaxInstances: 16, Available: 14, NativeID: "nvidia-222", DeviceAPI: "vfio-pci", Attributes: map[string]string{"frl": "60", "heads": "4"}},
		{Name: "T4-16Q", Kind: "mdev", GPU: "0000:3b:00.0", MemoryBytes: 16 << 30, MaxInstances: 1, NativeID: "nvidia-234", NotCreatable: "T4-1Q is in use there"},
		{Name: "mbochs-small", Kind: "mdev", GPU: "mbochs", MemoryBytes: 4 << 20, Available: 64, NativeID: "mbochs-small"},
	}

	a100 = []api.Profile{
		sliced("1g.5gb", 1, "0,1,2,3,4,5,6", 3), sliced("2g.10gb", 2, "0,2,4", 1), sliced("3g.20gb", 4, "0,4", 0), sliced("7g.40gb", 8, "0", 0),
	}

	four = 4
	vfs  = api.VFs{GPU: "0000:5a:00.0", TotalVFs: 16, NumVFs: 2, Wanted: &four, Functions: []api.Function{
		{
			Index: 0, PCIAddress: "0000:5a:00.4", IOMMUGroup: "71", Driver: "vfio-pci", Partition: "0000:5a:00.0/vf/0",
			Holders: []api.Holder{{Kind: "vm", ID: "8f7b1b0e-5c1c-4d3a-9a53-0d6f4a4c9d10", Name: "web1"}},
		},
		{Index: 1, PCIAddress: "0000:5a:00.5", IOMMUGroup: "72", Driver: "nvidia"},
	}}

	yes, no      = true, false
	vgpuSettings = api.VGPUSettings{GPU: "0000:3b:00.0", MixedSize: api.MixedSizeState{Supported: true, Wanted: &yes, Actual: &no}, Scheduler: api.SchedulerState{
		Policies: []string{"best-effort", "equal-share", "fixed-share"}, MinTimeSliceNS: 1e6, MaxTimeSliceNS: 30e6,
		Wanted: &api.Scheduler{Policy: "fixed-share", TimeSliceNS: 5e6},
		Actual: &api.Scheduler{Policy: "equal-share", TimeSliceNS: 2e6, Adaptive: true},
	}}

	mig = api.MIG{
		GPU: "0000:5a:00.0", Mode: api.MIGMode{Capable: true, Current: true},
		Wanted: &api.Layout{Enabled: true, Instances: []api.LayoutInstance{place("3g.20gb", 4), place("1g.5gb", 0), place("2g.10gb", 2)}},
		Actual: api.Layout{Enabled: true, Instances: []api.LayoutInstance{place("1g.5gb", 0, "1g.5gb"), place("3g.20gb", 4, "1c.3g.20gb", "2c.3g.20gb")}},
	}

	instances = []api.Partition{
		{
			ID: "0000:5a:00.0/mig/0", GPU: "0000:5a:00.0", Parent: "0000:5a:00.0", Kind: "mig", Profile: "1g.5gb", Slot: "0", Native: "19", Origin: "foreign",
			State: "made", Instance: "7", Compute: []api.Compute{{Profile: "1g.5gb", UUID: "MIG-1"}}, Holders: []api.Holder{},
		},
		{
			ID: "0000:5a:00.0/mig/4", GPU: "0000:5a:00.0", Parent: "0000:5a:00.0", Kind: "mig", Profile: "3g.20gb", Slot: "4", Native: "9", Origin: "managed",
			State: "made", Instance: "2", Compute: []api.Compute{{Profile: "1c.3g.20gb", UUID: "MIG-2"}, {Profile: "2c.3g.20gb", Start: 1, UUID: "MIG-3"}},
			Holders: []api.Holder{{Kind: "process", ID: "4711", Name: "train\x1b[31m"}},
		},
	}

	vms = []api.VM{
		{Name: "web1", UUID: webUUID, State: "running", Autostart: true, Persistent: true, Assignments: []string{"web1-gpu"}, Hostdevs: []api.Hostdev{
			{Alias: "ua-gpuvirt-web1-gpu", Handle: api.Handle{MdevUUID: partUUID}, Model: "vfio-pci", Live: true, Config: true, Display: true, GuestAddress: "0000:07:00.0"},
			{Handle: api.Handle{PCIAddress: "0000:5e:00.1"}, Config: true},
		}},
		{Name: "db1", UUID: "6f3a2c1e-0000-4000-8000-000000000002", State: "shutoff", Persistent: true, Hostdevs: []api.Hostdev{}, Assignments: []string{}},
	}

	created = at(5)

	used, expires   = uint64(768 << 20), at(600)
	half, sampled   = 0.5, at(6)
	nothing, almost = 0.0, 0.996

	observed = &api.Observed{
		GuestDriver: "550.90.07", License: &api.License{State: "unlicensed-restricted", Expires: &expires},
		Usage: &api.Usage{MemoryUsedBytes: &used, SMRatio: &half, MemoryRatio: &almost, EncoderRatio: &nothing, Sampled: &sampled},
	}

	partitions = []api.Partition{
		{
			ID: partUUID, GPU: "0000:3b:00.0", Parent: "0000:3b:00.0", Kind: "mdev", Profile: "T4-1Q", Native: "nvidia-222", DeviceAPI: "vfio-pci", IOMMUGroup: "101",
			Handle: api.Handle{MdevUUID: partUUID}, Origin: "managed", State: "made", Assignment: "web1-gpu", Created: &created,
			Holders:  []api.Holder{{Kind: "vm", ID: webUUID, Name: "web1"}, {Kind: "process", ID: "4711", Name: "qemu-system-x86"}},
			Observed: observed,
			Conditions: []api.Condition{
				{Type: "Degraded", Status: true, Reason: "Unlicensed", Message: "the guest has no licence for its vGPU: its driver throttles it", Since: moment(6)},
			},
		},
		{
			ID: "c0ffee00-0000-4000-8000-00000000000b", GPU: "0000:3b:00.0", Parent: "0000:3b:00.0", Kind: "mdev", Profile: "T4-1Q",
			Native: "nvidia-222", Origin: "foreign", State: "made", Holders: []api.Holder{},
			Observed: &api.Observed{Usage: &api.Usage{MemoryUsedBytes: new(uint64)}, Unknown: "the driver\x1b[31m does not answer"},
		},
	}

	assignments = []api.Assignment{
		{
			Name: "web1-gpu", VM: webUUID, VMName: "web1", Profile: "T4-1Q", Placement: "pack", Hotplug: "auto", Partition: partUUID,
			PartitionGPU: "0000:3b:00.0", State: "attached", Attached: api.Attached{Live: true, Config: true}, Created: at(5),
			Conditions: []api.Condition{{Type: "Ready", Status: true, Reason: "Attached", Since: moment(6)}},
		},
		{
			Name: "db1-gpu", VM: "6f3a2c1e-0000-4000-8000-000000000002", VMName: "db1", Profile: "T4-1Q", GPU: "0000:3b:00.0", Placement: "pack",
			Hotplug: "never", State: "attached", Attached: api.Attached{Config: true}, RestartRequired: true, Created: at(7),
		},
	}

	operations = map[string]api.Operation{
		"attach": {
			ID: "attach", Kind: "assignment.put", Summary: "attach T4-1Q to web1", Actor: "root", Status: "ready", Created: at(1), Updated: at(1),
			Steps: []api.Step{
				{Kind: "partition.make", Summary: "T4-1Q on 0000:3b:00.0", Status: "pending"},
				{Kind: "vm.attach", Summary: "to web1, live and persistent", Status: "pending"},
			},
			Keys: []string{"assignment/web1-gpu", "gpu/0000:3b:00.0", "vm/" + webUUID},
		},
		"detach": {
			ID: "detach", Kind: "assignment.delete", Summary: "detach web1-gpu from web1", Status: "ready", Created: at(2), Updated: at(2),
			Steps: []api.Step{{Kind: "vm.detach", Summary: "from web1", Status: "pending"}},
		},
		"make": {
			ID: "make", Kind: "partition.create", Summary: "make T4-1Q", Status: "ready", Created: at(3), Updated: at(3),
			Steps: []api.Step{{Kind: "partition.make", Summary: "T4-1Q on 0000:3b:00.0", Status: "pending"}},
			Keys:  []string{"gpu/0000:3b:00.0", "partition/" + partUUID},
		},
		"remove": {
			ID: "remove", Kind: "partition.delete", Summary: "remove T4-1Q", Status: "ready", Created: at(4), Updated: at(4),
			Steps: []api.Step{{Kind: "partition.remove", Summary: "T4-1Q on 0000:3b:00.0", Status: "pending"}},
		},
		"lay": {
			ID: "lay", Kind: "gpu.layout", Summary: "lay out gpu 0000:5a:00.0", Status: "ready", Created: at(4), Updated: at(4),
			Steps: []api.Step{{Kind: "partition.make", Summary: "make 2g.10gb on 0000:5a:00.0 at 2", Status: "pending"}},
		},
		"copying": {
			ID: "copying", Kind: "migration.create", Summary: "migrate db1 as rest", Status: "running", Created: at(5), Updated: at(5),
			Steps: []api.Step{{Kind: "migration.reserve", Status: "done"}, {Kind: "migration.sync", Summary: "copy 1 disk of a server that is off, until it is cut over", Status: "doing", Done: 3, Total: 4}},
		},
		"waiting": {
			ID: "waiting", Kind: "assignment.delete", Summary: "detach web1-gpu from web1", Status: "waiting", Reason: "the guest keeps the device",
			Created: at(5), Updated: at(6), Steps: []api.Step{
				{Kind: "vm.detach", Summary: "from web1", Status: "doing", Done: 1, Total: 3, Log: []api.LogLine{{Time: at(6), Text: "asked the guest"}}},
			},
		},
	}

	plan = api.Plan{
		Summary: "attach T4-1Q on 0000:3b:00.0 to web1", Changes: true, MustBeIdle: []string{"0000:3b:00.0"}, NeedsReset: true,
		Steps:    []api.PlanStep{{Kind: "partition.make", Summary: "T4-1Q on 0000:3b:00.0"}, {Kind: "vm.attach", Summary: "to web1"}},
		Blockers: []api.Blocker{},
	}

	busy = &api.Problem{
		Status: 409, Code: "conflict", Detail: `cannot attach "web1-gpu": another wish is stored under this name`, Hint: "detach it first, or choose another name",
		Diff:      map[string]api.Difference{"profile": {Stored: "T4-1Q", Asked: "T4-2Q"}, "gpu": {Stored: "", Asked: "0000:3b:00.0"}},
		Blockers:  []api.Blocker{{Kind: "vm", ID: webUUID, Name: "web1", Note: "it runs"}, {Kind: "operation", ID: "attach"}},
		Operation: "attach",
	}
)

func sliced(name string, slices int, placements string, available int) api.Profile {
	return api.Profile{
		Name: name, Kind: "mig", GPU: "0000:5a:00.0", Available: available, MaxInstances: 7,
		Attributes: map[string]string{"memory_slices": strconv.Itoa(slices), "placements": placements},
	}
}

func place(profile string, at int, compute ...string) api.LayoutInstance {
	return api.LayoutInstance{Profile: profile, Placement: &at, Compute: compute}
}

// copied is a migration of two disks, of which the first is passed over for the first time, so many seconds before
// that is done; below 0: nobody knows.
func copied(name string, done, rate uint64, left float64) api.Migration {
	m := api.Migration{
		Name: name, Assessment: "carried", Hostname: "db1", Phase: "syncing", Operation: "copying", Created: at(0), CreatedBy: "root", Copy: move.Copy{Interval: 600, Connections: 4},
		Heard: moment(0), Disks: []move.Disk{{Name: "sda", ID: "serial:1", Size: 480 << 30}, {Name: "sdb", ID: "serial:2", Size: 20 << 30}},
	}
	m.Progress = &move.Progress{Disk: "sda", Done: done, Total: 480 << 30, Rate: rate, Remaining: &left}
	if left < 0 {
		m.Progress.Remaining = nil
	}
	return m
}
