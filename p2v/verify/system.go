package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// errNoSystemd says that another program than systemd runs the system.
var errNoSystemd = errors.New("systemd does not run it")

// systemState asks systemd how far the system is: starting, running, degraded and the like.
func systemState(ctx context.Context, m machine) (string, error) {
	out, err := m.within(ctx, lookTime, "systemctl", "is-system-running")
	if err != nil {
		return "", err
	}
	switch state := oneLine(out.Stdout, 60); state {
	case "offline":
		return "", errNoSystemd
	case "initializing", "starting", "running", "degraded", "maintenance", "stopping":
		return state, nil
	}
	return "", fmt.Errorf("systemd does not say how far it is: %s", out.lastLine())
}

// failedUnits asks systemd for the units that have failed.
func failedUnits(ctx context.Context, m machine) ([]string, error) {
	return units(ctx, m, "list-units", "--state=failed", "--all", "--plain", "--full")
}

// units asks systemctl for a list, and returns the name in each of its rows.
func units(ctx context.Context, m machine, args ...string) ([]string, error) {
	out, err := m.within(ctx, lookTime, append([]string{"systemctl", "--no-legend", "--no-pager"}, args...)...)
	if err != nil {
		return nil, err
	}
	if out.Exit != 0 {
		return nil, fmt.Errorf("systemctl: exit status %d: %s", out.Exit, out.lastLine())
	}
	var names []string
	for line := range strings.SplitSeq(out.Stdout, "\n") {
		// A dot in front, or the number of a job, is no name.
		f := slices.DeleteFunc(strings.Fields(line), func(w string) bool { return !strings.Contains(w, ".") })
		if len(f) > 0 && unitName.MatchString(f[0]) && len(names) < maxNamed {
			names = append(names, f[0])
		}
	}
	return names, nil
}

// system waits until the system is up, and holds the units that failed against those that
// had failed on the source.
func (v *verification) system(ctx context.Context) seen {
	state, err := systemState(ctx, v.machine)
	if err != nil {
		v.isUp() // who cannot tell is not waited for
		s := unseen(err)
		if errors.Is(err, errNoSystemd) {
			s.wait = settled
		}
		return s
	}
	switch state {
	case "running":
		v.isUp()
		return seen{state: StateOK, text: "it runs, and no unit has failed"}
	case "degraded":
		v.isUp()
		return v.degraded(ctx)
	case "maintenance":
		v.isUp()
		return seen{state: StateFailed, text: "it is in its rescue or emergency mode"}
	}
	jobs, err := units(ctx, v.machine, "list-jobs", "--full")
	text := "it is " + state
	if err == nil && len(jobs) > 0 {
		text += ", and waits for " + listed(jobs)
	}
	if was := v.before.result("system"); was != nil && was.State == StateWarning {
		return seen{state: StateWarning, text: text + ", as on the source", wait: long}
	}
	return seen{state: StateFailed, text: text, wait: long}
}

func (v *verification) isUp() {
	if v.up.IsZero() {
		v.up = time.Now()
	}
}

// waitOnline are the units that fail where there is no network.
var waitOnline = []string{"systemd-networkd-wait-online.service", "NetworkManager-wait-online.service", "ifupdown-wait-online.service"}

func (v *verification) degraded(ctx context.Context) seen {
	failed, err := failedUnits(ctx, v.machine)
	if err != nil {
		return unseen(err)
	}
	var fresh, excused []string
	for _, unit := range failed {
		switch {
		case v.before != nil && slices.Contains(v.before.Failed, unit):
		case slices.Contains(v.expect.MayFail, unit), !v.expect.Network && slices.Contains(waitOnline, unit):
			excused = append(excused, unit)
		default:
			fresh = append(fresh, unit)
		}
	}
	was := v.before.result("system")
	switch {
	case len(fresh) > 0 && (was == nil || was.State == StateUnknown):
		return seen{state: StateWarning, text: "failed, and nobody knows of the source: " + listed(fresh), wait: short}
	case len(fresh) > 0:
		return seen{state: StateFailed, text: "failed, and had not on the source: " + listed(fresh), wait: short}
	case len(excused) > 0:
		return seen{state: StateOK, text: "it runs; failed as expected: " + listed(excused)}
	}
	return seen{state: StateOK, text: "it runs; what has failed had on the source as well: " + listed(failed)}
}

// A unit is how systemd describes one.
type unit struct{ load, active, sub, result, restarts string }

func (u unit) String() string {
	if u.load == "not-found" {
		return "there is none of this name"
	}
	text := u.active + " (" + u.sub + ")"
	if u.result != "" && u.result != "success" {
		text += ": " + u.result
	}
	return text
}

// unitState asks systemd for a unit. Its name comes from the source.
func unitState(ctx context.Context, m machine, name string) (unit, error) {
	if !unitName.MatchString(name) || !strings.Contains(name, ".") {
		return unit{}, errors.New("this is no name of a unit")
	}
	out, err := m.within(ctx, lookTime, "systemctl", "show", "--property=LoadState,ActiveState,SubState,Result,NRestarts", "--", name)
	if err != nil {
		return unit{}, err
	}
	var u unit
	into := map[string]*string{"LoadState": &u.load, "ActiveState": &u.active, "SubState": &u.sub, "Result": &u.result, "NRestarts": &u.restarts}
	for line := range strings.SplitSeq(out.Stdout, "\n") {
		key, value, _ := strings.Cut(line, "=")
		if at := into[key]; at != nil {
			*at = oneLine(value, 60)
		}
	}
	if u.active == "" {
		return unit{}, fmt.Errorf("systemd does not know how it is: exit status %d: %s", out.Exit, out.lastLine())
	}
	return u, nil
}

// steady is how long a service has to be active, without a start in between, to be taken
// for one that runs: one that dies at once is active for a moment each time.
const steady = 5 * time.Second

// service waits until a service is active and stays so.
func (v *verification) service(name string) func(context.Context) seen {
	var since time.Time
	var restarts string
	return func(ctx context.Context) seen {
		u, err := unitState(ctx, v.machine, name)
		if err != nil {
			return unseen(err)
		}
		if u.active != "active" || u.restarts != restarts {
			since, restarts = time.Time{}, u.restarts
		}
		switch u.active {
		case "active":
			if since.IsZero() {
				since = time.Now()
			}
			if time.Since(since) < steady {
				return seen{state: StateFailed, text: fmt.Sprintf("it has been active for less than %s", steady), wait: long}
			}
			return seen{state: StateOK, text: u.String()}
		case "activating", "reloading":
			return seen{state: StateFailed, text: u.String(), wait: long}
		}
		return seen{state: StateFailed, text: u.String(), wait: short}
	}
}
