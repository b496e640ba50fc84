package verify

import (
	"encoding/base64"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"
)

// An agent that runs no programs: what it does tell is told, the rest is unknown, and
// nothing else of it is asked in vain.
func TestAgentThatRunsNothing(t *testing.T) {
	info, err := os.ReadFile("testdata/info-blocked.json")
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		// Of a rehearsal's VM nothing stays: it is mended on the server.
		for _, c := range []struct {
			system  string
			network bool
			texts   []string
		}{
			{"rhel", true, []string{"in the VM", "FILTER_RPC_ARGS"}},
			{"debian", true, []string{"in the VM", "block-rpcs in /etc/qemu/qemu-ga.conf"}},
			{"rhel", false, []string{"on the server", "FILTER_RPC_ARGS", "rehearse again"}},
		} {
			f, e := newFake(t), expected()
			e.Network = c.network
			f.info, f.boots = string(info), 0
			e.Mounts = e.Mounts[:1]
			e.Containers = []Container{{Runtime: "docker", Name: "vllm", Restart: "always"}}
			f.answer = func(name string) (string, bool) {
				if name == "guest-get-osinfo" {
					return `{"return": {"id": "` + c.system + `"}}`, true
				}
				return "", false
			}
			r := Run(t.Context(), NewGuest(f), nil, e, nil, nil)
			if r.Verdict != StateUnknown || len(f.ran) > 0 {
				t.Errorf("%s, ran %q", r.Verdict, f.ran)
			}
			for id, state := range map[string]State{
				"container:docker/vllm": StateUnknown, "agent": StateOK, "hostname": StateOK, "mounts": StateOK, "network": map[bool]State{true: StateOK, false: StateSkipped}[c.network],
				"system": StateUnknown, "devices": StateUnknown, "driver": StateUnknown, "service:vllm.service": StateUnknown, "check:health": StateUnknown, "gpu-errors": StateUnknown,
			} {
				got := find(t, r, id)
				missing := func(text string) bool { return !strings.Contains(got.Text, text) }
				if got.State != state || state == StateUnknown && slices.ContainsFunc(c.texts, missing) {
					t.Errorf("%s: %s: %+v", c.system, id, got)
				}
			}
			if took := r.Ended.Sub(r.Began); took > time.Second {
				t.Errorf("took %s", took)
			}
		}
	})
}

func TestAgentThatDoesNotAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		console []string
		boot    State
		text    string
		verdict State
	}{
		"nothing":    {nil, StateUnknown, "neither", StateUnknown},
		"panic":      {[]string{"gpu7 login: ", "[    1.2] \x1b[31mKernel panic - not syncing\x1b[0m: VFS", "[    1.3] ---[ end"}, StateFailed, "panicked", StateFailed},
		"login":      {[]string{"Kernel panic", "reboot", "Debian GNU/Linux 12 gpu7 ttyS0", "", "gpu7 login: "}, StateOK, "the console asks for a login", StateUnknown},
		"emergency":  {[]string{"You are in emergency mode. After logging in, type \"journalctl -xb\""}, StateFailed, "emergency", StateFailed},
		"initramfs":  {[]string{"(initramfs) "}, StateFailed, "root filesystem", StateFailed},
		"passphrase": {[]string{"Please unlock disk sda3_crypt: "}, StateFailed, "passphrase", StateFailed},
		"no disk":    {[]string{"No bootable device."}, StateFailed, "no disk", StateFailed},
		"under way":  {[]string{"[    2.0] systemd[1]: Hostname set to <gpu7>."}, StateUnknown, "its last line: [ 2.0] systemd[1]", StateUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, e := newFake(t), expected()
				f.boots = forever
				var console func() []string
				if c.console != nil {
					console = func() []string { return c.console }
				}
				r := Run(t.Context(), NewGuest(f), console, e, &Baseline{Results: []Result{{ID: "check:health", State: StateOK, Text: "passed"}}}, nil)
				boot, agent, check := find(t, r, "boot"), find(t, r, "agent"), find(t, r, "check:health")
				if boot.State != c.boot || !strings.Contains(boot.Text, c.text) || r.Verdict != c.verdict {
					t.Errorf("%+v, %s", boot, r.Verdict)
				}
				if want := "it has not answered within 5m0s: cannot have guest-ping of the guest agent: Guest agent is not responding"; agent.State != StateUnknown || !strings.HasPrefix(agent.Text, want) {
					t.Errorf("%+v", agent)
				}
				if login := name == "login"; strings.Contains(agent.Text, "installed and enabled") != login {
					t.Errorf("%+v", agent)
				}
				if check.State != StateUnknown || check.Before != "passed" {
					t.Errorf("%+v", check)
				}
				if took := r.Ended.Sub(r.Began); took != e.Up {
					t.Errorf("took %s", took)
				}
				shownReport(t, r)
			})
		})
	}
}

