package source_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gpuvirt/gpu"
	"gpuvirt/p2v/report"
	"gpuvirt/p2v/source"
	"gpuvirt/p2v/source/sourcetest"
)

func dial(t *testing.T, s *sourcetest.Server) *source.Conn {
	t.Helper()
	c, err := source.Dial(t.Context(), s.Source, source.Options{Credentials: s.Credentials})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestRun(t *testing.T) {
	c := dial(t, sourcetest.New(t))
	var out bytes.Buffer
	if err := c.Run(t.Context(), strings.NewReader("a line\n"), &out, "cat"); err != nil || out.String() != "a line\n" {
		t.Errorf("got %q, %v", out.String(), err)
	}
	err := c.Run(t.Context(), nil, io.Discard, "ls", "/there/is/no/such")
	exit, ok := errors.AsType[*source.ExitError](err)
	if !ok || exit.Code != 2 || !strings.Contains(exit.Output, "No such file") {
		t.Errorf("got %v", err)
	}
	for _, bad := range []string{"a;b", "$(id)", "a b", "a\nb", "`id`", "", "~", "*", "a'b", "a|b", "<x"} {
		if err := c.Run(t.Context(), nil, io.Discard, "echo", bad); gpu.CodeOf(err) != gpu.CodeInternal {
			t.Errorf("%q was sent: %v", bad, err)
		}
	}
}

// A server is known by any of its keys, whichever kind it would show first, and by no other.
func TestHostKey(t *testing.T) {
	s := sourcetest.New(t)
	for kind, key := range s.HostKeys {
		s.Source.HostKey = key
		c, err := source.Dial(t.Context(), s.Source, source.Options{Credentials: s.Credentials})
		if err != nil {
			t.Fatalf("known by its %s key: %v", kind, err)
		}
		_ = c.Close()
	}
	s.Source.HostKey = "SHA256:" + strings.Repeat("A", 43)
	_, err := source.Dial(t.Context(), s.Source, source.Options{Credentials: s.Credentials})
	if gpu.CodeOf(err) != gpu.CodeUnauthorized || !strings.Contains(err.Error(), s.HostKeys["rsa"]) || !strings.Contains(err.Error(), s.HostKeys["ed25519"]) {
		t.Errorf("a server with another key: %v", err)
	}
}

func TestDialRefuses(t *testing.T) {
	s := sourcetest.New(t)
	key := func(name string) string { return filepath.Join(s.Credentials, name) }
	_, other, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sourcetest.WriteKey(t, key("stranger"), other)
	sourcetest.WriteKey(t, key("open"), other)
	block, err := ssh.MarshalPrivateKeyWithPassphrase(other, "", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Chmod(key("open"), 0o640),
		os.WriteFile(key("locked"), pem.EncodeToMemory(block), 0o600),
		os.WriteFile(key("text"), []byte("hello"), 0o600),
		os.Mkdir(key("folder"), 0o700),
		os.Symlink("/etc/shadow", key("out")),
		exec.Command("mkfifo", "-m", "600", key("fifo")).Run(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for credential, want := range map[string]struct {
		code gpu.Code
		text string
	}{
		"stranger": {gpu.CodeUnauthorized, "does not let"},
		"open":     {gpu.CodeInvalid, "its mode is 0640"},
		"locked":   {gpu.CodeInvalid, "locked with a passphrase"},
		"text":     {gpu.CodeInvalid, "no private key"},
		"folder":   {gpu.CodeInvalid, "it is no file"},
		"fifo":     {gpu.CodeInvalid, "it is no file"},
		"out":      {gpu.CodeInvalid, "escapes"},
		"none":     {gpu.CodeInvalid, "there is no file"},
	} {
		from := s.Source
		from.Credential = credential
		_, err := source.Dial(t.Context(), from, source.Options{Credentials: s.Credentials})
		if gpu.CodeOf(err) != want.code || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: %v", credential, err)
		}
	}
	s.Stop()
	_, err = source.Dial(t.Context(), s.Source, source.Options{Credentials: s.Credentials})
	if gpu.CodeOf(err) != gpu.CodeUnavailable || !errors.Is(err, report.ErrSilent) {
		t.Errorf("nobody there: %v", err)
	}
}

// One that takes connections and says nothing does not hold us up.
func TestDialIsLimited(t *testing.T) {
	s := sourcetest.New(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // of the test
	s.Source.Port = l.Addr().(*net.TCPAddr).Port
	// limited dials with more and more time: to be connected takes some on a busy machine.
	limited := func(dial func(limit time.Duration) error) (err error) {
		for limit := 50 * time.Millisecond; limit < time.Minute; limit *= 2 {
			if err = dial(limit); !errors.Is(err, report.ErrSilent) {
				break
			}
		}
		return err
	}
	err = limited(func(limit time.Duration) error {
		_, err := source.Dial(t.Context(), s.Source, source.Options{Credentials: s.Credentials, Connect: limit})
		if gpu.CodeOf(err) != gpu.CodeUnavailable || !strings.Contains(err.Error(), "no answer within "+limit.String()) {
			t.Errorf("got %v", err)
		}
		return err
	})
	// Somebody is there, as far as one knows, whoever it was that did not want to wait.
	shortErr := limited(func(limit time.Duration) error {
		short, end := context.WithTimeout(t.Context(), limit)
		defer end()
		_, err := source.Dial(short, s.Source, source.Options{Credentials: s.Credentials})
		return err
	})
	unknown := s.Source
	unknown.Address = "none.invalid"
	_, nameErr := source.Dial(t.Context(), unknown, source.Options{Credentials: s.Credentials})
	for _, err := range []error{err, shortErr, nameErr} {
		if gpu.CodeOf(err) != gpu.CodeUnavailable || errors.Is(err, report.ErrSilent) {
			t.Errorf("silent: %v", err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	if _, err := source.Dial(ctx, s.Source, source.Options{Credentials: s.Credentials}); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("got %v", err)
	}
}

// What runs ends with its context, and with the server.
func TestRunEnds(t *testing.T) {
	s := sourcetest.New(t)
	c := dial(t, s)
	ctx, cancel := context.WithCancelCause(t.Context())
	began := &begins{began: make(chan struct{})}
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx, nil, began, "yes") }()
	<-began.began
	cancel(errors.New("enough"))
	if err := <-ended; err == nil || err.Error() != "enough" {
		t.Errorf("got %v", err)
	}
	began = &begins{began: make(chan struct{})}
	go func() { ended <- c.Run(t.Context(), nil, began, "yes") }()
	<-began.began
	s.Stop()
	if err := <-ended; gpu.CodeOf(err) != gpu.CodeUnavailable {
		t.Errorf("got %v", err)
	}
	s.Start()
	if err := dial(t, s).Run(t.Context(), strings.NewReader("kill -TERM $$\n"), io.Discard, "sh"); gpu.CodeOf(err) != gpu.CodeUnavailable {
		t.Errorf("one that a shutdown ends: %v", err)
	}
	if err := dial(t, s).Run(t.Context(), nil, io.Discard, "true"); err != nil {
		t.Error(err)
	}
}

type begins struct {
	began chan struct{}
	once  bool
}

func (b *begins) Write(p []byte) (int, error) {
	if !b.once {
		b.once = true
		close(b.began)
	}
	return len(p), nil
}

// A program is brought into memory, replaces what an earlier try left, runs, and goes.
func TestPlace(t *testing.T) {
	c := dial(t, sourcetest.New(t))
	program := "#!/bin/sh\necho it runs \"$@\"\n"
	var folder string
	for range 2 {
		var err error
		if folder, err = c.Place(t.Context(), "01TEST", strings.NewReader(program), int64(len(program))); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	info, err := os.Stat(folder)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("%v %v", info, err)
	}
	var out bytes.Buffer
	if err := c.Run(t.Context(), nil, &out, folder+"/gpuvirt", "p2v"); err != nil || out.String() != "it runs p2v\n" {
		t.Errorf("got %q, %v", out.String(), err)
	}
	for range 2 {
		if err := c.Unplace(t.Context(), "01TEST"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	for _, bad := range []string{"/../../etc/x", "a;b", ""} {
		if err := c.Unplace(t.Context(), bad); gpu.CodeOf(err) != gpu.CodeInternal {
			t.Errorf("%q: got %v", bad, err)
		}
	}
	// A program that comes short is not left lying there.
	if _, err := c.Place(t.Context(), "01TEST", strings.NewReader("short"), 100); gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), "no room for 100 bytes") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

// A folder that is somebody else's, or no folder, is not ours to use.
func TestPlaceInTheWay(t *testing.T) {
	c := dial(t, sourcetest.New(t))
	inTheWay := "/dev/shm/.gpuvirt-01WAY"
	if err := os.Symlink(t.TempDir(), inTheWay); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(inTheWay) })
	folder, err := c.Place(t.Context(), "01WAY", strings.NewReader("x"), 1)
	if err == nil && strings.HasPrefix(folder, "/dev/shm") {
		t.Errorf("it went through a link: %q", folder)
	}
	if err == nil {
		_ = c.Unplace(t.Context(), "01WAY")
	}
	if _, err := os.Lstat(inTheWay); err != nil {
		t.Errorf("what is not ours is gone: %v", err)
	}
}

// What a shell prints unasked is not taken for an answer.
func TestPlaceOnATalkativeServer(t *testing.T) {
	c := dial(t, sourcetest.New(t, `ForceCommand echo welcome; sh -c "$SSH_ORIGINAL_COMMAND"`))
	if _, err := c.Place(t.Context(), "01TALK", strings.NewReader("x"), 1); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Errorf("got %v", err)
	}
	_ = os.RemoveAll("/dev/shm/.gpuvirt-01TALK")
}

func TestSourceIsComplete(t *testing.T) {
	good := report.Source{Address: "gpu7.example", HostKey: "SHA256:" + strings.Repeat("A", 43), Credential: "gpu7"}
	s, err := good.Complete()
	if err != nil || s.Port != 22 || s.User != "root" {
		t.Errorf("%+v %v", s, err)
	}
	for want, change := range map[string]func(*report.Source){
		"address is missing":    func(s *report.Source) { s.Address = "" },
		"neither a name nor":    func(s *report.Source) { s.Address = "-oProxyCommand=id" },
		"port 70000: it must":   func(s *report.Source) { s.Port = 70000 },
		"no name of a user":     func(s *report.Source) { s.User = "a b" },
		"host_key is missing":   func(s *report.Source) { s.HostKey = "" },
		"is no fingerprint":     func(s *report.Source) { s.HostKey = "MD5:00" },
		"credential is missing": func(s *report.Source) { s.Credential = "" },
		"no name of a file":     func(s *report.Source) { s.Credential = "../shadow" },
		`"a..b" is no name`:     func(s *report.Source) { s.Credential = "a..b" },
	} {
		bad := good
		change(&bad)
		if _, err := bad.Complete(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v", want, err)
		}
	}
}

// A cable that was pulled says nothing: who waits is told all the same.
func TestSilenceEndsTheConnection(t *testing.T) {
	s := sourcetest.New(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // of the test
	pulled := make(chan struct{})
	carry := func(near net.Conn) {
		far, err := net.Dial("tcp", net.JoinHostPort(s.Source.Address, strconv.Itoa(s.Source.Port)))
		if err != nil {
			return
		}
		for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
			go func() {
				buf := make([]byte, 4096)
				for {
					n, err := way[0].Read(buf)
					if err != nil {
						return
					}
					select {
					case <-pulled:
						continue // swallowed
					default:
					}
					if _, err := way[1].Write(buf[:n]); err != nil {
						return
					}
				}
			}()
		}
	}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			carry(near)
		}
	}()
	behind := s.Source
	behind.Port = l.Addr().(*net.TCPAddr).Port
	// With more and more time: a busy machine is silent for a while as well, before anything is pulled.
	for alive := 30 * time.Millisecond; ; alive *= 2 {
		c, err := source.Dial(t.Context(), behind, source.Options{Credentials: s.Credentials, Alive: alive})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() //nolint:errcheck // of the test
		began, ended := &begins{began: make(chan struct{})}, make(chan error, 1)
		go func() { ended <- c.Run(t.Context(), nil, began, "yes") }()
		select {
		case <-began.began:
			close(pulled)
			err = <-ended
		case err = <-ended:
			if alive < time.Minute {
				continue
			}
		}
		if gpu.CodeOf(err) != gpu.CodeUnavailable || !strings.Contains(err.Error(), "no answer for "+(3*alive).String()) {
			t.Errorf("got %v", err)
		}
		return
	}
}

