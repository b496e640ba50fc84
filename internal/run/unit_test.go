package run

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestServiceOf(t *testing.T) {
	for text, want := range map[string]string{
		"0::/system.slice/gpuvirtd.service\n":                                       "gpuvirtd.service",
		"12:pids:/x.service\n1:name=systemd:/system.slice/gpuvirtd.service\n0::/\n": "gpuvirtd.service",
		"0::/user.slice/user-0.slice/session-3.scope\n":                             "",
		"0::/system.slice/x.service/sub\n":                                          "",
		"9:name=systemd:/\n0::/\n":                                                  "",
		"nothing":                                                                   "",
	} {
		if got := serviceOf(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// all is a Confine with everything in it.
func all() *Confine {
	return &Confine{
		UID: 33, GID: 34, Groups: []uint32{7, 9}, FileBytes: 1 << 20, OpenFiles: 100, Processes: 50, CPU: time.Minute, Idle: true,
		Unit: &Unit{
			Prefix: "gpuvirt-test", BindsTo: "gpuvirtd.service", MemoryBytes: 1 << 30, Hidden: []string{"/srv"}, Reads: []string{`/srv/a "b"`},
			Writes: []string{"/srv/c"}, Closed: []string{"/usr/bin/none"}, Devices: []string{"/dev/kvm"},
		},
	}
}

func TestUnitCommand(t *testing.T) {
	c := all()
	s := c.Unit.service(1500 * time.Millisecond)
	got := s.command(Program{Confine: c, Dir: "/srv/c", Env: []string{"A=b $c"}}, "/bin/echo", []string{"$HOME", "a$$b", "--", "%n"})
	var rest []string
	for _, arg := range got {
		if !strings.HasPrefix(arg, "--property=") {
			rest = append(rest, arg)
		}
	}
	want := []string{
		"systemd-run", "--quiet", "--wait", "--pipe", "--service-type=exec", "--unit=" + s.name, "--working-directory=/srv/c",
		"--setenv=" + environment[0], "--setenv=LC_ALL=C", "--setenv=A=b $c",
		"--", "/bin/echo", "$$HOME", "a$$$$b", "--", "%n",
	}
	if d := cmp.Diff(want, rest); d != "" {
		t.Error(d)
	}
	if other := c.Unit.service(0); other.name == s.name || !strings.HasPrefix(s.name, "gpuvirt-test-") {
		t.Errorf("%q and %q", s.name, other.name)
	}
}

// systemd reads what it is told, and finds little to complain about.
func TestUnitProperties(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("there is no systemd-analyze")
	}
	c := all()
	c.UID, c.GID = 2, 2
	var unit, service []string
	for _, p := range c.Unit.service(time.Second).properties(*c) {
		if strings.HasPrefix(p, "BindsTo=") || strings.HasPrefix(p, "Before=") {
			unit = append(unit, p)
			continue
		}
		service = append(service, p)
	}
	text := "[Unit]\n" + strings.Join(unit, "\n") + "\n[Service]\nExecStart=/bin/true\n" + strings.Join(service, "\n") + "\n"
	dir := t.TempDir()
	for name, text := range map[string]string{"x.service": text, "gpuvirtd.service": "[Service]\nExecStart=/bin/true\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"verify", "--man=no"}, {"security", "--offline=yes", "--threshold=20", "--no-pager"}} {
		cmd := exec.CommandContext(t.Context(), "systemd-analyze", append(args, filepath.Join(dir, "x.service"))...)
		cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
		if out, err := cmd.CombinedOutput(); err != nil || args[0] == "verify" && strings.Contains(string(out), "x.service:") {
			t.Errorf("%q: %v\n%s", args, err, out)
		}
	}
}

// inUnits is the environment of a test that has a systemd: a folder, which is open to all.
const inUnits = "GPUVIRT_TEST_UNITS"

// What systemd really does: the tests named TestSystemd… run below one that is started for it.
func TestUnits(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may start a systemd")
	}
	for _, file := range []string{"/lib/systemd/systemd", "/usr/bin/dbus-daemon"} {
		if _, err := os.Stat(file); err != nil {
			t.Skip(err)
		}
	}
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "testdata/systemd.sh", dir, os.Args[0], "-test.run=^TestSystemd", "-test.v", "-test.timeout=2m")
	said, err := cmd.CombinedOutput()
	out, _ := os.ReadFile(filepath.Join(dir, "out"))
	status, none := os.ReadFile(filepath.Join(dir, "status"))
	switch {
	case errors.Is(none, fs.ErrNotExist) && len(out) == 0:
		t.Skipf("no systemd comes up here: %v\n%s", err, said)
	case string(status) != "0\n" || !strings.Contains(string(out), "--- PASS: TestSystemd"):
		t.Errorf("%s\n%s", status, out)
	}
	t.Logf("%s", out)
}

