package p2v

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
	"gpuvirt/p2v/virtp2v"
)

// Limits of who comes.
const (
	mostArrivals  = 32
	arrivalLooks  = time.Second // between two looks at what becomes of it
	arrivalLeaves = 10 * time.Second
)

// arrivalName is what an assessment may be called.
var arrivalName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

// Arrivals are the servers that were started from virt-p2v and are connected now. Each is under
// the name of an assessment: one that there was, of the same server, or one that is made of what
// virt-p2v tells and that is forgotten when the server goes and no migration rests on it. Its
// methods may be called concurrently.
type Arrivals struct {
	every time.Duration // between two looks

	mu sync.Mutex
	by map[string]*arrival // by the name of the assessment
}

type arrival struct {
	server virtp2v.Server
	leave  context.CancelCauseFunc
	told   bool          // that it is done; to be read when it has gone
	gone   chan struct{} // closed when it has gone
	known  atomic.Bool   // it is the server of the assessment: nothing of it is read before
}

// NewArrivals returns a place to which nobody has come yet.
func NewArrivals() *Arrivals {
	return &Arrivals{every: arrivalLooks, by: map[string]*arrival{}}
}

// now is the server that is here under the name of an assessment; nil: none is.
func (a *Arrivals) now(assessment string) *arrival {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.by[assessment]
}

// vouched is the server of an assessment that is here, and known to be that one.
func (a *Arrivals) vouched(assessment string) *arrival {
	if is := a.now(assessment); is != nil && is.known.Load() {
		return is
	}
	return nil
}

// dial connects to what exports a disk of a server that is here now.
func (a *Arrivals) dial(ctx context.Context, assessment, disk string) (net.Conn, error) {
	is := a.vouched(assessment)
	if is == nil {
		return nil, gpu.Errorf(gpu.CodeUnavailable, "the server of assessment %q is not here: start the conversion in virt-p2v there, under this name", assessment)
	}
	i := slices.IndexFunc(is.server.Disks, func(d virtp2v.Disk) bool { return d.Name == disk })
	if i < 0 {
		return nil, gpu.Errorf(gpu.CodeUnavailable, "the server has come without disk %s: choose it in virt-p2v there, and start the conversion again", disk)
	}
	return is.server.Disks[i].Dial(ctx)
}

// Arrive has a server here, and returns when nothing needs it any more: the VM is made of what was
// copied. The error is for who stands before the server. What is written is shown there.
func (m *Migrations) Arrive(ctx context.Context, s virtp2v.Server, show io.Writer) error {
	a := m.cfg.Arrivals
	if !arrivalName.MatchString(s.Name) {
		return fmt.Errorf("a server cannot come as %.80q: give it a name in virt-p2v's window of 1 to 63 of a-z, 0-9, '.', '_' and '-', that begins and ends with a letter or digit", s.Name)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	me := &arrival{server: s, leave: cancel, gone: make(chan struct{})}
	if err := a.enter(ctx, me); err != nil {
		return err
	}
	defer a.exit(me)
	made, err := m.looks.ofArrival(ctx, s)
	if err != nil {
		return err
	}
	if made {
		defer m.looks.forgetArrival(s.Name)
	}
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(show, format+"\n", args...) } // who does not see it has gone
	tick := time.NewTicker(a.every)
	defer tick.Stop()
	last, late := "", false // late: it was taken for one that is off before it came
	for {
		f, err := m.ofArrival(s.Name)
		if err != nil {
			return err
		}
		if last == "" {
			late = true
			me.known.Store(true) // not before: by now nobody can have cut over what was read of it
			say("%s", greeting(s, made, f.text == waits))
		}
		if late = late && f.asked; late {
			f.text = f.late
		}
		if f.text != last {
			say("%s  %s", m.cfg.Now().UTC().Format(time.TimeOnly), f.text)
			last = f.text
		}
		if f.runs || f.asked && !late {
			me.told = true
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// greeting tells who stands there how it goes on.
func greeting(s virtp2v.Server, made, fresh bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "gpuvirt: %s is here, with %d disks, %d NICs and %d GPUs. It is ", s.Name, len(s.Disks), len(s.Report.NICs), len(s.Report.GPUs))
	if made {
		b.WriteString("a new assessment.\n")
	} else {
		b.WriteString("the server of the assessment of this name.\n")
	}
	b.WriteString("Leave this window open.\n")
	if !fresh {
		return b.String()
	}
	b.WriteString("On the host of the VM look, choose what the VM has of a GPU, and begin:\n\n")
	fmt.Fprintf(&b, "  gpuvirt assessment show %s\n  gpuvirt migrate start %s --assessment %s", s.Name, s.Name, s.Name)
	for _, d := range s.Disks {
		fmt.Fprintf(&b, " --nbd %s=%s", d.Name, move.VirtP2V)
	}
	for _, n := range s.Report.NICs {
		if network := s.Networks[n.MAC]; libvirtNetwork.MatchString(network) {
			fmt.Fprintf(&b, " --nic %s=network:%s", n.MAC, network)
		}
	}
	b.WriteString(strings.Repeat(" --profile PROFILE", len(s.Report.GPUs)) + "\n\n")
	for _, g := range s.Report.GPUs {
		fmt.Fprintf(&b, "GPU %s: %s. ", g.PCI, cmp.Or(g.Model, g.PCIID, g.Vendor))
	}
	if len(s.Report.GPUs) > 0 {
		b.WriteString("Which profiles there are tells: gpuvirt profile list\n")
	}
	return b.String()
}

// libvirtNetwork is a name that no shell reads otherwise.
var libvirtNetwork = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// enter takes the name; a connection of the same server that was cut and does not know it makes room.
func (a *Arrivals) enter(ctx context.Context, me *arrival) error {
	name := me.server.Name
	for {
		a.mu.Lock()
		other := a.by[name]
		switch {
		case other == nil && len(a.by) >= mostArrivals:
			a.mu.Unlock()
			return fmt.Errorf("there are %d servers here already", mostArrivals)
		case other == nil:
			a.by[name] = me
			a.mu.Unlock()
			return nil
		}
		a.mu.Unlock()
		if err := sameServer(other.server.Report, me.server); err != nil || other.server.From != me.server.From {
			return fmt.Errorf("another server is here as %s: give this one another name in virt-p2v's window", name)
		}
		other.leave(errors.New("the same server has come once more"))
		late := time.NewTimer(arrivalLeaves)
		defer late.Stop()
		select {
		case <-other.gone:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-late.C:
			return fmt.Errorf("%s is here already", name)
		}
	}
}

func (a *Arrivals) exit(me *arrival) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.by, me.server.Name)
	close(me.gone)
}

