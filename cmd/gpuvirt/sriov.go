package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"gpuvirt/api"
	"gpuvirt/client"
)

var functionTable = table[api.Function]{
	things: "virtual functions",
	name:   func(f api.Function) string { return f.PCIAddress },
	columns: []column[api.Function]{
		{title: "INDEX", value: func(f api.Function) string { return strconv.Itoa(f.Index) }},
		{title: "ADDRESS", value: func(f api.Function) string { return f.PCIAddress }},
		{title: "IOMMU GROUP", value: func(f api.Function) string { return f.IOMMUGroup }},
		{title: "DRIVER", value: func(f api.Function) string { return f.Driver }},
		{title: "PARTITION", value: func(f api.Function) string { return f.Partition }},
		{title: "HELD BY", value: func(f api.Function) string { return strings.Join(names(f.Holders, holder), ", ") }},
	},
}

func sriovCommand(c *cli) *cobra.Command {
	return group("sriov", "Turn the virtual functions of GPUs on and off", sriovShow(c), sriovSet(c))
}

// sriovIDs are the GPUs that can have virtual functions.
func sriovIDs(ctx context.Context, c *cli) ([]string, error) {
	gpus, err := c.client().GPUs(ctx, client.ListOptions{})
	return names(slices.DeleteFunc(gpus, func(g api.GPU) bool { return g.SRIOV.TotalVFs == 0 }), gpuTable.name), err
}

func sriovShow(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: "show GPU", Short: "Show the virtual functions of a GPU, and what each is used for", Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := c.client().VFs(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.printVFs(v)
		},
	}, 1, sriovIDs)
}

func sriovSet(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: "set GPU NUMBER", Short: "Give a GPU this many virtual functions, 0 for none",
		Long: `Give a GPU this many virtual functions. The number is kept, and put back after a
reboot.

To go from one number to another all virtual functions go first. So nothing is
changed while anything is on the GPU: a partition, or a VM whose definition names
one of the functions.`,
		Example: "  gpuvirt sriov set 0000:41:00.0 4",
		Args:    takes(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := strconv.Atoi(args[1])
			if err != nil {
				return &usageError{message: fmt.Sprintf("%q is no number of virtual functions", args[1]), command: cmd.CommandPath()}
			}
			return c.setVFs(cmd.Context(), args[0], n)
		},
	}, 1, sriovIDs)
}

func (c *cli) setVFs(ctx context.Context, gpu string, n int) error {
	if c.dryRun {
		return c.showPlan(c.client().PlanPutVFs(ctx, gpu, n))
	}
	v, op, err := c.client().PutVFs(ctx, gpu, n)
	if err != nil {
		return err
	}
	v, err = settle(ctx, c, v, op, fmt.Sprintf("%s has %d already", gpu, n), func() (api.VFs, error) { return c.client().VFs(ctx, gpu) })
	if v == nil || err != nil {
		return err
	}
	return c.printVFs(*v)
}

// printVFs shows the functions as a list, or all that is known as data.
func (c *cli) printVFs(v api.VFs) error {
	if !c.draws() {
		return printOne(c, v, v.GPU, nil)
	}
	wanted := ""
	if !v.Equal {
		wanted = fmt.Sprintf("; %d are wanted", *v.Wanted)
	}
	c.say("%s has %d of %d virtual functions%s", v.GPU, v.NumVFs, v.TotalVFs, wanted)
	return printList(c, functionTable, v.Functions)
}
