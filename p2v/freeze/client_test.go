package freeze

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// says is a source that says the lines, one after each question but the first.
func says(lines ...string) net.Conn {
	near, far := net.Pipe()
	go func() {
		asked := bufio.NewReader(far)
		for i, line := range lines {
			if i > 0 {
				if _, err := asked.ReadString('\n'); err != nil {
					return
				}
			}
			if _, err := io.WriteString(far, line+"\n"); err != nil {
				return
			}
		}
		_ = far.Close()
	}()
	return near
}

func helloOf(t testing.TB, f Facts) string {
	t.Helper()
	text, err := json.Marshal(hello{Version: version, Facts: f})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestHostileHello(t *testing.T) {
	good := Facts{BootID: thisBoot}
	for name, line := range map[string]string{
		"no JSON":          "welcome",
		"another version":  `{"version":2}`,
		"no boot":          helloOf(t, Facts{BootID: "x"}),
		"a boot too long":  helloOf(t, Facts{BootID: thisBoot + "\n" + strings.Repeat("x", 10000)}),
		"a field":          `{"version":1,"x":1}`,
		"negative":         helloOf(t, Facts{BootID: thisBoot, HungTaskSeconds: -1}),
		"a time":           helloOf(t, Facts{BootID: thisBoot, WatchdogSeconds: 1 << 40}),
		"many filesystems": helloOf(t, Facts{BootID: thisBoot, Filesystems: make([]Filesystem, maxFilesystems+1)}),
		"a long line":      strings.Repeat("[", maxAnswer+1),
		"two values":       helloOf(t, good) + helloOf(t, good),
		"nothing":          "",
	} {
		t.Run(name, func(t *testing.T) {
			near := says(line)
			var lost *LostError
			if _, err := Connect(t.Context(), near); !errors.As(err, &lost) || len(err.Error()) > 5000 || strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("got %v", err)
			}
			if _, err := near.Write(nil); !errors.Is(err, io.ErrClosedPipe) {
				t.Error("the connection is open")
			}
		})
	}
	var r *RefusedError
	if _, err := Connect(t.Context(), says(`{"version":1,"error":"no \u001b[2Jdisk"}`)); !errors.As(err, &r) || r.Reason != `no \x1b[2Jdisk` {
		t.Errorf("got %v", err)
	}
	c, err := Connect(t.Context(), says(helloOf(t, Facts{BootID: thisBoot, Filesystems: []Filesystem{{Mount: "/\x1b[2J", Source: strings.Repeat("x", 10000)}}})))
	if err != nil {
		t.Fatal(err)
	}
	if f := c.Facts().Filesystems[0]; f.Mount != `/\x1b[2J` || len(f.Source) > 5000 {
		t.Error(f)
	}
}

func TestHostileAnswers(t *testing.T) {
	ask := map[string]func(ctx context.Context, c *Client) error{
		"freeze": func(ctx context.Context, c *Client) error { return c.Freeze(ctx, time.Minute, nil) },
		"quiet":  func(ctx context.Context, c *Client) error { _, err := c.Quiet(ctx); return err },
		"thaw":   func(ctx context.Context, c *Client) error { return c.Thaw(ctx) },
	}
	many := func(key, item string, n int) string {
		return `{"` + key + `":[` + strings.Repeat(item+",", n) + item + `]}`
	}
	for name, c := range map[string]struct{ verb, line string }{
		"no JSON":      {"thaw", "fine"},
		"nothing":      {"freeze", ""},
		"a field":      {"quiet", `{"fine":true}`},
		"filesystems":  {"freeze", many("filesystems", "{}", maxFilesystems)},
		"devices":      {"quiet", many("written", `{"device":"a","bytes":1}`, maxDevices)},
		"no bytes":     {"quiet", `{"written":[{"device":"sda","bytes":0}]}`},
		"negative":     {"quiet", `{"written":[{"device":"sda","bytes":-1}]}`},
		"overflow":     {"quiet", `{"written":[{"device":"sda","bytes":18446744073709551616}]}`},
		"a long line":  {"thaw", strings.Repeat("[", maxAnswer+1)},
		"a long field": {"thaw", `{"` + strings.Repeat("x", 100000) + `":1}`},
	} {
		t.Run(name, func(t *testing.T) {
			near := says(helloOf(t, Facts{BootID: thisBoot}), c.line)
			client, err := Connect(t.Context(), near)
			if err != nil {
				t.Fatal(err)
			}
			var lost *LostError
			if err := ask[c.verb](t.Context(), client); !errors.As(err, &lost) || len(err.Error()) > 5000 {
				t.Errorf("got %v", err)
			}
			// It is of no use any more, and the source sees that.
			if _, err := near.Write(nil); !errors.Is(err, io.ErrClosedPipe) {
				t.Error("the connection is open")
			}
			for _, f := range ask {
				if err := f(t.Context(), client); !errors.As(err, &lost) {
					t.Errorf("got %v", err)
				}
			}
		})
	}
}

// A source that says nothing, or does not listen, is not waited for for ever, also where the
// context would allow it.
func TestSilence(t *testing.T) {
	for name, listens := range map[string]bool{"silent": true, "deaf": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				defer far.Close() //nolint:errcheck // of the test
				if _, err := Connect(t.Context(), near); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v", err)
				}
				near, far = net.Pipe()
				defer far.Close() //nolint:errcheck // of the test
				go func() {
					_, _ = io.WriteString(far, helloOf(t, Facts{BootID: thisBoot})+"\n")
					if listens {
						_, _ = io.Copy(io.Discard, far)
					}
				}()
				c, err := Connect(t.Context(), near)
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				began := time.Now()
				if err := c.Freeze(ctx, time.Hour, nil); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
					t.Errorf("got %v", err)
				}
				if _, err := c.Quiet(t.Context()); err == nil {
					t.Error("it goes on")
				}
			})
		})
	}
}

// A call whose context has ended says nothing to the source, which stays as it is.
func TestTooLate(t *testing.T) {
	s := serve(t, aServer(t))
	c := s.connect()
	s.froze(c, time.Hour)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("no more")
	cancel(why)
	if err := c.PowerOff(ctx); !errors.Is(err, why) {
		t.Error(err)
	}
	if err := c.Thaw(ctx); !errors.Is(err, why) {
		t.Error(err)
	}
	if _, err := c.Quiet(t.Context()); err != nil {
		t.Error(err)
	}
}
