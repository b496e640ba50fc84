package daemon

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"gpuvirt/api"
	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// Slices and maps are never null on the wire, and times are UTC.

func list[T any](in []T) []T {
	if in == nil {
		return []T{}
	}
	return in
}

func dict(in map[string]string) map[string]string {
	if in == nil {
		return map[string]string{}
	}
	return maps.Clone(in)
}

// clock returns a time as it goes on the wire: UTC, and without the fraction of
// a microsecond that some clients cannot read.
func clock(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// moment is clock for a time that need not be there.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = clock(t)
	return &t
}

func conditionOf(c gpu.Condition) api.Condition {
	out := api.Condition{Type: string(c.Type), Status: c.Status, Reason: c.Reason, Message: c.Message}
	if !c.Since.IsZero() {
		since := clock(c.Since)
		out.Since = &since
	}
	return out
}

func gpuOf(g gpu.GPU) api.GPU {
	out := api.GPU{
		ID: string(g.ID), Vendor: g.Vendor, Model: g.Model, PCIAddress: g.PCIAddress, UUID: g.UUID, Serial: g.Serial,
		IOMMUGroup: g.IOMMUGroup, Driver: api.Driver(g.Driver), MemoryBytes: g.MemoryBytes,
		Managed: g.Managed, Quarantined: g.Quarantined, Policy: string(cmp.Or(g.Policy, gpu.PolicyReport)),
		Placement: cmp.Or(string(g.Placement), placementOfHost), Kinds: texts(g.Kinds),
		MIG: api.MIGMode(g.MIG), SRIOV: api.SRIOV(g.SRIOV), ECC: (*api.ECC)(g.Modes.ECC), ComputeMode: string(g.Modes.Compute),
		Labels: dict(g.Labels), Conditions: convert(g.Conditions, conditionOf),
	}
	if g.PCIAddress != "" {
		out.PCIID, out.PCISubsystem = g.Identity.Model, g.Identity.Subsystem
	}
	if g.NUMANode >= 0 {
		out.NUMANode = &g.NUMANode
	}
	return out
}

func vfsOf(s gpu.VFState) api.VFs {
	return api.VFs{
		GPU: string(s.GPU), TotalVFs: s.TotalVFs, NumVFs: len(s.Functions), Wanted: s.Wanted, Equal: s.Equal,
		Functions: convert(s.Functions, func(f gpu.FunctionState) api.Function {
			return api.Function{
				Index: f.Index, PCIAddress: f.PCIAddress, IOMMUGroup: f.IOMMUGroup, Driver: f.Driver, Partition: f.Partition,
				Holders: convert(f.Holders, func(h gpu.Holder) api.Holder { return api.Holder(h) }),
			}
		}),
	}
}

func profileOf(p gpu.Profile) api.Profile {
	return api.Profile{
		Name: p.Name, Kind: string(p.Kind), GPU: string(p.GPU), On: p.On, MemoryBytes: p.MemoryBytes,
		MaxInstances: p.MaxInstances, Available: p.Available, NativeID: p.NativeID, DeviceAPI: p.DeviceAPI,
		Attributes: dict(p.Attributes), NotCreatable: p.NotCreatable,
	}
}

func partitionOf(p gpu.Partition) api.Partition {
	out := api.Partition{
		ID: p.ID, GPU: string(p.GPU), Parent: p.Parent, Kind: string(p.Kind), Profile: p.Profile, Slot: p.Slot,
		Native: p.Native, Handle: api.Handle(p.Handle), DeviceAPI: p.DeviceAPI, VGPUParams: p.Params, IOMMUGroup: p.IOMMUGroup,
		Origin: string(p.Origin), State: string(p.State), Assignment: p.Assignment,
		Instance: p.Instance, Companions: slices.Clone(p.Companions),
		Holders:    convert(p.Holders, func(h gpu.Holder) api.Holder { return api.Holder(h) }),
		Conditions: convert(p.Conditions, conditionOf),
	}
	for _, c := range p.Compute {
		out.Compute = append(out.Compute, api.Compute(c))
	}
	out.Observed, out.Created = observedOf(p.Observed), moment(p.Created)
	return out
}

