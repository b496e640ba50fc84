package main

import (
	"slices"
	"strings"
	"testing"

	"gpuvirt/api"
)

func TestApply(t *testing.T) {
	const file = "assignments:\n  - {name: web1-gpu, vm: web1, profile: T4-2Q}\n"
	for name, tt := range map[string]struct {
		args          []string
		stdin, stderr string
		code          int
		request       string
	}{
		"apply":         {[]string{"apply", "-f", "-"}, file, "", exitDone, "POST /v1/assignments:apply"},
		"dry run":       {[]string{"apply", "-f", "-", "--dry-run"}, file, "", exitDone, "POST /v1/assignments:apply?dry_run=true"},
		"json":          {[]string{"apply", "-f", "-"}, `{"assignments": [{"name": "web1-gpu", "vm": "web1", "profile": "T4-2Q", "display": true}]}`, "", exitDone, "POST /v1/assignments:apply"},
		"a typing slip": {[]string{"apply", "-f", "-"}, strings.Replace(file, "profile", "profil", 1), "field profil not found", exitFailed, ""},
		"empty":         {[]string{"apply", "-f", "-"}, "", "cannot read -: it is empty", exitFailed, ""},
		"none":          {[]string{"apply", "-f", "-"}, "assignments: []\n", "it has no assignments", exitFailed, ""},
		"two":           {[]string{"apply", "-f", "-"}, file + "---\n" + file, "more than one document", exitFailed, ""},
		"no such file":  {[]string{"apply", "-f", "/nowhere"}, "", "no such file", exitFailed, ""},
		"no file":       {[]string{"apply"}, "", `"file" not set`, exitUsage, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f, socket := startFake(t)
			f.plans["POST assignments:apply"] = api.Plan{Summary: "carry out 1 assignments", Changes: true}
			s := session{args: tt.args, stdin: tt.stdin}
			s.run(t.Context(), socket)
			if s.code != tt.code || !strings.Contains(s.stderr, tt.stderr) {
				t.Error(&s)
			}
			if asked := slices.ContainsFunc(f.requests, func(r string) bool { return tt.request != "" && strings.HasPrefix(r, tt.request) }); asked != (tt.request != "") {
				t.Errorf("%q", f.requests)
			}
		})
	}
}
