package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/api"
)

var update = flag.Bool("update", false, "write the golden files anew")

// A session is what a person sees of one command line.
type session struct {
	args     []string
	stdin    string
	terminal bool
	env      remote
	stdout   string
	stderr   string
	code     int
}

// gpuvirt runs one command line against a daemon at a socket.
func (s *session) run(ctx context.Context, socket string) {
	var out, err bytes.Buffer
	s.code = run(ctx, s.args, streams{
		in: strings.NewReader(s.stdin), out: &out, err: &err,
		inTerminal: s.terminal, errTerminal: s.terminal, socket: socket, env: s.env,
	})
	s.stdout, s.stderr = out.String(), err.String()
}

func (s *session) String() string {
	return fmt.Sprintf("$ gpuvirt %s\n%s-- stderr --\n%s-- exit %d --\n", strings.Join(s.args, " "), s.stdout, s.stderr, s.code)
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("-want +got (if it is right: go test ./cmd/gpuvirt -update)\n%s", diff)
	}
}

// Each file holds what the command lines of one noun or verb show.
func TestGolden(t *testing.T) {
	tests := map[string][]string{
		"gpu":       {"gpu list", "gpu list -o wide", "gpu list -o name", "gpu show 0000:3b:00.0", "gpu show 0000:5a:00.0", "gpu manage 0000:3b:00.0", "gpu manage 0000:3b:00.0 mbochs -o name", "gpu unmanage 0000:3b:00.0 --dry-run", "gpu repair 0000:3b:00.0 -o name", "gpu label 0000:3b:00.0 class- tier=gold", "gpu show 0000:ff:00.0"},
		"gpu_json":  {"gpu list -o json"},
		"gpu_yaml":  {"gpu show 0000:3b:00.0 -o yaml"},
		"profile":   {"profile list", "profile list --gpu mbochs -o wide", "profile list --gpu 0000:d8:00.0"},
		"partition": {"partition list", "partition list -o wide", "partition show " + partUUID, "partition create --profile T4-1Q", "partition create --profile T4-1Q --dry-run", "partition delete " + partUUID},
		"mig": {
			"mig show", "mig show -o wide", "mig show -o json", "mig show -o name", "mig show 0000:ff:00.0", "mig set 0000:5a:00.0 3g.20gb@4 2g.10gb=1c.2g.10gb,1c.2g.10gb 1g.5gb",
			"mig set 0000:5a:00.0 --empty --no-wait", "mig off 0000:5a:00.0 --dry-run", "mig set 0000:5a:00.0", "mig set 0000:5a:00.0 --empty 1g.5gb", "mig set 0000:5a:00.0 1g.5gb@x",
			"mig set 0000:5a:00.0 @3", "mig set", "mig export", "mig capacity", "mig capacity -o name", "mig capacity --profile 2g.10gb", "mig capacity --profile T4-1Q", "partition show 0000:5a:00.0/mig/4",
		},
		"vm":         {"vm list", "vm list -o wide", "vm show web1", "vm show db1 -o json"},
		"attach":     {"attach web1-gpu --vm web1 --profile T4-1Q", "attach web1-gpu --vm web1 --profile T4-1Q --no-wait -o name", "attach web1-gpu --vm web1 --profile T4-1Q --dry-run", "attach db1-gpu --vm db1 --profile T4-1Q --hotplug never -o json"},
		"detach":     {"detach web1-gpu", "detach web1-gpu --no-wait", "detach web1-gpu --dry-run -o json"},
		"assignment": {"assignment list", "assignment list -o wide", "assignment show web1-gpu", "assignment show db1-gpu"},
		"operation":  {"operation list", "operation show waiting", "operation wait waiting", "operation wait attach", "operation retry waiting --dry-run"},
		"capacity":   {"capacity", "capacity -o wide --profile T4-16Q", "capacity -o name", "capacity --profile T4-16Q -o json"},
		"events":     {"events --timeout 2s", "events --timeout 2s -o json"},
		"assessment": {
			"assessment list", "assessment list -o wide", "assessment show gpu7", "assessment show carried", "assessment show none",
			"assessment create gpu7 --source root@gpu7.example:2222 --host-key " + hostKey + " --credential gpu7 --window 1h",
			"assessment create gpu7 --source gpu7.example --host-key " + hostKey + " --credential gpu7 --dry-run",
			"assessment create gpu7", "assessment create gpu7 --source gpu7 --file x", "assessment create gpu7 --source gpu7:ssh", "assessment create gpu7 --source root@",
			"assessment create carried --file testdata/inspection.json", "assessment create carried --file testdata/token.golden",
			"assessment finish gpu7", "assessment finish gpu7 --dry-run", "assessment delete carried", "assessment delete carried --dry-run",
		},
		"migrate": {
			"migrate list", "migrate list -o wide", "migrate show gpu7", "migrate show old", "migrate show none",
			"migrate plan --assessment gpu7 --profile H100-2-20C --waive no-disk=why", "migrate plan gpu7", "migrate plan", "migrate plan a b",
			"migrate start gpu7 --assessment gpu7 --bandwidth 200M --downtime 10m --memory 64Gi", "migrate start gpu7 --assessment gpu7 --dry-run -o name",
			"migrate start gpu7", "migrate start gpu7 --assessment gpu7 --waive x", "migrate start gpu7 --assessment gpu7 --bandwidth fast", "migrate start gpu7 --assessment gpu7 --memory much",
			"migrate set gpu7 --bandwidth 0", "migrate set gpu7", "migrate set gpu7 --connections 2 --dry-run",
			"migrate rehearse gpu7", "migrate rehearse gpu7 --live --dry-run", "migrate cutover gpu7 --stop-service vllm.service --limit 5m --no-wait --yes", "migrate cutover gpu7", "migrate cutover gpu7 --unrehearsed why --dry-run",
			"migrate cutover none --yes", "migrate cutover gpu7 --when-ready --yes", "migrate withdraw gpu7", "migrate fenced gpu7 --yes", "migrate accept gpu7", "migrate accept gpu7 --reason why", "migrate start gpu7 --assessment gpu7 --bridge br0 --nic 3c:ec:ef:01:02:04=network:storage --check health=/bin/true",
			"migrate start gpu7 --assessment carried --image x",
			"migrate start gpu7 --assessment carried --nbd =nbds://gpu7/", "migrate show rest", "migrate show stop", "migrate show new1", "migrate start gpu7 --assessment gpu7 --no-wait", "migrate sync gpu7 --no-wait -o name",
			"migrate start gpu7 --assessment gpu7 --nic x", "migrate start gpu7 --assessment gpu7 --check x",
			"migrate sync gpu7", "migrate sync gpu7 --dry-run", "migrate retry gpu7", "migrate rollback gpu7 --no-wait --yes", "migrate rollback gpu7 --dry-run", "migrate delete old --yes", "migrate delete old --dry-run",
			"p2v disks x", "p2v disks --dry-run", "p2v serve", "p2v serve --disk none", "p2v freeze", "p2v freeze --disk none",
		},
		"token": {
			"token list", "token list -o wide", "token show ci", "token show 01KAR2Z7T4Y2M8Q6V0R9X3B0AB", "token show none", "token create ci --role operator",
			"token create ci --role operator --dry-run", "token create ci --role operator -o json", "token create ci --role operator -o name", "token create ci",
			"token create ci --role viewer --expires soon", "token delete ci", "token delete ci --dry-run", "token delete none",
		},
		"health": {"health", "health --wait -o name", "version -o json", "version"},
		"usage": {
			"gpus", "gpu lst", "gpu show", "gpu list -o xml", "attach a", "attach", "gpu list --wait --no-wait", "gpu label g x",
			"vm list --filter x", "gpu list --timeout -1s", "--nonsense",
		},
	}
	for name, lines := range tests {
		t.Run(name, func(t *testing.T) {
			_, socket := startFake(t)
			var got strings.Builder
			for _, line := range lines {
				s := session{args: strings.Fields(line)}
				s.run(t.Context(), socket)
				fmt.Fprintln(&got, &s)
			}
			golden(t, name, got.String())
		})
	}
}

