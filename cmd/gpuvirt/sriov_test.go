package main

import (
	"encoding/json"
	"strings"
	"testing"

	"gpuvirt/api"
)

func TestSRIOV(t *testing.T) {
	for name, tt := range map[string]struct {
		args   []string
		code   int
		stdout []string
		stderr string
	}{
		"show": {
			[]string{"sriov", "show", vfs.GPU},
			exitDone,
			[]string{"INDEX", "0000:5a:00.4", "vfio-pci", "0000:5a:00.0/vf/0", "web1", "0000:5a:00.5"},
			"has 2 of 16 virtual functions; 4 are wanted",
		},
		"set":          {[]string{"sriov", "set", vfs.GPU, "4"}, exitDone, []string{"0000:5a:00.4"}, ""},
		"no number":    {[]string{"sriov", "set", vfs.GPU, "four"}, exitUsage, nil, `"four" is no number of virtual functions`},
		"nothing said": {[]string{"sriov", "set", vfs.GPU}, exitUsage, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, socket := startFake(t)
			s := session{args: tt.args}
			s.run(t.Context(), socket)
			if s.code != tt.code || !strings.Contains(s.stderr, tt.stderr) {
				t.Error(&s)
			}
			for _, want := range tt.stdout {
				if !strings.Contains(s.stdout, want) {
					t.Errorf("no %q in\n%s", want, s.stdout)
				}
			}
		})
	}
	_, socket := startFake(t)
	s := session{args: []string{"sriov", "show", vfs.GPU, "-o", "json"}}
	s.run(t.Context(), socket)
	var got api.VFs
	if err := json.Unmarshal([]byte(s.stdout), &got); err != nil || got.NumVFs != 2 || *got.Wanted != 4 || len(got.Functions) != 2 {
		t.Errorf("%v, %s", err, s.stdout)
	}
}