// shownReport fails where a report has what cannot be shown, or too much of it.
func shownReport(t *testing.T, r Report) {
	t.Helper()
	texts := append([]string{}, r.Console...)
	for _, result := range r.Results {
		texts = append(texts, result.ID, result.Title, result.Text, result.Before)
	}
	if len(r.Console) > consoleLines {
		t.Errorf("%d lines of the console", len(r.Console))
	}
	for _, text := range texts {
		if !utf8.ValidString(text) || len(text) > 6000 || strings.IndexFunc(text, func(c rune) bool { return !unicode.IsPrint(c) }) >= 0 {
			t.Errorf("cannot be shown: %.200q, %d bytes", text, len(text))
		}
	}
}

func TestConsoleIsBounded(t *testing.T) {
	raw := make([]string, 1000)
	for i := range raw {
		raw[i] = fmt.Sprintf("\x1b]0;title\x07%d \x1b[1;31m%s\r", i, strings.Repeat("ü\xff\u202e", 5000))
	}
	lines := consoleText(raw)
	shownReport(t, Report{Console: lines})
	if len(lines) != consoleLines || !strings.HasPrefix(lines[consoleLines-1], "999 ") {
		t.Errorf("%d, %.40q", len(lines), lines[len(lines)-1])
	}
}

// Whatever an agent does, the verification ends in its time, and nothing of it is good.
func TestAgentsThatMisbehave(t *testing.T) {
	deep := `{"return": ` + strings.Repeat("[", 100000)
	for name, answer := range map[string]func(name string) (string, bool){
		"garbage":          func(string) (string, bool) { return "\x00\xff{{{", true },
		"deep":             func(string) (string, bool) { return deep, true },
		"nothing in it":    func(string) (string, bool) { return `{}`, true },
		"null":             func(string) (string, bool) { return `{"return": null}`, true },
		"two answers":      func(string) (string, bool) { return `{"return": {}}{"return": {}}`, true },
		"another's answer": func(string) (string, bool) { return `{"return": {"pid": 1}}`, true },
		"only errors": func(string) (string, bool) {
			return `{"error": {"class": "\u001b[2J", "desc": "\u001b[2J\u202e"}}`, true
		},
		"answers, then hangs":   func(n string) (string, bool) { return "", n != "guest-ping" },
		"hangs":                 func(string) (string, bool) { return "", true },
		"answers, then garbage": func(n string) (string, bool) { return `{"return": "x"}`, n != "guest-ping" },
		"all is empty":          func(string) (string, bool) { return `{"return": {}}`, true },
		"all is a list":         func(n string) (string, bool) { return `{"return": [{}, {}]}`, n != "guest-ping" },
		"all is a number":       func(n string) (string, bool) { return `{"return": 9223372036854775807}`, n != "guest-ping" },
		"programs never end":    func(n string) (string, bool) { return `{"return": {"exited": false}}`, n == "guest-exec-status" },
		"programs end nohow":    func(n string) (string, bool) { return `{"return": {"exited": true}}`, n == "guest-exec-status" },
		"exits are absurd": func(n string) (string, bool) {
			return `{"return": {"exited": true, "exitcode": -9223372036854775808}}`, n == "guest-exec-status"
		},
		"no base64": func(n string) (string, bool) {
			return `{"return": {"exited": true, "exitcode": 0, "out-data": "????"}}`, n == "guest-exec-status"
		},
		"no programs": func(n string) (string, bool) { return `{"return": {}}`, n == "guest-exec" },
		"forgets processes": func(n string) (string, bool) {
			return `{"error": {"class": "GenericError", "desc": "Invalid parameter 'pid'"}}`, n == "guest-exec-status"
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, e := newFake(t), expected()
				f.boots, f.answer = 0, answer
				e.Up, e.Deadline = time.Minute, 3*time.Minute
				r := Run(t.Context(), NewGuest(f), nil, e, nil, nil)
				if r.Verdict == StateOK || find(t, r, "devices").State == StateOK {
					t.Errorf("%+v", r)
				}
				if late := find(t, r, "boot"); name == "another's answer" && late.State != StateUnknown {
					t.Errorf("it was taken for an answer: %+v", late)
				}
				if took := r.Ended.Sub(r.Began); took > e.Longest() {
					t.Errorf("took %s", took)
				}
				shownReport(t, r)
			})
		})
	}
}