// needUnits returns a folder with one that the program may read, and one that it may write.
func needUnits(t *testing.T) (string, *Confine) {
	t.Helper()
	if os.Getenv(inUnits) == "" {
		t.Skip("TestUnits runs it")
	}
	if !Booted() {
		t.Fatal("there is a systemd, and it is not seen")
	}
	dir, err := os.MkdirTemp(os.Getenv(inUnits), "x") //nolint:usetesting // others pass there
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"read", "write", "other"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o777); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name, "file")
		if err := errors.Join(os.Chmod(filepath.Join(dir, name), 0o777), os.WriteFile(file, []byte(name), 0o666), os.Chmod(file, 0o666)); err != nil {
			t.Fatal(err)
		}
	}
	// 2 is a user that every system has.
	return dir, &Confine{UID: 2, GID: 2, Groups: []uint32{7}, OpenFiles: 100, Unit: &Unit{
		Prefix: "gpuvirt-test", Hidden: []string{dir}, Reads: []string{filepath.Join(dir, "read")}, Writes: []string{filepath.Join(dir, "write")},
		Closed: []string{"/usr/bin/who", "/usr/bin/none"},
	}}
}

func TestSystemdConfines(t *testing.T) {
	dir, c := needUnits(t)
	p := Program{Confine: c, Dir: filepath.Join(dir, "write"), Env: []string{"TOLD=$x y"}}
	out, err := p.Run(t.Context(), "sh", "-c", `id -u; id -g; id -G; grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | tr -d 'a-zA-Z:\t\n0'
		grep NoNewPrivs: /proc/self/status; ulimit -n; echo "$TOLD" "$0" "$1"; pwd; ls ..; cat ../read/file; echo more >>file; cat file
		touch ../read/file 2>/dev/null || echo 'not there'; touch ../x 2>/dev/null || echo 'nor there'; wc -l </proc/net/dev; ls /home; who 2>/dev/null || echo closed`,
		`$HOME $$`, `a "b\`)
	want := "2\n2\n2 7\nNoNewPrivs:\t1\n100\n$x y $HOME $$ a \"b\\\n" + dir + "/write\nread\nwrite\nreadwritemore\nnot there\nnor there\n3\nclosed"
	if d := cmp.Diff(want, out); d != "" || err != nil {
		t.Error(err, d)
	}
}

func TestSystemdTellsHowItEnds(t *testing.T) {
	dir, c := needUnits(t)
	p := Program{Confine: c, Apart: true}
	for script, want := range map[string]string{
		"echo out; echo broken >&2; exit 3": `"sh": exit status 3: broken`,
		"kill -SEGV $$":                     `"sh": ended by a signal`,
	} {
		if _, err := p.Run(t.Context(), "sh", "-c", script); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", script, err, want)
		}
	}
	p.Dir = filepath.Join(dir, "other") // which is hidden
	if _, err := p.Run(t.Context(), "true"); err == nil || !strings.Contains(err.Error(), "systemd cannot set its unit up (status 200") {
		t.Error(err)
	}
	var exit *ExitError
	c.UID = 12345
	if _, err := p.Run(t.Context(), "true"); err == nil || errors.As(err, &exit) {
		t.Error("nobody ran it: ", err)
	}
	if left, err := (Program{}).Run(t.Context(), "systemctl", "list-units", "--all", "--plain", "--no-legend", "gpuvirt-test-*"); left != "" || err != nil {
		t.Errorf("left behind: %s, %v", left, err)
	}
}

func TestSystemdEndsWhatIsCancelled(t *testing.T) {
	_, c := needUnits(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	p := Program{Confine: c, Grace: time.Second, Line: func(string) { cancel(why) }}
	began := time.Now()
	_, err := p.Run(ctx, "sh", "-c", "trap '' TERM; sleep 1000 & echo up; while :; do wait; done")
	if !errors.Is(err, why) || time.Since(began) > 10*time.Second {
		t.Errorf("%v after %s", err, time.Since(began))
	}
	if active(t) != "" {
		t.Error("it goes on")
	}
}

func TestSystemdEndsWhatIsLeft(t *testing.T) {
	_, c := needUnits(t)
	s := c.Unit.service(time.Second)
	args := s.command(Program{Confine: c}, "/bin/sleep", []string{"1000"})
	args[2] = "--no-block" // and not --wait
	args = append(args[:3], args[4:]...)
	if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wait(t, func() bool { return active(t) == s.name }) // that of a test before may still be ending
	for range 2 {                                       // the second time there is none
		if err := StopUnits(t.Context(), c.Unit.Prefix); err != nil {
			t.Error(err)
		}
	}
	if active(t) != "" {
		t.Error("it goes on")
	}
}

// A unit ends with the process that asked for it, however that ends; and one that is asked to
// end may do so first.
func TestSystemdBinds(t *testing.T) {
	dir, c := needUnits(t)
	if to := os.Getenv(binding); to != "" { // as the daemon
		own, err := OwnUnit()
		if err != nil || !strings.HasPrefix(own, "gpuvirt-testd-") {
			t.Fatalf("%q, %v", own, err)
		}
		c.Unit.BindsTo, c.Unit.Hidden, c.Unit.Reads, c.Unit.Writes = own, nil, nil, []string{to}
		_, err = Program{Confine: c}.Run(t.Context(), "sh", "-c", `echo >"$0/up"; exec sleep 1000`, to)
		t.Fatal(err)
	}
	for name, end := range map[string][]string{"killed": {"kill", "--signal=KILL"}, "stopped": {"stop"}} {
		to, daemon := filepath.Join(dir, "write"), "gpuvirt-testd-"+name+".service"
		// Only it is asked to end, as the daemon is.
		args := []string{"--quiet", "--unit=" + daemon, "--collect", "--property=KillMode=mixed", "--setenv=" + binding + "=" + to, "--setenv=" + inUnits + "=" + os.Getenv(inUnits)}
		// What it is asked to end it says, and whether the other one is there still.
		script := `trap 'systemctl is-active "gpuvirt-test-*" >"$0/asked"; kill $!; exit' TERM; "$@" & wait`
		args = append(args, "sh", "-c", strings.ReplaceAll(script, "$", "$$"), to, os.Args[0], "-test.run=^TestSystemdBinds$")
		if out, err := (Program{}).Run(t.Context(), "systemd-run", args...); err != nil {
			t.Fatal(err, out)
		}
		wait(t, func() bool { _, err := os.Stat(filepath.Join(to, "up")); return err == nil })
		if _, err := (Program{}).Run(t.Context(), "systemctl", append(end, daemon)...); err != nil {
			t.Fatal(err)
		}
		wait(t, func() bool { return active(t) == "" })
		asked, err := os.ReadFile(filepath.Join(to, "asked"))
		if name == "stopped" && string(asked) != "active\n" {
			t.Errorf("as it was asked, the other was %q, %v", asked, err)
		}
		if err := os.Remove(filepath.Join(to, "up")); err != nil {
			t.Fatal(err)
		}
	}
}

const binding = "GPUVIRT_TEST_BINDS"

// active are the units that run.
func active(t *testing.T) string {
	t.Helper()
	out, err := Program{}.Run(t.Context(), "systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating,deactivating", "gpuvirt-test-*")
	if err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(out, " ")
	return name
}

func wait(t *testing.T, until func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !until(); {
		if time.Now().After(deadline) {
			t.Fatal("it does not come to that")
		}
		<-time.After(20 * time.Millisecond)
	}
}
