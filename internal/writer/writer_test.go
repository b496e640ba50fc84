package writer

import (
	"context"
	"errors"
	"log/slog"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/sysfs"
)

// slow is a driver that answers when it is told to.
type slow struct {
	guard  sysfs.Guard
	answer chan error
}

func (s *slow) Write(ctx context.Context, path, _ string) error {
	return s.guard.Do(ctx, "write", path, func() error { return <-s.answer })
}

func TestStuckUntilTheWriteComesBack_T44(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := &slow{answer: make(chan error, 1)}
		w := New(fs, slog.New(slog.DiscardHandler))
		fs.answer <- syscall.EIO
		if err := w.Write(t.Context(), "a", "file", "1"); !errors.Is(err, syscall.EIO) || len(w.Conditions("a")) != 0 {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for range 2 {
			if err := w.Write(ctx, "a", "file", "1"); gpu.CodeOf(err) == gpu.CodeStuck {
				break
			}
		}
		if c := w.Conditions("a"); len(c) != 1 || c[0].Type != gpu.Stuck || !c[0].Status {
			t.Errorf("%+v", c)
		}
		if _, err := w.Take(t.Context(), "a"); gpu.CodeOf(err) != gpu.CodeStuck {
			t.Error(err)
		}
		give, err := w.Take(t.Context(), "b")
		if err != nil || len(w.Conditions("b")) != 0 {
			t.Fatal(err)
		}
		give()
		fs.answer <- nil
		synctest.Wait()
		give, err = w.Take(t.Context(), "a")
		if err != nil || len(w.Stuck("a")) != 0 {
			t.Fatal(err)
		}
		give()
	})
}

func TestOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := New(&slow{}, slog.New(slog.DiscardHandler))
		give, err := w.Take(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := w.Take(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) || gpu.CodeOf(err) != gpu.CodeUnavailable {
			t.Error(err)
		}
		if _, err := w.Take(ctx, "b"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		go give()
		next, err := w.Take(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		next()
	})
}
