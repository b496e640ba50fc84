package p2v

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/block"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
)

// The kind of operation that carries a move out, and of its steps.
const (
	kindMigrate = "migration.create"
	stepReserve = "migration.reserve"
	stepSync    = "migration.sync"
	stepStart   = "migration.start"
	stepVerify  = "migration.verify"
)

// logs is the folder, in that of a move, with what programs said.
const logs = "log"

// Host is what a plan has to know of this host.
type Host interface {
	GPUs(ctx context.Context) ([]gpu.GPU, error)
	Profiles(ctx context.Context, id gpu.ID) (profiles []gpu.Profile, blind, err error)
}

// Migrations are the moves of servers. Its methods may be called concurrently.
type Migrations struct {
	cfg    Config
	now    *signals // by name: somebody has asked for a pass, or another pace
	saving sync.Mutex
	limits sync.Map // by name: *block.Limit
	claims claims
	// converting is held by who runs programs on disks: one at a time.
	converting chan struct{}
	trying     sync.Map // by name: the context.CancelCauseFunc of the attempt under way
}

// NewMigrations returns the moves of a store, and registers their steps with the engine.
func NewMigrations(cfg Config) *Migrations {
	if cfg.Patience == (Patience{}) {
		cfg.Patience = DefaultPatience()
	}
	m := &Migrations{cfg: cfg, now: newSignals(), claims: claims{keep: keepFree}, converting: make(chan struct{}, 1)}
	cfg.Engine.Handle(stepReserve, operation.Handler{Do: m.doReserve, Undo: m.undoReserve})
	cfg.Engine.Handle(stepSync, operation.Handler{Do: m.doSync, Undo: m.undoSync})
	cfg.Engine.Handle(stepStart, operation.Handler{Do: m.doStart, Undo: m.undoStart})
	cfg.Engine.Handle(stepVerify, operation.Handler{Do: m.doVerify})
	return m
}

func (m *Migrations) view(r move.Record) (move.Migration, error) {
	out := move.Migration{Record: r, Phase: r.Ended}
	if r.Ended != "" {
		out.Reason = afterwards(r)
		return out, nil
	}
	op, err := m.cfg.Engine.Get(r.Operation)
	switch {
	case errors.Is(err, operation.ErrNotFound): // it was forgotten, and a while ago
		out.Phase, out.Abandoned, out.Reason = move.PhaseFailed, true, "the record of its operation is gone: delete the migration, which removes its mirrors"
		return out, nil
	case err != nil:
		return out, err
	}
	if op.Status == operation.Done || op.Status == operation.Undone {
		// It has ended since the record was read, and was changed before that.
		if out.Record, err = m.cfg.Store.MigrationRecord(r.Name); err != nil {
			return out, err
		}
	}
	step := current(op)
	switch op.Status {
	case operation.Waiting:
		out.Phase, out.Reason, out.Unverified = move.PhaseWaiting, op.Reason, step == stepVerify
	case operation.Undoing:
		out.Phase = move.PhaseRollingBack
	case operation.Undone:
		out.Phase, out.Ended = move.PhaseRolledBack, move.PhaseRolledBack
		out.Reason = afterwards(out.Record)
	case operation.Failed:
		out.Phase, out.Abandoned = move.PhaseFailed, op.Forgot
		if op.Problem != nil {
			out.Reason = op.Problem.Detail
		}
	case operation.Done:
		out.Phase, out.Ended = move.PhaseDone, move.PhaseDone
	case operation.Ready, operation.Running:
		out.Phase = doing(r, step)
		if op.Abort {
			out.Phase = move.PhaseRollingBack
		}
	}
	return out, nil
}

// afterwards says what is left to do of a move that has ended.
func afterwards(r move.Record) string {
	switch {
	case r.Ended != move.PhaseRolledBack || r.Fence == move.FenceNone:
		return ""
	case r.AtRest():
		return "the source is off: start it again"
	}
	return "the source was powered off: start it again"
}

// current is the kind of the step that an operation is at.
func current(op operation.Operation) string {
	for _, s := range op.Steps {
		if s.Status != operation.StepDone {
			return s.Kind
		}
	}
	return ""
}

