package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"gpuvirt/p2v/block"
	"gpuvirt/p2v/freeze"
)

const guardVerb = "freeze-guard"

// freezeCommand is what the daemon runs on a server for the last pass over its disks.
func freezeCommand(c *cli) *cobra.Command {
	var names []string
	cmd := &cobra.Command{
		Use: "freeze --disk NAME…", Short: "Let a daemon bring this server to rest, and back", Args: takes(0),
		Long: `Freeze the filesystems on disks of this server when asked on the standard input, and
thaw them. A daemon runs it over ssh for the last pass over the disks of a server that
moves; there is nothing in it for people.

It takes root. Services that are named are stopped before, and started again after that.
It thaws by itself when the standard input ends, when the time is over that it was given,
on a signal, and on whatever goes wrong; a second process does where this one is killed.
Only an order to power off, once it is acknowledged, is not taken back.`,
		Annotations: map[string]string{offline: "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.noDryRun(cmd); err != nil {
				return err
			}
			conn, err := stdio(c)
			if err != nil {
				return fmt.Errorf("cannot freeze: %w", err)
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			return freeze.Serve(ctx, conn, names, freeze.Config{Root: c.streams.inspect.Root, Guard: []string{"p2v", guardVerb}})
		},
	}
	cmd.Flags().StringArrayVar(&names, "disk", nil, "the `name` of a disk as the kernel has it, such as nvme0n1; more than once for several (required)")
	must(cmd.MarkFlagRequired("disk"))
	return cmd
}

// guardCommand is what freeze runs.
func guardCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: guardVerb, Short: "Thaw when what has frozen is killed", Args: takes(0), Hidden: true,
		Annotations: map[string]string{offline: "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.noDryRun(cmd); err != nil {
				return err
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			return freeze.Guard(ctx, freeze.Config{})
		},
	}
}

// untilSignal is a context that ends with the first signal that asks to end. None ends the
// process, not even the second: it has to thaw.
func untilSignal(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM)
	signal.Ignore(syscall.SIGPIPE)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case s := <-asked:
			cancel(fmt.Errorf("told to end by a signal: %v", s))
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-ended
		signal.Stop(asked)
	}
}

// stdio makes a connection of the standard input and output.
func stdio(c *cli) (net.Conn, error) {
	in, isFile := c.in.(*os.File)
	out, isAlso := c.out.(*os.File)
	if !isFile || !isAlso {
		return nil, errors.New("the standard input and output are no files")
	}
	return block.Stdio(in, out)
}
