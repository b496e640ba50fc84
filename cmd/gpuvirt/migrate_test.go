package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuvirt/api"
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
	s := &session{args: strings.Fields("migrate start gpu7 --assessment a --profile 0000:41:00.0=H100-2-20C --profile 0000:c1:00.0=none --profile extra --prefer card --disk nvme0n1,sdb " +
		"--guest-driver 580.95.05 --licence-token --downtime 90s --memory 64Gi --threads 8 --waive x=because --bandwidth 1M --every 1m --connections 2 --compress")}
	s.run(t.Context(), socket)
	want := `POST /v1/migrations {"name":"gpu7","assessment":"a","plan":{"partitions":[{"source":"0000:41:00.0","profile":"H100-2-20C"},{"source":"0000:c1:00.0","none":true},{"profile":"extra"}],` +
		`"prefer":"card","guest_driver":"580.95.05","licence_token":true,"memory_bytes":68719476736,"threads":8,"disks":["nvme0n1","sdb"],"downtime_seconds":90,"waivers":[{"id":"x","reason":"because"}]},` +
		`"copy":{"bandwidth_bytes_per_second":1000000,"interval_seconds":60,"connections":2,"compress":true}}`
	if s.code != exitDone || len(f.requests) != 1 || f.requests[0] != want {
		t.Errorf("%s\n%s", s, strings.Join(f.requests, "\n"))
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
