//go:build lab

package lab

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"time"

	"gpuvirt/test/machine"
)

// Deploy installs the working tree's package as an administrator would, and waits until
// the daemon is ready. make builds the package before.
func (vm *VM) Deploy(ctx context.Context) error {
	if err := vm.Install(ctx, "dist"); err != nil {
		return fmt.Errorf("cannot deploy: %w", err)
	}
	err := vm.WaitReady(ctx)
	vm.deployed = err == nil
	return err
}

// Install installs the DEB of gpuvirt that lies in a folder of the working tree.
func (vm *VM) Install(ctx context.Context, folder string) error {
	debs, err := filepath.Glob(filepath.Join(vm.repo, folder, "gpuvirt_*.deb"))
	if err != nil {
		return err
	}
	if len(debs) != 1 {
		return fmt.Errorf("there are %d packages in %s: make packages builds it", len(debs), folder)
	}
	if err := vm.Put(ctx, debs[0], "/var/tmp/gpuvirt.deb", 0o644); err != nil {
		return err
	}
	// What is not there is said, and what an administrator has changed stays.
	_, err = vm.Run(ctx, "DEBIAN_FRONTEND=noninteractive dpkg --force-confold -i /var/tmp/gpuvirt.deb")
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
	err := machine.WaitFor(ctx, 300*time.Millisecond, func() (bool, error) {
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
rm -rf /var/lib/gpuvirt/* /var/lib/libvirt/images/gpuvirt/* `+guestLogs+`/*.serial*
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
