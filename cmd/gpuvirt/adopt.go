package main

import (
	"strings"

	"github.com/spf13/cobra"

	"gpuvirt/api"
)

func adoptCommand(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use:   "adopt PARTITION…",
		Short: "Take partitions that somebody else made under management",
		Long: `Take partitions that mdevctl, a script or a person made under management, as they
are: from now on they come back after a reboot, and can be deleted. No device is
touched, whoever uses it. Their GPUs have to be under management.`,
		Example: `  gpuvirt partition list
  gpuvirt adopt 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001`,
		Args: takesAtLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			var adopted []api.Partition
			for _, id := range args {
				if c.dryRun {
					if err := c.showPlan(c.client().PlanAdoptPartition(ctx, id)); err != nil {
						return err
					}
					continue
				}
				p, err := c.client().AdoptPartition(ctx, id)
				if err != nil {
					if len(adopted) > 0 {
						c.say("done before that: %s", strings.Join(names(adopted, partitionTable.name), ", "))
					}
					return err
				}
				adopted = append(adopted, p)
			}
			if c.dryRun {
				return nil
			}
			return printList(c, partitionTable, adopted)
		},
	}, 0, partitionIDs)
}
