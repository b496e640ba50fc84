package run

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	var lines []string
	p := Program{Line: func(l string) { lines = append(lines, l) }}
	out, err := p.Run(t.Context(), "sh", "-c", `echo one; echo two >&2; printf '10%%\r20%%\r'; printf end`)
	if out != "one\ntwo\n10%\r20%\rend" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
	if !slices.Equal(lines, []string{"one", "two", "10%", "20%", "end"}) {
		t.Errorf("%q", lines)
	}
}

func TestRunFails(t *testing.T) {
	out, err := Program{}.Run(t.Context(), "sh", "-c", "echo it is broken; exit 3")
	exit, ok := errors.AsType[*ExitError](err)
	if !ok || exit.Code != 3 || exit.Output != "it is broken" || out != exit.Output {
		t.Errorf("%q, %v", out, err)
	}
	if want := `"sh": exit status 3: it is broken`; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
	if _, err := (Program{}).Run(t.Context(), "sh", "-c", "kill -9 $$"); err == nil || !strings.Contains(err.Error(), "signal") {
		t.Error(err)
	}
	if _, err := (Program{}).Run(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// A program that writes without end neither fills the memory nor keeps its secrets.
func TestOutputIsBounded(t *testing.T) {
	longest := 0
	p := Program{Limit: 100, Line: func(l string) { longest = max(longest, len(l)) }}
	out, err := p.Run(t.Context(), "sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo last")
	if len(out) > 100 || !strings.HasSuffix(out, "x\nlast") || err != nil || longest > 100 {
		t.Errorf("%d bytes, longest line %d, %v", len(out), longest, err)
	}
}

func TestApart(t *testing.T) {
	out, err := Program{Apart: true}.Run(t.Context(), "sh", "-c", "echo data; echo warning >&2; exit 3")
	exit, ok := errors.AsType[*ExitError](err)
	if out != "data" || !ok || exit.Output != "warning" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestAs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root runs programs as another")
	}
	out, err := Program{As: &syscall.Credential{Uid: 65534, Gid: 65534}}.Run(t.Context(), "id", "-u")
	if out != "65534" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
}

func TestNothingOfOursIsPassedOn(t *testing.T) {
	t.Setenv("GPUVIRT_SECRET", "x")
	out, err := Program{}.Run(t.Context(), "env")
	if strings.Contains(out, "SECRET") || !strings.Contains(out, "LC_ALL=C") || err != nil {
		t.Errorf("%q, %v", out, err)
	}
}

// What a program has started ends with it, though it does not listen.
func TestCancelEndsTheWholeGroup(t *testing.T) {
	pids := filepath.Join(t.TempDir(), "pids")
	ctx, cancel := context.WithCancel(t.Context())
	p := Program{Grace: 200 * time.Millisecond, Line: func(string) { cancel() }}
	_, err := p.Run(ctx, "sh", "-c", `trap '' TERM; (trap '' TERM; until [ -s "$0" ]; do sleep 0.01; done; echo started; while :; do sleep 0.1; done) & echo $! $$ > "$0"; wait`, pids)
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	text, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range strings.Fields(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); !ended(pid); {
			if time.Now().After(deadline) {
				t.Fatalf("process %d goes on", pid)
			}
			<-time.After(10 * time.Millisecond)
		}
	}
}

// ended reports whether a process is gone, or waits only for being reaped by whoever
// inherited it.
func ended(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return true
	}
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err != nil || strings.Contains(string(text), ") Z ")
}

func TestCancelledBeforehand(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (Program{}).Run(ctx, "true"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
