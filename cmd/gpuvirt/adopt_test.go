package main

import (
	"strings"
	"testing"

	"gpuvirt/api"
)

// Where one of several is refused, those that are adopted already are told.
func TestAdoptHalf(t *testing.T) {
	f, socket := startFake(t)
	f.answers["POST partitions/a/adopt"] = api.Partition{ID: "a"}
	f.answers["POST partitions/b/adopt"] = busy
	s := session{args: []string{"adopt", "a", "b", "c"}}
	if s.run(t.Context(), socket); s.code != exitConflict || !strings.Contains(s.stderr, "done before that: a\n") || len(f.requests) != 2 {
		t.Errorf("%s%q", &s, f.requests)
	}
}
