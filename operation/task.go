package operation

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// What is kept of what a step says.
const (
	maxLogLines = 100
	maxLogLine  = 500 // bytes
)

// A Handler does and undoes steps of one kind. The rows that either returns are
// stored in the same transaction as its success; with an error they are dropped.
//
// Do may be called again where it was broken off: by a crash, by the end of the
// daemon, after a WaitError or a RetryError. So it is idempotent, and writes down
// with SaveNote what its undo needs before it changes anything. A Do that returns
// any other error has cleaned up after itself: it is not undone. One that cannot
// be sure of that returns an UncleanError, and is undone like a step that is done.
// When its context ends it should return soon; if it returns nil all the same, it
// counts as done. A step that does not live up to this leaks.
//
// Undo must cope with a Do that never happened or only half: it is called for a
// step that was aborted after a crash, or while it waited. It may be called again,
// like Do. It is never canceled by an abort. An error leaves the operation failed,
// its keys held, until a person says retry or forget.
//
// A panic is not caught: the process dies, and the operation resumes in the next.
type Handler struct {
	Do   func(ctx context.Context, t *Task) ([]Row, error)
	Undo func(ctx context.Context, t *Task) ([]Row, error) // nil: there is nothing to undo
}

// ErrAborted is the cause of the context of a Do whose operation was aborted.
var ErrAborted = errors.New("aborted on request")

// A WaitError is returned by a handler that cannot go on before a person has
// acted. The operation is then waiting, and Retry calls the handler again.
type WaitError struct{ Reason string }

func (e *WaitError) Error() string { return e.Reason }

// An UncleanError is returned by a Do that failed and may have left something
// behind: its own Undo is called first.
type UncleanError struct{ Err error }

func (e *UncleanError) Error() string { return e.Err.Error() }

// Unwrap returns the failure.
func (e *UncleanError) Unwrap() error { return e.Err }

// A RetryError is returned by a handler that wants to be called again after a
// while. It holds the operation up, but is no failure.
type RetryError struct {
	After time.Duration
	Err   error
}

func (e *RetryError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("trying again in %s", e.After)
	}
	return fmt.Sprintf("trying again in %s: %v", e.After, e.Err)
}

// Unwrap returns why.
func (e *RetryError) Unwrap() error { return e.Err }

// A Task is what a handler is given: its step, and the means to speak of it. It is
// good until the handler returns.
type Task struct {
	l       *live
	index   int
	resumed bool

	// What the handler said, in memory until the next save; under l.mu.
	done, total int64
	log         []LogLine
}

// Operation returns a copy of the operation as it is now.
func (t *Task) Operation() Operation {
	op, _ := t.l.look()
	return op
}

// Resumed reports whether the handler may have been called for this before, so
// that its work may be half done already.
func (t *Task) Resumed() bool { return t.resumed }

// Draining is closed when the daemon is about to end: a handler that would take long returns
// a RetryError then, and is called again by the next daemon. One that does not is waited
// for as long as there is time.
func (t *Task) Draining() <-chan struct{} { return t.l.e.draining }

// Args decodes what the step was planned with into v, strictly: arguments that
// this version does not know are an error, not ignored.
func (t *Task) Args(v any) error {
	step := t.Operation().Steps[t.index]
	dec := json.NewDecoder(bytes.NewReader(step.Args))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("cannot read arguments of step %q: %w", step.Kind, err)
	}
	return nil
}

// Note decodes what the step wrote down into v and reports whether it had.
func (t *Task) Note(v any) (bool, error) {
	step := t.Operation().Steps[t.index]
	if len(step.Note) == 0 {
		return false, nil
	}
	if err := json.Unmarshal(step.Note, v); err != nil {
		return false, fmt.Errorf("cannot read note of step %q: %w", step.Kind, err)
	}
	return true, nil
}

// SaveNote stores v as the step's note, in place of the one before: one write,
// or none where it says the same already. It is durable when SaveNote returns nil; on an error the handler must not go on to
// what it wanted to write down.
func (t *Task) SaveNote(v any) error {
	note, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot save note: %w", err)
	}
	_, err = t.l.save(func(op *Operation) ([]Row, error) {
		if t.l.running() != t {
			return nil, errors.New("the step is over")
		}
		if bytes.Equal(op.Steps[t.index].Note, note) {
			return nil, errNoChange
		}
		op.Steps[t.index].Note = note
		return nil, nil
	})
	if err != nil && !errors.Is(err, errNoChange) {
		return fmt.Errorf("cannot save note: %w", err)
	}
	return nil
}

// Progress says how far the step is. It is kept in memory until the next save.
func (t *Task) Progress(done, total int64) {
	t.l.progressed(func() { t.done, t.total = done, total })
}

// Logf adds a line to the step's log, of which the newest lines are kept. It is
// kept in memory until the next save.
func (t *Task) Logf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	t.l.progressed(func() { t.add(text) })
}

// add appends a line, cut to size and fit for a terminal. The caller holds l.mu.
func (t *Task) add(text string) {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.TrimSpace(text))
	if len(text) > maxLogLine {
		cut := maxLogLine
		for !utf8.RuneStart(text[cut]) {
			cut--
		}
		text = text[:cut] + "…"
	}
	t.log = append(t.log, LogLine{Time: t.l.e.conf.Now().UTC(), Text: text})
	if n := len(t.log) - maxLogLines; n > 0 {
		t.log = t.log[n:]
	}
}

// running returns the task whose handler was called last.
func (l *live) running() *Task {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.task
}
