package p2v

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/report"
)

// inspectArgs are the arguments of assessment.inspect.
type inspectArgs struct {
	Name string `json:"name"`
}

// A visit is one connection to a server, from when it is reached until it is left.
type visit struct {
	a      *Assessments
	task   *operation.Task
	rec    report.AssessmentRecord
	usage  report.Usage // of earlier visits and this one
	saved  time.Time
	server Server
	failed error // to store what was seen
}

// Slack is what an inspector may take beyond its window until it is given up.
const slack = 10 * time.Minute

var (
	errDraining = errors.New("the daemon ends: it goes on after the next start")
	errEnough   = errors.New("somebody has asked for it")
	errSaid     = errors.New("nothing more is heard of it")
)

// doInspect looks at the server, and goes on watching where an earlier visit was cut.
func (a *Assessments) doInspect(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var args inspectArgs
	if err := t.Args(&args); err != nil {
		return nil, err
	}
	rec, err := a.cfg.Store.AssessmentRecord(args.Name)
	if err != nil || rec.State == report.StateDone {
		return nil, err
	}
	if left(rec) > 0 {
		rec, err = a.visit(ctx, t, rec)
	}
	switch {
	case context.Cause(ctx) != nil:
		return nil, context.Cause(ctx)
	case errors.Is(err, errDraining):
		return nil, &operation.RetryError{After: a.cfg.Patience.Pause, Err: err}
	case passing(err) && a.cfg.Now().Sub(heard(rec)) < a.patience(rec):
		return nil, &operation.RetryError{After: a.cfg.Patience.Pause, Err: err}
	case err != nil && rec.Report == nil:
		return nil, err // nothing is left on the server, or nobody gets there
	case err != nil:
		// What was seen of it until then is worth keeping.
		t.Logf("the watching ended early: %v", err)
		unseen(rec.Report, "usage", fmt.Sprintf("it ended %s early: %v", left(rec).Round(time.Second), err))
	case rec.Enough && left(rec) > 0:
		unseen(rec.Report, "usage", fmt.Sprintf("it was ended %s early on request", left(rec).Round(time.Second)))
	}
	// Not with the step's end: who asks for an early end looks at the state and writes.
	rec.State = report.StateDone
	a.saving.Lock()
	defer a.saving.Unlock()
	if err := a.cfg.Store.Apply(operation.Put(report.RecordAssessment, rec.Name, rec)); err != nil {
		// A step that fails takes the assessment back, with what was seen for days.
		return nil, &operation.RetryError{After: a.cfg.Patience.Pause, Err: err}
	}
	return nil, nil
}

// undoInspect takes away what an aborted look left in the server's memory, if it can be
// reached: what is there is gone with the next reboot.
func (a *Assessments) undoInspect(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	var args inspectArgs
	if err := t.Args(&args); err != nil {
		return nil, err
	}
	rec, err := a.cfg.Store.AssessmentRecord(args.Name)
	if err != nil || rec.Source == nil {
		return nil, err
	}
	a.cfg.sweep(ctx, t, *rec.Source)
	return nil, nil
}

// sweep takes away what a step left in a server's memory, if that can be reached now. It does
// not hold up what it is part of.
func (c *Config) sweep(ctx context.Context, t *operation.Task, from report.Source) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(c.Patience.Undo, DefaultPatience().Undo))
	defer cancel()
	server, err := c.Dial(ctx, from)
	if err == nil {
		err = errors.Join(server.Unplace(ctx, t.Operation().ID), server.Close())
	}
	if err != nil {
		t.Logf(leftThere, err)
	}
}

const leftThere = "the inspector may still be in the server's memory, until it is started again: %v"

// left is for how long a server is still to be watched; where nothing was seen of it yet it
// is never zero.
func left(rec report.AssessmentRecord) time.Duration {
	window := time.Duration(rec.Window) * time.Second
	if rec.Report == nil {
		return max(window, 1)
	}
	return max(0, window-time.Duration(rec.Watched()*float64(time.Second)))
}

