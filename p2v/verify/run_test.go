package verify

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A row of a report, as short as a test wants it.
type row struct {
	ID     string
	State  State
	Text   string
	Before string
}

func rows(results []Result) (all []row) {
	for _, r := range results {
		all = append(all, row{r.ID, r.State, r.Text, r.Before})
	}
	return all
}

func TestMovedServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, e := newFake(t), expected()
		source.system, source.failed = always("degraded"), "● ipmievd.service loaded failed failed IPMI event daemon\n"
		source.units["vllm.service"] = always(unitIs("active", "running"))
		before := Before(t.Context(), source, e)
		if d := cmp.Diff([]row{
			{"system", StateOK, "it runs; failed: ipmievd.service", ""},
			{"devices", StateOK, "0000:00:01.0 1234:1111 (bochs-drm), 0000:05:00.0 10de:2331 (nvidia)", ""},
			{"nvidia-smi", StateOK, "NVIDIA H100-20C", ""},
			{"service:vllm.service", StateOK, "active (running)", ""},
			{"check:health", StateOK, `exit status 0 after 1.0 s: {"status":"ok"}`, ""},
		}, rows(before.Results)); d != "" {
			t.Error(d)
		}

		// It is kept, and read again.
		data, err := json.Marshal(before)
		if err != nil {
			t.Fatal(err)
		}
		var kept Baseline
		if err := json.Unmarshal(data, &kept); err != nil {
			t.Fatal(err)
		}
		guest := newFake(t)
		var heard []string
		r := Run(t.Context(), NewGuest(guest), nil, e, &kept, func(r Result) { heard = append(heard, r.ID) })
		if d := cmp.Diff([]row{
			{"boot", StateOK, "the agent answered after 31 s", ""},
			{"agent", StateOK, "version 7.2.22, on Debian GNU/Linux 12 (bookworm), kernel 6.1.0-40-amd64", ""},
			{"system", StateOK, "it runs, and no unit has failed", "it runs; failed: ipmievd.service"},
			{"hostname", StateOK, "gpu7", ""},
			{"clock", StateOK, "within 5s of this host", ""},
			{"mounts", StateOK, "all 2 are mounted", ""},
			{"network", StateOK, "all 1 are there", ""},
			{"devices", StateOK, "0000:05:00.0 10de:2331 (nvidia)", "0000:00:01.0 1234:1111 (bochs-drm), 0000:05:00.0 10de:2331 (nvidia)"},
			{"driver", StateOK, "nvidia holds all that are for it", ""},
			{"nvidia-smi", StateOK, "NVIDIA H100-20C", "NVIDIA H100-20C"},
			{"licence", StateOK, "Licensed (Expiry: 2026-1-2 3:4:5 GMT)", ""},
			{"service:vllm.service", StateOK, "active (running)", "active (running)"},
			{"check:health", StateOK, `exit status 0 after 1.1 s: {"status":"ok"}`, `exit status 0 after 1.0 s: {"status":"ok"}`},
			{"gpu-errors", StateOK, "none in the kernel's log", ""},
		}, rows(r.Results)); d != "" {
			t.Error(d)
		}
		if r.Verdict != StateOK || r.Console != nil || len(heard) != len(r.Results) || heard[0] != "boot" {
			t.Errorf("%s, %q, heard %q", r.Verdict, r.Console, heard)
		}
		if took := r.Ended.Sub(r.Began); took < time.Minute || took > 2*time.Minute {
			t.Errorf("took %s", took)
		}
	})
}

// find returns a result of a report.
func find(t *testing.T, r Report, id string) Result {
	t.Helper()
	for _, result := range r.Results {
		if result.ID == id {
			return result
		}
	}
	t.Fatalf("no result %q in %+v", id, r.Results)
	return Result{}
}