// doing is the phase of a move that goes on.
func doing(r move.Record, step string) move.Phase {
	switch step {
	case stepReserve:
		return move.PhasePlanned
	case stepStart:
		return move.PhaseCuttingOver
	case stepVerify:
		return move.PhaseVerifying
	}
	switch a := r.Pending(); {
	case r.Fence != move.FenceNone || a != nil && a.State == move.Running && a.Kind == move.Cutover:
		return move.PhaseCuttingOver
	case a != nil && a.State == move.Running:
		return move.PhaseRehearsing
	case r.Forecast != nil && r.Forecast.Fits:
		return move.PhaseReady
	}
	return move.PhaseSyncing
}

// Migrations lists them, sorted by name.
func (m *Migrations) Migrations() ([]move.Migration, error) {
	records, err := m.cfg.Store.MigrationRecords()
	out := make([]move.Migration, 0, len(records))
	for _, r := range records {
		v, viewErr := m.view(r)
		if viewErr != nil {
			return nil, viewErr
		}
		out = append(out, v)
	}
	return out, err
}

// Migration returns one; without one the error has gpu.CodeNotFound.
func (m *Migrations) Migration(name string) (move.Migration, error) {
	r, err := m.cfg.Store.MigrationRecord(name)
	if err != nil {
		return move.Migration{}, err
	}
	return m.view(r)
}

// Plan says how a move would be carried out on this host as it is now. Nothing is reserved.
func (m *Migrations) Plan(ctx context.Context, w move.Wish) (assess.Plan, error) {
	r, err := m.inspected(w.Assessment)
	if err != nil {
		return assess.Plan{}, err
	}
	return m.plan(ctx, *r.Report, w.Plan)
}

func (m *Migrations) plan(ctx context.Context, r report.Report, w assess.Wish) (assess.Plan, error) {
	host, err := m.hostState(ctx)
	if err != nil {
		return assess.Plan{}, err
	}
	return assess.NewPlan(r, w, host, assess.Policy{}, assess.BuiltInDrivers()), nil
}

// inspected is an assessment with a report.
func (m *Migrations) inspected(name string) (report.AssessmentRecord, error) {
	r, err := m.cfg.Store.AssessmentRecord(name)
	if err == nil && r.Report == nil {
		err = gpu.Errorf(gpu.CodeConflict, "cannot plan with assessment %q: nothing was seen of the server yet", name).
			WithBlockers(gpu.Blocker{Kind: "operation", ID: r.Operation})
	}
	return r, err
}

// hostState is what this host has now. A GPU whose profiles are not known has none.
func (m *Migrations) hostState(ctx context.Context) (assess.HostState, error) {
	state := m.cfg.Facts()
	gpus, err := m.cfg.Host.GPUs(ctx)
	if err != nil {
		return state, err
	}
	for _, g := range gpus {
		profiles, _, err := m.cfg.Host.Profiles(ctx, g.ID)
		if err != nil && ctx.Err() != nil {
			return state, err
		}
		state.GPUs = append(state.GPUs, assess.HostGPU{GPU: g, Profiles: profiles})
	}
	return state, nil
}

// Create begins a move. It is refused where its plan is blocked, with what blocks it. The
// same Idempotency-Key with the same request answers what it began before.
func (m *Migrations) Create(ctx context.Context, actor string, w move.Wish, idem gpu.Idempotency) (operation.Operation, error) {
	const what = "migrate"
	if op, err := m.cfg.before(idem, what); op != nil || err != nil {
		return *cmp.Or(op, &operation.Operation{}), err
	}
	plan, err := m.draft(ctx, actor, w)
	if err != nil {
		return operation.Operation{}, err
	}
	m.cfg.remember(&plan, idem)
	m.saving.Lock() // what was planned takes a while, and another may have been there first
	defer m.saving.Unlock()
	if op, err := m.cfg.before(idem, what); op != nil || err != nil {
		return *cmp.Or(op, &operation.Operation{}), err
	}
	return m.add(ctx, w.Name, plan)
}

