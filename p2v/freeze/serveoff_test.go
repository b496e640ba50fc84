package freeze

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// A server that is off is frozen and powered off as any other, as far as the client sees.
func TestServeOff(t *testing.T) {
	watched, written := 0, error(nil)
	near, far := net.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- ServeOff(t.Context(), far, func(context.Context) (func(context.Context) error, error) {
			watched++
			if watched == 1 {
				return nil, errors.New("the image is gone")
			}
			return func(context.Context) error { return written }, nil
		})
	}()
	c, err := Connect(t.Context(), near)
	if err != nil {
		t.Fatal(err)
	}
	if f := c.Facts(); f.BootID != "" || len(f.Filesystems) != 0 {
		t.Errorf("it is not off: %+v", f)
	}
	refused := func(what string, err error) {
		t.Helper()
		if r, is := errors.AsType[*RefusedError](err); !is || !strings.Contains(r.Reason, what) {
			t.Errorf("got %v, want %q", err, what)
		}
	}
	fine := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	quiet := func() error {
		w, err := c.Quiet(t.Context())
		if len(w) != 0 {
			t.Errorf("it was written to: %v", w)
		}
		return err
	}
	refused("nothing is frozen", quiet())
	refused("nothing is frozen", c.PowerOff(t.Context()))
	refused("the image is gone", c.Freeze(t.Context(), time.Minute, nil))
	refused("nothing is frozen", quiet())
	fine(c.Freeze(t.Context(), time.Minute, []string{"postgresql"}))
	refused("frozen already", c.Freeze(t.Context(), time.Minute, nil))
	fine(quiet())
	written = errors.New("the image was written to")
	refused("the image was written to", quiet())
	written = nil
	fine(c.Thaw(t.Context()))
	fine(c.Thaw(t.Context()))
	refused("nothing is frozen", quiet())
	fine(c.Freeze(t.Context(), time.Minute, nil))
	fine(c.PowerOff(t.Context()))
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestServeOffEnds(t *testing.T) {
	never := func(context.Context) (func(context.Context) error, error) { return nil, errors.New("no") }
	for says, want := range map[string]string{
		`{"do":"dance"}` + "\n":            `cannot do "dance"`,
		"fine\n":                           "cannot understand",
		`{"do":"freeze"}` + "\n":           "cannot freeze for 0 ms",
		strings.Repeat("x", maxQuestion+1): "too long",
	} {
		near, far := net.Pipe()
		go func() {
			_, _ = near.Read(make([]byte, 1000))
			_, _ = io.WriteString(near, says)
		}()
		if err := ServeOff(t.Context(), far, never); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v", says, err)
		}
		if _, err := near.Read(make([]byte, 1)); err == nil {
			t.Error("the connection is open")
		}
	}
	// With the context, also where nobody reads or says anything.
	for _, reads := range []bool{false, true} {
		near, far := net.Pipe()
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- ServeOff(ctx, far, never) }()
		if reads {
			_, _ = near.Read(make([]byte, 1000))
		}
		cancel(errors.New("enough"))
		if err := <-ended; err == nil {
			t.Error("all is well")
		}
	}
}
