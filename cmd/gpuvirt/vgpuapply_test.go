package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/api"
)

const managed = `version: v1
vgpu-configs:
  as-it-is:
    - devices: [0]
      vgpu-devices: {T4-1Q: 2}
  more:
    - devices: all
      vgpu-devices: {}
    - device-filter: ["0x20F110DE", "0x1EB810DE"]
      devices: [1]
      vgpu-devices: {}
    - devices: [0]
      vgpu-devices: {"T4-1Q": 4}
  other:
    - {devices: [0], vgpu-devices: {T4-16Q: 1}}
  both:
    - {devices: [0], vgpu-devices: {T4-16Q: 1, T4-1Q: 3}}
  full:
    - {devices: [0], vgpu-devices: {T4-1Q: 17}}
  beyond:
    - {devices: [7], vgpu-devices: {}}
  cards:
    - {device-filter: "0x145F10DE", devices: all, vgpu-devices: {A40-8Q: 6}}
`

const (
	foreignUUID = "c0ffee00-0000-4000-8000-00000000000b"
	makeOne     = `POST /v1/partitions {"gpu":"0000:3b:00.0","profile":"T4-1Q"}`
	makeLarge   = `POST /v1/partitions {"gpu":"0000:3b:00.0","profile":"T4-16Q"}`
)

func dry(request string) string {
	method, rest, _ := strings.Cut(request, " ")
	path, body, _ := strings.Cut(rest, " ")
	return strings.TrimSpace(method + " " + path + "?dry_run=true " + body)
}

