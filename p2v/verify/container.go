package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"
)

// A Container is one that used a GPU and ran on the source. All of it is the source's word.
type Container struct {
	Runtime string `json:"runtime"` // docker, podman, containerd, kubernetes
	Name    string `json:"name"`
	ID      string `json:"id"`                // the runtime's, which most keep in the VM
	Restart string `json:"restart,omitempty"` // the policy, as docker has it; empty: not known
}

var (
	containerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,254}$`)
	containerID   = regexp.MustCompile(`^[0-9a-f]{64}$`)
	processID     = regexp.MustCompile(`^[1-9][0-9]{0,9}$`)
)

var (
	errNoContainer = errors.New("there is none of this name")
	errNoCrictl    = errors.New("there is no crictl: the cluster tells how it is")
	errNoName      = errors.New("this is no name of a container")
)

// id is that of its result.
func (c Container) id() string { return "container:" + c.title() }

func (c Container) title() string { return oneLine(c.Runtime, 20) + "/" + oneLine(c.Name, 230) }

// starts tells whether a policy starts a container when its runtime starts. Docker starts "on-failure" at boot
// only where it had failed before.
func starts(policy string) bool { return policy == "always" || policy == "unless-stopped" }

// matters tells whether it is to run without a person.
func (c Container) matters() bool { return c.Runtime == "docker" && starts(c.Restart) }

// A containerState is how a runtime describes one.
type containerState struct {
	status   string // running, exited, restarting, …
	health   string // healthy, unhealthy, starting; empty: nothing looks
	why      string // it is not running
	restarts string // changes with each start
	policy   string
}

func (s containerState) String() string {
	switch {
	case s.health != "":
		return s.status + " (" + s.health + ")"
	case s.why != "":
		return s.status + ": " + s.why
	}
	return s.status
}

// inspectedParts is what docker and podman are asked for: enough, and no environment, which may
// have secrets.
const inspectedParts = "{{json .State}} {{json .RestartCount}} {{json .HostConfig.RestartPolicy}}"

// asked asks docker or podman for a container.
func asked(ctx context.Context, m machine, program, name string) (containerState, error) {
	out, err := m.within(ctx, lookTime, program, "inspect", "--type=container", "--format="+inspectedParts, "--", name)
	switch {
	case err != nil:
		return containerState{}, err
	case out.Exit == 127:
		return containerState{}, fmt.Errorf("there is no %s", program)
	case out.Exit != 0 && strings.Contains(strings.ToLower(out.Stderr), "no such"):
		return containerState{}, errNoContainer
	case out.Exit != 0:
		return containerState{}, fmt.Errorf("%s: exit status %d: %s", program, out.Exit, out.lastLine())
	}
	var state struct {
		Status, Error, StartedAt string
		ExitCode                 int
		Health                   *struct{ Status string }
	}
	var restarts int
	var policy struct{ Name string }
	dec := json.NewDecoder(strings.NewReader(out.Stdout))
	if dec.Decode(&state) != nil || dec.Decode(&restarts) != nil || dec.Decode(&policy) != nil || state.Status == "" {
		return containerState{}, fmt.Errorf("%s answers something else", program)
	}
	s := containerState{
		status: oneLine(state.Status, 60), why: oneLine(state.Error, 200), restarts: fmt.Sprintf("%d %.60s", restarts, state.StartedAt), policy: oneLine(policy.Name, 60),
	}
	if state.Health != nil && state.Health.Status != "none" {
		s.health = oneLine(state.Health.Status, 60)
	}
	if s.why == "" && state.ExitCode != 0 {
		s.why = fmt.Sprintf("exit status %d", state.ExitCode)
	}
	return s, nil
}

// podmanRuns reads podman's own files, as podman writes even where it only looks.
func podmanRuns(ctx context.Context, m machine, id string) (containerState, error) {
	if !containerID.MatchString(id) {
		return containerState{}, errNoName
	}
	out, err := m.within(ctx, lookTime, "cat", path.Join("/run/containers/storage/overlay-containers", id, "userdata/pidfile"))
	if err != nil {
		return containerState{}, err
	}
	if pid := strings.TrimSpace(out.Stdout); out.Exit == 0 && processID.MatchString(pid) {
		out, err = m.within(ctx, lookTime, "cat", path.Join("/proc", pid, "cgroup"))
		if err == nil && strings.Contains(out.Stdout, id) { // and not of another process that has its number now
			return containerState{status: "running"}, nil
		}
	}
	return containerState{status: "not running"}, err
}

// taskRuns looks for a container's task among those of containerd.
func taskRuns(ctx context.Context, m machine, id string) (containerState, error) {
	if !containerName.MatchString(id) {
		return containerState{}, errNoName
	}
	out, err := m.within(ctx, lookTime, "find", "/run/containerd/io.containerd.runtime.v2.task", "-mindepth", "2", "-maxdepth", "2", "-type", "d", "-name", id)
	s := containerState{status: "not running"}
	if strings.TrimSpace(out.Stdout) != "" {
		s.status = "running"
	}
	return s, err
}

// podRuns asks the node's runtime for a container of Kubernetes, which gets another id each
// time that it is started.
func podRuns(ctx context.Context, m machine, name string) (containerState, error) {
	out, err := m.within(ctx, lookTime, "crictl", "ps", "--state=Running", "--name="+name, "--output=json")
	switch {
	case err != nil:
		return containerState{}, err
	case out.Exit == 127:
		return containerState{}, errNoCrictl
	case out.Exit != 0:
		return containerState{}, fmt.Errorf("crictl: exit status %d: %s", out.Exit, out.lastLine())
	}
	var answer struct {
		Containers []struct {
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
		} `json:"containers"`
	}
	if json.Unmarshal([]byte(out.Stdout), &answer) != nil {
		return containerState{}, errors.New("crictl answers something else")
	}
	for _, c := range answer.Containers {
		if c.Metadata.Name == name {
			return containerState{status: "running"}, nil
		}
	}
	return containerState{status: "not running"}, nil
}

// look asks for a container, on the source nothing that writes.
func (c Container) look(ctx context.Context, m machine, source bool) (containerState, error) {
	switch {
	case !containerName.MatchString(c.Name):
		return containerState{}, errNoName
	case c.Runtime == "podman" && source:
		return podmanRuns(ctx, m, c.ID)
	case c.Runtime == "docker" || c.Runtime == "podman":
		return asked(ctx, m, c.Runtime, c.Name)
	case c.Runtime == "containerd":
		return taskRuns(ctx, m, c.ID)
	case c.Runtime == "kubernetes":
		return podRuns(ctx, m, c.Name)
	}
	return containerState{}, fmt.Errorf("how to look at one of %s is not known", oneLine(c.Runtime, 20))
}

// byHand says why a container that does not run is not held against a machine; empty: it is.
func (c Container) byHand(ctx context.Context, m machine, s containerState) string {
	switch c.Runtime {
	case "kubernetes":
		return "the cluster starts it here or elsewhere"
	case "containerd":
		return "whether anything starts it is not known"
	}
	policy := c.Restart
	if s.policy != "" {
		policy = s.policy
	}
	switch {
	case policy == "" || policy == "no":
		return "it has no restart policy: a person starts it"
	case !starts(policy):
		return fmt.Sprintf("its restart policy %q does not start it at boot: a person does", oneLine(policy, 60))
	case c.Runtime == "podman":
		out, err := m.within(ctx, lookTime, "systemctl", "is-enabled", "--quiet", "podman-restart.service")
		if err == nil && out.Exit != 0 {
			return "podman-restart.service, which would start it, is not enabled"
		}
	}
	return ""
}

// container waits until a container runs and stays so. One that nothing starts is told, and
// not held against the VM.
func (v *verification) container(c Container) func(context.Context) seen {
	var since time.Time
	var restarts string
	return func(ctx context.Context) seen {
		s, err := c.look(ctx, v.machine, false)
		switch {
		case errors.Is(err, errNoCrictl):
			return seen{state: StateSkipped, text: err.Error()}
		case errors.Is(err, errNoContainer):
			s = containerState{status: err.Error()}
		case err != nil:
			return unseen(err)
		}
		if s.status != "running" || s.restarts != restarts {
			since, restarts = time.Time{}, s.restarts
		}
		switch s.status {
		case "running":
			if since.IsZero() {
				since = time.Now()
			}
			return v.runs(c, s, time.Since(since))
		case "restarting":
			return seen{state: StateFailed, text: s.String(), wait: long}
		}
		if why := c.byHand(ctx, v.machine, s); why != "" {
			return seen{state: StateWarning, text: s.String() + "; " + why, wait: short}
		}
		return seen{state: StateFailed, text: s.String(), wait: short}
	}
}

// runs is what is said of a container that has been running for a while.
func (v *verification) runs(c Container, s containerState, since time.Duration) seen {
	was := v.before.result(c.id())
	switch {
	case s.health == "starting":
		return seen{state: StateFailed, text: s.String(), wait: long}
	case s.health == "unhealthy" && was != nil && was.State == StateWarning:
		return seen{state: StateWarning, text: s.String() + ", as on the source", wait: short}
	case s.health == "unhealthy":
		return seen{state: StateFailed, text: s.String(), wait: short}
	case since < steady:
		return seen{state: StateFailed, text: fmt.Sprintf("it has been running for less than %s", steady), wait: long}
	}
	return seen{state: StateOK, text: s.String()}
}

// containerBefore notes how a container is on the source.
func containerBefore(ctx context.Context, m machine, c Container) seen {
	s, err := c.look(ctx, m, true)
	switch {
	case errors.Is(err, errNoCrictl):
		return seen{state: StateSkipped, text: err.Error()}
	case errors.Is(err, errNoContainer):
		return seen{state: StateWarning, text: err.Error()}
	case err != nil:
		return unseen(err)
	case s.status == "running" && s.health != "unhealthy":
		return seen{state: StateOK, text: s.String()}
	case s.status == "running":
		return seen{state: StateWarning, text: s.String()}
	}
	text := s.String()
	if why := c.byHand(ctx, m, s); why != "" {
		text += "; " + why
	}
	return seen{state: StateWarning, text: text}
}
