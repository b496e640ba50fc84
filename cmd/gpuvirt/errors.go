package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"syscall"

	"gpuvirt/api"
	"gpuvirt/client"
)

// The exit codes: see longRoot.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitConflict = 3
	exitNotReady = 4
)

// A usageError says that the command line is wrong.
type usageError struct{ message, command string }

func (e *usageError) Error() string { return e.message }

// An operationError says that an operation did not end well.
type operationError struct{ op api.Operation }

func (e *operationError) Error() string {
	what := fmt.Sprintf("operation %s (%s)", e.op.ID, e.op.Summary)
	if e.op.Status == "waiting" {
		return what + " waits: " + cmp.Or(e.op.Reason, "a person must act")
	}
	if e.op.Problem != nil && e.op.Problem.Detail != "" {
		return e.op.Problem.Detail
	}
	return what + " is " + e.op.Status
}

// A goesOnError says that something was not waited for to the end.
type goesOnError struct {
	op        string
	migration string // whose operation goes on longer than what was waited for; empty: it is none's
	end       string // the command that ends it; empty: there is none for that alone
	err       error
}

func (e *goesOnError) Error() string {
	what := "operation " + e.op
	if e.migration != "" {
		what = "migration " + e.migration
	}
	if errors.Is(e.err, context.DeadlineExceeded) {
		return what + " was not done in time"
	}
	return fmt.Sprintf("%s was not waited for to its end: %v", what, e.err)
}

func (e *goesOnError) hint() string {
	if e.migration != "" {
		text := "it goes on; to see how far it is: gpuvirt migrate show " + e.migration
		if e.end != "" {
			text += "; to end it: " + e.end
		}
		return text
	}
	return "it goes on; to wait for it: gpuvirt operation wait " + e.op
}

func (e *goesOnError) Unwrap() error { return e.err }

// A notReadyError says that the daemon is not ready, or a GPU.
type notReadyError struct{ message, hint string }

func (e *notReadyError) Error() string { return e.message }

func exitCode(err error) int {
	var usage *usageError
	var operation *operationError
	var tried *triedError
	var problem *api.Problem
	var unreachable *client.UnreachableError
	var goesOn *goesOnError
	var notReady *notReadyError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, new(blockedError)):
		return exitFailed
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &operation):
		if operation.op.Status == "waiting" {
			return exitNotReady
		}
		return exitFailed
	case errors.As(err, &tried):
		if tried.waits() {
			return exitNotReady
		}
		return exitFailed
	case errors.As(err, &goesOn) && errors.Is(err, context.DeadlineExceeded):
		return exitNotReady
	case errors.As(err, &problem):
		return problemCode(problem)
	case errors.As(err, &unreachable), errors.As(err, &notReady):
		return exitNotReady
	}
	return exitFailed
}

func problemCode(p *api.Problem) int {
	switch p.Status {
	case http.StatusConflict, http.StatusPreconditionFailed, http.StatusLocked, http.StatusInsufficientStorage:
		return exitConflict
	case http.StatusServiceUnavailable:
		return exitNotReady
	}
	return exitFailed
}

// report writes an error for people: what went wrong, what to do about it, and
// what stands in the way, a line each.
func (c *cli) report(err error) {
	if err == nil {
		return
	}
	c.say("error: %s", err)
	var usage *usageError
	var operation *operationError
	var tried *triedError
	var problem *api.Problem
	var goesOn *goesOnError
	var notReady *notReadyError
	var untrusted *client.UntrustedError
	switch {
	case errors.As(err, &usage):
		c.say("hint: see %s --help", usage.command)
	case errors.As(err, &operation):
		c.reportOperation(operation.op)
	case errors.As(err, &tried):
		c.say("hint: %s", tried.hint())
	case errors.As(err, &goesOn):
		c.say("hint: %s", goesOn.hint())
	case errors.As(err, &problem):
		c.reportProblem(problem)
	case errors.As(err, &notReady) && notReady.hint != "":
		c.say("hint: %s", notReady.hint)
	case errors.As(err, &untrusted):
		c.say("hint: %s", trustHint(untrusted.Err))
	case isUnreachable(err) && c.remote != nil:
		c.say("hint: %s", remoteHint)
	case isUnreachable(err):
		c.say("hint: %s", reachHint(err))
	}
}

func (c *cli) reportProblem(p *api.Problem) {
	if p.Hint != "" {
		c.say("hint: %s", p.Hint)
	}
	if p.Status == http.StatusUnauthorized && c.remote != nil {
		c.say("hint: --token-file, or --cert-file and --key-file, say who asks; a token comes from: gpuvirt token create, on that host")
	}
	for _, field := range slices.Sorted(maps.Keys(p.Diff)) {
		c.say("differs: %s is %s, asked for %s", field, quoted(p.Diff[field].Stored), quoted(p.Diff[field].Asked))
	}
	told := false
	for _, b := range p.Blockers {
		c.say("blocker: %s", blockerLine(b))
		told = told || b.Kind == "operation" && b.ID == p.Operation
	}
	if p.Operation != "" && !told {
		c.say("operation: %s", p.Operation)
	}
}

func quoted(s string) string {
	if s == "" {
		return "unset"
	}
	return strconv.Quote(s)
}

func blockerLine(b api.Blocker) string {
	line := b.Kind + " " + b.ID
	if b.Name != "" && b.Name != b.ID {
		line += " (" + b.Name + ")"
	}
	if b.Note != "" {
		line += ": " + b.Note
	}
	return line
}

func (c *cli) reportOperation(op api.Operation) {
	if op.Problem != nil {
		c.reportProblem(op.Problem)
	}
	switch op.Status {
	case "undone":
		c.say("what had been done was undone (operation %s)", op.ID)
	case "failed":
		c.say("what it holds stays held until you say one of:")
		c.say("  gpuvirt operation retry %s", op.ID)
		c.say("  gpuvirt operation forget %s", op.ID)
	case "waiting":
		c.say("hint: when that is done: gpuvirt operation retry %s", op.ID)
	}
}

func isUnreachable(err error) bool {
	var u *client.UnreachableError
	return errors.As(err, &u)
}

func reachHint(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "only root and members of the group gpuvirt may use the daemon"
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return "is the daemon running? see: systemctl status gpuvirtd"
	}
	return "see: journalctl -u gpuvirtd"
}
