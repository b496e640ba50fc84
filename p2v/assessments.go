// Package p2v moves GPU workloads from physical servers into VMs. A server is looked at, over
// ssh or from a file that was carried here, and its GPUs are watched for a while. Its VM is
// defined with the partitions that are reserved for it, and its disks are copied while it
// runs. The VM is rehearsed on a copy. Then the server is brought to rest and powered off, and
// its VM starts and is looked at. Until it is off the server is only read.
package p2v

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/atrest"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/guest"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
)

// The kind of operation that looks at a server, and of its one step.
const (
	kindAssess  = "assessment.create"
	stepInspect = "assessment.inspect"
)

// Limits of an assessment.
const (
	MaxWindow       = 60 * 24 * time.Hour
	MinInterval     = time.Second
	MaxInterval     = 10 * time.Second
	DefaultInterval = 5 * time.Second

	mostAssessments = 200
	mostSaved       = 10 * time.Second // between two times that what was seen is stored
)

// Store is where assessments are kept.
type Store interface {
	AssessmentRecords() ([]report.AssessmentRecord, error)
	AssessmentRecord(name string) (report.AssessmentRecord, error)
	MigrationRecords() ([]move.Record, error)
	MigrationRecord(name string) (move.Record, error)
	IdempotencyRecord(key string) (gpu.IdempotencyRecord, error)
	Apply(rows ...operation.Row) error
}

// Server is a server that is reached. Its errors are *gpu.Error where their kind matters:
// gpu.CodeUnavailable may pass by itself.
type Server interface {
	// Place puts a program into the server's memory, in a folder of its own.
	Place(ctx context.Context, id string, program io.Reader, size int64) (folder string, err error)
	// Unplace removes what a Place with this id put there, whole or half.
	Unplace(ctx context.Context, id string) error
	Run(ctx context.Context, stdin io.Reader, stdout io.Writer, program string, args ...string) error
	// Open starts a program that is spoken with.
	Open(ctx context.Context, program string, args ...string) (io.ReadWriteCloser, error)
	Close() error
}

// Converter makes disks that a VM boots from, as convert.Converter does.
type Converter interface {
	Probe(ctx context.Context) (convert.Tools, error)
	Overlay(ctx context.Context, mirror, path string) (convert.Overlay, error)
	Customize(ctx context.Context, job convert.Job, edits []convert.Edit) (convert.Result, error)
	Convert(ctx context.Context, job convert.Job) (convert.Result, error)
}

// Inspector is the program that looks at a server from within.
type Inspector interface {
	io.ReadCloser
	Size() int64
}

// Patience says for how long a server that is not reached is tried again.
type Patience struct {
	Pause time.Duration // between two tries
	First time.Duration // before anything was heard of it
	Later time.Duration // since it was heard of last: a reboot, a cut network
	Sync  time.Duration // the same, of a move, until a person is asked
	Cut   time.Duration // that nothing comes of a disk by any connection, until the source is reached anew
	Undo  time.Duration // for taking away what is left on it

	Lease time.Duration // between two looks at leases of partitions

	Off   time.Duration // until a server that was told to power off does not answer any more
	Leave time.Duration // until a server that came to us, and was told that it is done, is powered off

	// Of a VM that was started: until its agent answers, and then until all is there.
	Boot, Settle time.Duration
}

// DefaultPatience is right for a server room.
func DefaultPatience() Patience {
	return Patience{
		Pause: 5 * time.Second, First: 30 * time.Second, Later: 30 * time.Minute, Sync: 24 * time.Hour, Cut: 30 * time.Second, Undo: 30 * time.Second,
		Lease: time.Minute,
		Off:   time.Minute, Leave: 10 * time.Minute, Boot: 5 * time.Minute, Settle: 10 * time.Minute, // an emulated one takes minutes
	}
}

// Config is what New and NewMigrations need.
type Config struct {
	Store    Store
	Engine   *operation.Engine
	Log      *slog.Logger
	Now      func() time.Time
	Dial     func(context.Context, report.Source) (Server, error)
	Open     func() (Inspector, error)
	Patience Patience // zero: DefaultPatience

	// Of moves only.
	// DialAtRest opens the disks of a server that is off, with the certificates of a name.
	DialAtRest func(ctx context.Context, disks []atrest.Disk, certificates string) (Server, error)
	// Arrivals are the servers that come to us; nil: none does.
	Arrivals *Arrivals
	// Answers tells whether a machine answers at an address, as virtp2v.Answers does.
	Answers     func(ctx context.Context, at netip.Addr) bool
	Host        Host
	Facts       func() assess.HostState // what this host has beside GPUs
	Storage     string                  // folder of the mirrors
	VMs         VMs
	Mark        func(doc, mark string) (string, error) // as vmapi.Marked
	Assignments Assignments
	Converter   Converter
	NewUUID     func() string
	// Secret reads a file of the folder of credentials.
	Secret func(name string) ([]byte, error)
	// Policy are the figures that are assumed, nil or zero: the defaults; and Drivers which drivers
	// go together, nil: what is built in. Both are asked each time.
	Policy  func() assess.Policy
	Drivers func() assess.Drivers
	// Lease is for how long partitions are kept where a request does not say; nil or 0: until the move ends.
	Lease func() time.Duration
	// Tell has everybody told what has happened, as host.Host does; nil: nobody is.
	Tell func(typ, object string, detail map[string]string)
	// Guest tells what operators bring for a guest; nil: nothing.
	Guest func(report.OS, assess.Wish) (guest.Options, error)
}

