//go:build lab

package lab

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// The scenarios are shared out to two hypervisors, each of a process of its own, which takes the next one that
// no other has taken. Each has one processor, as the machine has not more for it: kernels do not lose threads,
// timers or themselves then, as they do where processors of one emulator run at the same moment.
const (
	hypervisorsVar = "LAB_HYPERVISORS" // how many, at most; default 2
	workerVar      = "LAB_WORKER"      // which one a process has, from 1
	sharedVar      = "LAB_SHARED"      // the folder in which a scenario is taken
)

// shared reports whether other processes take scenarios, too.
func shared() bool { return os.Getenv(sharedVar) != "" }

// notBooted is the exit status of a process whose hypervisor never came up: it has taken nothing, and
// the others do all.
const notBooted = 3

// worker is the number of this process, 1 where there is only one.
func worker() int { return numbered(workerVar) }

// numbered is the number that a variable holds; 1 where it holds none.
func numbered(variable string) int {
	if n, err := strconv.Atoi(os.Getenv(variable)); err == nil {
		return n
	}
	return 1
}

// taken are the scenarios of this process.
var taken = map[string]bool{}

// take makes a scenario this process's own, or skips it where another has it. What boots a machine
// before its Scenario calls it first.
func take(t *testing.T) {
	t.Helper()
	dir := os.Getenv(sharedVar)
	if dir == "" || taken[t.Name()] {
		return
	}
	f, err := os.OpenFile(filepath.Join(dir, t.Name()), os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case errors.Is(err, os.ErrExist):
		t.Skip("another hypervisor has it")
	case err != nil:
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	taken[t.Name()] = true
}

// asked are the scenarios that this run is asked for.
func asked() ([]string, error) {
	pattern := flag.Lookup("test.run").Value.String()
	if pattern == "" {
		pattern = "."
	}
	out, err := exec.Command(os.Args[0], "-test.list="+pattern).Output() //nolint:gosec // this program
	if err != nil {
		return nil, fmt.Errorf("cannot tell the scenarios: %w", err)
	}
	scenarios := strings.Fields(string(out))
	if skip := flag.Lookup("test.skip").Value.String(); skip != "" {
		not, err := regexp.Compile(skip)
		if err != nil {
			return nil, fmt.Errorf("-skip: %w", err)
		}
		scenarios = slices.DeleteFunc(scenarios, not.MatchString)
	}
	return scenarios, nil
}

// hypervisors is how many share that many scenarios.
func hypervisors(scenarios int) (int, error) {
	most := 2
	if v := os.Getenv(hypervisorsVar); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			return 0, fmt.Errorf("%s=%q: it must be a number from 1 on", hypervisorsVar, v)
		}
		most = n
	} else if runtime.NumCPU() < 2 {
		most = 1
	}
	return min(most, scenarios), nil
}

// share runs the scenarios in that many processes, and returns the exit status of them all.
func share(scenarios []string, processes int) int {
	dir, err := os.MkdirTemp("", "gpuvirt-lab-shared-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	said := &blocks{to: os.Stdout}
	codes := make([]int, processes)
	var all sync.WaitGroup
	for i := range processes {
		cmd := exec.Command(os.Args[0], os.Args[1:]...) //nolint:gosec // this program
		cmd.Env = append(os.Environ(), workerVar+"="+strconv.Itoa(i+1), sharedVar+"="+dir)
		all.Go(func() { codes[i] = follow(cmd, said) })
	}
	all.Wait()
	code := 0
	if i := slices.IndexFunc(codes, func(c int) bool { return c != 0 && c != notBooted }); i >= 0 {
		code = codes[i]
	}
	for _, name := range scenarios {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil && code == 0 {
			fmt.Fprintf(os.Stderr, "lab: nobody has taken %s, which must begin with Scenario\n", name)
			code = 1
		}
	}
	return code
}

// follow runs a process, passes on what it says, and returns its exit status. The kernel kills the process when
// this one dies, or its thread, which is kept until then.
func follow(cmd *exec.Cmd, said *blocks) int {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	cmd.Stderr = cmd.Stdout
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	said.from(out)
	if err := cmd.Wait(); err != nil {
		if exit, is := errors.AsType[*exec.ExitError](err); is && exit.ExitCode() > 0 {
			return exit.ExitCode()
		}
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	return 0
}

// blocks keep together what processes say of a scenario.
type blocks struct {
	mu sync.Mutex
	to io.Writer
}

// from passes on what is read, each scenario in one piece, until its end.
func (b *blocks) from(r io.Reader) {
	var block bytes.Buffer
	flush := func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if _, err := block.WriteTo(b.to); err != nil {
			fmt.Fprintln(os.Stderr, "lab:", err)
		}
		block.Reset()
	}
	defer flush()
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		switch {
		case strings.HasPrefix(line, "=== RUN "), strings.HasPrefix(line, "--- ") && !bytes.HasPrefix(block.Bytes(), []byte("=== RUN ")):
			flush()
		case line == "PASS\n", line == "FAIL\n": // the run's, which the one of all says
			flush()
			line = ""
		}
		block.WriteString(line)
		if strings.HasPrefix(line, "lab: ") {
			flush()
		}
		if err != nil {
			return
		}
	}
}
