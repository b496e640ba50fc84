package client

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"gpuvirt/api"
)

// Operations lists the operations that are still on record.
func (c *Client) Operations(ctx context.Context, o ListOptions) ([]api.Operation, error) {
	return list[api.Operation](ctx, c, o, "operations")
}

// Operation returns one operation.
func (c *Client) Operation(ctx context.Context, id string) (api.Operation, error) {
	return one[api.Operation](ctx, c, get("operations", id))
}

// Abort asks a running operation to stop and to undo what it did.
func (c *Client) Abort(ctx context.Context, id string) (api.Operation, error) {
	return c.act(ctx, id, "abort")
}

// Retry lets an operation go on that waits for a person or failed.
func (c *Client) Retry(ctx context.Context, id string) (api.Operation, error) {
	return c.act(ctx, id, "retry")
}

// Forget gives a failed operation up: what it held is free then, in whatever
// state it is.
func (c *Client) Forget(ctx context.Context, id string) (api.Operation, error) {
	return c.act(ctx, id, "forget")
}

func (c *Client) act(ctx context.Context, id, what string) (api.Operation, error) {
	return one[api.Operation](ctx, c, write(http.MethodPost, nil, "operations", id, what))
}

// Settled reports whether an operation will not go on by itself: it is over, or
// it waits for a person.
func Settled(op api.Operation) bool {
	switch op.Status {
	case "done", "undone", "failed", "waiting":
		return true
	}
	return false
}

// WaitOperation waits until an operation is Settled, also across a restart of
// the daemon. If progress is not nil, it is called with what the operation looks
// like from time to time, and at the end.
func (c *Client) WaitOperation(
	ctx context.Context, id string, progress func(api.Operation),
) (api.Operation, error) {
	step := longestWait
	if progress != nil {
		step = progressWait
	}
	var last api.Operation
	p := c.newPatience()
	for {
		asked := time.Now()
		op, err := c.wait(ctx, id, step)
		if err != nil && !passes(err) {
			return last, err
		}
		if err == nil {
			last = op
			if progress != nil {
				progress(op)
			}
			if Settled(op) {
				return op, nil
			}
			p = c.newPatience()
			if time.Since(asked) >= firstPause {
				continue
			}
			// The daemon did not wait: do not ask without end.
		}
		if stop := p.pause(ctx); stop != nil {
			if err == nil {
				err = stop
			}
			return last, err
		}
	}
}

// wait asks once for the end of an operation.
func (c *Client) wait(ctx context.Context, id string, most time.Duration) (api.Operation, error) {
	r := get("operations", id, "wait")
	r.query = url.Values{"timeout": {most.String()}}
	r.within = most + answerTimeout
	return one[api.Operation](ctx, c, r)
}

// passes reports whether an error is one that a daemon has while it restarts, or
// is asked too often.
func passes(err error) bool {
	var p *api.Problem
	if errors.As(err, &p) {
		return p.Status == http.StatusServiceUnavailable || p.Status == http.StatusTooManyRequests
	}
	return isUnreachable(err)
}
