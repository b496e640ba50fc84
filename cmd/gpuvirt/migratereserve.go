package main

import (
	"cmp"
	"context"
	"math"
	"time"

	"github.com/spf13/cobra"

	"gpuvirt/api"
)

// leaseFlag says for how long the partitions of a migration are kept.
type leaseFlag struct{ lease time.Duration }

func (f *leaseFlag) add(cmd *cobra.Command, otherwise string) {
	cmd.Flags().DurationVar(&f.lease, "lease", 0, "for `how long` the partitions are kept while nobody does anything with the migration, such as 168h, 0: until it ends; "+otherwise+" if not given")
}

// seconds is what was asked for, nil: nothing.
func (f *leaseFlag) seconds(cmd *cobra.Command) *int {
	if !cmd.Flags().Changed("lease") {
		return nil
	}
	n := int(math.Ceil(f.lease.Seconds()))
	return &n
}

func migrateReserve(c *cli) *cobra.Command {
	var l leaseFlag
	cmd := completeArgs(c, &cobra.Command{
		Use: "reserve NAME", Short: "Keep a migration's partitions, or reserve them again", Args: takes(1),
		Long: `Keep a migration's partitions for as long as their lease once more, as anything else does that
is asked of a migration; or as --lease says. Where the lease has ended and they were given
back they are reserved again, if they are still free.`,
		Example: "  gpuvirt migrate reserve gpu7\n  gpuvirt migrate reserve gpu7 --lease 720h",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, how := cmd.Context(), api.ReserveRequest{LeaseSeconds: l.seconds(cmd)}
			if c.dryRun {
				return c.showPlan(c.client().PlanReserveMigration(ctx, args[0], how))
			}
			m, err := c.client().ReserveMigration(ctx, args[0], how)
			if err == nil && c.waits() {
				m, err = c.reserved(ctx, m)
			}
			if err != nil {
				return err
			}
			return printOne(c, m, m.Name, []field{{name: "Name", value: m.Name}, {name: "Partitions", value: sliceNames(m)}, {name: "Reserved", value: reserved(m)}})
		},
	}, 1, migrationNames)
	l.add(cmd, "as before")
	return cmd
}

// reserved waits until partitions that are being reserved are, or cannot be.
func (c *cli) reserved(ctx context.Context, m api.Migration) (api.Migration, error) {
	ctx, cancel := c.limited(ctx)
	defer cancel()
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for m.Reservation != nil && m.Reservation.State == "reserving" {
		select {
		case <-again.C:
		case <-ctx.Done():
			return m, &goesOnError{op: m.Operation, migration: m.Name, err: ctx.Err()}
		}
		next, err := c.client().Migration(ctx, m.Name)
		if err != nil {
			return m, err
		}
		m = next
	}
	if r := m.Reservation; r != nil && (r.State == "releasing" || r.State == "released") {
		return m, &releasedError{m}
	}
	return m, nil
}

// A releasedError says that partitions could not be reserved again.
type releasedError struct{ m api.Migration }

func (e *releasedError) Error() string {
	return cmp.Or(e.m.Reservation.Problem, "the partitions could not be reserved, and those that were are given back: see what is in the way, and ask again")
}