func heard(rec report.AssessmentRecord) time.Time {
	if rec.Heard.IsZero() {
		return rec.Created
	}
	return rec.Heard
}

func (a *Assessments) patience(rec report.AssessmentRecord) time.Duration {
	if rec.Report == nil {
		return a.cfg.Patience.First
	}
	return a.cfg.Patience.Later
}

// passing reports whether a failure may pass by itself: a server that is not there, or a
// connection that was cut.
func passing(err error) bool {
	return err != nil && (gpu.CodeOf(err) == gpu.CodeUnavailable || errors.Is(err, io.ErrUnexpectedEOF))
}

// visit reaches the server, has it looked at and watched, and leaves nothing there. The
// record that it returns has all that was seen, also with an error.
func (a *Assessments) visit(ctx context.Context, t *operation.Task, rec report.AssessmentRecord) (_ report.AssessmentRecord, err error) {
	rec, raised, err := a.listen(rec.Name)
	if err != nil || rec.Enough && rec.Report != nil {
		return rec, err
	}
	ctx, stop := unless(ctx, t, raised, errEnough)
	defer stop()

	v := &visit{a: a, task: t, rec: rec}
	if rec.Report != nil && rec.Report.Usage != nil {
		v.usage = *rec.Report.Usage
	}
	err = v.run(ctx)
	if saveErr := v.save(true); saveErr != nil {
		return v.rec, saveErr
	}
	switch {
	case errors.Is(err, errEnough):
		v.rec.Enough = true
		return v.rec, nil
	case err != nil && errors.Is(context.Cause(ctx), errDraining):
		return v.rec, errDraining
	}
	return v.rec, err
}

// listen returns the record, and what is closed when somebody has enough from now on. The
// record tells of before: a signal may be left of an earlier assessment of this name.
func (a *Assessments) listen(name string) (report.AssessmentRecord, <-chan struct{}, error) {
	a.saving.Lock() // Finish writes and raises under it
	defer a.saving.Unlock()
	rec, err := a.cfg.Store.AssessmentRecord(name)
	if err != nil {
		return rec, nil, err
	}
	_, forget := a.enough.raised(name)
	forget()
	raised, _ := a.enough.raised(name)
	return rec, raised, nil
}

func (v *visit) run(ctx context.Context) (err error) {
	if v.server, err = v.a.cfg.Dial(ctx, *v.rec.Source); err != nil {
		return err
	}
	defer func() { _ = v.server.Close() }()
	program, err := v.a.cfg.Open()
	if err != nil {
		return err
	}
	defer program.Close() //nolint:errcheck // it was only read
	// It goes also where the look was broken off, and where it came only half.
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := v.server.Unplace(ctx, v.task.Operation().ID); err != nil {
			v.task.Logf(leftThere, err)
		}
	}()
	folder, err := place(ctx, v.server, v.task.Operation().ID, program)
	if err != nil {
		return err
	}
	return v.inspect(ctx, folder)
}

// placing is how long it may take to bring the inspector.
const placing = 10 * time.Minute

// place brings the inspector. It does not wait for ever for a server that takes it and is
// never done.
func place(ctx context.Context, s Server, id string, program Inspector) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, placing, gpu.Errorf(gpu.CodeUnavailable, "cannot bring the inspector: it is not there after %s", placing))
	defer cancel()
	return s.Place(ctx, id, program, program.Size())
}

