package main

import (
	"fmt"
	"strings"
	"testing"

	"gpuvirt/api"
	"gpuvirt/gpu"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/move"
)

// A plan that nothing blocks is not ready where a start is refused for another reason.
func TestPlanIsRefused(t *testing.T) {
	for args, named := range map[string]bool{
		"migrate start web --assessment gpu7 --dry-run": true, "migrate plan web --assessment gpu7": true, "migrate plan --assessment gpu7": false,
	} {
		f, socket := startFake(t)
		p := migrationPlan("ready")
		p.Problem = &api.Problem{Status: 409, Code: "conflict", Detail: "cannot migrate it: there is a VM", Hint: "--vm", Blockers: []api.Blocker{{Kind: "vm", ID: "u", Name: "web1"}}}
		f.answers["POST migrations"] = p
		s := &session{args: strings.Fields(args)}
		s.run(t.Context(), socket)
		if s.code != exitConflict || strings.Contains(s.stdout, p.Verdict.Text) || !strings.Contains(s.stdout, "Refused: cannot migrate it: there is a VM") {
			t.Errorf("%s", s)
		}
		for _, want := range []string{"error: cannot migrate it: there is a VM\n", "hint: --vm\n", "blocker: vm u (web1)\n"} {
			if !strings.Contains(s.stderr, want) {
				t.Errorf("no %q in\n%s", want, s)
			}
		}
		if strings.Contains(f.requests[0], `"name":`) != named {
			t.Errorf("%s: %s", args, f.requests[0])
		}
		s = &session{args: strings.Fields(args + " -o name")}
		if s.run(t.Context(), socket); s.stdout != "refused\n" {
			t.Errorf("%s", s)
		}
	}
}

// Whatever is asked of a start can be asked of its plan.
func TestPlanTakesWhatStartTakes(t *testing.T) {
	plan, _, err := newRoot(&cli{}).Find([]string{"migrate", "plan"})
	if err != nil {
		t.Fatal(err)
	}
	start, _, err := newRoot(&cli{}).Find([]string{"migrate", "start"})
	if err != nil {
		t.Fatal(err)
	}
	if a, b := plan.LocalFlags().FlagUsages(), start.LocalFlags().FlagUsages(); strings.ReplaceAll(a, " (required)", "") != strings.ReplaceAll(b, " (required)", "") {
		t.Errorf("plan takes\n%s\nstart takes\n%s", a, b)
	}
	f, socket := startFake(t)
	s := &session{args: strings.Fields("migrate plan --assessment a --convert none --key sda3=k --lease 0 --network default")}
	s.run(t.Context(), socket)
	want := `POST /v1/migrations?dry_run=true {"assessment":"a","plan":{},"vm":{"network":"default","convert":"none"},"lease_seconds":0,"keys":[{"volume":"sda3","credential":"k"}]}`
	if len(f.requests) != 1 || f.requests[0] != want {
		t.Errorf("%s\n%s", s, strings.Join(f.requests, "\n"))
	}
}

// Who names a profile for a GPU is told of that one, and not of all others; of a GPU that none is named for each reason is told once.
func TestPlanShowsFewCandidates(t *testing.T) {
	f, socket := startFake(t)
	p := migrationPlan("blocked")
	fit := assess.Fitting{Need: assess.Need{Source: assess.NeedSource{PCI: "0000:c1:00.0"}, Required: true}}
	for i := range 40 {
		reason := fmt.Sprintf("a workload has %d.5 GiB of it, needed are 90.0 GiB", i%20)
		if i%20 == 0 {
			reason = "a workload has 512 MiB of it, needed are 90.0 GiB"
		}
		if i == 39 {
			reason = "it is taken"
		}
		fit.Candidates = append(fit.Candidates, assess.Candidate{GPU: gpu.ID(fmt.Sprintf("gpu%d", i)), Profile: fmt.Sprintf("L40S-%dQ", i%20), Reasons: []string{reason}, Cautions: []string{"mind this"}})
	}
	p.Fittings = []assess.Fitting{fit}
	f.answers["POST migrations"] = p
	grouped := []string{"rejected  39, such as L40S-0Q on gpu0: a workload has 512 MiB of it, needed are 90.0 GiB\n", "rejected  L40S-19Q on gpu39: it is taken\n", "-o wide lists all"}
	for args, want := range map[string][]string{
		"":                               grouped,
		"--profile L40S-8Q":              grouped, // of a partition beside
		"--profile 0000:c2:00.0=none":    grouped,
		"--profile 0000:c1:00.0=none":    grouped,
		"--profile 0000:c2:00.0=L40S-8Q": grouped,
		"--profile 0000:c1:00.0=L40S-8Q": {"rejected  2, such as L40S-8Q on gpu8: a workload has 8.5 GiB", "rejected  38 others, which were not asked for\n"},
		"--profile 0000:c1:00.0=L40S-19Q --profile L40S-8Q": {"rejected  L40S-19Q on gpu19: a workload", "rejected  L40S-19Q on gpu39: it is taken\n", "rejected  38 others, which were not asked for\n"},
		"-o wide": {"rejected  L40S-0Q on gpu0: a workload has 512 MiB of it, needed are 90.0 GiB; mind this\n", "rejected  L40S-18Q on gpu38: a workload has 18.5 GiB"},
	} {
		s := &session{args: strings.Fields("migrate plan --assessment a " + args)}
		s.run(t.Context(), socket)
		lines := strings.Count(strings.Join(want, ""), "rejected  ")
		if args == "-o wide" {
			lines = 40
		}
		if got := strings.Count(s.stdout, "  rejected  "); got != lines {
			t.Errorf("%d lines\n%s", got, s)
		}
		for _, want := range want {
			if !strings.Contains(s.stdout, want) {
				t.Errorf("no %q in\n%s", want, s)
			}
		}
	}
}

