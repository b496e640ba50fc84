//go:build lab

package lab

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"
)

// hypervisor is the VM that all scenarios share: a boot is dear.
var hypervisor *VM

func TestMain(m *testing.M) { os.Exit(runAll(m)) }

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
