package verify

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

type runnerFunc func(argv []string) Outcome

func (f runnerFunc) Run(_ context.Context, argv []string) (Outcome, error) { return f(argv), nil }

func TestOwnChecks(t *testing.T) {
	failedBefore := &Baseline{Results: []Result{{ID: "check:health", State: StateFailed, Text: "exit status 7"}}}
	for name, c := range map[string]struct {
		check   Check
		goes    func(after time.Duration) process
		bare    bool // there is no timeout in the guest
		before  *Baseline
		state   State
		text    string
		verdict State
		takes   time.Duration // the check, at most
	}{
		"passes":            {Check{}, func(time.Duration) process { return process{out: "42 tokens/s\n", err: "warning: x\n"} }, false, nil, StateOK, "s: 42 tokens/s", StateOK, time.Second},
		"passes later":      {Check{}, later(80*time.Second, process{}, process{exit: 7}), false, nil, StateOK, "exit status 0", StateOK, time.Minute},
		"fails":             {Check{Seconds: 20}, func(time.Duration) process { return process{exit: 7, err: "\ncurl: (7) refused\n"} }, false, nil, StateFailed, "exit status 7, not 0: curl: (7) refused", StateFailed, 20 * time.Second},
		"fails as before":   {Check{Seconds: 20}, func(time.Duration) process { return process{exit: 7} }, false, failedBefore, StateFailed, "it failed on the source as well", StateFailed, 20 * time.Second},
		"passes, not there": {Check{}, func(time.Duration) process { return process{} }, false, failedBefore, StateOK, "exit status 0", StateOK, time.Second},
		"other exit":        {Check{Exit: 3}, func(time.Duration) process { return process{exit: 3} }, false, nil, StateOK, "exit status 3", StateOK, time.Second},
		"output is right":   {Check{Output: `(?m)^\d+ tokens/s$`}, func(time.Duration) process { return process{out: "x\n42 tokens/s\n"} }, false, nil, StateOK, "42", StateOK, time.Second},
		"output ends":       {Check{Output: `^ok$`}, func(time.Duration) process { return process{out: "ok\r\n\n"} }, false, nil, StateOK, "ok", StateOK, time.Second},
		"output is wrong":   {Check{Output: `^ok$`, Seconds: 5}, func(time.Duration) process { return process{out: "not ok\x1b[2J\n"} }, false, nil, StateFailed, `its output does not match "^ok$": not ok\x1b[2J`, StateFailed, 5 * time.Second},
		"output is cut":     {Check{Output: `end`, Seconds: 5}, func(time.Duration) process { return process{out: strings.Repeat("x", MaxOutput) + "end"} }, false, nil, StateFailed, "the first 256 KiB", StateFailed, 5 * time.Second},
		"crashes":           {Check{Seconds: 5}, func(time.Duration) process { return process{exit: -1} }, false, nil, StateFailed, "a signal ended it", StateFailed, 5 * time.Second},
		"hangs":             {Check{Seconds: 30}, func(time.Duration) process { return process{takes: forever} }, false, nil, StateFailed, "it did not end within its time, and was ended, 30 s", StateFailed, 31 * time.Second},
		"hangs for good":    {Check{Seconds: 30}, func(time.Duration) process { return process{takes: forever} }, true, nil, StateFailed, `of the guest: it did not end within its time, and goes on`, StateFailed, 30*time.Second + reserve},
		"is not there":      {Check{Command: []string{"nosuch"}, Seconds: 5}, nil, false, nil, StateFailed, "exit status 127, not 0: timeout: failed to run command ‘nosuch’", StateFailed, 5 * time.Second},
		"bare, not there":   {Check{Command: []string{"nosuch"}, Seconds: 5}, nil, true, nil, StateUnknown, "Failed to execute child process “nosuch”", StateUnknown, 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, e := newFake(t), expected()
				f.noTimeout = c.bare
				f.programs["curl"] = func(after time.Duration, _ []string) process { return c.goes(after) }
				if c.bare { // nothing tells it apart then
					delete(f.programs, "nvidia-smi")
					e.Driver = ""
				}
				c.check.Name = "health"
				if c.check.Command == nil {
					c.check.Command = []string{"curl"}
				}
				e.Checks = []Check{c.check}
				r := Run(t.Context(), NewGuest(f), nil, e, c.before, nil)
				got := find(t, r, "check:health")
				if got.State != c.state || !strings.Contains(got.Text, c.text) || r.Verdict != c.verdict {
					t.Errorf("%s, %q; verdict %s", got.State, got.Text, r.Verdict)
				}
				if took := time.Duration(got.Seconds * float64(time.Second)); took > c.takes+time.Second {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}

func later(when time.Duration, then, now process) func(time.Duration) process {
	return func(after time.Duration) process {
		if after < when {
			return now
		}
		return then
	}
}

// The words of a check are those of the command, whatever a shell would make of them, and
// something keeps its time.
func TestCheckIsRunAsItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, e := newFake(t), expected()
		want := []string{"curl", "-d", `{"a": "$(reboot)"; 'b'}`, "two\nlines"}
		e.Checks = []Check{{Name: "x", Command: want, Seconds: 7}}
		Run(t.Context(), NewGuest(f), nil, e, nil, nil)
		found := false
		for _, argv := range f.ran {
			if argv[0] == "timeout" && argv[4] == "curl" {
				found = true
				if d := cmp.Diff(append([]string{"timeout", "-k", "5", "7"}, want...), argv); d != "" {
					t.Error(d)
				}
			}
		}
		if !found {
			t.Errorf("%q", f.ran)
		}
	})
}

