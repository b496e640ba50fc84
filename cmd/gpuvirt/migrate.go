package main

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gpuvirt/api"
	"gpuvirt/client"
	"gpuvirt/p2v/move"
)

var migrationTable = table[api.Migration]{
	things: "migrations",
	name:   func(m api.Migration) string { return m.Name },
	columns: []column[api.Migration]{
		{title: "NAME", value: func(m api.Migration) string { return m.Name }},
		{title: "SERVER", value: func(m api.Migration) string { return m.Hostname }},
		{title: "PHASE", value: func(m api.Migration) string { return m.Phase }},
		{title: "DISKS", value: func(m api.Migration) string { return strconv.Itoa(len(m.Disks)) }},
		{title: "SIZE", value: func(m api.Migration) string { return size(diskBytes(m)) }},
		{title: "LAST PASS", value: func(m api.Migration) string { return seconds(finalSeconds(m)) }},
		{title: "HEARD", value: func(m api.Migration) string { return whenever(m.Heard) }},
		{title: "ASSESSMENT", wide: true, value: func(m api.Migration) string { return m.Assessment }},
		{title: "CREATED", wide: true, value: func(m api.Migration) string { return when(m.Created) }},
		{title: "CREATED BY", wide: true, value: func(m api.Migration) string { return m.CreatedBy }},
	},
}

func diskBytes(m api.Migration) (sum uint64) {
	for _, d := range m.Disks {
		sum += d.Size
	}
	return sum
}

// finalSeconds is what the last pass would take now, below 0 where nobody knows.
func finalSeconds(m api.Migration) float64 {
	if m.Forecast == nil {
		return -1
	}
	return m.Forecast.FinalSeconds
}

// seconds writes a time for people; empty: it is not known.
func seconds(s float64) string {
	switch {
	case s < 0 || math.IsNaN(s) || s > math.MaxInt32:
		return ""
	case s < 10:
		return (time.Duration(s*1000) * time.Millisecond).String()
	}
	return (time.Duration(s) * time.Second).String()
}

func migrationNames(ctx context.Context, c *cli) ([]string, error) {
	all, err := c.client().Migrations(ctx, client.ListOptions{})
	return names(all, migrationTable.name), err
}

func migrateCommand(c *cli) *cobra.Command {
	show := completeArgs(c, &cobra.Command{
		Use: "show NAME", Short: "Show one migration", Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := c.client().Migration(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printOne(c, m, m.Name, migrationFields(m))
		},
	}, 1, migrationNames)
	return group("migrate", "Move GPU workloads from physical servers into VMs",
		listCommand(c, migrationTable, func(ctx context.Context, cl *client.Client, o client.ListOptions) ([]api.Migration, error) {
			return cl.Migrations(ctx, o)
		}), show, migratePlan(c), migrateStart(c), migrateSet(c),
		migrateAct(c, "sync", "Pass over the disks at once", (*client.Client).SyncMigration),
		migrateRehearse(c), migrateCutover(c), migrateWithdraw(c), migrateFenced(c), migrateAccept(c),
		migrateAct(c, "retry", "Go on with a migration that waits for a person", (*client.Client).RetryMigration),
		migrateRollback(c), migrateDelete(c))
}

