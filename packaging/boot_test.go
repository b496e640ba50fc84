package packaging

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// stubs are the units of others that ours meet, with what matters of them: their order and
// what they pull in. NVIDIA's have none. libvirt-guests waits for libvirt's sockets, and in
// older releases for its services.
var stubs = map[string]string{
	"sysinit.target":               "[Unit]\n",
	"basic.target":                 "[Unit]\nRequires=sysinit.target\nWants=sockets.target\nAfter=sysinit.target sockets.target\n",
	"sockets.target":               "[Unit]\n",
	"local-fs.target":              "[Unit]\n",
	"network.target":               "[Unit]\n",
	"shutdown.target":              "[Unit]\nDefaultDependencies=no\n",
	"sleep.target":                 "[Unit]\nDefaultDependencies=no\n",
	"virt-guest-shutdown.target":   "[Unit]\n",
	"multi-user.target":            "[Unit]\nRequires=basic.target\nAfter=basic.target\n",
	"systemd-modules-load.service": early("Before=sysinit.target"),
	"systemd-udev-trigger.service": early("Before=sysinit.target"),
	"nvidia-vgpud.service":         service("", "multi-user.target"),
	"nvidia-vgpu-mgr.service":      service("After=nvidia-vgpud.service", "multi-user.target"),
	"nvidia-persistenced.service":  service("", "multi-user.target"),
	"nvidia-fabricmanager.service": service("After=network.target", "multi-user.target"),
	"libvirtd.socket":              socket("libvirtd"),
	"libvirtd.service":             service("Wants=libvirtd.socket\nAfter=libvirtd.socket network.target local-fs.target", "multi-user.target"),
	"virtqemud.socket":             socket("virtqemud"),
	"virtqemud.service":            service("Wants=virtqemud.socket\nAfter=virtqemud.socket network.target\nConflicts=libvirtd.service", "multi-user.target"),
	"libvirt-guests.service":       service("Requires=virt-guest-shutdown.target\nAfter=network.target libvirtd.socket virtqemud.socket virt-guest-shutdown.target", "multi-user.target"),
	"older-guests.service":         service("After=libvirtd.service virtqemud.service network.target", "multi-user.target"),
	"systemd-suspend.service":      "[Unit]\nDefaultDependencies=no\nRequires=sleep.target\nAfter=sleep.target\n[Service]\nType=oneshot\nExecStart=/bin/true\n",
}

func service(order, wantedBy string) string {
	return "[Unit]\n" + order + "\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n[Install]\nWantedBy=" + wantedBy + "\n"
}

func early(order string) string {
	return "[Unit]\nDefaultDependencies=no\n" + order + "\n[Service]\nType=oneshot\nExecStart=/bin/true\n[Install]\nWantedBy=sysinit.target\n"
}

func socket(name string) string {
	return "[Socket]\nListenStream=/run/" + name + ".sock\n[Install]\nWantedBy=sockets.target\n"
}

// sources are the units of ours.
var sources = []string{"gpuvirtd.service", "gpuvirt-restore.service", "gpuvirtd.socket"}

// A root is a folder with units, some of them enabled.
type root struct{ dir string }

