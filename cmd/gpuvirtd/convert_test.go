package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"gpuvirt/config"
)

// A simulated host converts nothing and is asked nothing. A real one has a converter, whatever
// is missing for it: that is told when it is asked for, and by then may be there.
func TestConverter(t *testing.T) {
	dir := t.TempDir()
	c := config.Default()
	c.Scratch, c.ConvertUser = filepath.Join(dir, "scratch"), "gpuvirt-nobody-has-this"
	left := filepath.Join(c.Scratch, "run-1")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if got, err := converter(t.Context(), c, true, false, log); got == nil || err != nil {
		t.Errorf("simulated: %v, %v", got, err)
	}
	if _, err := os.Stat(left); err != nil {
		t.Error(err)
	}
	got, err := converter(t.Context(), c, false, false, log)
	if got == nil || err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); err == nil {
		t.Error("what was left is there still")
	}
	if tools, err := got.Probe(t.Context()); err != nil || tools.Ready() == nil {
		t.Errorf("%+v, %v", tools, err)
	}
}

// In a unit nothing of the store, of other servers' disks or of other runs is seen.
func TestConfined(t *testing.T) {
	c := config.Default()
	plain, err := confined(c, false)
	if err != nil || plain.Unit != nil || plain.FileBytes == 0 || plain.Processes == 0 {
		t.Errorf("%+v, %v", plain, err)
	}
	got, err := confined(c, true)
	if err != nil || got.Unit == nil {
		t.Fatal(err)
	}
	for _, path := range []string{c.StateDir, c.Mirrors, c.Scratch} {
		if !slices.Contains(got.Unit.Hidden, path) {
			t.Errorf("%s is not hidden", path)
		}
	}
	if got.Unit.MemoryBytes == 0 || !slices.Contains(got.Unit.Devices, "/dev/kvm") {
		t.Errorf("%+v", got.Unit)
	}
}
