package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"gpuvirt/internal/version"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/inspect"
	"gpuvirt/p2v/report"
)

// An inspection is one run of "p2v inspect".
type inspection struct {
	*cli
	window, interval time.Duration
	file             string
	stream           bool
}

func inspectCommand(c *cli) *cobra.Command {
	i := inspection{cli: c}
	cmd := &cobra.Command{
		Use: "inspect", Short: "Tell what a physical server has and what its GPUs do", Args: takes(0),
		Long: `Look at this server before its workload moves into a VM, and write what is there as
a document: GPUs and their driver, who uses them and where one of them is named, models,
disks, boot, network; and, over a window, what the GPUs do. It runs on the server that is
to be moved and asks no daemon: this program is all that it needs there.

It only reads. It gives way to what else runs. As root it sees all; as another user it
says what it could not see. What looks like a secret is masked, and licences and keys are
not opened.

Ctrl-C ends the window early, and what was seen is written. With --file the document is
there from the start and renewed every minute, or tenth of the window.`,
		Example: `  gpuvirt p2v inspect --window 24h --file gpu7.json
  gpuvirt p2v inspect --window 0
  ssh root@gpu7 ./gpuvirt p2v inspect --stream`,
		Annotations: map[string]string{offline: "yes"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := i.check(cmd); err != nil {
				return err
			}
			ctx, cancel := c.limited(cmd.Context())
			defer cancel()
			return i.run(ctx)
		},
	}
	flags := cmd.Flags()
	flags.DurationVar(&i.window, "window", 10*time.Minute, "how long to watch the GPUs, such as 24h; 0: not at all")
	flags.DurationVar(&i.interval, "interval", 5*time.Second, "between two samples, 1s to 10s")
	flags.StringVar(&i.file, "file", "", "the `file` to write the document to; else the standard output")
	flags.BoolVar(&i.stream, "stream", false, "write lines of JSON while it goes on: the document, parts of what the GPUs did, the end")
	return cmd
}

func (i *inspection) check(cmd *cobra.Command) error {
	wrong := func(message string) error { return &usageError{message: message, command: cmd.CommandPath()} }
	switch set := cmd.Flags().Changed("output"); {
	case set && !slices.Contains([]string{"json", "yaml"}, i.output):
		return wrong("an inspection is written as json or yaml")
	case i.stream && (i.file != "" || i.output == "yaml"):
		return wrong("--stream writes lines of JSON to the standard output: it goes with neither --file nor -o yaml")
	case i.window < 0:
		return wrong("--window is negative")
	case i.interval < time.Second || i.interval > 10*time.Second:
		return wrong("--interval is not between 1s and 10s")
	}
	return i.noDryRun(cmd)
}

func (i *inspection) run(ctx context.Context) error {
	inspect.GiveWay()
	o := i.streams.inspect
	o.Version = version.String()
	look, err := inspect.New(o)
	if err != nil {
		return err
	}
	defer func() { _ = look.Close() }() // it was only read from
	r, err := look.Inspect(ctx)
	if err != nil {
		return fmt.Errorf("cannot inspect to the end: %w", err)
	}
	if i.stream {
		return i.send(ctx, look, r)
	}
	if i.file != "" {
		if err := i.write(r); err != nil { // before the hours of the window
			return err
		}
	}
	err = i.watch(ctx, look, r, func(u report.Usage) error {
		if r.Usage == nil {
			r.Usage = &report.Usage{}
		}
		r.Usage.Merge(u)
		if i.file == "" {
			return nil
		}
		return i.write(r)
	})
	if unseen := unwatched(err); unseen != nil {
		r.Unseen = append(r.Unseen, *unseen)
	} else if err != nil {
		return err
	}
	if err := i.write(r); err != nil {
		return err
	}
	i.summarise(r)
	return nil
}

