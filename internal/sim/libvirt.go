package sim

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"gpuvirt/gpu"
)

// Libvirt is a double of what the host needs from libvirt, with its rules: a live
// change needs a running VM, the persistent one does not; the persistent
// definition may name a device that does not exist, and several VMs may name the
// same one, but only one of them runs with it; detaching from a running VM waits
// for its guest.
type Libvirt struct{ h *Host }

var aliasPattern = regexp.MustCompile(`^ua-[A-Za-z0-9_-]+$`)

// VMs lists the VMs, by name.
func (l *Libvirt) VMs(ctx context.Context) ([]gpu.VM, error) {
	out := []gpu.VM{}
	err := l.view(ctx, "list the vms", func(s *state) error {
		for _, v := range s.VMs {
			out = append(out, v.vm())
		}
		return nil
	})
	slices.SortFunc(out, func(a, b gpu.VM) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.UUID, b.UUID))
	})
	return out, err
}

// VM finds a VM by name or UUID, or fails with CodeVMNotFound.
func (l *Libvirt) VM(ctx context.Context, nameOrUUID string) (gpu.VM, error) {
	var out gpu.VM
	err := l.view(ctx, fmt.Sprintf("find vm %q", nameOrUUID), func(s *state) error {
		v, err := s.vm(nameOrUUID)
		if err == nil {
			out = v.vm()
		}
		return err
	})
	return out, err
}

// VMHead is VM without devices.
func (l *Libvirt) VMHead(ctx context.Context, nameOrUUID string) (gpu.VMHead, error) {
	v, err := l.VM(ctx, nameOrUUID)
	return gpu.VMHead{UUID: v.UUID, Name: v.Name, Active: v.State.Active(), Persistent: v.Persistent}, err
}

// LibvirtVersion returns the version that this libvirt says it is.
func (l *Libvirt) LibvirtVersion(ctx context.Context) (version string, err error) {
	err = l.view(ctx, "read the version of libvirt", func(s *state) error {
		version = cmp.Or(s.LibvirtVersion, "11.3.0")
		return nil
	})
	return version, err
}

// SetVersion makes it another libvirt.
func (l *Libvirt) SetVersion(version string) error {
	return l.h.update(func(s *state) ([]string, error) { s.LibvirtVersion = version; return nil, nil })
}

// Events returns a channel of what happens to VMs. Close of the host ends it.
func (l *Libvirt) Events() <-chan gpu.VMEvent {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	return l.h.events.add()
}

func (l *Libvirt) emit(events ...gpu.VMEvent) {
	l.h.mu.Lock()
	defer l.h.mu.Unlock()
	for _, e := range events {
		l.h.events.send(e)
	}
}

// Attach adds a device to a VM's live or persistent definition, or to both. A
// device that is there already under the same alias is fine.
func (l *Libvirt) Attach(ctx context.Context, vmUUID string, dev gpu.Hostdev, scope gpu.Scope) error {
	var events []gpu.VMEvent
	err := l.update(ctx, fmt.Sprintf("attach %q to vm %q", dev.Alias, vmUUID), func(s *state) error {
		v, err := s.vm(vmUUID)
		if err != nil {
			return err
		}
		if !aliasPattern.MatchString(dev.Alias) {
			return gpu.Errorf(gpu.CodeInvalid, "alias %q is not one that libvirt keeps", dev.Alias)
		}
		if dev.Handle == (gpu.Handle{}) {
			return gpu.Errorf(gpu.CodeInvalid, "the device has no address")
		}
		if scope.Config && !v.Persistent {
			return gpu.Errorf(gpu.CodeConflict, "a transient domain has no persistent definition")
		}
		if scope.Live && !v.State.Active() {
			return gpu.Errorf(gpu.CodeConflict, "domain is not running")
		}
		if scope.Live && dev.RamFB {
			return gpu.Errorf(gpu.CodeInvalid, "operation is not supported on this configuration: a device with ramfb cannot be hotplugged")
		}
		addLive, err := wants(v.Live, dev, scope.Live)
		if err != nil {
			return err
		}
		addConfig, err := wants(v.Config, dev, scope.Config)
		if err != nil {
			return err
		}
		if addLive {
			if err := s.plug(v, dev); err != nil {
				return err
			}
			events = append(events, gpu.VMEvent{UUID: v.UUID, Kind: "device-added", Alias: dev.Alias})
		}
		if addConfig {
			v.Config = append(v.Config, stored(dev))
			events = append(events, gpu.VMEvent{UUID: v.UUID, Kind: "lifecycle"})
		}
		return nil
	})
	if err == nil {
		l.emit(events...)
	}
	return err
}

