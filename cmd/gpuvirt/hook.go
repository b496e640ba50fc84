package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gpuvirt/api"
	"gpuvirt/client"
	"gpuvirt/internal/version"
)

const (
	maxDomain  = 8 << 20                // bytes of a definition on the standard input
	hookPause  = 100 * time.Millisecond // between two tries to reach the daemon
	hookBudget = 5 * time.Second        // for all of it: libvirt waits, with the VM locked
)

// A hook is one call of libvirt's hook for QEMU.
type hook struct {
	c      *cli
	budget time.Duration
	warn   bool   // findings let the VM start all the same
	strict bool   // so does not knowing, unless this
	vm     string // its name, for messages
}

func hookCommand(c *cli) *cobra.Command {
	h := hook{c: c}
	cmd := &cobra.Command{
		Use: "libvirt-hook VM OPERATION STAGE [EXTRA]", Short: "Answer libvirt's hook for QEMU: may this VM start?", Args: cobra.MinimumNArgs(3),
		Long: `Answer libvirt's hook for QEMU: may this VM start? libvirt calls it with the VM's name, what it
is about to do, and the VM's definition on the standard input. Only "prepare begin" is looked at,
before anything of the VM is there; all else passes.

The daemon is asked whether a partition that the VM was given is missing or is another one, whether
its definition lacks one, and whether it has one that was given to another VM. Then the exit status
is 1, and libvirt does not start it and shows why. Devices that are no partitions of gpuvirt's are
not judged.

All of it ends within the budget. Where the daemon does not answer in time, or does not know, the
VM starts, unless --refuse-unknown is given: then a VM whose definition has a device of the host
does not. Neither this nor the daemon asks libvirt anything: it is what waits.

See /usr/share/gpuvirt/libvirt-hook for how to turn it on.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if h.vm = args[0]; args[1] != "prepare" || args[2] != "begin" {
				return nil
			}
			return h.judge(cmd.Context())
		},
	}
	cmd.Flags().DurationVar(&h.budget, "budget", hookBudget, "`time` that all of it may take")
	cmd.Flags().BoolVar(&h.warn, "warn-only", false, "say what speaks against the start, and let it start")
	cmd.Flags().BoolVar(&h.strict, "refuse-unknown", false, "refuse a VM with devices of the host where it is not known")
	return cmd
}

// judge returns why the VM must not start; nil: it may.
func (h *hook) judge(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, h.budget, fmt.Errorf("not within %s", h.budget))
	defer cancel()
	domain, err := h.definition(ctx)
	if err != nil {
		return h.unknown(err, true)
	}
	check, err := h.ask(ctx, domain)
	if err != nil {
		return h.unknown(err, len(domain.devices) > 0)
	}
	var against, unclear []string
	for _, f := range check.Findings {
		line := f.Message
		if f.Hint != "" {
			line += " (" + f.Hint + ")"
		}
		if f.Code == "unavailable" {
			unclear = append(unclear, line)
			continue
		}
		against = append(against, line)
	}
	if len(against) > 0 {
		err := fmt.Errorf("vm %s should not start: %s", h.vm, strings.Join(against, "; "))
		if !h.warn {
			return err
		}
		h.c.say("warning: %s", err)
	}
	if len(unclear) > 0 {
		return h.unknown(errors.New(strings.Join(unclear, "; ")), true)
	}
	return nil
}

// unknown is the answer where nobody knows.
func (h *hook) unknown(err error, hasDevices bool) error {
	if h.strict && hasDevices {
		// Not wrapped: every refusal has the same exit status.
		return fmt.Errorf("vm %s may not start, as it is not known whether its partitions are there: %v", h.vm, err) //nolint:errorlint // see above
	}
	h.c.say("warning: it is not known whether the partitions of vm %s are there: %v", h.vm, err)
	return nil
}

// ask asks the daemon. One that is not there may just be starting, and is waited for where
// the VM has devices that it may know.
func (h *hook) ask(ctx context.Context, d domain) (api.StartCheck, error) {
	daemon := client.New(client.Options{Socket: h.c.socket, UserAgent: "gpuvirt-hook/" + version.String(), Patience: time.Nanosecond})
	defer daemon.Close()
	for {
		check, err := daemon.CheckStart(ctx, d.uuid, d.devices)
		if !isUnreachable(err) || len(d.devices) == 0 {
			return check, err
		}
		select {
		case <-time.After(hookPause):
		case <-ctx.Done():
			return check, err
		}
	}
}

// definition reads the VM's definition from the standard input, which whoever calls may
// keep open.
func (h *hook) definition(ctx context.Context) (domain, error) {
	type result struct {
		data []byte
		err  error
	}
	read := make(chan result, 1)
	go func() { // ends with the program if nothing comes
		data, err := io.ReadAll(io.LimitReader(h.c.in, maxDomain+1))
		if err == nil && len(data) > maxDomain {
			err = fmt.Errorf("it has more than %d bytes", maxDomain)
		}
		read <- result{data, err}
	}()
	select {
	case <-ctx.Done():
		return domain{}, fmt.Errorf("cannot read its definition: %w", context.Cause(ctx))
	case r := <-read:
		if r.err != nil {
			return domain{}, fmt.Errorf("cannot read its definition: %w", r.err)
		}
		d, err := parseDomain(r.data)
		if err != nil {
			return domain{}, fmt.Errorf("cannot read its definition: %w", err)
		}
		return d, nil
	}
}