// What is wrong is found, and told in the one place where it belongs.
func TestWhatIsWrong(t *testing.T) {
	baseline := &Baseline{Failed: []string{"old.service"}, Results: []Result{{ID: "system", State: StateOK}}}
	for name, c := range map[string]struct {
		change  func(*fake, *Expect)
		before  *Baseline
		id      string
		state   State
		text    string // is part of the text
		verdict State
		atLeast time.Duration
	}{
		"system never up": {func(f *fake, _ *Expect) { f.system = always("starting") }, baseline, "system", StateFailed, "it is starting, and waits for slow.service, multi-user.target, after 15m0s", StateFailed, 15 * time.Minute},
		"system never up, as ever": {
			func(f *fake, _ *Expect) { f.system = always("starting") },
			&Baseline{Results: []Result{{ID: "system", State: StateWarning}}}, "system", StateWarning, "as on the source", StateOK, 15 * time.Minute,
		},
		"emergency":         {func(f *fake, _ *Expect) { f.system = always("maintenance") }, nil, "system", StateFailed, "emergency", StateFailed, 0},
		"no systemd":        {func(f *fake, _ *Expect) { f.system = always("offline") }, nil, "system", StateUnknown, "systemd does not run it", StateOK, 0},
		"a unit failed":     {degraded("old.service loaded failed failed x\nnew.service loaded failed failed x\n"), baseline, "system", StateFailed, "had not on the source: new.service", StateFailed, 0},
		"old units failed":  {degraded("* old.service loaded failed failed x\n"), baseline, "system", StateOK, "on the source as well: old.service", StateOK, 0},
		"nothing to hold":   {degraded("new.service loaded failed failed x\n"), nil, "system", StateWarning, "nobody knows of the source: new.service", StateOK, 0},
		"it may fail":       {both(degraded("smartd.service loaded failed failed x\n"), func(_ *fake, e *Expect) { e.MayFail = []string{"smartd.service"} }), baseline, "system", StateOK, "failed as expected: smartd.service", StateOK, 0},
		"waits for network": {both(degraded("systemd-networkd-wait-online.service loaded failed failed x\n"), func(_ *fake, e *Expect) { e.Network = false }), baseline, "system", StateOK, "as expected", StateOK, 0},
		"other name":        {func(f *fake, _ *Expect) { f.hostname = "localhost" }, nil, "hostname", StateFailed, `it is "localhost", not "gpu7.bank.example"`, StateFailed, 0},
		"other domain":      {func(f *fake, _ *Expect) { f.hostname = "gpu7.other" }, nil, "hostname", StateFailed, `not "gpu7.bank`, StateFailed, 0},
		"name in rehearsal": {func(f *fake, e *Expect) { f.hostname, e.Network = "localhost", false }, nil, "hostname", StateWarning, "not", StateOK, 0},
		"clock ahead":       {func(f *fake, _ *Expect) { f.skew = time.Hour }, nil, "clock", StateWarning, "1h0m0s ahead", StateOK, 0},
		"clock behind":      {func(f *fake, _ *Expect) { f.skew = -6 * time.Second }, nil, "clock", StateWarning, "6s behind", StateOK, 0},
		"clock absurd":      {func(f *fake, _ *Expect) { f.skew = 200 * 365 * 24 * time.Hour }, nil, "clock", StateWarning, "ahead", StateOK, 0},
		"not mounted":       {func(f *fake, _ *Expect) { f.procMounts = "" }, nil, "mounts", StateFailed, "not mounted: /mo dels nfs4", StateFailed, grace},
		"other filesystem":  {func(_ *fake, e *Expect) { e.Mounts[0].Type = "xfs" }, nil, "mounts", StateFailed, "not mounted: / xfs", StateFailed, grace},
		"other address":     {func(_ *fake, e *Expect) { e.Addresses[0].IPs[0] = "10.1.2.4" }, nil, "network", StateFailed, "not there: 10.1.2.4 52:54:00:aa:bb:01; there are 10.1.2.3 on eno1", StateFailed, grace},
		"other device":      {func(_ *fake, e *Expect) { e.Addresses[0].MAC = "52:54:00:00:00:00" }, nil, "network", StateFailed, "not there: 10.1.2.3", StateFailed, grace},
		"rehearsal":         {func(_ *fake, e *Expect) { e.Network = false }, nil, "network", StateSkipped, "no network", StateOK, 0},
		"no GPU":            {func(f *fake, _ *Expect) { f.uevents = ueventHub + ueventVGA }, nil, "devices", StateFailed, "not there: 10de:2331; there is none that was handed in", StateFailed, 0},
		"other GPU":         {func(_ *fake, e *Expect) { e.Devices[0].Device = "2330" }, nil, "devices", StateFailed, "there is 0000:05:00.0 10de:2331 (nvidia)", StateFailed, 0},
		"one of two":        {func(_ *fake, e *Expect) { e.Devices = []Device{{}, {"10de", "2331"}} }, nil, "devices", StateFailed, "not there: any device that was handed in", StateFailed, 0},
		"any":               {func(_ *fake, e *Expect) { e.Devices = []Device{{}} }, nil, "devices", StateOK, "0000:05:00.0", StateOK, 0},
		"no PCI":            {func(f *fake, _ *Expect) { f.uevents = "" }, nil, "devices", StateFailed, "not there", StateFailed, 0},
		"another's device": {func(f *fake, e *Expect) {
			f.uevents, e.Devices = strings.ReplaceAll(strings.ReplaceAll(ueventGPU, "=nvidia", "=i915"), "10DE:2331", "8086:56C0"), []Device{{"8086", "56c0"}}
			f.programs["nvidia-smi"] = func(time.Duration, []string) process { return process{out: "No devices found.\n"} }
		}, nil, "driver", StateOK, "holds all that are for it", StateOK, 0},
		"other driver": {func(f *fake, _ *Expect) { f.uevents = strings.ReplaceAll(ueventGPU, "=nvidia", "=nouveau") }, nil, "driver", StateFailed, "nvidia does not hold 0000:05:00.0 10de:2331 (nouveau)", StateFailed, grace},
		"no driver":    {func(f *fake, _ *Expect) { f.uevents = strings.ReplaceAll(ueventGPU, "DRIVER=nvidia\n", "") }, nil, "driver", StateFailed, "(no driver)", StateFailed, grace},
		"none yet":     {func(_ *fake, e *Expect) { e.Driver = "" }, nil, "driver", StateSkipped, "none is installed yet", StateOK, 0},
		"smi fails": {
			program("nvidia-smi", process{exit: 9, out: "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"}),
			nil, "nvidia-smi", StateFailed, "exit status 9: NVIDIA-SMI has failed", StateFailed, grace,
		},
		"smi lists none": {program("nvidia-smi", process{out: "No devices found.\n"}), nil, "nvidia-smi", StateFailed, "it lists 0, not 1", StateFailed, grace},
		"no smi":         {func(f *fake, _ *Expect) { delete(f.programs, "nvidia-smi") }, nil, "nvidia-smi", StateSkipped, "there is no", StateOK, 0},
		"unlicensed": {
			program("nvidia-smi", process{out: smiList + strings.ReplaceAll(licensed, "Licensed (Expiry: 2026-1-2 3:4:5 GMT)", "Unlicensed (Unrestricted)")}),
			nil, "licence", StateWarning, "Unlicensed (Unrestricted)", StateOK, grace,
		},
		"no licence needed": {program("nvidia-smi", process{out: smiList}), nil, "licence", StateSkipped, "of none", StateOK, 0},
		"xid": {
			program("journalctl", process{out: "NVRM: Xid (PCI:0000:05:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n"}),
			nil, "gpu-errors", StateFailed, "Xid (PCI:0000:05:00): 79", StateFailed, 0,
		},
		"log unreadable":     {program("journalctl", process{exit: 1, err: "No journal files were found.\n"}), nil, "gpu-errors", StateUnknown, "No journal files", StateOK, 0},
		"service never up":   {service(unitIs("activating", "start")), nil, "service:vllm.service", StateFailed, "activating (start), after 15m0s", StateFailed, 15 * time.Minute},
		"service failed":     {service("LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=exit-code\nNRestarts=5\n"), nil, "service:vllm.service", StateFailed, "failed (failed): exit-code", StateFailed, grace},
		"service not there":  {func(_ *fake, e *Expect) { e.Services = []string{"gone.service"} }, nil, "service:gone.service", StateFailed, "none of this name", StateFailed, grace},
		"service of garbage": {func(_ *fake, e *Expect) { e.Services = []string{"--help x.service"} }, nil, "service:--help x.service", StateUnknown, "no name of a unit", StateUnknown, grace},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, e := newFake(t), expected()
				c.change(f, &e)
				if err := e.Check(); err != nil {
					t.Fatal(err)
				}
				r := Run(t.Context(), NewGuest(f), nil, e, c.before, nil)
				got := find(t, r, c.id)
				if got.State != c.state || !strings.Contains(got.Text, c.text) || r.Verdict != c.verdict {
					t.Errorf("%s: %s, %q; verdict %s", c.id, got.State, got.Text, r.Verdict)
				}
				if took := r.Ended.Sub(r.Began); took < c.atLeast || took > e.Longest() {
					t.Errorf("took %s", took)
				}
				for _, other := range r.Results {
					if other.State == StateFailed && (c.state != StateFailed || other.ID != c.id) && !follows[c.id][other.ID] {
						t.Errorf("%s failed as well: %s", other.ID, other.Text)
					}
				}
			})
		})
	}
}