func migrationFields(m api.Migration) []field {
	fields := []field{
		{name: "Name", value: m.Name},
		{name: "Phase", value: m.Phase},
		{name: "Reason", value: m.Reason},
		{name: "Hostname", value: m.Hostname},
		{name: "Source", value: fromWhere(m)},
		{name: "Certificates", value: m.Certificates},
		{name: "Assessment", value: m.Assessment},
		{name: "Bandwidth", value: bandwidth(m.Copy)},
		{name: "Connections", value: strconv.Itoa(m.Copy.Connections)},
		{name: "Compressed", value: yesNo(m.Copy.Compress)},
		{name: "Every", value: seconds(float64(m.Copy.Interval))},
	}
	if f := m.Forecast; f != nil {
		fields = append(
			fields,
			field{name: "Last pass", value: fmt.Sprintf("%s now, of a downtime of %s", orDash(seconds(f.FinalSeconds)), seconds(f.BudgetSeconds))},
			field{name: "After many", value: converging(*f)},
		)
	}
	fields = append(
		fields,
		field{name: "VM", value: vmName(m)},
		field{name: "Partitions", value: sliceNames(m)},
		field{name: "Fence", value: m.Fence},
		field{name: "Accepted", value: m.Accepted},
		field{name: "Heard", value: orDash(whenever(m.Heard))},
		field{name: "Operation", value: m.Operation},
		field{name: "Created", value: when(m.Created)},
		field{name: "Created by", value: m.CreatedBy},
	)
	fields = append(fields, field{name: "Read from", below: fromRows(m)})
	var rows [][]string
	for _, d := range m.Disks {
		rows = append(rows, []string{d.Name, size(d.Size), fmt.Sprintf("%d passes", d.Total), d.ID})
		for _, p := range d.Passes {
			how := "changed " + orDash(size(p.Written))
			if p.Tracked {
				how += ", as the source told"
			}
			if !p.Complete {
				how = "broken off after " + orDash(size(p.Written))
			}
			rows = append(rows, []string{"  " + when(p.Started), seconds(p.Seconds), how, orDash(size(p.Sent)) + " over the network"})
		}
	}
	fields = append(fields, field{name: "Disks", below: rows})
	rows = nil
	for _, a := range m.Attempts {
		rows = append(rows, []string{when(a.Asked), string(a.Kind), string(a.State), "at rest " + orDash(seconds(a.Rest)), a.Problem})
	}
	if len(rows) > 0 {
		fields = append(fields, field{name: "Attempts", below: rows})
	}
	if a := lastTry(m); a != nil {
		fields = append(fields, reportFields(*a)...)
	}
	return fields
}

func sliceNames(m api.Migration) string {
	if m.VM == nil {
		return ""
	}
	var out []string
	for _, s := range m.VM.Slices {
		out = append(out, fmt.Sprintf("%s of %s as %s", s.Profile, s.GPU, s.Assignment))
	}
	return strings.Join(out, ", ")
}

func converging(f move.Forecast) string {
	if f.SettledSeconds < 0 {
		return "it does not settle: the source changes faster than it is copied"
	}
	return seconds(f.SettledSeconds)
}

func bandwidth(c move.Copy) string {
	if c.Bandwidth == 0 {
		return "not bounded"
	}
	return size(c.Bandwidth) + "/s"
}