func TestVGPUApplyAndAssert(t *testing.T) {
	file := writeFile(t, managed)
	removeOurs, removeTheirs := "DELETE /v1/partitions/"+partUUID, "DELETE /v1/partitions/"+foreignUUID
	for name, tt := range map[string]struct {
		line   string
		code   int
		stdout string
		stderr string
		writes []string
	}{
		"as it is":       {line: "vgpu apply -c as-it-is -f " + file, stdout: partUUID, stderr: "0000:3b:00.0 is already as asked for"},
		"more":           {line: "vgpu apply -c more -f " + file, stderr: "0000:5a:00.0 is already as asked for", writes: []string{dry(makeOne), makeOne, makeOne}},
		"dry":            {line: "vgpu apply --dry-run -c more -f " + file, stdout: "make 2 of T4-1Q on 0000:3b:00.0", writes: []string{dry(makeOne)}},
		"another size":   {line: "vgpu apply -c other -f " + file, writes: []string{dry(removeOurs), dry(removeTheirs), dry(makeLarge), removeOurs, removeTheirs, makeLarge}},
		"the large one":  {line: "vgpu apply --dry-run -c both -f " + file, code: exitConflict, stderr: "cannot make 1 of T4-16Q on gpu 0000:3b:00.0: 0 fit", writes: []string{dry(makeLarge), dry(makeOne)}},
		"too many":       {line: "vgpu apply -c full -f " + file, code: exitConflict, stderr: "cannot make 15 of T4-1Q on gpu 0000:3b:00.0: 14 fit", writes: []string{dry(makeOne)}},
		"no such gpu":    {line: "vgpu apply -c beyond -f " + file, code: exitFailed, stderr: "cannot find gpu number 7: this host has 3"},
		"no such cards":  {line: "vgpu apply -c cards -f " + file, stderr: "cards is for no gpu of this host"},
		"no such config": {line: "vgpu apply -c nonsense -f " + file, code: exitFailed, stderr: `cannot find config "nonsense"`},
		"not waiting":    {line: "vgpu apply --no-wait -c more -f " + file, code: exitUsage, stderr: "--no-wait is not for this"},
		"without a file": {line: "vgpu apply", code: exitUsage, stderr: "config-file"},
		"assert, is":     {line: "vgpu assert -c as-it-is -f " + file},
		"assert, is not": {line: "vgpu assert -c other -f " + file, code: exitFailed, stderr: "0000:3b:00.0 has T4-1Q=2, and should have T4-16Q=1"},
		"assert, more":   {line: "vgpu assert -c more -f " + file, code: exitFailed, stderr: "has T4-1Q=2, and should have T4-1Q=4"},
	} {
		t.Run(name, func(t *testing.T) {
			f, socket := startFake(t)
			s := session{args: strings.Fields(tt.line)}
			s.run(t.Context(), socket)
			if s.code != tt.code || !strings.Contains(s.stderr, tt.stderr) || !strings.Contains(s.stdout, tt.stdout) {
				t.Errorf("%s", &s)
			}
			if diff := cmp.Diff(tt.writes, f.requests); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Where one cannot be removed, or is unknown, or a GPU is not under management, nothing is
// changed; that what is to be made does not fit yet beside what is removed is no reason.
func TestVGPUApplyRefused(t *testing.T) {
	file := writeFile(t, managed)
	full := api.Plan{Problem: &api.Problem{Status: 507, Code: "no-capacity", Detail: "no room"}}
	for name, tt := range map[string]struct {
		plans  map[string]api.Plan
		config string
		code   int
		stderr string
		writes int
		// missing: the vGPUs that gpuvirt made are not there.
		missing bool
	}{
		"missing": {config: "more", code: exitFailed, stderr: "is missing: put it back, or delete it, first", missing: true},
		"in use": {
			plans:  map[string]api.Plan{"DELETE partitions/" + partUUID: {Problem: &api.Problem{Status: 409, Code: "gpu-busy", Detail: "it is in use"}}, "POST partitions": full},
			config: "other", code: exitConflict, stderr: "it is in use",
		},
		"unmanaged": {
			plans:  map[string]api.Plan{"POST partitions": {Problem: &api.Problem{Status: 409, Code: "gpu-unmanaged", Detail: "not under management"}}},
			config: "more", code: exitConflict, stderr: "gpuvirt gpu manage 0000:3b:00.0",
		},
		"no room yet": {plans: map[string]api.Plan{"POST partitions": full}, config: "other", writes: 3},
		"no room":     {plans: map[string]api.Plan{"POST partitions": full}, config: "more", code: exitConflict, stderr: "no room"},
	} {
		t.Run(name, func(t *testing.T) {
			f, socket := startFake(t)
			f.missing = tt.missing
			for at, p := range tt.plans {
				f.plans[at] = p
			}
			s := session{args: []string{"vgpu", "apply", "-c", tt.config, "-f", file}}
			s.run(t.Context(), socket)
			writes := 0
			for _, r := range f.requests {
				if !strings.Contains(r, "dry_run=true") {
					writes++
				}
			}
			if s.code != tt.code || !strings.Contains(s.stderr, tt.stderr) || writes != tt.writes {
				t.Errorf("%s%q", &s, f.requests)
			}
		})
	}
}

// Somebody at a terminal is asked before a vGPU goes; what fails on the way is told with what
// was done.
func TestVGPUApplyAsks(t *testing.T) {
	f, socket := startFake(t)
	f.plans["DELETE partitions/"+partUUID] = api.Plan{Changes: true, Steps: []api.PlanStep{{Kind: "partition.remove", Summary: "remove T4-1Q"}}}
	s := session{args: []string{"vgpu", "apply", "-c", "other", "-f", writeFile(t, managed)}, terminal: true, stdin: "n\n"}
	s.run(t.Context(), socket)
	if s.code != exitFailed || !strings.Contains(s.stderr, "this will remove T4-1Q: go on?") || len(f.requests) != 3 {
		t.Errorf("%s%q", &s, f.requests)
	}
	f.answers["POST partitions"] = busy
	delete(f.plans, "DELETE partitions/"+partUUID)
	f.plans["POST partitions"] = api.Plan{Changes: true}
	s = session{args: s.args}
	if s.run(t.Context(), socket); s.code != exitConflict || !strings.Contains(s.stderr, "2 of the 3 changes of gpu 0000:3b:00.0 were done before that") {
		t.Errorf("%s%q", &s, f.requests)
	}
}

// A file is read strictly, and what is wrong is told with its line.
func TestReadVGPUFile(t *testing.T) {
	for text, want := range map[string]string{
		"":                                     "it is empty",
		"version: v2\n":                        `its version is "v2"`,
		"version: v1\nvgpu-configs: {a: []}\n": `config "a" has no entries`,
		"version: v1\nmig-configs: {}\n":       "mig-configs not found",
		"version: v1\nvgpu-configs: {a: [T4-8Q]}\n":                                                        "line 2: an entry is not of the form field: value",
		"version: v1\nvgpu-configs:\n  a:\n  - vgpu-devices: {}\n":                                         `line 4: an entry has no "devices"`,
		"version: v1\nvgpu-configs:\n  a:\n  - devices: all\n":                                             `line 4: an entry has no "vgpu-devices"`,
		"version: v1\nvgpu-configs:\n  a:\n  - devices: all\n    vgpu-device: {}\n":                        `line 5: unknown field "vgpu-device"`,
		"version: v1\nvgpu-configs:\n  a:\n  - devices: some\n    vgpu-devices: {}\n":                      `line 4: "devices" is neither "all" nor a list of numbers`,
		"version: v1\nvgpu-configs:\n  a:\n  - devices: all\n    vgpu-devices: {T4-8Q: 0}\n":               `line 5: 0 of "T4-8Q"`,
		"version: v1\nvgpu-configs:\n  a:\n  - devices: all\n    vgpu-devices: {T4-8Q: many}\n":            "line 5: \"vgpu-devices\" is not of the form type: number",
		"version: v1\nvgpu-configs:\n  a:\n  - devices: all\n    vgpu-devices: {A100-8C: 1, A100-1-5C: 1}": "line 5: types that stand on MIG instances are not for one GPU with others",
	} {
		if _, err := readVGPUFile(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	f, err := readVGPUFile(strings.NewReader(managed))
	if err != nil || len(f.Configs) != 7 || f.Configs["cards"][0].want["A40-8Q"] != 6 || f.Configs["more"][0].devices != nil {
		t.Errorf("%+v, %v", f, err)
	}
}
