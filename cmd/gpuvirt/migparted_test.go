package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/api"
)

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMIGApplyAndAssert(t *testing.T) {
	file := writeFile(t, parted)
	for name, tt := range map[string]struct {
		line, stdin string
		code        int
		stderr      string
		writes      []string
	}{
		"apply": {line: "mig apply -c all-balanced -f " + file, writes: []string{
			`PUT /v1/gpus/0000:5a:00.0/mig?dry_run=true {"enabled":true,"instances":[{"profile":"1g.5gb"},{"profile":"1g.5gb"},{"profile":"2g.10gb"},{"profile":"3g.20gb"}]}`,
			`PUT /v1/gpus/0000:5a:00.0/mig {"enabled":true,"instances":[{"profile":"1g.5gb"},{"profile":"1g.5gb"},{"profile":"2g.10gb"},{"profile":"3g.20gb"}]}`,
		}},
		"apply dry": {line: "mig apply --dry-run -c empty -f " + file, writes: []string{
			`PUT /v1/gpus/0000:5a:00.0/mig?dry_run=true {"enabled":true,"instances":[]}`,
		}},
		// As mig-parted does: its files are for hosts with a card for the screen as well.
		"all beside some that MIG cannot cut": {line: "mig apply --dry-run -f -", stdin: "version: v1\nmig-configs: {a: [{devices: all, mig-enabled: true, mig-devices: {}}]}\n", writes: []string{
			`PUT /v1/gpus/0000:5a:00.0/mig?dry_run=true {"enabled":true,"instances":[]}`,
		}},
		"no such config":     {line: "mig apply -c nonsense -f " + file, code: exitFailed, stderr: `cannot find config "nonsense"`},
		"which config":       {line: "mig apply -f " + file, code: exitFailed, stderr: "it has all-balanced, all-disabled"},
		"no such file":       {line: "mig apply -f /nonexistent", code: exitFailed, stderr: "no such file"},
		"no such gpu":        {line: "mig apply -c beyond -f " + file, code: exitFailed, stderr: "cannot find gpu number 7: this host has 3"},
		"for none":           {line: "mig apply -c none -f " + file, stderr: "none is for no gpu of this host"},
		"not capable":        {line: "mig apply -f -", stdin: "version: v1\nmig-configs: {a: [{devices: [0], mig-enabled: true, mig-devices: {}}]}\n", code: exitFailed, stderr: "MIG cannot, and a wants it"},
		"bad file":           {line: "mig apply -f -", stdin: "version: v3\n", code: exitFailed, stderr: `cannot read -: its version is "v3"`},
		"assert, as it is":   {line: "mig assert -c as-it-is -f " + file},
		"assert, other":      {line: "mig assert -c all-balanced -f " + file, code: exitFailed, stderr: "0000:5a:00.0 is 1g.5gb@0 3g.20gb@4=1c.3g.20gb,2c.3g.20gb, and should be 1g.5gb 1g.5gb 2g.10gb 3g.20gb"},
		"assert, off":        {line: "mig assert -c all-disabled -f " + file, code: exitFailed, stderr: "should be MIG off"},
		"without a file":     {line: "mig assert", code: exitUsage, stderr: "config-file"},
		"something is wrong": {line: "mig assert -f " + file + " more", code: exitUsage, stderr: "unexpected argument"},
	} {
		t.Run(name, func(t *testing.T) {
			f, socket := startFake(t)
			s := session{args: strings.Fields(tt.line), stdin: tt.stdin}
			s.run(t.Context(), socket)
			if s.code != tt.code || !strings.Contains(s.stderr, tt.stderr) {
				t.Errorf("%s", &s)
			}
			if diff := cmp.Diff(tt.writes, f.requests); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Where one GPU cannot be cut as the file says, none is touched.
func TestMIGApplyRefused(t *testing.T) {
	f, socket := startFake(t)
	f.answers["PUT gpus/0000:5a:00.0/mig"] = api.Plan{Summary: "lay out", Problem: &api.Problem{Status: 409, Code: "gpu-busy", Detail: "cannot lay out gpu: it is in use"}}
	s := session{args: []string{"mig", "apply", "-c", "empty", "-f", writeFile(t, parted)}}
	s.run(t.Context(), socket)
	if s.code != exitConflict || len(f.requests) != 1 || !strings.Contains(s.stderr, "it is in use") {
		t.Errorf("%s%q", &s, f.requests)
	}
}

// All GPUs are planned before the first is changed, and every one that cannot be cut is
// named, with what to do about it.
func TestMIGApplyToMany(t *testing.T) {
	unmanaged := func(id string) api.Plan {
		return api.Plan{Problem: &api.Problem{Status: 409, Code: "gpu-unmanaged", Detail: "cannot lay out gpu " + id + ": it is not under management", Hint: "put it there"}}
	}
	inUse := api.Plan{Problem: &api.Problem{Status: 409, Code: "gpu-busy", Detail: "it is in use", Blockers: []api.Blocker{{Kind: "process", ID: "4711"}}}}
	resets := api.Plan{Changes: true, NeedsReset: true}
	for name, tt := range map[string]struct {
		plans    map[string]api.Plan
		terminal bool
		stdin    string
		writes   int
		code     int
		stderr   []string
	}{
		"all": {writes: 3, code: exitDone},
		"one unmanaged": {
			plans: map[string]api.Plan{"0000:42:00.0": unmanaged("0000:42:00.0")}, code: exitConflict,
			stderr: []string{"cannot lay out gpu 0000:42:00.0: it is not", "hint: put it under management: gpuvirt gpu manage 0000:42:00.0; or name the others in the file"},
		},
		"two, and one in use": {
			plans: map[string]api.Plan{"0000:40:00.0": inUse, "0000:41:00.0": unmanaged("0000:41:00.0"), "0000:42:00.0": unmanaged("0000:42:00.0")}, code: exitConflict,
			stderr: []string{"cannot cut 3 of 3 gpus: nothing was changed", "gpu manage 0000:41:00.0 0000:42:00.0;", "blocker: gpu 0000:40:00.0: it is in use", "blocker: process 4711", "blocker: gpu 0000:42:00.0: cannot lay out"},
		},
		"asked once, no": {
			plans: map[string]api.Plan{"0000:40:00.0": resets, "0000:42:00.0": resets}, terminal: true, stdin: "n\n", code: exitFailed,
			stderr: []string{"this will reset gpu 0000:40:00.0, reset gpu 0000:42:00.0: go on?", "nothing was done"},
		},
		"asked once, yes": {plans: map[string]api.Plan{"0000:40:00.0": resets, "0000:42:00.0": resets}, terminal: true, stdin: "y\n", writes: 3, code: exitDone},
	} {
		t.Run(name, func(t *testing.T) {
			f, socket := startFake(t)
			f.cut(t, off, off, off)
			for i := range 3 {
				id := "0000:4" + string(rune('0'+i)) + ":00.0"
				f.plans["PUT gpus/"+id+"/mig"] = tt.plans[id]
				f.answers["PUT gpus/"+id+"/mig"] = accepted{operations["lay"]}
			}
			s := session{args: []string{"mig", "apply", "-f", "-"}, terminal: tt.terminal}
			s.args[3] = writeFile(t, "version: v1\nmig-configs: {a: [{devices: all, mig-enabled: true, mig-devices: {}}]}\n")
			s.stdin = tt.stdin
			s.run(t.Context(), socket)
			writes := 0
			for i, r := range f.requests {
				if i < 3 != strings.Contains(r, "dry_run=true") {
					t.Errorf("request %d is %s", i, r)
				}
				if !strings.Contains(r, "dry_run=true") {
					writes++
				}
			}
			if s.code != tt.code || writes != tt.writes || len(f.requests) != 3+writes {
				t.Errorf("%s%q", &s, f.requests)
			}
			for _, want := range tt.stderr {
				if !strings.Contains(s.stderr, want) {
					t.Errorf("it does not say %q: %s", want, &s)
				}
			}
		})
	}
}

// Where one fails on the way, those that are done are told.
func TestMIGApplyHalf(t *testing.T) {
	f, socket := startFake(t)
	f.cut(t, off, off)
	for _, id := range []string{"0000:40:00.0", "0000:41:00.0"} {
		f.plans["PUT gpus/"+id+"/mig"] = api.Plan{Changes: true}
		f.answers["PUT gpus/"+id+"/mig"] = accepted{operations["lay"]}
	}
	f.answers["PUT gpus/0000:41:00.0/mig"] = busy
	s := session{args: []string{"mig", "apply", "-f", "-"}, stdin: "version: v1\nmig-configs: {a: [{devices: all, mig-enabled: true, mig-devices: {}}]}\n"}
	if s.run(t.Context(), socket); s.code != exitConflict || !strings.Contains(s.stderr, "done before that: 0000:40:00.0\n") {
		t.Error(&s)
	}
}

// What is exported is read back as what is there.
func TestMIGExportIsRead(t *testing.T) {
	_, socket := startFake(t)
	s := session{args: []string{"mig", "export", "--config-label", "mine"}}
	s.run(t.Context(), socket)
	again := session{args: []string{"mig", "assert", "-f", "-"}, stdin: s.stdout}
	again.run(t.Context(), socket)
	if s.code != exitDone || again.code != exitDone || !strings.Contains(s.stdout, "mine:") {
		t.Errorf("%s%s", &s, &again)
	}
}
