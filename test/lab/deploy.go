//go:build lab

package lab

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Deploy puts the working tree's programs and units into the VM, the way the
// package would, starts the daemon and waits until it is ready. make builds
// the programs before.
func (vm *VM) Deploy(ctx context.Context) error {
	for _, name := range []string{"gpuvirtd", "gpuvirt"} {
		if err := vm.Put(ctx, filepath.Join(vm.repo, "bin", name), "/usr/bin/"+name, 0o755); err != nil {
			return fmt.Errorf("cannot deploy: %w", err)
		}
	}
	if err := vm.Put(ctx, filepath.Join(vm.repo, "packaging", "modules-load.d", "gpuvirt.conf"), "/usr/lib/modules-load.d/gpuvirt.conf", 0o644); err != nil {
		return fmt.Errorf("cannot deploy: %w", err)
	}
	units, err := filepath.Glob(filepath.Join(vm.repo, "packaging", "systemd", "*.*"))
	if err != nil {
		return err
	}
	var names []string
	for _, unit := range units {
		name := filepath.Base(unit)
		if err := vm.Put(ctx, unit, "/usr/lib/systemd/system/"+name, 0o644); err != nil {
			return fmt.Errorf("cannot deploy: %w", err)
		}
		if content, err := os.ReadFile(unit); err == nil && strings.Contains(string(content), "[Install]") {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return fmt.Errorf("cannot deploy: no units in packaging/systemd")
	}
	if _, err := vm.Run(ctx, "systemctl restart systemd-modules-load && systemctl daemon-reload && systemctl -q enable "+strings.Join(names, " ")); err != nil {
		return fmt.Errorf("cannot deploy: %w", err)
	}
	err = vm.StartDaemon(ctx)
	vm.deployed = err == nil
	return err
}

// StartDaemon (re)starts the daemon and waits until it is ready.
func (vm *VM) StartDaemon(ctx context.Context) error {
	if _, err := vm.Run(ctx, "systemctl restart gpuvirtd.service"); err != nil {
		status, _ := vm.Run(ctx, "journalctl -b --no-pager -n 30 -u gpuvirtd.service")
		return fmt.Errorf("cannot start the daemon: %w\n%s", err, status)
	}
	return vm.WaitReady(ctx)
}

// WaitReady waits until the daemon answers that it is ready.
func (vm *VM) WaitReady(ctx context.Context) error {
	client := vm.HTTP()
	err := waitFor(ctx, 300*time.Millisecond, func() (bool, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://lab/v1/health/ready", nil)
		if err != nil {
			return false, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return false, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
			return false, fmt.Errorf("health/ready: %s: %s", resp.Status, body)
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("cannot wait for the daemon to be ready: %w", err)
	}
	return nil
}

// Reset brings the VM back to how Deploy left it, for the next scenario: no
// domains, no mdevs, no virtual functions, cards with the drivers they had at boot,
// nothing stored, the daemon running if it is deployed.
// It is quick, unlike a boot.
func (vm *VM) Reset(ctx context.Context) error {
	_, err := vm.Run(ctx, `
set -u
systemctl stop gpuvirtd.service gpuvirt-restore.service 2>/dev/null
for vm in $(virsh list --all --name); do
	virsh -q destroy "$vm" 2>/dev/null
	virsh -q undefine "$vm" || exit 1
done
for mdev in /sys/bus/mdev/devices/*; do
	[ ! -e "$mdev" ] || echo 1 >"$mdev/remove" || exit 1
done
`+resetCards+`
rm -rf /var/lib/gpuvirt/* `+guestLogs+`/*.serial*
find /etc/mdevctl.d -type f -delete
systemctl reset-failed
exit 0`)
	if err != nil {
		return fmt.Errorf("cannot reset the lab: %w", err)
	}
	if _, err := vm.Run(ctx, "systemctl cat gpuvirtd.service >/dev/null 2>&1"); err != nil {
		return ctx.Err()
	}
	return vm.StartDaemon(ctx)
}