// sameServer tells whether a server is the one that was seen: all its disks are known, and one of
// its NICs, if it has any: disks of the same names and sizes are what a rack is full of.
func sameServer(r report.Report, s virtp2v.Server) error {
	for _, d := range s.Disks {
		i := slices.IndexFunc(r.Disks, func(o report.Disk) bool { return o.Name == d.Name })
		switch {
		case i < 0:
			return fmt.Errorf("that one has no disk %s", d.Name)
		case r.Disks[i].SizeBytes != uint64(d.Size): //nolint:gosec // nbd bounds it
			return fmt.Errorf("disk %s of that one has %d bytes, and of this one %d", d.Name, r.Disks[i].SizeBytes, d.Size)
		}
	}
	known := func(n report.NIC) bool {
		return slices.ContainsFunc(r.NICs, func(o report.NIC) bool { return strings.EqualFold(o.MAC, n.MAC) })
	}
	if len(r.NICs) > 0 && !slices.ContainsFunc(s.Report.NICs, known) {
		return errors.New("none of that one's NICs is among those that were chosen of this one")
	}
	return nil
}

// ofArrival finds the assessment of a server that has come, or makes one.
func (a *Assessments) ofArrival(ctx context.Context, s virtp2v.Server) (made bool, err error) {
	rec, err := a.Assessment(s.Name)
	switch {
	case gpu.CodeOf(err) == gpu.CodeNotFound:
		_, _, err := a.Create(ctx, "virt-p2v:"+s.From.String(), report.Wish{Name: s.Name, Report: &s.Report}, gpu.Idempotency{})
		return err == nil, err
	case err != nil:
		return false, err
	case rec.Report == nil || rec.State != report.StateDone:
		return false, fmt.Errorf("assessment %s is still %s: let it end before, or give this server another name in virt-p2v's window", s.Name, rec.State)
	}
	if err := sameServer(*rec.Report, s); err != nil {
		return false, fmt.Errorf("there is an assessment %s of another server (%w): give this one another name in virt-p2v's window, or delete that: gpuvirt assessment delete %s", s.Name, err, s.Name)
	}
	return false, nil
}

// forgetArrival forgets what was made for a server that has gone, if nothing rests on it.
func (a *Assessments) forgetArrival(name string) {
	if _, err := a.Delete(name); err != nil && gpu.CodeOf(err) != gpu.CodeNotFound && gpu.CodeOf(err) != gpu.CodeConflict {
		a.cfg.Log.Warn("cannot forget the assessment of a server that has gone", "assessment", name, "err", err)
	}
}

// waits is what becomes of a server that nobody moves yet.
const waits = "waiting until somebody begins to move it"

