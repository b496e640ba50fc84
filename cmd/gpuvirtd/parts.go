package main

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/host"
	"gpuvirt/internal/pci"
	"gpuvirt/internal/proc"
	"gpuvirt/internal/sim"
	"gpuvirt/internal/sysfs"
	"gpuvirt/internal/uevent"
	"gpuvirt/inventory"
	"gpuvirt/mdev"
	"gpuvirt/mig"
	"gpuvirt/p2v"
	"gpuvirt/sriov"
	"gpuvirt/vmapi"
)

// parts are the ways to a host: this one, or a simulated one.
type parts struct {
	sysfs interface {
		mdev.Sysfs
		pci.Sysfs
		sriov.Sysfs
	}
	nvml    *mig.Gate
	sriov   sriov.Options
	holders inventory.Holders
	vms     interface {
		inventory.VMs
		host.VMs
		p2v.VMs
	}
	devices        <-chan string // names of devices that changed
	hostID, bootID string
	simulated      bool
	// run serves the parts until ctx ends; nil: nothing to serve.
	run   func(ctx context.Context) error
	close func() error
	// writeTimeouts is how many writes to sysfs have been given up on.
	writeTimeouts func() uint64
	// setDetachTimeout is nil where there is no guest to wait for.
	setDetachTimeout func(time.Duration)
}

func (p parts) inventory(log *slog.Logger) *inventory.Inventory {
	var inv *inventory.Inventory
	unused := func(ctx context.Context, p gpu.Partition) error { return host.Unused(ctx, inv, p) }
	functions := p.sriov
	functions.Log, functions.Unused, functions.CloseNVML = log, unused, p.nvml.Shut
	cutter := mig.NewBackend(p.nvml, p.sysfs, mig.Options{Log: log, Unused: unused})
	inv = inventory.New(inventory.Config{
		Backends: map[gpu.Kind]gpu.Backend{
			gpu.KindMdev: mdev.New(p.sysfs, mdev.Options{Log: log, Unused: unused}),
			gpu.KindVF:   sriov.NewFunctions(p.sysfs, functions),
			gpu.KindCard: sriov.NewCards(p.sysfs, functions),
			gpu.KindMIG:  cutter,
			gpu.KindVGPU: mdev.NewVendor(p.sysfs, mdev.VendorOptions{Log: log, Unused: unused, Types: cutter.VGPUTypes}),
		},
		VMs: p.vms, Holders: p.holders, Devices: p.devices,
	})
	return inv
}

func openParts(ctx context.Context, o options, log *slog.Logger) (parts, error) {
	if o.sim != "" {
		return simulated(o)
	}
	return real(ctx, o, log)
}

func simulated(o options) (parts, error) {
	h, err := sim.Open(filepath.Clean(o.sim))
	if err != nil {
		return parts{}, err
	}
	hostID, err1 := h.HostID()
	bootID, err2 := h.BootID()
	if err := errors.Join(err1, err2); err != nil {
		return parts{}, errors.Join(err, h.Close())
	}
	return parts{
		sysfs: h.Sysfs, nvml: mig.NewGate(h.NVML), holders: h,
		sriov: sriov.Options{Devices: o.PCIGPUs, Tool: o.SRIOVManage, Run: h.RunTool, UnbindLock: sriov.UnbindLock(h.Proc)},
		vms:   h.Libvirt, devices: h.Devices(), writeTimeouts: h.Sysfs.WriteTimeouts,
		hostID: hostID, bootID: bootID, simulated: true, close: h.Close,
	}, nil
}

func real(ctx context.Context, o options, log *slog.Logger) (_ parts, err error) {
	var opened []func() error
	closeAll := func() error {
		var errs []error
		for _, c := range slices.Backward(opened) {
			errs = append(errs, c())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll())
		}
	}()
	fs, err := sysfs.OpenLogged(sysfs.DefaultRoot, log)
	if err != nil {
		return parts{}, err
	}
	opened = append(opened, fs.Close)
	kernel, err := sysfs.OpenLogged(sysfs.ProcRoot, log)
	if err != nil {
		return parts{}, err
	}
	opened = append(opened, kernel.Close)
	processes, err := proc.Open(proc.DefaultRoot, fs)
	if err != nil {
		return parts{}, err
	}
	opened = append(opened, processes.Close)
	hostID, err := proc.HostID(proc.MachineID)
	if err != nil {
		return parts{}, err
	}
	bootID, err := processes.BootID()
	if err != nil {
		return parts{}, err
	}
	devices, err := uevent.Devices(ctx)
	if err != nil {
		return parts{}, err
	}
	vms := vmapi.New(vmapi.Config{URI: o.LibvirtURI, Log: log, DetachTimeout: o.DetachTimeout})
	return parts{
		sysfs: fs, nvml: mig.NewGate(mig.New(o.NVML)), holders: processes,
		sriov: sriov.Options{Devices: o.PCIGPUs, Tool: o.SRIOVManage, UnbindLock: sriov.UnbindLock(kernel)},
		vms:   vms, devices: devices, writeTimeouts: fs.WriteTimeouts,
		hostID: hostID, bootID: bootID, run: vms.Run, close: closeAll, setDetachTimeout: vms.SetDetachTimeout,
	}, nil
}
