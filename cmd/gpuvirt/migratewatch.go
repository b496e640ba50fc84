package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"gpuvirt/api"
	"gpuvirt/p2v/move"
)

// lifeEvery is between signs of life of what takes long, where no line is live.
const lifeEvery = time.Minute

// A watch shows how a migration goes: a line for each phase, and how far its pass is. On a terminal
// that has one line that is written over; elsewhere it is told now and then.
type watch struct {
	progress
	said string    // the phase
	told time.Time // when something was
	next time.Duration
}

// update shows what changed.
func (w *watch) update(m api.Migration) {
	if at := tryPhase(m); at != w.said {
		w.over("")
		fmt.Fprintln(w.out, clean(at))
		w.said, w.told, w.next = at, time.Now(), slowAfter
	}
	line := cmp.Or(passed(m), expected(m))
	switch {
	case w.live && line == "":
		w.over("")
	case w.live:
		w.over("  " + line)
	case line != "" && time.Since(w.told) >= w.next:
		fmt.Fprintln(w.out, clean("  "+line))
		w.told, w.next = time.Now(), lifeEvery
	}
}

// watch shows how a migration goes until it is as wanted.
func (c *cli) watch(ctx context.Context, m api.Migration, wanted func(api.Migration) bool) (api.Migration, error) {
	ctx, cancel := c.limited(ctx)
	defer cancel()
	w := &watch{progress: progress{out: c.err, live: c.errTerminal}}
	defer w.end()
	is := func(m api.Migration) bool {
		w.update(m)
		return wanted(m)
	}
	if !is(m) {
		var err error
		if m, err = c.client().WaitMigration(ctx, m.Name, is); ctx.Err() != nil {
			return m, &goesOnError{op: m.Operation, migration: m.Name, end: ending(m), err: ctx.Err()}
		} else if err != nil {
			return m, err
		}
	}
	w.over("")
	return m, nil
}

// ending is the command that ends what is tried of a migration; empty: nothing is.
func ending(m api.Migration) string {
	a := lastTry(m)
	switch {
	case m.Fence != "":
		return "gpuvirt migrate rollback " + m.Name
	case a != nil && !a.Over():
		return "gpuvirt migrate withdraw " + m.Name
	}
	return ""
}

// passed tells how far the pass of a migration is that is under way; empty: there is none.
func passed(m api.Migration) string {
	p := m.Progress
	if p == nil {
		return ""
	}
	disk := p.Disk
	if i := slices.IndexFunc(m.Disks, func(d move.Disk) bool { return d.Name == p.Disk }); len(m.Disks) > 1 && i >= 0 {
		disk += fmt.Sprintf(" (%d of %d)", i+1, len(m.Disks))
	}
	parts := []string{disk, cmp.Or(percent(int64(p.Done), int64(p.Total)), "0%")} //nolint:gosec // sizes of disks
	if p.Rate > 0 {
		parts = append(parts, size(p.Rate)+"/s")
	}
	if p.Remaining != nil {
		if left := seconds(*p.Remaining); left != "" {
			parts = append(parts, left+" left")
		}
	}
	return strings.Join(parts, ", ")
}

// expected tells what a migration waits for between its passes; empty: that is not known.
func expected(m api.Migration) string {
	switch {
	case m.Reason != "":
		return m.Reason
	case in(m, move.PhaseReserved) || in(m, move.PhaseSyncing) && m.Heard == nil: // the latter of a daemon before
		return "the server has not been reached yet"
	case in(m, move.PhaseSyncing) && m.Forecast != nil:
		away := m.Forecast.DowntimeSeconds
		if m.Forecast.Conversion.Basis == "" {
			away = m.Forecast.FinalSeconds // of a daemon before
		}
		return fmt.Sprintf("a cut-over would take the service away for %s now, and %s are allowed", orDash(seconds(away)), seconds(m.Forecast.BudgetSeconds))
	}
	return ""
}

// settledDown reports whether a migration that was begun needs no more to be cut over, or does not get there by itself.
func settledDown(m api.Migration) bool {
	return tooLong(m) || !in(m, move.PhasePlanned, move.PhaseReserved, move.PhaseSyncing, move.PhaseRollingBack)
}

// tooLong reports whether the disks are copied, and a cut-over would not fit however little is left of them.
func tooLong(m api.Migration) bool {
	f := m.Forecast
	return in(m, move.PhaseSyncing) && m.Progress == nil && f != nil && f.Conversion.Basis != "" && f.DowntimeSeconds-f.FinalSeconds > f.BudgetSeconds
}

// in reports whether a migration is in one of these phases.
func in(m api.Migration, phases ...move.Phase) bool {
	return slices.Contains(phases, move.Phase(m.Phase))
}

// passedOver returns what reports whether all disks were passed over once more than before, or will not be.
func passedOver(before api.Migration) func(api.Migration) bool {
	want := map[string]int{}
	under := false // the disk is passed over now, or will be by the same pass
	for _, d := range before.Disks {
		under = under || before.Progress != nil && before.Progress.Disk == d.Name
		want[d.Name] = d.Total + 1
		if under { // which was before what is asked for
			want[d.Name]++
		}
	}
	return func(m api.Migration) bool {
		if !in(m, move.PhasePlanned, move.PhaseReserved, move.PhaseSyncing, move.PhaseReady, move.PhaseRehearsing, move.PhaseCuttingOver) {
			return true
		}
		return !slices.ContainsFunc(m.Disks, func(d move.Disk) bool {
			return d.Total < want[d.Name] || len(d.Passes) == 0 || !d.Passes[len(d.Passes)-1].Complete
		})
	}
}

// ended fails where a migration waits for a person, or has ended without a VM.
func (c *cli) ended(ctx context.Context, m api.Migration) error {
	switch {
	case in(m, move.PhaseWaiting):
		return &triedError{m}
	case in(m, move.PhaseFailed, move.PhaseRolledBack):
		op, err := c.client().Operation(ctx, m.Operation)
		if err != nil {
			return err
		}
		return &operationError{op}
	}
	return nil
}

// nextStep says what to do with a migration that is copied.
func nextStep(m api.Migration) string {
	if tooLong(m) {
		return fmt.Sprintf("it is copied, and a cut-over would take the service away for %s, of which %s are allowed, however little is left to copy; "+
			"next: gpuvirt migrate rehearse %s measures what it takes here; it is copied on meanwhile",
			seconds(m.Forecast.DowntimeSeconds), seconds(m.Forecast.BudgetSeconds), m.Name)
	}
	off := ""
	if len(m.DisksFrom) > 0 {
		off = " --source-off"
	}
	return fmt.Sprintf("next: gpuvirt migrate rehearse %[1]s, and then gpuvirt migrate cutover %[1]s%[2]s; it is copied on meanwhile", m.Name, off)
}