func (c Config) policy() assess.Policy {
	if c.Policy == nil {
		return assess.Policy{}
	}
	return c.Policy()
}

func (c Config) drivers() assess.Drivers {
	if c.Drivers == nil {
		return assess.BuiltInDrivers()
	}
	return c.Drivers()
}

// Policy returns the figures that are assumed; a zero one stands for its default.
func (a *Assessments) Policy() assess.Policy { return a.cfg.policy() }

// Assessments are the looks at servers. Its methods may be called concurrently.
type Assessments struct {
	cfg    Config
	saving sync.Mutex // of a record that is looked at and then written, or that a migration comes to rest on
	enough *signals   // by name: somebody has asked that the watching end
}

// New returns the assessments of a store, and registers their step with the engine.
func New(cfg Config) *Assessments {
	if cfg.Patience == (Patience{}) {
		cfg.Patience = DefaultPatience()
	}
	a := &Assessments{cfg: cfg, enough: newSignals()}
	cfg.Engine.Handle(stepInspect, operation.Handler{Do: a.doInspect, Undo: a.undoInspect})
	return a
}

// Assessments lists them, sorted by name.
func (a *Assessments) Assessments() ([]report.AssessmentRecord, error) {
	return a.cfg.Store.AssessmentRecords()
}

// Assessment returns one; without one the error has gpu.CodeNotFound.
func (a *Assessments) Assessment(name string) (report.AssessmentRecord, error) {
	return a.cfg.Store.AssessmentRecord(name)
}

// Create begins to look at a server, and returns the operation that does; of a report it
// keeps the assessment at once, and the operation is nil. The same Idempotency-Key with the
// same request answers what it began before.
func (a *Assessments) Create(ctx context.Context, actor string, w report.Wish, idem gpu.Idempotency) (report.AssessmentRecord, *operation.Operation, error) {
	a.saving.Lock() // of two that ask at once, for a name or under a key, the second sees the first
	defer a.saving.Unlock()
	if op, err := a.cfg.before(idem, "assess"); err != nil {
		return report.AssessmentRecord{}, nil, err
	} else if op != nil {
		rec, err := a.cfg.Store.AssessmentRecord(w.Name)
		if w.Report == nil && gpu.CodeOf(err) == gpu.CodeNotFound {
			err = nil // it came to nothing: the operation says why
		}
		return rec, op, err
	}
	rec, err := a.draft(actor, w)
	if err != nil {
		return rec, nil, err
	}
	plan := planOf(rec)
	plan.Actor, plan.ID = actor, a.cfg.Engine.NewID()
	if rec.Source != nil {
		rec.Operation = plan.ID
	}
	plan.Rows = []operation.Row{operation.Put(report.RecordAssessment, rec.Name, rec)}
	a.cfg.remember(&plan, idem)
	op, err := a.cfg.Engine.Add(ctx, plan)
	if err != nil {
		return rec, nil, err
	}
	return rec, &op, nil
}

// Plan is the dry run of Create. It asks nobody.
func (a *Assessments) Plan(w report.Wish) (gpu.Plan, error) {
	rec, err := a.draft("", w)
	plan := planOf(rec)
	out := gpu.Plan{Summary: plan.Summary, Changes: true, Steps: []gpu.PlanStep{}}
	if err == nil {
		err = a.cfg.Engine.Held(plan.Keys...)
	}
	if err != nil {
		out.Refusal, out.Changes = err, false
		return out, nil
	}
	for _, s := range plan.Steps {
		out.Steps = append(out.Steps, gpu.PlanStep{Kind: s.Kind, Summary: s.Summary})
	}
	return out, nil
}

func key(name string) string { return report.RecordAssessment + "/" + name }

