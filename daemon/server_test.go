package daemon

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"gpuvirt/operation"
)

// serve runs a server on a real socket until stop is called; stop returns what
// Run returned.
func serve(t *testing.T, edit func(*Config, *fakeHost)) (h *harness, stop func() error) {
	t.Helper()
	return serveWith(t, edit, func(*Server) {})
}

// serveWith is serve of a server that is prepared.
func serveWith(t *testing.T, edit func(*Config, *fakeHost), prepare func(*Server)) (h *harness, stop func() error) {
	t.Helper()
	h = &harness{host: newFakeHost(t), kept: &tokenStore{}, log: &syncBuffer{}}
	assessments := &fakeAssessments{host: h.host, inspection: exampleInspection(t)}
	c := Config{
		Host: h.host, Operations: h.host.ops, Tokens: newTokens(t, h.kept), Assessments: assessments, Migrations: &fakeMigrations{fakeAssessments: assessments},
		Log:        slog.New(slog.NewJSONHandler(h.log, nil)),
		SocketPath: filepath.Join(t.TempDir(), "gpuvirtd.sock"), Exit: func(int) {},
	}
	if edit != nil {
		edit(&c, h.host)
	}
	h.Server = New(c)
	prepare(h.Server)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- h.Run(ctx) }()
	var once bool
	stop = func() error {
		if once {
			return nil
		}
		once = true
		cancel()
		return <-result
	}
	t.Cleanup(func() { _ = stop() })
	select {
	case <-h.Ready():
	case err := <-result:
		t.Fatalf("Run: %v", err)
	}
	return h, stop
}

// over makes a client over a connection that dial makes.
func over(t *testing.T, dial func() (net.Conn, error)) *http.Client {
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return dial() }}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (h *harness) client(t *testing.T) *http.Client {
	return over(t, func() (net.Conn, error) { return net.Dial("unix", h.socketPath) })
}

