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
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", vm.path("qmp"))
	if err != nil {
		return fmt.Errorf("cannot reach qemu: %w", err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	out, in := json.NewEncoder(conn), json.NewDecoder(conn)
	for _, name := range []string{"qmp_capabilities", command} {
		if err := out.Encode(map[string]string{"execute": name}); err != nil {
			return fmt.Errorf("cannot send %s to qemu: %w", name, err)
		}
		// Greeting and events come in between.
		for done := false; !done; {
			var answer struct {
				Return json.RawMessage
				Error  *struct{ Desc string }
			}
			if err := in.Decode(&answer); err != nil {
				return fmt.Errorf("cannot read qemu's answer to %s: %w", name, err)
			}
			if answer.Error != nil {
				return fmt.Errorf("cannot run %s in qemu: %s", name, answer.Error.Desc)
			}
			done = answer.Return != nil
		}
	}
	return nil
}