// Those that fit are told of by their names, beside what to know of the one that is taken.
func TestPlanShowsWhatFits(t *testing.T) {
	var f assess.Fitting
	for i := range 10 {
		f.Candidates = append(f.Candidates, assess.Candidate{GPU: "gpu0", Profile: fmt.Sprintf("p%d", i), Fits: true, Reasons: []string{"so"}, Cautions: []string{"mind this"}})
	}
	f.Choice = &assess.Choice{Candidate: f.Candidates[0]}
	got := fmt.Sprint(candidateRows(f, nil, false))
	if want := "[[caution mind this] [fits p0 on gpu0, p1 on gpu0, p2 on gpu0, p3 on gpu0, p4 on gpu0, p5 on gpu0, p6 on gpu0, p7 on gpu0, 2 others] [ -o wide lists all of them, each with its reasons]]"; got != want {
		t.Error(got)
	}
}

// Flags that would mean nothing are refused, and nothing is asked of the daemon.
func TestFlagsThatMeanNothing(t *testing.T) {
	f, socket := startFake(t)
	for args, want := range map[string]string{
		"assessment create a --file f --window 5m":                   "--window",
		"assessment create a --file f --credential x":                "--credential",
		"assessment create a --source h --host-key x --interval 10s": "--interval",
		"migrate start a --assessment a --connections 0":             "--connections 0: it must be 1 to 16",
		"migrate start a --assessment a --bandwidth 0.5 --dry-run":   `"0.5" is no rate`,
		"migrate start a --assessment a --every 0s":                  "--every 0s: it must be 10s to 24h",
		"migrate plan a --threads 2":                                 "--threads is of --assessment",
		"migrate set a --connections 0":                              "--connections 0",
	} {
		s := &session{args: strings.Fields(args)}
		if s.run(t.Context(), socket); s.code != exitUsage || !strings.Contains(s.stderr, want) {
			t.Errorf("no %q in\n%s", want, s)
		}
	}
	if len(f.requests) > 0 {
		t.Errorf("asked: %q", f.requests)
	}
}

// Who takes a migration back is told what goes with it.
func TestRollbackSaysWhatGoes(t *testing.T) {
	f, socket := startFake(t)
	s := &session{args: strings.Fields("migrate rollback gpu7"), terminal: true, stdin: "n\n"}
	s.run(t.Context(), socket)
	for _, want := range []string{"Take migration gpu7 back", "copies of 1 disk", "its VM gpu7", "what was written in it", "reserved"} {
		if !strings.Contains(s.stderr, want) {
			t.Errorf("no %q in\n%s", want, s)
		}
	}
	if len(f.requests) > 0 {
		t.Errorf("asked: %q", f.requests)
	}
}

// Who takes a migration back after its server was powered off is told that it has to be started: before, and after.
func TestRollbackSaysWhatIsLeft(t *testing.T) {
	f, socket := startFake(t)
	m := migrations[0]
	m.Phase, m.Fence = "waiting", "off"
	after := m
	after.Phase, after.Reason = "rolled-back", "the source was powered off: start it again"
	f.answers["POST migrations/gpu7/rollback"] = after
	for fence, want := range map[string]string{"off": "The server is off, and nobody but you starts it again.", "asked": "It is not known whether the server is off"} {
		m.Fence = fence
		f.answers["GET migrations/gpu7"] = m
		s := &session{args: strings.Fields("migrate rollback gpu7"), terminal: true, stdin: "y\n"}
		s.run(t.Context(), socket)
		for _, want := range []string{want, "start it again", "the source was powered off: start it again\n"} {
			if !strings.Contains(s.stderr, want) || s.code != exitDone {
				t.Errorf("no %q in\n%s", want, s)
			}
		}
	}
	f.answers["POST migrations/gpu7/rollback"] = m
	s := &session{args: strings.Fields("migrate rollback gpu7 --no-wait --yes")}
	if s.run(t.Context(), socket); !strings.Contains(s.stderr, "start it again when the migration is rolled back") {
		t.Errorf("%s", s)
	}
}

