package guides

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSimple(t *testing.T) {
	for line, want := range map[string][][]string{
		"gpuvirt gpu list  # all of them":              {{"gpuvirt", "gpu", "list"}},
		`a "b c" --d='e #f' | g; h && i`:               {{"a", "b c", "--d=e #f"}, {"g"}, {"h"}, {"i"}},
		"gpuvirt mig export > mine.yaml":               {{"gpuvirt", "mig", "export"}},
		"gpuvirt backup /root/$(date +%F | tr a b).db": {{"gpuvirt", "backup", "/root/$(date +%F | tr a b).db"}},
		"curl -H @<(printf x; cat y) http://h/v1":      {{"curl", "-H", "@", "http://h/v1"}},
		"": nil,
	} {
		if diff := cmp.Diff(want, simple(line)); diff != "" {
			t.Errorf("%s: %s", line, diff)
		}
	}
}

// What is read is what the pages have.
func TestCommands(t *testing.T) {
	blocks, sentences := 0, 0
	for _, c := range Commands(t, "gpuvirt") {
		if c.Inline {
			sentences++
		} else {
			blocks++
		}
	}
	if blocks < 60 || sentences < 40 {
		t.Errorf("%d commands in blocks, %d in sentences", blocks, sentences)
	}
}
