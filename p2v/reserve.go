package p2v

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/guest"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
)

// Assignments is what holds partitions for the VM to be: ordinary assignments, each an
// operation of its own.
type Assignments interface {
	Assignment(ctx context.Context, name string) (gpu.Assignment, error)
	ApplyAssignments(ctx context.Context, actor string, wishes []gpu.NamedWish, idem gpu.Idempotency) ([]gpu.Assignment, *operation.Operation, error)
	DeleteAssignment(ctx context.Context, actor, name string) (operation.Operation, error)
}

// VMs is what a move needs of libvirt, as vmapi.Client has it.
type VMs interface {
	VM(ctx context.Context, uuid string) (gpu.VM, error)
	Define(ctx context.Context, doc string) error
	Undefine(ctx context.Context, uuid, mark string) error
	Start(ctx context.Context, uuid string) error
	StartTrial(ctx context.Context, uuid, mark string, t gpu.Trial) error
	Stop(ctx context.Context, uuid string) error
	Agent(ctx context.Context, uuid, request string) (string, error)
	CreateNetwork(ctx context.Context, doc string) error
	DestroyNetwork(ctx context.Context, name string) error
}

// slicesOf are the partitions that a plan has chosen, each with the name of the assignment
// that will hold it.
func slicesOf(name string, p assess.Plan) []move.Slice {
	var chosen []*assess.Choice
	for _, f := range p.Fittings {
		if f.Choice != nil {
			chosen = append(chosen, f.Choice)
		}
	}
	out := make([]move.Slice, 0, len(chosen))
	for i, c := range chosen {
		s := move.Slice{Assignment: name, Profile: c.Profile, GPU: c.GPU, Params: c.Params}
		if len(chosen) > 1 {
			s.Assignment = fmt.Sprintf("%s-%d", name, i+1)
		}
		out = append(out, s)
	}
	return out
}

// definition is the VM to be, for libvirt.
func (m *Migrations) definition(rec move.Record) (string, error) {
	seen, err := m.inspected(rec.Assessment)
	if err != nil {
		return "", err
	}
	return m.definitionOf(rec, *seen.Report)
}

func (m *Migrations) definitionOf(rec move.Record, seen report.Report) (string, error) {
	d, err := m.domain(rec, seen)
	if err != nil {
		return "", err
	}
	doc, err := d.XML()
	if err != nil {
		return "", err
	}
	return m.cfg.Mark(doc, rec.Operation)
}

// domain is the VM to be. Its disks are there when it is made of the mirrors.
func (m *Migrations) domain(rec move.Record, seen report.Report) (convert.Domain, error) {
	want := rec.Wanted
	to := guest.Mapping{
		Name: rec.VM.Name, UUID: rec.VM.UUID, NICs: map[string]guest.NIC{}, Default: guest.NIC{Network: want.Network, Bridge: want.Bridge},
		MemoryBytes: rec.Plan.MemoryBytes, VCPUs: rec.Plan.Threads, CPU: want.CPU, Emulated: want.Emulated,
		SerialLog: m.console(rec.Name), VFIO: len(rec.VM.Slices) > 0,
	}
	for _, d := range rec.Disks {
		to.Disks = append(to.Disks, m.disk(rec.Name, d.Name))
	}
	for _, n := range want.NICs {
		to.NICs[n.MAC] = guest.NIC{Network: n.Network, Bridge: n.Bridge}
	}
	return guest.Domain(seen, rec.Plan, to)
}

// Files of a move, all in its folder.
func (m *Migrations) disk(name, disk string) string {
	return filepath.Join(m.folder(name), disk+".qcow2")
}

// making is where a VM's disk is made. It comes to its own place when the source is off: until
// then nobody starts the VM, as it has no disks.
func (m *Migrations) making(name, disk string) string {
	return filepath.Join(m.folder(name), disk+".making.qcow2")
}

func (m *Migrations) trial(name, disk string) string {
	return filepath.Join(m.folder(name), disk+".trial.qcow2")
}

func (m *Migrations) mirror(name, disk string) string {
	return filepath.Join(m.folder(name), disk+".raw")
}

func (m *Migrations) console(name string) string { return filepath.Join(m.folder(name), "console.log") }

// doReserve defines the VM to be, which has no disks yet, and gives it its partitions: nobody
// else gets them while the disks are copied.
func (m *Migrations) doReserve(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	rec, err := m.record(t)
	if err != nil {
		return nil, err
	}
	err = m.reserve(ctx, t, rec)
	switch {
	case context.Cause(ctx) != nil:
		return nil, unclean(context.Cause(ctx))
	case holdsUp(err):
		return nil, &operation.RetryError{After: m.cfg.Patience.Pause, Err: err}
	case err != nil:
		return nil, unclean(err)
	}
	return nil, nil
}

// holdsUp reports whether a failure passes by itself: libvirt is away, another operation works on
// the same, the daemon ends.
func holdsUp(err error) bool {
	_, held := errors.AsType[*operation.ConflictError](err)
	return held || errors.Is(err, errDraining) || errors.Is(err, operation.ErrStopped) || err != nil && gpu.CodeOf(err) == gpu.CodeUnavailable
}

