package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"gpuvirt/gpu"
)

// An ExitError says that a program ran on the server and did not end well.
type ExitError struct {
	Program string
	Code    int    // its exit status, -1 where a signal ended it
	Output  string // the end of what it wrote on its error output, fit to be shown
}

func (e *ExitError) Error() string {
	how := fmt.Sprintf("exit status %d", e.Code)
	if e.Code < 0 {
		how = "ended by a signal"
	}
	if e.Output != "" {
		how += ": " + e.Output
	}
	return fmt.Sprintf("%q on the server: %s", e.Program, how)
}

// killed tells whether a signal ended it, as those of a server do that is shut down: before
// its connections end.
func (e *ExitError) killed() bool { return slices.Contains([]int{-1, 129, 137, 143}, e.Code) } // a shell adds 128

// word is what may stand in a command unquoted, in whatever shell the user has there.
var word = regexp.MustCompile(`^[A-Za-z0-9_./:=,@%+-]+$`)

// Run runs a program on the server to its end. Words that a shell could read as something
// else are refused before anything is sent. When ctx ends the program is asked to end, and
// the connection's part that it speaks over is closed; where that does not end it within the
// grace, the connection is cut.
func (c *Conn) Run(ctx context.Context, stdin io.Reader, stdout io.Writer, program string, args ...string) error {
	for _, w := range append([]string{program}, args...) {
		if !word.MatchString(w) {
			return gpu.Errorf(gpu.CodeInternal, "cannot run %q on the server: %q could mean something else to its shell", program, w)
		}
	}
	return c.run(ctx, stdin, stdout, program, strings.Join(append([]string{program}, args...), " "))
}

// run runs a command as the user's shell reads it.
func (c *Conn) run(ctx context.Context, stdin io.Reader, stdout io.Writer, program, command string) error {
	ctx, enough := context.WithCancelCause(ctx)
	defer enough(nil)
	cannot := func(err error) error {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		if cause := context.Cause(c.ctx); cause != nil {
			err = cause
		}
		return gpu.Errorf(gpu.CodeUnavailable, "cannot run %q on %s: %w", program, name(c.source), err)
	}
	ended := make(chan struct{})
	defer close(ended)
	defer context.AfterFunc(ctx, func() { c.cut(program, ended) })()
	session, err := c.client.NewSession()
	if err != nil {
		return cannot(err)
	}
	defer session.Close() //nolint:errcheck // it says io.EOF where the server closed it first
	said := &tail{}
	session.Stdin, session.Stdout, session.Stderr = stdin, stdout, said
	if stdout != nil {
		session.Stdout = refusing{stdout, func(err error) { enough(cannot(err)) }}
	}
	stop := context.AfterFunc(ctx, func() {
		_ = session.Signal(ssh.SIGTERM)
		_ = session.Close()
	})
	defer stop()
	if err := session.Start(command); err != nil {
		return cannot(err)
	}
	err = exitOf(program, session.Wait(), said)
	exit, exited := errors.AsType[*ExitError](err)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case exited && !exit.killed():
		return err
	}
	return cannot(err)
}

// refusing tells of an error of a writer. Nobody reads on behind it, and a program that says
// more does not end by itself.
type refusing struct {
	io.Writer

	refused func(error)
}

func (r refusing) Write(p []byte) (int, error) {
	n, err := r.Writer.Write(p)
	if err != nil {
		r.refused(err)
	}
	return n, err
}

// exitOf turns what x/crypto says of a program's end into an *ExitError; another error stays.
func exitOf(program string, err error, said *tail) error {
	exit, exited := errors.AsType[*ssh.ExitError](err)
	switch {
	case !exited:
		return err
	case exit.Signal() != "":
		return &ExitError{Program: program, Code: -1, Output: said.text()}
	}
	return &ExitError{Program: program, Code: exit.ExitStatus(), Output: said.text()}
}

// tail keeps the end of what a program says.
type tail struct {
	mu   sync.Mutex
	kept []byte
}

const maxTail = 2 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - maxTail; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
	return len(p), nil
}

// text is the last line, without what could change a terminal.
func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(t.kept), []byte("\n"))
	quoted := strconv.Quote(strings.TrimSpace(string(lines[len(lines)-1])))
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}
