// Command gpuvirt is the command line of gpuvirtd. It speaks to the daemon
// through package client only. What begins with p2v runs on a physical server, without one. Data goes to the standard output, messages and
// progress to the standard error.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"gpuvirt/p2v/inspect"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second signal ends the program at once
	code := run(ctx, os.Args[1:], streams{
		in: os.Stdin, out: os.Stdout, err: os.Stderr,
		inTerminal:  isTerminal(os.Stdin),
		errTerminal: isTerminal(os.Stderr) && os.Getenv("TERM") != "dumb",
		socket:      os.Getenv("GPUVIRT_SOCKET"),
		env:         environment(os.Getenv),
	})
	stop()
	os.Exit(code)
}

// streams are what a command reads and writes, and the environment's share.
type streams struct {
	in                      io.Reader
	out, err                io.Writer
	inTerminal, errTerminal bool
	socket                  string // empty: the usual one
	env                     remote
	inspect                 inspect.Options // of the server that p2v inspects: this one
}

// run carries one command line out and returns the exit code.
func run(ctx context.Context, args []string, s streams) int {
	c := &cli{streams: s}
	root := newRoot(c)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !c.started {
		err = &usageError{message: err.Error(), command: cmd.CommandPath()}
	}
	if c.made != nil {
		c.made.Close()
	}
	c.report(err)
	return exitCode(err)
}

// isTerminal reports whether a person may be sitting there.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err == nil && !os.SameFile(info, null)
}

// clean makes text harmless for a terminal: names and messages come from guests
// and drivers.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}
