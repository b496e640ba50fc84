package main

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gpuvirt/api"
	"gpuvirt/client"
	"gpuvirt/p2v/assess"
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
		{title: "RESERVED", wide: true, value: reserved},
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
	if m.Forecast == nil || m.Fence != "" {
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
			fields := migrationFields(m)
			if op, err := c.client().Operation(cmd.Context(), m.Operation); m.Progress == nil && m.Operation != "" && err == nil {
				const afterPhase = 2
				fields = slices.Insert(fields, afterPhase, field{name: "Progress", value: progressed(op)})
			}
			return printOne(c, m, m.Name, fields)
		},
	}, 1, migrationNames)
	return group("migrate", "Move GPU workloads from physical servers into VMs",
		listCommand(c, migrationTable, func(ctx context.Context, cl *client.Client, o client.ListOptions) ([]api.Migration, error) {
			return cl.Migrations(ctx, o)
		}), show, migratePlan(c), migrateStart(c), migrateSet(c),
		migrateSync(c),
		migrateReserve(c), migrateRehearse(c), migrateCutover(c), migrateWithdraw(c), migrateFenced(c), migrateAccept(c),
		migrateAct(c, "retry", "Go on with a migration that waits for a person", (*client.Client).RetryMigration, nil),
		migrateRollback(c), migrateDelete(c))
}

func migrationFields(m api.Migration) []field {
	fields := []field{
		{name: "Name", value: m.Name},
		{name: "Phase", value: m.Phase},
		{name: "Progress", value: passed(m)},
		{name: "Reason", value: m.Reason},
		{name: "Waits for", value: asked(m)},
		{name: "Hostname", value: m.Hostname},
		{name: "Source", value: fromWhere(m)},
		{name: "Certificates", value: m.Certificates},
		{name: "Assessment", value: m.Assessment},
	}
	fields = append(fields, copyFields(m.Copy)...)
	fields = append(fields, field{name: "Away since", value: awaySince(m)})
	fields = append(fields, forecastFields(m)...)
	if a := lastTry(m); a != nil {
		fields = append(fields, field{name: "Copy waits", value: a.CopyWaits})
	}
	fields = append(
		fields,
		field{name: "VM", value: vmName(m)},
		field{name: "Partitions", value: sliceNames(m)},
		field{name: "Reserved", value: reserved(m)},
		field{name: "Fence", value: m.Fence},
		field{name: "Accepted", value: m.Accepted},
		field{name: "Heard", value: orDash(whenever(m.Heard))},
		field{name: "Operation", value: m.Operation},
		field{name: "Created", value: when(m.Created)},
		field{name: "Created by", value: m.CreatedBy},
	)
	fields = append(fields, field{name: "Read from", below: fromRows(m)}, field{name: "Keys", below: keyRows(m)})
	var rows [][]string
	for _, d := range m.Disks {
		rows = append(rows, []string{d.Name, size(d.Size), assess.Count(d.Total, "pass", "passes"), d.ID})
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
		rest, how := "at rest "+orDash(seconds(a.Rest)), a.Problem
		if !a.Over() {
			how = a.Phase
			if a.Rest == 0 && !a.AtRest.IsZero() {
				rest = "at rest since " + when(a.AtRest)
			}
		}
		if down := downtime(a); down != "" {
			rest += ", down " + down
		}
		rows = append(rows, []string{when(a.Asked), string(a.Kind), string(a.State), rest, how})
	}
	if len(rows) > 0 {
		fields = append(fields, field{name: "Attempts", below: rows})
	}
	if a := lastTry(m); a != nil {
		fields = append(fields, reportFields(*a)...)
	}
	return fields
}

// awaySince is when the service went away of a migration whose server was told to power off; empty: it is back, or
// nobody knows.
func awaySince(m api.Migration) string {
	a := lastTry(m)
	if m.Fence == "" || a == nil || a.Downtime > 0 || a.AtRest.IsZero() || in(m, move.PhaseDone, move.PhaseRolledBack) {
		return ""
	}
	return when(a.AtRest)
}

