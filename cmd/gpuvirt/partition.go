package main

import (
	"cmp"
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"gpuvirt/api"
	"gpuvirt/client"
)

var partitionTable = table[api.Partition]{
	things: "partitions",
	name:   func(p api.Partition) string { return p.ID },
	columns: []column[api.Partition]{
		{title: "ID", value: func(p api.Partition) string { return p.ID }},
		{title: "GPU", value: func(p api.Partition) string { return p.GPU }},
		{title: "KIND", value: func(p api.Partition) string { return p.Kind }},
		{title: "PROFILE", value: func(p api.Partition) string { return p.Profile }},
		{title: "STATE", value: func(p api.Partition) string { return p.State }},
		{title: "ORIGIN", value: func(p api.Partition) string { return p.Origin }},
		{title: "ASSIGNMENT", value: func(p api.Partition) string { return p.Assignment }},
		{title: "HELD BY", value: func(p api.Partition) string { return strings.Join(names(p.Holders, holder), ", ") }},
		{title: "NATIVE", wide: true, value: func(p api.Partition) string { return p.Native }},
		{title: "PARENT", wide: true, value: func(p api.Partition) string { return p.Parent }},
		{title: "SLOT", wide: true, value: func(p api.Partition) string { return p.Slot }},
		{title: "MEMORY USED", wide: true, value: func(p api.Partition) string { return memoryUsed(p.Observed) }},
		{title: "SM", wide: true, value: func(p api.Partition) string { return share(usageOf(p.Observed).SMRatio) }},
		{title: "LICENSE", wide: true, value: func(p api.Partition) string { return licenseState(p.Observed) }},
		{title: "HEALTH", wide: true, value: func(p api.Partition) string { return health(p.Conditions) }},
	},
}

func partitionCommand(c *cli) *cobra.Command {
	show := completeArgs(c, &cobra.Command{
		Use: "show PARTITION", Short: "Show one partition", Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := c.client().Partition(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printOne(c, p, p.ID, partitionFields(p))
		},
	}, 1, partitionIDs)
	return group("partition", "The pieces that the GPUs are cut into",
		listCommand(c, partitionTable, func(ctx context.Context, cl *client.Client, o client.ListOptions) ([]api.Partition, error) {
			return cl.Partitions(ctx, o)
		}), show, partitionCreate(c), partitionDelete(c))
}

func partitionFields(p api.Partition) []field {
	created := ""
	if p.Created != nil {
		created = when(*p.Created)
	}
	fields := []field{
		{name: "ID", value: p.ID},
		{name: "GPU", value: p.GPU},
		{name: "Parent", value: p.Parent},
		{name: "Kind", value: p.Kind},
		{name: "Profile", value: p.Profile},
		{name: "Native type", value: p.Native},
		{name: "Slot", value: p.Slot},
		{name: "Instance", value: p.Instance},
		{name: "Compute", below: computeRows(p.Compute)},
		{name: "Device", value: handle(p.Handle)},
		{name: "Goes with it", value: companions(p)},
		{name: "Device API", value: p.DeviceAPI},
		{name: "vGPU params", value: p.VGPUParams},
		{name: "IOMMU group", value: p.IOMMUGroup},
		{name: "Origin", value: p.Origin},
		{name: "State", value: p.State},
		{name: "Assignment", value: p.Assignment},
		{name: "Held by", value: strings.Join(names(p.Holders, holder), ", ")},
		{name: "Created", value: created},
	}
	fields = append(fields, observedFields(p.Observed)...)
	return append(fields, field{name: "Conditions", below: conditionRows(p.Conditions)})
}

// companions says which functions go with a card, and that they are in no VM.
func companions(p api.Partition) string {
	if len(p.Companions) == 0 {
		return ""
	}
	return strings.Join(p.Companions, ", ") + " (to VFIO, and into no vm)"
}

func computeRows(all []api.Compute) (rows [][]string) {
	for _, c := range all {
		rows = append(rows, []string{c.Profile, "at " + strconv.Itoa(c.Start), c.UUID})
	}
	return rows
}

func partitionCreate(c *cli) *cobra.Command {
	var want api.PartitionRequest
	cmd := &cobra.Command{
		Use: "create --profile PROFILE", Short: "Make a partition that is not (yet) for a VM", Args: takes(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if c.dryRun {
				return c.showPlan(c.client().PlanCreatePartition(ctx, want))
			}
			op, err := c.client().CreatePartition(ctx, want)
			if err != nil {
				return err
			}
			if !c.waits() {
				return c.printStarted(op)
			}
			if op, err = c.await(ctx, op); err != nil {
				return err
			}
			for _, key := range op.Keys {
				if id, found := strings.CutPrefix(key, "partition/"); found {
					p, err := c.client().Partition(ctx, id)
					if err != nil {
						return err
					}
					return printRow(c, partitionTable, p)
				}
			}
			return printRow(c, operationTable, op)
		},
	}
	cmd.Flags().StringVar(&want.Profile, "profile", "", "the `profile` to make (required)")
	must(cmd.MarkFlagRequired("profile"))
	whereFlags(c, cmd, &want.GPU, &want.Placement)
	paramsFlag(cmd, &want.VGPUParams)
	completeFlag(c, cmd, "profile", profileNames)
	return cmd
}

// whereFlags adds the flags that say where a partition is made.
func whereFlags(c *cli, cmd *cobra.Command, gpu, placement *string) {
	cmd.Flags().StringVar(gpu, "gpu", "", "the `gpu` to use; any managed one that fits if not given")
	cmd.Flags().StringVar(placement, "placement", "", "`how` to choose where several gpus fit: pack takes the fullest, spread the emptiest, and if absent the daemon's setting placement decides; those near the vm's memory come first")
	completeFlag(c, cmd, "gpu", gpuIDs)
	fixed(cmd, "placement", "pack", "spread")
}

func partitionDelete(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: "delete PARTITION", Aliases: []string{"rm"}, Short: "Remove a partition that nobody uses", Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, id := cmd.Context(), args[0]
			if c.dryRun {
				return c.showPlan(c.client().PlanDeletePartition(ctx, id))
			}
			if c.asks() {
				p, err := c.client().Partition(ctx, id)
				if err != nil {
					return err
				}
				if err := c.confirm(ctx, "Remove %s on %s (%s)?", p.Profile, p.GPU, cmp.Or(p.ID, id)); err != nil {
					return err
				}
			}
			op, err := c.client().DeletePartition(ctx, id)
			if err != nil {
				return err
			}
			return c.finish(ctx, op, "partition %s is removed", id)
		},
	}, 1, partitionIDs)
}