func fetch(t *testing.T, c *http.Client, method, target, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://gpuvirt"+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	res, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func TestRun(t *testing.T) {
	h, stop := serve(t, nil)
	c := h.client(t)
	if status, body := fetch(t, c, "PATCH", "/v1/gpus/"+gpuA, `{"managed":true}`); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	fi, err := os.Lstat(h.socketPath)
	if err != nil || fi.Mode() != fs.ModeSocket|0o660 {
		t.Errorf("socket %v, %v", fi.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(h.socketPath), ".*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, err := os.Lstat(h.socketPath); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// At the end streams and waits end, with an answer, and Run returns.
func TestRunDrains(t *testing.T) {
	h, stop := serve(t, nil)
	c := h.client(t)
	id := h.host.ops.add("attach", "root", operation.Running).ID
	res, err := c.Get("http://gpuvirt/v1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if line, err := bufio.NewReader(res.Body).ReadString('\n'); line != ": connected\n" {
		t.Fatalf("stream: %q, %v", line, err)
	}
	waited := make(chan int, 1)
	go func() {
		res, err := c.Get("http://gpuvirt/v1/operations/" + id + "/wait?timeout=10m")
		if err != nil {
			waited <- 0
			return
		}
		res.Body.Close()
		waited <- res.StatusCode
	}()
	for len(h.streams) < 2 {
		runtime.Gosched() // until the wait has begun
	}
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if status := <-waited; status != 200 {
		t.Errorf("the wait got %d", status)
	}
}

// A request that does not end is cut off after the drain timeout.
func TestRunCutsOff(t *testing.T) {
	entered := make(chan struct{})
	h, stop := serve(t, func(c *Config, host *fakeHost) {
		c.DrainTimeout = time.Millisecond
		host.backup = func(w io.Writer) error {
			close(entered)
			for {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return err
				}
			}
		}
	})
	conn, err := net.Dial("unix", h.socketPath)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /v1/backup HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-entered
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

// A backup that fails half way is seen to be incomplete.
func TestBackupBreaks(t *testing.T) {
	h, _ := serve(t, func(_ *Config, host *fakeHost) {
		host.backup = func(w io.Writer) error {
			_, _ = w.Write(make([]byte, 1<<20))
			return errors.New("disk")
		}
	})
	res, err := h.client(t).Get("http://gpuvirt/v1/backup")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Error("the client believes that it has all")
	}
	if !strings.HasPrefix(res.Header.Get("Content-Disposition"), `attachment; filename="gpuvirt-`) {
		t.Errorf("header %v", res.Header)
	}
}

// A body that is too large gets its answer, also if it is sent in pieces.
func TestLargeBody(t *testing.T) {
	h, _ := serve(t, nil)
	c := h.client(t)
	r, err := http.NewRequest("PUT", "http://gpuvirt/v1/assignments/x", io.MultiReader(strings.NewReader(`{"vm":"`), io.LimitReader(endless{}, 2<<20)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	res, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != 413 {
		t.Errorf("status %d", res.StatusCode)
	}
}

// A client that writes all it has before it reads, slowly, still learns why it was
// refused.
func TestRefusedBodyIsReadToItsEnd(t *testing.T) {
	h, _ := serve(t, nil)
	conn, err := net.Dial("unix", h.socketPath)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const size = 10 << 20
	head := fmt.Sprintf("PUT /v1/assignments/a HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", size)
	if _, err := io.WriteString(conn, head); err != nil {
		t.Fatal(err)
	}
	piece := bytes.Repeat([]byte("x"), 1<<20)
	for range size / len(piece) {
		if _, err := conn.Write(piece); err != nil {
			t.Fatalf("cut off while writing: %v", err)
		}
		<-time.After(80 * time.Millisecond) // longer in all than net/http lingers
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("status %d", resp.StatusCode)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// A panic ends the process, after an answer that tells nothing.
func TestPanic(t *testing.T) {
	h := newHarness(t)
	h.host.panics = true
	a := h.get(t, "/v1/gpus")
	if a.status != 500 || a.problem(t).Code != "internal" || strings.Contains(a.body, "defect") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if len(h.exited) != 1 || h.exited[0] == 0 {
		t.Errorf("exit %v", h.exited)
	}
	if !strings.Contains(h.log.String(), "a defect") || !strings.Contains(h.log.String(), "goroutine") {
		t.Errorf("log %s", h.log)
	}
}

func TestListenRefuses(t *testing.T) {
	run := func(path string) error {
		ctx, cancel := context.WithCancel(t.Context())
		host := newFakeHost(t)
		s := New(Config{Host: host, Operations: host.ops, Log: slog.New(slog.DiscardHandler), SocketPath: path})
		var err error
		var running sync.WaitGroup
		running.Go(func() { err = s.Run(ctx); cancel() })
		select {
		case <-s.Ready():
			cancel()
		case <-ctx.Done():
		}
		running.Wait()
		return err
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(file); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("file: %v", err)
	}
	if b, err := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("the file is %q, %v", b, err)
	}
	if err := run(filepath.Join(dir, strings.Repeat("x", 108))); err == nil || !strings.Contains(err.Error(), "longer") {
		t.Errorf("long path: %v", err)
	}

	// Somebody else's socket is left alone as long as they answer.
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := run(path); err == nil || !strings.Contains(err.Error(), "another process answers") {
		t.Errorf("in use: %v", err)
	}
	l.Close()
	if err := run(path); err != nil {
		t.Errorf("stale: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	unlock, err := lockPath(path + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	if err := run(path); err == nil || !strings.Contains(err.Error(), "another gpuvirtd runs") {
		t.Errorf("locked: %v", err)
	}
	unlock()

	// A second daemon does not disturb the first.
	h, _ := serve(t, nil)
	if err := run(h.socketPath); err == nil {
		t.Error("two daemons on one socket")
	}
	if status, _ := fetch(t, h.client(t), "GET", "/v1/health/live", ""); status != 200 {
		t.Errorf("the first daemon answers %d", status)
	}
}
