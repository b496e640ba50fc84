package verify

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

const hexID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func inspected(state, policy string) process {
	return process{out: `{"Running": true, "StartedAt": "2026-11-27T06:00:00Z", ` + state + `} 0 {"Name": "` + policy + `"}` + "\n"}
}

// A container that used the GPU is looked at by the name that it had, each in a result of its own.
func TestContainers(t *testing.T) {
	docker := Container{Runtime: "docker", Name: "vllm", ID: hexID, Restart: "unless-stopped"}
	with := func(restart string) Container { c := docker; c.Restart = restart; return c }
	podman := Container{Runtime: "podman", Name: "web", ID: hexID}
	task := Container{Runtime: "containerd", Name: "box", ID: "box-1"}
	pod := Container{Runtime: "kubernetes", Name: "infer", ID: hexID}
	gone := process{exit: 1, err: "Error response from daemon: No such container: vllm\n"}
	unhealthy := inspected(`"Status": "running", "Health": {"Status": "unhealthy"}`, "always")
	for name, c := range map[string]struct {
		container Container
		program   process
		before    *Baseline
		state     State
		text      string
		verdict   State
	}{
		"runs":                 {docker, inspected(`"Status": "running"`, "unless-stopped"), nil, StateOK, "running", StateOK},
		"is healthy":           {docker, inspected(`"Status": "running", "Health": {"Status": "healthy"}`, "always"), nil, StateOK, "running (healthy)", StateOK},
		"is unhealthy":         {docker, unhealthy, nil, StateFailed, "running (unhealthy)", StateFailed},
		"unhealthy as ever":    {docker, unhealthy, &Baseline{Results: []Result{{ID: "container:docker/vllm", State: StateWarning}}}, StateWarning, "running (unhealthy), as on the source", StateOK},
		"never gets healthy":   {docker, inspected(`"Status": "running", "Health": {"Status": "starting"}`, "always"), nil, StateFailed, "running (starting), after 15m0s", StateFailed},
		"is not running":       {docker, inspected(`"Status": "exited", "ExitCode": 128, "Error": "could not select device driver\u001b[2J"`, "always"), nil, StateFailed, `exited: could not select device driver\x1b[2J`, StateFailed},
		"starts again for all": {docker, inspected(`"Status": "restarting", "ExitCode": 1`, "always"), nil, StateFailed, "restarting: exit status 1, after 15m0s", StateFailed},
		"is not there":         {docker, gone, nil, StateFailed, "there is none of this name", StateFailed},
		"nobody starts it":     {with("no"), inspected(`"Status": "exited"`, "no"), nil, StateWarning, "exited; it has no restart policy: a person starts it", StateOK},
		"as old versions say":  {with(""), inspected(`"Status": "exited"`, ""), nil, StateWarning, "a person starts it", StateOK},
		"may start":            {with("on-failure"), inspected(`"Status": "exited"`, "on-failure"), nil, StateWarning, `its restart policy "on-failure" does not start it at boot`, StateOK},
		"a person started it":  {with("no"), inspected(`"Status": "running"`, "no"), nil, StateOK, "running", StateOK},
		"it says something":    {docker, process{out: "hello"}, nil, StateUnknown, "docker answers something else", StateUnknown},
		"it says two things":   {docker, process{out: "{} 0"}, nil, StateUnknown, "docker answers something else", StateUnknown},
		"docker is down":       {docker, process{exit: 1, err: "Cannot connect to the Docker daemon\n"}, nil, StateUnknown, "docker: exit status 1: Cannot connect to the Docker daemon", StateUnknown},
		"docker hangs":         {docker, process{takes: forever}, nil, StateUnknown, errSlow.Error(), StateUnknown},
		"a name that is none":  {Container{Runtime: "docker", Name: "$(reboot)", Restart: "always"}, process{}, nil, StateUnknown, "this is no name of a container", StateUnknown},
		"another runtime":      {Container{Runtime: "lxc", Name: "x"}, process{}, nil, StateUnknown, "how to look at one of lxc is not known", StateOK},

		"podman's runs":          {podman, inspected(`"Status": "running"`, ""), nil, StateOK, "running", StateOK},
		"podman's does not":      {podman, inspected(`"Status": "exited"`, "no"), nil, StateWarning, "it has no restart policy: a person starts it", StateOK},
		"podman would start it":  {podman, inspected(`"Status": "created"`, "always"), nil, StateFailed, "created", StateFailed},
		"podman starts nothing":  {Container{Runtime: "podman", Name: "off"}, inspected(`"Status": "created"`, "always"), nil, StateWarning, "created; podman-restart.service, which would start it, is not enabled", StateOK},
		"containerd's runs":      {task, process{out: "/run/containerd/io.containerd.runtime.v2.task/default/box-1\n"}, nil, StateOK, "running", StateOK},
		"containerd's does not":  {task, process{}, nil, StateWarning, "not running; whether anything starts it is not known", StateOK},
		"kubernetes' runs":       {pod, process{out: `{"containers": [{"metadata": {"name": "infer"}, "state": "CONTAINER_RUNNING"}]}`}, nil, StateOK, "running", StateOK},
		"kubernetes has another": {pod, process{out: `{"containers": [{"metadata": {"name": "infer-2"}, "state": "CONTAINER_RUNNING"}]}`}, nil, StateWarning, "not running; the cluster starts it here or elsewhere", StateOK},
		"kubernetes, no crictl":  {pod, process{exit: 127}, nil, StateSkipped, "there is no crictl: the cluster tells how it is", StateOK},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, e := newFake(t), expected()
				e.Containers = []Container{c.container}
				f.enabled = c.container.Name != "off"
				for _, program := range []string{"docker", "podman", "crictl"} {
					f.programs[program] = func(time.Duration, []string) process { return c.program }
				}
				f.find = &c.program
				r := Run(t.Context(), NewGuest(f), nil, e, c.before, nil)
				got := find(t, r, c.container.id())
				if got.State != c.state || !strings.Contains(got.Text, c.text) || r.Verdict != c.verdict {
					t.Errorf("%s, %q; verdict %s", got.State, got.Text, r.Verdict)
				}
				shownReport(t, r)
			})
		})
	}
}