// newRoot puts units into a folder of its own, ours with an edit, and enables some.
func newRoot(t *testing.T, edit func(name, text string) string, enabled ...string) root {
	t.Helper()
	r := root{t.TempDir()}
	units := filepath.Join(r.dir, "usr/lib/systemd/system")
	if err := os.MkdirAll(units, 0o755); err != nil {
		t.Fatal(err)
	}
	all := maps.Clone(stubs)
	for _, name := range sources {
		all[name] = edit(name, regexp.MustCompile(`(?m)^(Exec\w+=-?)/.*$`).ReplaceAllString(read(t, name), "${1}/bin/true"))
	}
	for name, text := range all {
		if err := os.WriteFile(filepath.Join(units, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if len(enabled) == 0 {
		return r
	}
	// #nosec G204 -- the units are named by these tests
	if out, err := exec.CommandContext(t.Context(), "systemctl", append([]string{"--root=" + r.dir, "enable"}, enabled...)...).CombinedOutput(); err != nil {
		t.Fatalf("cannot enable %q: %v\n%s", enabled, err, out)
	}
	return r
}

// verify has systemd make the jobs that start a unit, as it does at boot, and returns
// what it has to say: of cycles in their order above all.
func (r root) verify(t *testing.T, unit string) string {
	t.Helper()
	path := filepath.Join(r.dir, "etc/systemd/system") + ":" + filepath.Join(r.dir, "usr/lib/systemd/system")
	cmd := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", unit)
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+path)
	out, err := cmd.CombinedOutput()
	if err != nil && len(out) == 0 {
		t.Fatal(err)
	}
	return string(out)
}

func asItIs(_, text string) string { return text }

// Whatever of libvirt and NVIDIA is enabled beside ours, a boot has no job that waits for
// itself (T08): monolithic libvirt, its daemons one by one, both by socket, and none.
func TestBootInEveryOrder_T08(t *testing.T) {
	needSystemd(t)
	ours := [][]string{
		{"gpuvirtd.service"}, {"gpuvirtd.service", "gpuvirtd.socket"}, {"gpuvirtd.socket"}, {"gpuvirt-restore.service"}, nil,
	}
	libvirts := [][]string{
		{"libvirtd.service", "libvirtd.socket"},
		{"libvirtd.socket"},
		{"libvirtd.service"},
		{"virtqemud.service", "virtqemud.socket"},
		{"virtqemud.socket"},
		nil,
	}
	nvidia := []string{"nvidia-vgpud.service", "nvidia-vgpu-mgr.service", "nvidia-persistenced.service", "nvidia-fabricmanager.service"}
	always := []string{"systemd-modules-load.service", "systemd-udev-trigger.service"}
	for _, us := range ours {
		for _, them := range libvirts {
			for _, guests := range [][]string{{"libvirt-guests.service"}, {"older-guests.service"}} {
				enabled := slices.Concat(us, them, guests, nvidia, always)
				t.Run(strings.Join(slices.Concat(us, them, guests), " "), func(t *testing.T) {
					r := newRoot(t, asItIs, enabled...)
					units := slices.Concat([]string{"multi-user.target"}, sources)
					for _, unit := range units {
						if said := r.verify(t, unit); said != "" {
							t.Errorf("starting %s: %s", unit, said)
						}
					}
				})
			}
		}
	}
}

// The check above finds what it is there for.
func TestCyclesAreFound(t *testing.T) {
	needSystemd(t)
	for unit, after := range map[string]string{
		"gpuvirt-restore.service": "libvirtd.service", "gpuvirtd.service": "libvirt-guests.service",
	} {
		r := newRoot(t, func(name, text string) string {
			if name == unit {
				return strings.Replace(text, "[Unit]\n", "[Unit]\nAfter="+after+"\n", 1)
			}
			return text
		}, "gpuvirtd.service", "libvirtd.service", "libvirt-guests.service")
		if said := r.verify(t, "multi-user.target"); !strings.Contains(said, "ordering cycle") {
			t.Errorf("%s after %s: %q", unit, after, said)
		}
	}
}

// What comes before what, at boot; at shutdown it is the other way round.
func TestOrder(t *testing.T) {
	restore, daemon := "gpuvirt-restore.service", "gpuvirtd.service"
	for _, c := range []struct {
		unit, setting string
		others        []string
		why           string
	}{
		{restore, "After", []string{"nvidia-vgpud.service", "nvidia-vgpu-mgr.service"}, "they set up what the driver needs to offer types"},
		{restore, "After", []string{"nvidia-persistenced.service", "nvidia-fabricmanager.service"}, "they open the GPUs"},
		{restore, "After", []string{"systemd-modules-load.service"}, "drivers are loaded there"},
		{restore, "Before", []string{"libvirtd.service", "virtqemud.service", "libvirt-guests.service"}, "they start guests (T09)"},
		{daemon, "After", []string{restore}, "one of the two works on the store"},
		{daemon, "After", []string{"libvirtd.service", "virtqemud.service"}, "operations end with libvirt there"},
		{daemon, "Before", []string{"libvirt-guests.service"}, "guests end before operations do, and what starts them may ask (T08)"},
	} {
		for _, other := range c.others {
			if !slices.Contains(words(read(t, c.unit), c.setting), other) {
				t.Errorf("%s must be %s %s: %s", c.unit, strings.ToLower(c.setting), other, c.why)
			}
		}
	}
	// Nothing waits for what it itself has systemd start.
	for _, name := range sources {
		if regexp.MustCompile(`(?m)^Exec.*systemctl`).MatchString(read(t, name)) {
			t.Errorf("%s calls systemctl", name)
		}
	}
}

// A stop of the daemon leaves time for the step under way (host.Config.DrainTimeout), and
// does not shoot at the programs that the daemon runs (T07).
func TestStop_T07(t *testing.T) {
	text := read(t, "gpuvirtd.service")
	if got := words(text, "TimeoutStopSec"); !slices.Equal(got, []string{"90"}) {
		t.Errorf("TimeoutStopSec=%v", got)
	}
	if got := words(text, "KillMode"); !slices.Equal(got, []string{"mixed"}) {
		t.Errorf("KillMode=%v", got)
	}
}

// Once a daemon has run, nobody who restarts libvirt runs a restore: what is missing then is
// drift.
func TestRestoreBelongsToBoots(t *testing.T) {
	said := words(read(t, "gpuvirtd.service"), "ExecStartPost")
	if len(said) != 2 || said[0] != "-/usr/bin/touch" {
		t.Fatalf("ExecStartPost=%q", said)
	}
	if got := words(read(t, "gpuvirt-restore.service"), "ConditionPathExists"); !slices.Equal(got, []string{"!" + said[1]}) {
		t.Errorf("ConditionPathExists=%q, and the daemon makes %s", got, said[1])
	}
	if dir := words(read(t, "gpuvirtd.service"), "RuntimeDirectory"); len(dir) != 1 || filepath.Dir(said[1]) != "/run/"+dir[0] {
		t.Errorf("%s is not in the folder that the daemon may write to, %q", said[1], dir)
	}
}

// Whatever way the host is to sleep, it asks first; and nothing of that stays behind the
// package, as a unit that is required would.
func TestSleep(t *testing.T) {
	needSystemd(t)
	nfpm, err := os.ReadFile("nfpm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, way := range []string{"suspend", "hibernate", "hybrid-sleep", "suspend-then-hibernate"} {
		if !strings.Contains(string(nfpm), "dst: /usr/lib/systemd/system/systemd-"+way+".service.d/50-gpuvirt.conf") {
			t.Errorf("nobody asks before %s", way)
		}
	}
	for _, name := range sources {
		if got := slices.Concat(words(read(t, name), "RequiredBy"), words(read(t, name), "WantedBy")); slices.ContainsFunc(got, func(by string) bool { return strings.Contains(by, "sle") || strings.Contains(by, "suspend") }) {
			t.Errorf("%s is wanted by %q", name, got)
		}
	}
	if got := words(read(t, "sleep.conf"), "ExecStartPre"); !slices.Equal(got, []string{"/usr/bin/gpuvirt", "sleep-check", "--timeout", "10s"}) {
		t.Errorf("ExecStartPre=%q", got)
	}
	r := newRoot(t, asItIs)
	dir := filepath.Join(r.dir, "usr/lib/systemd/system/systemd-suspend.service.d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(read(t, "sleep.conf"), "/usr/bin/gpuvirt", "/bin/true", 1)
	if err := os.WriteFile(filepath.Join(dir, "50-gpuvirt.conf"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if said := r.verify(t, "systemd-suspend.service"); said != "" {
		t.Error(said)
	}
}

func needSystemd(t *testing.T) {
	t.Helper()
	for _, name := range []string{"systemd-analyze", "systemctl"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip(fmt.Sprint("there is no ", name))
		}
	}
}
