package vmapi

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"libvirt.org/go/libvirt"

	"gpuvirt/gpu"
)

// Agent has the QEMU guest agent in a running VM carry out a command, such as
// {"execute":"guest-ping"}, and returns its answer, JSON as well: {"return":{}}. It waits
// until the deadline of ctx, and for Config.CallTimeout at most, as one call in libvirt
// holds the agent of the VM. What the answer says is the guest's: it may be anything, of
// several MiB.
//
// Errors: gpu.CodeInvalid, the agent has refused the command, or the VM has no channel for
// an agent; gpu.CodeConflict, the VM does not run; gpu.CodeUnavailable, the agent is not
// connected (yet) or does not answer, and it is not known whether it carries out the
// command.
func (c *Client) Agent(ctx context.Context, vmUUID, command string) (string, error) {
	id, err := parseUUID(vmUUID)
	if err != nil {
		return "", gpu.Errorf(gpu.CodeInvalid, "cannot ask the agent of VM %q: %w", vmUUID, err)
	}
	if !json.Valid([]byte(command)) {
		return "", gpu.Errorf(gpu.CodeInvalid, "cannot ask the agent of VM %q: the command is not JSON", vmUUID)
	}
	patience := c.cfg.CallTimeout
	if deadline, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(deadline))
	}
	// libvirt gives up first, so that no call is left behind.
	seconds := max(1, int((patience-time.Second)/time.Second))
	answer, err := call(ctx, c, request{what: "ask the agent", vm: id}, func(hv hypervisor) (string, error) {
		return hv.Agent(id, command, seconds)
	})
	if err != nil {
		return "", agentFault(err, id)
	}
	return answer, nil
}

// agentFault makes the error of a command that got no answer.
func agentFault(err error, id string) *gpu.Error {
	e := fault(err, "cannot ask the agent of VM %q", id)
	virt, ok := errors.AsType[libvirt.Error](err)
	switch {
	case !ok || isLoss(err):
	case strings.Contains(virt.Message, "libvirt-qemu.so"):
		e.Code, e.Hint = gpu.CodeUnavailable, "install libvirt-qemu.so.0, which comes with libvirt.so.0, and restart gpuvirtd"
	case isCode(err, libvirt.ERR_AGENT_UNRESPONSIVE, libvirt.ERR_AGENT_UNSYNCED, libvirt.ERR_AGENT_COMMAND_TIMEOUT):
		e.Code, e.Hint = gpu.CodeUnavailable, ""
	case isCode(err, libvirt.ERR_AGENT_COMMAND_FAILED), strings.Contains(virt.Message, "unable to execute QEMU agent command"):
		e.Code, e.Hint = gpu.CodeInvalid, "" // whatever the guest says
	}
	return e
}
