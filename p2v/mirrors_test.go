package p2v_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gpuvirt/gpu"
)

// What is wrong with the folder of mirrors is told for what it is.
func TestMirrorsFolder(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	if got := y.Problems(t.Context()); len(got) != 0 {
		t.Errorf("before it is made: %q", got)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	y.stop()
	for _, at := range []string{file, filepath.Join(file, "below")} {
		y.storage = at
		y.start()
		want := "the folder of mirrors, " + `"` + at + `", cannot be used: `
		if got := y.Problems(t.Context()); len(got) != 1 || !strings.HasPrefix(got[0], want) || !strings.Contains(got[0], "not a directory") {
			t.Errorf("%q", got)
		}
		_, err := y.Create(t.Context(), "tester", y.wish(), gpu.Idempotency{})
		e, _ := errors.AsType[*gpu.Error](err)
		if e == nil || e.Code != gpu.CodeConflict || !strings.HasPrefix(e.Detail, `cannot migrate "gpu7": `+want) || strings.Contains(e.Detail, "hold disks") || !strings.Contains(e.Hint, "p2v.mirrors") {
			t.Errorf("%+v", err)
		}
		y.stop()
	}
	y.storage = t.TempDir()
	y.start()
	if got := y.Problems(t.Context()); len(got) != 0 {
		t.Errorf("%q", got)
	}
}
