package freeze

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Whoever of the two is killed, the other thaws: the kernel does not.
func TestKilled(t *testing.T) {
	t.Parallel()
	for name, role := range map[string]string{"the server": "serve", "the guard": "guard"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := childOn(t, "")
			c.freeze(time.Hour)
			if d := cmp.Diff(all, c.frozen()); d != "" {
				t.Fatal(d)
			}
			c.signal(role, syscall.SIGKILL)
			c.thawed()
			other := map[string]string{"serve": "guard", "guard": "serve"}[role]
			c.wait(other + " start db.service")
			if role == "guard" {
				_, err := c.client.Quiet(t.Context())
				refused(t, err, "its guard has ended, and all is thawed")
				c.freeze(time.Hour) // with another one
				c.guardKilled = false
			}
		})
	}
}

func TestGuardIsTold(t *testing.T) {
	t.Parallel()
	c := childOn(t, "")
	c.freeze(time.Hour)
	c.signal("guard", syscall.SIGTERM) // as all get one when the server shuts down
	c.thawed()
	c.wait("guard ended")
}

// A server that is asked to end thaws by itself, and the guard has nothing left to do.
func TestTold(t *testing.T) {
	t.Parallel()
	c := childOn(t, "")
	c.freeze(time.Hour)
	c.signal("serve", syscall.SIGTERM)
	c.wait("serve ended")
	c.thawed()
	c.wait("guard ended <nil>")
	var starts []string
	for _, line := range c.said() {
		if len(line) > 20 && line[len(line)-len("start db.service"):] == "start db.service" {
			starts = append(starts, line)
		}
	}
	if d := cmp.Diff([]string{"serve start db.service"}, starts); d != "" {
		t.Error(d)
	}
}

// Killed while a service is stopped: it is started.
func TestKilledEarly(t *testing.T) {
	t.Parallel()
	c := childOn(t, "")
	c.hang("serve stop")
	go func() { _ = c.client.Freeze(t.Context(), time.Hour, []string{"db.service"}) }()
	c.wait("serve hangs stop")
	c.signal("serve", syscall.SIGKILL)
	c.wait("guard start db.service")
}

// stops tells whether a process is stopped. After the signal its threads run on until one of them
// takes it, which is not at once on a machine with much to do.
func stops(t *testing.T, pid int) bool {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(threads) == 0 {
		t.Fatal(pid, err)
	}
	return !slices.ContainsFunc(threads, func(file string) bool {
		stat, err := os.ReadFile(file)
		return err == nil && !strings.Contains(string(stat), ") T ") // one that ended has no file
	})
}

// A server that hangs is not waited for: the guard thaws, and what the server then wakes up to
// is not powered off.
func TestStopped(t *testing.T) {
	t.Parallel()
	var c *child
	for limit := time.Second; ; limit *= 2 { // which may be over before it is stopped, on a machine with much to do
		c = childOn(t, "")
		err := c.client.Freeze(t.Context(), limit, []string{"db.service"})
		c.signal("serve", syscall.SIGSTOP)
		eventually(t, "it is stopped", func() bool { return stops(t, c.pid("serve")) })
		if err == nil && !slices.ContainsFunc(c.said(), func(s string) bool { return strings.HasPrefix(s, "serve start") }) {
			break
		}
		c.signal("serve", syscall.SIGCONT)
	}
	c.wait("guard start db.service")
	c.thawed()
	got := make(chan error, 1)
	go func() { got <- c.client.PowerOff(t.Context()) }()
	c.signal("serve", syscall.SIGCONT)
	refused(t, <-got, "the time limit is over")
}

// What is acknowledged is carried out by the guard where the server is killed over it.
func TestKilledPoweringOff(t *testing.T) {
	t.Parallel()
	c := childOn(t, "")
	c.hang("serve off")
	c.hang("guard off")
	c.freeze(time.Hour)
	if err := c.client.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.wait("serve hangs off")
	c.signal("serve", syscall.SIGKILL)
	c.wait("guard hangs off")
	if d := cmp.Diff(all, c.frozen()); d != "" {
		t.Error(d)
	}
	c.signal("guard", syscall.SIGKILL)
}