func TestRefusals(t *testing.T) {
	failed := operations["attach"]
	failed.Status = "failed"
	failed.Problem = &api.Problem{Detail: "cannot remove T4-1Q: it is in use", Step: "partition.make", Blockers: []api.Blocker{{Kind: "process", ID: "4711", Name: "qemu"}}}
	undone := operations["attach"]
	undone.Status = "undone"
	undone.Problem = &api.Problem{Detail: "cannot attach to web1: no free slot", Hint: "add a pcie-root-port", Step: "vm.attach"}
	tests := []struct {
		name   string
		answer any
		code   int
	}{
		{"conflict", busy, exitConflict},
		{"no-capacity", &api.Problem{Status: 507, Detail: "cannot attach: no capacity"}, exitConflict},
		{"locked", &api.Problem{Status: 423, Detail: "cannot attach: busy", Operation: "o"}, exitConflict},
		{"stale", &api.Problem{Status: 412, Detail: "cannot attach: changed"}, exitConflict},
		{"starting", &api.Problem{Status: 503, Detail: "cannot attach: starting"}, exitNotReady},
		{"unknown", &api.Problem{Status: 422, Detail: "cannot attach: profile is unknown"}, exitFailed},
		{"failed", failed, exitFailed},
		{"undone", undone, exitFailed},
		{"already", assignments[0], exitDone},
	}
	var got strings.Builder
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, socket := startFake(t)
			f.answers["PUT assignments/web1-gpu"] = tt.answer
			if op, ok := tt.answer.(api.Operation); ok {
				f.answers["PUT assignments/web1-gpu"] = accepted{op}
				f.waits["attach"] = []api.Operation{op}
			}
			s := session{args: []string{"attach", "web1-gpu", "--vm", "web1", "--profile", "T4-2Q"}}
			s.run(t.Context(), socket)
			fmt.Fprintln(&got, &s)
			if s.code != tt.code {
				t.Errorf("exit code %d, not %d: %s", s.code, tt.code, &s)
			}
		})
	}
	golden(t, "refusals", got.String())
}

