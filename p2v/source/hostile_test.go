package source_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gpuvirt/p2v/report"
	"gpuvirt/p2v/source"
	"gpuvirt/p2v/source/sourcetest"
)

// A stubborn server is there, says so whenever it is asked, and does not do what else it is
// asked.
type stubborn struct {
	opens, starts bool // it does this much
	says          []byte
}

// serve returns how the server is reached.
func (s stubborn) serve(t *testing.T) (report.Source, source.Options) {
	t.Helper()
	_, host, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(host)
	if err != nil {
		t.Fatal(err)
	}
	_, mine, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	sourcetest.WriteKey(t, filepath.Join(folder, "key"), mine)
	conf := &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return &ssh.Permissions{}, nil }}
	conf.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { s.answer(raw, conf) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	at := report.Source{
		Address: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, User: "root", Credential: "key", HostKey: ssh.FingerprintSHA256(signer.PublicKey()),
	}
	return at, source.Options{Credentials: folder, Grace: 50 * time.Millisecond}
}

func (s stubborn) answer(raw net.Conn, conf *ssh.ServerConfig) {
	defer raw.Close() //nolint:errcheck // of the test
	_, channels, requests, err := ssh.NewServerConn(raw, conf)
	if err != nil {
		return
	}
	go func() { // questions whether it is there are answered
		for r := range requests {
			_ = r.Reply(true, nil)
		}
	}()
	for asked := range channels {
		if !s.opens {
			continue
		}
		channel, requests, err := asked.Accept()
		if err != nil {
			return
		}
		go func() {
			for r := range requests {
				if s.starts {
					_ = r.Reply(true, nil)
					if r.Type == "exec" { // and not when it is asked to end
						_, _ = channel.Write(s.says)
					}
				}
			}
		}()
	}
}

// A server that is there and does not end what it is asked to end holds nobody up: neither
// an abort nor the end of the daemon.
func TestStubbornServer(t *testing.T) {
	for name, s := range map[string]stubborn{
		"opens nothing":  {},
		"starts nothing": {opens: true},
		"ends nothing":   {opens: true, starts: true},
	} {
		t.Run(name, func(t *testing.T) {
			at, o := s.serve(t)
			c, err := source.Dial(t.Context(), at, o)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close() //nolint:errcheck // of the test
			ctx, cancel := context.WithCancelCause(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- c.Run(ctx, bytes.NewReader(make([]byte, 64<<20)), io.Discard, "cat") }()
			cancel(errors.New("enough"))
			select {
			case err := <-ended:
				if err == nil || err.Error() != "enough" {
					t.Errorf("got %v", err)
				}
			case <-time.After(time.Minute):
				t.Error("it goes on")
			}
		})
	}
}

// Close ends a Read and a Write that wait for a server that does not let go.
func TestStubbornStream(t *testing.T) {
	at, o := stubborn{opens: true, starts: true, says: []byte("x")}.serve(t)
	c, err := source.Dial(t.Context(), at, o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // of the test
	s, err := c.Open(t.Context(), "cat")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(make([]byte, 1)); err != nil { // it runs
		t.Fatal(err)
	}
	ended := make(chan error, 2)
	go func() { _, err := s.Read(make([]byte, 1)); ended <- err }()
	go func() { _, err := s.Write(make([]byte, 64<<20)); ended <- err }()
	_ = s.Close()
	for range 2 {
		select {
		case err := <-ended:
			if err == nil {
				t.Error("no error")
			}
		case <-time.After(time.Minute):
			t.Fatal("it goes on")
		}
	}
}

// A program that ignores its end does not hold us up.
func TestDeafProgram(t *testing.T) {
	s := sourcetest.New(t)
	c, err := source.Dial(t.Context(), s.Source, source.Options{Credentials: s.Credentials, Grace: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // of the test
	ctx, cancel := context.WithCancelCause(t.Context())
	began := &begins{began: make(chan struct{})}
	ended := make(chan error, 1)
	go func() {
		ended <- c.Run(ctx, bytes.NewReader([]byte("trap '' TERM HUP PIPE; echo began; exec sleep 30\n")), began, "sh")
	}()
	<-began.began
	cancel(errors.New("enough"))
	select {
	case err := <-ended:
		if err == nil || err.Error() != "enough" {
			t.Errorf("got %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("it goes on")
	}
}

// The same of one that is spoken with.
func TestDeafStream(t *testing.T) {
	s := sourcetest.New(t)
	c, err := source.Dial(t.Context(), s.Source, source.Options{Credentials: s.Credentials, Grace: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // of the test
	stream, err := c.Open(t.Context(), "sh")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(stream, "trap '' TERM HUP PIPE; echo began; exec sleep 30\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(stream, make([]byte, len("began\n"))); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { _, err := stream.Read(make([]byte, 1)); ended <- err }()
	_ = stream.Close()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(time.Minute):
		t.Error("it goes on")
	}
}

// fussy takes nothing.
type fussy struct{}

func (fussy) Write([]byte) (int, error) { return 0, errors.New("that is too much") }

// A server that says more than is heard is not waited for: nobody reads on, and so it never
// comes to its end.
func TestTalker(t *testing.T) {
	c := dial(t, sourcetest.New(t))
	ended := make(chan error, 1)
	go func() { ended <- c.Run(t.Context(), nil, fussy{}, "yes") }()
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "that is too much") {
			t.Errorf("got %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("it goes on")
	}
}
