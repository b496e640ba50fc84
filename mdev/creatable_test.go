package mdev

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestParseCreatable(t *testing.T) {
	const header = "ID    : vGPU Name\n"
	for name, tc := range map[string]struct {
		in   string
		want map[uint32]string
	}{
		"an L40S": {
			header + "1145  : NVIDIA L40S-1B\n1147  : NVIDIA L40S-1Q\n1150  : NVIDIA L40S-4Q\n",
			map[uint32]string{1145: "NVIDIA L40S-1B", 1147: "NVIDIA L40S-1Q", 1150: "NVIDIA L40S-4Q"},
		},
		"without a header":    {"114   : NVIDIA RTX5000-Ada-1Q\n1145  : NVIDIA L40S-1B", map[uint32]string{114: "NVIDIA RTX5000-Ada-1Q", 1145: "NVIDIA L40S-1B"}},
		"a header only":       {header, nil},
		"nothing":             {"", nil},
		"other lines":         {"-----\n" + header + "\n1 : A\nNote: 5 of 6\n: B\n2\n", map[uint32]string{1: "A"}},
		"room":                {"\t 7\t:  GRID T4-4Q \r\n", map[uint32]string{7: "GRID T4-4Q"}},
		"a colon in the name": {"7 : A:B", map[uint32]string{7: "A:B"}},
		"no number":           {"0x10 : A\n-1 : B\n+1 : C\n1e3 : D\n4294967296 : E\n", nil},
		"none has the id 0":   {"0 : none", nil},
		"no text":             {"7 : A\xfd\n8 :  \n", nil},
		"twice the same":      {"7 : A\n7 : A\n", map[uint32]string{7: "A"}},
		"twice another":       {"7 : A\n7 : B\n7 : A\n8 : C\n", map[uint32]string{8: "C"}},
	} {
		if tc.want == nil {
			tc.want = map[uint32]string{}
		}
		if diff := cmp.Diff(tc.want, parseCreatable(tc.in)); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

// Whatever a driver writes: no panic, no type without a number or a name, and what is read
// as a row is one.
func FuzzParseCreatable(f *testing.F) {
	f.Add("ID    : vGPU Name\n1145  : NVIDIA L40S-1B\n1147  : NVIDIA L40S-1Q\n")
	f.Add("7 : A\n7 : B\n0 : C\n99999999999 : D\n")
	f.Fuzz(func(t *testing.T, s string) {
		rows := map[string]bool{}
		for line := range strings.Lines(s) {
			id, name, _ := strings.Cut(line, ":")
			rows[strings.TrimLeft(strings.TrimSpace(id), "0")+" "+strings.TrimSpace(name)] = true
		}
		for id, name := range parseCreatable(s) {
			if id == 0 || name == "" || !utf8.ValidString(name) || !rows[nativeID(id)+" "+name] {
				t.Fatalf("%q: %d is %q", s, id, name)
			}
		}
	})
}
