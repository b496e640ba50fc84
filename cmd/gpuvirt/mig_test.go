package main

import (
	"slices"
	"strings"
	"testing"

	"gpuvirt/api"
)

// A person is asked before instances are removed and before the GPU is reset, by name;
// not where nothing is lost, nor where it is refused anyway.
func TestMIGSetAsks(t *testing.T) {
	remove := api.PlanStep{Kind: "partition.remove", Summary: "remove 1g.5gb on 0000:5a:00.0 at 0"}
	create := api.PlanStep{Kind: "partition.make", Summary: "make 2g.10gb on 0000:5a:00.0 at 2"}
	refused := &api.Problem{Status: 409, Code: "gpu-busy", Detail: "it is in use"}
	for name, tt := range map[string]struct {
		plan     api.Plan
		question string
		code     int
	}{
		"nothing lost":      {api.Plan{Steps: []api.PlanStep{create}, Changes: true}, "", exitDone},
		"removed":           {api.Plan{Steps: []api.PlanStep{remove, create}, Changes: true}, "this will remove 1g.5gb on 0000:5a:00.0 at 0: go on? [y/N]", exitFailed},
		"reset":             {api.Plan{Steps: []api.PlanStep{create}, Changes: true, NeedsReset: true}, "this will reset gpu 0000:5a:00.0: go on? [y/N]", exitFailed},
		"removed and reset": {api.Plan{Steps: []api.PlanStep{remove}, Changes: true, NeedsReset: true}, "remove 1g.5gb on 0000:5a:00.0 at 0, reset gpu 0000:5a:00.0: go on?", exitFailed},
		"refused":           {api.Plan{Steps: []api.PlanStep{remove}, Problem: refused}, "", exitConflict},
	} {
		t.Run(name, func(t *testing.T) {
			f, socket := startFake(t)
			f.plans["PUT gpus/0000:5a:00.0/mig"] = tt.plan
			s := session{args: []string{"mig", "set", "0000:5a:00.0", "2g.10gb"}, terminal: true, stdin: "n\n"}
			s.run(t.Context(), socket)
			asked := strings.Contains(s.stderr, "go on?")
			if s.code != tt.code || asked != (tt.question != "") || !strings.Contains(s.stderr, tt.question) {
				t.Error(&s)
			}
			wrote := slices.ContainsFunc(f.requests, func(r string) bool { return !strings.Contains(r, "dry_run") })
			if wrote != (tt.code == exitDone) {
				t.Errorf("%q", f.requests)
			}
		})
	}
}
