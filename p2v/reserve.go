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
	// AssignmentWish is what is kept of one, without a look at the machine.
	AssignmentWish(name string) (gpu.Wish, error)
	ApplyAssignments(ctx context.Context, actor string, wishes []gpu.NamedWish, idem gpu.Idempotency) ([]gpu.Assignment, *operation.Operation, error)
	PlanApplyAssignments(ctx context.Context, wishes []gpu.NamedWish) (gpu.Plan, error)
	DeleteAssignment(ctx context.Context, actor, name string) (operation.Operation, error)
}

// VMs is what a move needs of libvirt, as vmapi.Client has it.
type VMs interface {
	VM(ctx context.Context, uuid string) (gpu.VM, error)
	Define(ctx context.Context, doc string) error
	Undefine(ctx context.Context, uuid, mark string) error
	// Fits makes sure that what a definition names is on this host; Startable the same of a VM.
	Fits(ctx context.Context, doc string) error
	Startable(ctx context.Context, uuid string) error
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
	chosen := assess.Chosen(p.Fittings)
	out := make([]move.Slice, 0, len(chosen))
	for i, f := range chosen {
		c := f.Choice
		s := move.Slice{Assignment: name, Profile: c.Profile, GPU: c.GPU, Params: c.Params, Source: f.Need.Source.PCI, Model: c.Model, MemoryBytes: c.MemoryBytes, Kind: c.Kind, Sharing: c.Sharing, Series: c.Series()}
		if len(chosen) > 1 {
			s.Assignment = fmt.Sprintf("%s-%d", name, i+1)
		}
		out = append(out, s)
	}
	return out
}

// reservedFor are the partitions of a VM as a plan takes them; nil: none are chosen.
func reservedFor(rec move.Record) []assess.Reserved {
	if rec.VM == nil || rec.Ended == move.PhaseRolledBack {
		return nil
	}
	out := make([]assess.Reserved, 0, len(rec.VM.Slices))
	for _, s := range rec.VM.Slices {
		out = append(out, assess.Reserved{Source: s.Source, GPU: s.GPU, Model: s.Model, MemoryBytes: s.MemoryBytes, Profile: s.Profile, Params: s.Params, Kind: s.Kind, Sharing: s.Sharing, Series: s.Series})
	}
	return out
}

// reserving says what the step that reserves does.
func reserving(vm move.VM) string {
	if len(vm.Slices) == 0 {
		return "define VM " + vm.Name
	}
	return fmt.Sprintf("define VM %s, and reserve %s for it", vm.Name, assess.Count(len(vm.Slices), "partition", "partitions"))
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
	if err := m.assigned(rec.Name); err != nil {
		return nil, &operation.RetryError{After: m.cfg.Patience.Pause, Err: err}
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
	var note reserveNote
	if _, err := t.Note(&note); err != nil {
		return err
	}
	// A step that was broken off finds what it has begun.
	idem := gpu.Idempotency{Key: fmt.Sprintf("%s.reserve.%d", rec.Operation, note.Undone), Request: rec.VM.UUID}
	_, op, err := m.cfg.Assignments.ApplyAssignments(ctx, rec.Actor, wishesOf(rec), idem)
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
// has its partitions and what else it names. Somebody may have changed that since they were reserved, and a
// card, a network or a bridge may be gone.
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
	if err := m.misses(rec); err != nil {
		return gpu.Wrap(err, gpu.CodeConflict, "VM %s could not start", rec.VM.Name)
	}
	if err := m.cfg.VMs.Startable(ctx, rec.VM.UUID); err != nil {
		return err
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

// carried waits for an operation that a step has begun, or who is no step; nil: none was needed.
func (m *Migrations) carried(ctx context.Context, t *operation.Task, op *operation.Operation) error {
	if op == nil {
		return nil
	}
	if t != nil {
		var stop func()
		ctx, stop = undrained(ctx, t) // its next steps do not begin any more then
		defer stop()
	}
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
	return nil, m.end(rec.Name, move.PhaseRolledBack, why(t.Operation()))
}

// release takes away the VM of a move, and its assignments.
func (m *Migrations) release(ctx context.Context, t *operation.Task, rec move.Record) error {
	if err := m.cfg.VMs.Stop(ctx, rec.VM.UUID); err != nil {
		return err
	}
	hold := m.hold(rec.Name) // nobody reserves them again in this moment
	select {
	case hold <- struct{}{}:
		defer func() { <-hold }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := m.unassign(ctx, t, rec.Actor, rec); err != nil {
		return err
	}
	return m.cfg.VMs.Undefine(ctx, rec.VM.UUID, rec.Operation)
}
