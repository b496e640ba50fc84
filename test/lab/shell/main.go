//go:build lab

// Command shell boots the lab, deploys the working tree's daemon and opens a
// root shell in it. The lab is gone when the shell ends.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"gpuvirt/test/lab"
)

func main() {
	guests := flag.Int("guests", 1, "number of guests to define, named vm1, vm2, …")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, *guests)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, guests int) error {
	fmt.Println("lab: booting, this takes about half a minute")
	vm, err := lab.Start(ctx, lab.Options{})
	if err != nil {
		return err
	}
	defer vm.Close()
	// A daemon that does not come up is a reason to look at it, not to leave.
	if err := vm.Deploy(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
	}
	for n := range guests {
		if _, err := vm.DefineGuest(ctx, fmt.Sprintf("vm%d", n+1), lab.GuestOptions{}); err != nil {
			return err
		}
	}
	fmt.Printf("lab: %s is up; %d guests vm1, … are defined, not started: virsh start vm1\n", vm.Suite(), guests)
	fmt.Println("lab: a guest's console: tail -F /var/log/libvirt/qemu/vm1.serial; the lab ends with this shell")
	return vm.Shell(ctx)
}
