package sim

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"gpuvirt/gpu"
)

// A trial is what a VM runs with instead of what its definition says.
type trial struct {
	Disks   []string `json:"disks"`
	Network string   `json:"network"`
}

// Define makes a VM of a definition that has a name, a UUID and a mark. One that is there
// with all three stays as it is.
func (l *Libvirt) Define(ctx context.Context, doc string) error {
	var made string
	err := l.update(ctx, "define a vm", func(s *state) error {
		d, err := parseDomain(doc)
		if err != nil {
			return err
		}
		v, err := s.place(d)
		if err != nil || v != nil && v.Persistent {
			return err
		}
		if v == nil {
			v = &vm{UUID: d.UUID, Name: d.Name, State: gpu.VMShutoff}
			s.VMs = append(s.VMs, v)
		}
		v.Persistent, v.Mark, v.Doc, v.Config, made = true, d.mark, doc, d.hostdevs(), v.UUID
		return nil
	})
	return l.told(made, err)
}

// Undefine removes the definition of a VM with a mark; one that is gone already is fine.
// The files of its disks stay.
func (l *Libvirt) Undefine(ctx context.Context, vmUUID, mark string) error {
	var gone string
	err := l.update(ctx, fmt.Sprintf("undefine vm %q", vmUUID), func(s *state) error {
		v, err := s.marked(vmUUID, mark)
		if gpu.CodeOf(err) == gpu.CodeVMNotFound {
			return nil
		}
		if err != nil {
			return err
		}
		if v.State.Active() {
			return gpu.Errorf(gpu.CodeConflict, "it runs").WithBlockers(gpu.Blocker{Kind: "vm", ID: v.UUID, Name: v.Name})
		}
		var blockers []gpu.Blocker
		for _, d := range v.Config {
			blockers = append(blockers, gpu.Blocker{Kind: "partition", ID: cmp.Or(d.Handle.MdevUUID, d.Handle.PCIAddress), Name: d.Alias})
		}
		if blockers != nil {
			return gpu.Errorf(gpu.CodeConflict, "it has host devices").WithBlockers(blockers...)
		}
		s.drop(v)
		gone = v.UUID
		return nil
	})
	return l.told(gone, err)
}

// Fits checks what a definition names of the host.
func (l *Libvirt) Fits(ctx context.Context, doc string) error {
	return l.view(ctx, "look whether a vm could start", func(s *state) error {
		d, err := parseDomain(doc)
		if err != nil {
			return err
		}
		return s.fits(d)
	})
}

// Startable is Fits of a VM.
func (l *Libvirt) Startable(ctx context.Context, vmUUID string) error {
	return l.view(ctx, "look whether a vm could start", func(s *state) error {
		v, err := s.vm(vmUUID)
		if err != nil || v.Doc == "" {
			return err
		}
		d, err := parseDomain(v.Doc)
		if err != nil {
			return err
		}
		return s.fits(d)
	})
}

// Start starts a VM from its persistent definition; one that runs is fine, unless on trial.
func (l *Libvirt) Start(ctx context.Context, vmUUID string) error {
	return l.power(ctx, "start", vmUUID, func(s *state, v *vm) (bool, error) {
		switch {
		case v.Trial != nil:
			return false, gpu.Errorf(gpu.CodeConflict, "a trial of it runs")
		case v.State.Active():
			return false, nil
		}
		if v.Doc != "" {
			d, err := parseDomain(v.Doc)
			if err != nil {
				return false, err
			}
			if err := s.startable(d.disks(), d.networks()); err != nil {
				return false, err
			}
		}
		return true, s.start(v)
	})
}

