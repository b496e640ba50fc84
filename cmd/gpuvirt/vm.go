package main

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"gpuvirt/api"
	"gpuvirt/client"
)

var vmTable = table[api.VM]{
	things: "vms",
	name:   func(v api.VM) string { return v.Name },
	columns: []column[api.VM]{
		{title: "NAME", value: func(v api.VM) string { return v.Name }},
		{title: "UUID", value: func(v api.VM) string { return v.UUID }},
		{title: "STATE", value: func(v api.VM) string { return v.State }},
		{title: "ASSIGNMENTS", value: func(v api.VM) string { return strings.Join(v.Assignments, ",") }},
		{title: "HOSTDEVS", wide: true, value: func(v api.VM) string { return strconv.Itoa(len(v.Hostdevs)) }},
		{title: "AUTOSTART", wide: true, value: func(v api.VM) string { return yesNo(v.Autostart) }},
		{title: "PERSISTENT", wide: true, value: func(v api.VM) string { return yesNo(v.Persistent) }},
	},
}

func vmCommand(c *cli) *cobra.Command {
	show := completeArgs(c, &cobra.Command{
		Use: "show VM", Short: "Show one VM, by name or UUID, and its host devices", Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := c.client().VM(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printOne(c, v, v.Name, vmFields(v))
		},
	}, 1, vmNames)
	return group("vm", "The virtual machines of this host",
		listCommand(c, vmTable, func(ctx context.Context, cl *client.Client, o client.ListOptions) ([]api.VM, error) {
			return cl.VMs(ctx, o)
		}), show)
}

func numbers(all []int) string {
	texts := make([]string, len(all))
	for i, n := range all {
		texts[i] = strconv.Itoa(n)
	}
	return strings.Join(texts, ", ")
}

func vmFields(v api.VM) []field {
	rows := [][]string{}
	for _, d := range v.Hostdevs {
		display := ""
		if d.Display {
			display = "display"
			if d.RamFB {
				display += ", ramfb"
			}
		}
		rows = append(rows, []string{
			orDash(handle(d.Handle)), orDash(d.Model), orDash(liveConfig(d.Live, d.Config)),
			orDash(d.GuestAddress), orDash(d.Alias), display,
		})
	}
	if len(rows) > 0 {
		rows = append([][]string{{"DEVICE", "MODEL", "IN", "GUEST ADDRESS", "ALIAS"}}, rows...)
	}
	return []field{
		{name: "Name", value: v.Name},
		{name: "UUID", value: v.UUID},
		{name: "State", value: v.State},
		{name: "Autostart", value: yesNo(v.Autostart)},
		{name: "Persistent", value: yesNo(v.Persistent)},
		{name: "NUMA nodes", value: numbers(v.NUMANodes)},
		{name: "Assignments", value: strings.Join(v.Assignments, ", ")},
		{name: "Host devices", below: rows},
	}
}
