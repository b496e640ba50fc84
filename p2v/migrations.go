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
	"strings"
	"sync"
	"sync/atomic"
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
	cfg   Config
	looks *Assessments // that moves rest on
	now   *signals     // by name: somebody has asked for a pass, or another pace
	// tries are by name: an attempt is asked for, or what it has waited for has come. That is told before it
	// is seen, and heard no more when the attempt begins: it is no wish for a pass.
	tries   *signals
	saving  sync.Mutex
	limits  sync.Map // by name: *block.Limit
	notices notices
	passes  sync.Map // by name: *move.Progress of the pass under way
	claims  claims
	storage *storage
	// converting is held by who runs programs on disks: one at a time.
	converting chan struct{}
	trying     sync.Map // by name: the context.CancelCauseFunc of the attempt under way

	secrets passphrases
	keys    sync.Mutex // guards secrets

	leases  chan struct{} // has the leases looked at
	again   atomic.Bool   // somebody waits to have them looked at again
	leasing sync.WaitGroup
	held    sync.Map // by name: chan struct{}, which is full while its partitions change
}

// NewMigrations returns the moves of a store, which rest on assessments of the same, and registers
// their steps with the engine.
func NewMigrations(cfg Config, looks *Assessments) *Migrations {
	if cfg.Patience == (Patience{}) {
		cfg.Patience = DefaultPatience()
	}
	m := &Migrations{
		cfg: cfg, looks: looks, now: newSignals(), tries: newSignals(), claims: claims{keep: keepFree}, converting: make(chan struct{}, 1), leases: make(chan struct{}, 1), secrets: passphrases{}, notices: notices{last: map[string]notice{}},
		storage: newStorage(cfg.Storage, storageAnswers),
	}
	cfg.Engine.Handle(stepReserve, operation.Handler{Do: m.telling(m.doReserve), Undo: m.telling(m.undoReserve)})
	cfg.Engine.Handle(stepSync, operation.Handler{Do: m.telling(m.doSync), Undo: m.telling(m.undoSync)})
	cfg.Engine.Handle(stepStart, operation.Handler{Do: m.telling(m.doStart), Undo: m.telling(m.undoStart)})
	cfg.Engine.Handle(stepVerify, operation.Handler{Do: m.telling(m.doVerify)})
	return m
}

func (m *Migrations) view(r move.Record) (out move.Migration, err error) {
	r.Weigh() // it may be of a version before
	out = move.Migration{Record: r, Phase: r.Ended}
	if r.Ended != "" {
		out.Reason = afterwards(r)
		return out, nil
	}
	out.Locked = m.locked(r)
	defer func() { out.Reservation = m.asItIs(out) }()
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
		out.Phase, out.Reason = move.PhaseRollingBack, why(op)
	case operation.Undone:
		out.Phase, out.Ended = move.PhaseRolledBack, move.PhaseRolledBack
		out.Why = cmp.Or(out.Why, why(op))
		out.Reason = afterwards(out.Record)
	case operation.Failed:
		out.Phase, out.Abandoned = move.PhaseFailed, op.Forgot
		if op.Problem != nil {
			out.Reason = op.Problem.Detail
			if !op.Forgot && op.Problem.Hint != "" {
				out.Reason += "; " + op.Problem.Hint
			}
		}
	case operation.Done:
		out.Phase, out.Ended = move.PhaseDone, move.PhaseDone
	case operation.Ready, operation.Running:
		out.Phase, out.Progress = doing(r, step), m.progress(r.Name)
		if op.Abort {
			out.Phase = move.PhaseRollingBack
		}
		if a := out.Pending(); a != nil && out.Phase != move.PhaseRollingBack && out.Fence == move.FenceAsked && out.Comes() {
			out.Reason = a.Phase
		}
		if out.Phase != move.PhaseRollingBack && out.Reason == "" {
			out.Reason = out.WaitsInVain()
		}
		if len(out.Locked) > 0 && out.Phase != move.PhaseRollingBack && out.Fence == move.FenceNone {
			out.Reason = out.Unlock()
		}
	}
	if out.Ended != "" || out.Phase == move.PhaseRollingBack {
		out.Locked = nil // nobody wants a passphrase of it any more
	}
	return out, nil
}

// why is what an operation takes itself back for; empty: somebody has asked for it.
func why(op operation.Operation) string {
	if op.Problem == nil || op.Problem.Code == operation.CodeAborted {
		return ""
	}
	return op.Problem.Detail
}

