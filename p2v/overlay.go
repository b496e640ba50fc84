package p2v

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/guest"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
)

// converter waits until nobody else runs programs on disks: they take a processor and
// gigabytes each. It is had before a source is brought to rest.
func (t *try) converter(ctx context.Context) (release func(), err error) {
	select {
	case t.m.converting <- struct{}{}:
	default:
		if err := t.phase("waiting until another migration's disks are made"); err != nil {
			return nil, err
		}
		select {
		case t.m.converting <- struct{}{}:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	release = func() { <-t.m.converting }
	if err := t.m.claims.making(t.m.folder(t.rec.Name)); err != nil {
		release()
		return nil, err
	}
	if t.rec.Wanted.Convert == move.ConvertNone {
		return release, nil
	}
	var tools convert.Tools
	if err = t.phase("trying what converts, which takes minutes the first time after a boot"); err == nil {
		tools, err = t.m.cfg.Converter.Probe(ctx)
	}
	if err == nil {
		err = tools.Ready()
	}
	if err == nil {
		_, err = t.keys()
	}
	if err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// keys are what opens the disks.
func (t *try) keys() ([]convert.Key, error) {
	seen, err := t.m.inspected(t.rec.Assessment)
	if err != nil {
		return nil, err
	}
	return t.m.unlock(t.rec, *seen.Report)
}

// convert makes the VM's disks over the mirrors, at the paths that name tells, and notes what that took. A
// failure leaves them to who removes them.
func (t *try) convert(ctx context.Context, name func(name, disk string) string) error {
	began := t.m.cfg.Now()
	err := full(t.makeDisks(ctx, name), t.m.folder(t.rec.Name))
	took := t.m.cfg.Now().Sub(began).Seconds()
	switch {
	case err == nil:
		return t.note(func(a *move.Attempt) { a.Conversion = took })
	case errors.Is(ctx.Err(), context.DeadlineExceeded): // which is the limit
		err = errors.Join(err, t.note(func(a *move.Attempt) { a.ConversionCut = took }))
	}
	return err
}

func (t *try) makeDisks(ctx context.Context, name func(name, disk string) string) error {
	if err := t.phase("making disks"); err != nil {
		return err
	}
	dir := filepath.Join(t.m.folder(t.rec.Name), logs)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	seen, err := t.m.inspected(t.rec.Assessment)
	if err != nil {
		return err
	}
	domain, err := t.m.domain(t.rec, *seen.Report)
	if err != nil {
		return err
	}
	job := guest.Job(domain)
	job.Dir = dir
	for _, d := range t.rec.Disks {
		o, err := t.m.cfg.Converter.Overlay(ctx, t.m.mirror(t.rec.Name, d.Name), name(t.rec.Name, d.Name))
		if err != nil {
			return err
		}
		job.Disks = append(job.Disks, o)
	}
	if t.rec.Wanted.Convert == move.ConvertNone {
		return t.unedited(ctx, *seen.Report)
	}
	if job.Keys, err = t.keys(); err != nil {
		return err
	}
	job.Progress = func(p convert.Progress) { t.task.Logf("%s: %s", p.Phase, report.CleanString(p.Text)) }
	edits, err := t.edits(ctx, *seen.Report)
	if err != nil {
		return err
	}
	if len(edits) > 0 {
		if err := t.phase("changing the guest"); err != nil {
			return err
		}
		if _, err := t.m.cfg.Converter.Customize(ctx, job, edits); err != nil {
			return err
		}
	}
	if err := t.phase("converting"); err != nil {
		return err
	}
	result, err := t.m.cfg.Converter.Convert(ctx, job)
	for _, w := range result.Warnings {
		t.task.Logf("virt-v2v warns: %s", report.CleanString(w))
	}
	return err
}

// mostItems is how many parts of a change are kept with each attempt; the plan has all.
const mostItems = 20

// edits are what is changed in the guest for the partitions that it gets, as the plan has it now.
func (t *try) edits(ctx context.Context, seen report.Report) ([]convert.Edit, error) {
	plan, err := t.m.heldPlan(ctx, t.rec, seen)
	if err != nil {
		return nil, err
	}
	var brought guest.Options
	if t.m.cfg.Guest != nil {
		if brought, err = t.m.cfg.Guest(seen.OS, t.rec.Plan); err != nil {
			return nil, err
		}
	}
	edits, left, err := guest.Edits(seen, plan, brought)
	if err != nil {
		return nil, err
	}
	told := []move.Left{} // none, where all was done
	for _, l := range left {
		items := l.Change.Items
		if len(items) > mostItems {
			items = append(slices.Clone(items[:mostItems]), "…")
		}
		told = append(told, move.Left{ID: l.Change.ID, What: l.Change.What, By: string(l.By), Why: l.Why, Items: items})
	}
	person := func(id string) bool {
		return slices.ContainsFunc(told, func(l move.Left) bool { return l.ID == id && l.By == string(guest.ByPerson) })
	}
	return edits, t.note(func(a *move.Attempt) { a.Left, a.Driver = told, guest.KernelDriver(plan, person) })
}

// unedited notes which driver a guest has that is taken as it is. That it is not known now is in nobody's way.
func (t *try) unedited(ctx context.Context, seen report.Report) error {
	plan, err := t.m.heldPlan(ctx, t.rec, seen)
	if err != nil {
		t.task.Logf("its driver is not looked at in the VM: %v", err)
		return context.Cause(ctx)
	}
	return t.note(func(a *move.Attempt) { a.Driver = guest.KernelDriver(plan, func(string) bool { return true }) })
}

// removeOverlays deletes the VM's disks, those of rehearsals too, and what the VM has written there.
func (m *Migrations) removeOverlays(rec move.Record) error {
	var errs []error
	for _, d := range rec.Disks {
		for _, path := range m.overlays(rec.Name, d.Name) {
			errs = append(errs, convert.Overlay{Path: path, Mirror: m.mirror(rec.Name, d.Name)}.Remove())
		}
	}
	for _, path := range m.written(rec) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// overlays are all that there may be over the mirror of a disk.
func (m *Migrations) overlays(name, disk string) []string {
	return []string{m.disk(name, disk), m.making(name, disk), m.trial(name, disk)}
}

// place puts the VM's disks where its definition has them. It can be done again.
func (m *Migrations) place(rec move.Record) error {
	for _, d := range rec.Disks {
		err := os.Rename(m.making(rec.Name, d.Name), m.disk(rec.Name, d.Name))
		if errors.Is(err, fs.ErrNotExist) { // it is there already
			_, err = os.Stat(m.disk(rec.Name, d.Name))
		}
		if err != nil {
			return gpu.Errorf(gpu.CodeInternal, "cannot give VM %q its disk: %w", rec.VM.Name, err)
		}
	}
	return nil
}

// written are the files that libvirt makes beside the disks: what the VM says on its console,
// and what a rehearsal's firmware has kept.
func (m *Migrations) written(rec move.Record) []string {
	out := []string{m.console(rec.Name)}
	// virtlogd begins a new one every now and then, and keeps some: console.log.0, …
	older, _ := os.ReadDir(m.folder(rec.Name)) // who removes the folder is told
	for _, e := range older {
		if n, is := strings.CutPrefix(e.Name(), filepath.Base(m.console(rec.Name))+"."); is && digits.MatchString(n) {
			out = append(out, filepath.Join(m.folder(rec.Name), e.Name()))
		}
	}
	for _, d := range rec.Disks {
		out = append(out, m.trial(rec.Name, d.Name)+gpu.TrialNVRAM)
	}
	return out
}

var digits = regexp.MustCompile(`^[0-9]+$`)

// strike takes down what a try has put up: a VM that runs, its disks, its network. It must not
// be called where the source is off, or may be.
func (m *Migrations) strike(ctx context.Context, rec move.Record) error {
	if rec.VM == nil {
		return nil
	}
	if err := m.cfg.VMs.Stop(ctx, rec.VM.UUID); err != nil {
		return err
	}
	if err := m.cfg.VMs.DestroyNetwork(ctx, network(rec)); err != nil {
		return err
	}
	return m.removeOverlays(rec)
}

// clear removes all that a move whose operation was forgotten has left.
func (m *Migrations) clear(ctx context.Context, rec move.Record) error {
	if rec.VM != nil {
		if err := m.strike(ctx, rec); err != nil {
			return err
		}
		for _, s := range rec.VM.Slices {
			a, err := m.cfg.Assignments.Assignment(ctx, s.Assignment)
			if err == nil && a.Wish.VM == rec.VM.UUID {
				return gpu.Errorf(gpu.CodeConflict, "assignment %q still holds a partition for its VM", s.Assignment).
					WithBlockers(gpu.Blocker{Kind: "assignment", ID: s.Assignment}).WithHint("gpuvirt detach %s", s.Assignment)
			}
			if err != nil && gpu.CodeOf(err) != gpu.CodeNotFound {
				return err
			}
		}
		if err := m.cfg.VMs.Undefine(ctx, rec.VM.UUID, rec.Operation); err != nil {
			return err
		}
	}
	return m.discard(rec)
}
