package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"sync"
	"syscall"
	"time"

	"gpuvirt/internal/run"
)

var errSlow = errors.New("it did not answer")

// within calls f and gives up waiting for it after d, or with ctx. A call that hangs in the
// kernel, as on a server of files that is gone, cannot be ended: it is left behind, and
// nobody takes what it may still return.
func within[T any](ctx context.Context, d time.Duration, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d, fmt.Errorf("%w within %s", errSlow, d))
	type answer struct {
		value T
		err   error
	}
	came := make(chan answer, 1)
	go func() {
		defer cancel()
		v, err := f(ctx)
		came <- answer{v, err}
	}()
	select {
	case a := <-came:
		return a.value, a.err
	case <-ctx.Done():
	}
	// What listens to ctx ends now, and may have most of an answer.
	last := time.NewTimer(d/4 + 100*time.Millisecond)
	defer last.Stop()
	select {
	case a := <-came:
		return a.value, a.err
	case <-last.C:
		var none T
		return none, context.Cause(ctx)
	}
}

// Where programs of the server are looked for. The search path of whoever runs us is not
// asked: what is run as root comes from folders that only root writes to.
var folders = []string{"/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin", "/usr/local/sbin", "/opt/bin", "/snap/bin"}

var errAbsent = errors.New("it is not installed")

// tools runs programs of the server, which only read.
type tools struct {
	bin   []string
	limit time.Duration // of one call
	plain *syscall.Credential

	mu    sync.Mutex
	stuck map[string]bool // did not end when they were told to: not called again
}

// find returns where a program is, empty where it is not.
func (t *tools) find(name string) string {
	for _, dir := range t.bin {
		file := path.Join(dir, name)
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return file
		}
	}
	return ""
}

// out runs a program and returns its standard output. A program that hangs is given up,
// even where it cannot be killed, and not called again: each that hangs in a driver would
// stay.
func (t *tools) out(ctx context.Context, name string, args ...string) (string, error) {
	return t.call(ctx, run.Program{Limit: large, Apart: true, Grace: time.Second}, name, args...)
}

// outPlain is out with the rights of nobody, for programs that write a little when they are
// root, such as locks of a database.
func (t *tools) outPlain(ctx context.Context, name string, args ...string) (string, error) {
	return t.call(ctx, run.Program{Limit: large, Apart: true, Grace: time.Second, As: t.plain}, name, args...)
}

func (t *tools) call(ctx context.Context, p run.Program, name string, args ...string) (string, error) {
	file := t.find(name)
	if file == "" {
		return "", errAbsent
	}
	t.mu.Lock()
	stuck := t.stuck[name]
	t.mu.Unlock()
	if stuck {
		return "", errors.New("it hung before, and is not called again")
	}
	text, err := within(ctx, t.limit, func(ctx context.Context) (string, error) {
		text, err := p.Run(ctx, file, args...)
		if err == nil && len(text) >= large {
			err = fmt.Errorf("it wrote more than %d bytes", large)
		}
		return text, err
	})
	if err != nil && ctx.Err() == nil && errors.Is(err, errSlow) {
		t.mu.Lock()
		t.stuck[name] = true
		t.mu.Unlock()
	}
	exit, exited := errors.AsType[*run.ExitError](err)
	switch {
	case exited: // NVIDIA's tell what is wrong on the standard output
		err = &run.ExitError{Name: name, Code: exit.Code, Output: cmp.Or(exit.Output, text)}
	case err != nil:
		err = fmt.Errorf("%q: %w", name, err)
	}
	return text, err
}