// One answer that never comes is not waited for, and what was learned before is kept.
func TestAnswerThatNeverComes(t *testing.T) {
	for _, name := range []string{"guest-get-fsinfo", "guest-exec", "guest-exec-status", "guest-file-read", "guest-get-time"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, e := newFake(t), expected()
				hung := false
				f.answer = func(n string) (string, bool) {
					if n == name && !hung {
						hung = true
						return "", true
					}
					return "", false
				}
				if r := Run(t.Context(), NewGuest(f), nil, e, nil, nil); r.Verdict != StateOK || !hung || f.files != 0 || !f.ended("curl") {
					t.Errorf("%v, %d files open, %+v", hung, f.files, r)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		f, e := newFake(t), expected()
		f.units["vllm.service"] = always(unitIs("activating", "start-pre"))
		f.answer = func(n string) (string, bool) {
			return "", n == "guest-exec-status" && f.after() > e.Deadline-12*time.Second
		}
		r := Run(t.Context(), NewGuest(f), nil, e, nil, nil)
		if got := find(t, r, "service:vllm.service"); got.State != StateFailed || got.Text != "activating (start-pre), after 15m0s" {
			t.Errorf("%+v", got)
		}
	})
}

// An answer that is larger than anything an agent has is not looked into.
func TestAnswerThatIsTooLarge(t *testing.T) {
	f := newFake(t)
	f.boots = 0
	f.answer = func(string) (string, bool) { return `{"return": {}}` + strings.Repeat(" ", maxAnswer), true }
	if err := NewGuest(f).Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "33554446 bytes") {
		t.Error(err)
	}
}

// What a program writes is bounded, and told to be cut.
func TestOutputIsBounded(t *testing.T) {
	f := newFake(t)
	f.boots = 0
	for _, n := range []int{0, 1, MaxOutput, MaxOutput + 1, 3 * MaxOutput} {
		big := strings.Repeat("x", n)
		f.programs["big"] = func(time.Duration, []string) process { return process{out: big, err: big[:min(n, 2)]} }
		out, err := NewGuest(f).Run(t.Context(), []string{"big"})
		if err != nil || len(out.Stdout) != min(n, MaxOutput) || out.Cut != (n > MaxOutput) || out.Stderr != big[:min(n, 2)] {
			t.Errorf("%d: %d, %v, %v", n, len(out.Stdout), out.Cut, err)
		}
	}
	if _, _, err := decode(base64.StdEncoding.EncodeToString([]byte("whole"))[:6], 100); err == nil {
		t.Error("half a group of base64 was read")
	}
}