// afterwards says why a move has ended that nobody has taken back, or what is left to do of one.
func afterwards(r move.Record) string {
	switch {
	case r.Ended != move.PhaseRolledBack || r.Fence == move.FenceNone:
		return r.Why
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
	case r.Heard.IsZero() && r.VM != nil:
		return move.PhaseReserved
	case r.Heard.IsZero(): // there is nothing to reserve
		return move.PhasePlanned
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
	return m.plan(ctx, *r.Report, planned(w.Plan, w.VM, w.Keys))
}

// PlanOf says how a move is carried out on this host as it is now, with the partitions that are
// reserved for its VM.
func (m *Migrations) PlanOf(ctx context.Context, name string) (assess.Plan, error) {
	rec, err := m.cfg.Store.MigrationRecord(name)
	if err != nil {
		return assess.Plan{}, err
	}
	seen, err := m.inspected(rec.Assessment)
	if err != nil {
		return assess.Plan{}, err
	}
	return m.planOf(ctx, rec, *seen.Report)
}

func (m *Migrations) planOf(ctx context.Context, rec move.Record, r report.Report) (assess.Plan, error) {
	w := planned(rec.Plan, rec.Wanted, rec.Keys)
	w.Reserved = reservedFor(rec)
	return m.plan(ctx, r, w)
}

// heldPlan is the plan of a move whose VM has its partitions, all of which this host has to know: what
// the guest needs follows from them.
func (m *Migrations) heldPlan(ctx context.Context, rec move.Record, r report.Report) (assess.Plan, error) {
	plan, err := m.planOf(ctx, rec, r)
	if err != nil {
		return plan, err
	}
	if known := len(slicesOf(rec.Name, plan)); known != len(rec.VM.Slices) {
		return plan, gpu.Errorf(gpu.CodeUnavailable, "cannot tell what the guest needs for its GPU: of the VM's %s this host knows %d now",
			assess.Count(len(rec.VM.Slices), "partition", "partitions"), known).WithHint("see: gpuvirt profile list")
	}
	return plan, nil
}

func (m *Migrations) plan(ctx context.Context, r report.Report, w assess.Wish) (assess.Plan, error) {
	host, err := m.hostState(ctx)
	if err != nil {
		return assess.Plan{}, err
	}
	host.Brought = m.brought(r.OS, w)
	return assess.NewPlan(r, w, host, m.cfg.policy(), m.cfg.drivers()), nil
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
	state.DiskKept = uint64(m.claims.keep) //nolint:gosec // keepFree
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
	seen, err := m.check(ctx, w)
	if err != nil {
		return operation.Operation{}, err
	}
	plan, err := m.draft(ctx, actor, w, seen)
	if err != nil {
		return operation.Operation{}, err
	}
	m.cfg.remember(&plan, idem)
	m.saving.Lock() // what was planned takes a while, and another may have been there first
	defer m.saving.Unlock()
	if op, err := m.cfg.before(idem, what); op != nil || err != nil {
		return *cmp.Or(op, &operation.Operation{}), err
	}
	return m.add(ctx, w, seen, plan)
}

// Refusal says why Create would refuse a wish for another reason than what its plan says;
// nil: for none. A wish may have no name yet.
func (m *Migrations) Refusal(ctx context.Context, w move.Wish) error {
	seen, err := m.check(ctx, w)
	if err != nil {
		return err
	}
	plan, err := m.plan(ctx, *seen.Report, planned(w.Plan, w.VM, w.Keys))
	if err != nil {
		return err
	}
	if _, err := m.granted(ctx, "", w, seen, plan); err != nil {
		return err
	}
	return m.moved(w, m.cfg.Engine.Held(keysOf(w, seen)...))
}

// serverKey begins the key of a server that is moved.
const serverKey = "server/"

// moved names the migration where a server is held by one already, and else says what it is told.
func (m *Migrations) moved(w move.Wish, err error) error {
	held, is := errors.AsType[*operation.ConflictError](err)
	if !is || !strings.HasPrefix(held.Key, serverKey) {
		return err
	}
	all, listErr := m.cfg.Store.MigrationRecords()
	i := slices.IndexFunc(all, func(r move.Record) bool { return r.Operation == held.Holder })
	if i < 0 {
		return errors.Join(err, listErr)
	}
	name := all[i].Name
	return gpu.Errorf(gpu.CodeConflict, "%s: migration %s moves this server", cannotMigrate(w), name).
		WithBlockers(gpu.Blocker{Kind: move.RecordMigration, ID: name}).
		WithHint("see how far it is: gpuvirt migrate show %s; or take it back first: gpuvirt migrate rollback %s", name, name)
}

// cannotMigrate begins what refuses a wish, which may have no name yet.
func cannotMigrate(w move.Wish) string {
	if w.Name == "" {
		return fmt.Sprintf("cannot migrate the server of assessment %q", w.Assessment)
	}
	return fmt.Sprintf("cannot migrate %q", w.Name)
}

// keysOf are what nobody else may work on meanwhile. One server is moved once at a time,
// whatever the move is called.
func keysOf(w move.Wish, r report.AssessmentRecord) []string {
	address := ""
	if r.Source != nil {
		address = r.Source.Address
	}
	return []string{move.RecordMigration + "/" + w.Name, serverKey + cmp.Or(r.Report.OS.MachineID, address, r.Report.Hostname, r.Name)}
}

// add begins a move whose name nobody has taken while it was planned, and whose assessment is
// there still.
func (m *Migrations) add(ctx context.Context, w move.Wish, seen report.AssessmentRecord, plan operation.Plan) (operation.Operation, error) {
	if err := m.free(ctx, w.Name); err != nil {
		return operation.Operation{}, err
	}
	m.looks.saving.Lock() // who deletes it meets the move, or we do not meet it
	defer m.looks.saving.Unlock()
	switch now, err := m.inspected(seen.Name); {
	case err != nil:
		return operation.Operation{}, err
	case !now.Created.Equal(seen.Created):
		return operation.Operation{}, gpu.Errorf(gpu.CodeConflict, "cannot migrate %q: assessment %q is another now than it was planned with", w.Name, seen.Name).
			WithHint("look at it, and ask again")
	}
	m.keep(w.Name, w.Keys) // before it can end
	op, err := m.cfg.Engine.Add(ctx, plan)
	if err != nil {
		m.drop(w.Name)
	}
	return op, m.moved(w, err)
}

// free refuses a name that there is a move of.
func (m *Migrations) free(ctx context.Context, name string) error {
	_, err := m.cfg.Store.MigrationRecord(name)
	switch {
	case err == nil:
		return gpu.Errorf(gpu.CodeConflict, "cannot migrate %q: there is a migration of this name", name).WithHint("delete it when it has ended, or use another name")
	case gpu.CodeOf(err) != gpu.CodeNotFound:
		return err
	}
	if err := m.storage.usable(ctx); err != nil {
		return gpu.Errorf(gpu.CodeConflict, "cannot migrate %q: %w", name, err).WithHint("p2v.mirrors has to be a folder, or a name that there is none of yet")
	}
	// A VM may have its disks there, of a move that was done and deleted.
	switch _, err := os.Lstat(m.folder(name)); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return gpu.Errorf(gpu.CodeConflict, "cannot migrate %q: %w", name, err)
	default:
		return gpu.Errorf(gpu.CodeConflict, "cannot migrate %q: there is a folder %q, which may hold disks of a VM", name, m.folder(name)).
			WithHint("use another name, or remove the folder if nothing in it is in use")
	}
	return nil
}

