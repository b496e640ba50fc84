package verify

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

// A process is how a program goes that is run on a fake machine.
type process struct {
	exit     int // -1: a signal ends it
	out, err string
	takes    time.Duration
}

const forever = 1000 * time.Hour

// A fake is a guest with its agent, in the words that qemu-ga 7.2 was recorded with. It is
// a source as well: what runs there runs without an agent. Times are since it was made.
type fake struct {
	t *testing.T

	info       string        // what the agent is and does
	boots      time.Duration // until the agent answers
	answer     func(name string) (string, bool)
	hostname   string
	skew       time.Duration
	fsinfo     string
	procMounts string
	interfaces string
	uevents    string
	system     func(after time.Duration) string
	failed     string
	units      map[string]func(after time.Duration) string
	programs   map[string]func(after time.Duration, argv []string) process
	noTimeout  bool
	enabled    bool     // units are
	find       *process // of what is no PCI device

	mu    sync.Mutex
	began time.Time
	ran   [][]string
	procs []running
	files int // open
}

type running struct {
	process

	ends time.Time
}

func always(s string) func(time.Duration) string { return func(time.Duration) string { return s } }

func unitIs(active, sub string) string {
	return "LoadState=loaded\nActiveState=" + active + "\nSubState=" + sub + "\nResult=success\nNRestarts=0\n"
}

const (
	ueventGPU = "DRIVER=nvidia\nPCI_CLASS=30200\nPCI_ID=10DE:2331\nPCI_SUBSYS_ID=10DE:1626\nPCI_SLOT_NAME=0000:05:00.0\nMODALIAS=pci:v000010DEd00002331sv000010DEsd00001626bc03sc02i00\n"
	ueventVGA = "DRIVER=bochs-drm\nPCI_CLASS=30000\nPCI_ID=1234:1111\nPCI_SUBSYS_ID=1AF4:1100\nPCI_SLOT_NAME=0000:00:01.0\nMODALIAS=pci:v00001234d00001111sv00001AF4sd00001100bc03sc00i00\n"
	ueventTop = "DRIVER=pcieport\nPCI_CLASS=60400\nPCI_ID=8086:3420\nPCI_SUBSYS_ID=0000:0000\nPCI_SLOT_NAME=0000:00:1c.0\nMODALIAS=pci:v00008086d00003420sv00000000sd00000000bc06sc04i00\n"
	ueventHub = "PCI_CLASS=60000\nPCI_ID=8086:29C0\nPCI_SUBSYS_ID=1AF4:1100\nPCI_SLOT_NAME=0000:00:00.0\nMODALIAS=pci:v00008086d000029C0sv00001AF4sd00001100bc06sc00i00\n"
	smiList   = "GPU 0: NVIDIA H100-20C (UUID: GPU-6f1c0f4a-0000-0000-0000-000000000000)\n"
	licensed  = "    vGPU Software Licensed Product\n        Product Name                      : NVIDIA Virtual Compute Server\n        License Status                    : Licensed (Expiry: 2026-1-2 3:4:5 GMT)\n"
)

// newFake makes a guest that is as expected says.
func newFake(t *testing.T) *fake {
	info, err := os.ReadFile("testdata/info.json")
	if err != nil {
		t.Fatal(err)
	}
	return &fake{
		t: t, info: string(info), boots: 25 * time.Second, hostname: "gpu7", began: time.Now(),
		fsinfo:     `[{"name": "vda2", "total-bytes": 97793294336, "mountpoint": "/", "disk": [], "used-bytes": 14325776384, "type": "ext4"}]`,
		procMounts: "proc /proc proc rw 0 0\n/dev/vda2 / ext4 rw 0 0\nnas:/m\\040x /mo\\040dels nfs4 rw 0 0\n",
		interfaces: `[{"name": "lo", "ip-addresses": [{"ip-address-type": "ipv4", "ip-address": "127.0.0.1", "prefix": 8}], "hardware-address": "00:00:00:00:00:00"},
			{"name": "eno1", "ip-addresses": [{"ip-address-type": "ipv4", "ip-address": "10.1.2.3", "prefix": 24}, {"ip-address-type": "ipv6", "ip-address": "fe80::1%eno1", "prefix": 64}], "hardware-address": "52:54:00:AA:BB:01"}, {"name": "dummy0"}]`,
		uevents: ueventHub + ueventTop + ueventVGA + ueventGPU,
		system: func(after time.Duration) string {
			if after < 40*time.Second {
				return "starting"
			}
			return "running"
		},
		units: map[string]func(time.Duration) string{"vllm.service": func(after time.Duration) string {
			if after < time.Minute {
				return unitIs("activating", "start-pre")
			}
			return unitIs("active", "running")
		}},
		programs: map[string]func(time.Duration, []string) process{
			"nvidia-smi": func(_ time.Duration, argv []string) process {
				return process{out: map[string]string{"-L": smiList, "-q": licensed}[argv[1]], takes: time.Second}
			},
			"journalctl": func(time.Duration, []string) process { return process{exit: 1, out: "-- No entries --\n"} },
			"curl": func(time.Duration, []string) process {
				return process{out: "{\"status\":\"ok\"}\n", takes: time.Second}
			},
		},
	}
}

