// Package packaging holds what a package installs beside the binaries; here it
// is checked.
package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gpuvirt/config"
)

// systemd itself reads the units. The program they start is not there: it is
// replaced by one that is.
func TestUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("there is no systemd-analyze")
	}
	dir := t.TempDir()
	var units []string
	for _, name := range []string{"gpuvirtd.service", "gpuvirt-restore.service", "gpuvirtd.socket"} {
		text := regexp.MustCompile(`(?m)^ExecStart=.*$`).ReplaceAllString(read(t, name), "ExecStart=/bin/true")
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		units = append(units, path)
	}
	cmd := exec.CommandContext(t.Context(), analyze, append([]string{"verify", "--man=no"}, units...)...)
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
	out, err := cmd.CombinedOutput()
	// What it says of other units of this machine is not about ours.
	ours := slices.DeleteFunc(strings.Split(string(out), "\n"), func(line string) bool {
		return !strings.Contains(line, "gpuvirt")
	})
	if err != nil || len(ours) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

// After a first installation the daemon is started, and so it is where the package comes back
// after it was removed. After an upgrade it is restarted if it runs. Nothing starts the restore.
func TestPostinst(t *testing.T) {
	for _, c := range []struct {
		args    []string
		removed bool // before
		want    string
	}{
		{[]string{"configure", ""}, false, "start"},
		{[]string{"configure"}, false, "start"},
		{[]string{"configure", "1.2.3-1"}, false, "try-restart"},
		{[]string{"configure", "1.2.3-1"}, true, "start"},
		{[]string{"abort-upgrade", "1.2.4-1"}, false, "try-restart"},
		{[]string{"abort-remove"}, false, "start"},
		{[]string{"abort-deconfigure", "in-favour", "x", "1"}, false, "try-restart"},
		{[]string{"triggered", "x"}, false, ""},
	} {
		dir := t.TempDir()
		state := filepath.Join(dir, "masked")
		files := map[string]string{"deb-systemd-invoke": `echo "$*" >>"` + dir + `/invoked"`}
		for _, name := range []string{"systemd-sysusers", "systemctl", "modprobe"} {
			files[name] = "exit 0"
		}
		// As the real one does, it forgets what it masked.
		files["deb-systemd-helper"] = `[ "$1" != unmask ] || rm -f "` + state + `/$2"`
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Mkdir(state, 0o755); err != nil {
			t.Fatal(err)
		}
		if c.removed {
			if err := os.WriteFile(filepath.Join(state, "gpuvirtd.service"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		script := strings.NewReplacer("/run/systemd/system", dir, "/var/lib/systemd/deb-systemd-helper-masked", state).Replace(read(t, "../deb/postinst"))
		cmd := exec.CommandContext(t.Context(), "/bin/sh", append([]string{"-c", script, "postinst"}, c.args...)...)
		cmd.Env = []string{"PATH=" + dir + ":/usr/bin:/bin"}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%q: %v\n%s", c.args, err, out)
		}
		got, err := os.ReadFile(filepath.Join(dir, "invoked"))
		if want := strings.TrimSpace(c.want + " gpuvirtd.service"); c.want != "" && strings.TrimSpace(string(got)) != want || c.want == "" && err == nil {
			t.Errorf("%q, removed before: %t: %q, want %q", c.args, c.removed, got, c.want)
		}
	}
}

// A purge takes no store away under a daemon, also where the policy of the host has kept prerm
// from ending it; and what is no purge ends nothing here. What a conversion needs while it goes
// on goes with the package, unless one may go on.
func TestPostrm(t *testing.T) {
	for _, c := range []struct {
		action       string
		runs         bool
		stops, keeps bool
	}{
		{action: "purge", runs: true, stops: true},
		{action: "remove", runs: true, keeps: true},
		{action: "remove"},
		{action: "upgrade", keeps: true},
		{action: "disappear", keeps: true},
	} {
		action, stops := c.action, c.stops
		dir := t.TempDir()
		scratch := filepath.Join(dir, "cache", "run-1")
		if err := os.MkdirAll(scratch, 0o755); err != nil {
			t.Fatal(err)
		}
		store := filepath.Join(dir, "lib", "gpuvirt.db")
		if err := os.MkdirAll(filepath.Dir(store), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{
			store:                                    "",
			filepath.Join(dir, "systemctl"):          `#!/bin/sh` + "\n" + `[ "$1" != stop ] || { echo "$*"; ls "` + filepath.Dir(store) + `"; } >>"` + dir + `/stopped"` + "\n" + `[ "$2" != is-active ] || ` + strconv.FormatBool(c.runs),
			filepath.Join(dir, "deb-systemd-helper"): "#!/bin/sh\n",
		} {
			if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		script := strings.NewReplacer("/run/systemd/system", dir, "/var/lib/gpuvirt", filepath.Dir(store), "/var/cache/gpuvirt", filepath.Join(dir, "cache"), "/run/gpuvirt", filepath.Join(dir, "run")).Replace(read(t, "../deb/postrm"))
		cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", script, "postrm", action)
		cmd.Env = []string{"PATH=" + dir + ":/usr/bin:/bin"}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", action, err, out)
		}
		got, _ := os.ReadFile(filepath.Join(dir, "stopped"))
		want := ""
		if stops {
			want = "stop gpuvirtd.socket gpuvirtd.service\ngpuvirt.db\n"
		}
		if string(got) != want {
			t.Errorf("%s: %q, want %q", action, got, want)
		}
		if _, err := os.Stat(store); (err == nil) == stops {
			t.Errorf("%s: the store: %v", action, err)
		}
		if _, err := os.Stat(scratch); (err == nil) != c.keeps {
			t.Errorf("%+v: what conversions need: %v", c, err)
		}
	}
}

// A version says that something is in it that no commit has, files that nobody has added as
// well; what does not go into a package does not count.
func TestVersionTellsWhatIsNotCommitted(t *testing.T) {
	dir := t.TempDir()
	git := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-C", dir, "-c", "user.name=x", "-c", "user.email=x@x"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	version := func() string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), filepath.Join(dir, "hack/packages"), "--version").CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return strings.TrimSpace(string(out))
	}
	write("hack/packages", read(t, "../../hack/packages"))
	write("go.mod", "module x\n")
	write(".gitignore", "*.ignored.go\n")
	git("init", "-q")
	git("add", ".")
	git("commit", "-qm", "x")
	write("notes.txt", "")
	write("host/x.ignored.go", "")
	if v := version(); !strings.HasPrefix(v, "0~git") || strings.Contains(v, "dirty") {
		t.Errorf("committed: %s", v)
	}
	write("host/x.go", "package host\n")
	if v := version(); !strings.HasSuffix(v, "+dirty") {
		t.Errorf("with a file that is not added: %s", v)
	}
	git("add", "host/x.go")
	if v := version(); !strings.HasSuffix(v, "+dirty") {
		t.Errorf("with one that is: %s", v)
	}
	git("commit", "-qm", "y")
	git("tag", "v1.2.0")
	if v := version(); v != "1.2.0" {
		t.Errorf("tagged: %s", v)
	}
	write("packaging/deb/postinst", "")
	if v := version(); v != "1.2.0+dirty" {
		t.Errorf("tagged, and more: %s", v)
	}
}

// What make builds tells the version that a package of the same files would have.
func TestMakeBuildsThatVersion(t *testing.T) {
	said := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return string(out)
	}
	version := strings.TrimSpace(said("../hack/packages", "--version"))
	out := said("make", "-C", "..", "--dry-run", "build")
	if strings.Count(out, "/version.version="+version+"'") != 2 {
		t.Errorf("want version %s:\n%s", version, out)
	}
	// The client is static, as it is copied to other machines: the last mode counts.
	// hack/check-packages looks at the one of the packages.
	client := regexp.MustCompile(`(?m)^CGO_ENABLED=0 .*-buildmode=(\S+) -o bin/gpuvirt `).FindStringSubmatch(out)
	if client == nil || client[1] != "exe" {
		t.Errorf("the client is built as %q:\n%s", client, out)
	}
}

// A folder with other things in it is not replaced by packages: a slip of the hand, as ".",
// would take the tree along.
func TestPackagesReplacesNothingElse(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "gpuvirt.txt")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "../hack/packages", dir)
	cmd.Env = append(os.Environ(), "NFPM=", "GOPROXY=off", "GOFLAGS=-mod=nonsense")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "there are other things in "+dir) {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}

