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
