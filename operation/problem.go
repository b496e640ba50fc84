package operation

import (
	"context"
	"errors"
	"slices"
	"strings"
)

// CodeAborted is the problem code of an operation that was undone on request. All
// other codes are the domain's.
const CodeAborted = "aborted"

// maxDetail bounds what failing undos add to a problem's detail, in bytes.
const maxDetail = 4096

// blame writes down why the operation cannot go on. The first cause stays what it
// is; what follows from it is added to its detail.
func (e *Engine) blame(op *Operation, step string, err error) {
	if op.Problem == nil {
		p := e.conf.Problem(err)
		if p.Step == "" {
			p.Step = step
		}
		op.Problem = &p
		return
	}
	if op.Abort && (errors.Is(err, ErrAborted) || errors.Is(err, context.Canceled)) && op.Status == Running {
		return // a Do that obeyed
	}
	first, next := op.Problem, e.conf.Problem(err)
	// A retried undo that fails as before has nothing to add.
	if !strings.HasSuffix(first.Detail, next.Detail) && len(first.Detail)+len(next.Detail) < maxDetail {
		first.Detail += "; " + next.Detail
	}
	if first.Hint == "" {
		first.Hint = next.Hint
	}
	for _, b := range next.Blockers {
		if !slices.Contains(first.Blockers, b) {
			first.Blockers = append(first.Blockers, b)
		}
	}
}
