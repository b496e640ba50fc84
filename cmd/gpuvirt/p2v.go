package main

import "github.com/spf13/cobra"

func p2vCommand(c *cli) *cobra.Command {
	return group("p2v", "Move GPU workloads of physical servers into VMs", inspectCommand(c))
}
