package main

import (
	"github.com/spf13/cobra"

	"gpuvirt/api"
)

func attachCommand(c *cli) *cobra.Command {
	var want api.AssignmentRequest
	cmd := &cobra.Command{
		Use:   "attach NAME --vm VM --profile PROFILE",
		Short: "Give a VM a partition, under a name of your choice",
		Long: `Give a VM a partition of a profile, and make that partition first. The name is
yours to choose: saying the same again under the same name changes nothing,
saying something else under it is refused.

The assignment lasts: after a reboot of the host the partition is there again
before the VM starts.`,
		Example: `  gpuvirt attach web1-gpu --vm web1 --profile T4-2Q
  gpuvirt attach db1-gpu --vm db1 --profile T4-4Q --gpu 0000:3b:00.0 --dry-run`,
		Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error { return c.attach(cmd, args[0], want) },
	}
	flags := cmd.Flags()
	flags.StringVar(&want.VM, "vm", "", "name or UUID of the `vm` (required)")
	flags.StringVar(&want.Profile, "profile", "", "the `profile` to give it (required)")
	whereFlags(c, cmd, &want.GPU, &want.Placement)
	flags.StringVar(&want.Hotplug, "hotplug", "", "`when` a running vm gets it: auto, at once if it runs (default); require, at once or not at all; never, at its next start")
	flags.BoolVar(&want.Display, "display", false, "let the device be the vm's display")
	flags.BoolVar(&want.RamFB, "ramfb", false, "with --display: let it show the firmware as well; it comes and goes with a start of the vm")
	paramsFlag(cmd, &want.VGPUParams)
	must(cmd.MarkFlagRequired("vm"))
	must(cmd.MarkFlagRequired("profile"))
	completeFlag(c, cmd, "vm", vmNames)
	completeFlag(c, cmd, "profile", profileNames)
	fixed(cmd, "hotplug", "auto", "require", "never")
	return cmd
}

func paramsFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "vgpu-params", "", "`parameters` of a vGPU of NVIDIA, such as frame_rate_limiter=0,enable_uvm=1")
}

func (c *cli) attach(cmd *cobra.Command, name string, want api.AssignmentRequest) error {
	ctx := cmd.Context()
	if c.dryRun {
		return c.showPlan(c.client().PlanPutAssignment(ctx, name, want))
	}
	a, op, err := c.client().PutAssignment(ctx, name, want)
	if err != nil {
		return err
	}
	if op == nil {
		c.say("%s is already as asked for", name)
		return printRow(c, assignmentTable, *a)
	}
	if !c.waits() {
		return c.printStarted(*op)
	}
	if _, err := c.await(ctx, *op); err != nil {
		return err
	}
	done, err := c.client().Assignment(ctx, name)
	if err != nil {
		return err
	}
	if done.RestartRequired {
		c.say("%s sees it after its next start", done.VMName)
	}
	return printRow(c, assignmentTable, done)
}