// AttachNew is Attach: the double looks whenever it is asked.
func (l *Libvirt) AttachNew(ctx context.Context, vmUUID string, dev gpu.Hostdev, scope gpu.Scope) error {
	return l.Attach(ctx, vmUUID, dev, scope)
}

// Detach removes a device from a VM's live or persistent definition, or from both.
// One that is not there is fine. As with libvirt, the persistent definition changes
// at once, and the live one when the guest has let go: if it does not before ctx
// ends, the error is CodeStuck.
func (l *Libvirt) Detach(ctx context.Context, vmUUID, alias string, scope gpu.Scope) error {
	var events []gpu.VMEvent
	var id string
	what := fmt.Sprintf("detach %q from vm %q", alias, vmUUID)
	is := func(d gpu.Hostdev) bool { return d.Alias == alias }
	err := l.update(ctx, what, func(s *state) error {
		v, err := s.vm(vmUUID)
		if err != nil {
			return err
		}
		id = v.UUID
		if scope.Live && !v.State.Active() {
			return gpu.Errorf(gpu.CodeConflict, "domain is not running")
		}
		if scope.Live && slices.ContainsFunc(v.Live, func(d gpu.Hostdev) bool { return is(d) && d.RamFB }) {
			return gpu.Errorf(gpu.CodeInvalid, "Device '%s' does not support hotplugging", alias)
		}
		if scope.Config && slices.ContainsFunc(v.Config, is) {
			v.Config = slices.DeleteFunc(v.Config, is)
			events = append(events, gpu.VMEvent{UUID: v.UUID, Kind: "lifecycle"})
		}
		return nil
	})
	if err != nil {
		return err
	}
	l.emit(events...)
	if !scope.Live {
		return nil
	}
	// The guest has been asked. It lets go when it wants to, or when it is gone.
	for {
		removed, waits := false, false
		err := l.h.update(func(s *state) ([]string, error) {
			v, err := s.vm(id)
			switch {
			case err != nil || !v.State.Active() || !slices.ContainsFunc(v.Live, is):
			case v.Stubborn:
				waits = true
			default:
				v.Live = slices.DeleteFunc(v.Live, is)
				removed = true
			}
			return nil, nil
		})
		if err != nil {
			return err
		}
		if removed {
			l.emit(gpu.VMEvent{UUID: id, Kind: "device-removed", Alias: alias})
		}
		if !waits {
			return nil
		}
		err = l.h.await(ctx, func(s *state) bool {
			v, err := s.vm(id)
			return err != nil || !v.Stubborn || !v.State.Active()
		})
		if err != nil {
			return gpu.Errorf(gpu.CodeStuck, "cannot %s: the guest has been asked to let go of the device and has not: %w", what, err).
				WithHint("a guest without a driver for hot-unplug never does; shut it down instead")
		}
	}
}

// SetDown makes libvirt stop or resume answering.
func (l *Libvirt) SetDown(down bool) error {
	err := l.h.update(func(s *state) ([]string, error) { s.Down = down; return nil, nil })
	if err == nil && down {
		l.emit(gpu.VMEvent{Kind: "disconnected"})
	} else if err == nil {
		l.emit(gpu.VMEvent{Kind: "connected"})
	}
	return err
}

func (l *Libvirt) view(ctx context.Context, what string, f func(*state) error) error {
	err := l.h.view(func(s *state) error {
		if err := s.answers(ctx); err != nil {
			return err
		}
		return f(s)
	})
	return cannot(what, err)
}

func (l *Libvirt) update(ctx context.Context, what string, f func(*state) error) error {
	err := l.h.update(func(s *state) ([]string, error) {
		if err := s.answers(ctx); err != nil {
			return nil, err
		}
		return nil, f(s)
	})
	return cannot(what, err)
}

func (s *state) answers(ctx context.Context) error {
	if ctx.Err() != nil {
		return gpu.Errorf(gpu.CodeUnavailable, "it was interrupted: %w", context.Cause(ctx))
	}
	if s.Down {
		return gpu.Errorf(gpu.CodeUnavailable, "libvirt does not answer: connection refused")
	}
	return nil
}

// cannot puts what was attempted in front of an error.
func cannot(what string, err error) error {
	if err == nil {
		return nil
	}
	out := gpu.Errorf(gpu.CodeOf(err), "cannot %s: %w", what, err)
	if e, ok := errorOf(err); ok {
		out.Hint, out.Blockers, out.Diff = e.Hint, e.Blockers, e.Diff
	}
	return out
}
