package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuvirt/p2v/inspect"
	"gpuvirt/p2v/report"
)

// physical is a server with one GPU, whose nvidia-smi goes on printing what that does.
func physical(t *testing.T) inspect.Options {
	t.Helper()
	root, bin := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{
		"proc/sys/kernel/hostname":               "gpu7\n",
		"proc/driver/nvidia/version":             "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.90.07\n",
		"etc/os-release":                         "ID=debian\nPRETTY_NAME=\"Debian 12\"\n",
		"sys/bus/pci/devices/0000:41:00.0/class": "0x030200\n", "sys/bus/pci/devices/0000:41:00.0/vendor": "0x10de\n", "sys/bus/pci/devices/0000:41:00.0/device": "0x20b5\n",
		"dev/nvidiactl": "",
	} {
		at := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const smi = `#!/bin/sh
row='0, 00000000:41:00.0, GPU-11111111-2222-3333-4444-555555555555, [N/A], 1024, 40, 5, 61.20, 0, 0, 0, 0'
case "$1 $3" in
"-q ") echo '<nvidia_smi_log><gpu id="00000000:41:00.0"><product_name>NVIDIA A100</product_name></gpu></nvidia_smi_log>';;
"--query-gpu="*"-lms") while :; do echo "$row"; sleep 1; done;;
"--query-gpu=index"*) echo "$row";;
*) exit 2;;
esac
`
	if err := os.WriteFile(filepath.Join(bin, "nvidia-smi"), []byte(smi), 0o755); err != nil {
		t.Fatal(err)
	}
	return inspect.Options{Root: root, Bin: []string{bin}}
}

func inspects(ctx context.Context, s *session, o inspect.Options) {
	var out, err bytes.Buffer
	s.code = run(ctx, append([]string{"p2v", "inspect"}, s.args...), streams{
		in: strings.NewReader(""), out: &out, err: &err, errTerminal: s.terminal, inspect: o,
		// A daemon elsewhere, whose token cannot be read, is none of its concern.
		env: remote{url: "https://elsewhere.example", tokenFile: "/nowhere"},
	})
	s.stdout, s.stderr = out.String(), err.String()
}

func TestInspect(t *testing.T) {
	t.Parallel()
	var s session
	var r report.Report
	var err error
	window := time.Second
	// A longer one where nothing was seen in time: programs that begin take theirs on a busy machine.
	for ; (r.Usage == nil || r.Usage.Samples == 0) && window < time.Minute; window *= 2 {
		s = session{args: []string{"--window", window.String(), "--interval", "1s"}, terminal: true}
		inspects(t.Context(), &s, physical(t))
		r, err = report.Read(strings.NewReader(s.stdout))
	}
	if err != nil || s.code != exitDone || r.Hostname != "gpu7" || len(r.GPUs) != 1 || r.Usage == nil || r.Usage.Samples == 0 || r.Usage.GPUs[0].Memory.Max != 1<<30 {
		t.Fatalf("%v\n%s", err, &s)
	}
	for _, want := range []string{"watching the GPUs for " + (window / 2).String(), "GPU 0000:41:00.0: NVIDIA A100, at most 1.0 GiB used, busy 40 %", "driver 550.90.07, open"} {
		if !strings.Contains(s.stderr, want) {
			t.Errorf("%q is not said:\n%s", want, s.stderr)
		}
	}
}

// A daemon asks a server for its disks, which asks no daemon.
func TestDisks(t *testing.T) {
	t.Parallel()
	var out, err bytes.Buffer
	code := run(t.Context(), []string{"p2v", "disks"}, streams{in: strings.NewReader(""), out: &out, err: &err, inspect: physical(t), env: remote{url: "https://elsewhere.example", tokenFile: "/nowhere"}})
	if want := `{"version":1,"boot_id":"","up_seconds":0,"disks":[]}` + "\n"; code != exitDone || out.String() != want || err.Len() > 0 {
		t.Errorf("%d %q %q", code, &out, &err)
	}
}

func TestInspectOnly(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "gpu7.yaml")
	s := session{args: []string{"--window", "0", "-o", "yaml", "--file", file}}
	inspects(t.Context(), &s, physical(t))
	text, err := os.ReadFile(file)
	if err != nil || s.code != exitDone || s.stdout != "" || s.stderr != "" || !strings.Contains(string(text), "hostname: gpu7\n") || strings.Contains(string(text), "usage:") {
		t.Errorf("%v\n%s\n%s", err, &s, text)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if all, _ := filepath.Glob(filepath.Join(filepath.Dir(file), "*")); len(all) != 1 {
		t.Errorf("%q", all)
	}
}

func TestInspectStream(t *testing.T) {
	t.Parallel()
	var s session
	var u report.Usage
	var err error
	parts, ended := 0, false
	for window := 3 * time.Second; (parts < 2 || u.Samples < 3) && window < time.Minute; window *= 2 { // as above
		s = session{args: []string{"--stream", "--window", window.String(), "--interval", "1s"}}
		inspects(t.Context(), &s, physical(t))
		u, parts = report.Usage{}, 0
		err = report.ReadLines(strings.NewReader(s.stdout), func(l report.Line) error {
			if l.Usage != nil {
				parts++
				u.Merge(*l.Usage)
			}
			ended = l.End
			return nil
		})
	}
	if err != nil || s.code != exitDone || parts < 2 || u.Samples < 3 || !ended || s.stderr != "" {
		t.Errorf("%v, %d parts, %d samples\n%s", err, parts, u.Samples, &s)
	}
}

// The document is there while the window goes on, so that a run that is killed leaves it;
// one that is ended writes what it has.
func TestInspectEnded(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "gpu7.json")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := session{args: []string{"--window", "1m", "--interval", "1s", "--file", file}}
	ended := make(chan struct{})
	go func() { defer close(ended); inspects(ctx, &s, physical(t)) }()
	read := func() (report.Report, error) {
		f, err := os.Open(file)
		if err != nil {
			return report.Report{}, err
		}
		defer f.Close()
		return report.Read(f)
	}
	first, early := 0, false
	for deadline := time.After(50 * time.Second); first == 0; {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ended:
			t.Fatalf("it ended by itself\n%s", &s)
		case <-deadline:
			t.Fatal("nothing was written")
		}
		r, err := read()
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err) // never half of it
		}
		early = early || err == nil && r.Usage == nil
		if r.Usage != nil {
			first = r.Usage.Samples
		}
	}
	cancel()
	<-ended
	r, err := read()
	if err != nil || s.code != exitDone || !early || r.Usage.Samples < first {
		t.Errorf("%v, early %v, %d samples, then %+v\n%s", err, early, first, r.Usage, &s)
	}
}

