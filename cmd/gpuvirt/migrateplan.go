package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"gpuvirt/api"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/move"
)

// copyFlags say how disks are copied.
type copyFlags struct {
	bandwidth   string
	every       time.Duration
	connections int
	compress    bool
}

func (f *copyFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.bandwidth, "bandwidth", "", "the most that is copied, in `bytes` a second, such as 200M; 0: as much as there is")
	cmd.Flags().DurationVar(&f.every, "every", 10*time.Minute, "`how long` from one pass to the next")
	cmd.Flags().IntVar(&f.connections, "connections", move.DefaultConnections, "`how many` connections to the server at once")
	cmd.Flags().BoolVar(&f.compress, "compress", false, "have the server compress, for slow networks")
}

// request is what was asked for, nil: nothing.
func (f *copyFlags) request(cmd *cobra.Command) (*api.CopyRequest, error) {
	var out api.CopyRequest
	flags := cmd.Flags()
	if flags.Changed("bandwidth") {
		n, err := parseRate(f.bandwidth)
		if err != nil {
			return nil, &usageError{message: "--bandwidth: " + err.Error(), command: cmd.CommandPath()}
		}
		out.BandwidthBytesPerSecond = &n
	}
	wrong := func(format string, args ...any) (*api.CopyRequest, error) {
		return nil, &usageError{message: fmt.Sprintf(format, args...), command: cmd.CommandPath()}
	}
	if flags.Changed("connections") && (f.connections < 1 || f.connections > move.MaxConnections) {
		return wrong("--connections %d: it must be 1 to %d", f.connections, move.MaxConnections)
	}
	if flags.Changed("every") && (f.every < move.MinInterval || f.every > move.MaxInterval) {
		return wrong("--every %s: it must be %s to %s", f.every, "10s", "24h")
	}
	if flags.Changed("every") {
		n := int(f.every.Seconds())
		out.IntervalSeconds = &n
	}
	if flags.Changed("connections") {
		out.Connections = &f.connections
	}
	if flags.Changed("compress") {
		out.Compress = &f.compress
	}
	if out == (api.CopyRequest{}) {
		return nil, nil //nolint:nilnil // nothing is asked for
	}
	return &out, nil
}

// planFlags are what a person asks of a plan.
type planFlags struct {
	copyFlags
	fromFlags

	assessment string
	profiles   []string
	needs      []string
	waivers    []string
	plan       api.PlanRequest
	downtime   time.Duration
	memory     string
}

func (f *planFlags) add(c *cli, cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.assessment, "assessment", "", "the `assessment` of the server (required)")
	must(cmd.MarkFlagRequired("assessment"))
	completeFlag(c, cmd, "assessment", assessmentNames)
	flags.StringArrayVar(&f.profiles, "profile", nil, "the `[gpu=]profile` to take: for a GPU of the server by its address, or beside those for what was seen; more than once for several")
	flags.StringArrayVar(&f.needs, "need", nil, "what the workload of a GPU of the server needs, in place of what was measured, as `gpu=need`,…: memory:20GiB, sms:30 (multiprocessors), class:compute or class:graphics, and on:0000:43:00.0 for a GPU of this host; more than once for several")
	completeNeed(c, cmd)
	flags.StringVar(&f.plan.Prefer, "prefer", "", "the way of `sharing` that comes first: card, mig-backed or time-sliced")
	fixed(cmd, "prefer", "card", "mig-backed", "time-sliced")
	flags.StringVar(&f.plan.GuestDriver, "guest-driver", "", "the `version` of the vGPU guest driver that is ready")
	flags.BoolVar(&f.plan.LicenceToken, "licence-token", false, "a licence token for the guest is ready")
	flags.StringVar(&f.memory, "memory", "", "the `bytes` of memory of the VM, such as 64Gi; as much as the server has if not given")
	flags.IntVar(&f.plan.Threads, "threads", 0, "`how many` threads the VM's processor has; as many as the server has if not given")
	flags.StringSliceVar(&f.plan.Disks, "disk", nil, "the `disks` to move; all that are not removable if not given")
	flags.DurationVar(&f.downtime, "downtime", 0, "`how long` the server may be away while it is cut over")
	flags.StringArrayVar(&f.waivers, "waive", nil, "a blocker that does not count, as `id=reason`; more than once for several")
	f.copyFlags.add(cmd)
	f.fromFlags.add(cmd)
}

