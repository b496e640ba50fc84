package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gpuvirt/client"
	"gpuvirt/internal/version"
)

const longRoot = `gpuvirt cuts the GPUs of this host into partitions and gives them to virtual
machines. It asks gpuvirtd, the daemon, to do so.

Data goes to the standard output, messages and progress to the standard error.

Exit status:
  0  done, or already as asked for
  1  failed
  2  the command line is wrong
  3  in conflict with something, busy, or no capacity left
  4  not ready: the daemon or the operation

Before something is lost you are asked, unless --yes is given. Where the standard input is no
terminal nobody is asked, and it is done; but for "gpuvirt migrate" with cutover, rollback,
fenced and delete, which take --yes there.

The daemon is asked at its socket. One on another host is asked with --url, and with
--token-file or --cert-file and --key-file to say who asks.`

// A cli is one run of the program.
type cli struct {
	streams
	output  string
	wait    bool
	noWait  bool
	timeout time.Duration
	dryRun  bool
	yes     bool

	flags  remote          // of the command line
	remote *client.Options // nil: the daemon is at the socket

	socketInEnv bool
	quiet       bool // a shell asks: nothing is said beside the answer

	started bool // the command line was understood
	made    *client.Client
}

// newRoot makes the tree of commands.
func newRoot(c *cli) *cobra.Command {
	root := &cobra.Command{
		Use:           "gpuvirt",
		Short:         "Cut GPUs into partitions for virtual machines",
		Long:          longRoot,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noSuchCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(formats, c.output) {
				return fmt.Errorf("unknown output format %q: use one of %s", c.output, strings.Join(formats, ", "))
			}
			if cmd.Flags().Changed("wait") && c.noWait {
				return errors.New("--wait and --no-wait contradict each other")
			}
			if c.timeout < 0 {
				return fmt.Errorf("the timeout %s is negative", c.timeout)
			}
			if cmd.Name() == "help" || cmd.HasParent() && cmd.Parent().Name() == "completion" || cmd.Annotations[offline] != "" {
				return nil
			}
			return c.connect(cmd)
		},
	}
	root.SetIn(c.in)
	root.SetOut(c.out) // before the completion command is made: it keeps it
	root.SetErr(c.err)
	c.socketInEnv = c.socket != ""
	if c.socket == "" {
		c.socket = client.DefaultSocket
	}
	flags := root.PersistentFlags()
	flags.StringVar(&c.socket, "socket", c.socket, "`path` of the daemon's socket (environment: GPUVIRT_SOCKET)")
	c.remoteFlags(root)
	flags.StringVarP(&c.output, "output", "o", "table", "`format` of the output: "+strings.Join(formats, ", "))
	flags.BoolVar(&c.wait, "wait", true, "wait until what was started is done")
	flags.BoolVar(&c.noWait, "no-wait", false, "return as soon as it is started")
	flags.DurationVar(&c.timeout, "timeout", 0, "how long to wait, such as 90s or 5m; 0: as long as it takes")
	flags.BoolVar(&c.dryRun, "dry-run", false, "only say what would be done")
	flags.BoolVarP(&c.yes, "yes", "y", false, "do not ask")
	fixed(root, "output", formats...)

	root.AddCommand(
		gpuCommand(c), profileCommand(c), migCommand(c), sriovCommand(c), vgpuCommand(c), partitionCommand(c), vmCommand(c), assessmentCommand(c), migrateCommand(c),
		attachCommand(c), applyCommand(c), detachCommand(c), adoptCommand(c), assignmentCommand(c), operationCommand(c),
		capacityCommand(c), eventsCommand(c), healthCommand(c), sleepCheckCommand(c), hookCommand(c), configCommand(c), tokenCommand(c), backupCommand(c), p2vCommand(c), versionCommand(c),
	)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	markStart(c, root)
	return root
}

// offline is the annotation of commands that need no daemon, on this host or another.
const offline = "offline"

// markStart notes for every command when it begins: an error before that is one
// of the command line.
func markStart(c *cli, cmd *cobra.Command) {
	if begin := cmd.RunE; begin != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			c.started = true
			return begin(cmd, args)
		}
	}
	for _, sub := range cmd.Commands() {
		markStart(c, sub)
	}
}

// group makes a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: noSuchCommand,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		DisableFlagsInUseLine: true,
	}
	cmd.AddCommand(commands...)
	return cmd
}

func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	message := fmt.Sprintf("unknown command %q", args[0])
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		message += ": did you mean " + strings.Join(near, " or ") + "?"
	}
	return errors.New(message)
}

// client returns the connection to the daemon, made once.
func (c *cli) client() *client.Client {
	switch {
	case c.made != nil:
	case c.remote != nil:
		c.made = client.New(*c.remote)
	default:
		c.made = client.New(client.Options{Socket: c.socket, UserAgent: "gpuvirt/" + version.String()})
	}
	return c.made
}

// waits reports whether to wait for what is started.
func (c *cli) waits() bool { return c.wait && !c.noWait }

// limited returns a context that ends after --timeout.
func (c *cli) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if c.timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, c.timeout)
}

// say writes a message for people.
func (c *cli) say(format string, args ...any) {
	fmt.Fprintln(c.err, clean(fmt.Sprintf(format, args...)))
}

// asks reports whether somebody can be asked, and wants to be.
func (c *cli) asks() bool { return c.inTerminal && !c.yes && !c.dryRun }

// confirm asks a person, if there is one. What runs unattended is not held up.
func (c *cli) confirm(ctx context.Context, format string, args ...any) error {
	if !c.asks() {
		return nil
	}
	fmt.Fprintf(c.err, "%s [y/N] ", clean(fmt.Sprintf(format, args...)))
	answer := make(chan string, 1)
	go func() { // ends with the program if nobody answers
		line, _ := bufio.NewReader(c.in).ReadString('\n')
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-ctx.Done():
		c.say("")
		return ctx.Err()
	case line := <-answer:
		if line == "y" || line == "yes" {
			return nil
		}
		return errors.New("nothing was done: it was not confirmed")
	}
}

// unattended ends the help of commands that are not carried out unless somebody is sure.
const unattended = `

You are asked first. Where nobody can be asked, as the standard input is no terminal, it takes --yes
(or --dry-run), and is else refused with exit status 2.`

// sure makes sure that something is wanted that nobody takes back: a person is asked, and where none is there
// --yes says so. The question is made when there is somebody to hear it.
func (c *cli) sure(cmd *cobra.Command, question func() (string, error)) error {
	switch {
	case c.yes:
		return nil
	case !c.inTerminal:
		return &usageError{
			message: "nothing was done: nobody can be asked here, as the standard input is no terminal; add --yes to have it done, or --dry-run to see what would be",
			command: cmd.CommandPath(),
		}
	}
	text, err := question()
	if err != nil {
		return err
	}
	return c.confirm(cmd.Context(), "%s", text)
}

// noDryRun refuses --dry-run where the daemon has none.
func (c *cli) noDryRun(cmd *cobra.Command) error {
	if c.dryRun {
		return &usageError{message: "this command has no --dry-run", command: cmd.CommandPath()}
	}
	return nil
}
