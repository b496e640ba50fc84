//go:build lab

package lab

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hypervisor is the VM that the scenarios of a process share: a boot is dear.
var hypervisor *VM

func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.list").Value.String() != "" {
		os.Exit(m.Run())
	}
	if os.Getenv(workerVar) == "" && thisRun() == 1 {
		scenarios, err := asked()
		n := 0
		if err == nil {
			n, err = hypervisors(len(scenarios))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "lab:", err)
			os.Exit(1)
		}
		if n > 1 {
			os.Exit(share(scenarios, n))
		}
	}
	code := runAll(m)
	if code != 0 && len(failed) > 0 && len(failed) == len(lost) {
		code = runAgain()
	}
	os.Exit(code)
}

// A scenario may take this many hypervisors. One that reboots with guests that start
// by themselves loses its own in up to one run of ten.
const maxRuns = 4

// runNumber is the variable that counts the runs; unset in the first.
const runNumber = "LAB_RUN"

// thisRun is the number of this run, 1 for the first.
func thisRun() int { return numbered(runNumber) }

// runAgain gives the scenarios that a dying hypervisor took with it another one: it is
// the emulator that failed there, and it may fail anybody. A scenario that failed by
// itself is not run again, and fails the run whatever was lost besides.
func runAgain() int {
	run := thisRun()
	names := strings.Join(lost, " ")
	if run == maxRuns {
		fmt.Fprintf(os.Stderr, "lab: %d hypervisors died under: %s\n", run, names)
		return 1
	}
	fmt.Fprintf(os.Stderr, "lab: the hypervisor died; run %d of at most %d, on a new one: %s\n", run+1, maxRuns, names)
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(a string) bool { return strings.HasPrefix(a, "-test.run=") })
	cmd := exec.Command(os.Args[0], append(args, "-test.run=^("+strings.Join(lost, "|")+")$")...)
	cmd.Env = append(os.Environ(), runNumber+"="+strconv.Itoa(run+1), sharedVar+"=")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "lab: run %d: %v\n", run+1, err)
		return 1
	}
	return 0
}

func runAll(m *testing.M) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	began := time.Now()
	vm, err := Start(ctx, Options{OneCPU: thisRun() > 1 || shared(), Number: worker()})
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		if shared() {
			return notBooted
		}
		return 1
	}
	defer vm.Close()
	fmt.Printf("lab: hypervisor %d, %s, is up after %v\n", worker(), vm.Suite(), time.Since(began).Round(time.Second))
	// From here an interrupt ends the process; the VM dies with it.
	stop()
	hypervisor = vm
	return m.Run()
}
