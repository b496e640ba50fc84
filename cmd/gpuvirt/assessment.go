package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gpuvirt/api"
	"gpuvirt/client"
	"gpuvirt/p2v/report"
)

var assessmentTable = table[api.Assessment]{
	things: "assessments",
	name:   func(a api.Assessment) string { return a.Name },
	columns: []column[api.Assessment]{
		{title: "NAME", value: func(a api.Assessment) string { return a.Name }},
		{title: "SERVER", value: serverOf},
		{title: "STATE", value: func(a api.Assessment) string { return a.State }},
		{title: "WATCHED", value: watched},
		{title: "HEARD", value: func(a api.Assessment) string { return whenever(a.Heard) }},
		{title: "CREATED", wide: true, value: func(a api.Assessment) string { return when(a.Created) }},
		{title: "CREATED BY", wide: true, value: func(a api.Assessment) string { return a.CreatedBy }},
	},
}

func serverOf(a api.Assessment) string {
	if a.Hostname != "" || a.Source == nil {
		return orDash(a.Hostname)
	}
	return a.Source.Address
}

// watched says for how long the GPUs were watched, and of how long.
func watched(a api.Assessment) string {
	seen := (time.Duration(a.WatchedSeconds) * time.Second).String()
	switch {
	case a.WindowSeconds == 0 && a.Samples == 0:
		return "-"
	case a.State == "done" || a.WindowSeconds == 0:
		return seen
	}
	return seen + " of " + (time.Duration(a.WindowSeconds) * time.Second).String()
}

func assessmentNames(ctx context.Context, c *cli) ([]string, error) {
	all, err := c.client().Assessments(ctx, client.ListOptions{})
	return names(all, assessmentTable.name), err
}

func assessmentCommand(c *cli) *cobra.Command {
	show := completeArgs(c, &cobra.Command{
		Use: "show NAME", Short: "Show one assessment", Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := c.client().Assessment(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printOne(c, a, a.Name, append(assessmentFields(a), findingFields(a.Findings)...))
		},
	}, 1, assessmentNames)
	return group("assessment", "Looks at physical servers whose workload is to move into a VM",
		listCommand(c, assessmentTable, func(ctx context.Context, cl *client.Client, o client.ListOptions) ([]api.Assessment, error) {
			return cl.Assessments(ctx, o)
		}), show, assessmentCreate(c), assessmentFinish(c), assessmentInspection(c), assessmentDelete(c))
}

func assessmentFields(a api.Assessment) []field {
	fields := []field{
		{name: "Name", value: a.Name},
		{name: "State", value: a.State},
		{name: "Hostname", value: orDash(a.Hostname)},
	}
	if s := a.Source; s != nil {
		fields = append(
			fields,
			field{name: "Source", value: s.User + "@" + net.JoinHostPort(s.Address, strconv.Itoa(s.Port))},
			field{name: "Host key", value: s.HostKey},
			field{name: "Credential", value: s.Credential},
		)
	}
	return append(
		fields,
		field{name: "Watched", value: watched(a)},
		field{name: "Samples", value: strconv.Itoa(a.Samples)},
		field{name: "Heard", value: orDash(whenever(a.Heard))},
		field{name: "Operation", value: orDash(a.Operation)},
		field{name: "Created", value: when(a.Created)},
		field{name: "Created by", value: a.CreatedBy},
	)
}

