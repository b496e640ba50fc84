package verify

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A realAgent is a qemu-ga of this machine that is spoken to over a socket.
type realAgent struct {
	mu   sync.Mutex
	conn net.Conn
	in   *bufio.Reader
	sync int
}

// newRealAgent starts an agent. It lists what is on this machine, so tests ask for what
// every machine has.
func newRealAgent(t *testing.T, options ...string) *realAgent {
	t.Helper()
	program, err := exec.LookPath("/usr/sbin/qemu-ga")
	if err != nil {
		t.Skip("there is no qemu-ga here")
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	cmd := exec.Command(program, append([]string{"-m", "unix-listen", "-p", socket, "-t", dir, "-f", filepath.Join(dir, "pid")}, options...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	a := &realAgent{}
	t.Cleanup(func() {
		if a.conn != nil {
			a.conn.Close()
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("qemu-ga: %s", said.String())
		}
	})
	for wait := time.Millisecond; a.conn == nil; wait *= 2 {
		if a.conn, err = net.Dial("unix", socket); err != nil && (wait > 5*time.Second || pause(t.Context(), wait) != nil) {
			t.Fatal(err)
		}
	}
	a.in = bufio.NewReader(a.conn)
	return a
}

// Command does what libvirt does: it makes sure that the answer is the command's own.
func (a *realAgent) Command(ctx context.Context, request string) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer context.AfterFunc(ctx, func() { _ = a.conn.SetReadDeadline(time.Now()) })()
	if err := a.conn.SetReadDeadline(time.Time{}); err != nil {
		return "", err
	}
	a.sync++
	fmt.Fprintf(a.conn, `{"execute":"guest-sync","arguments":{"id":%d}}`+"\n", a.sync)
	for {
		line, err := a.in.ReadBytes('\n')
		if err != nil {
			return "", errors.Join(ctx.Err(), err)
		}
		var answer struct{ Return json.RawMessage }
		if json.Unmarshal(line, &answer) == nil && string(answer.Return) == fmt.Sprint(a.sync) {
			break
		}
	}
	fmt.Fprintf(a.conn, "%s\n", request)
	line, err := a.in.ReadString('\n')
	if err != nil {
		return "", errors.Join(ctx.Err(), err)
	}
	return line, nil
}

func TestRealAgent(t *testing.T) {
	t.Parallel()
	ctx, g := t.Context(), NewGuest(newRealAgent(t))
	if err := g.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	info, err := g.Info(ctx)
	if err != nil || info.Version == "" || !info.Allows("guest-exec", "guest-exec-status") || info.Allows("guest-exec", "guest-nonsense") {
		t.Errorf("%+v, %v", info, err)
	}
	if system, err := g.OSInfo(ctx); err != nil || system.ID == "" || system.Kernel == "" {
		t.Errorf("%+v, %v", system, err)
	}
	name, _ := os.Hostname()
	if got, err := g.Hostname(ctx); err != nil || got != name {
		t.Errorf("%q, %v, want %q", got, err, name)
	}
	if got, err := g.Time(ctx); err != nil || time.Since(got).Abs() > time.Minute {
		t.Errorf("%s, %v", got, err)
	}
	interfaces, err := g.Interfaces(ctx)
	if err != nil || !strings.Contains(fmt.Sprint(interfaces), "127.0.0.1") {
		t.Errorf("%v, %v", interfaces, err)
	}
	if _, err := g.Filesystems(ctx); err != nil { // there may be none on a block device
		t.Error(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	content := strings.Repeat("0123456789", 20000)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, most := range []int{1, 64 << 10, 100000, 1 << 20} {
		if got, err := g.ReadFile(ctx, file, most); err != nil || string(got) != content[:min(most, len(content))] {
			t.Errorf("%d: %d bytes, %v", most, len(got), err)
		}
	}
	if _, err := g.ReadFile(ctx, file+"2", 10); err == nil || !strings.Contains(err.Error(), "No such file") {
		t.Error(err)
	}
}

func TestRealAgentRuns(t *testing.T) {
	t.Parallel()
	ctx, g := t.Context(), NewGuest(newRealAgent(t))
	for _, c := range []struct {
		argv []string
		want Outcome
	}{
		{[]string{"true"}, Outcome{}},
		{[]string{"printf", "%s|", "a b", "$(reboot)", "", "two\nlines", "ü"}, Outcome{Stdout: "a b|$(reboot)||two\nlines|ü|"}},
		{[]string{"sh", "-c", "echo out; echo err >&2; exit 3"}, Outcome{Exit: 3, Stdout: "out\n", Stderr: "err\n"}},
		{[]string{"sh", "-c", "kill -9 $$"}, Outcome{Exit: -1}},
		{[]string{"cat"}, Outcome{}}, // nobody types anything
		{[]string{"head", "-c", "1000000", "/dev/zero"}, Outcome{Stdout: strings.Repeat("\x00", MaxOutput), Cut: true}},
	} {
		if got, err := g.Run(ctx, c.argv); err != nil || got != c.want {
			t.Errorf("%q: %.300q, %v", c.argv, fmt.Sprint(got), err)
		}
	}
	if _, err := g.Run(ctx, []string{"no-such-program"}); err == nil || !strings.Contains(err.Error(), "No such file") {
		t.Error(err)
	}
	m := newMachine(ctx, g)
	if !m.timeout {
		t.Fatal("timeout was not found")
	}
	if out, err := m.within(ctx, time.Second, "sh", "-c", "trap '' TERM; while :; do sleep 1; done"); !errors.Is(err, errSlow) {
		t.Errorf("%+v, %v", out, err)
	}
	// One that writes more than an agent keeps is ended as well.
	if out, err := m.within(ctx, time.Second, "yes"); !errors.Is(err, errSlow) || len(out.Stdout) != MaxOutput || !out.Cut {
		t.Errorf("%d, %v", len(out.Stdout), err)
	}
	// Until it has begun in time: an agent on a busy machine takes its own to answer.
	for limit := 200 * time.Millisecond; ; limit *= 2 {
		short, cancel := context.WithTimeout(ctx, limit)
		_, err := g.Run(short, []string{"sleep", "30"})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || limit > 10*time.Second {
			t.Fatal(err)
		}
		if strings.Contains(err.Error(), "of the guest") {
			break
		}
	}
}

// The whole of it, against a machine that is no VM of ours: this one.
func TestRealVerification(t *testing.T) {
	t.Parallel()
	g := NewGuest(newRealAgent(t))
	name, _ := os.Hostname()
	e := Expect{
		Up: 20 * time.Second, Deadline: 25 * time.Second, Hostname: name, Network: true,
		Mounts: []Mount{{Path: "/"}, {Path: "/proc", Type: "proc"}},
		Checks: []Check{{Name: "passes", Command: []string{"uname", "-s"}, Output: "^Linux$"}, {Name: "fails", Command: []string{"false"}, Seconds: 2}},
	}
	if err := e.Check(); err != nil {
		t.Fatal(err)
	}
	r := Run(t.Context(), g, nil, e, nil, nil)
	for id, state := range map[string]State{"boot": StateOK, "agent": StateOK, "hostname": StateOK, "clock": StateOK, "mounts": StateOK, "check:passes": StateOK, "check:fails": StateFailed} {
		if got := find(t, r, id); got.State != state {
			t.Errorf("%+v", got)
		}
	}
	if r.Verdict != StateFailed {
		t.Error(r.Verdict)
	}
	devices, err := pciDevices(t.Context(), newMachine(t.Context(), g))
	there, _ := filepath.Glob("/sys/bus/pci/devices/*/uevent")
	if err != nil && len(there) > 0 || len(devices) != len(there) {
		t.Errorf("%d of %d, %v", len(devices), len(there), err)
	}
}

func TestRealAgentThatRunsNothing(t *testing.T) {
	t.Parallel()
	g := NewGuest(newRealAgent(t, "-b", "guest-exec,guest-exec-status,guest-file-open"))
	e := expected()
	e.Up, e.Deadline = 20*time.Second, 30*time.Second
	e.Hostname, e.Mounts, e.Addresses = "", nil, nil
	r := Run(t.Context(), g, nil, e, nil, nil)
	if got := find(t, r, "devices"); got.State != StateUnknown || !strings.Contains(got.Text, "not allowed") || r.Verdict != StateUnknown {
		t.Errorf("%+v, %s", got, r.Verdict)
	}
	if _, err := g.Run(t.Context(), []string{"true"}); err == nil {
		t.Error("it ran a program")
	}
}
