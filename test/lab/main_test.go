//go:build lab

package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hypervisor is the VM that all scenarios share: a boot is dear.
var hypervisor *VM

func TestMain(m *testing.M) {
	code := runAll(m)
	if code != 0 && len(failed) > 0 && len(failed) == len(lost) && os.Getenv(again) == "" {
		code = runAgain()
	}
	os.Exit(code)
}

// again marks the one second run.
const again = "LAB_AGAIN"

// runAgain gives the scenarios that a dying hypervisor took with it another one, once:
// it is the emulator that failed there, and it may fail anybody. A scenario that
// failed by itself is not run again.
func runAgain() int {
	fmt.Fprintln(os.Stderr, "lab: the hypervisor died; again, on a new one:", strings.Join(lost, " "))
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(a string) bool { return strings.HasPrefix(a, "-test.run=") })
	cmd := exec.Command(os.Args[0], append(args, "-test.run=^("+strings.Join(lost, "|")+")$")...)
	cmd.Env = append(os.Environ(), again+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "lab: the second run:", err)
		return 1
	}
	return 0
}

func runAll(m *testing.M) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	began := time.Now()
	vm, err := Start(ctx, Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	defer vm.Close()
	fmt.Printf("lab: %s is up after %v\n", vm.Suite(), time.Since(began).Round(time.Second))
	// From here an interrupt ends the process; the VM dies with it.
	stop()
	hypervisor = vm
	return m.Run()
}
