//go:build p2v

package p2v

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuvirt/p2v/convert"
	"gpuvirt/test/machine"
)

// Of a conversion that is ended while the appliance works nothing is left: no process of
// virt-v2v's, the appliance or the disks' servers, and no file but the overlay.
func TestConvertCancelled(t *testing.T) {
	from, err := image()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	mirror, scratch := filepath.Join(dir, "mirror.raw"), filepath.Join(dir, "scratch")
	if err := errors.Join(copySparse(filepath.Join(from, "bios-1.img"), mirror), os.Mkdir(scratch, 0o711)); err != nil {
		t.Fatal(err)
	}
	c := convert.New(convert.Config{Scratch: scratch, Confine: confine(t, dir)})
	overlay, err := c.Overlay(t.Context(), mirror, filepath.Join(dir, "0.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	enough := errors.New("a person has seen enough")
	job := convert.Job{Name: "metal1", Disks: []convert.Overlay{overlay}, Dir: dir, Progress: func(p convert.Progress) {
		if p.Phase == convert.PhaseInspect {
			if len(processes(t, dir)) < 3 {
				t.Errorf("only %q run: the test looks for the wrong ones", processes(t, dir))
			}
			cancel(enough)
		}
	}}
	if _, err := c.Convert(ctx, job); !errors.Is(err, enough) {
		t.Fatal(err, hint(err))
	}
	limited, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	if err := machine.WaitFor(limited, 100*time.Millisecond, func() (bool, error) { return len(processes(t, dir)) == 0, nil }); err != nil {
		t.Errorf("%v: %q go on", err, processes(t, dir))
	}
	if left, _ := filepath.Glob(filepath.Join(scratch, "run-*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if err := overlay.Check(); err != nil {
		t.Error(err)
	}
}

// processes are the command lines in which a folder is named.
func processes(t *testing.T, dir string) []string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range all {
		text, _ := os.ReadFile(file)
		if strings.Contains(string(text), dir) && !strings.Contains(string(text), "p2v.test") {
			found = append(found, strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
	return found
}
