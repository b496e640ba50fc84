package p2v

import (
	"slices"
	"testing"

	"gpuvirt/p2v/verify"
)

// What is wrong with a VM is said in one line, whatever all is.
func TestFailed(t *testing.T) {
	bad := func(title string, s verify.State, text string) verify.Result {
		return verify.Result{Title: title, State: s, Text: text}
	}
	for name, c := range map[string]struct {
		report verify.Report
		want   string
	}{
		"one":     {verify.Report{Verdict: verify.StateFailed, Results: []verify.Result{bad("A", verify.StateOK, "x"), bad("B", verify.StateFailed, "y"), bad("C", verify.StateUnknown, "z")}}, "B: y"},
		"two":     {verify.Report{Verdict: verify.StateFailed, Results: []verify.Result{bad("A", verify.StateFailed, "x"), bad("B", verify.StateFailed, "y")}}, "A: x; B: y"},
		"unknown": {verify.Report{Verdict: verify.StateUnknown, Results: []verify.Result{bad("A", verify.StateUnknown, "x"), bad("B", verify.StateWarning, "y")}}, "A: x"},
		"much": {
			verify.Report{Verdict: verify.StateFailed, Results: slices.Collect(func(yield func(verify.Result) bool) {
				for _, why := range "stuvwxyz" {
					if !yield(bad("A", verify.StateFailed, string(why))) {
						return
					}
				}
			})},
			"A: s; A: t; A: u; A: v; A: w; and more",
		},
		"one reason": {
			verify.Report{Verdict: verify.StateUnknown, Results: append(slices.Repeat([]verify.Result{bad("A", verify.StateUnknown, "x")}, 7), bad("B", verify.StateUnknown, "y"))},
			"A, A, A, A, A, and more: x; B: y",
		},
	} {
		if got, want := failed(c.report).Error(), "the VM is not what it should be: "+c.want; got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
