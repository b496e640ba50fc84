package verify

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// plan lists what there is to look at, in the order in which it is told.
func (v *verification) plan() {
	e := v.expect
	v.add("system", "The system is up", v.program(v.system))
	if e.Hostname != "" {
		v.add("hostname", "Host name", v.hostname)
	}
	v.add("clock", "Clock", v.clock)
	if len(e.Mounts) > 0 {
		v.add("mounts", "Filesystems", v.mounts).matters = true
	}
	if len(e.Addresses) > 0 {
		v.add("network", "Network addresses", v.network).matters = true
	}
	if len(e.Devices) > 0 {
		v.add("devices", "PCI devices", v.program(v.devices)).matters = true
		v.add("driver", "Driver of the devices", v.driverLook()).matters = e.Driver != ""
	}
	if e.Driver == nvidia {
		v.add("nvidia-smi", "GPUs that nvidia-smi lists", v.program(v.smi))
		v.add("licence", "Licence of the vGPU", v.program(v.licence))
	}
	for _, unit := range e.Services {
		v.add("service:"+oneLine(unit, 255), "Service "+oneLine(unit, 255), v.program(v.service(unit))).matters = true
	}
	for _, c := range e.Containers {
		v.add(c.id(), "Container "+c.title(), v.program(v.container(c))).matters = c.matters()
	}
	for _, c := range e.Checks {
		v.add("check:"+c.Name, "Check "+c.Name, nil).matters = true
	}
	if e.Driver == nvidia {
		v.add("gpu-errors", "Errors of the GPU's driver", nil)
	}
}

// program is a look that runs programs in the guest.
func (v *verification) program(look func(context.Context) seen) func(context.Context) seen {
	return func(ctx context.Context) seen {
		if v.blocked != "" {
			return seen{state: StateUnknown, text: v.blocked}
		}
		return look(ctx)
	}
}

// unseen is what there is to say where an answer was an error. It is looked at again: a
// guest that starts anew, or an agent that does, answers later.
func unseen(err error) seen {
	return seen{state: StateUnknown, text: oneLine(err.Error(), 400), wait: short}
}

// brokenOff is what there is to say where nobody waits any more.
func brokenOff(ctx context.Context) seen {
	text := "it was broken off"
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		text += ": " + oneLine(cause.Error(), 200)
	}
	return seen{state: StateUnknown, text: text}
}

// own runs the person's own checks.
func (v *verification) own(ctx context.Context) {
	for _, c := range v.expect.Checks {
		t := v.thing("check:" + c.Name)
		t.first = time.Now()
		switch {
		case ctx.Err() != nil:
			t.seen = brokenOff(ctx)
		case v.blocked != "":
			t.seen = seen{state: StateUnknown, text: v.blocked}
		default:
			t.seen = v.check(ctx, c)
		}
		v.settle(t)
	}
}

func (v *verification) thing(id string) *thing {
	for _, t := range v.things {
		if t.ID == id {
			return t
		}
	}
	return nil
}

// check runs a check until it passes or its time is over. Where the VM has failed already
// once is enough: it is for the report.
func (v *verification) check(ctx context.Context, c Check) seen {
	began, again := time.Now(), !v.failed()
	for wait := firstLook; ; wait = min(2*wait, lastLook) {
		s, err := c.try(ctx, v.machine, c.limit()-time.Since(began))
		switch {
		case ctx.Err() != nil:
			return brokenOff(ctx)
		case s.state == StateOK, !again, errors.Is(err, errAbandoned), time.Since(began)+wait >= c.limit():
			if before := v.before.result("check:" + c.Name); s.state == StateFailed && before != nil && before.State == StateFailed {
				s.text += "; it failed on the source as well"
			}
			return s
		}
		if pause(ctx, wait) != nil {
			return brokenOff(ctx)
		}
	}
}

// try runs a check once.
func (c Check) try(ctx context.Context, m machine, limit time.Duration) (seen, error) {
	began := time.Now()
	out, err := m.within(ctx, limit, c.Command...)
	after := time.Since(began).Seconds()
	switch {
	case errors.Is(err, errSlow):
		return seen{state: StateFailed, text: fmt.Sprintf("%s, %.0f s", err, limit.Seconds())}, err
	case errors.Is(err, errAbandoned):
		return seen{state: StateFailed, text: oneLine(err.Error(), 400)}, err
	case err != nil:
		return unseen(err), err
	}
	said := out.lastLine()
	if said != "" {
		said = ": " + said
	}
	if passed := lastLine(out.Stdout); passed != "" && out.Exit == c.Exit {
		said = ": " + passed
	}
	switch {
	case out.Exit == -1:
		return seen{state: StateFailed, text: "a signal ended it" + said}, nil
	case out.Exit != c.Exit:
		return seen{state: StateFailed, text: fmt.Sprintf("exit status %d, not %d%s", out.Exit, c.Exit, said)}, nil
	case !c.matches(out.Stdout):
		text := fmt.Sprintf("its output does not match %q%s", c.Output, said)
		if out.Cut {
			text = fmt.Sprintf("the first %d KiB of its output do not match %q%s", MaxOutput>>10, c.Output, said)
		}
		return seen{state: StateFailed, text: text}, nil
	}
	return seen{state: StateOK, text: fmt.Sprintf("exit status %d after %.1f s%s", out.Exit, after, said)}, nil
}

// last looks at what all that went before may have brought about.
func (v *verification) last(ctx context.Context) {
	t := v.thing("gpu-errors")
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, closing)
	defer cancel()
	t.first = time.Now()
	t.seen = v.program(v.gpuErrors)(ctx)
	v.settle(t)
}