// StartTrial starts a VM with a mark once with other disks, all its NICs on a network, and
// the devices of its definition. A trial that runs with these disks is fine.
func (l *Libvirt) StartTrial(ctx context.Context, vmUUID, mark string, t gpu.Trial) error {
	return l.power(ctx, "start a trial of", vmUUID, func(s *state, _ *vm) (bool, error) {
		v, err := s.marked(vmUUID, mark)
		if err != nil {
			return false, err
		}
		d, err := parseDomain(v.Doc)
		if err != nil {
			return false, err
		}
		own := d.disks()
		want := &trial{Network: t.Network}
		for _, from := range own {
			to := t.Disks[from]
			if to == "" {
				return false, gpu.Errorf(gpu.CodeInvalid, "it is not said what to use instead of the disk %q", from)
			}
			if slices.Contains(own, to) {
				return false, gpu.Errorf(gpu.CodeInvalid, "a trial would write the VM's disk %q", to)
			}
			want.Disks = append(want.Disks, to)
		}
		switch {
		case v.Trial != nil && slices.Equal(v.Trial.Disks, want.Disks):
			return false, nil
		case v.State.Active():
			return false, gpu.Errorf(gpu.CodeConflict, "it runs").WithBlockers(gpu.Blocker{Kind: "vm", ID: v.UUID, Name: v.Name})
		}
		if err := s.startable(want.Disks, []string{t.Network}); err != nil {
			return false, err
		}
		v.Trial = want
		if err := s.start(v); err != nil || !d.uefi() {
			return true, err
		}
		return true, variables(t, want.Disks)
	})
}

// variables makes the file for the variables of UEFI, as libvirt does.
func variables(t gpu.Trial, disks []string) error {
	file := t.NVRAM
	for _, path := range disks {
		if file == "" && !strings.HasPrefix(path, "/dev/") {
			file = path + gpu.TrialNVRAM
		}
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o600) //nolint:gosec // whoever starts a trial says where
	if err != nil {
		return gpu.Errorf(gpu.CodeUnavailable, "cannot create the file for the variables of UEFI: %w", err)
	}
	return f.Close()
}

// Stop powers a VM off; one that does not run, or is gone, is fine.
func (l *Libvirt) Stop(ctx context.Context, vmUUID string) error {
	err := l.power(ctx, "stop", vmUUID, func(s *state, v *vm) (bool, error) {
		if !v.State.Active() {
			return false, nil
		}
		s.off(v, gpu.VMShutoff)
		return true, nil
	})
	if gpu.CodeOf(err) == gpu.CodeVMNotFound {
		return nil
	}
	return err
}

// power runs f on a VM and tells of it if f has changed it.
func (l *Libvirt) power(ctx context.Context, what, vmUUID string, f func(*state, *vm) (bool, error)) error {
	var changed string
	err := l.update(ctx, fmt.Sprintf("%s vm %q", what, vmUUID), func(s *state) error {
		v, err := s.byUUID(vmUUID)
		if err != nil {
			return err
		}
		yes, err := f(s, v)
		if yes {
			changed = v.UUID
		}
		return err
	})
	return l.told(changed, err)
}

// told tells of a VM that has changed, unless it did not.
func (l *Libvirt) told(uuid string, err error) error {
	if err == nil && uuid != "" {
		l.emit(gpu.VMEvent{UUID: uuid, Kind: "lifecycle"})
	}
	return err
}

// byUUID finds a VM, by its UUID only.
func (s *state) byUUID(uuid string) (*vm, error) {
	v, err := s.vm(strings.ToLower(uuid))
	if err == nil && v.UUID != strings.ToLower(uuid) {
		err = gpu.Errorf(gpu.CodeInvalid, "%q is no UUID", uuid)
	}
	return v, err
}

// marked finds a VM if it has a mark.
func (s *state) marked(uuid, mark string) (*vm, error) {
	v, err := s.byUUID(uuid)
	if err != nil {
		return nil, err
	}
	if v.Mark != mark || mark == "" {
		return nil, gpu.Errorf(gpu.CodeConflict, "vm %q is another's%s", v.Name, v.whose()).
			WithBlockers(gpu.Blocker{Kind: "vm", ID: v.UUID, Name: v.Name})
	}
	return v, nil
}