func vmOf(vm gpu.VM) api.VM {
	return api.VM{
		UUID: vm.UUID, Name: vm.Name, State: string(vm.State), Autostart: vm.Autostart, Persistent: vm.Persistent, NUMANodes: slices.Clone(vm.MemoryNodes),
		Hostdevs: convert(vm.Hostdevs, hostdevOf), Assignments: list(slices.Clone(vm.Assignments)),
	}
}

func hostdevOf(d gpu.Hostdev) api.Hostdev {
	return api.Hostdev{
		Alias: d.Alias, Handle: api.Handle(d.Handle), Model: d.Model, Display: d.Display, RamFB: d.RamFB,
		Live: d.Live, Config: d.Config, GuestAddress: d.GuestAddress,
	}
}

func assignmentOf(a gpu.Assignment) api.Assignment {
	return api.Assignment{
		Name: a.Name, VM: a.Wish.VM, VMName: a.VMName, Profile: a.Wish.Profile, GPU: string(a.Wish.GPU),
		Placement: string(a.Wish.Placement), Hotplug: string(a.Wish.Hotplug), Display: a.Wish.Display, RamFB: a.Wish.RamFB, VGPUParams: a.Wish.Params,
		Partition: a.Partition, PartitionGPU: string(a.GPU), State: string(a.State),
		Attached: api.Attached{Live: a.Live, Config: a.Config}, RestartRequired: a.RestartRequired,
		Operation: a.Operation, Created: clock(a.Created), Conditions: convert(a.Conditions, conditionOf),
	}
}

func capacityOf(c gpu.ProfileCapacity) api.ProfileCapacity {
	return api.ProfileCapacity{
		Profile: c.Profile, Kind: string(c.Kind), Available: c.Available,
		GPUs: convert(c.GPUs, func(g gpu.GPUCapacity) api.GPUCapacity {
			return api.GPUCapacity{GPU: string(g.GPU), Available: g.Available, Reasons: list(slices.Clone(g.Reasons))}
		}),
	}
}

func planOf(p gpu.Plan) api.Plan {
	out := api.Plan{
		Summary:  p.Summary,
		Steps:    convert(p.Steps, func(s gpu.PlanStep) api.PlanStep { return api.PlanStep(s) }),
		Blockers: []api.Blocker{}, MustBeIdle: list(slices.Clone(p.MustBeIdle)),
		NeedsReset: p.NeedsReset, NeedsReboot: p.NeedsReboot, Changes: p.Changes,
	}
	if p.Refusal != nil {
		out.Problem = problemOf(p.Refusal)
		out.Blockers = slices.Clone(out.Problem.Blockers)
	}
	return out
}

func operationOf(op operation.Operation) api.Operation {
	out := api.Operation{
		ID: op.ID, Kind: op.Kind, Summary: op.Summary, Actor: op.Actor, Status: string(op.Status), Reason: op.Reason,
		Abort: op.Abort, Forgot: op.Forgot, Steps: convert(op.Steps, stepOf), Keys: list(slices.Clone(op.Keys)),
		Created: clock(op.Created), Updated: clock(op.Updated),
	}
	if p := op.Problem; p != nil {
		code := gpu.Code(p.Code)
		out.Problem = newProblem(code, statusOf(code), p.Detail)
		out.Problem.Hint, out.Problem.Step = p.Hint, p.Step
		out.Problem.Blockers = convert(p.Blockers, func(b operation.Blocker) api.Blocker { return api.Blocker(b) })
	}
	return out
}

func stepOf(s operation.Step) api.Step {
	return api.Step{
		Kind: s.Kind, Summary: s.Summary, Status: string(s.Status), Done: s.Done, Total: s.Total,
		Log: convert(s.Log, func(l operation.LogLine) api.LogLine { return api.LogLine{Time: clock(l.Time), Text: l.Text} }),
	}
}

func infoOf(h gpu.HostInfo, version string) api.Info {
	return api.Info{
		Product: "gpuvirt", Version: version, APIVersion: "v1",
		Features: []string{"adopt", "apply", "assessments", "assignments", "backup", "capacity", "config", "dry-run", "etag", "events", "idempotency-key", "metrics", "mig", "migrations", "partitions", "sriov", "tokens", "vgpu"},
		HostID:   h.HostID, BootID: h.BootID, State: string(h.State), Reasons: list(slices.Clone(h.Reasons)), Simulated: h.Simulated,
	}
}
