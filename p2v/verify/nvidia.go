package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// nvidia is the name of NVIDIA's driver in the kernel.
const nvidia = "nvidia"

// nvidiaVendor is its number, as PCI has it.
const nvidiaVendor = "10de"

// smiTime is for nvidia-smi, which waits for the GPUs' firmware where nothing keeps them up.
const smiTime = 2 * time.Minute

// errNoSMI says that there is no nvidia-smi.
var errNoSMI = errors.New("there is no nvidia-smi")

func smiOutput(ctx context.Context, m machine, arg string) (Outcome, error) {
	out, err := m.within(ctx, smiTime, "nvidia-smi", arg)
	if err == nil && out.Exit == 127 { // of timeout, or of a shell
		err = errNoSMI
	}
	return out, err
}

// smiGPUs are the GPUs that nvidia-smi -L lists, without their UUIDs, which are others in
// the VM.
func smiGPUs(text string) (names []string) {
	for line := range strings.SplitSeq(text, "\n") {
		if rest, ok := strings.CutPrefix(line, "GPU "); ok && len(names) < maxNamed {
			_, name, _ := strings.Cut(rest, ": ")
			name, _, _ = strings.Cut(name, " (UUID")
			names = append(names, oneLine(name, 120))
		}
	}
	return names
}

// smi holds the GPUs that the driver's tool lists against the devices.
func (v *verification) smi(ctx context.Context) seen {
	out, err := smiOutput(ctx, v.machine, "-L")
	switch {
	case errors.Is(err, errNoSMI):
		return seen{state: StateSkipped, text: err.Error()}
	case err != nil:
		return unseen(err)
	}
	gpus := smiGPUs(out.Stdout)
	others := func(d Device) bool { return d.Vendor != "" && d.Vendor != nvidiaVendor }
	switch want := len(slices.DeleteFunc(slices.Clone(v.expect.Devices), others)); {
	case out.Exit != 0:
		return seen{state: StateFailed, text: fmt.Sprintf("exit status %d: %s", out.Exit, out.lastLine()), wait: short}
	case len(gpus) != want:
		return seen{state: StateFailed, text: fmt.Sprintf("it lists %d, not %d: %s", len(gpus), want, listed(gpus)), wait: short}
	}
	return seen{state: StateOK, text: listed(gpus)}
}

// licence looks whether each vGPU has its licence. Without one a vGPU works, and slows
// down after a while.
func (v *verification) licence(ctx context.Context) seen {
	out, err := smiOutput(ctx, v.machine, "-q")
	switch {
	case errors.Is(err, errNoSMI):
		return seen{state: StateSkipped, text: err.Error()}
	case err != nil:
		return unseen(err)
	case out.Exit != 0:
		return seen{state: StateUnknown, text: fmt.Sprintf("nvidia-smi: exit status %d: %s", out.Exit, out.lastLine()), wait: short}
	}
	var states []string
	licensed := true
	for line := range strings.SplitSeq(out.Stdout, "\n") {
		key, state, _ := strings.Cut(line, ":")
		if state = oneLine(state, 120); strings.TrimSpace(key) == "License Status" && state != "N/A" {
			states = append(states, state)
			licensed = licensed && strings.HasPrefix(state, "Licensed")
		}
	}
	switch {
	case len(states) == 0:
		return seen{state: StateSkipped, text: "nvidia-smi tells of none"}
	case !licensed:
		return seen{state: StateWarning, text: listed(states), wait: short}
	}
	return seen{state: StateOK, text: listed(states)}
}

// gpuErrors looks for what the driver has told the kernel's log since the VM started.
func (v *verification) gpuErrors(ctx context.Context) seen {
	const pattern = "NVRM: (Xid|.*installed in this system is not supported|.*RmInitAdapter failed)"
	out, err := v.machine.within(ctx, lookTime, "journalctl", "--dmesg", "--boot", "--no-pager", "--output=cat", "--lines=20", "--grep="+pattern)
	if err != nil {
		return unseen(err)
	}
	var lines []string
	for line := range strings.SplitSeq(out.Stdout, "\n") {
		if strings.Contains(line, "NVRM:") {
			lines = append(lines, oneLine(line, 200))
		}
	}
	switch {
	case len(lines) > 0:
		return seen{state: StateFailed, text: strings.Join(lines[:min(len(lines), 5)], "; ")}
	case out.Exit > 1 || out.Exit < 0 || strings.TrimSpace(out.Stderr) != "": // 1: no line matched
		return seen{state: StateUnknown, text: fmt.Sprintf("the kernel's log was not read: exit status %d: %s", out.Exit, out.lastLine())}
	}
	return seen{state: StateOK, text: "none in the kernel's log"}
}