// One that dies soon after each start is running for a moment each time.
func TestContainerThatDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, e := newFake(t), expected()
		e.Containers = []Container{{Runtime: "docker", Name: "vllm", Restart: "always"}}
		n := 0
		f.programs["docker"] = func(time.Duration, []string) process {
			n++
			return process{out: `{"Status": "running"} ` + strings.Repeat("1", 1+n%9) + ` {"Name": "always"}`}
		}
		got := find(t, Run(t.Context(), NewGuest(f), nil, e, nil, nil), "container:docker/vllm")
		if got.State != StateFailed || got.Text != "it has been running for less than 5s, after 15m0s" {
			t.Errorf("%+v", got)
		}
	})
}

// On the source nothing is asked that writes there, as podman does, and what hangs there does
// not cost the person's own checks.
func TestContainersBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, e := newFake(t), expected()
		f.system, e.Services, e.Driver = always("running"), nil, ""
		e.Containers = []Container{
			{Runtime: "docker", Name: "vllm", ID: hexID, Restart: "always"},
			{Runtime: "podman", Name: "web", ID: hexID},
			{Runtime: "podman", Name: "x", ID: "../../etc"},
			{Runtime: "docker", Name: "hand", Restart: "no"},
		}
		f.programs["docker"] = func(_ time.Duration, argv []string) process {
			if slices.Contains(argv, "hand") {
				return inspected(`"Status": "exited"`, "no")
			}
			return inspected(`"Status": "running", "Health": {"Status": "healthy"}`, "always")
		}
		f.programs["cat"] = func(_ time.Duration, argv []string) process {
			switch argv[len(argv)-1] {
			case "/run/containers/storage/overlay-containers/" + hexID + "/userdata/pidfile":
				return process{out: "812"}
			case "/proc/812/cgroup":
				return process{out: "0::/machine.slice/libpod-" + hexID + ".scope\n"}
			}
			return process{exit: 1, err: "cat: no such file\n"}
		}
		b := Before(t.Context(), f, e)
		if d := cmp.Diff([]row{
			{"system", StateOK, "it runs, and no unit has failed", ""},
			{"devices", StateOK, "0000:00:01.0 1234:1111 (bochs-drm), 0000:05:00.0 10de:2331 (nvidia)", ""},
			{"check:health", StateOK, `exit status 0 after 1.0 s: {"status":"ok"}`, ""},
			{"container:docker/vllm", StateOK, "running (healthy)", ""},
			{"container:podman/web", StateOK, "running", ""},
			{"container:podman/x", StateUnknown, "this is no name of a container", ""},
			{"container:docker/hand", StateWarning, "exited; it has no restart policy: a person starts it", ""},
		}, rows(b.Results)); d != "" {
			t.Error(d)
		}
		for _, argv := range f.ran {
			if slices.Contains(argv, "podman") {
				t.Errorf("%q", argv)
			}
		}
	})
}

// A name of the source is not a word of a command, nor an option of one.
func TestContainersOfTheSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, e := newFake(t), expected()
		e.Containers = nil
		for _, bad := range []string{"", "-H", "--format={{.Config.Env}}", "a b", "x\ny", "$(reboot)", "../x", "a/b", "\x1b[2J", strings.Repeat("x", 300)} {
			for _, runtime := range []string{"docker", "podman", "containerd", "kubernetes", bad} {
				e.Containers = append(e.Containers, Container{Runtime: runtime, Name: bad, ID: bad, Restart: bad})
			}
		}
		r := Run(t.Context(), NewGuest(f), nil, e, nil, nil)
		shownReport(t, r)
		shownReport(t, Report{Results: Before(t.Context(), f, e).Results})
		for _, argv := range f.ran {
			line := strings.Join(argv, " ")
			if strings.Contains(line, "inspect") || strings.Contains(line, "crictl") || strings.Contains(line, "userdata") || strings.Contains(line, "io.containerd") {
				t.Errorf("%q was run", argv)
			}
		}
	})
}