// Refusal says why Create would refuse a wish for another reason than what its plan says;
// nil: for none.
func (m *Migrations) Refusal(ctx context.Context, w move.Wish) error {
	r, err := m.check(w)
	if err != nil {
		return err
	}
	disks, err := disksOf(*r.Report, w.Plan)
	if err != nil {
		return gpu.Errorf(gpu.CodeInvalid, "cannot migrate %q: %w", w.Name, err)
	}
	if err := m.openable(ctx, w, disks); err != nil {
		return err
	}
	return m.cfg.Engine.Held(keysOf(w, r)...)
}

// keysOf are what nobody else may work on meanwhile. One server is moved once at a time,
// whatever the move is called.
func keysOf(w move.Wish, r report.AssessmentRecord) []string {
	address := ""
	if r.Source != nil {
		address = r.Source.Address
	}
	return []string{move.RecordMigration + "/" + w.Name, "server/" + cmp.Or(r.Report.OS.MachineID, address, r.Report.Hostname, r.Name)}
}

// add begins a move whose name nobody has taken while it was planned.
func (m *Migrations) add(ctx context.Context, name string, plan operation.Plan) (operation.Operation, error) {
	if err := m.free(name); err != nil {
		return operation.Operation{}, err
	}
	return m.cfg.Engine.Add(ctx, plan)
}

// free refuses a name that there is a move of.
func (m *Migrations) free(name string) error {
	_, err := m.cfg.Store.MigrationRecord(name)
	switch {
	case err == nil:
		return gpu.Errorf(gpu.CodeConflict, "cannot migrate %q: there is a migration of this name", name).WithHint("delete it when it has ended, or use another name")
	case gpu.CodeOf(err) != gpu.CodeNotFound:
		return err
	}
	// A VM may have its disks there, of a move that was done and deleted.
	if _, err := os.Lstat(m.folder(name)); !errors.Is(err, fs.ErrNotExist) {
		return gpu.Errorf(gpu.CodeConflict, "cannot migrate %q: there is a folder %q, which may hold disks of a VM", name, m.folder(name)).
			WithHint("use another name, or remove the folder if nothing in it is in use")
	}
	return nil
}

// check returns the assessment of a wish that can be granted as far as is known without a
// plan.
func (m *Migrations) check(w move.Wish) (report.AssessmentRecord, error) {
	cannot := func(code gpu.Code, format string, args ...any) *gpu.Error {
		return gpu.Errorf(code, "cannot migrate %q: "+format, append([]any{w.Name}, args...)...)
	}
	if err := m.free(w.Name); err != nil {
		return report.AssessmentRecord{}, err
	}
	if w.Name != filepath.Base(w.Name) || !filepath.IsLocal(w.Name) {
		return report.AssessmentRecord{}, cannot(gpu.CodeInvalid, "it would be no name of a folder")
	}
	seen, err := m.inspected(w.Assessment)
	switch {
	case err != nil:
		return seen, err
	case seen.State != report.StateDone:
		return seen, cannot(gpu.CodeConflict, "assessment %q is still %s", w.Assessment, seen.State).
			WithBlockers(gpu.Blocker{Kind: "operation", ID: seen.Operation}).WithHint("gpuvirt assessment finish %s", w.Assessment)
	case seen.Source == nil && len(w.DisksFrom) == 0:
		return seen, cannot(gpu.CodeConflict, "its inspection was carried here, and nobody has said how the server is reached").
			WithHint("assess it with a source; or shut it down, and say where its disks are read: --image, --nbd")
	}
	if err := errors.Join(w.Copy.Check(), w.VM.Check(), move.CheckFrom(w.DisksFrom, w.Certificates)); err != nil {
		return seen, cannot(gpu.CodeInvalid, "%w", err)
	}
	return seen, nil
}

