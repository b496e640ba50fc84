// Command simsource stands in for a physical server whose workload is to move, for tests
// that are not written in Go: a daemon reaches it over ssh, and what is run there in place
// of the inspector tells of a server that is not this machine, with a disk that is a file.
//
//	simsource DIR p2v inspect --stream …   prints the inspection DIR/inspection.json, and watches GPUs that do nothing
//	simsource DIR p2v serve --disk NAME    serves the file DIR/NAME as the disk of that name
//
// All else fails, so that what was written is found by reading. A daemon finds it by a
// script that its setting p2v.inspector names.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"gpuvirt/p2v/block"
	"gpuvirt/p2v/report"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "simsource:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 4 || args[1] != "p2v" {
		return errors.New("it takes the folder of a server, p2v, a command and its arguments")
	}
	f, err := os.Open(filepath.Join(args[0], "inspection.json"))
	if err != nil {
		return err
	}
	seen, err := report.Read(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	switch args[2] {
	case "inspect":
		return inspect(seen, args[3:])
	case "serve":
		return serve(args[0], seen.Disks)
	default:
		return fmt.Errorf("it does not %s", args[2])
	}
}

// inspect ends at once where there is no window.
func inspect(seen report.Report, args []string) error {
	flags := flag.NewFlagSet("inspect", flag.ContinueOnError)
	window := flags.Duration("window", 0, "")
	flags.Duration("interval", 0, "")
	flags.Bool("stream", false, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := (report.Line{Report: &seen}).Write(os.Stdout); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), *window)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return report.Line{End: true}.Write(os.Stdout)
		case now := <-tick.C:
			// Where nobody hears it any more, this ends it.
			seen := report.Usage{Start: now.Add(-time.Second).UTC(), End: now.UTC(), IntervalSeconds: 1, Samples: 1, Cost: report.GPUCost{WindowSeconds: 1}}
			if err := (report.Line{Usage: &seen}).Write(os.Stdout); err != nil {
				return err
			}
		}
	}
}

func serve(dir string, disks []report.Disk) error {
	served := make([]block.Disk, 0, len(disks))
	for _, d := range disks {
		served = append(served, block.Disk{Name: d.Name, Path: filepath.Join(dir, d.Name), ID: d.Identity()})
	}
	conn, err := block.Stdio(os.Stdin, os.Stdout)
	if err != nil {
		return err
	}
	return block.Serve(context.Background(), conn, served, slog.New(slog.NewTextHandler(os.Stderr, nil)))
}