func expected() Expect {
	return Expect{
		Up: 5 * time.Minute, Deadline: 15 * time.Minute, Hostname: "gpu7.bank.example", Network: true,
		Devices: []Device{{"10de", "2331"}}, Driver: "nvidia", Services: []string{"vllm.service"},
		Mounts:    []Mount{{"/", "ext4"}, {"/mo dels", "nfs4"}},
		Addresses: []Address{{"52:54:00:aa:bb:01", []string{"10.1.2.3/24", "fe80::9/64"}}},
		Checks:    []Check{{Name: "health", Command: []string{"curl", "-sf", "http://localhost:8000/health?x=1"}, Output: `"status":"ok"`}},
	}
}

func (f *fake) after() time.Duration { return time.Since(f.began) }

// start starts a program, as timeout would where it is in front.
func (f *fake) start(argv []string) (process, bool) {
	f.mu.Lock()
	f.ran = append(f.ran, slices.Clone(argv))
	f.mu.Unlock()
	if argv[0] == "timeout" {
		if f.noTimeout {
			return process{}, false
		}
		limit, err := time.ParseDuration(argv[3] + "s")
		if err != nil || argv[1] != "-k" {
			f.t.Errorf("timeout does not know %q", argv)
		}
		p, there := f.start(argv[4:])
		switch {
		case !there:
			return process{exit: 127, err: fmt.Sprintf("timeout: failed to run command ‘%s’: No such file or directory\n", argv[4])}, true
		case p.takes > limit:
			return process{exit: 124, out: p.out, takes: limit}, true
		}
		return p, true
	}
	switch argv[0] {
	case "true":
		return process{}, true
	case "find":
		if f.find != nil && argv[1] != "-L" {
			return *f.find, true
		}
		return process{out: f.uevents}, true
	case "systemctl":
		return f.systemctl(argv[1:]), true
	}
	program, there := f.programs[argv[0]]
	if !there {
		return process{}, false
	}
	return program(f.after(), argv), true
}

func (f *fake) systemctl(args []string) process {
	switch {
	case args[0] == "is-system-running":
		state := f.system(f.after())
		if state == "running" {
			return process{out: state + "\n"}
		}
		return process{exit: 1, out: state + "\n"}
	case slices.Contains(args, "list-units"):
		return process{out: f.failed}
	case slices.Contains(args, "list-jobs"):
		return process{out: "  17 slow.service           start running\n 101 multi-user.target      start waiting\n"}
	case args[0] == "is-enabled":
		if f.enabled {
			return process{}
		}
		return process{exit: 1}
	case args[0] == "show":
		if show := f.units[args[len(args)-1]]; show != nil {
			return process{out: show(f.after())}
		}
		return process{out: "LoadState=not-found\nActiveState=inactive\nSubState=dead\nResult=success\nNRestarts=0\n"}
	}
	f.t.Errorf("systemctl does not know %q", args)
	return process{exit: 1}
}

// Run runs a program as ssh would.
func (f *fake) Run(ctx context.Context, argv []string) (Outcome, error) {
	p, there := f.start(argv)
	if !there {
		return Outcome{Exit: 127, Stderr: "sh: " + argv[0] + ": not found\n"}, nil
	}
	if err := pause(ctx, p.takes); err != nil {
		return Outcome{}, err
	}
	return Outcome{Exit: p.exit, Stdout: p.out, Stderr: p.err}, nil
}

