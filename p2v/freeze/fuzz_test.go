package freeze

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"gpuvirt/p2v/lines"
)

// A wire has what one side says, and takes what the other does.
type wire struct {
	io.Reader

	closed bool
}

func (w *wire) Write(b []byte) (int, error) { return len(b), nil }
func (w *wire) Close() error                { w.closed = true; return nil }

// Whatever a client says, nothing is frozen when it has gone, unless the server was to power off.
func FuzzServe(f *testing.F) {
	for _, said := range []string{
		`{"do":"freeze","limit_ms":60000,"stop":["db.service"]}` + "\n" + `{"do":"quiet"}` + "\n" + `{"do":"thaw"}`,
		`{"do":"freeze","limit_ms":60000}` + "\n" + `{"do":"off"}` + "\n" + `{"do":"heard"}`,
		`{"do":"freeze","limit_ms":1}` + "\n" + `{"do":"off"}`,
		`{"do":"freeze","limit_ms":-1}`, `{"do":"freeze","limit_ms":60000,"stop":["--now"]}`, `{"do":"freeze","limit_ms":9223372036854775807}`, "", "null", "[]", "\n\n", `{"do":"thaw"}{"do":"off"}`,
	} {
		f.Add([]byte(said))
	}
	root := aServer(f)
	f.Fuzz(func(t *testing.T, said []byte) {
		// One that fails to power off stays frozen for as long as the client has said: not here.
		for line := range bytes.Lines(said) {
			if q := (question{}); lines.Decode(line, &q) == nil && q.Do == doOff {
				t.Skip()
			}
		}
		k := newKernel(t)
		d := &fakeSystemd{k: k, runs: map[string]bool{"db.service": true}}
		w := &wire{Reader: bytes.NewReader(said)}
		_ = Serve(context.Background(), w, []string{"sda"}, Config{Root: root, Kernel: k, Systemctl: d.systemctl})
		if got := k.is(); len(got) != 0 || !d.runs["db.service"] || len(k.off) != 0 {
			t.Errorf("%q leaves %v", said, got)
		}
		if !w.closed {
			t.Error("the connection is open")
		}
		for _, call := range k.took() {
			if verb, unit, _ := strings.Cut(call, " "); verb == "stop" && unit != "db.service" {
				t.Errorf("it stops %q", unit)
			}
		}
	})
}

// Whatever a source says, the client bounds it and escapes it.
func FuzzClient(f *testing.F) {
	first := helloOf(f, Facts{BootID: thisBoot, Filesystems: []Filesystem{{"/", "ext4", "/dev/sda1", true}}})
	f.Add([]byte(first + "\n" + `{"filesystems":[{"mount":"/","type":"ext4","source":"x","freezable":true}]}` + "\n" + `{"written":[{"device":"sda","bytes":1}]}` + "\n{}\n{}\n"))
	f.Add([]byte(first + "\n" + `{"error":"no"}` + "\n{}\nnull\n{}\n"))
	f.Add([]byte(`{"version":1,"error":"x"}`))
	f.Fuzz(func(t *testing.T, said []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		w := &wire{Reader: bytes.NewReader(said)}
		c, err := Connect(ctx, w)
		if err != nil {
			if !w.closed {
				t.Error("the connection is open")
			}
			return
		}
		_ = c.Freeze(ctx, time.Minute, nil)
		written, _ := c.Quiet(ctx)
		facts := c.Facts()
		if len(facts.Filesystems) > maxFilesystems || len(written) > maxDevices {
			t.Error("it is not bounded")
		}
		var text strings.Builder
		for _, fs := range facts.Filesystems {
			text.WriteString(fs.Mount + fs.Type + fs.Source)
		}
		for _, d := range written {
			text.WriteString(d.Device)
		}
		if strings.ContainsAny(text.String(), "\x00\n\x1b") {
			t.Errorf("it is not escaped: %q", text.String())
		}
		_ = c.Thaw(ctx)
		if err := c.PowerOff(ctx); err == nil && !w.closed {
			t.Error("the connection is open")
		}
	})
}
