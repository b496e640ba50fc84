//go:build lab

package lab

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The contract of each backend that a card here can play for, as root on the real kernel:
// mediated devices on devices of their own and on virtual functions, functions that take
// a type in both dialects of errors, plain functions, and a whole card.
func TestContracts(t *testing.T) {
	ctx := begin(t, 8*time.Minute)
	run(ctx, t, "systemctl stop gpuvirtd") // it would only look on, and take its time
	putContracts(ctx, t, "mdev")
	putContracts(ctx, t, "sriov")
	contract(ctx, t, "mdev", "TestLabBus")

	must(t, hypervisor.EnableVFs(ctx, SRIOVCard, VFs-1))
	contract(ctx, t, "sriov", "TestLabFunctions")
	before := drivers(ctx, t, WholeCard, WholeCardUSB)
	contract(ctx, t, "sriov", "TestLabCard")
	if got := drivers(ctx, t, WholeCard, WholeCardUSB); got != before {
		t.Errorf("the card and its companion are at %s, and were at %s", got, before)
	}

	must(t, hypervisor.LoadVGPU(ctx, "flavour=mdev"))
	must(t, hypervisor.EnableVFs(ctx, VGPUCard, VFs))
	contract(ctx, t, "mdev", "TestLabBusFunctions")
	if got := mdevs(ctx, t); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
	must(t, hypervisor.EnableVFs(ctx, VGPUCard, 0))
	must(t, hypervisor.LoadVGPU(ctx))
	must(t, hypervisor.EnableVFs(ctx, VGPUCard, VFs))
	for _, rfc := range []string{"0", "1"} {
		must(t, hypervisor.SetVGPU(ctx, "rfc_errors", rfc))
		contract(ctx, t, "mdev", "TestLabVendorFunctions")
		if got := run(ctx, t, "cat "+pciDevices+"0000:02:*/nvidia/current_vgpu_type | tr -d '\\n'"); got != "0000" {
			t.Errorf("left: types %s", got)
		}
	}
}

// putContracts puts the tests of a package for the lab into it.
func putContracts(ctx context.Context, t *testing.T, pkg string) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), pkg+".test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "lab", "-o", binary, "./"+pkg)
	build.Dir = hypervisor.repo
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the contract test: %v: %s", err, out)
	}
	must(t, hypervisor.Put(ctx, binary, "/run/"+pkg+".test", 0o755))
}

// contract runs one of them.
func contract(ctx context.Context, t *testing.T, pkg, test string) {
	t.Helper()
	began := time.Now()
	out, err := hypervisor.Run(ctx, "cd /run && ./"+pkg+".test -test.v -test.timeout 3m -test.run '^"+test+"$' 2>&1; echo exit $?")
	must(t, err)
	if !strings.HasSuffix(strings.TrimSpace(out), "exit 0") || !strings.Contains(out, "--- PASS: "+test+" ") {
		t.Errorf("the contract does not hold:\n%s", out)
	}
	t.Logf("%s in %.0f s", test, time.Since(began).Seconds())
}