// forecastFields show what a cut-over would take now, part by part.
func forecastFields(m api.Migration) []field {
	f := m.Forecast
	if f == nil || m.Fence != "" { // a daemon before tells it still
		return nil
	}
	fields := []field{{name: "Last pass", value: orDash(seconds(f.FinalSeconds)) + " now"}, {name: "After many", value: converging(m)}}
	if f.Conversion.Basis == "" {
		return append(fields, field{name: "Downtime", value: seconds(f.BudgetSeconds) + " are allowed"}) // of a daemon before
	}
	atLeast := ""
	if f.PowerOff.Basis == move.Unknown || f.Boot.Basis == move.Unknown {
		atLeast = " at least"
	}
	return append(
		fields,
		field{name: "Conversion", value: part(f.Conversion)},
		field{name: "At rest", value: seconds(f.RestSeconds) + ": the last pass, and the conversion"},
		field{name: "Power off", value: part(f.PowerOff)},
		field{name: "Boot", value: part(f.Boot)},
		field{name: "Downtime", value: fmt.Sprintf("%s%s, and %s are allowed", seconds(f.DowntimeSeconds), atLeast, seconds(f.BudgetSeconds))},
	)
}

// part tells what a part of a cut-over takes, and how that is known.
func part(p move.Part) string {
	if p.Basis == move.Unknown {
		return p.String()
	}
	return fmt.Sprintf("%s, %s", seconds(p.Seconds), p)
}

// copyFields tell how disks are copied.
func copyFields(c move.Copy) []field {
	return []field{
		{name: "Bandwidth", value: bandwidth(c)},
		{name: "Connections", value: strconv.Itoa(c.Connections)},
		{name: "Compressed", value: yesNo(c.Compress)},
		{name: "Every", value: seconds(float64(c.Interval))},
	}
}

// asked tells what waits until the migration is ready; empty: nothing does.
func asked(m api.Migration) string {
	a := lastTry(m)
	if a == nil || a.State != move.Asked || !a.Wish.WhenReady {
		return ""
	}
	return fmt.Sprintf("a %s, as soon as it fits its limit, asked for by %s", a.Kind, a.Actor)
}

// progressed tells how far the step of a migration is that is under way, where that is no pass; empty: it is not known.
func progressed(op api.Operation) string {
	for _, s := range op.Steps {
		if op.Status == "running" && s.Status == "doing" && s.Done < s.Total {
			return percent(s.Done, s.Total)
		}
	}
	return ""
}