func (f *planFlags) request(cmd *cobra.Command, name string) (api.MigrationRequest, error) {
	want := api.MigrationRequest{Name: name, Assessment: f.assessment}
	how, err := f.copyFlags.request(cmd)
	if err != nil {
		return want, err
	}
	want.Copy = how
	want.Certificates = f.certificates
	if want.DisksFrom, err = f.fromFlags.request(cmd); err != nil {
		return want, err
	}
	p := f.plan
	p.DowntimeSeconds = f.downtime.Seconds()
	if f.memory != "" {
		if p.MemoryBytes, err = parseBytes(f.memory); err != nil {
			return want, &usageError{message: "--memory " + err.Error(), command: cmd.CommandPath()}
		}
	}
	for _, text := range f.profiles {
		one := api.PlanPartitionRequest{Profile: text}
		if source, profile, named := strings.Cut(text, "="); named {
			one.Source, one.Profile = source, profile
			if profile == "none" {
				one.Profile, one.None = "", true
			}
		}
		p.Partitions = append(p.Partitions, one)
	}
	if p.Partitions, err = addNeeds(p.Partitions, f.needs); err != nil {
		return want, &usageError{message: err.Error(), command: cmd.CommandPath()}
	}
	for _, text := range f.waivers {
		id, reason, found := strings.Cut(text, "=")
		if !found || id == "" || reason == "" {
			return want, &usageError{message: fmt.Sprintf("--waive %q: it takes a blocker and why it does not count, as id=reason", text), command: cmd.CommandPath()}
		}
		p.Waivers = append(p.Waivers, api.WaiverRequest{ID: id, Reason: reason})
	}
	want.Plan = &p
	return want, nil
}

// startFlags are what a person asks of a migration: of its start, or of what that would do.
type startFlags struct {
	planFlags
	vmFlags
	leaseFlag
	keyFlags
}

func (f *startFlags) add(c *cli, cmd *cobra.Command) {
	f.planFlags.add(c, cmd)
	f.vmFlags.add(c, cmd)
	f.leaseFlag.add(cmd, "that of the host's setting p2v.lease")
	f.keyFlags.add(cmd)
}

func (f *startFlags) request(cmd *cobra.Command, name string) (api.MigrationRequest, error) {
	want, err := f.planFlags.request(cmd, name)
	if err == nil {
		want.VM, err = f.vmFlags.request(cmd)
	}
	want.LeaseSeconds = f.seconds(cmd)
	if err == nil {
		want.Keys, err = f.keyFlags.request(cmd)
	}
	return want, err
}

func migratePlan(c *cli) *cobra.Command {
	var f startFlags
	cmd := &cobra.Command{
		Use: "plan [NAME] --assessment NAME", Short: "Say how a server would be moved to this host, and what is in the way", Args: takesAtMost(1),
		Long: `Say how a server that was assessed would be moved to this host as it is now: which
partitions fit, and why the others do not (-o wide tells of each), what changes in the guest, what
it takes of room and time, and what stands in the way, each with its remedy. Nothing is
reserved or changed. Exit status 1 says that the plan is blocked; where "gpuvirt migrate
start" would refuse for another reason, that is told, and is an error, too.

Of a migration that was begun, NAME alone plans anew with what was asked for.`,
		Example: `  gpuvirt migrate plan --assessment gpu7
  gpuvirt migrate plan --assessment gpu7 --profile 0000:41:00.0=H100-2-20C --guest-driver 580.95.05 --licence-token
  gpuvirt migrate plan --assessment gpu7 --need 0000:41:00.0=memory:20GiB,sms:30
  gpuvirt migrate plan gpu7`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, given := cmd.Context(), ""
			cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
				if f.Changed {
					given = f.Name
				}
			})
			switch {
			case f.assessment == "" && len(args) == 1 && given != "":
				return &usageError{message: "--" + given + " is of --assessment: a migration is planned anew with what was asked for", command: cmd.CommandPath()}
			case f.assessment == "" && len(args) == 1:
				p, err := c.client().MigrationPlan(ctx, args[0])
				return c.showMigrationPlan(p, err, nil)
			case f.assessment == "":
				return &usageError{message: "either --assessment or the name of a migration must be given", command: cmd.CommandPath()}
			}
			name := "" // a plan needs none
			if len(args) == 1 {
				name = args[0]
			}
			want, err := f.request(cmd, name)
			if err != nil {
				return err
			}
			p, err := c.client().PlanCreateMigration(ctx, want)
			return c.showMigrationPlan(p, err, askedFor(f.profiles))
		},
	}
	f.add(c, cmd)
	delete(cmd.Flag("assessment").Annotations, cobra.BashCompOneRequiredFlag)
	return completeArgs(c, cmd, 1, migrationNames)
}

// takesAtMost makes a check that there are no more than n arguments.
func takesAtMost(n int) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) > n {
			return fmt.Errorf("unexpected argument %q", args[n])
		}
		return nil
	}
}

// blockedError ends a command whose plan cannot be carried out: it was shown why.
type blockedError struct{}

func (blockedError) Error() string { return "the plan is blocked" }

// showMigrationPlan shows a plan. A refusal for another reason than the plan's is an error, too.
func (c *cli) showMigrationPlan(p api.MigrationPlan, err error, named namedProfiles) error {
	if err != nil {
		return err
	}
	state := string(p.Verdict.State)
	if p.Problem != nil && p.Verdict.State != assess.Blocked {
		state = "refused"
	}
	if err := printOne(c, p, state, planFields(p, named, c.output == "wide")); err != nil {
		return err
	}
	if p.Problem != nil {
		return p.Problem
	}
	if p.Verdict.State == assess.Blocked {
		return blockedError{}
	}
	return nil
}