// send writes the inspection line by line.
func (i *inspection) send(ctx context.Context, look *inspect.Inspector, r report.Report) error {
	if err := (report.Line{Report: &r}).Write(i.out); err != nil {
		return err
	}
	err := i.watch(ctx, look, r, func(u report.Usage) error { return report.Line{Usage: &u}.Write(i.out) })
	if unseen := unwatched(err); unseen != nil {
		i.say("the GPUs were not watched: %s", unseen.Reason)
	} else if err != nil {
		return err
	}
	return report.Line{End: true}.Write(i.out)
}

func (i *inspection) watch(ctx context.Context, look *inspect.Inspector, r report.Report, each func(report.Usage) error) error {
	if i.window == 0 {
		return nil
	}
	if i.errTerminal && slices.ContainsFunc(r.GPUs, func(g report.GPU) bool { return g.Index >= 0 }) {
		i.say("watching the GPUs for %s; ctrl-C ends it early", i.window)
	}
	failed := func(u report.Usage) error {
		if err := each(u); err != nil {
			return &receiverError{err}
		}
		return nil
	}
	return look.Watch(ctx, i.window, i.interval, failed)
}

// A receiverError says that what was seen could not be handed on.
type receiverError struct{ err error }

func (e *receiverError) Error() string { return e.err.Error() }
func (e *receiverError) Unwrap() error { return e.err }

// unwatched is what an error of the watching means for the report, nil where it is another.
func unwatched(err error) *report.Unseen {
	var receiver *receiverError
	if err == nil || errors.As(err, &receiver) {
		return nil
	}
	return &report.Unseen{What: "usage", Reason: report.CleanString(err.Error())}
}

// write writes the document: a file is there whole, or as it was before.
func (i *inspection) write(r report.Report) error {
	if i.file == "" {
		return encodeTo(i.out, i.output, r)
	}
	var b bytes.Buffer
	if err := encodeTo(&b, i.output, r); err != nil {
		return err
	}
	if err := replace(i.file, &b); err != nil {
		return fmt.Errorf("cannot write the inspection: %w", err)
	}
	return nil
}

// replace writes a file, for its owner only, in the place of what is there.
func replace(name string, from io.Reader) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// summarise tells a person at a terminal what was found.
func (i *inspection) summarise(r report.Report) {
	if !i.errTerminal {
		return
	}
	i.say("%s: %s, %s, %s", orDash(r.Hostname), orDash(r.OS.PrettyName), assess.Count(len(r.Disks), "disk", "disks"), r.Firmware.Type)
	if len(r.GPUs) == 0 {
		i.say("no GPU")
	}
	for _, g := range r.GPUs {
		line := fmt.Sprintf("GPU %s: %s", g.PCI, orDash(g.Model))
		if g.MIG == "enabled" {
			line += fmt.Sprintf(", %d MIG instances", len(g.Instances))
		}
		if r.Usage != nil {
			for _, u := range r.Usage.GPUs {
				if u.PCI == g.PCI && u.Memory.Seen() {
					line += fmt.Sprintf(", at most %.1f GiB used, busy %.0f %% (95th percentile)", u.Memory.Max/(1<<30), 100*u.SM.Quantile(0.95))
				}
			}
		}
		i.say("%s", line)
	}
	if r.Driver != nil {
		i.say("driver %s, %s, by %s", r.Driver.Version, r.Driver.Flavour, r.Driver.Origin)
	}
	i.say("%d processes with a GPU open, %d containers, %d places that name one, %d folders with models", len(r.Processes), len(r.Containers), len(r.Pins), len(r.Models))
	if u := r.Usage; u != nil {
		i.say("watched for %.0f s, %d samples, %d missed; it cost %.2f s of processor time", u.Cost.WindowSeconds, u.Samples, u.Missed, u.Cost.CPUSeconds)
	}
	for _, u := range r.Unseen {
		i.say("not seen: %s: %s", u.What, u.Reason)
	}
	if i.file != "" {
		i.say("written to %s", i.file)
	}
}
