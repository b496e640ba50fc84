package vmapi

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"libvirt.org/go/libvirt"

	"gpuvirt/gpu"
)

// A cause is a libvirt error that reads as a sentence.
type cause struct{ err libvirt.Error }

func (c cause) Error() string { return c.err.Message }
func (c cause) Unwrap() error { return c.err }

// fault makes an error of ours from one of libvirt, of a context, or of our own;
// the format says what could not be done. Codes of libvirt become kinds here and
// nowhere else.
func fault(err error, format string, args ...any) *gpu.Error {
	what := fmt.Sprintf(format, args...)
	if own, ok := errors.AsType[*gpu.Error](err); ok {
		e := gpu.Errorf(own.Code, "%s: %w", what, err).WithBlockers(own.Blockers...)
		e.Hint, e.Diff = own.Hint, own.Diff
		return e
	}
	virt, ok := errors.AsType[libvirt.Error](err)
	switch {
	case ok:
		code, hint, blockers := classify(virt)
		e := gpu.Errorf(code, "%s: %w", what, cause{virt}).WithBlockers(blockers...)
		e.Hint = hint
		return e
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return gpu.Errorf(gpu.CodeUnavailable, "%s: %w", what, err)
	default:
		return gpu.Errorf(gpu.CodeInternal, "%s: %w", what, err)
	}
}

var (
	inUse    = regexp.MustCompile(`in use by driver \S+, domain (.+)$`)
	lostText = []string{
		"client socket is closed", "End of file while reading data", "Cannot recv data", "Cannot write data",
		"Broken pipe", "Connection reset by peer", "connection is closed", "received hangup", "keepalive timeout",
		"invalid connection pointer",
	}
	deniedText = []string{"Permission denied", "Operation not permitted", "apparmor", "AppArmor", "SELinux", "avc:"}
)

// classify returns the kind of a libvirt error, what to do about it, and what
// blocks. The text is looked at only where libvirt has one code for many causes.
func classify(e libvirt.Error) (code gpu.Code, hint string, blockers []gpu.Blocker) {
	if isLoss(e) {
		return gpu.CodeUnavailable, "gpuvirtd connects again by itself when libvirt is back", nil
	}
	if libraryMissing(e) {
		return gpu.CodeUnavailable, "install the package libvirt0 and restart gpuvirtd", nil
	}
	if m := inUse.FindStringSubmatch(e.Message); m != nil {
		// libvirt tells the name only; it finds the VM as well as the UUID does.
		return gpu.CodeBusy, "detach the device from that VM first",
			[]gpu.Blocker{{Kind: "vm", ID: m[1], Name: m[1], Note: "uses the device"}}
	}
	if isCode(e, libvirt.ERR_ACCESS_DENIED, libvirt.ERR_AUTH_FAILED, libvirt.ERR_AUTH_UNAVAILABLE, libvirt.ERR_OPERATION_DENIED) {
		return gpu.CodeForbidden, "libvirt refuses this connection; see its polkit rules and access drivers", nil
	}
	if containsAny(e.Message, deniedText) {
		return gpu.CodeForbidden, "a security module or file mode denies it; " +
			"look for AppArmor or SELinux denials in the kernel log (journalctl -k)", nil
	}
	if strings.Contains(e.Message, "Device or resource busy") {
		return gpu.CodeBusy, "another process holds the device", nil
	}
	if strings.Contains(e.Message, "Cannot access storage file") {
		return gpu.CodeNotFound, "a disk of the VM is missing, or QEMU's user cannot read it", nil
	}
	if unsupported(e) {
		return gpu.CodeInvalid, "libvirt on this host is too old for that, or its driver cannot do it", nil
	}
	for _, k := range kinds() {
		if isCode(e, k.numbers...) {
			return k.code, k.hint, nil
		}
	}
	return gpu.CodeUnavailable, "", nil // what it means for the VM is not known
}

// A kind is what some of libvirt's codes mean.
type kind struct {
	code    gpu.Code
	hint    string
	numbers []libvirt.ErrorNumber
}

