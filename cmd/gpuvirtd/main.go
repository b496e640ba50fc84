// Command gpuvirtd is the daemon: one on each KVM/libvirt host, as root.
//
//	gpuvirtd [run]     serve the REST interface
//	gpuvirtd restore   put back, at boot, the partitions that the store knows
//	gpuvirtd check-config   is the configuration all right? prints what holds
//	gpuvirtd version
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"gpuvirt/config"
	"gpuvirt/internal/version"
	"gpuvirt/store"
)

// options are what every command is told.
type options struct {
	config.Loaded

	sim    string
	wrong  error                         // with the configuration; only restore and version go on then
	reload func() (config.Loaded, error) // reads the configuration anew
	hup    <-chan os.Signal              // asks for that
}

func main() {
	err := run(os.Args[1:], os.Stdout, os.Stderr)
	if err != nil && !errors.Is(err, flag.ErrHelp) && !errors.Is(err, errUsage) { // these have been told
		fmt.Fprintln(os.Stderr, "gpuvirtd:", err)
	}
	os.Exit(exitStatus(err))
}

// exitStatus tells those apart that somebody may want to act on.
func exitStatus(err error) int {
	var newer *store.NewerError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		return 2
	case errors.Is(err, errDaemonRuns):
		return 75 // EX_TEMPFAIL; gpuvirt-restore.service takes it for well
	case errors.As(err, &newer):
		return 65 // EX_DATAERR: a newer version has written the store
	default:
		return 1
	}
}

var errUsage = errors.New("usage")

func run(args []string, stdout, stderr io.Writer) error {
	command := "run"
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		command, args = args[0], args[1:]
	}
	switch command {
	case "run", "restore", "check-config", "version":
	default:
		fmt.Fprintf(stderr, "gpuvirtd: unknown command %q: run, restore, check-config or version\n", command)
		return errUsage
	}
	var o options
	flags := flag.NewFlagSet("gpuvirtd "+command, flag.ContinueOnError)
	flags.SetOutput(stderr)
	file := flags.String("config", "", "`file` of the configuration (default "+config.DefaultPath+", if it is there and nothing is simulated)")
	flags.StringVar(&o.sim, "sim", "", "`folder` of a simulated host to serve instead of this one")
	said := settingFlags(flags)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "gpuvirtd: unexpected argument %q\n", flags.Arg(0))
		return errUsage
	}
	o.hup = hangups()
	o.reload = func() (config.Loaded, error) { return load(*file, o.sim != "", said) }
	var err error
	if o.Loaded, err = o.reload(); err != nil && command != "restore" && command != "version" {
		return err
	}
	o.wrong = err
	unix.Umask(0o077)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	level := &slog.LevelVar{}
	level.Set(o.LogLevel)
	log := newLog(stderr, level)
	switch command {
	case "run":
		return serve(ctx, o, level, log)
	case "restore":
		return restore(ctx, o, log)
	case "check-config":
		if err := checkFiles(o.Config, time.Now()); err != nil {
			return fmt.Errorf("the configuration cannot be used:\n%w", err)
		}
		_, err := io.WriteString(stdout, config.Format(o.Loaded))
		return err
	default: // version
		_, err := fmt.Fprintln(stdout, "gpuvirtd", version.String())
		return err
	}
}

// newLog writes text; the time is left to the journal where that is what reads it.
func newLog(w io.Writer, level slog.Leveler) *slog.Logger {
	journal := os.Getenv("JOURNAL_STREAM") != ""
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{
		Level: level,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if journal && len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}
