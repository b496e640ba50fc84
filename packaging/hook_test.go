package packaging

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The hook hands on what libvirt says, and refuses only where it is told to: a program that is
// gone, or knows no such command, keeps no VM from starting (T45).
func TestHookScript_T45(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "gpuvirt")
	for status, want := range map[int]int{0: 0, 1: 1, 2: 0, 4: 0, 127: 0, 143: 0} {
		text := fmt.Sprintf("#!/bin/sh\nprintf '<%%s>' \"$@\" >%s/args\ncat >%s/stdin\nexit %d\n", dir, dir, status)
		if err := os.WriteFile(program, []byte(text), 0o700); err != nil { //nolint:gosec // it is run
			t.Fatal(err)
		}
		if got := hook(t, program); got != want {
			t.Errorf("it exits with %d, and the hook with %d", status, got)
		}
		for name, want := range map[string]string{"args": "<libvirt-hook><--><a -b><prepare><begin><->", "stdin": "<domain/>"} {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
	}
	if got := hook(t, filepath.Join(dir, "none")); got != 0 {
		t.Errorf("without a program: %d", got)
	}
}

func hook(t *testing.T, program string) int {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "share/libvirt-hook", "a -b", "prepare", "begin", "-")
	cmd.Env = []string{"PATH=/usr/bin:/bin", "GPUVIRT=" + program}
	cmd.Stdin = strings.NewReader("<domain/>")
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0
}