// draft is the record of a wish that can be granted.
func (a *Assessments) draft(actor string, w report.Wish) (report.AssessmentRecord, error) {
	now := a.cfg.Now().UTC()
	rec := report.AssessmentRecord{Name: w.Name, Actor: actor, Created: now, Report: w.Report, State: report.StateDone}
	cannot := func(code gpu.Code, format string, args ...any) *gpu.Error {
		return gpu.Errorf(code, "cannot make assessment %q: "+format, append([]any{w.Name}, args...)...)
	}
	switch _, err := a.cfg.Store.AssessmentRecord(w.Name); {
	case err == nil:
		return rec, cannot(gpu.CodeConflict, "there is one of this name").WithHint("delete it first, or use another name")
	case gpu.CodeOf(err) != gpu.CodeNotFound:
		return rec, err
	}
	if all, err := a.cfg.Store.AssessmentRecords(); err != nil {
		return rec, err
	} else if len(all) >= mostAssessments {
		return rec, cannot(gpu.CodeConflict, "there are %d already", len(all)).WithHint("delete those that are not needed any more")
	}
	switch {
	case (w.Source == nil) == (w.Report == nil):
		return rec, cannot(gpu.CodeInvalid, "it takes either a source or an inspection")
	case w.Report != nil && (w.Window != 0 || w.Interval != 0):
		return rec, cannot(gpu.CodeInvalid, "an inspection that was made already is not watched any more: window and interval are for a source")
	case w.Report != nil:
		rec.Heard = w.Report.Taken
		return rec, nil
	case w.Window < 0 || w.Window > MaxWindow:
		return rec, cannot(gpu.CodeInvalid, "a window of %s: it must be up to %s", w.Window, MaxWindow)
	case w.Interval != 0 && (w.Interval < MinInterval || w.Interval > MaxInterval):
		return rec, cannot(gpu.CodeInvalid, "an interval of %s: it must be %s to %s", w.Interval, MinInterval, MaxInterval)
	}
	source, err := w.Source.Complete()
	if err != nil {
		return rec, cannot(gpu.CodeInvalid, "%w", err)
	}
	rec.Source, rec.State = &source, report.StateInspecting
	if w.Window > 0 {
		rec.Window, rec.Interval = int(w.Window.Seconds()), int(cmp.Or(w.Interval, DefaultInterval).Seconds())
	}
	return rec, nil
}

func planOf(rec report.AssessmentRecord) operation.Plan {
	p := operation.Plan{Kind: kindAssess, Summary: "assess an inspection as " + rec.Name, Keys: []string{key(rec.Name)}}
	if rec.Source == nil {
		return p
	}
	p.Summary = fmt.Sprintf("assess %s as %s", rec.Source.Address, rec.Name)
	look := "look at the server"
	if rec.Window > 0 {
		look += fmt.Sprintf(", and watch its GPUs for %s", time.Duration(rec.Window)*time.Second)
	}
	p.Steps = []operation.PlanStep{{Kind: stepInspect, Summary: look, Args: inspectArgs{Name: rec.Name}}}
	p.Release = []operation.Row{operation.Delete(report.RecordAssessment, rec.Name)}
	return p
}

// Finish ends the watching of a server early; what was seen is kept. It is fine where it has
// ended already, and refused where nothing was seen of the server yet.
func (a *Assessments) Finish(name string) (report.AssessmentRecord, error) {
	a.saving.Lock()
	defer a.saving.Unlock()
	rec, err := a.cfg.Store.AssessmentRecord(name)
	switch {
	case err != nil || rec.State == report.StateDone:
		return rec, err
	case rec.Report == nil:
		return rec, gpu.Errorf(gpu.CodeConflict, "cannot finish assessment %q: nothing was seen of the server yet", name).
			WithBlockers(gpu.Blocker{Kind: "operation", ID: rec.Operation}).WithHint("abort the operation instead: gpuvirt operation abort %s", rec.Operation)
	}
	rec.Enough = true
	if err := a.cfg.Store.Apply(operation.Put(report.RecordAssessment, name, rec)); err != nil {
		return rec, err
	}
	a.enough.raise(name)
	return rec, nil
}

// Delete forgets an assessment. One that is under way is refused with what holds it.
func (a *Assessments) Delete(name string) (report.AssessmentRecord, error) {
	a.saving.Lock() // of two that delete, one must not meet the next of this name
	defer a.saving.Unlock()
	rec, err := a.PlanDelete(name)
	if err != nil {
		return rec, err
	}
	return rec, a.cfg.Store.Apply(operation.Delete(report.RecordAssessment, name))
}

// PlanDelete is the dry run of Delete.
func (a *Assessments) PlanDelete(name string) (report.AssessmentRecord, error) {
	rec, err := a.cfg.Store.AssessmentRecord(name)
	if err != nil {
		return rec, err
	}
	if err := a.cfg.Engine.Held(key(name)); err != nil {
		return rec, err
	}
	return rec, a.cfg.inUse(name)
}
