package daemon

import (
	"gpuvirt/access"
	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// The values of the enumerations on the wire. A test compares them with the
// constants they come from and with openapi.yaml.

func kinds() []gpu.Kind {
	return []gpu.Kind{gpu.KindMIG, gpu.KindMdev, gpu.KindVGPU, gpu.KindVF, gpu.KindCard}
}

func placements() []gpu.Placement { return []gpu.Placement{gpu.Pack, gpu.Spread} }

func hotplugs() []gpu.Hotplug {
	return []gpu.Hotplug{gpu.HotplugAuto, gpu.HotplugRequire, gpu.HotplugNever}
}

func origins() []gpu.Origin { return []gpu.Origin{gpu.OriginManaged, gpu.OriginForeign} }

func partitionStates() []gpu.PartitionState {
	return []gpu.PartitionState{gpu.PartitionMaking, gpu.PartitionMade, gpu.PartitionRemoving, gpu.PartitionMissing}
}

func vmStates() []gpu.VMState {
	return []gpu.VMState{gpu.VMRunning, gpu.VMPaused, gpu.VMShutoff, gpu.VMCrashed}
}

func assignmentStates() []gpu.AssignmentState {
	return []gpu.AssignmentState{
		gpu.AssignmentAttaching, gpu.AssignmentAttached, gpu.AssignmentDetaching,
		gpu.AssignmentUnknown, gpu.AssignmentDrifted,
	}
}

func statuses() []operation.Status {
	return []operation.Status{
		operation.Ready, operation.Running, operation.Waiting, operation.Done,
		operation.Undoing, operation.Undone, operation.Failed,
	}
}

func bools() []string { return []string{"true", "false"} }

func policies() []gpu.Policy { return []gpu.Policy{gpu.PolicyReport, gpu.PolicyRepair} }

// placementOfHost is how a client says of a GPU that it has no placement of its own.
const placementOfHost = "host"

func gpuPlacements() (out []string) {
	for _, p := range placements() {
		out = append(out, string(p))
	}
	return append(out, placementOfHost)
}

func roles() (out []string) {
	for _, r := range access.Roles() {
		out = append(out, r.String())
	}
	return out
}
