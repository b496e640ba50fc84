package mig_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/mig"
)

type noLibrary struct{ fail error }

func (l noLibrary) Open() (mig.Session, error) { return noSession{}, l.fail }

type noSession struct{ mig.Session }

func (noSession) Close() error { return nil }

// Our own sessions end before the driver is taken off a GPU, and none begins meanwhile.
func TestGate_T33(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := mig.NewGate(noLibrary{})
		s, err := g.Open()
		if err != nil {
			t.Fatal(err)
		}
		var open func()
		shut := make(chan struct{})
		go func() {
			defer close(shut)
			var err error
			if open, err = g.Shut(t.Context()); err != nil {
				t.Error(err)
			}
		}()
		synctest.Wait()
		select {
		case <-shut:
			t.Error("it is shut while there is a session")
		default:
		}
		if _, err := g.Open(); gpu.CodeOf(err) != gpu.CodeUnavailable {
			t.Errorf("a session while it is being shut: %v", err)
		}
		if err := errors.Join(s.Close(), s.Close()); err != nil { // twice is once
			t.Error(err)
		}
		<-shut
		if _, err := g.Open(); gpu.CodeOf(err) != gpu.CodeUnavailable {
			t.Errorf("a session while it is shut: %v", err)
		}
		open()
		open()
		if s, err = g.Open(); err != nil {
			t.Fatalf("it does not open again: %v", err)
		}

		// Somebody who does not let go: the gate is open again when patience ends.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := g.Shut(ctx); !errors.Is(err, context.DeadlineExceeded) || gpu.CodeOf(err) != gpu.CodeUnavailable {
			t.Errorf("%v", err)
		}
		other, err := g.Open()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = s.Close(), other.Close()
	})
	g := mig.NewGate(noLibrary{fail: mig.ErrLibraryNotFound})
	if _, err := g.Open(); !errors.Is(err, mig.ErrLibraryNotFound) {
		t.Error(err)
	}
	open, err := g.Shut(t.Context())
	if err != nil {
		t.Fatalf("a session that never began counts: %v", err)
	}
	open()
}