// A server whose GPUs tell nothing, or that has none, is not watched for hours.
func TestInspectNothingToWatch(t *testing.T) {
	t.Parallel()
	s := session{args: []string{"--window", "24h"}, terminal: true}
	inspects(t.Context(), &s, inspect.Options{Root: t.TempDir(), Bin: []string{t.TempDir()}})
	r, err := report.Read(strings.NewReader(s.stdout))
	if err != nil || s.code != exitDone || r.Usage != nil || !strings.Contains(s.stderr, "no GPU\n") || !strings.Contains(s.stderr, "not seen: usage: no GPU here tells") {
		t.Errorf("%v\n%s", err, &s)
	}
}

func TestInspectRefusals(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args, want string
		code       int
	}{
		{"-o table", "json or yaml", exitUsage},
		{"--stream --file x", "goes with neither", exitUsage},
		{"--stream -o yaml", "goes with neither", exitUsage},
		{"--window -1s", "negative", exitUsage},
		{"--interval 100ms", "not between", exitUsage},
		{"--dry-run", "no --dry-run", exitUsage},
		{"extra", "", exitUsage},
		{"--window 0 --file /nowhere/x", "cannot write the inspection", exitFailed},
	} {
		s := session{args: strings.Fields(test.args)}
		inspects(t.Context(), &s, physical(t))
		if s.code != test.code || !strings.Contains(s.stderr, test.want) || s.stdout != "" {
			t.Errorf("%s", &s)
		}
	}
}
