package p2v

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/p2v/atrest"
	"gpuvirt/p2v/move"
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
		return m.cfg.DialAtRest(ctx, disksAtRest(rec.Disks, rec.DisksFrom), rec.Certificates)
	}
	return m.cfg.Dial(ctx, rec.Source)
}

// disksAtRest are the disks that are moved, with where each is read.
func disksAtRest(disks []move.Disk, from []move.DiskFrom) []atrest.Disk {
	out := make([]atrest.Disk, 0, len(disks))
	for _, d := range disks {
		a := atrest.Disk{Name: d.Name, ID: d.ID, Size: int64(d.Size)} //nolint:gosec // disksOf bounds it
		for _, f := range from {
			if f.Disk == d.Name {
				a.Image, a.NBD = f.Image, f.NBD
			}
		}
		out = append(out, a)
	}
	return out
}

// openable opens the disks of a server that is off once, so that who asks for the move is told
// what is wrong with them.
func (m *Migrations) openable(ctx context.Context, w move.Wish, disks []move.Disk) error {
	if len(w.DisksFrom) == 0 {
		return nil
	}
	cannot := func(format string, args ...any) error {
		return gpu.Errorf(gpu.CodeInvalid, "cannot migrate %q: "+format, append([]any{w.Name}, args...)...)
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
	ctx, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	server, err := m.cfg.DialAtRest(ctx, disksAtRest(disks, w.DisksFrom), w.Certificates)
	if err == nil {
		err = server.Close()
	}
	if err == nil {
		return nil
	}
	refusal := gpu.Wrap(err, gpu.CodeUnavailable, "cannot migrate %q", w.Name)
	if slices.Contains([]gpu.Code{gpu.CodeUnauthorized, gpu.CodeForbidden, gpu.CodeNotFound}, refusal.Code) {
		refusal.Code = gpu.CodeConflict // it is of the disk: who asks is let in
	}
	return refusal
}

// copying says what the step that copies does.
func copying(rec move.Record) string {
	if rec.AtRest() {
		return fmt.Sprintf("copy %d disks of a server that is off, until it is cut over", len(rec.Disks))
	}
	return fmt.Sprintf("copy %d disks while the server runs, until it is cut over", len(rec.Disks))
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

// taken takes somebody's word that the source is off. From here on there is only the VM.
func (t *try) taken(ctx context.Context) error {
	if err := t.off(ctx); err != nil {
		return err
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