// reserved says whether the partitions of a migration are held, and for how long.
func reserved(m api.Migration) string {
	if m.Reservation == nil {
		return ""
	}
	text := m.Reservation.State
	if m.ReservedUntil != nil {
		text += ", until " + when(*m.ReservedUntil)
	}
	if m.Reservation.Problem != "" {
		text += ": " + m.Reservation.Problem
	}
	return text
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

// converging tells what many passes come to. Only two of a kind tell how fast a source changes:
// before, all of it is taken to.
func converging(m api.Migration) string {
	for _, d := range m.Disks {
		alike := 0
		for _, p := range d.Passes {
			if p.Complete && p.Tracked == d.Passes[len(d.Passes)-1].Tracked {
				alike++
			}
		}
		if alike < 2 {
			return "it is known when two passes can be compared"
		}
	}
	if m.Forecast.SettledSeconds < 0 {
		return "it does not settle: the source changes faster than it is copied"
	}
	return seconds(m.Forecast.SettledSeconds)
}

func bandwidth(c move.Copy) string {
	if c.Bandwidth == 0 {
		return "not bounded"
	}
	return size(c.Bandwidth) + "/s"
}

func migrateStart(c *cli) *cobra.Command {
	var f startFlags
	cmd := &cobra.Command{
		Use: "start NAME --assessment NAME", Short: "Begin to move a server", Args: takes(1),
		Long: `Begin to move a server that was assessed: its disks are copied while it runs, again
and again, until little changes. The server is only read. What the plan says is in the
way has to be mended or waived first; see "gpuvirt migrate plan".

A server that is off is moved from its disks: --image reads one on the daemon's host, below
a folder of its setting p2v.images, and --nbd from a rescue system, or from virt-p2v when that was started on the server and has
come here. All that are moved are named, and have to be as they were inspected. Then an
inspection is enough that was carried here, or that virt-p2v has brought.

Its VM is defined at once, and its partitions are reserved; while nobody does anything with
the migration, for as long as --lease says. It is waited until the migration is ready: then
"gpuvirt migrate rehearse" tries it and "gpuvirt migrate cutover" carries it out;
"gpuvirt migrate rollback" takes it back. The copy goes on though nobody waits for it.`,
		Example: `  gpuvirt migrate plan gpu7 --assessment gpu7
  gpuvirt migrate start gpu7 --assessment gpu7 --bandwidth 200M --downtime 10m --bridge br0
  gpuvirt migrate start gpu7 --assessment gpu7 --no-wait
  gpuvirt migrate start gpu7 --assessment gpu7 --image nvme0n1=/srv/images/gpu7.raw
  gpuvirt migrate start gpu7 --assessment gpu7 --nbd nvme0n1=nbds://gpu7.bank.example/ --certificates gpu7`,
		RunE: func(cmd *cobra.Command, args []string) error {
			want, err := f.request(cmd, args[0])
			if err != nil {
				return err
			}
			if c.dryRun {
				p, err := c.client().PlanCreateMigration(cmd.Context(), want)
				return c.showMigrationPlan(p, err, askedFor(f.profiles))
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
			if !c.waits() {
				c.say("started; to see how far it is: gpuvirt migrate show %s", m.Name)
				return printRow(c, migrationTable, m)
			}
			if m, err = c.watch(cmd.Context(), m, settledDown); err != nil {
				return err
			}
			if in(m, move.PhaseReady) || tooLong(m) {
				c.say("%s", nextStep(m))
			}
			if err := printRow(c, migrationTable, m); err != nil {
				return err
			}
			return c.ended(cmd.Context(), m)
		},
	}
	f.add(c, cmd)
	return cmd
}

func migrateSet(c *cli) *cobra.Command {
	var f copyFlags
	var k keyFlags
	cmd := completeArgs(c, &cobra.Command{
		Use: "set NAME", Short: "Change how a migration copies, also while it does, or give keys", Args: takes(1),
		Example: `  gpuvirt migrate set gpu7 --bandwidth 50M
  gpuvirt migrate set gpu7 --bandwidth 0 --every 2m
  gpuvirt migrate set gpu7 --passphrase-file nvme0n1p3=-`,
		RunE: func(cmd *cobra.Command, args []string) error {
			want, err := f.request(cmd)
			if err != nil {
				return err
			}
			keys, err := k.request(cmd)
			if err != nil {
				return err
			}
			if want == nil && keys == nil {
				return &usageError{message: "nothing is asked for", command: cmd.CommandPath()}
			}
			p := api.MigrationPatch{Copy: want, Keys: keys}
			if c.dryRun {
				return c.showPlan(c.client().PlanPatchMigration(cmd.Context(), args[0], p))
			}
			m, err := c.client().PatchMigration(cmd.Context(), args[0], p)
			if err != nil {
				return err
			}
			return printOne(c, m, m.Name, append(append([]field{{name: "Name", value: m.Name}}, copyFields(m.Copy)...), field{name: "Keys", below: keyRows(m)}))
		},
	}, 1, migrationNames)
	f.add(cmd)
	k.add(cmd)
	return cmd
}

// migrateAct makes a command that acts on a migration. What it asks before is made of that; nil: nothing.
func migrateAct(
	c *cli, verb, short string, act func(*client.Client, context.Context, string) (api.Migration, error), question func(api.Migration) string,
) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: verb + " NAME", Short: short, Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if c.dryRun {
				return c.showPlan(c.client().PlanMigration(cmd.Context(), args[0], verb))
			}
			if question != nil {
				if err := c.sureOf(cmd, args[0], question); err != nil {
					return err
				}
			}
			m, err := act(c.client(), cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printRow(c, migrationTable, m)
		},
	}, 1, migrationNames)
}

func migrateSync(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: "sync NAME", Short: "Pass over the disks at once", Args: takes(1),
		Long: "Pass over the disks of a migration at once, and wait until that is done. A pass that is\nunder way is ended before.",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, name := cmd.Context(), args[0]
			if c.dryRun {
				return c.showPlan(c.client().PlanMigration(ctx, name, "sync"))
			}
			var before api.Migration
			if c.waits() {
				var err error
				if before, err = c.client().Migration(ctx, name); err != nil {
					return err
				}
			}
			m, err := c.client().SyncMigration(ctx, name)
			if err != nil {
				return err
			}
			if !c.waits() {
				return printRow(c, migrationTable, m)
			}
			if m, err = c.watch(ctx, m, passedOver(before)); err != nil {
				return err
			}
			if err := printRow(c, migrationTable, m); err != nil {
				return err
			}
			return c.ended(ctx, m)
		},
	}, 1, migrationNames)
}