func kinds() []kind {
	return []kind{
		{gpu.CodeVMNotFound, "", []libvirt.ErrorNumber{libvirt.ERR_NO_DOMAIN, libvirt.ERR_INVALID_DOMAIN}},
		{gpu.CodeNotFound, "", []libvirt.ErrorNumber{libvirt.ERR_DEVICE_MISSING, libvirt.ERR_NO_DEVICE, libvirt.ERR_NO_NETWORK}},
		{
			gpu.CodeBusy, "another job of libvirt holds the VM; try again when it has ended",
			[]libvirt.ErrorNumber{libvirt.ERR_OPERATION_TIMEOUT, libvirt.ERR_RESOURCE_BUSY},
		},
		{gpu.CodeInvalid, "", []libvirt.ErrorNumber{
			libvirt.ERR_CONFIG_UNSUPPORTED, libvirt.ERR_OPERATION_UNSUPPORTED, libvirt.ERR_ARGUMENT_UNSUPPORTED,
		}},
		{gpu.CodeConflict, "", []libvirt.ErrorNumber{
			libvirt.ERR_OPERATION_INVALID, libvirt.ERR_OPERATION_FAILED, libvirt.ERR_OPERATION_ABORTED,
			libvirt.ERR_HOOK_SCRIPT_FAILED, libvirt.ERR_DOM_EXIST, libvirt.ERR_NETWORK_EXIST,
			libvirt.ERR_INTERNAL_ERROR, // the last for whatever QEMU refuses
		}},
		{gpu.CodeInternal, "", []libvirt.ErrorNumber{
			libvirt.ERR_XML_ERROR, libvirt.ERR_XML_DETAIL, libvirt.ERR_XML_INVALID_SCHEMA, libvirt.ERR_INVALID_ARG,
		}},
	}
}

// isLoss reports whether an error means that the connection is gone, so that
// nothing is known of what the call did.
func isLoss(err error) bool {
	e, ok := errors.AsType[libvirt.Error](err)
	if !ok {
		return false
	}
	return isCode(e, libvirt.ERR_NO_CONNECT, libvirt.ERR_INVALID_CONN) ||
		isCode(e, libvirt.ERR_RPC) && !unsupported(e) ||
		isCode(e, libvirt.ERR_SYSTEM_ERROR, libvirt.ERR_INTERNAL_ERROR) && containsAny(e.Message, lostText)
}

// libraryMissing reports whether libvirt.so.0 could not be loaded.
func libraryMissing(e libvirt.Error) bool {
	return strings.Contains(e.Message, "Failed to open libvirt.so") ||
		strings.Contains(e.Message, "libvirt.so.0: cannot open shared object")
}

// unsupported reports whether libvirt lacks a call. A daemon older than its client
// library says so in a way of its own.
func unsupported(err error) bool {
	e, ok := errors.AsType[libvirt.Error](err)
	return ok && (isCode(e, libvirt.ERR_NO_SUPPORT) ||
		isCode(e, libvirt.ERR_RPC) && strings.Contains(e.Message, "unknown procedure"))
}

// unplugPending reports whether QEMU still waits for the guest to answer an
// earlier request.
func unplugPending(err error) bool {
	e, ok := errors.AsType[libvirt.Error](err)
	return ok && strings.Contains(e.Message, "already in the process of unplug")
}

// guestRefused reports whether the guest said no at once.
func guestRefused(err error) bool {
	e, ok := errors.AsType[libvirt.Error](err)
	return ok && strings.Contains(e.Message, "rejected by the guest")
}

// isCode reports whether an error is libvirt's with one of the codes.
func isCode(err error, codes ...libvirt.ErrorNumber) bool {
	for _, c := range codes {
		if errors.Is(err, c) {
			return true
		}
	}
	return false
}

func containsAny(s string, parts []string) bool {
	for _, p := range parts {
		if strings.Contains(s, p) {
			return true
		}
	}
	return false
}