// Where something has failed already, a check is tried once.
func TestChecksOfAFailedVM(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, e := newFake(t), expected()
		f.hostname = "other"
		n := 0
		f.programs["curl"] = func(time.Duration, []string) process { n++; return process{exit: 7} }
		Run(t.Context(), NewGuest(f), nil, e, nil, nil)
		if n != 1 {
			t.Errorf("it was tried %d times", n)
		}
	})
}

// On the source each check is tried once, and what is unknown is no list of failed units.
func TestBeforeOfASourceThatSaysLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, e := newFake(t), expected()
		f.system = always("unknown")
		f.programs = map[string]func(time.Duration, []string) process{"curl": func(time.Duration, []string) process { return process{takes: forever} }}
		f.units["vllm.service"] = always("LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=oom-kill\n")
		f.uevents = ""
		b := Before(t.Context(), f, e)
		if d := cmp.Diff([]row{
			{"system", StateUnknown, "systemd does not say how far it is: unknown", ""},
			{"devices", StateOK, "no GPU", ""},
			{"nvidia-smi", StateSkipped, "there is no nvidia-smi", ""},
			{"service:vllm.service", StateWarning, "failed (failed): oom-kill", ""},
			{"check:health", StateFailed, "it did not end within its time, and was ended, 60 s", ""},
		}, rows(b.Results)); d != "" {
			t.Error(d)
		}
		// A unit that failed in the VM is not held against it then.
		guest := newFake(t)
		guest.system, guest.failed = always("degraded"), "x.service loaded failed failed\n"
		r := Run(t.Context(), NewGuest(guest), nil, e, &b, nil)
		if got := find(t, r, "system"); got.State != StateWarning || got.Before != "unknown: systemd does not say how far it is: unknown" {
			t.Errorf("%+v", got)
		}
	})
}

func TestBeforeBrokenOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, e := newFake(t), expected()
		f.programs["nvidia-smi"] = func(time.Duration, []string) process { return process{takes: forever} }
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		b := Before(ctx, f, e)
		if len(b.Results) != 5 || b.Results[1].State != StateOK || b.Results[2].State != StateUnknown || b.Results[4].State != StateUnknown {
			t.Errorf("%+v", b.Results)
		}
		if time.Since(b.Taken) > time.Minute+time.Second {
			t.Error(time.Since(b.Taken))
		}
	})
}

