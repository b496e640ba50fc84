package main

import (
	"cmp"
	"context"

	"gpuvirt/api"
	"gpuvirt/client"
)

// follow waits for an operation and shows its steps meanwhile. However it ended,
// it is returned: an error says that it did not end.
func (c *cli) follow(ctx context.Context, op api.Operation) (api.Operation, error) {
	ctx, cancel := c.limited(ctx)
	defer cancel()
	c.say("operation %s: %s", op.ID, cmp.Or(op.Summary, op.Kind))
	show := &progress{out: c.err, live: c.errTerminal}
	show.update(op)
	ended, err := c.client().WaitOperation(ctx, op.ID, show.update)
	show.end()
	if err != nil {
		return op, &goesOnError{op: op.ID, err: cmp.Or(ctx.Err(), err)}
	}
	return ended, nil
}

// await waits for an operation, and fails unless it is done.
func (c *cli) await(ctx context.Context, op api.Operation) (api.Operation, error) {
	ended, err := c.follow(ctx, op)
	if err == nil && ended.Status != "done" {
		err = &operationError{ended}
	}
	return ended, err
}

// finish waits for an operation, if it is to, and says what it did. Only formats
// for programs then have data.
func (c *cli) finish(ctx context.Context, op api.Operation, did string, args ...any) error {
	if !c.waits() {
		return c.printStarted(op)
	}
	op, err := c.await(ctx, op)
	if err != nil {
		return err
	}
	c.say(did, args...)
	if c.output == "json" || c.output == "yaml" {
		return c.encode(op)
	}
	return nil
}

// printStarted writes an operation that is not waited for.
func (c *cli) printStarted(op api.Operation) error {
	if !client.Settled(op) {
		c.say("started; to wait for it: gpuvirt operation wait %s", op.ID)
	}
	return printRow(c, operationTable, op)
}
