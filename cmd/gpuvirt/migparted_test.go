package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/api"
)

// The shapes in which files of mig-parted are written: one filter or several, all
// devices or some, whole and partial profiles, with media engines and without.
const parted = `version: v1
mig-configs:
  all-disabled:
    - devices: all
      mig-enabled: false
  all-balanced:
    # H100 and H200
    - device-filter: ["0x233010DE", "0x233510de"]
      devices: all
      mig-enabled: true
      mig-devices: {"1g.18gb": 2, "2g.35gb": 1, "3g.71gb": 1}
    - device-filter: "0x20F110DE"
      devices: all
      mig-enabled: true
      mig-devices:
        "1g.5gb": 2
        "2g.10gb": 1
        "3g.20gb": 1
    - device-filter: 0x290110DE
      devices: all
      mig-enabled: true
      mig-devices:
        1g.23gb+me: 1
        1g.45gb: 1
  shared:
    - devices: [1]
      mig-enabled: true
      mig-devices:
        1c.3g.20gb: 4
        2c.3g.20gb: 1
        1g.5gb: 1
  as-it-is:
    - devices: all
      mig-enabled: false
    - devices: [1]
      mig-enabled: true
      mig-devices: {"1g.5gb": 1, "1c.3g.20gb": 1, "2c.3g.20gb": 1}
  empty:
    - devices: [1]
      mig-enabled: true
  beyond:
    - devices: [7]
      mig-enabled: true
  none: []
`

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMIGFileLayouts(t *testing.T) {
	f, err := readMIGFile(strings.NewReader(parted))
	if err != nil {
		t.Fatal(err)
	}
	a100 := api.GPU{ID: "a", PCIID: "10de:20f1"}
	for name, want := range map[string][]string{
		"all-disabled": {"MIG off"},
		"all-balanced": {"3g.20gb", "2g.10gb", "1g.5gb", "1g.5gb"},
		"shared":       {"1g.5gb", "3g.20gb=2c.3g.20gb,1c.3g.20gb", "3g.20gb=1c.3g.20gb,1c.3g.20gb,1c.3g.20gb"},
		"empty":        {"MIG on, no instances"},
	} {
		at := slices.IndexFunc(f.Configs[name], func(s migSpec) bool { return s.matches(a100, 1) })
		l, err := f.Configs[name][at].layout()
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Fields(layoutLine(l))
		want := strings.Fields(strings.Join(want, " "))
		slices.Sort(got)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for id, want := range map[string]int{"10de:2335": 0, "10de:20f1": 1, "10de:2901": 2, "10de:1eb8": -1, "1002:2901": -1} {
		got := slices.IndexFunc(f.Configs["all-balanced"], func(s migSpec) bool { return s.matches(api.GPU{PCIID: id}, 0) })
		if got != want {
			t.Errorf("%s: spec %d, want %d", id, got, want)
		}
	}
}

func TestMIGFileRefused(t *testing.T) {
	for name, text := range map[string]string{
		"its version is \"v2\"":              "version: v2\nmig-configs: {}\n",
		"its version is \"\"":                "mig-configs: {}\n",
		"field mig-device not found":         "version: v1\nmig-configs: {a: [{devices: all, mig-enabled: true, mig-device: {}}]}\n",
		"neither \"all\" nor a list":         "version: v1\nmig-configs: {a: [{devices: some, mig-enabled: true}]}\n",
		"mig-enabled is false":               "version: v1\nmig-configs: {a: [{devices: all, mig-enabled: false, mig-devices: {1g.5gb: 1}}]}\n",
		"\"fast\" is no profile":             "version: v1\nmig-configs: {a: [{devices: all, mig-enabled: true, mig-devices: {fast: 1}}]}\n",
		"\"4c.3g.20gb\" is no profile":       "version: v1\nmig-configs: {a: [{devices: all, mig-enabled: true, mig-devices: {4c.3g.20gb: 1}}]}\n",
		"-1 of 1g.5gb":                       "version: v1\nmig-configs: {a: [{devices: all, mig-enabled: true, mig-devices: {1g.5gb: -1}}]}\n",
		"\"A100\" is no PCI id":              "version: v1\nmig-configs: {a: [{device-filter: A100, devices: all, mig-enabled: true}]}\n",
		"more than one document":             "version: v1\nmig-configs: {}\n---\nversion: v1\n",
		"cannot unmarshal":                   "version: v1\nmig-configs: [1]\n",
		"did not find expected node content": "version: [\n",
		"EOF":                                "",
	} {
		if _, err := readMIGFile(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: %v, want %q", text, err, name)
		}
	}
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
		"not capable":        {line: "mig apply -f -", stdin: "version: v1\nmig-configs: {a: [{devices: [0], mig-enabled: true}]}\n", code: exitFailed, stderr: "MIG cannot, and a wants it"},
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
