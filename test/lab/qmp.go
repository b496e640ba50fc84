//go:build lab

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
)

// QMP runs a command without arguments on the QEMU that is the hypervisor's
// hardware, such as system_reset.
func (vm *VM) QMP(ctx context.Context, command string) error {
	_, err := vm.execute(ctx, command, nil)
	return err
}

// Monitor returns what QEMU's monitor for people says to a command, such as
// "info registers -a".
func (vm *VM) Monitor(ctx context.Context, command string) (string, error) {
	said, err := vm.execute(ctx, "human-monitor-command", map[string]string{"command-line": command})
	if err != nil {
		return "", err
	}
	var text string
	if err := json.Unmarshal(said, &text); err != nil {
		return "", fmt.Errorf("cannot read qemu's answer to %s: %w", command, err)
	}
	return text, nil
}

// request is a command of QEMU's machine protocol.
type request struct {
	Execute   string            `json:"execute"`
	Arguments map[string]string `json:"arguments,omitempty"`
}

// execute returns what a command of the machine protocol returns.
func (vm *VM) execute(ctx context.Context, command string, arguments map[string]string) (json.RawMessage, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", vm.path("qmp"))
	if err != nil {
		return nil, fmt.Errorf("cannot reach qemu: %w", err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	out, in := json.NewEncoder(conn), json.NewDecoder(conn)
	var returned json.RawMessage
	for _, r := range []request{{Execute: "qmp_capabilities"}, {Execute: command, Arguments: arguments}} {
		if err := out.Encode(r); err != nil {
			return nil, fmt.Errorf("cannot send %s to qemu: %w", r.Execute, err)
		}
		returned = nil
		// Greeting and events come in between.
		for returned == nil {
			var answer struct {
				Return json.RawMessage
				Error  *struct{ Desc string }
			}
			if err := in.Decode(&answer); err != nil {
				return nil, fmt.Errorf("cannot read qemu's answer to %s: %w", r.Execute, err)
			}
			if answer.Error != nil {
				return nil, fmt.Errorf("cannot run %s in qemu: %s", r.Execute, answer.Error.Desc)
			}
			returned = answer.Return
		}
	}
	return returned, nil
}
