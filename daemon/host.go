// Package daemon serves the REST interface: one table of routes with access
// rules, strict requests, problems, events, and the sockets they arrive on. It
// is the only package that knows HTTP status codes.
package daemon

import (
	"context"
	"io"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/report"
)

// Host is what the routes need of the domain. Its errors are *gpu.Error or
// *operation.ConflictError; anything else is a defect and answers 500.
type Host interface {
	Info(ctx context.Context) gpu.HostInfo

	GPUs(ctx context.Context) ([]gpu.GPU, error)
	GPU(ctx context.Context, id gpu.ID) (gpu.GPU, error)
	// PatchGPU writes nothing where nothing changes. With dryRun it only plans.
	PatchGPU(ctx context.Context, actor string, id gpu.ID, p gpu.GPUPatch, dryRun bool) (gpu.GPU, gpu.Plan, error)
	Profiles(ctx context.Context, id gpu.ID) (profiles []gpu.Profile, blind, err error)
	Layout(ctx context.Context, id gpu.ID) (gpu.LayoutState, error)
	// PutLayout returns the operation that cuts the GPU, or nil where it is cut so
	// already.
	PutLayout(ctx context.Context, actor string, id gpu.ID, want gpu.Layout) (gpu.LayoutState, *operation.Operation, error)
	PlanPutLayout(ctx context.Context, id gpu.ID, want gpu.Layout) (gpu.Plan, error)
	VFs(ctx context.Context, id gpu.ID) (gpu.VFState, error)
	// PutVFs returns the operation that turns the virtual functions on or off, or nil
	// where there are as many already.
	PutVFs(ctx context.Context, actor string, id gpu.ID, n int) (gpu.VFState, *operation.Operation, error)
	PlanPutVFs(ctx context.Context, id gpu.ID, n int) (gpu.Plan, error)
	VGPUSettings(ctx context.Context, id gpu.ID) (gpu.VGPUState, error)
	// PutVGPUSettings returns the operation that sets them, or nil where all is so already.
	PutVGPUSettings(ctx context.Context, actor string, id gpu.ID, want gpu.VGPUWish) (gpu.VGPUState, *operation.Operation, error)
	PlanPutVGPUSettings(ctx context.Context, id gpu.ID, want gpu.VGPUWish) (gpu.Plan, error)
	Capacity(ctx context.Context, profile string) ([]gpu.ProfileCapacity, error)

	Partitions(ctx context.Context) ([]gpu.Partition, error)
	Partition(ctx context.Context, id string) (gpu.Partition, error)
	// CreatePartition and DeletePartition start an operation.
	CreatePartition(ctx context.Context, actor string, w gpu.PartitionWish, idem gpu.Idempotency) (operation.Operation, error)
	PlanPartition(ctx context.Context, w gpu.PartitionWish) (gpu.Plan, error)
	DeletePartition(ctx context.Context, actor, id string) (operation.Operation, error)
	// AdoptPartition writes nothing where it is under management already. With dryRun
	// it only plans.
	AdoptPartition(ctx context.Context, actor, id string, dryRun bool) (gpu.Partition, gpu.Plan, error)
	PlanDeletePartition(ctx context.Context, id string) (gpu.Plan, error)

	VMs(ctx context.Context) ([]gpu.VM, error)
	VM(ctx context.Context, nameOrUUID string) (gpu.VM, error)
	// CheckStart never asks libvirt.
	CheckStart(ctx context.Context, vmUUID string, devices []gpu.Handle) ([]gpu.StartFinding, error)

	Assignments(ctx context.Context) ([]gpu.Assignment, error)
	Assignment(ctx context.Context, name string) (gpu.Assignment, error)
	// PutAssignment returns the operation that carries the wish out, or nil where
	// the wish is already stored and fulfilled: then nothing is written.
	PutAssignment(ctx context.Context, actor, name string, w gpu.Wish) (gpu.Assignment, *operation.Operation, error)
	// ApplyAssignments is PutAssignment for several: all or none. It returns the
	// assignments where nothing is to be done.
	ApplyAssignments(ctx context.Context, actor string, wishes []gpu.NamedWish, idem gpu.Idempotency) ([]gpu.Assignment, *operation.Operation, error)
	PlanApplyAssignments(ctx context.Context, wishes []gpu.NamedWish) (gpu.Plan, error)
	PlanAssignment(ctx context.Context, name string, w gpu.Wish) (gpu.Plan, error)
	DeleteAssignment(ctx context.Context, actor, name string) (operation.Operation, error)
	PlanDeleteAssignment(ctx context.Context, name string) (gpu.Plan, error)

	Backup(ctx context.Context, w io.Writer) error
	// Events returns the events after seq that are still kept (complete is false
	// where some were dropped), and a channel of those to come until ctx ends. Zero
	// means from now on. It never waits for a listener: it closes the channel of one
	// that is too far behind, and when ctx ends.
	Events(ctx context.Context, after uint64) (past []gpu.Event, complete bool, live <-chan gpu.Event)
}

// Tokens is what the routes need of the tokens. Their errors are *gpu.Error, and none holds
// the text of a token.
type Tokens interface {
	Tokens() []gpu.Token
	Token(id string) (gpu.Token, error)
	// Plan says why Create would refuse; nil: it would not.
	Plan(w gpu.TokenWish) error
	// Create returns the text that the token's holder sends, which is not to be had again.
	Create(w gpu.TokenWish, by string) (gpu.Token, string, error)
	Delete(id string) (gpu.Token, error)
	// Check tells whose token a text is; the channel is closed when it is deleted.
	Check(text string) (gpu.Token, <-chan struct{}, error)
}

// Assessments is what the routes need of the looks at physical servers. Their errors are as
// those of Host.
type Assessments interface {
	// The records are the caller's, who may change them.
	Assessments() ([]report.AssessmentRecord, error)
	Assessment(name string) (report.AssessmentRecord, error)
	// Create returns the operation that looks, or one that is done already where the report
	// was carried here.
	Create(ctx context.Context, actor string, w report.Wish, idem gpu.Idempotency) (report.AssessmentRecord, *operation.Operation, error)
	Plan(w report.Wish) (gpu.Plan, error)
	// Finish ends the watching early, and keeps what was seen.
	Finish(name string) (report.AssessmentRecord, error)
	Delete(name string) (report.AssessmentRecord, error)
	PlanDelete(name string) (report.AssessmentRecord, error)
	// Policy returns the figures that findings are worked out with.
	Policy() assess.Policy
}

// Operations is what the routes need of the engine.
type Operations interface {
	Get(id string) (operation.Operation, error)
	List() ([]operation.Operation, error)
	Wait(ctx context.Context, id string) (operation.Operation, error)
	Abort(id string) (operation.Operation, error)
	Retry(id string) (operation.Operation, error)
	Forget(id string) (operation.Operation, error)
}
