package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A transaction runs scripts of a package on a host that systemd runs, with programs that only
// tell what they are called with.
type transaction struct {
	dir string
}

// newTransaction has calls that begin with one of these words, or have them later on, end with
// that status, and all others well.
func newTransaction(t *testing.T, answers map[string]int) transaction {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"systemctl", "systemd-sysusers", "modprobe", "deb-systemd-helper", "deb-systemd-invoke"} {
		var cases strings.Builder
		for call, status := range answers {
			if program, verb, _ := strings.Cut(call, " "); program == name {
				cases.WriteString("case \" $* \" in *\" " + verb + "\"*) exit " + strconv.Itoa(status) + " ;; esac\n")
			}
		}
		text := "#!/bin/sh\necho \"" + name + " $*\" >>'" + dir + "/said'\n" + cases.String()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return transaction{dir}
}

// run runs a script as the package manager does, and returns what was called meanwhile but for
// what makes no difference to a host: looking, and reading units anew.
func (x transaction) run(t *testing.T, script string, args ...string) (calls []string) {
	t.Helper()
	said := filepath.Join(x.dir, "said")
	if err := os.RemoveAll(said); err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("/run/systemd/system", x.dir, "/run/gpuvirt.upgraded", x.dir+"/upgraded", "/var/lib/gpuvirt", x.dir+"/lib", "/var/cache/gpuvirt", x.dir+"/cache", "/run/gpuvirt", x.dir+"/run").Replace(read(t, "../"+script))
	cmd := exec.CommandContext(t.Context(), "/bin/sh", append([]string{"-c", text, script}, args...)...)
	cmd.Env = []string{"PATH=" + x.dir + ":/usr/bin:/bin"}
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%s %q: %v\n%s", script, args, err, out)
	}
	data, err := os.ReadFile(said)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if !strings.Contains(line, "is-enabled") && !strings.Contains(line, "daemon-reload") {
			calls = append(calls, strings.TrimSpace(line))
		}
	}
	return calls
}

// What an RPM does to a host that systemd runs: a new one is enabled as presets say and started
// where it then is; an upgrade restarts a daemon that runs, once the old files are gone, and
// enables nothing; and what goes is ended.
func TestRPM(t *testing.T) {
	const units = "gpuvirtd.socket gpuvirtd.service gpuvirt-restore.service"
	x := newTransaction(t, nil)
	for _, c := range []struct {
		script, count string
		want          []string
	}{
		{"rpm/post", "1", []string{"systemd-sysusers gpuvirt.conf", "systemctl --no-reload preset " + units, "modprobe -q vfio-pci", "systemctl --no-block start gpuvirtd.service"}},
		{"rpm/posttrans", "1", nil},
		{"rpm/post", "2", []string{"systemd-sysusers gpuvirt.conf"}},
		{"rpm/preun", "1", nil},
		{"rpm/postun", "1", nil},
		{"rpm/posttrans", "2", []string{"systemctl try-restart gpuvirtd.service"}},
		{"rpm/posttrans", "2", nil}, // once is enough
		{"rpm/preun", "0", []string{"systemctl --no-reload disable --now " + units}},
		{"rpm/postun", "0", nil},
	} {
		scratch := filepath.Join(x.dir, "cache", "run-1")
		if err := os.MkdirAll(scratch, 0o755); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, x.run(t, c.script, c.count)); diff != "" {
			t.Errorf("%s %s: %s", c.script, c.count, diff)
		}
		if _, err := os.Stat(scratch); (err == nil) == (c.script == "rpm/postun" && c.count == "0") {
			t.Errorf("%s %s: what conversions need: %v", c.script, c.count, err)
		}
	}
	x = newTransaction(t, map[string]int{"systemctl -q is-enabled": 1})
	if got := x.run(t, "rpm/post", "1"); strings.Contains(strings.Join(got, "\n"), "start") {
		t.Errorf("what a preset has disabled is started: %q", got)
	}
}

// Whatever fails on a host, no script leaves a package half there; and each may be run again.
func TestScriptsHoldOut(t *testing.T) {
	x := newTransaction(t, map[string]int{"systemctl ": 1, "modprobe ": 1, "deb-systemd-helper ": 1, "deb-systemd-invoke ": 1})
	for _, call := range [][]string{
		{"rpm/post", "1"},
		{"rpm/post", "2"},
		{"rpm/preun", "1"},
		{"rpm/preun", "0"},
		{"rpm/postun", "1"},
		{"rpm/postun", "0"},
		{"deb/postinst", "configure", ""},
		{"deb/postinst", "configure", "1"},
		{"deb/postinst", "abort-remove"},
		{"deb/prerm", "upgrade", "2"},
		{"deb/prerm", "remove"},
		{"deb/prerm", "failed-upgrade", "1"},
		{"deb/postrm", "upgrade", "2"},
		{"deb/postrm", "remove"},
		{"deb/postrm", "abort-install"},
		{"deb/postrm", "purge"},
	} {
		first := x.run(t, call[0], call[1:]...)
		if diff := cmp.Diff(first, x.run(t, call[0], call[1:]...)); diff != "" {
			t.Errorf("%q, run again: %s", call, diff)
		}
	}
	x.run(t, "rpm/post", "2")
	x.run(t, "rpm/posttrans", "2")
}

// An upgrade by DEB ends no daemon before the new one is there, and a removal ends it.
func TestPrerm(t *testing.T) {
	x := newTransaction(t, nil)
	for action, want := range map[string][]string{
		"upgrade": nil, "failed-upgrade": nil, "deconfigure": nil,
		"remove": {"deb-systemd-invoke stop gpuvirtd.socket gpuvirtd.service gpuvirt-restore.service"},
	} {
		if diff := cmp.Diff(want, x.run(t, "deb/prerm", action)); diff != "" {
			t.Errorf("%s: %s", action, diff)
		}
	}
}