func (m *Migrations) reserve(ctx context.Context, t *operation.Task, rec move.Record) error {
	doc, err := m.definition(rec)
	if err != nil {
		return err
	}
	if err := m.cfg.VMs.Define(ctx, doc); err != nil {
		return err
	}
	if len(rec.VM.Slices) == 0 {
		t.Logf("VM %s is defined; it gets no partition", rec.VM.Name)
		return nil
	}
	wishes := make([]gpu.NamedWish, 0, len(rec.VM.Slices))
	for _, s := range rec.VM.Slices {
		wishes = append(wishes, gpu.NamedWish{Name: s.Assignment, Wish: gpu.Wish{
			VM: rec.VM.UUID, Profile: s.Profile, GPU: s.GPU, Placement: gpu.Pack, Hotplug: gpu.HotplugAuto, Params: s.Params,
		}})
	}
	var note reserveNote
	if _, err := t.Note(&note); err != nil {
		return err
	}
	// A step that was broken off finds what it has begun.
	idem := gpu.Idempotency{Key: fmt.Sprintf("%s.reserve.%d", rec.Operation, note.Undone), Request: rec.VM.UUID}
	_, op, err := m.cfg.Assignments.ApplyAssignments(ctx, rec.Actor, wishes, idem)
	if err != nil {
		return err
	}
	err = m.carried(ctx, t, op)
	if op == nil || !holdsUp(err) {
		return err
	}
	if op, getErr := m.cfg.Engine.Get(op.ID); getErr == nil && op.Status == operation.Undone {
		note.Undone++
		err = errors.Join(err, t.SaveNote(note))
	}
	return err
}

// reserveNote is what the reserving writes down.
type reserveNote struct {
	Undone int `json:"undone"` // operations that were undone for what passes by itself
}

// reserved makes sure that the VM can start: it is there as it was defined, does not run, and
// has its partitions. Somebody may have changed that since they were reserved, and a card may
// be gone.
func (m *Migrations) reserved(ctx context.Context, rec move.Record) error {
	vm, err := m.cfg.VMs.VM(ctx, rec.VM.UUID)
	cannot := func(why string, args ...any) *gpu.Error {
		return gpu.Errorf(gpu.CodeConflict, "VM %s could not start: "+why, append([]any{rec.VM.Name}, args...)...)
	}
	is := gpu.Blocker{Kind: "vm", ID: rec.VM.UUID, Name: rec.VM.Name}
	switch {
	case err != nil:
		return gpu.Wrap(err, gpu.CodeUnavailable, "VM %s could not start", rec.VM.Name)
	case vm.Mark != rec.Operation || !vm.Persistent:
		return cannot("somebody has defined another in its place").WithBlockers(is)
	case vm.State.Active():
		return cannot("it runs already").WithBlockers(is).WithHint("stop it")
	}
	for _, s := range rec.VM.Slices {
		a, err := m.cfg.Assignments.Assignment(ctx, s.Assignment)
		blocked := gpu.Blocker{Kind: "assignment", ID: s.Assignment}
		switch {
		case err != nil:
			return gpu.Wrap(err, gpu.CodeUnavailable, "VM %s could not start", rec.VM.Name)
		case a.Wish.VM != rec.VM.UUID:
			return cannot("assignment %s is of another VM", s.Assignment).WithBlockers(blocked)
		case a.State != gpu.AssignmentAttached:
			why := string(a.State)
			for _, c := range a.Conditions {
				why += ": " + c.Message
			}
			return cannot("assignment %s is %s", s.Assignment, why).WithBlockers(blocked)
		}
		g, err := m.gpu(ctx, a.GPU)
		if err != nil {
			return gpu.Wrap(err, gpu.CodeUnavailable, "VM %s could not start", rec.VM.Name)
		}
		if g.Quarantined {
			return cannot("GPU %s of assignment %s is in quarantine", g.ID, s.Assignment).WithBlockers(blocked)
		}
	}
	return nil
}

// carried waits for an operation that a step has begun; nil: none was needed.
func (m *Migrations) carried(ctx context.Context, t *operation.Task, op *operation.Operation) error {
	if op == nil {
		return nil
	}
	ctx, stop := undrained(ctx, t) // its next steps do not begin any more then
	defer stop()
	end, err := m.cfg.Engine.Wait(ctx, op.ID)
	switch {
	case context.Cause(ctx) != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	case end.Status == operation.Done:
		return nil
	case end.Problem != nil:
		return gpu.Errorf(gpu.Code(end.Problem.Code), "%s", end.Problem.Detail).WithHint("%s", end.Problem.Hint).
			WithBlockers(gpu.Blocker{Kind: "operation", ID: end.ID})
	}
	return gpu.Errorf(gpu.CodeConflict, "operation %s is %s: %s", end.ID, end.Status, end.Reason).WithBlockers(gpu.Blocker{Kind: "operation", ID: end.ID})
}

// undoReserve lets go of the partitions and takes the definition away.
func (m *Migrations) undoReserve(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	rec, err := m.record(t)
	if err != nil {
		return nil, err
	}
	err = m.release(ctx, t, rec)
	switch {
	case holdsUp(err):
		return nil, &operation.RetryError{After: m.cfg.Patience.Pause, Err: err}
	case err != nil:
		return nil, err
	}
	return nil, m.end(rec.Name, move.PhaseRolledBack)
}

// release takes away the VM of a move, and its assignments.
func (m *Migrations) release(ctx context.Context, t *operation.Task, rec move.Record) error {
	if err := m.cfg.VMs.Stop(ctx, rec.VM.UUID); err != nil {
		return err
	}
	for _, s := range rec.VM.Slices {
		a, err := m.cfg.Assignments.Assignment(ctx, s.Assignment)
		switch {
		case err != nil && gpu.CodeOf(err) == gpu.CodeNotFound:
			continue
		case err != nil:
			return err
		case a.Wish.VM != rec.VM.UUID: // somebody else's, of the same name
			continue
		}
		op, err := m.cfg.Assignments.DeleteAssignment(ctx, rec.Actor, s.Assignment)
		if err != nil {
			return err
		}
		if err := m.carried(ctx, t, &op); err != nil {
			return err
		}
	}
	return m.cfg.VMs.Undefine(ctx, rec.VM.UUID, rec.Operation)
}