// Neither waits for what waits for it, and neither is kept from what it works on.
func TestUnitRules(t *testing.T) {
	restore, daemon := read(t, "gpuvirt-restore.service"), read(t, "gpuvirtd.service")
	for _, unit := range []string{"libvirtd.service", "virtqemud.service"} {
		if slices.Contains(words(restore, "After"), unit) || !slices.Contains(words(restore, "Before"), unit) {
			t.Errorf("gpuvirt-restore.service must be before %s", unit)
		}
		if !slices.Contains(words(daemon, "After"), unit) {
			t.Errorf("gpuvirtd.service must be after %s", unit)
		}
	}
	for name, text := range map[string]string{"gpuvirt-restore.service": restore, "gpuvirtd.service": daemon} {
		if regexp.MustCompile(`(?m)^(Requires|BindsTo|Requisite)=`).MatchString(text) {
			t.Errorf("%s requires another unit", name)
		}
		for _, setting := range []string{
			"ProtectKernelTunables", "ProtectClock", "PrivateDevices", "DeviceAllow", "DevicePolicy", "ProtectProc", "ProcSubset", "PrivateUsers",
		} {
			if words(text, setting) != nil {
				t.Errorf("%s sets %s", name, setting)
			}
		}
		if words(text, "TimeoutStartSec") == nil && words(text, "Type")[0] == "oneshot" {
			t.Errorf("%s can hold a boot for ever", name)
		}
		if got := words(text, "StateDirectoryMode"); len(got) != 1 || got[0] != "0700" {
			t.Errorf("%s: StateDirectoryMode=%v", name, got)
		}
	}
}

