// Command simhost makes a simulated host and gives it trouble, for tests that are not
// written in Go: the daemon that serves the host sees it at once.
//
//	simhost DIR cards KIND…            a new host with these cards, at 0000:41:00.0, 0000:42:00.0, …
//	simhost DIR define VM UUID         a VM that does not run
//	simhost DIR undefine|start|shutdown VM
//	simhost DIR agent VM JSON          how its guest agent behaves, as sim.Agent has it
//	simhost DIR stubborn VM true|false its guest never lets go of a device
//	simhost DIR hold DEVICE PID NAME   a process has an mdev (by UUID) or a function open
//	simhost DIR release DEVICE
//	simhost DIR watch CARD PID NAME    a process has a card of NVIDIA open
//	simhost DIR compute CARD PID INST  a process computes on a GPU instance, by the driver's id of it
//	simhost DIR idle CARD
//	simhost DIR fail OP PATTERN ERRNO  read, write, list or link fails on what matches
//	simhost DIR hang OP PATTERN        or does not return
//	simhost DIR heal                   takes back what fails and hangs
//	simhost DIR libvirt up|down
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "simhost:", err)
		os.Exit(1)
	}
}

var kinds = map[string]func(address string, numa int) sim.Card{
	"t4": sim.T4, "a100": sim.A100, "h100": sim.H100, "flex": sim.Flex, "l40s": sim.L40S,
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("it takes the folder of a host, a command and its arguments")
	}
	dir, command, args := args[0], args[1], args[2:]
	if command == "cards" {
		return cards(dir, args)
	}
	h, err := sim.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(trouble(h, command, args), h.Close())
}

func cards(dir string, names []string) error {
	var all []sim.Card
	for i, name := range names {
		kind, known := kinds[name]
		if !known {
			return fmt.Errorf("there is no card %q", name)
		}
		all = append(all, kind(fmt.Sprintf("0000:4%d:00.0", i+1), 0))
	}
	h, err := sim.Open(dir, all...)
	if err != nil {
		return err
	}
	return h.Close()
}

func trouble(h *sim.Host, command string, args []string) error {
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	switch command {
	case "define":
		return h.Libvirt.SetVM(gpu.VM{Name: arg(0), UUID: arg(1), State: gpu.VMShutoff, Persistent: true})
	case "undefine":
		return h.Libvirt.DropVM(arg(0))
	case "start":
		return h.Libvirt.Boot(arg(0))
	case "shutdown":
		return h.Libvirt.Shutdown(arg(0))
	case "agent":
		var a sim.Agent
		if err := json.Unmarshal([]byte(arg(1)), &a); err != nil {
			return fmt.Errorf("cannot set the agent of %q: %w", arg(0), err)
		}
		return h.Libvirt.SetAgent(arg(0), a)
	case "stubborn":
		return h.Libvirt.SetStubborn(arg(0), arg(1) == "true")
	case "release":
		return h.Release(arg(0))
	case "idle":
		return h.Idle(arg(0))
	case "hang":
		return h.Inject(sim.Fault{Op: arg(0), Path: arg(1), Hang: true})
	case "heal":
		return h.Clear("")
	case "libvirt":
		return h.Libvirt.SetDown(arg(0) == "down")
	}
	number, err := strconv.Atoi(arg(1))
	if command == "fail" {
		number, err = strconv.Atoi(arg(2))
	}
	if err != nil {
		return fmt.Errorf("cannot %s %q: %w", command, args, err)
	}
	switch command {
	case "hold":
		return h.Hold(arg(0), number, arg(2))
	case "compute":
		instance, err := strconv.Atoi(arg(2))
		return errors.Join(err, h.Compute(arg(0), mig.Process{PID: number, Instance: instance}))
	case "watch":
		return h.Watch(arg(0), number, arg(2))
	case "fail":
		return h.Inject(sim.Fault{Op: arg(0), Path: arg(1), Errno: syscall.Errno(number)})
	}
	return fmt.Errorf("there is no command %q", command)
}