func migrateRollback(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: "rollback NAME", Short: "Take a migration back", Args: takes(1),
		Long: "Take a migration back: what was made here is removed, its copies of disks, its VM with what was\nwritten in it, and its reservation. The server stays as it is: one that was powered off\nhas to be started again." + unattended,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, name := cmd.Context(), args[0]
			if c.dryRun {
				return c.showPlan(c.client().PlanMigration(ctx, name, "rollback"))
			}
			if err := c.sureOf(cmd, name, takenBack); err != nil {
				return err
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
			if text := startAgain(m); text != "" {
				c.say("%s", text)
			}
			return printRow(c, migrationTable, m)
		},
	}, 1, migrationNames)
}

// startAgain says what is left to do about the server of a migration that is taken back; empty: nothing.
func startAgain(m api.Migration) string {
	switch {
	case m.Fence == "":
		return ""
	case in(m, move.PhaseRolledBack):
		return cmp.Or(m.Reason, "the server was powered off: start it again")
	}
	return "the server was powered off: start it again when the migration is rolled back"
}

// sureOf makes sure of what is done with a migration.
func (c *cli) sureOf(cmd *cobra.Command, name string, question func(api.Migration) string) error {
	return c.sure(cmd, func() (string, error) {
		m, err := c.client().Migration(cmd.Context(), name)
		if err != nil {
			return "", err
		}
		return question(m), nil
	})
}

// takenBack asks whether all that a migration has made here is to go.
func takenBack(m api.Migration) string {
	what := "the copies of " + assess.Count(len(m.Disks), "disk", "disks") + " of " + m.Hostname
	if m.VM != nil {
		what += ", its VM " + m.VM.Name + " with what was written in it"
		if len(m.VM.Slices) > 0 {
			what += ", and what is reserved for it"
		}
	}
	text := "Take migration " + m.Name + " back? Removed: " + what + "."
	switch move.Fence(m.Fence) {
	case move.FenceOff:
		text += " The server is off, and nobody but you starts it again."
	case move.FenceAsked:
		text += " It is not known whether the server is off: look at it afterwards, and start it again if it is."
	case move.FenceNone:
	}
	return text
}

func migrateDelete(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Forget a migration that has ended", Args: takes(1),
		Long: "Forget a migration that has ended. The VM and the disks of one that is done stay. What is left of\none whose operation was forgotten is removed." + unattended,
		RunE: func(cmd *cobra.Command, args []string) error {
			if c.dryRun {
				return c.showPlan(c.client().PlanDeleteMigration(cmd.Context(), args[0]))
			}
			if err := c.sureOf(cmd, args[0], forgotten); err != nil {
				return err
			}
			m, err := c.client().DeleteMigration(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printRow(c, migrationTable, m)
		},
	}, 1, migrationNames)
}

// forgotten asks whether a migration is to be forgotten.
func forgotten(m api.Migration) string {
	switch {
	case in(m, move.PhaseDone):
		return "Forget migration " + m.Name + "? Its VM " + vmName(m) + " and its disks stay."
	case in(m, move.PhaseFailed):
		return "Forget migration " + m.Name + "? The copies of " + assess.Count(len(m.Disks), "disk", "disks") + " of " + m.Hostname + " are removed."
	}
	return "Forget migration " + m.Name + "?"
}

// parseRate reads bytes a second: a number, and k, M, G or Ki, Mi, Gi.
func parseRate(text string) (uint64, error) {
	number := strings.TrimRight(text, "kKMGi")
	units := map[string]float64{"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
	unit, known := units[text[len(number):]]
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !known || n < 0 || n > 0 && n*unit < 1 || n*unit > math.MaxInt64/2 || math.IsNaN(n) {
		return 0, fmt.Errorf("%q is no rate: bytes a second, such as 200M or 50Mi, or 0 for no bound", text)
	}
	return uint64(n * unit), nil
}