// A program that is spoken with: its end ends the reading, and Close ends it.
func TestOpen(t *testing.T) {
	s := sourcetest.New(t)
	c := dial(t, s)
	echo, err := c.Open(t.Context(), "cat")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one\n", "two\n"} {
		if _, err := io.WriteString(echo, text); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(echo, got); err != nil || string(got) != text {
			t.Fatalf("%q, %v", got, err)
		}
	}
	read := make(chan error, 1)
	go func() {
		_, err := echo.Read(make([]byte, 1))
		read <- err
	}()
	for range 2 {
		if err := echo.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-read; err == nil {
		t.Error("a read that waited goes on")
	}

	failing, err := c.Open(t.Context(), "ls", "/there/is/no/such")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(failing); !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "No such file") {
		t.Errorf("got %v", err)
	}
	_ = failing.Close()
	if _, err := c.Open(t.Context(), "echo", "a;b"); gpu.CodeOf(err) != gpu.CodeInternal {
		t.Errorf("got %v", err)
	}
	gone, err := c.Open(t.Context(), "cat")
	if err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if _, err := gone.Read(make([]byte, 1)); err == nil {
		t.Error("a read from a server that is gone goes on")
	}
	if _, err := c.Open(t.Context(), "cat"); gpu.CodeOf(err) != gpu.CodeUnavailable {
		t.Errorf("got %v", err)
	}
}
