package p2v

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
	"gpuvirt/p2v/verify"
)

// doStart starts the VM: the source is off. What fails waits for a person, as nothing of it
// can be taken back without somebody who starts the source again.
func (m *Migrations) doStart(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	rec, err := m.record(t)
	if err != nil {
		return nil, unclean(err)
	}
	if rec.Fence != move.FenceOff {
		return nil, unclean(fmt.Errorf("the source is not known to be off"))
	}
	if err = m.place(rec); err == nil {
		err = m.cfg.VMs.Start(ctx, rec.VM.UUID)
	}
	switch {
	case context.Cause(ctx) != nil:
		return nil, unclean(context.Cause(ctx))
	case holdsUp(err):
		return nil, &operation.RetryError{After: m.cfg.Patience.Pause, Err: err}
	case err != nil:
		return nil, &operation.WaitError{Reason: fmt.Sprintf("VM %s does not start: %v. Mend it and retry; or roll back, and start the source again", rec.VM.Name, err)}
	}
	t.Logf("VM %s runs", rec.VM.Name)
	return nil, nil
}

// undoStart powers the VM off: what it has written since goes with its disks.
func (m *Migrations) undoStart(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	rec, err := m.record(t)
	if err != nil {
		return nil, err
	}
	if err := m.cfg.VMs.Stop(ctx, rec.VM.UUID); err != nil {
		return nil, &operation.RetryError{After: m.cfg.Patience.Pause, Err: err}
	}
	return nil, nil
}

// doVerify looks whether the VM is what the server was. Where it is not, a person takes it
// all the same, has it looked at again, or rolls back.
func (m *Migrations) doVerify(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	rec, err := m.record(t)
	if err != nil {
		return nil, unclean(err)
	}
	if rec.Ended == move.PhaseDone || rec.Accepted != "" {
		return nil, m.finished(rec.Name)
	}
	var before *verify.Baseline
	if a := rec.Last(move.Cutover); a != nil {
		before = a.Before
	}
	looking, cancel := context.WithCancelCause(ctx)
	watcher := make(chan struct{})
	go func() {
		defer close(watcher)
		select {
		case <-looking.Done():
		case <-t.Draining():
			cancel(errDraining)
		}
	}()
	r, err := m.look(looking, rec, before, true, func(r verify.Result) { t.Logf("%s: %s %s", r.Title, r.State, r.Text) })
	cause := context.Cause(looking)
	cancel(nil)
	<-watcher
	switch {
	case context.Cause(ctx) != nil:
		return nil, unclean(context.Cause(ctx))
	case errors.Is(cause, errDraining) || holdsUp(err):
		return nil, &operation.RetryError{After: m.cfg.Patience.Pause, Err: errors.Join(cause, err)}
	case err != nil:
		return nil, &operation.WaitError{Reason: err.Error()}
	}
	if _, err := m.update(rec.Name, func(rec *move.Record) {
		if a := rec.Last(move.Cutover); a != nil {
			a.Report = &r
		}
	}); err != nil {
		return nil, &operation.RetryError{After: m.cfg.Patience.Pause, Err: err}
	}
	if r.Verdict != verify.StateOK {
		return nil, &operation.WaitError{Reason: fmt.Sprintf("%v. Retry, accept it as it is, or roll back and start the source again", failed(r))}
	}
	return nil, m.finished(rec.Name)
}

// finished tells that a move is done. It comes before the operation's end: who changes
// something looks whether it has ended.
func (m *Migrations) finished(name string) error {
	_, err := m.update(name, func(r *move.Record) {
		r.Ended, r.Forecast = move.PhaseDone, nil
		if a := r.Last(move.Cutover); a != nil && !a.AtRest.IsZero() && a.Downtime == 0 {
			a.Downtime = m.cfg.Now().Sub(a.AtRest).Seconds()
		}
	})
	if err != nil {
		return &operation.RetryError{After: m.cfg.Patience.Pause, Err: err}
	}
	return nil
}

// look looks at a VM that was started.
func (m *Migrations) look(ctx context.Context, rec move.Record, before *verify.Baseline, network bool, progress func(verify.Result)) (verify.Report, error) {
	e, err := m.expect(ctx, rec, network)
	if err != nil {
		return verify.Report{}, err
	}
	return verify.Run(ctx, verify.NewGuest(agentOf{m.cfg.VMs, rec.VM.UUID}), func() []string { return tail(m.console(rec.Name)) }, e, before, progress), nil
}

func (m *Migrations) gpu(ctx context.Context, id gpu.ID) (gpu.GPU, error) {
	all, err := m.cfg.Host.GPUs(ctx)
	if err != nil {
		return gpu.GPU{}, err
	}
	for _, g := range all {
		if g.ID == id {
			return g, nil
		}
	}
	return gpu.GPU{}, gpu.Errorf(gpu.CodeNotFound, "cannot find GPU %q", id)
}

// agentOf is the guest agent of a VM.
type agentOf struct {
	vms  VMs
	uuid string
}

func (a agentOf) Command(ctx context.Context, request string) (string, error) {
	return a.vms.Agent(ctx, a.uuid, request)
}

// tail is the end of what a console has said.
func tail(path string) []string {
	const most = 16 << 10
	f, err := os.Open(path) //nolint:gosec // the VM's console, which libvirt writes
	if err != nil {
		return nil
	}
	defer f.Close() //nolint:errcheck // it was only read
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && info.Size() > most {
		_, _ = f.Seek(-most, io.SeekEnd)
	}
	text, _ := io.ReadAll(io.LimitReader(f, most))
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	lines = lines[max(0, len(lines)-40):]
	for i := range lines {
		lines[i] = report.CleanString(strings.TrimRight(lines[i], "\r"))
	}
	return lines
}
