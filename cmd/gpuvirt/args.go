package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gpuvirt/api"
	"gpuvirt/client"
)

// completionTime is how long a shell's completion may take.
const completionTime = 2 * time.Second

// A lister gives the names that may stand somewhere on the command line.
type lister func(ctx context.Context, c *cli) ([]string, error)

func gpuIDs(ctx context.Context, c *cli) ([]string, error) {
	gpus, err := c.client().GPUs(ctx, client.ListOptions{})
	return names(gpus, gpuTable.name), err
}

func vmNames(ctx context.Context, c *cli) ([]string, error) {
	vms, err := c.client().VMs(ctx, client.ListOptions{})
	return names(vms, vmTable.name), err
}

func partitionIDs(ctx context.Context, c *cli) ([]string, error) {
	partitions, err := c.client().Partitions(ctx, client.ListOptions{})
	return names(partitions, partitionTable.name), err
}

func assignmentNames(ctx context.Context, c *cli) ([]string, error) {
	assignments, err := c.client().Assignments(ctx, client.ListOptions{})
	return names(assignments, assignmentTable.name), err
}

func operationIDs(ctx context.Context, c *cli) ([]string, error) {
	operations, err := c.client().Operations(ctx, client.ListOptions{})
	return names(operations, operationTable.name), err
}

func profileNames(ctx context.Context, c *cli) ([]string, error) {
	capacity, err := c.client().Capacity(ctx, "")
	return names(capacity.Profiles, func(p api.ProfileCapacity) string { return p.Profile }), err
}

func names[T any](items []T, name func(T) string) []string {
	var out []string
	for _, item := range items {
		out = append(out, name(item))
	}
	return out
}

// takes makes a check that there are just n arguments: those that the command's
// Use names.
func takes(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > n {
			return fmt.Errorf("unexpected argument %q", args[n])
		}
		return takesAtLeast(n)(cmd, args)
	}
}

// takesAtLeast makes a check that there are n arguments or more.
func takesAtLeast(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < n {
			return fmt.Errorf("missing argument: %s", strings.Fields(cmd.Use)[1+len(args)])
		}
		return nil
	}
}

// completeArgs lets a shell complete up to most arguments; 0: any number.
func completeArgs(c *cli, cmd *cobra.Command, most int, list lister) *cobra.Command {
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return complete(cmd, c, list)
	}
	return cmd
}

// completeFlag lets a shell complete a flag's value.
func completeFlag(c *cli, cmd *cobra.Command, flag string, list lister) {
	must(cmd.RegisterFlagCompletionFunc(flag,
		func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return complete(cmd, c, list)
		}))
}

func complete(cmd *cobra.Command, c *cli, list lister) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	c.quiet = true
	if err := c.connect(cmd); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	found, err := list(ctx, c)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

// fixed says which values a flag can have.
func fixed(cmd *cobra.Command, flag string, values ...string) {
	must(cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)))
}

// must is for what can only fail by a mistake in this program.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// filterFlag adds --filter to a command that lists.
func filterFlag(cmd *cobra.Command, filters *[]string) {
	cmd.Flags().StringArrayVar(filters, "filter", nil, "only those with this `field=value`, such as state=running; may be repeated")
}

// listOptions reads what --filter says.
func listOptions(filters []string) (client.ListOptions, error) {
	o := client.ListOptions{Filter: map[string]string{}}
	for _, f := range filters {
		field, value, found := strings.Cut(f, "=")
		if !found || field == "" {
			return o, &usageError{message: fmt.Sprintf("--filter %q is not of the form field=value", f), command: "gpuvirt"}
		}
		o.Filter[field] = value
	}
	return o, nil
}

// listCommand makes "<things> list".
func listCommand[T any](
	c *cli, t table[T], list func(context.Context, *client.Client, client.ListOptions) ([]T, error),
) *cobra.Command {
	var filters []string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the " + t.things, Args: takes(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := listOptions(filters)
			if err != nil {
				return err
			}
			items, err := list(cmd.Context(), c.client(), o)
			if err != nil {
				return err
			}
			return printList(c, t, items)
		},
	}
	filterFlag(cmd, &filters)
	return cmd
}
