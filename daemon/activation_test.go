package daemon

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const activatedEnv = "GPUVIRT_TEST_ACTIVATED"

// TestActivated is the process that systemd would start: see TestActivation.
func TestActivated(t *testing.T) {
	if os.Getenv(activatedEnv) == "" {
		t.Skip("started by TestActivation")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // until the parent hangs up
		cancel()
	}()
	host := newFakeHost(t)
	s := New(Config{Host: host, Operations: host.ops, Log: slog.New(slog.DiscardHandler), SocketPath: "/nonexistent/x.sock"})
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

// activate starts a process with a listener passed as systemd does it.
func activate(t *testing.T, l interface{ File() (*os.File, error) }) (stop func() (output string, err error)) {
	t.Helper()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" -test.run='^TestActivated$'`, os.Args[0])
	cmd.Env = append(os.Environ(), activatedEnv+"=1")
	cmd.ExtraFiles = []*os.File{f}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() (string, error) {
		stdin.Close()
		err := cmd.Wait()
		return out.String(), err
	}
}

// A socket that systemd passes is used, and left where it is.
func TestActivation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	stop := activate(t, l)
	l.Close()
	c := over(t, func() (net.Conn, error) { return net.Dial("unix", path) })
	if status, body := fetch(t, c, "GET", "/v1/gpus", ""); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	if out, err := stop(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("systemd's socket was removed: %v", err)
	}
}

// Nobody can be identified on a network socket: it is refused.
func TestActivationRefusesNetwork(t *testing.T) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if out, err := activate(t, l)(); err == nil || !strings.Contains(out, "not a unix stream socket") {
		t.Errorf("%v: %s", err, out)
	}
}
