package main

import (
	"errors"
	"flag"
	"fmt"
	"testing"

	"gpuvirt/store"
)

// What a unit, a script or a person acts on has a status of its own, also beside other errors.
func TestExitStatus(t *testing.T) {
	newer := fmt.Errorf("serve: %w", &store.NewerError{Path: "x", Found: 2, Ours: 1})
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{flag.ErrHelp, 0},
		{errUsage, 2},
		{errors.New("x"), 1},
		{fmt.Errorf("%w: locked", errDaemonRuns), 75},
		{newer, 65},
		{errors.Join(errors.New("the configuration is wrong"), newer), 65},
	} {
		if got := exitStatus(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
}
