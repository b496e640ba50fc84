package vmapi

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"gpuvirt/gpu"
)

func TestAttach(t *testing.T) {
	mine := hostdev(gpu.Alias(mdev1), gpu.Handle{MdevUUID: mdev1})
	withDisplay := hostdev("hostdev0", gpu.Handle{MdevUUID: mdev2})
	withDisplay.SubsysMDev.Display = "on"
	displayed := device(mdev1)
	displayed.Display = true
	upper := device(mdev1)
	upper.Handle.MdevUUID = "C2177883-F1BB-47F0-914D-32A22E3A8804"

	devs := func(d ...libvirtxml.DomainHostdev) []libvirtxml.DomainHostdev { return d }
	for _, tc := range []struct {
		name  string
		vm    fakeVM
		other fakeVM
		dev   gpu.Hostdev
		scope gpu.Scope
		code  gpu.Code
		part  string
		calls []string
	}{
		{name: "both in one call", vm: fakeVM{running: true}, scope: both, calls: []string{"attach both"}},
		{name: "T47 live only", vm: fakeVM{running: true}, scope: gpu.Scope{Live: true}, calls: []string{"attach live"}},
		{name: "T47 config of a running VM", vm: fakeVM{running: true}, scope: gpu.Scope{Config: true}, calls: []string{"attach config"}},
		{name: "T47 config of a stopped VM", scope: gpu.Scope{Config: true}, calls: []string{"attach config"}},
		{name: "there already", vm: fakeVM{running: true, live: devs(mine), config: devs(mine)}, scope: both},
		{name: "there already, in capitals", vm: fakeVM{config: devs(mine)}, dev: upper, scope: gpu.Scope{Config: true}},
		{name: "T47 only live is missing", vm: fakeVM{running: true, config: devs(mine)}, scope: both, calls: []string{"attach live"}},
		{name: "T47 only config is missing", vm: fakeVM{running: true, live: devs(mine)}, scope: both, calls: []string{"attach config"}},
		{
			name: "alias means another device", vm: fakeVM{config: devs(hostdev(gpu.Alias(mdev1), gpu.Handle{MdevUUID: mdev2}))},
			scope: gpu.Scope{Config: true}, code: gpu.CodeConflict, part: "in use there for mdev " + mdev2,
		},
		{
			name: "device under another alias of ours", vm: fakeVM{config: devs(hostdev("ua-gpuvirt-x", gpu.Handle{MdevUUID: mdev1}))},
			scope: gpu.Scope{Config: true}, code: gpu.CodeConflict, part: `already, as "ua-gpuvirt-x"`,
		},
		{
			name: "device added by somebody else", vm: fakeVM{running: true, live: devs(hostdev("hostdev0", gpu.Handle{MdevUUID: mdev1}))},
			scope: gpu.Scope{Config: true}, code: gpu.CodeForeignDevice, part: "added by somebody else",
		},
		{
			name: "live on a stopped VM", scope: both,
			code: gpu.CodeConflict, part: "the VM does not run",
		},
		{
			name: "config of a transient VM", vm: fakeVM{running: true, transient: true}, scope: both,
			code: gpu.CodeConflict, part: "transient",
		},
		{
			name: "live of a transient VM", vm: fakeVM{running: true, transient: true}, scope: gpu.Scope{Live: true},
			calls: []string{"attach live"},
		},
		{
			name: "T17 in use by another VM", vm: fakeVM{running: true}, other: fakeVM{running: true, live: devs(mine)}, scope: both,
			code: gpu.CodeBusy, part: "in use by driver QEMU, domain other", calls: []string{"attach both"},
		},
		{
			name: "T42 mdev with the UUID of the VM", vm: fakeVM{running: true},
			dev:   gpu.Hostdev{Alias: "ua-gpuvirt-x", Handle: gpu.Handle{MdevUUID: uuidA}},
			scope: both, code: gpu.CodeInvalid, part: "UUID of the VM",
		},
		{name: "T52 first display", vm: fakeVM{running: true}, dev: displayed, scope: both, calls: []string{"attach both"}},
		{
			name: "T52 second display", vm: fakeVM{running: true, live: devs(withDisplay)}, dev: displayed, scope: both,
			code: gpu.CodeConflict, part: "display already",
		},
		{
			name: "alias that libvirt would drop", dev: gpu.Hostdev{Alias: "web1", Handle: gpu.Handle{MdevUUID: mdev1}}, scope: both,
			code: gpu.CodeInvalid, part: "does not match",
		},
		{name: "no scope", code: gpu.CodeInvalid, part: "neither"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tc.vm.uuid, tc.vm.name = uuidA, "web1"
				tc.other.uuid, tc.other.name = uuidB, "other"
				lv := &fakeLibvirt{vms: []*fakeVM{&tc.vm, &tc.other}}
				c := start(t, lv, Config{})
				if tc.dev.Alias == "" {
					tc.dev = device(mdev1)
				}
				err := c.Attach(t.Context(), uuidA, tc.dev, tc.scope)
				wantCode(t, err, tc.code, tc.part)
				if diff := cmp.Diff(tc.calls, lv.changes()); diff != "" {
					t.Errorf("calls (-want +got):\n%s", diff)
				}
				if err != nil {
					return
				}
				vm, err := c.VM(t.Context(), uuidA)
				if err != nil {
					t.Fatal(err)
				}
				if got := has(vm, tc.dev.Alias); tc.scope.Live && !got.Live || tc.scope.Config && !got.Config {
					t.Errorf("attached %+v, want %+v", got, tc.scope)
				}
			})
		})
	}
}

func TestAttachNamesTheVMThatUsesTheDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv := &fakeLibvirt{vms: []*fakeVM{
			{uuid: uuidA, name: "web1", running: true},
			{uuid: uuidB, name: "other one", running: true, live: []libvirtxml.DomainHostdev{hostdev("hostdev0", gpu.Handle{MdevUUID: mdev1})}},
		}}
		c := start(t, lv, Config{})
		err := c.Attach(t.Context(), uuidA, device(mdev1), both)
		e, _ := errors.AsType[*gpu.Error](err)
		if e == nil || len(e.Blockers) != 1 || e.Blockers[0].Kind != "vm" || e.Blockers[0].Name != "other one" {
			t.Errorf("got %+v, want a blocker vm %q", e, "other one")
		}
	})
}

func TestAttachReadsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv := &fakeLibvirt{vms: []*fakeVM{{uuid: uuidA, name: "web1", running: true}}, lies: true}
		c := start(t, lv, Config{})
		wantCode(t, c.Attach(t.Context(), uuidA, device(mdev1), both), gpu.CodeConflict, "reported success, but")
		wantCode(t, c.Attach(t.Context(), uuidA, device(mdev1), gpu.Scope{Live: true}), gpu.CodeConflict, "the running VM does not have it")
	})
}

// A device that nobody can have yet is added without a look before; one that is there
// after all, or an alias that is, is found by libvirt's refusal.
func TestAttachNew(t *testing.T) {
	mine := hostdev(gpu.Alias(mdev1), gpu.Handle{MdevUUID: mdev1})
	shown := device(mdev1)
	shown.Display = true
	display := hostdev("hostdev0", gpu.Handle{MdevUUID: mdev2})
	display.SubsysMDev.Display = "on"
	devs := func(d ...libvirtxml.DomainHostdev) []libvirtxml.DomainHostdev { return d }
	for _, tc := range []struct {
		name  string
		vm    fakeVM
		other fakeVM
		dev   gpu.Hostdev
		scope gpu.Scope // default: both
		fail  error     // of the attaching
		code  gpu.Code
		part  string
		calls []string
	}{
		{name: "new", vm: fakeVM{running: true}, calls: []string{"attach both", "look back"}},
		{name: "to a transient VM", vm: fakeVM{running: true, transient: true}, scope: gpu.Scope{Live: true}, calls: []string{"attach live", "look back"}},
		{name: "there already", vm: fakeVM{running: true, live: devs(mine), config: devs(mine)}, calls: []string{"attach both", "read"}},
		{
			name: "alias means another device", vm: fakeVM{running: true, live: devs(hostdev(gpu.Alias(mdev1), gpu.Handle{MdevUUID: mdev2}))},
			code: gpu.CodeConflict, part: "in use there for mdev " + mdev2, calls: []string{"attach both", "read"},
		},
		{
			name: "added by somebody else", vm: fakeVM{running: true, config: devs(hostdev("hostdev0", gpu.Handle{MdevUUID: mdev1}))},
			code: gpu.CodeForeignDevice, part: "added by somebody else", calls: []string{"attach both", "read"},
		},
		{
			name: "in use by another VM", vm: fakeVM{running: true}, other: fakeVM{running: true, live: devs(mine)},
			code: gpu.CodeBusy, part: `VM "web1": Requested operation is not valid: mediated device`, calls: []string{"attach both", "read"},
		},
		{name: "the VM has stopped", code: gpu.CodeConflict, part: "the VM does not run", calls: []string{"attach both", "read"}},
		{
			name: "the VM is transient now", vm: fakeVM{running: true, transient: true},
			code: gpu.CodeConflict, part: "transient", calls: []string{"attach both", "read"},
		},
		{
			name: "the guest's hypervisor refuses", vm: fakeVM{running: true}, fail: virError(libvirt.ERR_INTERNAL_ERROR, "internal error: no slot is free"),
			code: gpu.CodeConflict, part: "no slot is free", calls: []string{"attach both", "read"},
		},
		{
			name: "the connection is lost", vm: fakeVM{running: true}, fail: virError(libvirt.ERR_RPC, "Cannot write data: Broken pipe"),
			code: gpu.CodeUnavailable, part: "Broken pipe", calls: []string{"attach both"},
		},
		{
			name: "T52 a second display, which libvirt lets pass", vm: fakeVM{running: true, live: devs(display)}, dev: shown,
			code: gpu.CodeConflict, part: "display already", calls: []string{"read"},
		},
		{
			name: "a PCI device, which may have a history", vm: fakeVM{running: true},
			dev:   gpu.Hostdev{Alias: "ua-gpuvirt-x", Handle: gpu.Handle{PCIAddress: "0000:41:00.4"}},
			calls: []string{"read", "attach both", "look back"},
		},
		{name: "an alias that libvirt would drop", dev: gpu.Hostdev{Alias: "web1", Handle: gpu.Handle{MdevUUID: mdev1}}, code: gpu.CodeInvalid, part: "does not match"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tc.vm.uuid, tc.vm.name = uuidA, "web1"
				tc.other.uuid, tc.other.name = uuidB, "other"
				lv := &fakeLibvirt{vms: []*fakeVM{&tc.vm, &tc.other}}
				if tc.fail != nil {
					lv.fail = map[string]error{"attach both": tc.fail}
				}
				c := start(t, lv, Config{})
				if tc.dev.Alias == "" {
					tc.dev = device(mdev1)
				}
				if tc.scope == (gpu.Scope{}) {
					tc.scope = both
				}
				err := c.AttachNew(t.Context(), uuidA, tc.dev, tc.scope)
				wantCode(t, err, tc.code, tc.part)
				var calls []string
				lv.set(func() {
					for _, call := range lv.calls[1:] { // the first opened the connection
						calls = append(calls, strings.TrimSuffix(call, " "+uuidA))
					}
				})
				if diff := cmp.Diff(tc.calls, calls); diff != "" {
					t.Errorf("calls (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestAttachNewReadsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv := &fakeLibvirt{vms: []*fakeVM{{uuid: uuidA, name: "web1", running: true}}, lies: true}
		c := start(t, lv, Config{})
		wantCode(t, c.AttachNew(t.Context(), uuidA, device(mdev1), both), gpu.CodeConflict, "reported success, but")
	})
}

// What was attached and cannot be looked at is not known to be there.
func TestAttachThatCannotBeSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv := &fakeLibvirt{
			vms:  []*fakeVM{{uuid: uuidA, name: "web1", running: true}},
			fail: map[string]error{"look back": virError(libvirt.ERR_OPERATION_INVALID, "Requested operation is not valid: domain is in transition")},
		}
		c := start(t, lv, Config{})
		wantCode(t, c.Attach(t.Context(), uuidA, device(mdev1), both), gpu.CodeUnavailable, "cannot see whether")
		lv.set(func() { lv.fail = nil })
		wantCode(t, c.Attach(t.Context(), uuidA, device(mdev1), both), "", "") // it was there
	})
}

