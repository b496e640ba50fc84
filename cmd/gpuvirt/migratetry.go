package main

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"gpuvirt/api"
	"gpuvirt/client"
	"gpuvirt/p2v/move"
)

// tryFlags say how a server is brought to rest.
type tryFlags struct {
	how   api.TryRequest
	limit time.Duration
}

func (f *tryFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&f.how.StopServices, "stop-service", nil, "`services` of the server that are stopped before, and started again if it goes on")
	cmd.Flags().DurationVar(&f.limit, "limit", 0, "for `how long` the server may be at rest; the plan's downtime if not given")
	cmd.Flags().BoolVar(&f.how.Verify, "verify", false, "compare all of the disks while the server is at rest, and not only what was written")
}

func (f *tryFlags) request() api.TryRequest {
	how := f.how
	how.LimitSeconds = int(math.Ceil(f.limit.Seconds())) // 0 is no limit of its own
	return how
}

func migrateRehearse(c *cli) *cobra.Command {
	var f tryFlags
	cmd := completeArgs(c, &cobra.Command{
		Use: "rehearse NAME", Short: "Try a migration's VM on a copy", Args: takes(1),
		Long: `Try a migration's VM on a copy: the server is brought to rest for the moment that the
last pass takes and goes on; the VM starts from a copy of that moment, with its
partitions, on a network of its own without a way out; it is looked at, and taken down
again. The server is copied on meanwhile. It can be done as often as wanted.`,
		Example: "  gpuvirt migrate rehearse gpu7\n  gpuvirt migrate rehearse gpu7 --live",
		RunE: func(cmd *cobra.Command, args []string) error {
			how := f.request()
			if c.dryRun {
				return c.showPlan(c.client().PlanTryMigration(cmd.Context(), args[0], "rehearse", how))
			}
			m, err := c.client().RehearseMigration(cmd.Context(), args[0], how)
			if err != nil {
				return err
			}
			return c.tried(cmd.Context(), m)
		},
	}, 1, migrationNames)
	f.add(cmd)
	cmd.Flags().BoolVar(&f.how.Live, "live", false, "do not bring the server to rest: the copy is as after a power cut that took a while")
	return cmd
}

func migrateCutover(c *cli) *cobra.Command {
	var f tryFlags
	cmd := completeArgs(c, &cobra.Command{
		Use: "cutover NAME", Short: "Power a server off and start its VM", Args: takes(1),
		Long: `Power a server off and start its VM. The server is brought to rest: services that are
named are stopped, and its filesystems are frozen. What was written since the last pass is
copied, and the VM's disks are made. Until then the server goes on by itself where
something fails or the limit is over. Then it is powered off, and the VM starts and is
looked at. "gpuvirt migrate rollback" takes the VM away even then; somebody has to start
the server again.

It is refused where it would take longer than --limit or the downtime of the plan, with what
takes how long: the last pass, the conversion, and the boot, as far as a rehearsal has measured
them ("gpuvirt migrate show"). A --limit that is longer than the downtime allows as long a one.

A rehearsal must have passed, or --unrehearsed says why it need not. "gpuvirt migrate
withdraw" ends a cut-over that waits or is under way, until the server is powered off.

Where a server is moved from its disks alone (--image, --nbd), nothing is powered off and
nobody can see whether it is off: it takes --source-off, which says so in your name. One that
came by virt-p2v (--nbd sda=virt-p2v:) is told that all is done, and its VM starts when nothing
answers at its address any more: power it off, and let it not start again.` + unattended,
		Example: "  gpuvirt migrate cutover gpu7 --stop-service model-server.service\n  gpuvirt migrate cutover gpu7 --source-off",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, how := cmd.Context(), f.request()
			if c.dryRun {
				return c.showPlan(c.client().PlanTryMigration(ctx, args[0], "cutover", how))
			}
			if err := c.sureOf(cmd, args[0], func(m api.Migration) string {
				if len(m.DisksFrom) > 0 {
					return isOff(m)
				}
				return fmt.Sprintf("Power %s off, and start VM %s?", m.Hostname, vmName(m))
			}); err != nil {
				return err
			}
			m, err := c.client().CutOverMigration(ctx, args[0], how)
			if err != nil {
				return err
			}
			if how.WhenReady {
				return printRow(c, migrationTable, m)
			}
			return c.tried(ctx, m)
		},
	}, 1, migrationNames)
	f.add(cmd)
	cmd.Flags().BoolVar(&f.how.WhenReady, "when-ready", false, "wait until all of it fits the limit and the downtime, and do it then, unattended")
	cmd.Flags().StringVar(&f.how.Unrehearsed, "unrehearsed", "", "the `reason` why no rehearsal has to have passed")
	cmd.Flags().BoolVar(&f.how.SourceOff, "source-off", false, "of a server whose disks alone are read: it is off, and stays so")
	return cmd
}

// isOff asks for somebody's word that the server of a migration is off.
func isOff(m api.Migration) string {
	return fmt.Sprintf("Is %s off, and to stay so? VM %s starts in its place.", m.Hostname, vmName(m))
}

