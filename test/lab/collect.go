//go:build lab

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// What Collect packs. Each part goes on when another fails: this runs when
// something is broken.
const collectScript = `
dir=$(mktemp -d)
cd "$dir"
journalctl --no-pager -o short-precise >journal.txt 2>&1
systemctl list-units --all --no-pager >units.txt 2>&1
dmesg >dmesg.txt 2>&1
ps axo pid,ppid,stat,wchan:20,etime,args >processes.txt 2>&1
ls -l /sys/bus/mdev/devices /dev/vfio >mdevs.txt 2>&1
grep -s . /sys/class/mdev_bus/*/mdev_supported_types/*/available_instances >>mdevs.txt
timeout 20 virsh list --all >domains.txt 2>&1
for vm in $(timeout 20 virsh list --all --name); do
	timeout 20 virsh dumpxml "$vm" >"$vm.live.xml" 2>&1
	timeout 20 virsh dumpxml --inactive "$vm" >"$vm.inactive.xml" 2>&1
done
mkdir guests
cp -a /var/log/libvirt/qemu/. guests/
for what in gpus partitions assignments operations vms; do
	timeout 20 gpuvirt "${what%s}" list -o json >"gpuvirt-$what.json" 2>&1
done
tar -cf - .
cd /
rm -rf "$dir"
`

// Collect saves what explains a failure into a local folder: journal, units,
// processes, domains live and inactive, the serial logs of the guests and of
// the hypervisor.
func (vm *VM) Collect(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot collect: %w", err)
	}
	// The console first: it is all there is when the rest cannot be reached.
	if console, err := os.ReadFile(vm.serialLog); err == nil {
		if err := os.WriteFile(filepath.Join(dir, "hypervisor.log"), console, 0o644); err != nil {
			return fmt.Errorf("cannot collect: %w", err)
		}
	}
	tarball, err := vm.Run(ctx, collectScript)
	if err != nil && tarball == "" {
		return fmt.Errorf("cannot collect: %w", err)
	}
	cmd := exec.CommandContext(ctx, "tar", "-x", "-C", dir, "--no-same-owner", "--no-same-permissions")
	cmd.Stdin = strings.NewReader(tarball)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("cannot unpack what was collected: %w: %s", err, errs.Bytes())
	}
	return nil
}

// Scenarios that failed, and those of them that were lost because the hypervisor
// died below them.
var failed, lost []string

// Scenario begins a test on the shared VM: a context that ends with the test's
// limit, and the evidence in test/lab/out/NAME should the test fail. A hypervisor
// that died in an earlier one is replaced.
func Scenario(t *testing.T, vm *VM, limit time.Duration) context.Context {
	t.Helper()
	take(t)
	began := time.Now()
	t.Cleanup(func() { // the last one
		word := "passed"
		if t.Failed() {
			word = "FAILED"
		}
		fmt.Printf("lab: hypervisor %d: %4.0f s: %s %s\n", vm.opts.Number, time.Since(began).Seconds(), t.Name(), word)
	})
	dir := filepath.Join(vm.repo, "test", "lab", "out", strings.ReplaceAll(t.Name(), "/", "_"))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if vm.opts.OneCPU {
		limit *= 2
	}
	timeout, stop := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("the scenario took longer than %v", limit))
	ctx, cancel := context.WithCancelCause(timeout)
	var watch sync.WaitGroup
	t.Cleanup(func() {
		stop()
		watch.Wait()
		if !t.Failed() {
			return
		}
		failed = append(failed, t.Name())
		if why := vm.Died(); why != "" {
			lost = append(lost, t.Name())
			t.Logf("the hypervisor died: %s (console: %s)", why, vm.serialLog)
			return // it tells nothing more
		}
		// The test's own context has ended by now.
		ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
		defer cancel()
		if err := vm.Collect(ctx, dir); err != nil {
			t.Logf("cannot save everything about the failure: %v", err)
		}
		t.Logf("what explains the failure is in %s", dir)
	})
	if vm.Died() != "" {
		if err := vm.Renew(ctx); err != nil {
			t.Fatal(err)
		}
	}
	watch.Go(func() { vm.watch(ctx, cancel) })
	return ctx
}

// watch ends a scenario whose hypervisor dies: nothing would answer until its limit.
func (vm *VM) watch(ctx context.Context, end context.CancelCauseFunc) {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if why := vm.Died(); why != "" {
				end(errors.New("the hypervisor died: " + why))
				return
			}
		}
	}
}