// A dry run of what would be refused says so.
func TestRefusedPlan(t *testing.T) {
	f, socket := startFake(t)
	f.answers["PUT assignments/web1-gpu"] = api.Plan{Summary: "attach", Problem: busy, Blockers: busy.Blockers}
	s := session{args: []string{"attach", "web1-gpu", "--vm", "web1", "--profile", "T4-2Q", "--dry-run"}}
	s.run(t.Context(), socket)
	if s.code != exitConflict || !strings.Contains(s.stderr, "blocker: vm "+webUUID) {
		t.Error(&s)
	}
}

func TestUnreachable(t *testing.T) {
	s := session{args: []string{"gpu", "list"}}
	s.run(t.Context(), filepath.Join(t.TempDir(), "s"))
	if s.code != exitNotReady || !strings.Contains(s.stderr, "systemctl status gpuvirtd") {
		t.Error(&s)
	}
	s = session{args: []string{"health", "--wait", "--timeout", "100ms"}}
	s.run(t.Context(), filepath.Join(t.TempDir(), "s"))
	if s.code != exitNotReady {
		t.Error(&s)
	}
}

func TestTimeout(t *testing.T) {
	f, socket := startFake(t)
	running := operations["attach"]
	running.Status = "running"
	f.answers["GET operations/attach/wait"] = running
	s := session{args: []string{"attach", "a", "--vm", "web1", "--profile", "T4-1Q", "--timeout", "150ms"}}
	s.run(t.Context(), socket)
	if s.code != exitNotReady || !strings.Contains(s.stderr, "gpuvirt operation wait attach") {
		t.Error(&s)
	}
}