// A restore that finds a daemon is no failure (75 is what gpuvirtd ends with then), and
// nothing that a socket may be in goes away with the daemon.
func TestRestoreBesideDaemon(t *testing.T) {
	if got := words(read(t, "gpuvirt-restore.service"), "SuccessExitStatus"); !slices.Equal(got, []string{"75"}) {
		t.Errorf("SuccessExitStatus=%v", got)
	}
	if got := words(read(t, "gpuvirtd.service"), "RuntimeDirectoryPreserve"); !slices.Equal(got, []string{"yes"}) {
		t.Errorf("RuntimeDirectoryPreserve=%v", got)
	}
}

// The network can be served where it is configured, without a second switch; the restore has
// no business there, and no capability comes with it.
func TestUnitNetwork(t *testing.T) {
	daemon, restore := read(t, "gpuvirtd.service"), read(t, "gpuvirt-restore.service")
	if got, want := words(daemon, "RestrictAddressFamilies"), []string{"AF_UNIX", "AF_NETLINK", "AF_INET", "AF_INET6"}; !slices.Equal(got, want) {
		t.Errorf("gpuvirtd.service: %v", got)
	}
	if got, want := words(restore, "RestrictAddressFamilies"), []string{"AF_UNIX", "AF_NETLINK"}; !slices.Equal(got, want) {
		t.Errorf("gpuvirt-restore.service: %v", got)
	}
	for _, setting := range []string{"PrivateNetwork", "IPAddressDeny", "SocketBindDeny", "AmbientCapabilities"} {
		if words(daemon, setting) != nil {
			t.Errorf("gpuvirtd.service sets %s", setting)
		}
	}
	if slices.Contains(words(daemon, "CapabilityBoundingSet"), "CAP_NET_BIND_SERVICE") {
		t.Error("ports below 1024 are not for it")
	}
}

// The daemon gets at what conversions need, and at no more: who converts is another user, whom
// systemd starts.
func TestUnitConverts(t *testing.T) {
	daemon, settings := read(t, "gpuvirtd.service"), config.Default()
	if got := words(daemon, "CacheDirectory"); len(got) != 1 || settings.Scratch != "/var/cache/"+got[0] {
		t.Errorf("CacheDirectory=%v, p2v.scratch is %s", got, settings.Scratch)
	}
	if got := words(daemon, "CacheDirectoryMode"); !slices.Equal(got, []string{"0711"}) {
		t.Errorf("CacheDirectoryMode=%v", got)
	}
	if got := words(daemon, "ReadWritePaths"); !slices.Equal(got, []string{"-" + settings.Mirrors}) {
		t.Errorf("ReadWritePaths=%v, p2v.mirrors is %s", got, settings.Mirrors)
	}
	if nfpm := read(t, "../nfpm.yaml"); !strings.Contains(nfpm, "{dst: "+settings.Mirrors+", type: dir, file_info: {mode: 0o711}}") {
		t.Errorf("the package has no folder %s", settings.Mirrors)
	}
	if strings.Contains(read(t, "../deb/postrm"), " "+filepath.Dir(settings.Mirrors)) || strings.HasPrefix(settings.Mirrors, settings.StateDir) {
		t.Error("a purge takes disks of VMs along")
	}
	if users := read(t, "../sysusers.d/gpuvirt.conf"); !strings.Contains(users, "\nu "+settings.ConvertUser+" - ") {
		t.Errorf("the package makes no user %s", settings.ConvertUser)
	}
	for _, c := range words(daemon, "CapabilityBoundingSet") {
		if slices.Contains([]string{"CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL", "CAP_DAC_OVERRIDE"}, c) {
			t.Errorf("the daemon has %s", c)
		}
	}
}

// To find out who has an image open for writing takes a lease on it, of files of other users
// too: without the capability nobody is found.
func TestUnitLeases(t *testing.T) {
	if !slices.Contains(words(read(t, "gpuvirtd.service"), "CapabilityBoundingSet"), "CAP_LEASE") {
		t.Error("gpuvirtd.service does not let images be leased")
	}
}

// What the daemon needs and may not load itself is loaded at boot.
func TestModules(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("modules-load.d", "gpuvirt.conf"))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^vfio-pci$`).Match(text) {
		t.Error("vfio-pci is not loaded")
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("systemd", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// words returns the values of a setting.
func words(unit, setting string) []string {
	var out []string
	for line := range strings.Lines(unit) {
		if value, found := strings.CutPrefix(line, setting+"="); found {
			out = append(out, strings.Fields(value)...)
		}
	}
	return out
}