func assessmentCreate(c *cli) *cobra.Command {
	var from, file string
	var source api.Source
	var window, interval time.Duration
	cmd := &cobra.Command{
		Use: "create NAME --source USER@HOST | --file FILE", Short: "Look at a physical server, or judge an inspection", Args: takes(1),
		Long: `Look at a physical server: the daemon reaches it by ssh, brings this program into
its memory, has it look and then watch the GPUs for a while, and takes it away again.
Nothing is installed there, and nothing is written to its disks. A connection that is
cut is made again, and the watching goes on.

The server is known by the fingerprint of its key. It prints it with
  ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub
The daemon shows itself with a private key that lies in its folder of credentials
(setting p2v.credentials) and has no passphrase.

Where there is no path from here to the server, run "gpuvirt p2v inspect" there, carry
the file here and give it with --file.`,
		Example: `  gpuvirt assessment create gpu7 --source root@gpu7.bank.example --credential gpu7 \
    --host-key SHA256:jjB1Zc0nMUMnVdNSdEWzjQKkhB3Zc3i0bPBnEbyzpX8 --window 24h
  gpuvirt assessment create gpu7 --file gpu7.json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			want := api.AssessmentRequest{Name: args[0]}
			if (from == "") == (file == "") {
				return &usageError{message: "either --source or --file must be given", command: cmd.CommandPath()}
			}
			for _, name := range []string{"host-key", "credential", "sudo", "window", "interval"} {
				switch changed := cmd.Flags().Changed(name); {
				case changed && file != "":
					return &usageError{message: "--" + name + " is of --source: an inspection that is carried here was made already", command: cmd.CommandPath()}
				case changed && name == "interval" && window == 0:
					return &usageError{message: "--interval is of --window: without one nothing is looked at again", command: cmd.CommandPath()}
				}
			}
			if file != "" {
				r, err := readFrom(c, file, report.Read)
				if err != nil {
					return err
				}
				want.Inspection = &r
			} else {
				if err := splitSource(from, &source); err != nil {
					return &usageError{message: err.Error(), command: cmd.CommandPath()}
				}
				want.Source = &source
				want.WindowSeconds = int(window.Seconds())
				if window > 0 {
					want.IntervalSeconds = int(interval.Seconds())
				}
			}
			if c.dryRun {
				return c.showPlan(c.client().PlanCreateAssessment(ctx, want))
			}
			a, op, err := c.client().CreateAssessment(ctx, want)
			if err != nil {
				return err
			}
			if op != nil {
				if !c.waits() {
					return c.printStarted(*op)
				}
				if _, err := c.await(ctx, *op); err != nil {
					return err
				}
				made, err := c.client().Assessment(ctx, want.Name)
				if err != nil {
					return err
				}
				a = &made
			}
			return printRow(c, assessmentTable, *a)
		},
	}
	f := cmd.Flags()
	f.StringVar(&from, "source", "", "the `server`, as [user@]host[:port]; the user is root and the port 22 if not given")
	f.StringVar(&source.HostKey, "host-key", "", "the `fingerprint` of the server's key, SHA256:…")
	f.StringVar(&source.Credential, "credential", "", "the `name` of a private key in the daemon's folder of credentials")
	f.BoolVar(&source.Sudo, "sudo", false, "have the inspector run by sudo, which must not ask for a password")
	f.DurationVar(&window, "window", 0, "for `how long` the GPUs are watched; a day tells more than an hour")
	f.DurationVar(&interval, "interval", 5*time.Second, "how `often` they are looked at meanwhile")
	f.StringVarP(&file, "file", "f", "", "the `file` that \"gpuvirt p2v inspect\" wrote there, or - for the standard input")
	return cmd
}

// splitSource reads [user@]host[:port].
func splitSource(text string, s *api.Source) error {
	rest := text
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		s.User, rest = rest[:i], rest[i+1:]
	}
	s.Address = rest
	switch host, port, err := net.SplitHostPort(rest); {
	case err == nil:
		n, err := strconv.Atoi(port)
		if err != nil || n < 1 {
			return fmt.Errorf("--source %q: %q is no port", text, port)
		}
		s.Address, s.Port = host, n
	case strings.HasPrefix(rest, "[") && strings.HasSuffix(rest, "]"):
		s.Address = rest[1 : len(rest)-1]
	}
	if s.Address == "" {
		return fmt.Errorf("--source %q names no server", text)
	}
	return nil
}

func assessmentFinish(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: "finish NAME", Short: "End the watching early, and keep what was seen", Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, name := cmd.Context(), args[0]
			if c.dryRun {
				return c.showPlan(c.client().PlanFinishAssessment(ctx, name))
			}
			a, err := c.client().FinishAssessment(ctx, name)
			if err != nil {
				return err
			}
			return printRow(c, assessmentTable, a)
		},
	}, 1, assessmentNames)
}

func assessmentInspection(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: "inspection NAME", Short: "Print what was seen of the server, to be kept or given to another host", Args: takes(1),
		Long: `Print the document that "gpuvirt p2v inspect" wrote on the server, as JSON, which
"gpuvirt assessment create --file" reads on any host, or with -o yaml as YAML.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := c.client().Inspection(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			r.Clean()
			return c.encode(r)
		},
	}, 1, assessmentNames)
}

func assessmentDelete(c *cli) *cobra.Command {
	return completeArgs(c, &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Forget an assessment", Args: takes(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, name := cmd.Context(), args[0]
			if c.dryRun {
				return c.showPlan(c.client().PlanDeleteAssessment(ctx, name))
			}
			if err := c.confirm(ctx, "Forget assessment %s?", name); err != nil {
				return err
			}
			a, err := c.client().DeleteAssessment(ctx, name)
			if err != nil {
				return err
			}
			return printRow(c, assessmentTable, a)
		},
	}, 1, assessmentNames)
}
