package vmapi

import (
	"context"
	"errors"
	"strings"
	"testing"

	"libvirt.org/go/libvirt"

	"gpuvirt/gpu"
)

func TestFault(t *testing.T) {
	for _, tc := range []struct {
		name string
		code libvirt.ErrorNumber
		msg  string
		want gpu.Code
		hint string // part of it
		vm   string // name of the blocker
		lost bool
	}{
		{name: "no domain", code: libvirt.ERR_NO_DOMAIN, msg: "Domain not found", want: gpu.CodeVMNotFound},
		{name: "not running", code: libvirt.ERR_OPERATION_INVALID, msg: "Requested operation is not valid: domain is not running", want: gpu.CodeConflict},
		{name: "config", code: libvirt.ERR_CONFIG_UNSUPPORTED, msg: "unsupported configuration: hotplug is not supported", want: gpu.CodeInvalid},
		{name: "operation", code: libvirt.ERR_OPERATION_UNSUPPORTED, msg: "Operation not supported", want: gpu.CodeInvalid},
		{name: "driver lacks it", code: libvirt.ERR_NO_SUPPORT, msg: "this function is not supported by the connection driver", want: gpu.CodeInvalid, hint: "too old"},
		{name: "daemon lacks it", code: libvirt.ERR_RPC, msg: "unknown procedure: 402", want: gpu.CodeInvalid, hint: "too old"},
		{name: "T50 another job", code: libvirt.ERR_OPERATION_TIMEOUT, msg: "Timed out during operation: cannot acquire state change lock (held by monitor=remoteDispatchDomainCreate)", want: gpu.CodeBusy, hint: "another job"},
		{name: "no device", code: libvirt.ERR_DEVICE_MISSING, msg: "device not found: no device found with alias ua-x", want: gpu.CodeNotFound},
		{name: "T23 rpc", code: libvirt.ERR_RPC, msg: "internal error: End of file while reading data", want: gpu.CodeUnavailable, lost: true},
		{name: "T23 no connection", code: libvirt.ERR_NO_CONNECT, msg: "no connection driver available", want: gpu.CodeUnavailable, lost: true},
		{name: "T23 invalid connection", code: libvirt.ERR_INVALID_CONN, msg: "invalid connection pointer", want: gpu.CodeUnavailable, lost: true},
		{name: "T23 socket closed", code: libvirt.ERR_INTERNAL_ERROR, msg: "internal error: client socket is closed", want: gpu.CodeUnavailable, lost: true},
		{name: "T23 reset", code: libvirt.ERR_SYSTEM_ERROR, msg: "Cannot recv data: Connection reset by peer", want: gpu.CodeUnavailable, lost: true},
		{name: "T23 no socket", code: libvirt.ERR_SYSTEM_ERROR, msg: "Failed to connect socket: No such file or directory", want: gpu.CodeUnavailable},
		{name: "library", code: libvirt.ERR_INTERNAL_ERROR, msg: "Failed to open libvirt.so.0", want: gpu.CodeUnavailable, hint: "install the package libvirt0"},
		{name: "no disk", code: libvirt.ERR_SYSTEM_ERROR, msg: "Cannot access storage file '/srv/0.qcow2' (as uid:64055, gid:64055): No such file or directory", want: gpu.CodeNotFound, hint: "disk"},
		{name: "disk of another", code: libvirt.ERR_SYSTEM_ERROR, msg: "Cannot access storage file '/srv/0.qcow2' (as uid:64055, gid:64055): Permission denied", want: gpu.CodeForbidden},
		{name: "no network", code: libvirt.ERR_NO_NETWORK, msg: "Network not found", want: gpu.CodeNotFound},
		{name: "T49 mode", code: libvirt.ERR_INTERNAL_ERROR, msg: "vfio: failed to open /dev/vfio/12: Permission denied", want: gpu.CodeForbidden, hint: "AppArmor"},
		{name: "T49 AppArmor", code: libvirt.ERR_INTERNAL_ERROR, msg: "internal error: cannot load AppArmor profile 'libvirt-…'", want: gpu.CodeForbidden, hint: "AppArmor"},
		{name: "T49 eperm", code: libvirt.ERR_SYSTEM_ERROR, msg: "cannot limit locked memory: Operation not permitted", want: gpu.CodeForbidden, hint: "AppArmor"},
		{name: "T49 polkit", code: libvirt.ERR_AUTH_UNAVAILABLE, msg: "authentication unavailable: no polkit agent", want: gpu.CodeForbidden, hint: "polkit"},
		{name: "T49 access driver", code: libvirt.ERR_ACCESS_DENIED, msg: "access denied: 'QEMU' denied access", want: gpu.CodeForbidden, hint: "polkit"},
		{name: "T17 pci in use", code: libvirt.ERR_OPERATION_INVALID, msg: "Requested operation is not valid: PCI device 0000:41:00.4 is in use by driver QEMU, domain db 1", want: gpu.CodeBusy, vm: "db 1"},
		{name: "T17 mdev in use", code: libvirt.ERR_OPERATION_INVALID, msg: "Requested operation is not valid: mediated device /sys/bus/mdev/devices/x is in use by driver QEMU, domain db", want: gpu.CodeBusy, vm: "db"},
		{name: "T17 file in use", code: libvirt.ERR_INTERNAL_ERROR, msg: "vfio: error opening /dev/vfio/12: Device or resource busy", want: gpu.CodeBusy},
		{name: "qemu refuses", code: libvirt.ERR_INTERNAL_ERROR, msg: "internal error: unable to execute QEMU command 'device_add': group 12 is not viable", want: gpu.CodeConflict},
		{name: "operation failed", code: libvirt.ERR_OPERATION_FAILED, msg: "operation failed: x", want: gpu.CodeConflict},
		{name: "our defect", code: libvirt.ERR_XML_ERROR, msg: "XML error: non unique alias detected", want: gpu.CodeInternal},
		{name: "unheard of", code: libvirt.ErrorNumber(9999), msg: "x", want: gpu.CodeUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			virt := libvirt.Error{Code: tc.code, Message: tc.msg}
			err := fault(virt, "cannot attach %q to VM %q", "ua-x", "web1")
			if err.Code != tc.want || !strings.Contains(err.Hint, tc.hint) {
				t.Errorf("got %s, hint %q; want %s, %q", err.Code, err.Hint, tc.want, tc.hint)
			}
			if want := `cannot attach "ua-x" to VM "web1": ` + tc.msg; err.Error() != want {
				t.Errorf("got %q, want %q", err, want)
			}
			if !errors.Is(err, tc.code) {
				t.Error("the cause is not in its chain")
			}
			name := ""
			if len(err.Blockers) == 1 {
				name = err.Blockers[0].Name
			}
			if name != tc.vm {
				t.Errorf("blockers %+v, want VM %q", err.Blockers, tc.vm)
			}
			if isLoss(virt) != tc.lost {
				t.Errorf("isLoss = %v", !tc.lost)
			}
		})
	}
}

func TestFaultOfOthers(t *testing.T) {
	own := gpu.Errorf(gpu.CodeStuck, "inner").WithHint("do it").WithBlockers(gpu.Blocker{Kind: "vm"})
	got := fault(own, "outer")
	if got.Code != gpu.CodeStuck || got.Error() != "outer: inner" || got.Hint != "do it" || len(got.Blockers) != 1 {
		t.Errorf("got %+v", got)
	}
	if c := fault(context.DeadlineExceeded, "x").Code; c != gpu.CodeUnavailable {
		t.Errorf("deadline: %s", c)
	}
	if c := fault(errors.New("y"), "x").Code; c != gpu.CodeInternal {
		t.Errorf("other: %s", c)
	}
}
