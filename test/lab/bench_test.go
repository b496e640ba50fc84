//go:build lab && bench

package lab

import (
	"path/filepath"
	"testing"
	"time"
)

// What REST costs over the bare calls, and against the usual tools: make bench.
func TestRatios(t *testing.T) {
	ctx := begin(t, 10*time.Minute, "mbochs")
	_, err := hypervisor.DefineGuest(ctx, "bench", GuestOptions{Start: true})
	must(t, err)
	must(t, hypervisor.Put(ctx, filepath.Join(hypervisor.repo, "bin", "labbench"), "/usr/local/bin/labbench", 0o755))
	t.Logf("ratios of medians, one run:\n%s", run(ctx, t, "labbench -vm bench"))
}

// What tracking costs a write, and how long passes over disks of two sizes take: make bench.
func TestTrackerRatios(t *testing.T) {
	take(t)
	vm := dirtyMachine(t)
	ctx := Scenario(t, vm, 15*time.Minute)
	putDirty(ctx, t, vm)
	_, err := vm.Run(ctx, "modprobe -a loop dm_mod; "+makeNullb0)
	must(t, err)
	dirtyTest(ctx, t, vm, "TestLabPassTime", "")
	dirtyTest(ctx, t, vm, "TestLabCost", "vdb")
	dirtyTest(ctx, t, vm, "TestLabCost", "nullb0")
}