func TestNotReady(t *testing.T) {
	f, socket := startFake(t)
	f.answers["GET health/ready"] = api.Health{Status: "not-ready", Reasons: []string{"restoring"}}
	s := session{args: []string{"health"}}
	s.run(t.Context(), socket)
	if s.code != exitNotReady || !strings.Contains(s.stdout, "restoring") {
		t.Error(&s)
	}
}

// A person is asked before something is lost; a script is not held up.
func TestConfirm(t *testing.T) {
	tests := []struct {
		name, line, stdin string
		terminal, writes  bool
	}{
		{name: "no", line: "detach web1-gpu", stdin: "n\n", terminal: true},
		{name: "nothing", line: "detach web1-gpu", terminal: true},
		{name: "yes", line: "detach web1-gpu", stdin: "Y\n", terminal: true, writes: true},
		{name: "flag", line: "detach web1-gpu --yes", terminal: true, writes: true},
		{name: "script", line: "detach web1-gpu", writes: true},
		{name: "shut-off", line: "detach db1-gpu", terminal: true, writes: true},
		{name: "delete", line: "partition delete " + partUUID, stdin: "n\n", terminal: true},
		{name: "mig set resets, no", line: "mig set 0000:5a:00.0 1g.5gb", stdin: "n\n", terminal: true},
		{name: "mig set resets, yes", line: "mig set 0000:5a:00.0 1g.5gb", stdin: "y\n", terminal: true, writes: true},
		{name: "mig set, flag", line: "mig set 0000:5a:00.0 1g.5gb --yes", terminal: true, writes: true},
		{name: "mig off, script", line: "mig off 0000:5a:00.0", writes: true},
		{name: "token", line: "token delete ci", stdin: "n\n", terminal: true},
		{name: "forget", line: "operation forget waiting", stdin: "n\n", terminal: true},
		{name: "fenced, no", line: "migrate fenced gpu7", stdin: "n\n", terminal: true},
		{name: "fenced, yes", line: "migrate fenced gpu7", stdin: "y\n", terminal: true, writes: true},
		{name: "migration, no", line: "migrate delete old", stdin: "n\n", terminal: true},
		{name: "migration, yes", line: "migrate delete old", stdin: "y\n", terminal: true, writes: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, socket := startFake(t)
			f.answers["GET vms/"+webUUID] = vms[0]
			f.answers["GET vms/"+vms[1].UUID] = vms[1]
			s := session{args: strings.Fields(tt.line), stdin: tt.stdin, terminal: tt.terminal}
			s.run(t.Context(), socket)
			writes := slices.DeleteFunc(slices.Clone(f.requests), func(r string) bool { return strings.Contains(r, "dry_run=true") })
			if got := len(writes) > 0; got != tt.writes {
				t.Errorf("wrote: %v\n%s", f.requests, &s)
			}
			if got := s.code == exitDone; got != tt.writes {
				t.Error(&s)
			}
		})
	}
}

// What nobody takes back is not done where nobody can be asked, whatever the standard input says.
func TestUnattended(t *testing.T) {
	for _, line := range []string{"migrate cutover gpu7 --no-wait", "migrate rollback gpu7 --no-wait", "migrate fenced gpu7", "migrate delete old"} {
		for _, stdin := range []string{"", "n\n", "y\n"} {
			f, socket := startFake(t)
			s := session{args: strings.Fields(line), stdin: stdin}
			if s.run(t.Context(), socket); s.code != exitUsage || !strings.Contains(s.stderr, "add --yes") || len(f.requests) > 0 {
				t.Errorf("%v\n%s", f.requests, &s)
			}
		}
		for _, flag := range []string{" --yes", " --dry-run"} {
			f, socket := startFake(t)
			s := session{args: strings.Fields(line + flag)}
			if s.run(t.Context(), socket); s.code != exitDone || len(f.requests) != 1 {
				t.Errorf("%v\n%s", f.requests, &s)
			}
		}
	}
}

