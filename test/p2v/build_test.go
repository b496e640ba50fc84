package p2v

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Who asks how the disks are built builds none, and those that are there stay.
func TestBuildTakesNothing(t *testing.T) {
	for _, arg := range []string{"--help", "-h", "bios", ""} {
		cache := t.TempDir()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		cmd := exec.CommandContext(ctx, "./build.sh", arg)
		cmd.Env = append(os.Environ(), "P2V_CACHE="+cache)
		cmd.WaitDelay = time.Second
		out, err := cmd.CombinedOutput()
		cancel()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), "usage: test/p2v/build.sh") {
			t.Errorf("%q: %v\n%s", arg, err, out)
		}
		if left, err := os.ReadDir(cache); err != nil || len(left) != 0 {
			t.Errorf("%q: %v, %v", arg, left, err)
		}
	}
}