// A fate is what becomes of a server that is here.
type fate struct {
	text  string
	late  string // the same, for one that comes when it was taken for off
	asked bool   // its VM has all it needs, and starts when it is off
	runs  bool   // its VM does
}

// ofArrival tells what becomes of a server.
func (m *Migrations) ofArrival(assessment string) (fate, error) {
	all, err := m.Migrations()
	if err != nil {
		return fate{}, err
	}
	out, over := fate{text: waits}, fate{}
	for _, v := range all {
		if v.Assessment != assessment || !v.Comes() {
			continue
		}
		switch {
		case v.Ended == move.PhaseDone || v.Phase == move.PhaseVerifying || v.Unverified:
			over = fate{runs: true, text: fmt.Sprintf("the VM of migration %s runs, with the addresses of this server. Power this server off", v.Name)}
			continue
		case v.Ended != "":
			continue // it may be begun again
		case v.Fence != move.FenceNone && v.Phase != move.PhaseRollingBack:
			return fate{
				asked: true, text: fmt.Sprintf("migration %s has all it needs. Power this server off: then its VM starts, with the same addresses", v.Name),
				late: fmt.Sprintf("migration %s takes this server for off, and does not start its VM while it is here; %s", v.Name, report.CleanString(v.Reason)),
			}, nil
		}
		passes, sent := 0, uint64(0)
		for _, d := range v.Disks {
			passes += d.Total
			for _, p := range d.Passes {
				sent += p.Sent
			}
		}
		out = fate{text: fmt.Sprintf("migration %s is %s: %d passes over disks, %d MiB have come", v.Name, v.Phase, passes, sent>>20)}
		if v.Reason != "" {
			out.text += "; " + report.CleanString(v.Reason)
		}
	}
	if over.runs && out.text == waits { // it is not moved once more
		return over, nil
	}
	return out, nil
}

// leaves waits until a server that came to us, and is told that it is done, is off. Of one that is
// not in time, or of which nobody knows, a person says so.
func (t *try) leaves(ctx context.Context) error {
	late := time.NewTimer(t.m.cfg.Patience.Leave)
	defer late.Stop()
	again := time.NewTicker(min(t.m.cfg.Patience.Pause, 500*time.Millisecond))
	defer again.Stop()
	said := ""
	for {
		why, err := t.stays(ctx)
		switch {
		case context.Cause(ctx) != nil:
			return context.Cause(ctx)
		case err != nil:
			t.lost = t.doubt(err)
			return t.lost
		case why == "":
			return t.left()
		case why != said:
			if err := t.phase("Power the server off: " + why); err != nil {
				return err
			}
			said = why
		}
		select {
		case <-again.C:
		case <-late.C:
			t.lost = t.doubt(errors.New(why))
			return t.lost
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// stays says why a server that is told that it is done is not off; empty: it is. With an error,
// nobody here will know.
func (t *try) stays(ctx context.Context) (string, error) {
	const connected = "its virt-p2v is still connected"
	cut := errors.New("its connection has ended before it was told that it is done")
	if t.came == nil {
		return "", cut
	}
	select {
	case <-t.came.gone:
	default:
		return connected, nil
	}
	answers := t.m.answers(ctx, t.came.server.From) // which takes a while, where nobody does
	switch {
	case !t.came.told:
		return "", cut
	case t.m.cfg.Arrivals.now(t.rec.Assessment) != nil:
		return "", errors.New("it has come once more")
	case t.came.server.Connected():
		return connected, nil
	case answers:
		return "it still answers at " + t.came.server.From.String(), nil
	}
	return "", nil
}

// left has the VM started: the server is off, as far as is seen from here.
func (t *try) left() error {
	if err := t.phase(fmt.Sprintf("the source is off, as %s says: nothing answers at %s any more", t.actor, t.came.server.From)); err != nil {
		return err
	}
	if err := t.fenced(move.FenceOff, ""); err != nil {
		return err
	}
	if err := t.ended(nil); err != nil {
		t.task.Logf("%v", err)
	}
	return errFenced
}

// unseen says why nobody here knows whether a server that was told that it is done is off, as it was
// not seen to go; nil: it is here.
func (m *Migrations) unseen(ctx context.Context, rec move.Record) error {
	if m.cfg.Arrivals.now(rec.Assessment) != nil {
		return nil
	}
	why := "it was not seen to go"
	if rec.CameFrom.IsValid() && m.answers(ctx, rec.CameFrom) {
		why = "it still answers at " + rec.CameFrom.String()
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return &operation.WaitError{Reason: doubt(rec, errors.New(why)).Error()}
}

// answers tells whether a machine answers at an address.
func (m *Migrations) answers(ctx context.Context, at netip.Addr) bool {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	return m.cfg.Answers(ctx, at)
}