func (m *Migrations) draft(ctx context.Context, actor string, w move.Wish) (operation.Plan, error) {
	cannot := func(code gpu.Code, format string, args ...any) *gpu.Error {
		return gpu.Errorf(code, "cannot migrate %q: "+format, append([]any{w.Name}, args...)...)
	}
	seen, err := m.check(w)
	if err != nil {
		return operation.Plan{}, err
	}
	plan, err := m.plan(ctx, *seen.Report, w.Plan)
	if err != nil {
		return operation.Plan{}, err
	}
	if plan.Verdict.State == assess.Blocked {
		refusal := cannot(gpu.CodeConflict, "%s", plan.Verdict.Text).WithHint("see the plan: each blocker has its remedy, or can be waived by name with a reason")
		for _, c := range plan.Verdict.Blockers {
			refusal = refusal.WithBlockers(gpu.Blocker{Kind: "concern", ID: c.ID, Name: c.Title})
		}
		return operation.Plan{}, refusal
	}
	disks, err := disksOf(*seen.Report, w.Plan)
	if err != nil {
		return operation.Plan{}, cannot(gpu.CodeInvalid, "%w", err)
	}
	if err := m.openable(ctx, w, disks); err != nil {
		return operation.Plan{}, err
	}
	id := m.cfg.Engine.NewID()
	rec := move.Record{
		Name: w.Name, Assessment: w.Assessment, Hostname: seen.Report.Hostname, Plan: w.Plan, Copy: w.Copy.Complete(),
		Actor: actor, Created: m.cfg.Now().UTC(), Operation: id, Disks: disks, Wanted: w.VM.Listed(),
		DisksFrom: w.DisksFrom, Certificates: w.Certificates,
		VM: &move.VM{UUID: m.cfg.NewUUID(), Name: cmp.Or(w.VM.Name, w.Name), Slices: slicesOf(w.Name, plan)},
	}
	if seen.Source != nil {
		rec.Source = *seen.Source
	}
	if _, err := m.definitionOf(rec, *seen.Report); err != nil {
		return operation.Plan{}, cannot(gpu.CodeInvalid, "%w", err)
	}
	args := syncArgs{Name: w.Name}
	return operation.Plan{
		ID: id, Kind: kindMigrate, Actor: actor, Summary: fmt.Sprintf("migrate %s as %s", cmp.Or(rec.Source.Address, rec.Hostname), rec.Name),
		Keys: keysOf(w, seen),
		Rows: []operation.Row{operation.Put(move.RecordMigration, w.Name, rec)},
		Steps: []operation.PlanStep{
			{Kind: stepReserve, Summary: fmt.Sprintf("define VM %s, and reserve %d partitions for it", rec.VM.Name, len(rec.VM.Slices)), Args: args},
			{Kind: stepSync, Summary: copying(rec), Args: args},
			{Kind: stepStart, Summary: "start VM " + rec.VM.Name, Args: args},
			{Kind: stepVerify, Summary: "look whether the VM is what the server was", Args: args},
		},
	}, nil
}

