package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/api"
	"gpuvirt/p2v/move"
)

// passing are a migration's first pass and what comes of it.
func passing() []api.Migration {
	begun, on, planned := copied("new1", 0, 0, -1), copied("new1", 216466351718, 110100480, 2715.2), copied("new1", 0, 0, -1)
	planned.Phase, planned.Progress = "planned", nil
	over := on
	over.Progress, over.Forecast = nil, &move.Forecast{FinalSeconds: 900, Conversion: move.Part{Basis: move.Estimated, Seconds: 300}, DowntimeSeconds: 1200, BudgetSeconds: 600}
	ready := over
	ready.Phase, ready.Forecast = "ready", &move.Forecast{FinalSeconds: 9.1, BudgetSeconds: 600, Fits: true}
	return []api.Migration{planned, begun, on, over, ready}
}

// On a terminal one line tells how far the pass is, and is written over.
func TestWatchLive(t *testing.T) {
	var got bytes.Buffer
	w := &watch{progress: progress{out: &got, live: true}}
	for _, m := range passing() {
		w.update(m)
	}
	w.over("")
	w.end()
	var want strings.Builder
	want.WriteString("planned\nsyncing\n")
	line := ""
	for _, next := range []string{
		"  sda (1 of 2), 0%", "  sda (1 of 2), 41%, 105 MiB/s, 45m15s left", "  a cut-over would take the service away for 20m0s now, and 10m0s are allowed",
	} {
		want.WriteString("\r" + next + strings.Repeat(" ", max(len(line)-len(next), 0)))
		line = next
	}
	want.WriteString("\r" + strings.Repeat(" ", len(line)) + "\rready\n")
	if diff := cmp.Diff(want.String(), got.String()); diff != "" {
		t.Error(diff)
	}
}

// Elsewhere there is a line for each phase, and a sign of life now and then.
func TestWatchLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got bytes.Buffer
		w := &watch{progress: progress{out: &got}}
		all := passing()
		for _, m := range all[:2] {
			w.update(m)
		}
		for range 70 {
			<-time.After(time.Second)
			w.update(all[2])
		}
		w.update(all[4])
		want := "planned\nsyncing\n" + strings.Repeat("  sda (1 of 2), 41%, 105 MiB/s, 45m15s left\n", 2) + "ready\n"
		if diff := cmp.Diff(want, got.String()); diff != "" {
			t.Error(diff)
		}
	})
}

// Whoever begins a move waits until it is ready, and is told what to do then; or what is in its way.
func TestStartWaits(t *testing.T) {
	all := passing()
	waiting, back, off := all[2], all[2], all[4]
	waiting.Phase, waiting.Reason, waiting.Progress = "waiting", "there is no room", nil
	back.Phase, back.Operation, back.Progress = "rolled-back", "undone", nil
	off.DisksFrom = []move.DiskFrom{{Disk: "sda", Image: "/srv/images/db1.raw"}}
	long := all[3]
	long.Progress = nil
	f := *long.Forecast
	f.FinalSeconds = 10
	f.Conversion = move.Part{Seconds: 1190, Basis: move.Estimated, Text: "of any server"}
	long.Forecast = &f
	for name, c := range map[string]struct {
		then []any
		args string
		code int
		want []string
	}{
		"ready":     {[]any{all[0], all[2], all[4]}, "", exitDone, []string{"planned\nsyncing\nready\nnext: gpuvirt migrate rehearse new1, and then gpuvirt migrate cutover new1; it is copied on meanwhile\n", "new1  db1     ready"}},
		"too long":  {[]any{all[1], long}, "", exitDone, []string{"of which 10m0s are allowed, however little is left to copy; next: gpuvirt migrate rehearse new1"}},
		"off":       {[]any{off}, "", exitDone, []string{"gpuvirt migrate cutover new1 --source-off;"}},
		"cut over":  {[]any{all[1], api.Migration{Name: "new1", Phase: "cutting-over"}}, "", exitDone, []string{"syncing\ncutting-over\n"}},
		"waiting":   {[]any{all[1], waiting}, "", exitNotReady, []string{"error: migration new1 waits: there is no room\n", "hint: when that is done: gpuvirt migrate retry new1\n"}},
		"undone":    {[]any{all[1], back}, "", exitFailed, []string{"error: cannot reserve: no capacity\n", "what had been done was undone (operation undone)"}},
		"too late":  {[]any{all[1]}, " --timeout 50ms", exitNotReady, []string{"error: migration new1 was not done in time\n", "hint: it goes on; to see how far it is: gpuvirt migrate show new1\n"}},
		"no wait":   {[]any{all[1]}, " --no-wait", exitDone, []string{"gpuvirt migrate show new1\n", "new1  db1     syncing"}},
		"json":      {[]any{all[1], all[4]}, " -o json", exitDone, []string{`"phase": "ready"`}},
		"wait said": {[]any{all[1], all[4]}, " --wait", exitDone, []string{"next: "}},
	} {
		t.Run(name, func(t *testing.T) {
			f, socket := startFake(t)
			f.series["GET migrations/new1"] = c.then
			undone := operations["attach"]
			undone.ID, undone.Status, undone.Problem = "undone", "undone", &api.Problem{Detail: "cannot reserve: no capacity"}
			f.answers["GET operations/undone"] = undone
			s := &session{args: strings.Fields("migrate start new1 --assessment carried" + c.args)}
			s.run(t.Context(), socket)
			if s.code != c.code {
				t.Errorf("exit status %d\n%s", s.code, s)
			}
			for _, want := range c.want {
				if !strings.Contains(s.stdout+s.stderr, want) {
					t.Errorf("no %q in\n%s", want, s)
				}
			}
		})
	}
}

