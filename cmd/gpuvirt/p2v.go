package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"gpuvirt/internal/version"
	"gpuvirt/p2v/block"
	"gpuvirt/p2v/dirty"
	"gpuvirt/p2v/inspect"
	"gpuvirt/p2v/report"
	"gpuvirt/p2v/track"
	"gpuvirt/p2v/verify"
)

func p2vCommand(c *cli) *cobra.Command {
	return group("p2v", "What runs on a physical server whose workload is to move", inspectCommand(c), disksCommand(c), serveCommand(c), trackCommand(c), freezeCommand(c), guardCommand(c), runCommand(c))
}

// disksCommand is what the daemon runs on a server before anything else that has to do with its disks.
func disksCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "disks", Short: "Tell a daemon which disks this server has", Args: takes(0),
		Long: `Write on the standard output, as a line of JSON, which disks this server has now, what
its kernel calls them, and what they say of themselves. A daemon runs it over ssh each time
it reaches a server that moves, as names of disks may be others after a start; there is
nothing in it for people.`,
		Annotations: map[string]string{offline: "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.noDryRun(cmd); err != nil {
				return err
			}
			look, err := inspect.New(c.streams.inspect)
			if err != nil {
				return err
			}
			defer func() { _ = look.Close() }() // it was only read from
			return look.Present().Write(c.out)
		},
	}
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
			found, err := servedDisks(o, names)
			if err != nil {
				return err
			}
			var disks []block.Disk
			for _, d := range found {
				disks = append(disks, d.Disk)
			}
			conn, err := stdio(c)
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

// A servedDisk is a disk that is read, and its size in bytes.
type servedDisk struct {
	block.Disk

	Size int64
}

// servedDisks finds the disks by their names, with what tells each from all others.
func servedDisks(o inspect.Options, names []string) ([]servedDisk, error) {
	look, err := inspect.New(o)
	if err != nil {
		return nil, err
	}
	defer func() { _ = look.Close() }() // it was only read from
	all := look.Disks()
	var out []servedDisk
	for _, name := range names {
		i := slices.IndexFunc(all, func(d report.Disk) bool { return d.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("cannot serve %q: this server has no such disk", name)
		}
		d := all[i]
		out = append(out, servedDisk{block.Disk{Name: name, Path: "/dev/" + name, ID: d.Identity(), Serial: d.Serial, Model: d.Model}, int64(min(d.SizeBytes, math.MaxInt64))}) //nolint:gosec // bounded
	}
	return out, nil
}

// trackCommand is what the daemon runs on a server beside serve, for as long as it copies.
func runCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use: "run", Short: "Let a daemon run a program on this server", Args: takes(0), Hidden: true,
		Long: `Run the program that is named on the standard input, without a shell, and tell on the
standard output what came of it. A daemon runs it over ssh for the checks of a migration.`,
		Annotations: map[string]string{offline: "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.noDryRun(cmd); err != nil {
				return err
			}
			return verify.Serve(cmd.Context(), c.in, c.out)
		},
	}
}

func trackCommand(c *cli) *cobra.Command {
	var names []string
	var chunk int64
	cmd := &cobra.Command{
		Use: "track --disk NAME…", Short: "Tell a daemon what is written to disks of this server", Args: takes(0),
		Long: `Tell on the standard output, when asked on the standard input, which parts of disks
were written since the question before. A daemon runs it over ssh beside "gpuvirt p2v
serve", so that it reads only those; there is nothing in it for people.

It takes root and Linux 5.5 or newer. A small program of eBPF is called by the kernel for
each write that a disk has done; there is no module, nothing is written, and it ends with
the standard input. Where it cannot be had it says why, and the daemon reads all.`,
		Annotations: map[string]string{offline: "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.noDryRun(cmd); err != nil {
				return err
			}
			t, err := newTracker(cmd.Context(), c.streams.inspect, names, chunk)
			if err == nil {
				defer func() { _ = t.Close() }() // the kernel ends it with us, too
			}
			return track.Serve(struct {
				io.Reader
				io.Writer
			}{c.in, c.out}, t, int(chunk), err)
		},
	}
	cmd.Flags().StringArrayVar(&names, "disk", nil, "the `name` of a disk as the kernel has it, such as nvme0n1; more than once for several (required)")
	must(cmd.MarkFlagRequired("disk"))
	cmd.Flags().Int64Var(&chunk, "chunk-bytes", block.DefaultChunkSize, "`how many` bytes a part has, a power of two")
	return cmd
}

// A tracker tells what the kernel's tracker marks in chunks.
type tracker struct {
	*dirty.Tracker

	chunk int64
}

func newTracker(ctx context.Context, o inspect.Options, names []string, chunk int64) (tracker, error) {
	sys, err := os.OpenRoot(filepath.Join(cmp.Or(o.Root, "/"), "sys"))
	if err != nil {
		return tracker{}, err
	}
	disks, err := servedDisks(o, names)
	var tracked []dirty.Disk
	for _, d := range disks {
		t := dirty.Disk{Name: d.Name, Size: d.Size}
		var text []byte
		if text, err = sys.ReadFile("block/" + d.Name + "/dev"); err == nil {
			_, err = fmt.Sscanf(string(text), "%d:%d", &t.Major, &t.Minor)
		}
		if err != nil {
			break
		}
		tracked = append(tracked, t)
	}
	if err != nil {
		return tracker{}, errors.Join(err, sys.Close())
	}
	t, err := dirty.Start(ctx, sys, tracked, chunk)
	if err != nil {
		return tracker{}, errors.Join(err, sys.Close())
	}
	return tracker{t, chunk}, nil // it keeps sys
}

// Take is that of track.Tracker.
func (t tracker) Take(disk string) ([]block.Range, error) {
	chunks, err := t.Tracker.Take(disk)
	if err != nil {
		return nil, err
	}
	var out []block.Range
	for r := range chunks.Ranges() {
		out = append(out, block.Range{From: r.Offset / t.chunk, N: (r.Length + t.chunk - 1) / t.chunk})
	}
	return out, nil
}