// inspect runs the inspector and hears what it says, to its end.
func (v *visit) inspect(ctx context.Context, folder string) error {
	window := left(v.rec)
	ctx, cancel := context.WithTimeoutCause(ctx, window+slack,
		gpu.Errorf(gpu.CodeUnavailable, "cannot assess: the inspector is %s late", slack))
	defer cancel()
	args := []string{folder + "/gpuvirt", "p2v", "inspect", "--stream", "--window", "0s"}
	if v.rec.Window > 0 {
		args[len(args)-1] = fmt.Sprintf("%ds", max(1, int(window.Seconds())))
		args = append(args, "--interval", fmt.Sprintf("%ds", v.rec.Interval))
	}
	if v.rec.Source.Sudo {
		args = append([]string{"sudo", "-n", "--"}, args...)
	}
	read, write := io.Pipe()
	said := make(chan error, 1)
	running, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		err := report.ReadLines(read, v.hear)
		said <- err
		stop(errSaid) // its last word, or nothing that can be used: it need not go on
		_ = read.CloseWithError(errSaid)
	}()
	err := v.server.Run(running, nil, write, args[0], args[1:]...)
	_ = write.Close() // the reader has an end, if it has none yet
	heard := <-said
	switch {
	case context.Cause(ctx) != nil:
		return context.Cause(ctx)
	case heard == nil:
		return nil // how it exits is no matter
	case v.failed != nil:
		return v.failed
	case !errors.Is(heard, io.ErrUnexpectedEOF):
		return gpu.Wrap(heard, gpu.CodeInvalid, "cannot assess")
	case err != nil && strings.Contains(err.Error(), "sudo:"):
		return gpu.Wrap(err, gpu.CodeConflict, "cannot assess").WithHint("let %s run programs with sudo there without a password, or come as root", v.rec.Source.User)
	case err != nil:
		return gpu.Wrap(err, gpu.CodeConflict, "cannot assess")
	}
	return gpu.Wrap(heard, gpu.CodeUnavailable, "cannot assess")
}

// hear takes one message of the inspector.
func (v *visit) hear(l report.Line) error {
	switch {
	case l.Report != nil:
		before := v.rec.Report
		v.rec.Report = l.Report
		v.rec.Report.Usage = nil
		if before != nil && before.OS.BootID != v.rec.Report.OS.BootID {
			unseen(v.rec.Report, "usage", "the server was started again while it was watched")
		}
		v.task.Logf("the server is %q: %d GPUs", v.rec.Report.Hostname, len(v.rec.Report.GPUs))
	case l.Usage != nil:
		v.usage.Merge(*l.Usage)
	}
	v.rec.Heard = v.a.cfg.Now().UTC()
	v.rec.State = report.StateWatching
	v.failed = v.save(l.Report != nil)
	return v.failed
}

// save stores what was seen: now, or when it is time.
func (v *visit) save(now bool) error {
	if v.rec.Report == nil || !now && v.a.cfg.Now().Sub(v.saved) < mostSaved {
		return nil
	}
	if v.usage.Samples > 0 || v.usage.Missed > 0 {
		u := v.usage
		v.rec.Report.Usage = &u
	}
	if err := v.rec.Report.Check(); err != nil {
		return gpu.Errorf(gpu.CodeInvalid, "cannot assess: what the server says is no inspection: %w", err)
	}
	v.task.Progress(int64(v.rec.Watched()), int64(v.rec.Window))
	v.a.saving.Lock()
	defer v.a.saving.Unlock()
	stored, err := v.a.cfg.Store.AssessmentRecord(v.rec.Name)
	if err != nil {
		return err
	}
	v.rec.Enough = stored.Enough
	v.saved = v.a.cfg.Now()
	if err := v.a.cfg.Store.Apply(operation.Put(report.RecordAssessment, v.rec.Name, v.rec)); err != nil {
		return gpu.Wrap(err, gpu.CodeUnavailable, "cannot keep what was seen") // it may pass
	}
	return nil
}

// unseen notes that something could not be seen.
func unseen(r *report.Report, what, reason string) {
	u := report.Unseen{What: what, Reason: report.CleanString(reason)}
	if !slices.Contains(r.Unseen, u) {
		r.Unseen = append(r.Unseen, u)
	}
}
