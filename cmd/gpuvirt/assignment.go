package main

import (
	"context"

	"github.com/spf13/cobra"

	"gpuvirt/api"
	"gpuvirt/client"
)

var assignmentTable = table[api.Assignment]{
	things: "assignments",
	name:   func(a api.Assignment) string { return a.Name },
	columns: []column[api.Assignment]{
		{title: "NAME", value: func(a api.Assignment) string { return a.Name }},
		{title: "VM", value: assignmentVM},
		{title: "PROFILE", value: func(a api.Assignment) string { return a.Profile }},
		{title: "GPU", value: func(a api.Assignment) string { return a.PartitionGPU }},
		{title: "STATE", value: func(a api.Assignment) string { return a.State }},
		{title: "IN", value: attachedTo},
		{title: "PARTITION", value: func(a api.Assignment) string { return a.Partition }},
		{title: "PLACEMENT", wide: true, value: func(a api.Assignment) string { return a.Placement }},
		{title: "HOTPLUG", wide: true, value: func(a api.Assignment) string { return a.Hotplug }},
		{title: "OPERATION", wide: true, value: func(a api.Assignment) string { return a.Operation }},
		{title: "HEALTH", wide: true, value: func(a api.Assignment) string { return health(a.Conditions) }},
	},
}

func assignmentCommand(c *cli) *cobra.Command {
	show := completeArgs(c, &cobra.Command{
		Use: "show NAME", Short: "Show one assignment", Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := c.client().Assignment(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printOne(c, a, a.Name, assignmentFields(a))
		},
	}, 1, assignmentNames)
	return group("assignment", "The lasting wishes: which VM has which partition",
		listCommand(c, assignmentTable, func(ctx context.Context, cl *client.Client, o client.ListOptions) ([]api.Assignment, error) {
			return cl.Assignments(ctx, o)
		}), show)
}

func assignmentFields(a api.Assignment) []field {
	vm := assignmentVM(a)
	if a.VMName != "" {
		vm += " (" + a.VM + ")"
	}
	return []field{
		{name: "Name", value: a.Name},
		{name: "VM", value: vm},
		{name: "Profile", value: a.Profile},
		{name: "Asked for GPU", value: a.GPU},
		{name: "Placement", value: a.Placement},
		{name: "Hotplug", value: a.Hotplug},
		{name: "Display", value: displayOf(a.Display, a.RamFB)},
		{name: "vGPU params", value: a.VGPUParams},
		{name: "GPU", value: a.PartitionGPU},
		{name: "Partition", value: a.Partition},
		{name: "State", value: a.State},
		{name: "Attached to", value: orDash(attachedTo(a))},
		{name: "Restart required", value: yesNo(a.RestartRequired)},
		{name: "Operation", value: a.Operation},
		{name: "Created", value: when(a.Created)},
		{name: "Conditions", below: conditionRows(a.Conditions)},
	}
}

func displayOf(display, ramfb bool) string {
	if display && ramfb {
		return "yes, with ramfb"
	}
	return yesNo(display)
}

func assignmentVM(a api.Assignment) string {
	if a.VMName != "" {
		return a.VMName
	}
	return a.VM
}

func attachedTo(a api.Assignment) string { return liveConfig(a.Attached.Live, a.Attached.Config) }
