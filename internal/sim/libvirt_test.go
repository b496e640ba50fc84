package sim

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
)

var (
	live   = gpu.Scope{Live: true}
	config = gpu.Scope{Config: true}
	both   = gpu.Scope{Live: true, Config: true}
)

func device(id string) gpu.Hostdev {
	return gpu.Hostdev{Alias: gpu.Alias(id), Handle: gpu.Handle{MdevUUID: id}, Model: "vfio-pci"}
}

func withMdev(t *testing.T) *Host {
	t.Helper()
	h := open(t, t.TempDir())
	write(t, h, mbochs+"large/create", uuid, 0)
	write(t, h, mbochs+"large/create", uuid2, 0)
	return h
}

func hostdevs(t *testing.T, h *Host, vm string) []gpu.Hostdev {
	t.Helper()
	v, err := h.Libvirt.VM(t.Context(), vm)
	must(t, err)
	return v.Hostdevs
}

func wantCode(t *testing.T, err error, code gpu.Code) {
	t.Helper()
	if err == nil || gpu.CodeOf(err) != code {
		t.Errorf("%v, want %s", err, code)
	}
}

func TestVMs(t *testing.T) {
	h := open(t, t.TempDir())
	vms, err := h.Libvirt.VMs(t.Context())
	want := []gpu.VM{
		{UUID: DB1, Name: "db1", State: gpu.VMShutoff, Persistent: true},
		{UUID: Web1, Name: "web1", State: gpu.VMRunning, Persistent: true, Autostart: true},
		{UUID: Web2, Name: "web2", State: gpu.VMRunning, Persistent: true},
	}
	if diff := cmp.Diff(want, vms); diff != "" || err != nil {
		t.Error(err, diff)
	}
	for _, name := range []string{"web1", Web1} {
		if v, err := h.Libvirt.VM(t.Context(), name); v.Name != "web1" || err != nil {
			t.Error(v, err)
		}
	}
	wantCode(t, second(h.Libvirt.VM(t.Context(), "none")), gpu.CodeVMNotFound)
	must(t, h.Libvirt.SetDown(true))
	wantCode(t, second(h.Libvirt.VM(t.Context(), "web1")), gpu.CodeUnavailable)
	wantCode(t, second(h.Libvirt.VMs(t.Context())), gpu.CodeUnavailable)
	wantCode(t, h.Libvirt.Attach(t.Context(), Web1, device(uuid), config), gpu.CodeUnavailable)
	wantCode(t, h.Libvirt.Detach(t.Context(), Web1, "ua-x", config), gpu.CodeUnavailable)
	must(t, h.Libvirt.SetDown(false))
	wantCode(t, second(h.Libvirt.VMs(cancelled(t))), gpu.CodeUnavailable)
}

func TestAttachAndDetach_T47(t *testing.T) {
	h := withMdev(t)
	l, ctx := h.Libvirt, t.Context()
	events := l.Events()
	dev := device(uuid)
	for range 2 {
		must(t, l.Attach(ctx, Web1, dev, both))
	}
	want := dev
	want.Live, want.Config, want.GuestAddress = true, true, "0000:07:00.0"
	if diff := cmp.Diff([]gpu.Hostdev{want}, hostdevs(t, h, "web1")); diff != "" {
		t.Error(diff)
	}
	other := dev
	other.Handle.MdevUUID = uuid2
	wantCode(t, l.Attach(ctx, Web1, other, both), gpu.CodeConflict)
	other = dev
	other.Alias = "ua-gpuvirt-other"
	wantCode(t, l.Attach(ctx, Web1, other, config), gpu.CodeConflict)
	other.Alias = "hostdev0"
	wantCode(t, l.Attach(ctx, Web2, other, config), gpu.CodeInvalid)
	wantCode(t, l.Attach(ctx, Web2, gpu.Hostdev{Alias: "ua-x"}, config), gpu.CodeInvalid)
	wantCode(t, l.Attach(ctx, "none", dev, config), gpu.CodeVMNotFound)

	// Live in web1, so not in web2; its persistent definition may name it all the same.
	err := l.Attach(ctx, Web2, dev, both)
	wantCode(t, err, gpu.CodeBusy)
	e, _ := errors.AsType[*gpu.Error](err)
	if diff := cmp.Diff([]gpu.Blocker{{Kind: "vm", ID: Web1, Name: "web1"}}, e.Blockers); diff != "" {
		t.Error(diff)
	}
	if got := hostdevs(t, h, "web2"); got != nil {
		t.Errorf("half of a refused attach: %+v", got)
	}
	must(t, l.Attach(ctx, Web2, dev, config))

	must(t, l.Detach(ctx, Web1, dev.Alias, live))
	if got := hostdevs(t, h, "web1"); len(got) != 1 || got[0].Live || !got[0].Config {
		t.Errorf("%+v", got)
	}
	for range 2 {
		must(t, l.Detach(ctx, Web1, dev.Alias, both))
	}
	if got := hostdevs(t, h, "web1"); got != nil {
		t.Errorf("%+v", got)
	}
	var kinds []string
	for range 5 {
		kinds = append(kinds, (<-events).Kind)
	}
	if diff := cmp.Diff([]string{"device-added", "lifecycle", "lifecycle", "device-removed", "lifecycle"}, kinds); diff != "" {
		t.Error(diff)
	}
}

