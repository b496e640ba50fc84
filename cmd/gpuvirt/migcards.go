package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"gpuvirt/api"
	"gpuvirt/client"
)

// nvidiaGPUs are NVIDIA's in order of PCI address, which is how NVIDIA's tools number them,
// with or without those that their driver does not have.
// One that cannot be read is among them: it has a number too.
func (c *cli) nvidiaGPUs(ctx context.Context) ([]api.GPU, error) {
	all, err := c.client().GPUs(ctx, client.ListOptions{})
	all = slices.DeleteFunc(all, func(g api.GPU) bool { return !maybeNVIDIA(g) })
	slices.SortFunc(all, func(a, b api.GPU) int {
		return cmp.Or(cmp.Compare(len(a.ID), len(b.ID)), cmp.Compare(a.ID, b.ID)) // a domain may have more digits
	})
	return all, err
}

// uncounted is the number of the first that mig-parted would not number, or -1: it passes
// over those that NVIDIA's driver does not have, as when a VM is given the whole card,
// where that driver is loaded.
func uncounted(gpus []api.GPU) int {
	has := func(g api.GPU) bool { return g.Driver.Name == "nvidia" }
	if !slices.ContainsFunc(gpus, has) {
		return -1
	}
	return slices.IndexFunc(gpus, func(g api.GPU) bool { return !has(g) && !g.MIG.Capable && unread(g) == "" })
}

// certain refuses numbers that may be meant for other GPUs: those that had them when the
// file was written are others, or nothing says which they were and the tool that such files
// are of would count otherwise now.
func (s cards) certain(gpus []api.GPU) error {
	for i, id := range s.were {
		if n := s.devices[i]; gpus[n].ID != id {
			return fmt.Errorf("number %d was gpu %s when the file was written, and is %s now: correct both the number and the comment %q", n, id, gpus[n].ID, wereMark)
		}
	}
	i := uncounted(gpus)
	if s.were != nil || !s.skips || i < 0 || len(s.devices) == 0 || slices.Max(s.devices) < i {
		return nil
	}
	return fmt.Errorf("mig-parted does not count gpu %s, as NVIDIA's driver does not have it, so that numbers from %d on may mean others: name the gpus in a comment above \"mig-enabled\", as in \"%s %s\", or use \"device-filter\"",
		gpus[i].ID, i, wereMark, gpus[slices.Max(s.devices)].ID)
}

// maybeNVIDIA reports whether a GPU is one of NVIDIA's, as far as can be told: of one
// that is lost only the ids are known, and of one that hangs not even those.
func maybeNVIDIA(g api.GPU) bool {
	switch vendor, _, known := strings.Cut(cardIDOf(g), ":"); {
	case g.Vendor != "":
		return g.Vendor == "NVIDIA"
	case known:
		return vendor == "10de"
	}
	return unread(g) != "" && strings.Count(g.ID, ":") == 2 // a PCI address
}

// cardIDOf is a GPU's "vendor:device", or empty. It stands for the model where nobody
// could be asked for that.
func cardIDOf(g api.GPU) string {
	if g.PCIID == "" && len(g.Model) == len("10de:20f1") && g.Model[4] == ':' {
		return g.Model
	}
	return g.PCIID
}

// unread says why a GPU cannot be read, empty if it can.
func unread(g api.GPU) string {
	for _, c := range g.Conditions {
		if c.Status && (c.Type == "Unknown" || c.Type == "Stuck") {
			return strings.ReplaceAll(cmp.Or(c.Message, c.Reason, c.Type), "\n", "; ")
		}
	}
	return ""
}

// unreadProblem is unread of a GPU that stopped answering since it was listed.
func unreadProblem(err error) string {
	var p *api.Problem
	if errors.As(err, &p) && (p.Code == "unavailable" || p.Code == "stuck") {
		return p.Detail
	}
	return ""
}

// notReadable refuses to go on without GPUs that cannot be read.
func notReadable(what string, gpus []api.GPU) error {
	var e notReadyError
	var why []string
	for _, g := range gpus {
		why = append(why, "gpu "+g.ID+": "+unread(g))
		if g.Managed && g.Vendor == "" {
			e.hint = "if it is gone for good: gpuvirt gpu unmanage " + g.ID
		}
	}
	e.message = what + ": " + strings.Join(why, "; ")
	return &e
}
