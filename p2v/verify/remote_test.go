package verify

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// there runs Serve behind each connection.
func there(t *testing.T) Remote {
	return Remote{Open: func(context.Context) (io.ReadWriteCloser, error) {
		near, far := net.Pipe()
		go func() {
			_ = Serve(t.Context(), far, far)
			_ = far.Close()
		}()
		return near, nil
	}}
}

// A program runs there without a shell, and what came of it is told to the letter.
func TestRemote(t *testing.T) {
	r := there(t)
	out, err := r.Run(t.Context(), []string{"printf", "%s|", "a b", "$HOME", "'\"\\", "ü\n"})
	if err != nil || out.Exit != 0 || out.Stdout != "a b|$HOME|'\"\\|ü\n|" {
		t.Errorf("%+v %v", out, err)
	}
	out, err = r.Run(t.Context(), []string{"sh", "-c", "echo told >&2; exit 3"})
	if err != nil || out.Exit != 3 || out.Stderr != "told" {
		t.Errorf("%+v %v", out, err)
	}
	if out, err := r.Run(t.Context(), []string{"/no/such"}); err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("%+v %v", out, err)
	}
	if out, err := r.Run(t.Context(), []string{"head", "-c", "1000000", "/dev/zero"}); err != nil || len(out.Stdout) > MaxOutput || !out.Cut {
		t.Errorf("%d bytes, cut %v, %v", len(out.Stdout), out.Cut, err)
	}
}

// One that hangs ends with who waits for it.
func TestRemoteHangs(t *testing.T) {
	ended := make(chan struct{})
	r := Remote{Open: func(context.Context) (io.ReadWriteCloser, error) {
		near, far := net.Pipe()
		go func() {
			_ = Serve(context.WithoutCancel(t.Context()), far, far)
			close(ended)
		}()
		return near, nil
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if out, err := r.Run(ctx, []string{"sleep", "1000"}); err == nil {
		t.Errorf("%+v", out)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("it goes on")
	}
}

// A source says what it likes.
func TestRemoteHostile(t *testing.T) {
	for _, says := range []string{"", "{", `{"exit":"x"}`, "null", `{"stdout":"` + strings.Repeat("x", maxReply) + `"}`, `{"error":"\u001b[31m"}`} {
		r := Remote{Open: func(context.Context) (io.ReadWriteCloser, error) {
			near, far := net.Pipe()
			go func() {
				buf := make([]byte, 4096)
				_, _ = far.Read(buf)
				_, _ = io.WriteString(far, says)
				_ = far.Close()
			}()
			return near, nil
		}}
		out, err := r.Run(t.Context(), []string{"true"})
		switch {
		case says == "null": // an answer of zeros
		case err == nil:
			t.Errorf("%.20q: %+v", says, out)
		case strings.Contains(err.Error(), "\x1b"):
			t.Errorf("%q", err)
		}
	}
}