// What else is wrong where a thing is.
var follows = map[string]map[string]bool{"devices": {"nvidia-smi": true, "driver": true}}

func degraded(failed string) func(*fake, *Expect) {
	return func(f *fake, _ *Expect) { f.system, f.failed = always("degraded"), failed }
}

func both(a, b func(*fake, *Expect)) func(*fake, *Expect) {
	return func(f *fake, e *Expect) { a(f, e); b(f, e) }
}

func program(name string, p process) func(*fake, *Expect) {
	return func(f *fake, _ *Expect) { f.programs[name] = func(time.Duration, []string) process { return p } }
}

func service(shown string) func(*fake, *Expect) {
	return func(f *fake, _ *Expect) { f.units["vllm.service"] = always(shown) }
}

// A service that dies at once is active for a moment each time it is started.
func TestServiceThatDiesAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, e := newFake(t), expected()
		f.units["vllm.service"] = func(after time.Duration) string {
			n := int(after.Seconds()) / 3
			return "LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\nNRestarts=" + string(rune('0'+n%10)) + "\n"
		}
		r := Run(t.Context(), NewGuest(f), nil, e, nil, nil)
		if got := find(t, r, "service:vllm.service"); got.State != StateFailed || !strings.Contains(got.Text, "less than 5s") {
			t.Errorf("%+v", got)
		}
	})
}

