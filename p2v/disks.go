package p2v

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/p2v/lines"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
)

// lateDisks is how long after its start a server may take to have all of its disks.
const lateDisks = 10 * time.Minute

// find has the source say which of its disks are those of the move, as it is called anew each time it was
// started. All that works with them there is told the names that they have now.
func (s *stay) find(ctx context.Context) error {
	if s.rec.AtRest() {
		return nil // they are named here, too
	}
	now, err := s.present(ctx)
	if err != nil {
		return err
	}
	s.names, err = namesOf(s.rec.Disks, now, s.rec.SeenIn)
	if err != nil {
		return err
	}
	for _, d := range s.rec.Disks {
		if name := s.called(d.Name); name != d.Name {
			s.task.Logf("%s is %s there now", d.Name, name)
		}
	}
	rec, err := s.m.update(s.rec.Name, func(r *move.Record) { r.SeenIn = now.BootID })
	if err == nil {
		s.rec = rec
	}
	return err
}

// called is what the source calls a disk now.
func (s *stay) called(disk string) string { return cmp.Or(s.names[disk], disk) }

// present asks the source which disks it has.
func (s *stay) present(ctx context.Context) (report.Present, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, gpu.Errorf(gpu.CodeUnavailable, "the source does not say in a minute which disks it has"))
	defer cancel()
	var p report.Present
	conn, err := s.server.Open(ctx, s.program[0], append(slices.Clone(s.program[1:]), "disks")...)
	if ctx.Err() != nil {
		return p, errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		return p, err
	}
	said := lines.New(conn, report.MaxPresent)
	defer said.Close() //nolint:errcheck // it has said it
	if err = said.Hear(ctx, &p); err == nil {
		err = p.Check()
	}
	if err != nil {
		return p, fmt.Errorf("cannot tell which disks the source has: %w", err)
	}
	return p, nil
}

// namesOf are what a source calls the disks of a move now, by the names that they have here; seen is its boot
// in which it was known last which is which, if ever. It is an error where that is not known, with
// gpu.CodeUnavailable where it may be later.
func namesOf(disks []move.Disk, now report.Present, seen string) (map[string]string, error) {
	names, taken := map[string]string{}, map[string]bool{}
	take := func(d move.Disk, name string) { names[d.Name], taken[name] = name, true }
	var moved []move.Disk
	for _, d := range disks { // those with their old name first, so that no other takes that
		switch same := alike(d, now); {
		case len(same) == 0:
			return nil, gone(d, now)
		case (len(same) > 1 || d.Twins > 0) && !report.Worldwide(d.ID) && (seen != "" && seen != now.BootID || !slices.Contains(same, d.Name)):
			return nil, unsure(d, same)
		case slices.Contains(same, d.Name):
			take(d, d.Name)
		default:
			moved = append(moved, d)
		}
	}
	for _, d := range moved {
		same := slices.DeleteFunc(alike(d, now), func(name string) bool { return taken[name] })
		if len(same) == 0 {
			return nil, gone(d, now)
		}
		take(d, same[0])
	}
	return names, nil
}

// twins reports whether two disks of a source are told apart by nothing but their names.
func twins(a, b report.Here) bool {
	return a.SizeBytes == b.SizeBytes && (!report.Worldwide(a.ID) && a.ID == b.ID || report.Anonymous(a.ID) && report.Anonymous(b.ID))
}

// alike are the names of the disks that may be one of a move. Of one that says nothing of itself its name
// is all there is: others that do not, and have its size, may have changed theirs with it. What disks of
// several sizes say of themselves tells them apart only with their size.
func alike(d move.Disk, now report.Present) []string {
	var out []string
	found, sized := false, slices.ContainsFunc(now.Disks, func(h report.Here) bool { return h.ID == d.ID && h.SizeBytes == d.Size })
	for _, h := range now.Disks {
		is := h.ID == d.ID && (h.SizeBytes == d.Size || !sized)
		found = found || is
		if (is || twins(report.Here{ID: d.ID, SizeBytes: d.Size}, h)) && diskName.MatchString(h.Name) { // it becomes a word of a command there
			out = append(out, h.Name)
		}
	}
	if !found {
		return nil
	}
	return out
}

// gone is the error of a disk that is not there.
func gone(d move.Disk, now report.Present) error {
	code, why := gpu.CodeConflict, "retry when it is there again, or roll back"
	if now.Up > 0 && now.Up < uint64(lateDisks.Seconds()) {
		code, why = gpu.CodeUnavailable, "it was started a moment ago, and may have it yet"
	}
	var has []string
	for _, h := range now.Disks {
		has = append(has, fmt.Sprintf("%s %q", report.CleanString(h.Name), h.ID))
	}
	const most = 8
	if len(has) > most {
		has = append(has[:most], "and more")
	}
	return gpu.Errorf(code, "disk %s %q is not on the source, which has %s: %s", d.Name, d.ID, cmp.Or(strings.Join(has, ", "), "none"), why)
}

// unsure is that of one that several may be.
func unsure(d move.Disk, same []string) error {
	apart := fmt.Sprintf("tells %s apart", strings.Join(same, " and "))
	if len(same) == 1 {
		apart = fmt.Sprintf("told it from %d others", d.Twins)
	}
	return gpu.Errorf(gpu.CodeConflict, "it is not known which disk of the source is %s: it was started again since that was known, "+
		"nothing but the name %s, and names may be others after a start. Roll back, have the server assessed again, and begin anew", d.Name, apart)
}
