// Command gpuvirtd is the daemon: one on each KVM/libvirt host, as root.
//
//	gpuvirtd [run]     serve the REST interface
//	gpuvirtd restore   put back, at boot, the partitions that the store knows
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
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gpuvirt/internal/version"
	"gpuvirt/mig"
	"gpuvirt/sriov"
)

// options are the flags of every command.
type options struct {
	stateDir       string
	socket         string
	group          string
	libvirtURI     string
	sim            string
	nvml           string
	sriovManage    string
	pciGPUs        devices
	logLevel       slog.Level
	detachTimeout  time.Duration
	restoreTimeout time.Duration
}

func main() {
	err := run(os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "gpuvirtd:", err)
		os.Exit(1)
	}
}

// devices are PCI ids, given one by one.
type devices []string

func (d *devices) String() string { return strings.Join(*d, " ") }

// Set adds one.
func (d *devices) Set(s string) error {
	id, err := sriov.ParseDevice(s)
	if err != nil {
		return err
	}
	*d = append(*d, id)
	return nil
}

var errUsage = errors.New("usage")

func run(args []string, stdout, stderr io.Writer) error {
	command := "run"
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		command, args = args[0], args[1:]
	}
	var o options
	flags := flag.NewFlagSet("gpuvirtd "+command, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.stateDir, "state-dir", "/var/lib/gpuvirt", "folder of the store")
	flags.StringVar(&o.socket, "socket", "/run/gpuvirt/gpuvirtd.sock", "unix socket to serve on")
	flags.StringVar(&o.group, "socket-group", "gpuvirt", "group that may use the socket, where it exists")
	flags.StringVar(&o.libvirtURI, "libvirt-uri", "qemu:///system", "libvirt to connect to")
	flags.StringVar(&o.nvml, "nvml", mig.DefaultPath, "NVIDIA's management library, by path or as the dynamic linker finds it")
	flags.StringVar(&o.sriovManage, "sriov-manage", sriov.DefaultTool, "NVIDIA's program that turns virtual functions on and off")
	flags.Var(&o.pciGPUs, "pci-gpu", "vendor:device, such as 1b36:0010, of PCI devices that are gpus though their class does not say so; may be repeated")
	flags.StringVar(&o.sim, "sim", "", "folder of a simulated host to serve instead of this one")
	flags.TextVar(&o.logLevel, "log-level", slog.LevelInfo, "debug, info, warn or error")
	flags.DurationVar(&o.detachTimeout, "detach-timeout", 30*time.Second, "how long a guest may take to let a device go")
	flags.DurationVar(&o.restoreTimeout, "restore-timeout", 90*time.Second, "how long restore waits for gpus to appear")
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
	unix.Umask(0o077)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	log := newLog(stderr, o.logLevel)
	switch command {
	case "run":
		return serve(ctx, o, log)
	case "restore":
		return restore(ctx, o, log)
	case "version":
		_, err := fmt.Fprintln(stdout, "gpuvirtd", version.String())
		return err
	default:
		fmt.Fprintf(stderr, "gpuvirtd: unknown command %q: run, restore or version\n", command)
		return errUsage
	}
}

// newLog writes text; the time is left to the journal where that is what reads it.
func newLog(w io.Writer, level slog.Level) *slog.Logger {
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