func TestShutOffVM(t *testing.T) {
	h := withMdev(t)
	l, ctx := h.Libvirt, t.Context()
	wantCode(t, l.Attach(ctx, DB1, device(uuid), both), gpu.CodeConflict)
	wantCode(t, l.Detach(ctx, DB1, gpu.Alias(uuid), live), gpu.CodeConflict)
	must(t, l.Attach(ctx, DB1, device(uuid), config))
	must(t, l.Attach(ctx, DB1, device("00000000-0000-4000-8000-000000000000"), config)) // libvirt does not look
	wantCode(t, l.Boot("db1"), gpu.CodeNotFound)                                        // but QEMU does
	must(t, l.Detach(ctx, DB1, gpu.Alias("00000000-0000-4000-8000-000000000000"), config))
	must(t, l.Attach(ctx, Web1, device(uuid), live))
	wantCode(t, l.Boot("db1"), gpu.CodeBusy)
	must(t, l.Detach(ctx, Web1, gpu.Alias(uuid), live))
	must(t, l.Boot("db1"))
	wantCode(t, l.Boot("db1"), gpu.CodeConflict)
	if got := hostdevs(t, h, "db1"); len(got) != 1 || !got[0].Live || !got[0].Config {
		t.Errorf("%+v", got)
	}
	must(t, l.Crash("db1"))
	if v, err := l.VM(ctx, "db1"); v.State != gpu.VMCrashed || len(v.Hostdevs) != 1 || v.Hostdevs[0].Live || err != nil {
		t.Errorf("%+v, %v", v, err)
	}
	wantCode(t, l.Attach(ctx, Web1, device("00000000-0000-4000-8000-000000000000"), live), gpu.CodeNotFound)
}

func TestStubbornGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := withMdev(t)
		l := h.Libvirt
		must(t, l.Attach(t.Context(), Web1, device(uuid), both))
		must(t, l.SetStubborn("web1", true))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		wantCode(t, l.Detach(ctx, Web1, gpu.Alias(uuid), both), gpu.CodeStuck)
		if got := hostdevs(t, h, "web1"); len(got) != 1 || !got[0].Live || got[0].Config {
			t.Errorf("%+v", got)
		}
		// A guest that is shut down has let go.
		done := make(chan error)
		go func() { done <- l.Detach(t.Context(), Web1, gpu.Alias(uuid), live) }()
		synctest.Wait()
		must(t, l.Shutdown("web1"))
		must(t, <-done)
	})
}

func TestLifeOfVMs(t *testing.T) {
	h := withMdev(t)
	l, ctx := h.Libvirt, t.Context()
	must(t, l.Attach(ctx, Web1, device(uuid), both))
	must(t, l.Pause("web1"))
	if v, _ := l.VM(ctx, "web1"); v.State != gpu.VMPaused || len(v.Hostdevs) != 1 {
		t.Errorf("%+v", v)
	}
	must(t, l.Resume("web1"))
	// An administrator edits the definition (T48).
	must(t, l.SetVM(gpu.VM{UUID: Web1, Name: "web1", Persistent: true}))
	if got := hostdevs(t, h, "web1"); len(got) != 1 || !got[0].Live || got[0].Config {
		t.Errorf("%+v", got)
	}
	must(t, l.DropVM("web1"))
	wantCode(t, l.Attach(ctx, Web1, device(uuid2), config), gpu.CodeConflict)
	must(t, l.Shutdown("web1")) // transient by now
	wantCode(t, second(l.VM(ctx, "web1")), gpu.CodeVMNotFound)
	must(t, l.DropVM("db1"))
	wantCode(t, second(l.VM(ctx, "db1")), gpu.CodeVMNotFound)

	dev := device(uuid)
	dev.Live = true
	must(t, l.SetVM(gpu.VM{UUID: DB1, Name: "db2", State: gpu.VMRunning, Hostdevs: []gpu.Hostdev{dev}}))
	if got := hostdevs(t, h, "db2"); len(got) != 1 || !got[0].Live {
		t.Errorf("%+v", got)
	}
	must(t, h.Reboot())
	vms, err := l.VMs(ctx)
	if len(vms) != 1 || vms[0].Name != "web2" || vms[0].State != gpu.VMShutoff || err != nil {
		t.Errorf("%+v, %v", vms, err)
	}
}