func TestExpectations(t *testing.T) {
	good := expected()
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	ok := Check{Name: "x", Command: []string{"true"}}
	for text, change := range map[string]func(*Expect){
		"up 0s and deadline":        func(e *Expect) { e.Up = 0 },
		"not less than up":          func(e *Expect) { e.Deadline = time.Second },
		"services: there are 300":   func(e *Expect) { e.Services = make([]string, 300) },
		`devices[0]: "10DE"`:        func(e *Expect) { e.Devices[0].Vendor = "10DE" },
		`devices[0]: "":"2331"`:     func(e *Expect) { e.Devices[0].Vendor = "" },
		`driver "a/b"`:              func(e *Expect) { e.Driver = "a/b" },
		"checks: there are 33":      func(e *Expect) { e.Checks = make([]Check, 33) },
		`two of the name "x"`:       func(e *Expect) { e.Checks = []Check{ok, ok} },
		`checks[0]: name "A"`:       func(e *Expect) { e.Checks[0].Name = "A" },
		"checks[0]: command is e":   func(e *Expect) { e.Checks[0].Command = nil },
		"command is empty":          func(e *Expect) { e.Checks[0].Command = []string{"", "x"} },
		"command is too long":       func(e *Expect) { e.Checks[0].Command = make([]string, 65); e.Checks[0].Command[0] = "x" },
		"16 KiB":                    func(e *Expect) { e.Checks[0].Command = []string{strings.Repeat("x", 17<<10)} },
		`"a\x00" has a character`:   func(e *Expect) { e.Checks[0].Command = []string{"a\x00"} },
		`"a\xff" has a character`:   func(e *Expect) { e.Checks[0].Command = []string{"a\xff"} },
		"seconds 3601":              func(e *Expect) { e.Checks[0].Seconds = 3601 },
		"exit 256":                  func(e *Expect) { e.Checks[0].Exit = 256 },
		"output is no regular expr": func(e *Expect) { e.Checks[0].Output = "(" },
		"output is too long":        func(e *Expect) { e.Checks[0].Output = strings.Repeat("x", 1025) },
	} {
		e := expected()
		change(&e)
		if err := e.Check(); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestAssign(t *testing.T) {
	have := parseUevents(ueventHub + ueventTop + ueventVGA + ueventGPU + strings.ReplaceAll(ueventGPU, ":05:", ":06:") + "PCI_CLASS=28000\nPCI_ID=15B3:101E\nPCI_SLOT_NAME=0000:07:00.0\nMODALIAS=x\n")
	for _, c := range []struct {
		want    []Device
		got     []string
		lacking []string
	}{
		// Who asks for most comes first, so that nobody takes what only another is content with.
		{[]Device{{}, {"10de", ""}, {"10de", "2331"}}, []string{"0000:05:00.0", "0000:06:00.0", "0000:07:00.0"}, nil},
		{[]Device{{}, {}, {}, {}}, []string{"0000:05:00.0", "0000:06:00.0", "0000:07:00.0"}, []string{"any device that was handed in"}},
		{[]Device{{"10de", ""}, {"10de", ""}, {"10de", ""}}, []string{"0000:05:00.0", "0000:06:00.0"}, []string{"any device of 10de"}},
		{[]Device{{"8086", ""}}, nil, []string{"any device of 8086"}}, // a bridge of QEMU's is none
		{[]Device{{"1234", "1111"}}, []string{"0000:00:01.0"}, nil},   // by its numbers it is meant
		{[]Device{{"1234", ""}}, nil, []string{"any device of 1234"}}, //
		{[]Device{{"10de", "1111"}}, nil, []string{"10de:1111"}},      //
		{[]Device{{"15b3", "101e"}}, []string{"0000:07:00.0"}, nil},   // it has no driver
	} {
		got, lacking := assign(c.want, have)
		var addresses []string
		for _, d := range got {
			addresses = append(addresses, d.Address)
		}
		if d := cmp.Diff(c.got, addresses) + cmp.Diff(c.lacking, lacking); d != "" {
			t.Errorf("%v: %s", c.want, d)
		}
	}
}
