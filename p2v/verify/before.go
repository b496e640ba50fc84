package verify

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// matches tells whether a program's output is right. The ends of its last lines do not
// count, as in a shell: "^ok$" matches what echo ok writes.
func (c Check) matches(output string) bool {
	if c.Output == "" {
		return true
	}
	pattern, err := regexp.Compile(c.Output)
	return err == nil && pattern.MatchString(strings.TrimRight(output, "\r\n"))
}

// Before looks at the source, while all that is to be moved runs there: how it is, and
// whether the person's own checks pass. Each check is tried once. It changes nothing, and
// ends when ctx does; what was not known then is unknown.
func Before(ctx context.Context, r Runner, e Expect) Baseline {
	b := Baseline{Taken: time.Now().UTC(), Failed: []string{}}
	m := newMachine(ctx, r)
	note := func(id, title string, look func() seen) {
		began := time.Now()
		var s seen
		if ctx.Err() == nil {
			s = look()
		}
		if ctx.Err() != nil { // what a look says that was broken off is not what there is
			s = brokenOff(ctx)
		}
		b.Results = append(b.Results, Result{ID: id, Title: title, State: s.state, Text: s.text, Seconds: time.Since(began).Seconds()})
	}
	note("system", "The system is up", func() seen { return b.system(ctx, m) })
	note("devices", "PCI devices", func() seen { return gpusBefore(ctx, m) })
	if e.Driver == nvidia {
		note("nvidia-smi", "GPUs that nvidia-smi lists", func() seen { return smiBefore(ctx, m) })
	}
	for _, name := range e.Services {
		shown := oneLine(name, 255)
		note("service:"+shown, "Service "+shown, func() seen { return serviceBefore(ctx, m, name) })
	}
	for _, c := range e.Checks {
		note("check:"+c.Name, "Check "+c.Name, func() seen {
			s, _ := c.try(ctx, m, c.limit()) // s tells of the error, too
			return s
		})
	}
	for _, c := range e.Containers { // last: a runtime may hang, and the person's checks come first
		note(c.id(), "Container "+c.title(), func() seen { return containerBefore(ctx, m, c) })
	}
	return b
}

// system notes how far the source is, and what has failed there. One that is always
// starting, or has failed units, is a warning.
func (b *Baseline) system(ctx context.Context, m machine) seen {
	state, err := systemState(ctx, m)
	if err != nil {
		return unseen(err)
	}
	failed, err := failedUnits(ctx, m)
	if err != nil {
		return unseen(err)
	}
	b.Failed = append(b.Failed, failed...)
	switch {
	case state != "running" && state != "degraded":
		return seen{state: StateWarning, text: "it is " + state}
	case len(failed) > 0:
		return seen{state: StateOK, text: "it runs; failed: " + listed(failed)}
	}
	return seen{state: StateOK, text: "it runs, and no unit has failed"}
}

// gpusBefore lists what computes or draws.
func gpusBefore(ctx context.Context, m machine) seen {
	all, err := pciDevices(ctx, m)
	if err != nil {
		return unseen(err)
	}
	all = slices.DeleteFunc(all, func(d pciDevice) bool { return !strings.HasPrefix(d.Class, "03") && !strings.HasPrefix(d.Class, "12") })
	if len(all) == 0 {
		return seen{state: StateOK, text: "no GPU"}
	}
	return seen{state: StateOK, text: listed(texts(all))}
}

func smiBefore(ctx context.Context, m machine) seen {
	out, err := smiOutput(ctx, m, "-L")
	switch {
	case errors.Is(err, errNoSMI):
		return seen{state: StateSkipped, text: err.Error()}
	case err != nil:
		return unseen(err)
	case out.Exit != 0:
		return seen{state: StateFailed, text: fmt.Sprintf("exit status %d: %s", out.Exit, out.lastLine())}
	}
	return seen{state: StateOK, text: listed(smiGPUs(out.Stdout))}
}

func serviceBefore(ctx context.Context, m machine, name string) seen {
	u, err := unitState(ctx, m, name)
	switch {
	case err != nil:
		return unseen(err)
	case u.active != "active":
		return seen{state: StateWarning, text: u.String()}
	}
	return seen{state: StateOK, text: u.String()}
}