// What comes late is waited for: a network that is up long after the system, a driver.
func TestLateIsNotMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, e := newFake(t), expected()
		f.answer = func(name string) (string, bool) {
			return `{"return": []}`, name == "guest-network-get-interfaces" && f.after() < time.Minute
		}
		if r := Run(t.Context(), NewGuest(f), nil, e, nil, nil); r.Verdict != StateOK {
			t.Errorf("%+v", r)
		}
	})
}

func TestBrokenOff(t *testing.T) {
	why := errors.New("a person says so")
	for name, after := range map[string]time.Duration{"before it answers": 10 * time.Second, "while it starts": 50 * time.Second, "in a check": 75 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, e := newFake(t), expected()
				f.programs["curl"] = func(time.Duration, []string) process { return process{takes: forever} }
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(after, func() { cancel(why) })
				r := Run(ctx, NewGuest(f), nil, e, nil, nil)
				got := find(t, r, "check:health")
				if r.Verdict != StateUnknown || got.State != StateUnknown || r.Ended.Sub(r.Began) > after+2*time.Second {
					t.Errorf("%s after %s, %+v", r.Verdict, r.Ended.Sub(r.Began), got)
				}
				if name == "in a check" && got.Text != "it was broken off: a person says so" {
					t.Error(got.Text)
				}
			})
		})
	}
}
