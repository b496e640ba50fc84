// Package run runs other people's programs: with a context, with bounded output, and
// without leaving anything of them running. It knows nothing of what they do.
package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// An ExitError says that a program ran and did not end well.
type ExitError struct {
	Name   string // as it was called
	Code   int    // its exit status, -1 where a signal ended it
	Output string // the end of what it wrote
	// OutOfMemory says that it was ended as it took more than its unit may.
	OutOfMemory bool
}

func (e *ExitError) Error() string {
	how := fmt.Sprintf("exit status %d", e.Code)
	if e.Code < 0 {
		how = "ended by a signal"
	}
	if e.OutOfMemory {
		how = "ended as it takes more memory than it may"
	}
	if last := lastLine(e.Output); last != "" {
		how += ": " + last
	}
	return fmt.Sprintf("%q: %s", e.Name, how)
}

// Program is how programs are run. The zero value is right for most.
type Program struct {
	// Line is told of each line as the program writes it, on either output; nil: nobody.
	Line func(line string)
	// Limit is how many bytes of its output are kept, the last ones. Default 64 KiB.
	Limit int
	// Grace is how long it has to end after being asked to. Default 5 s.
	Grace time.Duration
	// Apart keeps, and tells lines of, only the standard output; the other is in the error.
	Apart bool
	// As is who runs it; nil: we.
	As *syscall.Credential
	// Env is added to the little that each program gets, as "NAME=value"; a later value
	// of a name replaces an earlier one.
	Env []string
	// Dir is where it runs; empty: where this process does.
	Dir string
	// Confine keeps it, and all that it starts, from much; nil: it may do what we may.
	Confine *Confine
}

const (
	defaultLimit = 64 << 10
	defaultGrace = 5 * time.Second
)

// environment is all that a program gets of ours: the daemon's own may hold secrets,
// and messages are to be read by us.
var environment = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}

// Run runs a program to its end and returns what it wrote on both outputs, trimmed.
// Where it did not exit with 0 the error is an *ExitError; where it cannot be started
// an fs.ErrNotExist or the like. When ctx ends, it is asked to end, with all that it
// has started, and is killed if it does not: the error then wraps the cause.
func (p Program) Run(ctx context.Context, name string, args ...string) (string, error) {
	grace := p.Grace
	if grace == 0 {
		grace = defaultGrace
	}
	out := &output{line: p.Line, limit: p.Limit}
	if out.limit == 0 {
		out.limit = defaultLimit
	}
	command := append([]string{name}, args...)
	var unit *service // nil: we start it ourselves
	if p.Confine != nil {
		// Looked for here, as who confines it could only say so in words.
		path, err := exec.LookPath(name)
		if err != nil {
			return "", fmt.Errorf("cannot run %q: %w", name, err)
		}
		if p.Confine.Unit != nil {
			unit = p.Confine.Unit.service(grace)
			command = unit.command(p, path, args)
		} else {
			command = p.Confine.wrap(path, args)
			// It is to die with this process, which the kernel sees by the thread that forked.
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
		}
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...) //nolint:gosec // which program is for the caller to say, never for a client
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = append(slices.Clone(environment), p.Env...), p.Dir, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: p.As}
	other := out
	if p.Apart {
		other = &output{limit: out.limit}
		cmd.Stderr = other
	}
	cmd.WaitDelay = grace
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	if unit != nil {
		cmd.Env, cmd.Dir = environment, "" // which are the unit's
		// Who waits for the unit ends with it.
		cmd.Cancel = func() error { return unit.end(ctx) }
	}
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) || ctx.Err() != nil && cmd.Process != nil {
		// It has ended, and a child of its own may go on and hold the output. A group with
		// nobody in it is an error that says just that.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	text := out.end()
	told := text
	if p.Apart {
		told = other.end()
	}
	exit, exited := errors.AsType[*exec.ExitError](err)
	if exited && ctx.Err() == nil {
		err = &ExitError{Name: name, Code: exit.ExitCode(), Output: told}
	}
	if unit != nil && err != nil {
		// Also where nobody waits for it any more, or it came up after it was to end.
		err = errors.Join(unit.ended(ctx, err), unit.end(ctx))
	}
	switch {
	case err == nil:
		return text, nil
	case ctx.Err() != nil:
		return text, fmt.Errorf("cannot run %q to its end: %w", name, context.Cause(ctx))
	case exited || unit != nil:
		return text, err
	default:
		return text, fmt.Errorf("cannot run %q: %w", name, err)
	}
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// output keeps the end of what is written to it, and tells of its lines.
type output struct {
	line  func(string)
	limit int

	mu    sync.Mutex // a child that outlives the program may write still
	kept  []byte
	begun []byte // a line that is not over
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.kept = append(o.kept, b...)
	if over := len(o.kept) - o.limit; over > 0 {
		o.kept = append(o.kept[:0], o.kept[over:]...)
	}
	if o.line == nil {
		return len(b), nil
	}
	o.begun = append(o.begun, b...)
	for {
		// Progress bars go back to the beginning of a line instead of ending it.
		i := bytes.IndexAny(o.begun, "\r\n")
		next := i + 1
		if i < 0 || i > o.limit {
			i, next = o.limit, o.limit // one without an end is told in pieces
		}
		if i >= len(o.begun) {
			return len(b), nil
		}
		o.tell(o.begun[:i])
		o.begun = append(o.begun[:0], o.begun[next:]...)
	}
}

func (o *output) tell(line []byte) {
	if text := strings.TrimSpace(string(line)); text != "" && o.line != nil {
		o.line(text)
	}
}

func (o *output) end() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tell(o.begun)
	o.begun = nil
	return strings.TrimSpace(string(o.kept))
}
