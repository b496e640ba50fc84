package p2v

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

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
	if err = m.alone(ctx, t, rec); err == nil {
		err = m.place(rec)
	}
	if err == nil {
		err = m.cfg.VMs.Start(ctx, rec.VM.UUID)
	}
	switch {
	case context.Cause(ctx) != nil:
		return nil, unclean(context.Cause(ctx))
	case holdsUp(err):
		return nil, &operation.RetryError{After: m.cfg.Patience.Pause, Err: err}
	case errors.Is(err, errBack):
		return nil, &operation.WaitError{Reason: err.Error()}
	case err != nil:
		return nil, &operation.WaitError{Reason: fmt.Sprintf("VM %s does not start: %v. Mend it and retry; or roll back, and start the source again", rec.VM.Name, err)}
	}
	t.Logf("VM %s runs", rec.VM.Name)
	return nil, nil
}

// errBack is why a VM is not started whose source was.
var errBack = errors.New("the source answers again: somebody has started it. Power it off and retry, so that the VM runs alone; or roll back, and it goes on")

// justNow is how long it is not looked again whether a source is off that was seen to be.
const justNow = 30 * time.Second

// alone makes sure that nobody has started the source since it was off: libvirt or this daemon
// may have been away for hours. A VM that runs is left alone: it answers as its source did.
func (m *Migrations) alone(ctx context.Context, t *operation.Task, rec move.Record) error {
	a := rec.Last(move.Cutover)
	seen := a != nil && a.State == move.Moved && !t.Resumed() && m.cfg.Now().Sub(a.Ended) < justNow
	if !rec.Comes() && (seen || rec.Source.Address == "") { // or of disks alone
		return nil
	}
	vm, err := m.cfg.VMs.VM(ctx, rec.VM.UUID)
	switch {
	case err != nil || vm.State.Active():
		return err
	case rec.Comes() && m.cfg.Arrivals.now(rec.Assessment) != nil:
		return errBack
	case seen:
		return nil
	case rec.CameFrom.IsValid() && m.answers(ctx, rec.CameFrom):
		return errBack
	case rec.Source.Address == "":
		return nil
	}
	asking, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	server, err := m.cfg.Dial(asking, rec.Source)
	if err != nil {
		return nil //nolint:nilerr // it does not let us in, as one that is off
	}
	if err := server.Close(); err != nil {
		t.Logf("%v", err)
	}
	return errBack
}

// undoStart powers the VM off: what it has written since goes with its disks.
func (m *Migrations) undoStart(ctx context.Context, t *operation.Task) ([]operation.Row, error) {
	rec, err := m.record(t)
	if err != nil {
		return nil, err
	}
	err = m.cfg.VMs.Stop(ctx, rec.VM.UUID)
	if holdsUp(err) {
		return nil, &operation.RetryError{After: m.cfg.Patience.Pause, Err: err}
	}
	return nil, err
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
	looking, stop := undrained(ctx, t)
	r, err := m.look(looking, rec, before, true, func(r verify.Result) { t.Logf("%s: %s %s", r.Title, r.State, r.Text) })
	cause := context.Cause(looking)
	stop()
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
		r.Settle(move.Passed)
		r.Ended, r.Forecast, r.Reservation = move.PhaseDone, nil, nil
		if a := r.Last(move.Cutover); a != nil && !a.AtRest.IsZero() && a.Downtime == 0 {
			a.Downtime = m.cfg.Now().Sub(a.AtRest).Seconds()
		}
	})
	if err != nil {
		return &operation.RetryError{After: m.cfg.Patience.Pause, Err: err}
	}
	m.drop(name)
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