// Once the server was told to power off there is no cut-over to be forecast: it is told since when its service is away.
func TestShowAfterPowerOff(t *testing.T) {
	f, socket := startFake(t)
	m := migrations[0]
	m.Phase, m.Fence = "verifying", "off"
	m.Attempts = []move.Attempt{{Kind: move.Cutover, State: move.Passed, AtRest: at(9000), Rest: 300}}
	f.answers["GET migrations/gpu7"] = m
	s := &session{args: strings.Fields("migrate show gpu7")}
	s.run(t.Context(), socket)
	if strings.Contains(s.stdout, "Power off") || strings.Contains(s.stdout, "Last pass") || !strings.Contains(s.stdout, when(at(9000))) || !strings.Contains(s.stdout, "Away since") {
		t.Errorf("%s", s)
	}
	m.Phase, m.Attempts[0].Downtime = "done", 400
	f.answers["GET migrations/gpu7"] = m
	s = &session{args: strings.Fields("migrate show gpu7")}
	if s.run(t.Context(), socket); strings.Contains(s.stdout, "Away since") {
		t.Errorf("%s", s)
	}
}

// Who waits no longer for what is tried is told how it is ended.
func TestTooLateSaysHowToEnd(t *testing.T) {
	for fence, want := range map[string]string{"": "; to end it: gpuvirt migrate withdraw gpu7\n", "off": "; to end it: gpuvirt migrate rollback gpu7\n"} {
		f, socket := startFake(t)
		m := api.Migration{Name: "gpu7", Phase: "cutting-over", Fence: fence, Attempts: []move.Attempt{{Kind: move.Cutover, State: move.Running}}}
		f.answers["POST migrations/gpu7/cutover"], f.answers["GET migrations/gpu7"] = m, m
		s := &session{args: strings.Fields("migrate cutover gpu7 --yes --timeout 50ms")}
		if s.run(t.Context(), socket); s.code != exitNotReady || !strings.Contains(s.stderr, "hint: it goes on; to see how far it is: gpuvirt migrate show gpu7"+want) {
			t.Errorf("no %q in\n%s", want, s)
		}
	}
}

// What a try failed of is told once, and where nothing has failed the look at the VM is.
func TestProblemIsToldOnce(t *testing.T) {
	f, socket := startFake(t)
	f.answers["POST migrations/gpu7/rehearse"] = api.Migration{
		Name: "gpu7", Phase: "ready", Attempts: []move.Attempt{{Kind: move.Rehearsal, State: move.Failed, Problem: "no room at all", Phase: "copying"}},
	}
	s := &session{args: strings.Fields("migrate rehearse gpu7")}
	s.run(t.Context(), socket)
	if strings.Count(s.String(), "no room at all") != 1 || s.code != exitFailed {
		t.Errorf("%s", s)
	}
	f.answers["POST migrations/gpu7/rehearse"] = api.Migration{Name: "gpu7", Phase: "waiting", Reason: "the VM does not start", Attempts: []move.Attempt{{Kind: move.Cutover, State: move.Moved}}}
	s = &session{args: strings.Fields("migrate rehearse gpu7")}
	if s.run(t.Context(), socket); strings.Count(s.String(), "the VM does not start") != 1 || s.code != exitNotReady {
		t.Errorf("%s", s)
	}
}

// A cut-over that waits is among the first that is told of a migration.
func TestShowTellsOfWhenReady(t *testing.T) {
	f, socket := startFake(t)
	m := api.Migration{Name: "gpu7", Phase: "syncing", Attempts: []move.Attempt{{Kind: move.Cutover, Actor: "anna", State: move.Asked, Wish: move.CutWish{WhenReady: true}}}}
	f.answers["GET migrations/gpu7"] = m
	s := &session{args: strings.Fields("migrate show gpu7")}
	s.run(t.Context(), socket)
	if lines := strings.Split(s.stdout, "\n"); len(lines) < 3 || !strings.Contains(strings.Join(lines[:3], "\n"), "cutover, as soon as it fits its limit, asked for by anna") {
		t.Errorf("%s", s)
	}
}

// Who changes how a migration copies is answered with that.
func TestSetAnswersWhatIsSet(t *testing.T) {
	f, socket := startFake(t)
	f.answers["PATCH migrations/gpu7"] = api.Migration{
		Name: "gpu7", Copy: move.Copy{Bandwidth: 50e6, Interval: 120, Connections: 2}, Keys: []api.Key{{Volume: "sda3", Credential: "k"}},
	}
	s := &session{args: strings.Fields("migrate set gpu7 --bandwidth 50M --every 2m")}
	s.run(t.Context(), socket)
	for _, want := range []string{"Bandwidth:", "47.7 MiB/s", "Every:", "2m0s", "Connections:", "credential k"} {
		if !strings.Contains(s.stdout, want) {
			t.Errorf("no %q in\n%s", want, s)
		}
	}
}