// Command answers as libvirt does: an error of the agent is an error.
func (f *fake) Command(ctx context.Context, request string) (string, error) {
	var r struct {
		Execute   string
		Arguments struct {
			Path    string   `json:"path"`
			Arg     []string `json:"arg"`
			Capture bool     `json:"capture-output"`
			PID     int      `json:"pid"`
			Handle  int      `json:"handle"`
			Count   int      `json:"count"`
		}
	}
	if err := json.Unmarshal([]byte(request), &r); err != nil {
		f.t.Errorf("%s: %v", request, err)
	}
	if f.after() < f.boots {
		if err := pause(ctx, 5*time.Second); err != nil {
			return "", err
		}
		return "", errors.New("Guest agent is not responding: Guest agent not available for now\x1b[2J")
	}
	if f.answer != nil {
		if text, ok := f.answer(r.Execute); ok {
			if text == "" {
				<-ctx.Done()
				return "", ctx.Err()
			}
			return text, nil
		}
	}
	return f.reply(r.Execute, r.Arguments.Path, r.Arguments.Arg, r.Arguments.PID, r.Arguments.Count)
}

func returned(v any) (string, error) {
	data, err := json.Marshal(map[string]any{"return": v})
	return string(data), err
}

func (f *fake) reply(name, path string, arg []string, pid, count int) (string, error) {
	switch name {
	case "guest-ping":
		return `{"return": {}}`, nil
	case "guest-info":
		return f.info, nil
	case "guest-get-osinfo":
		return `{"return": {"name": "Debian GNU/Linux", "kernel-release": "6.1.0-40-amd64", "version": "12 (bookworm)", "pretty-name": "Debian GNU/Linux 12 (bookworm)", "version-id": "12", "machine": "x86_64", "id": "debian"}}`, nil
	case "guest-get-host-name":
		return returned(map[string]string{"host-name": f.hostname})
	case "guest-get-time":
		return returned(time.Now().Add(f.skew).UnixNano())
	case "guest-get-fsinfo":
		return `{"return": ` + f.fsinfo + `}`, nil
	case "guest-network-get-interfaces":
		return `{"return": ` + f.interfaces + `}`, nil
	case "guest-file-open":
		f.files++
		return `{"return": 1000}`, nil
	case "guest-file-read":
		data := f.procMounts[:min(len(f.procMounts), count)]
		return returned(map[string]any{"count": len(data), "buf-b64": base64.StdEncoding.EncodeToString([]byte(data)), "eof": true})
	case "guest-file-close":
		f.files--
		return `{"return": {}}`, nil
	case "guest-exec":
		p, there := f.start(append([]string{path}, arg...))
		if !there {
			return "", fmt.Errorf("internal error: unable to execute QEMU agent command 'guest-exec': Guest agent command failed, error was 'Failed to execute child process “%s” (No such file or directory)'", path)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.procs = append(f.procs, running{p, time.Now().Add(p.takes)})
		return returned(map[string]int{"pid": len(f.procs)})
	case "guest-exec-status":
		return f.status(pid)
	}
	f.t.Errorf("an agent does not know %q", name)
	return "", errors.New("unknown")
}

func (f *fake) status(pid int) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if pid < 1 || pid > len(f.procs) {
		return "", errors.New("Invalid parameter 'pid'")
	}
	p := f.procs[pid-1]
	if time.Now().Before(p.ends) {
		return `{"return": {"exited": false}}`, nil
	}
	answer := map[string]any{"exited": true}
	if p.exit < 0 {
		answer["signal"] = 9
	} else {
		answer["exitcode"] = p.exit
	}
	for key, text := range map[string]string{"out": p.out, "err": p.err} {
		if text != "" {
			answer[key+"-data"] = base64.StdEncoding.EncodeToString([]byte(text))
			answer[key+"-truncated"] = false
		}
	}
	return returned(answer)
}

// ended tells whether a program was run with something that ends it.
func (f *fake) ended(program string) bool {
	return slices.ContainsFunc(f.ran, func(argv []string) bool { return len(argv) > 4 && argv[0] == "timeout" && argv[4] == program })
}