// A name of the source is not a word of a command, nor an option of one.
func TestNamesOfTheSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, e := newFake(t), expected()
		e.Services = []string{"", "-H", "--host=evil.service", "a b.service", "x\n.service", "$(reboot).service", "../x.service", "no-dot", strings.Repeat("x", 300) + ".service"}
		e.Addresses = []Address{{"\x1b[2J", []string{"not an address"}}}
		e.Mounts = []Mount{{"/a\x1b[2J\nb", "ext4\x00"}}
		r := Run(t.Context(), NewGuest(f), nil, e, nil, nil)
		for _, argv := range f.ran {
			if strings.Contains(strings.Join(argv, " "), "show") {
				t.Errorf("systemd was asked: %q", argv)
			}
		}
		shownReport(t, r)
		shownReport(t, Report{Results: Before(t.Context(), newFake(t), e).Results})
	})
}

// Whatever an agent answers, it is no panic, and can be shown.
func FuzzAnswers(f *testing.F) {
	for _, seed := range []string{
		`{"return": {}}`, `{"return": {"pid": 1}}`, `{"return": {"exited": true, "exitcode": 0, "out-data": "cnVubmluZwo="}}`,
		`{"return": [{"name": "eno1", "ip-addresses": [{"ip-address": "10.1.2.3"}], "mountpoint": "/", "type": "ext4"}]}`,
		`{"error": {"class": "CommandNotFound", "desc": "x"}}`, `{"return": 1000}`, `{"return": {"count": 3, "buf-b64": "YWJj", "eof": false}}`,
		`{"return": {"version": "7", "supported_commands": [{"name": "guest-exec", "enabled": true}]}}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, answer string) {
		if answer == "" {
			return // that is the fake's word for none
		}
		synctest.Test(t, func(t *testing.T) {
			guest, e := newFake(t), expected()
			guest.boots = 0
			guest.answer = func(name string) (string, bool) { return answer, name != "guest-ping" }
			e.Up, e.Deadline = time.Second, 10*time.Second
			e.Checks[0].Seconds = 1
			r := Run(t.Context(), NewGuest(guest), nil, e, nil, nil)
			if r.Verdict == StateOK {
				t.Errorf("%+v", r)
			}
			shownReport(t, r)
		})
	})
}

// Whatever programs write, it is no panic, and can be shown.
func FuzzOutput(f *testing.F) {
	for _, seed := range []string{ueventGPU, smiList, licensed, "running\n", "● x.service loaded failed failed\n", unitIs("active", "running"), "PCI_CLASS=3\nMODALIAS=\n", "NVRM: Xid"} {
		f.Add(seed, 0)
	}
	f.Fuzz(func(t *testing.T, output string, exit int) {
		synctest.Test(t, func(t *testing.T) {
			same := runnerFunc(func([]string) Outcome { return Outcome{Exit: exit, Stdout: output, Stderr: output} })
			e := expected()
			e.Checks[0].Seconds = 1
			e.Containers = []Container{{Runtime: "docker", Name: "x"}, {Runtime: "podman", Name: "x", ID: hexID}}
			before := Before(t.Context(), same, e)
			shownReport(t, Report{Results: before.Results})
			v := &verification{expect: e, before: &before, machine: machine{Runner: same}}
			for _, look := range []seen{
				v.system(t.Context()), v.devices(t.Context()), v.driverLook()(t.Context()), v.smi(t.Context()), v.licence(t.Context()), v.service("x.service")(t.Context()),
				v.container(Container{Runtime: "docker", Name: "x"})(t.Context()), v.container(Container{Runtime: "kubernetes", Name: "x"})(t.Context()),
				v.gpuErrors(t.Context()), v.check(t.Context(), e.Checks[0]),
			} {
				shownReport(t, Report{Results: []Result{{Text: look.text}}})
			}
			parseMounts(output)
		})
	})
}