func planFields(p api.MigrationPlan, named namedProfiles, wide bool) []field {
	verdict := p.Verdict.Text
	if p.Problem != nil && p.Verdict.State != assess.Blocked {
		verdict = "Refused: " + p.Problem.Detail
	}
	fields := []field{
		{name: "Verdict", value: verdict},
		{name: "Server", value: p.Assessment.Hostname},
	}
	if p.Problem != nil && p.Verdict.State == assess.Blocked {
		fields = append(fields, field{name: "Besides", value: p.Problem.Detail})
	}
	for _, fit := range p.Fittings {
		fields = append(fields, fittingFields(fit, named, wide)...)
	}
	e := p.Estimates
	fields = append(
		fields,
		field{name: "Room", value: fmt.Sprintf("%s: %s", size(e.DiskBytes), e.DiskBasis)},
		field{name: "First copy", value: between(e.CopySeconds)},
		field{name: "Downtime", value: between(e.DowntimeSeconds)},
		field{name: "Blockers", below: concernRows(p.Verdict.Blockers)},
		field{name: "Warnings", below: concernRows(p.Verdict.Warnings)},
	)
	var waived, changes, drivers [][]string
	for _, w := range p.Verdict.Waived {
		waived = append(waived, []string{w.Concern.ID, w.Concern.Title, "waived by " + w.Waiver.By + ": " + w.Waiver.Reason})
	}
	for _, d := range p.Drivers {
		drivers = append(drivers, []string{string(d.GPU), string(d.State), d.Why})
	}
	for _, ch := range p.Changes {
		who := "gpuvirt"
		if !ch.Automatic {
			who = "you"
		}
		changes = append(changes, []string{string(ch.When), who, ch.What})
	}
	return append(
		fields,
		field{name: "Waived", below: waived},
		field{name: "Drivers", below: drivers},
		field{name: "Changes in the guest", below: changes},
	)
}

// fittingFields tell which partition is taken for one GPU of the source, and why none of the
// others is.
func fittingFields(f assess.Fitting, named namedProfiles, wide bool) []field {
	what := f.Need.Source.PCI
	if what == "" {
		what = "beside"
	} else if f.Need.Source.Model != "" {
		what += " (" + f.Need.Source.Model + ")"
	}
	switch {
	case f.Choice == nil && !f.Need.Required:
		return []field{{name: "For " + what, value: "nothing is needed"}}
	case f.Choice == nil:
		what += ": nothing fits"
	default:
		what += ": " + f.Choice.Profile + " on " + string(f.Choice.GPU)
	}
	var rows [][]string
	for _, l := range f.Need.Explanation {
		rows = append(rows, []string{"need", l.Text})
	}
	if f.Choice != nil {
		rows = append(rows, []string{"choice", f.Choice.Reasoning})
	}
	return []field{{name: "For " + what, below: append(rows, candidateRows(f, named, wide)...)}}
}

// between writes an estimate, to the second: nobody knows it better.
func between(r assess.Range) string {
	from, to := orDash(seconds(math.Ceil(r.From))), orDash(seconds(math.Ceil(r.To)))
	text := from
	if to != from {
		text += " to " + to
	}
	return text + ": " + r.Basis
}

// concernRows list concerns: what is, what it was seen by, and what to do.
func concernRows(all []assess.Concern) (rows [][]string) {
	for _, k := range all {
		rows = append(rows, []string{k.ID, k.Title + ". " + k.Why})
		for _, e := range k.Evidence {
			rows = append(rows, []string{"", "  " + e})
		}
		rows = append(rows, []string{"", "  → " + k.Remedy})
	}
	return rows
}

// findingFields tell what follows from an inspection.
func findingFields(f *assess.Assessment) []field {
	if f == nil {
		return nil
	}
	var work, needs [][]string
	for _, w := range f.Workloads {
		work = append(work, []string{w.Kind, w.Name, strings.Join(w.GPUs, ", "), orDash(size(max(w.PeakBytes, w.MemoryBytes))), strings.Join(w.Frameworks, ", ")})
	}
	for _, n := range f.Needs {
		row := []string{n.Source.PCI, n.Source.Model, "nothing"}
		if n.Required {
			row[2] = orDash(size(n.MemoryBytes)) + " by " + string(n.MemoryBasis)
			if n.SMs > 0 {
				row[2] += ", " + strconv.Itoa(n.SMs) + " SMs by " + string(n.ComputeBasis)
			}
			if n.WholeGPU {
				row[2] += ", the whole GPU"
			}
		}
		needs = append(needs, row)
	}
	return []field{{name: "Workloads", below: work}, {name: "Needs", below: needs}, {name: "Concerns", below: severityRows(f.Concerns)}}
}

func severityRows(all []assess.Concern) (rows [][]string) {
	for _, k := range all {
		rows = append(rows, []string{string(k.Severity), k.ID, k.Title})
	}
	return rows
}