// Between passes it is told what is waited for, as far as it is known.
func TestExpected(t *testing.T) {
	all := passing()
	unreached, locked := all[1], all[3]
	unreached.Progress, unreached.Heard = nil, nil
	locked.Reason = "a passphrase is wanted"
	for want, m := range map[string]api.Migration{
		"": all[4], "the server has not been reached yet": unreached, "a passphrase is wanted": locked,
		"a cut-over would take the service away for 20m0s now, and 10m0s are allowed": all[3],
	} {
		if got := expected(m); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}

// A pass that is asked for is the next one: that under way when it was asked for does not count.
func TestSyncWaits(t *testing.T) {
	at := func(sda, sdb int, complete bool, now *move.Progress) api.Migration {
		m := passing()[4]
		m.Progress = now
		m.Disks = []move.Disk{{Name: "sda", Total: sda, Passes: []move.Pass{{Complete: complete}}}, {Name: "sdb", Total: sdb, Passes: []move.Pass{{Complete: true}}}}
		return m
	}
	on := func(disk string) *move.Progress { return &move.Progress{Disk: disk} }
	failed := at(1, 1, true, nil)
	failed.Phase = "waiting"
	for name, c := range map[string]struct {
		before, then api.Migration
		is           bool
	}{
		"not yet":                   {at(1, 1, true, nil), at(2, 1, true, on("sdb")), false},
		"over":                      {at(1, 1, true, nil), at(2, 2, true, nil), true},
		"broken off":                {at(1, 1, true, nil), at(2, 2, false, nil), false},
		"that before":               {at(1, 1, true, on("sda")), at(2, 2, true, nil), false},
		"that after it":             {at(1, 1, true, on("sda")), at(3, 3, true, nil), true},
		"that before, second disk":  {at(2, 1, true, on("sdb")), at(3, 2, true, on("sdb")), false},
		"after it, second disk":     {at(2, 1, true, on("sdb")), at(3, 3, true, nil), true},
		"it waits for a person now": {at(1, 1, true, nil), failed, true},
	} {
		if is := passedOver(c.before)(c.then); is != c.is {
			t.Errorf("%s: %v", name, is)
		}
	}
	f, socket := startFake(t)
	f.series["GET migrations/new1"] = []any{at(1, 1, true, nil), at(2, 1, true, on("sdb")), at(2, 2, true, nil)}
	f.answers["POST migrations/new1/sync"] = at(1, 1, true, on("sda"))
	s := &session{args: strings.Fields("migrate sync new1")}
	s.run(t.Context(), socket)
	if s.code != exitDone || len(f.series["GET migrations/new1"]) != 1 {
		t.Errorf("%s", s)
	}
}
