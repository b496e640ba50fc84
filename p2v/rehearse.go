package p2v

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"gpuvirt/gpu"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/verify"
)

// network is the name of the network without a way out that a rehearsal is on.
func network(rec move.Record) string { return "gpuvirt-" + rec.Operation }

// rehearse starts the VM on a copy of what the source is now, with its partitions and without
// a network, looks at it, and takes it all down again. The source is at rest for as long as
// the last pass takes, and is copied on then.
func (t *try) rehearse(ctx context.Context) (err error) {
	if err := t.m.reserved(ctx, t.rec); err != nil {
		return err
	}
	if !t.wish.Live {
		t.baseline(ctx)
	}
	release, err := t.converter(ctx)
	if err != nil {
		return err
	}
	defer release()
	if t.wish.Live {
		err = t.lastPass(ctx, nil)
	} else {
		err = t.still(ctx, t.lastPass)
	}
	if err != nil {
		return err
	}
	defer func() {
		striking, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if left := t.m.strike(striking, t.rec); left != nil { // it is tried again before anything is copied
			t.lost = left
			err = errors.Join(err, left)
		}
	}()
	if err := t.goOn(); err != nil {
		return err
	}
	if err := t.convert(ctx, t.m.trial); err != nil {
		return err
	}
	if err := t.phase("starting the VM"); err != nil {
		return err
	}
	doc, err := convert.IsolatedNetwork(network(t.rec), uuid.NewSHA1(uuid.NameSpaceOID, []byte(t.rec.VM.UUID)).String())
	if err != nil {
		return err
	}
	if err := t.m.cfg.VMs.CreateNetwork(ctx, doc); err != nil {
		return err
	}
	trial := gpu.Trial{Disks: map[string]string{}, Network: network(t.rec)}
	for _, d := range t.rec.Disks {
		trial.Disks[t.m.disk(t.rec.Name, d.Name)] = t.m.trial(t.rec.Name, d.Name)
	}
	began := t.m.cfg.Now()
	if err := t.m.cfg.VMs.StartTrial(ctx, t.rec.VM.UUID, t.rec.Operation, trial); err != nil {
		return err
	}
	if err := t.phase("looking at the VM"); err != nil {
		return err
	}
	a := t.rec.Pending()
	if a == nil {
		return errors.New("nobody wants it any more")
	}
	r, err := t.m.look(ctx, t.rec, a.Before, false, func(r verify.Result) { t.task.Logf("%s: %s %s", r.Title, r.State, r.Text) })
	if err != nil {
		return err
	}
	took := t.m.cfg.Now().Sub(began).Seconds()
	if err := t.note(func(a *move.Attempt) {
		if a.Report = &r; r.Verdict == verify.StateOK { // else it may have waited for what did not come
			a.Boot = took
		}
	}); err != nil {
		return err
	}
	if r.Verdict != verify.StateOK {
		return failed(r)
	}
	return nil
}

// failed says what of a VM is not as it should be. What is so for one reason is told with it once.
func failed(r verify.Report) error {
	const most = 5
	var why []string
	titles := map[string][]string{}
	for _, c := range r.Results {
		if c.State == verify.StateFailed || c.State == verify.StateUnknown && r.Verdict == verify.StateUnknown {
			if !slices.Contains(why, c.Text) {
				why = append(why, c.Text)
			}
			titles[c.Text] = append(titles[c.Text], c.Title)
		}
	}
	var text []string
	for _, w := range why[:min(len(why), most)] {
		of := titles[w]
		if len(of) > most {
			of = append(of[:most:most], "and more")
		}
		text = append(text, strings.Join(of, ", ")+": "+w)
	}
	if len(why) > most {
		text = append(text, "and more")
	}
	return gpu.Errorf(gpu.CodeConflict, "the VM is not what it should be: %s", strings.Join(text, "; "))
}

// baseline has the person's checks run on the source, where it does not matter whether they
// pass: what they say is compared with.
func (t *try) baseline(ctx context.Context) {
	if t.rec.AtRest() {
		t.task.Logf("the checks were not run on the source, which is off")
		return
	}
	if err := t.phase("the checks on the source"); err != nil {
		t.task.Logf("%v", err)
		return
	}
	e, err := t.m.expect(ctx, t.rec, false)
	if err != nil {
		t.task.Logf("the checks were not run on the source: %v", err)
		return
	}
	if seen, err := t.m.inspected(t.rec.Assessment); err == nil && seen.Report.Driver != nil {
		e.Driver = "nvidia" // what it lists is compared with, whichever the VM has
	}
	ctx, cancel := context.WithTimeout(ctx, t.m.cfg.Patience.Settle)
	defer cancel()
	b := verify.Before(ctx, verify.Remote{Open: func(ctx context.Context) (io.ReadWriteCloser, error) {
		return t.server.Open(ctx, t.program[0], append(slices.Clone(t.program[1:]), "run")...)
	}}, e)
	if err := t.note(func(a *move.Attempt) { a.Before = &b }); err != nil {
		t.task.Logf("%v", err)
	}
}