// A connection that is lost after the attaching is given up like any other.
func TestAttachThatLosesItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv := &fakeLibvirt{
			vms:  []*fakeVM{{uuid: uuidA, name: "web1", running: true}},
			fail: map[string]error{"look back": virError(libvirt.ERR_INTERNAL_ERROR, "internal error: client socket is closed")},
		}
		c := start(t, lv, Config{})
		wantCode(t, c.Attach(t.Context(), uuidA, device(mdev1), both), gpu.CodeUnavailable, "cannot see whether")
		<-time.After(time.Minute)
		var opens int
		lv.set(func() { opens = lv.opens })
		if opens != 2 {
			t.Errorf("%d connections were opened, want 2", opens)
		}
	})
}

func TestAttachOfNoVM(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, &fakeLibvirt{}, Config{})
		wantCode(t, c.Attach(t.Context(), uuidA, device(mdev1), both), gpu.CodeVMNotFound, "")
		wantCode(t, c.Attach(t.Context(), "web1", device(mdev1), both), gpu.CodeInvalid, "not a UUID")
		wantCode(t, c.Detach(t.Context(), uuidA, gpu.Alias(mdev1), both), gpu.CodeVMNotFound, "")
	})
}

// T50: a slow attach is neither cancelled nor taken for a failure.
func TestT50AttachOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := make(chan struct{})
		vm := &fakeVM{uuid: uuidA, name: "web1", running: true}
		lv := &fakeLibvirt{vms: []*fakeVM{vm}, hang: map[string]chan struct{}{"attach both": slow}}
		c := start(t, lv, Config{})

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wantCode(t, c.Attach(ctx, uuidA, device(mdev1), both), gpu.CodeUnavailable, "its outcome is not known")
		if info, _ := c.Info(t.Context()); info.LateCalls != 1 {
			t.Errorf("late calls: %d, want 1", info.LateCalls)
		}
		// Asking again does not start a second change, and reading goes on.
		wantCode(t, c.Attach(t.Context(), uuidA, device(mdev1), both), gpu.CodeUnavailable, "earlier call (attach)")
		if _, err := c.VM(t.Context(), uuidA); err != nil {
			t.Errorf("VM: %v", err)
		}
		// After five minutes it succeeds after all, and asking again sees that.
		<-time.After(5 * time.Minute)
		close(slow)
		synctest.Wait()
		wantCode(t, c.Attach(t.Context(), uuidA, device(mdev1), both), "", "")
		if n := len(vm.live); n != 1 {
			t.Errorf("%d live devices, want 1", n)
		}
	})
}

func TestT49AttachTellsOfADenial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lv := &fakeLibvirt{
			vms: []*fakeVM{{uuid: uuidA, name: "web1", running: true}},
			fail: map[string]error{"attach both": virError(libvirt.ERR_INTERNAL_ERROR,
				"internal error: unable to execute QEMU command 'device_add': vfio: failed to open /dev/vfio/12: Permission denied")},
		}
		c := start(t, lv, Config{})
		err := c.Attach(t.Context(), uuidA, device(mdev1), both)
		wantCode(t, err, gpu.CodeForbidden, "Permission denied")
	})
}
