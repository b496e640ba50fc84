package main

import (
	"context"
	"log/slog"

	"gpuvirt/config"
	programs "gpuvirt/internal/run"
	"gpuvirt/p2v/convert"
)

// Bounds of a program that reads a server's disks. The appliance takes 2.5 GiB, and 5 with some
// versions; what it writes is a system's files, never a whole disk.
const (
	convertMemory = 8 << 30
	convertFile   = 64 << 30
	convertFiles  = 4096
	convertTasks  = 1024
	convertUnits  = "gpuvirt-p2v" // begins the names of their units
	// convertSecrets is below the unit's RuntimeDirectory, which is in memory.
	convertSecrets = "/run/gpuvirt/secrets" //nolint:gosec // the name of a folder
)

// converter is what makes VMs' disks of the copies of servers' disks, after what a daemon that
// died has left of that is gone. That of a simulated host is real, too, and as whoever runs it.
func converter(ctx context.Context, c config.Config, simulated, systemd bool, log *slog.Logger) (*convert.Converter, error) {
	if simulated {
		return convert.New(convert.Config{Scratch: c.Scratch}), nil
	}
	confine, err := confined(c, systemd)
	if err != nil {
		return nil, err
	}
	out := convert.New(convert.Config{Scratch: c.Scratch, Secrets: convertSecrets, User: c.ConvertUser, Confine: confine})
	if err := out.Sweep(ctx); err != nil {
		log.Warn("what an earlier conversion has left is not gone", "err", err)
	}
	return out, nil
}

// confined is what the programs are kept from: in a unit of their own where systemd runs the
// host, and as a user of their own anyway.
func confined(c config.Config, systemd bool) (programs.Confine, error) {
	out := programs.Confine{FileBytes: convertFile, OpenFiles: convertFiles, Processes: convertTasks}
	if !systemd {
		return out, nil
	}
	own, err := programs.OwnUnit()
	if err != nil {
		return out, err
	}
	out.Unit = &programs.Unit{
		Prefix: convertUnits, BindsTo: own, MemoryBytes: convertMemory,
		Hidden: []string{c.StateDir, c.Mirrors, c.Scratch, convertSecrets},
		// libguestfs would have it for a network that no conversion needs, and it does not come
		// up without namespaces: then QEMU's own is used.
		Closed:  []string{"/usr/bin/passt"},
		Devices: []string{"/dev/kvm"},
	}
	return out, nil
}
