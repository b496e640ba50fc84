package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"gpuvirt/api"
	"gpuvirt/client"
)

var operationTable = table[api.Operation]{
	things: "operations",
	name:   func(o api.Operation) string { return o.ID },
	columns: []column[api.Operation]{
		{title: "ID", value: func(o api.Operation) string { return o.ID }},
		{title: "KIND", value: func(o api.Operation) string { return o.Kind }},
		{title: "STATUS", value: operationStatus},
		{title: "STEPS", value: stepsDone},
		{title: "CREATED", value: func(o api.Operation) string { return when(o.Created) }},
		{title: "SUMMARY", value: func(o api.Operation) string { return o.Summary }},
		{title: "ACTOR", wide: true, value: func(o api.Operation) string { return o.Actor }},
		{title: "UPDATED", wide: true, value: func(o api.Operation) string { return when(o.Updated) }},
		{title: "KEYS", wide: true, value: func(o api.Operation) string { return strings.Join(o.Keys, ",") }},
	},
}

func operationCommand(c *cli) *cobra.Command {
	act := func(use, short, question, good string, do func(*client.Client, context.Context, string) (api.Operation, error)) *cobra.Command {
		return completeArgs(c, &cobra.Command{
			Use: use + " OPERATION", Short: short, Args: takes(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				if err := c.noDryRun(cmd); err != nil {
					return err
				}
				if question != "" {
					if err := c.confirm(cmd.Context(), question, args[0]); err != nil {
						return err
					}
				}
				op, err := do(c.client(), cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if c.waits() && !client.Settled(op) {
					if op, err = c.follow(cmd.Context(), op); err != nil {
						return err
					}
				}
				if client.Settled(op) && !strings.Contains(good, op.Status) {
					return &operationError{op}
				}
				return printRow(c, operationTable, op)
			},
		}, 1, operationIDs)
	}
	return group("operation", "What the daemon is doing, and what it did",
		listCommand(c, operationTable, func(ctx context.Context, cl *client.Client, o client.ListOptions) ([]api.Operation, error) {
			return cl.Operations(ctx, o)
		}),
		operationShow(c), operationWait(c),
		act("abort", "Stop an operation and undo what it did", "", "undone done", (*client.Client).Abort),
		act("retry", "Let an operation go on that waits or failed", "", "done undone", (*client.Client).Retry),
		act("forget", "Give a failed operation up, whatever state it left",
			"Forget operation %s? What it held is free then, but nobody cleans it up.", "failed", (*client.Client).Forget),
	)
}

func operationShow(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: "show OPERATION", Short: "Show one operation, its steps and what they said", Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			op, err := c.client().Operation(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printOne(c, op, op.ID, operationFields(op))
		},
	}, 1, operationIDs)
}

func operationWait(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: "wait OPERATION", Short: "Wait until an operation is over", Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			op, err := c.client().Operation(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if op, err = c.await(cmd.Context(), op); err != nil {
				return err
			}
			return printRow(c, operationTable, op)
		},
	}, 1, operationIDs)
}

func operationFields(op api.Operation) []field {
	fields := []field{
		{name: "ID", value: op.ID},
		{name: "Kind", value: op.Kind},
		{name: "Summary", value: op.Summary},
		{name: "Actor", value: op.Actor},
		{name: "Status", value: operationStatus(op)},
		{name: "Waits for", value: op.Reason},
		{name: "Keys", value: strings.Join(op.Keys, ", ")},
		{name: "Created", value: when(op.Created)},
		{name: "Updated", value: when(op.Updated)},
	}
	var steps [][]string
	for _, s := range op.Steps {
		steps = append(steps, []string{s.Kind, s.Status, orDash(percent(s.Done, s.Total)), s.Summary})
		for _, l := range s.Log {
			steps = append(steps, []string{"", "", "", when(l.Time) + " " + l.Text})
		}
	}
	fields = append(fields, field{name: "Steps", below: steps})
	if p := op.Problem; p != nil {
		fields = append(fields, field{name: "Problem", value: p.Detail}, field{name: "Hint", value: p.Hint})
		for _, b := range p.Blockers {
			fields = append(fields, field{name: "Blocker", value: blockerLine(b)})
		}
	}
	return fields
}

func operationStatus(op api.Operation) string {
	switch {
	case op.Forgot:
		return op.Status + " (forgotten)"
	case op.Abort && !client.Settled(op):
		return op.Status + " (aborting)"
	}
	return op.Status
}

func stepsDone(op api.Operation) string {
	done := 0
	for _, s := range op.Steps {
		if s.Status == "done" {
			done++
		}
	}
	return fmt.Sprintf("%d/%d", done, len(op.Steps))
}
