package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/api"
)

// picture draws a card with instances in both formats, and checks that they differ in
// the last column only.
func picture(t *testing.T, offered []api.Profile, actual api.Layout) string {
	t.Helper()
	var there []api.Partition
	for _, in := range actual.Instances {
		there = append(there, api.Partition{Profile: in.Profile, Slot: string(rune('0' + *in.Placement)), State: "made", Origin: "managed", Compute: []api.Compute{{Profile: in.Profile, UUID: "MIG-1"}}})
	}
	draw := func(output string) []string {
		var b strings.Builder
		c := &cli{streams: streams{out: &b}, output: output}
		m := api.MIG{Mode: api.MIGMode{Current: actual.Enabled, Pending: actual.Enabled}, Actual: actual, Equal: true}
		if err := writePicture(c, api.GPU{ID: "g", Model: "card"}, m, offered, slices.Clone(there)); err != nil {
			t.Fatal(err)
		}
		return strings.Split(b.String(), "\n")
	}
	table, wide := draw("table"), draw("wide")
	for i, line := range wide {
		if !strings.HasPrefix(line, table[i]) {
			t.Errorf("wide has\n%s\nand table\n%s", line, table[i])
		}
	}
	// Every bar stands in front of the number of its slice.
	if actual.Enabled {
		for at, r := range strings.TrimSuffix(table[2], "|") {
			if r == '|' && (len(table[1]) <= at+1 || table[1][at] != ' ' || table[1][at+1] == ' ') {
				t.Errorf("the bar in column %d is at no slice:\n%s\n%s", at, table[1], table[2])
			}
		}
	}
	return strings.Join(table[1:], "\n")
}

func TestMIGPicture(t *testing.T) {
	twelve := []api.Profile{sliced("1g.24gb", 3, "0,3,6,9", 0), sliced("2g.48gb+gfx", 6, "0,6", 0)}
	unlisted := "  ?: the driver lists no such profile, so how far it reaches is not known\n"
	on := func(in ...api.LayoutInstance) api.Layout { return api.Layout{Enabled: true, Instances: in} }
	full := slices.Clone(a100)
	for i := range full {
		full[i].Available = 0
	}
	for name, tt := range map[string]struct {
		offered []api.Profile
		actual  api.Layout
		want    string
	}{
		"off":                                  {a100, api.Layout{}, "  would fit:  7 1g.5gb or 7 2g.10gb or 7 3g.20gb or 7 7g.40gb\n"},
		"off, and what it offers is not known": {nil, api.Layout{}, ""},
		"full": {full, on(place("7g.40gb", 0)), `
  0   1   2   3   4   5   6   7
 | 7g.40gb                       |
  SLICES  PROFILE  COMPUTE  USED BY  STATE  ORIGIN
  0-7     7g.40gb  7g.40gb  -        made   managed
  nothing else fits
`},
		"unlisted before another": {a100, on(place("3g.20gb", 4), place("99", 1)), `
  0   1   2   3   4   5   6   7
 | . | 99?       | 3g.20gb       |
  SLICES  PROFILE  COMPUTE  USED BY  STATE  ORIGIN
  1-?     99       99       -        made   managed
  4-7     3g.20gb  3g.20gb  -        made   managed
` + unlisted + "  still fits: 3 1g.5gb or 1 2g.10gb\n"},
		"unlisted, the last": {full, on(place("1g.5gb", 0), place("99\x1b", 2)), `
  0        1        2        3        4        5        6        7
 | 1g.5gb | .      | 99??                                                |
  SLICES  PROFILE  COMPUTE  USED BY  STATE  ORIGIN
  0       1g.5gb   1g.5gb   -        made   managed
  2-?     99?      99?      -        made   managed
` + unlisted + "  nothing else fits\n"},
		"twelve slices": {twelve, on(place("1g.24gb", 0), place("2g.48gb+gfx", 6)), `
  0   1   2   3   4   5   6   7   8   9   10  11
 | 1g.24gb   | . | . | . | 2g.48gb+gfx           |
  SLICES  PROFILE      COMPUTE      USED BY  STATE  ORIGIN
  0-2     1g.24gb      1g.24gb      -        made   managed
  6-11    2g.48gb+gfx  2g.48gb+gfx  -        made   managed
  nothing else fits
`},
	} {
		if diff := cmp.Diff(strings.TrimPrefix(tt.want, "\n"), picture(t, tt.offered, tt.actual)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
