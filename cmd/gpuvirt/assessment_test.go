package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/api"
	"gpuvirt/p2v/report"
)

func TestSplitSource(t *testing.T) {
	for text, want := range map[string]api.Source{
		"gpu7":                {Address: "gpu7"},
		"root@gpu7.example":   {User: "root", Address: "gpu7.example"},
		"a@b@gpu7:2222":       {User: "a@b", Address: "gpu7", Port: 2222},
		"10.0.0.7:22":         {Address: "10.0.0.7", Port: 22},
		"fd00::7":             {Address: "fd00::7"},
		"[fd00::7]":           {Address: "fd00::7"},
		"adm@[fd00::7]:2222":  {User: "adm", Address: "fd00::7", Port: 2222},
		"-oProxyCommand=x:22": {Address: "-oProxyCommand=x", Port: 22}, // the daemon refuses it
	} {
		var got api.Source
		if err := splitSource(text, &got); err != nil || got != want {
			t.Errorf("%s: %v\n%s", text, err, cmp.Diff(want, got))
		}
	}
	for _, text := range []string{"", "root@", "gpu7:", "gpu7:ssh", "gpu7:-1", "root@:22"} {
		var got api.Source
		if err := splitSource(text, &got); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

// What is printed of an inspection is what reads it again, on any host.
func TestInspectionIsReadAgain(t *testing.T) {
	_, socket := startFake(t)
	s := &session{args: []string{"assessment", "inspection", "gpu7"}}
	s.run(t.Context(), socket)
	r, err := report.Read(strings.NewReader(s.stdout))
	if s.code != exitDone || err != nil || r.Hostname != "gpu7" {
		t.Errorf("%s\n%v", s, err)
	}
}
