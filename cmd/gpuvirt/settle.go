package main

import (
	"context"

	"gpuvirt/api"
)

// settle ends a write that answers an operation, or how it is where that is as asked for
// already. It waits for the operation and reads how it is then; where it does not wait it
// says what was started, and returns nil.
func settle[T any](ctx context.Context, c *cli, now *T, op *api.Operation, as string, read func() (T, error)) (*T, error) {
	if op == nil {
		c.say("%s", as)
		return now, nil
	}
	if !c.waits() {
		return nil, c.printStarted(*op)
	}
	if _, err := c.await(ctx, *op); err != nil {
		return nil, err
	}
	out, err := read()
	if err != nil {
		return nil, err
	}
	return &out, nil
}