func migrateStart(c *cli) *cobra.Command {
	var f planFlags
	var v vmFlags
	cmd := &cobra.Command{
		Use: "start NAME --assessment NAME", Short: "Begin to move a server", Args: takes(1),
		Long: `Begin to move a server that was assessed: its disks are copied while it runs, again
and again, until little changes. The server is only read. What the plan says is in the
way has to be mended or waived first; see "gpuvirt migrate plan".

A server that is off is moved from its disks: --image reads one on the daemon's host, below
a folder of its setting p2v.images, and --nbd from a rescue system. All that are moved are
named, and have to be as they were inspected. Then an inspection is enough that was carried
here.

Its VM is defined at once, and its partitions are reserved. When the migration is ready,
"gpuvirt migrate rehearse" tries it and "gpuvirt migrate cutover" carries it out;
"gpuvirt migrate rollback" takes it back.`,
		Example: `  gpuvirt migrate plan gpu7 --assessment gpu7
  gpuvirt migrate start gpu7 --assessment gpu7 --bandwidth 200M --downtime 10m --bridge br0
  gpuvirt migrate start gpu7 --assessment gpu7 --image nvme0n1=/srv/images/gpu7.raw
  gpuvirt migrate start gpu7 --assessment gpu7 --nbd nvme0n1=nbds://gpu7.bank.example/ --certificates gpu7`,
		RunE: func(cmd *cobra.Command, args []string) error {
			want, err := f.request(cmd, args[0])
			if err == nil {
				want.VM, err = v.request(cmd)
			}
			if err != nil {
				return err
			}
			if c.dryRun {
				p, err := c.client().PlanCreateMigration(cmd.Context(), want)
				return c.showMigrationPlan(p, err, true)
			}
			op, err := c.client().CreateMigration(cmd.Context(), want)
			if err != nil {
				return err
			}
			c.say("operation %s: %s", op.ID, op.Summary)
			m, err := c.client().Migration(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printRow(c, migrationTable, m)
		},
	}
	f.add(c, cmd)
	v.add(cmd)
	return cmd
}

func migrateSet(c *cli) *cobra.Command {
	var f copyFlags
	cmd := completeArgs(c, &cobra.Command{
		Use: "set NAME", Short: "Change how a migration copies, also while it does", Args: takes(1),
		Example: `  gpuvirt migrate set gpu7 --bandwidth 50M
  gpuvirt migrate set gpu7 --bandwidth 0 --every 2m`,
		RunE: func(cmd *cobra.Command, args []string) error {
			want, err := f.request(cmd)
			if err != nil {
				return err
			}
			if want == nil {
				return &usageError{message: "nothing is asked for", command: cmd.CommandPath()}
			}
			p := api.MigrationPatch{Copy: *want}
			if c.dryRun {
				return c.showPlan(c.client().PlanPatchMigration(cmd.Context(), args[0], p))
			}
			m, err := c.client().PatchMigration(cmd.Context(), args[0], p)
			if err != nil {
				return err
			}
			return printRow(c, migrationTable, m)
		},
	}, 1, migrationNames)
	f.add(cmd)
	return cmd
}

func migrateAct(c *cli, verb, short string, act func(*client.Client, context.Context, string) (api.Migration, error)) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: verb + " NAME", Short: short, Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if c.dryRun {
				return c.showPlan(c.client().PlanMigration(cmd.Context(), args[0], verb))
			}
			m, err := act(c.client(), cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printRow(c, migrationTable, m)
		},
	}, 1, migrationNames)
}

func migrateRollback(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: "rollback NAME", Short: "Take a migration back", Args: takes(1),
		Long: "Take a migration back: what was made here is removed, copies of disks first of all.\nThe server stays as it is.",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, name := cmd.Context(), args[0]
			if c.dryRun {
				return c.showPlan(c.client().PlanMigration(ctx, name, "rollback"))
			}
			if c.asks() {
				m, err := c.client().Migration(ctx, name)
				if err != nil {
					return err
				}
				if err := c.confirm(ctx, "Remove the copies of %d disks of %s?", len(m.Disks), m.Hostname); err != nil {
					return err
				}
			}
			m, err := c.client().RollbackMigration(ctx, name)
			if err != nil {
				return err
			}
			if m.Phase != "rolled-back" && c.waits() {
				op, err := c.client().Operation(ctx, m.Operation)
				if err != nil {
					return err
				}
				if op, err = c.follow(ctx, op); err != nil {
					return err
				}
				if op.Status != "undone" {
					return &operationError{op}
				}
				if m, err = c.client().Migration(ctx, name); err != nil {
					return err
				}
			}
			return printRow(c, migrationTable, m)
		},
	}, 1, migrationNames)
}

func migrateDelete(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Forget a migration that has ended", Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if c.dryRun {
				return c.showPlan(c.client().PlanDeleteMigration(cmd.Context(), args[0]))
			}
			m, err := c.client().DeleteMigration(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printRow(c, migrationTable, m)
		},
	}, 1, migrationNames)
}

// parseRate reads bytes a second: a number, and k, M, G or Ki, Mi, Gi.
func parseRate(text string) (uint64, error) {
	number := strings.TrimRight(text, "kKMGi")
	units := map[string]float64{"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
	unit, known := units[text[len(number):]]
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !known || n < 0 || n*unit > math.MaxInt64/2 || math.IsNaN(n) {
		return 0, fmt.Errorf("%q is no rate: bytes a second, such as 200M or 50Mi, or 0 for no bound", text)
	}
	return uint64(n * unit), nil
}
