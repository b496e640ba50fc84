package main

import (
	"context"

	"github.com/spf13/cobra"
)

func detachCommand(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use:   "detach NAME",
		Short: "Take a partition away from its VM, and remove it",
		Long: `Take the partition of an assignment away from its VM, remove the partition, and
forget the assignment. On a terminal you are asked first if the VM runs.`,
		Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, name := cmd.Context(), args[0]
			if c.dryRun {
				return c.showPlan(c.client().PlanDeleteAssignment(ctx, name))
			}
			if c.asks() {
				if err := c.confirmDetach(ctx, name); err != nil {
					return err
				}
			}
			op, err := c.client().DeleteAssignment(ctx, name)
			if err != nil {
				return err
			}
			return c.finish(ctx, op, "%s is detached", name)
		},
	}, 1, assignmentNames)
}

// confirmDetach asks if a running VM would lose its device. Where that is not
// known it asks, too.
func (c *cli) confirmDetach(ctx context.Context, name string) error {
	a, err := c.client().Assignment(ctx, name)
	if err != nil {
		return err
	}
	v, err := c.client().VM(ctx, a.VM)
	if err == nil && v.State == "shutoff" {
		return nil
	}
	state := "is " + v.State
	if err != nil {
		state = "may be running"
	}
	return c.confirm(ctx, "%s %s: take its %s away?", a.VMName, state, a.Profile)
}
