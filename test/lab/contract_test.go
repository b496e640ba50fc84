//go:build lab

package lab

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The backend's contract test, run inside the lab as root on the kernel's mdev bus.
func TestContractOnTheRealBus(t *testing.T) {
	ctx := begin(t, 4*time.Minute)
	binary := filepath.Join(t.TempDir(), "mdev.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "lab", "-o", binary, "./mdev")
	build.Dir = hypervisor.repo
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the contract test: %v: %s", err, out)
	}
	must(t, hypervisor.Put(ctx, binary, "/run/mdev.test", 0o755))
	out, err := hypervisor.Run(ctx, "cd /run && ./mdev.test -test.v -test.timeout 3m -test.run '^TestContractOnTheRealBus$' 2>&1; echo exit $?; rm mdev.test")
	must(t, err)
	if !strings.HasSuffix(strings.TrimSpace(out), "exit 0") || !strings.Contains(out, "--- PASS: TestContractOnTheRealBus/mtty") {
		t.Errorf("the contract does not hold:\n%s", out)
	}
	if got := mdevs(ctx, t); len(got) != 0 {
		t.Errorf("it left %q", got)
	}
}
