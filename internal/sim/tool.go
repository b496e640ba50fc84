package sim

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"gpuvirt/internal/run"
)

// A ToolFault is how NVIDIA's sriov-manage fails, as it has been seen to.
type ToolFault string

// The faults.
const (
	ToolIdle   ToolFault = "idle"   // exits 0 and has done nothing
	ToolLies   ToolFault = "lies"   // exits 1 and has done it
	ToolHalf   ToolFault = "half"   // exits 1 and leaves the card without a driver
	ToolLocked ToolFault = "locked" // cannot get the lock, though nobody uses the card
	ToolGone   ToolFault = "gone"   // is not installed
)

// FailTool makes the next calls of sriov-manage fail.
func (h *Host) FailTool(f ToolFault, times int) error {
	return h.update(func(s *state) ([]string, error) {
		for range times {
			s.ToolFaults = append(s.ToolFaults, f)
		}
		return nil, nil
	})
}

// RunTool runs a program of the simulated host and returns what it wrote. There is one:
// NVIDIA's sriov-manage, with -e or -d and a PCI address.
func (h *Host) RunTool(ctx context.Context, name string, args ...string) (string, error) {
	if path.Base(name) != "sriov-manage" {
		return "", fmt.Errorf("cannot run %q: %w", name, fs.ErrNotExist)
	}
	if ctx.Err() != nil {
		return "", fmt.Errorf("cannot run %q: %w", name, context.Cause(ctx))
	}
	text := strings.Join(append([]string{name}, args...), " ")
	if err := h.logWrite("run", text); err != nil {
		return "", err
	}
	var out string
	code, missing := 0, false
	err := h.update(func(s *state) (names []string, err error) {
		var fault ToolFault
		if len(s.ToolFaults) > 0 {
			fault, s.ToolFaults = s.ToolFaults[0], s.ToolFaults[1:]
		}
		if missing = fault == ToolGone; missing {
			return nil, nil
		}
		if len(args) != 2 || args[0] != "-e" && args[0] != "-d" {
			out, code = "Usage: sriov-manage <-e|-d> <domain:bus:slot.func>", 1
			return nil, nil
		}
		names, out, code = s.manage(args[0] == "-e", args[1], fault, h.sessions)
		return names, nil
	})
	switch {
	case err != nil:
		return "", err
	case missing:
		return "", fmt.Errorf("cannot run %q: %w", name, fs.ErrNotExist)
	case code != 0:
		return out, &run.ExitError{Name: name, Code: code, Output: out}
	}
	return out, nil
}

// manage turns a card's virtual functions on, all of them, or off. It takes the driver
// off the card and puts it back: what the driver had made of the card is gone then.
func (s *state) manage(on bool, address string, fault ToolFault, sessions int) (changed []string, out string, code int) {
	f, ok := s.function(address)
	if !ok || !f.isCard() || f.card.SRIOV == nil || !f.card.SRIOV.ToolOnly || !s.present(f.card) {
		return nil, fmt.Sprintf("%s is no NVIDIA GPU with SR-IOV that is bound to its driver", address), 1
	}
	verb := "Disabling"
	if on {
		verb = "Enabling"
	}
	out = fmt.Sprintf("%s VFs on %s", verb, address)
	st := s.pci(address)
	if on == (st.VFs > 0) || fault == ToolIdle {
		return nil, out, 0
	}
	if fault == ToolLocked || sessions > 0 || s.held(f) || len(s.vgpusOn(f.card)) > 0 {
		return nil, out + "\nCannot obtain unbindLock for " + address, 1
	}
	changed = s.unbind(f)
	if fault == ToolHalf {
		return changed, out + "\nwrite error: No such device", 1
	}
	if s.bind(f, f.driver); on {
		changed = append(changed, s.addVFs(f, f.card.SRIOV.TotalVFs)...)
	}
	if fault == ToolLies {
		return changed, out + "\nwrite error: Device or resource busy", 1
	}
	return slices.Compact(changed), out, 0
}

// lock is what NVIDIA's driver does with a write to its unbindLock: it is taken where
// nobody has the card open, and only reading it back says so.
func (h *Host) lock(address, value string) error {
	return h.update(func(s *state) ([]string, error) {
		f, ok := s.function(address)
		if !ok {
			return nil, nil
		}
		s.pci(address).Locked = nameIn(value) == "1" && h.sessions == 0 && !s.held(f)
		return nil, nil
	})
}

// buildProc lays out the part of /proc that is NVIDIA's driver's.
func (h *Host) buildProc(s *state) *tree {
	t := newTree()
	for i := range s.Cards {
		c := &s.Cards[i]
		if !s.present(c) {
			continue
		}
		st := s.PCI[c.Name]
		t.add(path.Join("driver/nvidia/gpus", c.Name, "unbindLock"), node{
			text: fmt.Sprintf("%d\n", number(st != nil && st.Locked)), act: func(v string) error { return h.lock(c.Name, v) },
		})
	}
	t.sort()
	return t
}
