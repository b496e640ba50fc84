// Command simsource stands in for a physical server whose workload is to move, for tests
// that are not written in Go: a daemon reaches it over ssh, and what is run there in place
// of the inspector tells of a server that is not this machine, with a disk that is a file.
//
//	simsource DIR p2v inspect --stream …   prints the inspection DIR/inspection.json, and watches GPUs that do nothing
//	simsource DIR p2v disks                prints which disks the inspection has
//	simsource DIR p2v serve --disk NAME    serves the file DIR/NAME as the disk of that name
//	simsource DIR p2v freeze --disk NAME   comes to rest, which nothing notices, and is off where it is told to
//	simsource DIR p2v run                  runs a program of this machine, for the checks before
//	simsource DIR new INSPECTION           a new server like that, with one small disk, and the script DIR/inspector
//	simsource DIR cable LISTEN CONNECT     passes connections from one address to another, such as that of an sshd
//
// The rest of p2v fails, so that what was written is found by reading. A daemon finds it by the
// script, which its setting p2v.inspector names, and reaches it by the cable: while the server
// is off, which is while there is a file DIR/off, the cable is dead. What the server was told
// to do to services is in DIR/services.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"gpuvirt/p2v/block"
	"gpuvirt/p2v/report"
	"gpuvirt/p2v/verify"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "simsource:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[1] == "new":
		return create(args[0], args[2])
	case len(args) == 4 && args[1] == "cable":
		return cable(filepath.Join(args[0], off), args[2], args[3])
	case len(args) < 3 || args[1] != "p2v":
		return errors.New("it takes the folder of a server, p2v, a command and its arguments")
	}
	seen, err := read(filepath.Join(args[0], inspection))
	if err != nil {
		return err
	}
	switch args[2] {
	case "inspect":
		return inspect(seen, args[3:])
	case "disks":
		return present(seen)
	case "serve":
		return serve(args[0], seen.Disks)
	case "freeze":
		return rest(args[0], seen)
	case "run":
		return verify.Serve(context.Background(), os.Stdin, os.Stdout)
	default:
		return fmt.Errorf("it does not %s", args[2])
	}
}

// inspection is the file with what an inspector would see.
const inspection = "inspection.json"

func read(path string) (report.Report, error) {
	f, err := os.Open(path) //nolint:gosec // of a test
	if err != nil {
		return report.Report{}, err
	}
	seen, err := report.Read(f)
	return seen, errors.Join(err, f.Close())
}

const diskBytes, usedBytes = 16 << 20, 1 << 20

// create makes a server small enough for any host, with nothing that is in the way of a move.
func create(dir, like string) error {
	seen, err := read(like)
	if err != nil {
		return err
	}
	if len(seen.Disks) == 0 {
		return fmt.Errorf("there is no disk in %q", like)
	}
	seen.Disks = seen.Disks[:1]
	disk := &seen.Disks[0]
	disk.Name, disk.SizeBytes = "sda", diskBytes
	seen.Memory.HugepagesBytes, seen.CPU.Flags, seen.Services = 0, []string{}, []report.Service{}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	text, err := json.Marshal(seen)
	if err != nil {
		return err
	}
	used := make([]byte, usedBytes)
	_, _ = rand.Read(used) // it does not fail
	program, err := os.Executable()
	if err != nil {
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	script := fmt.Sprintf("#!/bin/sh\nexec '%s' '%s' \"$@\"\n", program, dir)
	data := filepath.Join(dir, disk.Name)
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "inspector"), []byte(script), 0o700), //nolint:gosec // it is run
		os.WriteFile(filepath.Join(dir, inspection), text, 0o600),
		os.WriteFile(data, used, 0o600), os.Truncate(data, diskBytes))
}

func present(seen report.Report) error {
	p := report.Present{Version: report.Version, BootID: seen.OS.BootID, Disks: []report.Here{}}
	for _, d := range seen.Disks {
		p.Disks = append(p.Disks, report.Here{Name: d.Name, ID: d.Identity(), SizeBytes: d.SizeBytes})
	}
	return p.Write(os.Stdout)
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
