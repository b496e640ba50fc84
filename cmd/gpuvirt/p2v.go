package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"gpuvirt/internal/version"
	"gpuvirt/p2v/block"
	"gpuvirt/p2v/inspect"
	"gpuvirt/p2v/report"
)

func p2vCommand(c *cli) *cobra.Command {
	return group("p2v", "What runs on a physical server whose workload is to move", inspectCommand(c), serveCommand(c))
}

// serveCommand is what the daemon runs on a server whose disks it copies.
func serveCommand(c *cli) *cobra.Command {
	var names []string
	cmd := &cobra.Command{
		Use: "serve --disk NAME…", Short: "Let a daemon read disks of this server", Args: takes(0),
		Long: `Answer questions about disks of this server on the standard input and output: what is
in which part of them, and what has changed. A daemon runs it over ssh to copy the disks
of a server that moves; there is nothing in it for people.

It opens the disks that it is given for reading only, and reads past the page cache, so
that the server keeps its own. It ends with its standard input.`,
		Annotations: map[string]string{offline: "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.noDryRun(cmd); err != nil {
				return err
			}
			o := c.streams.inspect
			o.Version = version.String()
			disks, err := servedDisks(o, names)
			if err != nil {
				return err
			}
			in, isFile := c.in.(*os.File)
			out, isAlso := c.out.(*os.File)
			if !isFile || !isAlso {
				return errors.New("cannot serve: the standard input and output are no files")
			}
			conn, err := block.Stdio(in, out)
			if err != nil {
				return fmt.Errorf("cannot serve: %w", err)
			}
			inspect.GiveWay()
			return block.Serve(cmd.Context(), conn, disks, slog.New(slog.NewTextHandler(c.err, &slog.HandlerOptions{Level: slog.LevelWarn})))
		},
	}
	cmd.Flags().StringArrayVar(&names, "disk", nil, "the `name` of a disk as the kernel has it, such as nvme0n1; more than once for several (required)")
	must(cmd.MarkFlagRequired("disk"))
	return cmd
}

// servedDisks finds the disks by their names, with what tells each from all others.
func servedDisks(o inspect.Options, names []string) ([]block.Disk, error) {
	look, err := inspect.New(o)
	if err != nil {
		return nil, err
	}
	defer func() { _ = look.Close() }() // it was only read from
	all := look.Disks()
	var out []block.Disk
	for _, name := range names {
		i := slices.IndexFunc(all, func(d report.Disk) bool { return d.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("cannot serve %q: this server has no such disk", name)
		}
		d := all[i]
		out = append(out, block.Disk{Name: name, Path: "/dev/" + name, ID: d.Identity(), Serial: d.Serial, Model: d.Model})
	}
	return out, nil
}
