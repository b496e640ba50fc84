package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/p2v/move"
	"gpuvirt/p2v/verify"
)

// What was seen on the server is shown also where there was no VM to look at, and where nobody has looked
// there nothing is said of it.
func TestLookedAt(t *testing.T) {
	before := &verify.Baseline{Results: []verify.Result{{ID: "check:health", Title: "Check health", State: verify.StateFailed, Text: "exit status 7"}}}
	report := &verify.Report{Results: []verify.Result{{ID: "check:health", Title: "Check health", State: verify.StateOK, Text: strings.Repeat("well ", 12)}}}
	head := []string{"", "", "IN THE VM", "ON THE SERVER BEFORE"}
	for name, c := range map[string]struct {
		a    move.Attempt
		want [][]string
	}{
		"neither":     {move.Attempt{}, nil},
		"the server":  {move.Attempt{Before: before}, [][]string{head, {"-", "Check health", "-", "failed: exit status 7"}}},
		"the VM":      {move.Attempt{Report: report, Before: &verify.Baseline{}}, [][]string{{"ok", "Check health", strings.Repeat("well ", 12)}}},
		"both":        {move.Attempt{Report: report, Before: before}, [][]string{head, {"ok", "Check health", strings.TrimSpace(strings.Repeat("well ", 9)), "failed: exit status 7"}, {"", "", "well well well", ""}}},
		"an old one":  {move.Attempt{Report: &verify.Report{}}, nil},
		"nothing yet": {move.Attempt{Report: &verify.Report{}, Before: &verify.Baseline{}}, nil},
	} {
		if diff := cmp.Diff(c.want, lookedAt(c.a)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for text, want := range map[string][]string{"": {""}, "a": {"a"}, "aaa bb c": {"aaa", "bb c"}, "aaaaaaa b": {"aaaaaaa", "b"}, "ää ö": {"ää ö"}} {
		if diff := cmp.Diff(want, wrap(text, 4)); diff != "" {
			t.Errorf("%q: %s", text, diff)
		}
	}
}
