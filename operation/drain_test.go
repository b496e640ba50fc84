package operation_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/operation"
)

// A daemon that is stopped lets the step under way come to its end, and begins no other: a
// driver that is being rebound is not left half way (T07). What takes too long is broken off, and
// what waits for its next try is not waited for.
func TestDrain_T07(t *testing.T) {
	for _, c := range []struct {
		setup  string
		took   time.Duration
		before []string // what was called until the engine had stopped
		after  []string // and in all, once another had gone on
	}{
		{"a:do-slow b", slow, []string{"a:do"}, []string{"a:do", "b:do-again"}},
		{"a:do-block b", time.Minute, []string{"a:do"}, []string{"a:do", "a:do-again", "b:do"}},
		{"a:do-retry b", 0, []string{"a:do"}, []string{"a:do", "a:do-again", "b:do"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newStage(t)
			p, kinds := s.plan(c.setup)
			s.open(operation.Config{}, kinds...)
			if _, err := s.engine.Add(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			begin := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			s.engine.Drain(ctx)
			if took := time.Since(begin); took != c.took {
				t.Errorf("%s: it took %s, want %s", c.setup, took, c.took)
			}
			if _, err := s.engine.Add(t.Context(), operation.Plan{Kind: "late"}); !errors.Is(err, operation.ErrStopped) {
				t.Errorf("%s: an operation that comes meanwhile: %v", c.setup, err)
			}
			s.engine.Stop()
			if diff := cmp.Diff(c.before, s.calls); diff != "" {
				t.Errorf("%s: until the end (-want +got):\n%s", c.setup, diff)
			}
			s.open(operation.Config{}, kinds...)
			s.rest()
			s.engine.Stop()
			if diff := cmp.Diff(c.after, s.calls); diff != "" {
				t.Errorf("%s: in all (-want +got):\n%s", c.setup, diff)
			}
		})
	}
}