func vmName(m api.Migration) string {
	if m.VM == nil {
		return m.Name
	}
	return m.VM.Name
}

// tried waits for what was begun, and shows what came of it.
func (c *cli) tried(ctx context.Context, m api.Migration) error {
	if !c.waits() {
		return printRow(c, migrationTable, m)
	}
	m, err := c.watch(ctx, m, settled)
	if err != nil {
		return err
	}
	if a := lastTry(m); a != nil && (a.State == move.Failed || a.State == move.Withdrawn) || m.Phase == "waiting" {
		told := []string{"Problem", "Reason"} // by the error
		if err := printOne(c, m, m.Name, slices.DeleteFunc(tryFields(m), func(f field) bool { return slices.Contains(told, f.name) })); err != nil {
			return err
		}
		return &triedError{m}
	}
	return printOne(c, m, m.Name, tryFields(m))
}

func lastTry(m api.Migration) *move.Attempt {
	if len(m.Attempts) == 0 {
		return nil
	}
	return &m.Attempts[len(m.Attempts)-1]
}

// A triedError says that what was tried has failed, or waits for a person.
type triedError struct{ m api.Migration }

func (e *triedError) waits() bool { return e.m.Phase == "waiting" }

func (e *triedError) Error() string {
	if e.waits() {
		return fmt.Sprintf("migration %s waits: %s", e.m.Name, cmp.Or(e.m.Reason, "a person must act"))
	}
	a := lastTry(e.m)
	return fmt.Sprintf("the %s of migration %s has failed: %s", a.Kind, e.m.Name, a.Problem)
}

func (e *triedError) hint() string {
	if e.waits() {
		return "when that is done: gpuvirt migrate retry " + e.m.Name
	}
	return "the server goes on, and is copied on: mend it and ask again"
}

// tryPhase is what is being done, in a line.
func tryPhase(m api.Migration) string {
	if a := lastTry(m); a != nil && !a.Over() && a.Phase != "" {
		return m.Phase + ": " + a.Phase
	}
	return m.Phase
}

// settled reports whether what was begun has come to an end, or to a person.
func settled(m api.Migration) bool {
	a := lastTry(m)
	switch {
	case m.Phase == "waiting" || m.Phase == "done" || m.Phase == "failed" || m.Phase == "rolled-back":
		return true
	case a == nil:
		return true
	case a.State == move.Moved:
		return false // the VM starts, and is looked at
	}
	return a.Over()
}

// tryFields show the last try of a migration.
func tryFields(m api.Migration) []field {
	fields := []field{{name: "Name", value: m.Name}, {name: "Phase", value: m.Phase}, {name: "Reason", value: m.Reason}}
	a := lastTry(m)
	if a == nil {
		return fields
	}
	fields = append(
		fields,
		field{name: "Tried", value: fmt.Sprintf("%s, %s", a.Kind, a.State)},
		field{name: "Problem", value: a.Problem},
		field{name: "At rest", value: seconds(a.Rest)},
		field{name: "Downtime", value: downtime(*a)},
	)
	return append(fields, reportFields(*a)...)
}

// downtime is for how long the service was away; empty: it was not, or is still.
func downtime(a move.Attempt) string {
	if a.Downtime == 0 {
		return ""
	}
	return seconds(a.Downtime)
}

func migrateAccept(c *cli) *cobra.Command {
	var reason string
	cmd := completeArgs(c, &cobra.Command{
		Use: "accept NAME --reason REASON", Short: "Take a migration's VM as it is", Args: takes(1),
		Long: "Take a migration's VM as it is, though a check of it has failed.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if c.dryRun {
				return c.showPlan(c.client().PlanAcceptMigration(cmd.Context(), args[0], reason))
			}
			m, err := c.client().AcceptMigration(cmd.Context(), args[0], reason)
			if err != nil {
				return err
			}
			return printRow(c, migrationTable, m)
		},
	}, 1, migrationNames)
	cmd.Flags().StringVar(&reason, "reason", "", "the `reason` (required)")
	must(cmd.MarkFlagRequired("reason"))
	return cmd
}

func migrateWithdraw(c *cli) *cobra.Command {
	cmd := migrateAct(c, "withdraw", "End a rehearsal or cut-over of a migration", (*client.Client).WithdrawMigration, nil)
	cmd.Long = `End a rehearsal or a cut-over that waits or is under way. The server goes on as before, and
so does the copying. A server that was told to power off stays so: see "gpuvirt migrate
rollback".`
	return cmd
}

func migrateFenced(c *cli) *cobra.Command {
	cmd := migrateAct(c, "fenced", "Say that a migration's server is off", (*client.Client).FencedMigration, isOff)
	cmd.Long = `Say that a migration's server is off, where that could not be found out: it was told to
power off, and does not answer; or virt-p2v was told that all is done, and the server was not
seen to go. Look at it before: a server that only cannot be reached would run beside its VM.` + unattended
	return cmd
}
