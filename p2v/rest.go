package p2v

import (
	"context"
	"errors"
	"net"
	"slices"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/atrest"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/virtp2v"
)

// How long is tried before it is taken that disks cannot be read, and that a server is off. Who
// asks for a move waits for the first.
const (
	openTime   = 15 * time.Second
	answerTime = 3 * time.Second
)

// reach is the way to the source: to the server, or to its disks alone.
func (m *Migrations) reach(ctx context.Context, rec move.Record) (Server, error) {
	if rec.AtRest() {
		return m.cfg.DialAtRest(ctx, m.disksAtRest(rec.Assessment, rec.Disks, rec.DisksFrom), rec.Certificates)
	}
	return m.cfg.Dial(ctx, rec.Source)
}

// disksAtRest are the disks that are moved, with where each is read.
func (m *Migrations) disksAtRest(assessment string, disks []move.Disk, from []move.DiskFrom) []atrest.Disk {
	out := make([]atrest.Disk, 0, len(disks))
	for _, d := range disks {
		a := atrest.Disk{Name: d.Name, ID: d.ID, Size: int64(d.Size)} //nolint:gosec // disksOf bounds it
		for _, f := range from {
			if f.Disk != d.Name {
				continue
			}
			a.Image, a.NBD = f.Image, f.NBD
			if f.Comes() {
				a.NBD = virtp2v.URI
				a.Dial = func(ctx context.Context) (net.Conn, error) { return m.cfg.Arrivals.dial(ctx, assessment, d.Name) }
			}
		}
		out = append(out, a)
	}
	return out
}

// same makes sure that the disks of a server that is off are read where they are now: an image may
// have another in its place, which the next stay opens, and looks at as a whole.
func (s *stay) same(ctx context.Context) error {
	if disks, is := s.server.(interface {
		Same(ctx context.Context) error
	}); is {
		return disks.Same(ctx)
	}
	return nil
}

// openable opens the disks of a server that is off once, so that who asks for the move is told
// what is wrong with them.
func (m *Migrations) openable(ctx context.Context, w move.Wish, disks []move.Disk) error {
	if len(w.DisksFrom) == 0 {
		return nil
	}
	cannot := func(format string, args ...any) error {
		return gpu.Errorf(gpu.CodeInvalid, "%s: "+format, append([]any{cannotMigrate(w)}, args...)...)
	}
	for _, d := range disks {
		if !slices.ContainsFunc(w.DisksFrom, func(f move.DiskFrom) bool { return f.Disk == d.Name }) {
			return cannot("nothing is said of where disk %q is read, which is moved, too", d.Name)
		}
	}
	for _, f := range w.DisksFrom {
		if !slices.ContainsFunc(disks, func(d move.Disk) bool { return d.Name == f.Disk }) {
			return cannot("the server has no disk %q that is moved", f.Disk)
		}
	}
	switch comes := slices.ContainsFunc(w.DisksFrom, move.DiskFrom.Comes); {
	case comes && m.cfg.Arrivals == nil:
		return gpu.Errorf(gpu.CodeConflict, "%s: virt-p2v does not come to this host", cannotMigrate(w)).
			WithHint("set p2v.listen to the address and port where it may, and restart the daemon")
	case comes && m.cfg.Arrivals.vouched(w.Assessment) == nil:
		return nil // it is waited for
	}
	ctx, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	server, err := m.cfg.DialAtRest(ctx, m.disksAtRest(w.Assessment, disks, w.DisksFrom), w.Certificates)
	if err == nil {
		err = server.Close()
	}
	if err == nil {
		return nil
	}
	refusal := gpu.Wrap(err, gpu.CodeUnavailable, "%s", cannotMigrate(w))
	if slices.Contains([]gpu.Code{gpu.CodeUnauthorized, gpu.CodeForbidden, gpu.CodeNotFound}, refusal.Code) {
		refusal.Code = gpu.CodeConflict // it is of the disk: who asks is let in
	}
	return refusal
}

// copying says what the step that copies does.
func copying(rec move.Record) string {
	disks := assess.Count(len(rec.Disks), "disk", "disks")
	if rec.AtRest() {
		return "copy " + disks + " of a server that is off, until it is cut over"
	}
	return "copy " + disks + " while the server runs, until it is cut over"
}

// off refuses somebody's word that a source whose disks alone are read is off, where it answers as
// it did when it was assessed. A rescue system has another key.
func (t *try) off(ctx context.Context) error {
	from := t.rec.Source
	if !t.rec.AtRest() || from.Address == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	server, err := t.m.cfg.Dial(ctx, from)
	if err != nil {
		return nil //nolint:nilerr // which is what was to be known
	}
	_ = server.Close()
	return gpu.Errorf(gpu.CodeConflict, "the source is not off, as was said: it answers at %s", from.Address).
		WithHint("shut it down; what it has written since is copied by the next pass")
}

// taken takes somebody's word that the source is off. From here on there is only the VM. Of a server
// that came to us it is the word that it stays off: it is told that it is done, and has to go.
func (t *try) taken(ctx context.Context) error {
	if err := t.off(ctx); err != nil {
		return err
	}
	if t.rec.Comes() {
		t.came = t.m.cfg.Arrivals.now(t.rec.Assessment) // the same all the time, as its disks were never away
		if err := t.fenced(move.FenceAsked, ""); err != nil {
			return err
		}
		if cause := context.Cause(ctx); cause != nil { // as below
			return errors.Join(t.fenced(move.FenceNone, ""), cause)
		}
		return errTold
	}
	if err := t.phase("the source is off, as " + t.actor + " says"); err != nil {
		return err
	}
	if err := t.fenced(move.FenceOff, ""); err != nil {
		return err
	}
	if cause := context.Cause(ctx); cause != nil { // that somebody does not want it any more, last of all
		return errors.Join(t.fenced(move.FenceNone, ""), cause)
	}
	if err := t.ended(nil); err != nil {
		t.task.Logf("%v", err)
	}
	return errFenced
}