// Problems says what is wrong with where mirrors are kept.
func (m *Migrations) Problems(ctx context.Context) []string {
	if err := m.storage.usable(ctx); err != nil {
		return []string{err.Error()}
	}
	return nil
}

// check returns the assessment of a wish that can be granted as far as is known without a
// plan.
func (m *Migrations) check(ctx context.Context, w move.Wish) (report.AssessmentRecord, error) {
	cannot := func(code gpu.Code, format string, args ...any) *gpu.Error {
		return gpu.Errorf(code, "%s: "+format, append([]any{cannotMigrate(w)}, args...)...)
	}
	if w.Name != "" {
		if err := m.free(ctx, w.Name); err != nil {
			return report.AssessmentRecord{}, err
		}
		if w.Name != filepath.Base(w.Name) || !filepath.IsLocal(w.Name) {
			return report.AssessmentRecord{}, cannot(gpu.CodeInvalid, "it would be no name of a folder")
		}
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
	if err := errors.Join(w.Copy.Check(), w.VM.Check(), leaseCheck(w.Lease), move.CheckKeys(w.Keys), move.CheckFrom(w.DisksFrom, w.Certificates)); err != nil {
		return seen, cannot(gpu.CodeInvalid, "%w", err)
	}
	for _, v := range w.Plan.Waivers {
		if !slices.ContainsFunc(assess.Catalogue(), func(r assess.Rule) bool { return r.ID == v.ID }) {
			return seen, cannot(gpu.CodeInvalid, "there is nothing called %q that could be waived", v.ID).
				WithHint("the plan names what can: gpuvirt migrate plan --assessment %s", w.Assessment)
		}
	}
	return seen, m.profiles(ctx, w)
}

func (m *Migrations) draft(ctx context.Context, actor string, w move.Wish, seen report.AssessmentRecord) (operation.Plan, error) {
	plan, err := m.plan(ctx, *seen.Report, planned(w.Plan, w.VM, w.Keys))
	if err != nil {
		return operation.Plan{}, err
	}
	if plan.Verdict.State == assess.Blocked {
		refusal := gpu.Errorf(gpu.CodeConflict, "%s: %s", cannotMigrate(w), plan.Verdict.Text).
			WithHint("see the plan: each blocker has its remedy, or can be waived by name with a reason")
		for _, c := range plan.Verdict.Blockers {
			refusal = refusal.WithBlockers(gpu.Blocker{Kind: "concern", ID: c.ID, Name: c.Title})
		}
		return operation.Plan{}, refusal
	}
	rec, err := m.granted(ctx, actor, w, seen, plan)
	if err != nil {
		return operation.Plan{}, err
	}
	args := syncArgs{Name: w.Name}
	return operation.Plan{
		ID: rec.Operation, Kind: kindMigrate, Actor: actor, Summary: fmt.Sprintf("migrate %s as %s", cmp.Or(rec.Source.Address, rec.Hostname), rec.Name),
		Keys: keysOf(w, seen),
		Rows: []operation.Row{operation.Put(move.RecordMigration, w.Name, rec)},
		Steps: []operation.PlanStep{
			{Kind: stepReserve, Summary: reserving(*rec.VM), Args: args},
			{Kind: stepSync, Summary: copying(rec), Args: args},
			{Kind: stepStart, Summary: "start VM " + rec.VM.Name, Args: args},
			{Kind: stepVerify, Summary: "look whether the VM is what the server was", Args: args},
		},
	}, nil
}

// granted is the record of a move that begins: nothing but its plan is in the way.
func (m *Migrations) granted(ctx context.Context, actor string, w move.Wish, seen report.AssessmentRecord, plan assess.Plan) (move.Record, error) {
	cannot := func(err error) (move.Record, error) {
		return move.Record{}, gpu.Errorf(gpu.CodeInvalid, "%s: %w", cannotMigrate(w), err)
	}
	disks, err := disksOf(*seen.Report, w.Plan)
	if err != nil {
		return cannot(err)
	}
	if err := keysFit(w, *seen.Report, disks); err != nil {
		return move.Record{}, err
	}
	if err := m.openable(ctx, w, disks); err != nil {
		return move.Record{}, err
	}
	rec := move.Record{
		Name: w.Name, Assessment: w.Assessment, Hostname: seen.Report.Hostname, Plan: w.Plan, Copy: w.Copy.Complete(),
		Actor: actor, Created: m.cfg.Now().UTC(), Operation: m.cfg.Engine.NewID(), Disks: disks, Wanted: w.VM.Listed(),
		DisksFrom: w.DisksFrom, Certificates: w.Certificates, Keys: w.Keys, SeenIn: seen.Report.OS.BootID,
		VM: &move.VM{UUID: m.cfg.NewUUID(), Name: cmp.Or(w.VM.Name, w.Name, w.Assessment), Slices: slicesOf(w.Name, plan)},
	}
	if seen.Source != nil {
		rec.Source = *seen.Source
	}
	if len(rec.VM.Slices) > 0 {
		rec.Reservation = m.reservation(w.Lease)
	}
	doc, err := m.definitionOf(rec, *seen.Report)
	if err != nil {
		return cannot(err)
	}
	if err := m.cfg.VMs.Fits(ctx, doc); err != nil && gpu.CodeOf(err) != gpu.CodeUnavailable { // which is seen when it is defined
		return rec, gpu.Wrap(err, gpu.CodeUnavailable, "%s", cannotMigrate(w))
	}
	return rec, m.untaken(ctx, w, rec)
}

// untaken refuses names that others have: of the VM to be, and of the assignments that will hold its partitions.
// What cannot be seen now is met when they are made.
func (m *Migrations) untaken(ctx context.Context, w move.Wish, rec move.Record) error {
	taken := func(kind, id, name, text string) *gpu.Error {
		return gpu.Errorf(gpu.CodeConflict, "%s: %s", cannotMigrate(w), text).WithBlockers(gpu.Blocker{Kind: kind, ID: id, Name: name})
	}
	if w.Name == "" && w.VM.Name == "" {
		return nil // they are not known yet
	}
	if vm, err := m.cfg.VMs.VM(ctx, rec.VM.Name); err == nil {
		return taken("vm", vm.UUID, rec.VM.Name, fmt.Sprintf("there is a VM %q already", rec.VM.Name)).WithHint("have it named otherwise: --vm NAME")
	}
	for _, s := range rec.VM.Slices {
		if _, err := m.cfg.Assignments.AssignmentWish(s.Assignment); w.Name != "" && err == nil {
			return taken("assignment", s.Assignment, "", fmt.Sprintf("there is an assignment %q already", s.Assignment)).WithHint("use another name for the migration")
		}
	}
	return nil
}

// profiles refuses names of profiles that no GPU of this host has, where all of them are known.
func (m *Migrations) profiles(ctx context.Context, w move.Wish) error {
	asked := slices.DeleteFunc(slices.Clone(w.Plan.Partitions), func(p assess.WishPartition) bool { return p.Profile == "" })
	if len(asked) == 0 {
		return nil
	}
	gpus, err := m.cfg.Host.GPUs(ctx)
	if err != nil {
		return err
	}
	var known []string
	for _, g := range gpus {
		profiles, blind, err := m.cfg.Host.Profiles(ctx, g.ID)
		if err != nil || blind != nil {
			return nil //nolint:nilerr // it may have it: the plan says what is not known
		}
		for _, p := range profiles {
			known = append(known, p.Name)
		}
	}
	slices.Sort(known)
	known = slices.Compact(known)
	for _, p := range asked {
		if len(known) == 0 || slices.Contains(known, p.Profile) {
			continue
		}
		const few = 8
		names := strings.Join(known[:min(few, len(known))], ", ")
		if more := len(known) - few; more > 0 {
			names += fmt.Sprintf(", and %d more", more)
		}
		return gpu.Errorf(gpu.CodeInvalid, "%s: there is no profile %q on this host", cannotMigrate(w), p.Profile).
			WithHint("there are %s: gpuvirt profile list", names)
	}
	return nil
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
		self, alike := report.Here{ID: d.Identity(), SizeBytes: d.SizeBytes}, 0
		for _, other := range r.Disks {
			if other.Name != d.Name && twins(self, report.Here{ID: other.Identity(), SizeBytes: other.SizeBytes}) {
				alike++
			}
		}
		out = append(out, move.Disk{Name: d.Name, ID: self.ID, Size: d.SizeBytes, Twins: alike, Passes: []move.Pass{}})
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
	r, err := m.ask(name, move.ActRetry, func(move.Migration, *move.Record) error { return nil })
	if err != nil {
		return move.Migration{}, err
	}
	if _, err := m.cfg.Engine.Retry(r.Operation); err != nil {
		return move.Migration{}, err
	}
	return m.Migration(name)
}

// Sync asks for a pass at once.
func (m *Migrations) Sync(name string) (move.Migration, error) {
	r, err := m.ask(name, move.ActSync, func(move.Migration, *move.Record) error { return nil })
	if err != nil {
		return move.Migration{}, err
	}
	m.now.raise(name)
	return m.view(r)
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
	r.Reservation.Renew(m.cfg.Now())
	if err = m.cfg.Store.Apply(operation.Put(move.RecordMigration, name, r)); err == nil {
		m.notice(name)
	}
	return r, err
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
	m.held.Delete(name)
	m.drop(name)
	if err = m.cfg.Store.Apply(operation.Delete(move.RecordMigration, name)); err == nil {
		m.notice(name) // the next of this name is another
	}
	return v, err
}

// PlanDelete is the dry run of Delete.
func (m *Migrations) PlanDelete(name string) (move.Migration, error) {
	v, err := m.Migration(name)
	switch {
	case err != nil || v.Ended != "" || v.Abandoned:
	case v.Phase == move.PhaseFailed:
		err = gpu.Errorf(gpu.CodeConflict, "cannot delete migration %q: it could not be taken back: %s", name, v.Reason).
			WithBlockers(gpu.Blocker{Kind: "operation", ID: v.Operation}).WithHint("when that is mended: gpuvirt migrate retry %s", name)
	default:
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
