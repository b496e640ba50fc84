package lines_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gpuvirt/p2v/lines"
)

type word struct {
	Word string `json:"word"`
}

// answers is a program that gives an answer to each line, and the answers to nothing that hears.
func answers(t *testing.T, all ...string) *lines.Conn {
	t.Helper()
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer far.Close() //nolint:errcheck // of the test
		said := bufio.NewScanner(far)
		for _, a := range all {
			if !said.Scan() {
				return
			}
			_, _ = io.WriteString(far, a)
		}
	}()
	c := lines.New(near, 1024)
	t.Cleanup(func() { _ = c.Close(); <-done })
	return c
}

func TestAsk(t *testing.T) {
	c := answers(t, `{"word":"one"}`+"\n", ` {"word":"two"} `+"\n")
	for _, want := range []string{"one", "two"} {
		var got word
		if err := c.Ask(t.Context(), word{"?"}, &got); err != nil || got.Word != want {
			t.Errorf("%q, %v", got.Word, err)
		}
	}
	var broken *lines.BrokenError
	if err := c.Ask(t.Context(), word{"?"}, &word{}); !errors.As(err, &broken) {
		t.Errorf("got %v", err)
	}
}

func TestAskHostile(t *testing.T) {
	for name, says := range map[string]string{
		"no JSON":      "welcome\n",
		"unknown":      `{"word":"x","more":1}` + "\n",
		"two values":   `{"word":"x"}{"word":"y"}` + "\n",
		"another type": `{"word":7}` + "\n",
		"long":         `{"word":"` + strings.Repeat("x", 1024) + `"}` + "\n",
		"nothing":      "",
	} {
		t.Run(name, func(t *testing.T) {
			var broken *lines.BrokenError
			if err := answers(t, says).Ask(t.Context(), word{"?"}, &word{}); !errors.As(err, &broken) || err.Error() == "" {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Neither one that does not listen nor one that does not answer is waited for.
func TestAskInVain(t *testing.T) {
	for name, hears := range map[string]bool{"deaf": false, "silent": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				gone := make(chan struct{})
				go func() {
					defer close(gone)
					if hears {
						_, _ = io.Copy(io.Discard, far)
					}
				}()
				why := errors.New("that is enough")
				ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, why)
				defer cancel()
				if err := lines.New(near, 1024).Ask(ctx, word{"?"}, &word{}); !errors.Is(err, why) {
					t.Errorf("got %v", err)
				}
				_ = far.Close()
				<-gone
			})
		})
	}
}