func TestRequests(t *testing.T) {
	f, socket := startFake(t)
	for _, line := range []string{
		"attach web1-gpu --vm web1 --profile T4-1Q --gpu 0000:3b:00.0 --placement spread --hotplug require --display",
		"gpu quarantine 0000:3b:00.0", "gpu label 0000:3b:00.0 a=b rack-", "partition create --profile T4-1Q --dry-run",
	} {
		s := session{args: strings.Fields(line)}
		if s.run(t.Context(), socket); s.code != exitDone {
			t.Error(&s)
		}
	}
	want := []string{
		`PUT /v1/assignments/web1-gpu {"vm":"web1","profile":"T4-1Q","gpu":"0000:3b:00.0","placement":"spread","hotplug":"require","display":true}`,
		`PATCH /v1/gpus/0000:3b:00.0 {"quarantined":true}`,
		`PATCH /v1/gpus/0000:3b:00.0 {"labels":{"a":"b","class":"vdi"}}`,
		`POST /v1/partitions?dry_run=true {"profile":"T4-1Q"}`,
	}
	if !slices.Equal(want[1:], f.requests[len(f.requests)-3:]) || f.requests[0] != want[0] {
		t.Error(cmp.Diff(want, f.requests))
	}
}

func TestBackup(t *testing.T) {
	f, socket := startFake(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "store.db")
	backup := func(args ...string) *session {
		s := &session{args: append([]string{"backup", path}, args...)}
		s.run(t.Context(), socket)
		return s
	}
	if s := backup(); s.code != exitDone {
		t.Fatal(s)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("got %v, %v", info, err)
	}
	if s := backup(); s.code != exitFailed || !strings.Contains(s.stderr, "--yes") {
		t.Error(s)
	}
	if s := backup("--yes"); s.code != exitDone {
		t.Error(s)
	}
	f.answers["GET backup"] = &api.Problem{Status: 503, Detail: "not now"}
	if s := backup("--yes"); s.code != exitNotReady {
		t.Error(s)
	}
	data, err := os.ReadFile(path)
	if err != nil || string(data) != "the store" {
		t.Errorf("got %q, %v", data, err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestCompletion(t *testing.T) {
	_, socket := startFake(t)
	tests := map[string]string{
		"__complete gpu show ":                  "0000:3b:00.0\n0000:5a:00.0\n0000:d8:00.0\nmbochs\n:4\n",
		"__complete mig set ":                   "0000:5a:00.0\n:4\n",
		"__complete mig export ":                "0000:5a:00.0\n:4\n",
		"__complete mig capacity --profile ":    "1g.5gb\n2g.10gb\n3g.20gb\n7g.40gb\n:4\n",
		"__complete attach x --vm ":             "web1\ndb1\n:4\n",
		"__complete attach x --profile ":        "T4-1Q\nT4-16Q\n1g.5gb\n2g.10gb\n3g.20gb\n7g.40gb\n:4\n",
		"__complete attach x --hotplug ":        "auto\nrequire\nnever\n:4\n",
		"__complete detach ":                    "web1-gpu\ndb1-gpu\n:4\n",
		"__complete detach a ":                  ":4\n",
		"__complete token show ":                "ci\nold\n:4\n",
		"__complete token create x --role ":     "viewer\noperator\nadmin\n:4\n",
		"__complete operation wait ":            "attach\ncopying\ndetach\nlay\nmake\nremove\nwaiting\n:4\n",
		"__complete gpu list -o ":               "table\nwide\njson\nyaml\nname\n:4\n",
		"__complete --socket /nowhere vm show ": ":1\n",
	}
	for line, want := range tests {
		args := strings.Fields(line)
		if strings.HasSuffix(line, " ") {
			args = append(args, "")
		}
		s := session{args: args}
		s.run(t.Context(), socket)
		if diff := cmp.Diff(want, s.stdout); diff != "" {
			t.Errorf("%s: %s", line, diff)
		}
	}
	s := session{args: []string{"completion", "bash"}}
	if s.run(t.Context(), socket); s.code != exitDone || !strings.Contains(s.stdout, "__start_gpuvirt") {
		t.Error(&s)
	}
}
