package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuvirt/api"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/move"
)

func TestParseRate(t *testing.T) {
	for text, want := range map[string]uint64{"0": 0, "1": 1, "200M": 200e6, "50Mi": 50 << 20, "1.5G": 1.5e9, "10k": 10e3, "64Ki": 64 << 10, "2Gi": 2 << 30} {
		if got, err := parseRate(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "M", "-1", "1T", "1MM", "1iM", "M1", "NaN", "Inf", "1e30", "9000000000G"} {
		if got, err := parseRate(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}

// What is asked for of a plan goes on the wire as it was said, and nothing else.
func TestPlanRequest(t *testing.T) {
	f, socket := startFake(t)
	s := &session{args: strings.Fields("migrate start gpu7 --assessment a --profile 0000:41:00.0=H100-2-20C --profile 0000:c1:00.0=none --profile extra --need 0000:41:00.0=memory:20GiB,sms:30,class:compute,on:0000:43:00.0 --need 0000:d1:00.0=sms:8 --prefer card --disk nvme0n1,sdb " +
		"--guest-driver 580.95.05 --licence-token --downtime 90s --memory 64Gi --threads 8 --waive x=because --bandwidth 1M --every 1m --connections 2 --compress")}
	s.run(t.Context(), socket)
	want := `POST /v1/migrations {"name":"gpu7","assessment":"a","plan":{"partitions":[{"source":"0000:41:00.0","gpu":"0000:43:00.0","profile":"H100-2-20C","memory_bytes":21474836480,"sms":30,"class":"compute"},{"source":"0000:c1:00.0","none":true},{"profile":"extra"},{"source":"0000:d1:00.0","sms":8}],` +
		`"prefer":"card","guest_driver":"580.95.05","licence_token":true,"memory_bytes":68719476736,"threads":8,"disks":["nvme0n1","sdb"],"downtime_seconds":90,"waivers":[{"id":"x","reason":"because"}]},` +
		`"copy":{"bandwidth_bytes_per_second":1000000,"interval_seconds":60,"connections":2,"compress":true}}`
	if s.code != exitDone || len(f.requests) != 1 || f.requests[0] != want {
		t.Errorf("%s\n%s", s, strings.Join(f.requests, "\n"))
	}
}

// What makes no sense of a need is refused, and said.
func TestNeedIsRefused(t *testing.T) {
	f, socket := startFake(t)
	for args, want := range map[string]string{
		"--need memory:20GiB":                "it takes a GPU of the server by its address",
		"--need =memory:20GiB":               "it takes a GPU of the server by its address",
		"--need a=":                          "it takes a GPU of the server by its address",
		"--need a=memory:much":               `"much" is no size`,
		"--need a=memory:0":                  "nothing is no need",
		"--need a=memory:1Gi,memory:2Gi":     "memory is said twice",
		"--need a=sms:0":                     `"0" is no number of multiprocessors`,
		"--need a=sms:3.5":                   `"3.5" is no number of multiprocessors`,
		"--need a=class:gaming":              `"gaming" is none of compute, graphics`,
		"--need a=on:":                       `"on:" is none of memory:…`,
		"--need a=sms":                       `"sms" is none of memory:…`,
		"--need a=profile:x":                 `"profile" is none of memory, sms, class and on`,
		"--need a=sms:3,":                    `"" is none of`,
		"--need a=sms:3 --need a=memory:1Gi": "it is said twice what a needs",
		"--need a=sms:3 --profile a=none":    "--profile a=none asks for no partition for it",
		"--memory 64Gx":                      `--memory "64Gx" is no size`,
	} {
		s := &session{args: strings.Fields("migrate plan --assessment a " + args)}
		if s.run(t.Context(), socket); s.code != exitUsage || !strings.Contains(s.stderr, want) {
			t.Errorf("no %q in\n%s", want, s)
		}
	}
	if len(f.requests) > 0 {
		t.Errorf("asked: %q", f.requests)
	}
}

// A shell completes the GPUs of the server, and what may be said of one.
func TestNeedIsCompleted(t *testing.T) {
	f, socket := startFake(t)
	f.answers["GET assessments/gpu7"] = api.Assessment{Name: "gpu7", Findings: &assess.Assessment{Needs: []assess.Need{{Source: assess.NeedSource{PCI: "0000:41:00.0"}}}}}
	for begun, want := range map[string]string{
		"":                      "0000:41:00.0=\n:6\n",
		"0000:41:00.0=":         "0000:41:00.0=memory:\n0000:41:00.0=sms:\n0000:41:00.0=class:compute\n0000:41:00.0=class:graphics\n0000:41:00.0=on:0000:3b:00.0\n",
		"0000:41:00.0=sms:3,me": "0000:41:00.0=sms:3,memory:\n",
	} {
		s := &session{args: []string{"__complete", "migrate", "plan", "--assessment", "gpu7", "--need", begun}}
		if s.run(t.Context(), socket); !strings.HasPrefix(s.stdout, want) {
			t.Errorf("no %q in\n%s", want, s)
		}
	}
}

// Checks go on the wire as flags and a file say them.
func TestChecks(t *testing.T) {
	f, socket := startFake(t)
	const list = "- {name: deep, command: [sh, -c, \"test $(nproc) -gt 1\"], seconds: 90, exit: 3, output: '^ok .*$'}\n- name: plain\n  command: [/bin/true]\n"
	want := `"checks":[{"name":"health","command":["curl","-fsS","http://localhost/h?a=1\u0026b=2"]},{"name":"deep","command":["sh","-c","test $(nproc) -gt 1"],"seconds":90,"exit":3,"output":"^ok .*$"},{"name":"plain","command":["/bin/true"]}]`
	for _, file := range []string{"-", writeFile(t, list)} {
		f.requests = nil
		s := &session{args: []string{"migrate", "start", "gpu7", "--assessment", "a", "--check", "health=curl -fsS http://localhost/h?a=1&b=2", "--checks", file, "--no-wait"}, stdin: list}
		if s.run(t.Context(), socket); s.code != exitDone || len(f.requests) != 1 || !strings.Contains(f.requests[0], want) {
			t.Errorf("%s\n%s", s, f.requests)
		}
	}
	f.requests = nil
	for _, command := range []string{"test 'a b'", `echo "x"`, "a | b", "a; b", "a && b", "a &", "echo $HOME", "cat <x", "echo `x`", "ls *.x", `a\ b`, "cat ~/x", "(a)"} {
		s := &session{args: []string{"migrate", "plan", "--assessment", "a", "--check", "x=" + command}}
		if s.run(t.Context(), socket); s.code != exitUsage || !strings.Contains(s.stderr, "no shell reads it") || !strings.Contains(s.stderr, "--checks") {
			t.Errorf("%s", s)
		}
	}
	for text, want := range map[string]string{
		"": "it is empty", "[]": "it has no checks", "- {name: x, comand: [a]}": "comand", "- {name: x, command: a b}": "cannot unmarshal", "- {name: X, command: [a]}": "check 1: name",
		"- {name: x, command: [a], output: '('}": "output is no regular expression", "- {name: x, command: [a]}\n- {name: x, command: [b]}": `there are two of the name "x"`,
		"- {name: x, command: [a], seconds: -1}": "seconds -1",
	} {
		s := &session{args: []string{"migrate", "plan", "--assessment", "a", "--checks", writeFile(t, text)}}
		if s.run(t.Context(), socket); s.code == exitDone || !strings.Contains(s.stderr, want) {
			t.Errorf("no %q in\n%s", want, s)
		}
	}
	if len(f.requests) > 0 {
		t.Errorf("asked: %q", f.requests)
	}
}

// A lease goes on the wire in seconds, and 0 is said, too.
func TestLease(t *testing.T) {
	f, socket := startFake(t)
	for _, args := range []string{
		"migrate start gpu7 --assessment a --lease 720h", "migrate reserve gpu7", "migrate reserve gpu7 --lease 0", "migrate reserve gpu7 --lease 168h --dry-run",
	} {
		s := &session{args: strings.Fields(args)}
		s.run(t.Context(), socket)
		if s.code != exitDone {
			t.Errorf("%s", s)
		}
	}
	sent := strings.Join(f.requests, "\n")
	for _, want := range []string{
		`"lease_seconds":2592000}`, "reserve {}", `reserve {"lease_seconds":0}`, `reserve?dry_run=true {"lease_seconds":604800}`,
	} {
		if !strings.Contains(sent, want) {
			t.Errorf("%s is not in\n%s", want, sent)
		}
	}
	// It is waited for, and told where somebody else has them.
	f.answers["POST migrations/gpu7/reserve"] = api.Migration{Name: "gpu7", Reservation: &api.Reservation{State: "reserving"}}
	f.answers["GET migrations/gpu7"] = api.Migration{Name: "gpu7", Reservation: &api.Reservation{State: "released", Problem: "assignment web1 has it"}}
	s := &session{args: strings.Fields("migrate reserve gpu7")}
	s.run(t.Context(), socket)
	if s.code == exitDone || !strings.Contains(s.stderr, "assignment web1 has it") {
		t.Errorf("%s", s)
	}
}

// A passphrase goes on the wire, and comes from no argument.
func TestKeys(t *testing.T) {
	f, socket := startFake(t)
	file := filepath.Join(t.TempDir(), "luks")
	if err := os.WriteFile(file, []byte("swordfish\nand more\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{
		"migrate start gpu7 --assessment a --key sda3=gpu7-luks --passphrase-file sdb=" + file, "migrate set gpu7 --passphrase-file sdb=-",
	} {
		s := &session{args: strings.Fields(args), stdin: "marlin\r\n"}
		s.run(t.Context(), socket)
		if s.code != exitDone {
			t.Errorf("%s", s)
		}
	}
	sent := strings.Join(f.requests, "\n")
	for _, want := range []string{
		`"keys":[{"volume":"sda3","credential":"gpu7-luks"},{"volume":"sdb","passphrase":"swordfish"}]}`, `PATCH /v1/migrations/gpu7 {"keys":[{"volume":"sdb","passphrase":"marlin"}]}`,
	} {
		if !strings.Contains(sent, want) {
			t.Errorf("%s is not in\n%s", want, sent)
		}
	}
	for _, args := range []string{"--key sda3", "--passphrase-file =x", "--passphrase-file sda=" + file + ".no", "--passphrase-file sda=-"} {
		s := &session{args: strings.Fields("migrate set gpu7 " + args)}
		if s.run(t.Context(), socket); s.code == exitDone {
			t.Errorf("%s", s)
		}
	}
}

// Where the disks of a server that is off are read goes on the wire as it was said, and so does
// that it is off.
func TestDisksFrom(t *testing.T) {
	f, socket := startFake(t)
	for _, args := range []string{
		"migrate start gpu7 --assessment a --image sda=/srv/a=b.raw --nbd sdb=nbds://h/x?tls-hostname=y --certificates c",
		"migrate cutover rest --source-off --yes --no-wait",
	} {
		s := &session{args: strings.Fields(args)}
		s.run(t.Context(), socket)
		if s.code != exitDone {
			t.Errorf("%s", s)
		}
	}
	sent := strings.Join(f.requests, "\n")
	for _, want := range []string{
		`"disks_from":[{"disk":"sda","image":"/srv/a=b.raw"},{"disk":"sdb","nbd":"nbds://h/x?tls-hostname=y"}],"certificates":"c"}`,
		`POST /v1/migrations/rest/cutover {"source_off":true}`,
	} {
		if !strings.Contains(sent, want) {
			t.Errorf("%s is not in\n%s", want, sent)
		}
	}
}

// A limit below a second is one.
func TestTryLimit(t *testing.T) {
	for limit, want := range map[time.Duration]int{0: 0, 200 * time.Millisecond: 1, 90 * time.Second: 90} {
		if got := (&tryFlags{limit: limit}).request().LimitSeconds; got != want {
			t.Errorf("%s: %d", limit, got)
		}
	}
}

// A try that has failed is told as one: its operation goes on. One that waits for a person does.
func TestTried(t *testing.T) {
	for name, c := range map[string]struct {
		phase, reason string
		state         move.AttemptState
		code          int
		want          []string
	}{
		"failed": {"ready", "", move.Failed, exitFailed, []string{"error: the cutover of migration gpu7 has failed: no room\n", "hint: the server goes on"}},
		"waits":  {"waiting", "the VM does not start", move.Moved, exitNotReady, []string{"error: migration gpu7 waits: the VM does not start\n", "hint: when that is done: gpuvirt migrate retry gpu7\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			f, socket := startFake(t)
			f.answers["POST migrations/gpu7/cutover"] = api.Migration{
				Name: "gpu7", Phase: c.phase, Reason: c.reason,
				Attempts: []move.Attempt{{Kind: move.Cutover, State: c.state, Problem: "no room"}},
			}
			s := &session{args: strings.Fields("migrate cutover gpu7 --yes")}
			s.run(t.Context(), socket)
			if s.code != c.code {
				t.Errorf("exit status %d\n%s", s.code, s)
			}
			for _, want := range c.want {
				if !strings.Contains(s.String(), want) {
					t.Errorf("no %q in\n%s", want, s)
				}
			}
		})
	}
}