// diskName is what names of disks look like.
var diskName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,31}$`)

const maxDisk = 1 << 56 // bytes

// disksOf are the disks that are moved.
func disksOf(r report.Report, w assess.Wish) ([]move.Disk, error) {
	var out []move.Disk
	for _, d := range assess.Disks(r, w) {
		switch { // what the server says becomes the name of a file here
		case !diskName.MatchString(d.Name):
			return nil, fmt.Errorf("the server has a disk %q, which is no name of a disk", d.Name)
		case d.SizeBytes == 0 || d.SizeBytes > maxDisk:
			return nil, fmt.Errorf("disk %q of the server has %d bytes, which none has", d.Name, d.SizeBytes)
		case slices.ContainsFunc(out, func(o move.Disk) bool { return o.Name == d.Name }):
			return nil, fmt.Errorf("the server has two disks %q", d.Name)
		}
		out = append(out, move.Disk{Name: d.Name, ID: d.Identity(), Size: d.SizeBytes, Passes: []move.Pass{}})
	}
	for _, n := range w.Disks {
		if !slices.ContainsFunc(out, func(d move.Disk) bool { return d.Name == n }) {
			return nil, fmt.Errorf("the server has no disk %q", n)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("the server has no disk that could be moved")
	}
	return out, nil
}

// Rollback takes a move back: what was made here goes, and the source stays as it is.
func (m *Migrations) Rollback(name string) (move.Migration, error) {
	v, err := m.Migration(name)
	if err != nil {
		return v, err
	}
	if changes, err := v.Allows(move.ActRollback); err != nil || !changes {
		return v, err
	}
	if _, err := m.cfg.Engine.Abort(v.Operation); err != nil {
		return v, err
	}
	return m.Migration(name)
}

// Retry goes on with a move that waits for a person, or whose rolling back failed.
func (m *Migrations) Retry(name string) (move.Migration, error) {
	v, err := m.Migration(name)
	if err != nil {
		return v, err
	}
	if _, err := v.Allows(move.ActRetry); err != nil {
		return v, err
	}
	if _, err := m.cfg.Engine.Retry(v.Operation); err != nil {
		return v, err
	}
	return m.Migration(name)
}

// Sync asks for a pass at once.
func (m *Migrations) Sync(name string) (move.Migration, error) {
	v, err := m.Migration(name)
	if err != nil {
		return v, err
	}
	if _, err := v.Allows(move.ActSync); err != nil {
		return v, err
	}
	m.now.raise(name)
	return v, nil
}

// SetCopy changes how the disks are copied, from now on: also while a pass is under way.
func (m *Migrations) SetCopy(name string, c move.Copy) (move.Migration, error) {
	if err := c.Check(); err != nil {
		return move.Migration{}, gpu.Errorf(gpu.CodeInvalid, "cannot change migration %q: %w", name, err)
	}
	r, err := m.ask(name, move.ActChange, func(_ move.Migration, r *move.Record) error { r.Copy = c.Complete(); return nil })
	if err != nil {
		return move.Migration{}, err
	}
	m.limit(name).Set(int64(r.Copy.Bandwidth)) //nolint:gosec // Check bounds it
	m.now.raise(name)                          // another interval counts at once
	return m.view(r)
}

// ask writes down what somebody asks for, where a move as it is then allows it.
func (m *Migrations) ask(name string, a move.Act, change func(move.Migration, *move.Record) error) (move.Record, error) {
	m.saving.Lock()
	defer m.saving.Unlock()
	v, err := m.Migration(name)
	if err != nil {
		return v.Record, err
	}
	if _, err := v.Allows(a); err != nil {
		return v.Record, err
	}
	r, err := m.cfg.Store.MigrationRecord(name) // without what view has worked out
	if err == nil {
		err = change(v, &r)
	}
	if err != nil {
		return r, err
	}
	return r, m.cfg.Store.Apply(operation.Put(move.RecordMigration, name, r))
}

// Delete forgets a move that has ended. What one left here whose operation was forgotten is
// removed before.
func (m *Migrations) Delete(ctx context.Context, name string) (move.Migration, error) {
	// It says that it has ended a moment before its operation does, whose steps need it.
	if v, err := m.Migration(name); err == nil && v.Ended != "" {
		if _, err := m.cfg.Engine.Wait(ctx, v.Operation); err != nil && !errors.Is(err, operation.ErrNotFound) {
			return v, err
		}
	}
	m.saving.Lock() // of two that delete, one must not meet the next of this name
	defer m.saving.Unlock()
	v, err := m.PlanDelete(name)
	if err != nil {
		return v, err
	}
	if err := m.discardForgotten(ctx, v); err != nil {
		return v, err
	}
	m.limits.Delete(name)
	return v, m.cfg.Store.Apply(operation.Delete(move.RecordMigration, name))
}

// PlanDelete is the dry run of Delete.
func (m *Migrations) PlanDelete(name string) (move.Migration, error) {
	v, err := m.Migration(name)
	if err == nil && v.Ended == "" && !v.Abandoned {
		err = gpu.Errorf(gpu.CodeConflict, "cannot delete migration %q: it is %s", name, v.Phase).
			WithBlockers(gpu.Blocker{Kind: "operation", ID: v.Operation}).WithHint("roll it back first: gpuvirt migrate rollback %s", name)
	}
	return v, err
}

func (m *Migrations) limit(name string) *block.Limit {
	l, _ := m.limits.LoadOrStore(name, &block.Limit{})
	return l.(*block.Limit) //nolint:forcetypeassert,errcheck // nothing else is put there
}

// folder is where the mirrors of a move lie.
func (m *Migrations) folder(name string) string { return filepath.Join(m.cfg.Storage, name) }

// pause is how long from one pass to the next.
func pause(c move.Copy) time.Duration { return time.Duration(c.Interval) * time.Second }
