package main

import (
	"errors"
	"flag"
	"strings"
	"testing"

	"gpuvirt/test/guides"
)

// What people are told to type is there: with --help behind it, the daemon reads all before it.
func TestGuides(t *testing.T) {
	all := guides.Commands(t, "gpuvirtd")
	if len(all) < 3 {
		t.Errorf("%d commands", len(all))
	}
	for _, said := range all {
		var told strings.Builder
		if err := run(append(said.Words[1:], "--help"), &told, &told); !errors.Is(err, flag.ErrHelp) {
			t.Errorf("%s: %q: %v\n%s", said.Where, said.Words, err, told.String())
		}
	}
}
