package convert

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gpuvirt/gpu"
	"gpuvirt/internal/run"
)

// A user who is not there is told, and found when somebody has made it.
func TestUser(t *testing.T) {
	h := newHost(t)
	h.cfg.User = "gpuvirt-nobody-has-this"
	c := New(h.cfg)
	for range 2 {
		tools, err := c.Probe(t.Context())
		if err != nil || tools.NoUser == "" {
			t.Fatalf("%+v, %v", tools, err)
		}
		wantCode(t, tools.Ready(), gpu.CodeUnavailable)
	}
	if _, err := c.Convert(t.Context(), h.job(c)); gpu.CodeOf(err) != gpu.CodeUnavailable || h.seen("called") != "" {
		t.Error(err)
	}
	for name, want := range map[string]bool{"root": false, "daemon": true} {
		h.cfg.User = name
		c := New(h.cfg)
		if why := c.who(); (why == "") != want || want && (c.cfg.Confine.UID == 0 || c.cfg.Confine.GID == 0) {
			t.Errorf("%s: %q, %+v", name, why, c.cfg.Confine)
		}
	}
	// The group of KVM's device comes with it.
	h.tell("kvm", "")
	if os.Geteuid() == 0 {
		if err := errors.Join(os.Chown(h.cfg.KVM, 0, 65530), os.Chmod(h.cfg.KVM, 0o660)); err != nil {
			t.Fatal(err)
		}
		h.cfg.User = "daemon"
		if c = New(h.cfg); c.who() != "" || len(c.cfg.Confine.Groups) != 1 || c.cfg.Confine.Groups[0] != 65530 {
			t.Errorf("%+v", c.cfg.Confine)
		}
	}
}

// In a unit a program sees its own run and its own job's files, and no other's.
func TestUnitSees(t *testing.T) {
	h := newHost(t)
	h.cfg.Confine.Unit = &run.Unit{Reads: []string{"/always"}, Hidden: []string{"/srv"}}
	h.cfg.Secrets = filepath.Join(t.TempDir(), "secrets")
	c := New(h.cfg)
	for range 2 { // one leaves nothing for the next
		s, err := c.scratch()
		if err != nil {
			t.Fatal(err)
		}
		job := Job{Disks: []Overlay{{Path: "/srv/o", Mirror: "/srv/m"}}, Keys: []Key{{Volume: "/dev/sda1", Passphrase: "x"}}}
		s.job, s.reads = &job, []string{"/srv/deb"}
		if err := s.unlock(); err != nil {
			t.Fatal(err)
		}
		u := s.confine().Unit
		if got, want := strings.Join(u.Reads, " "), "/always /srv/deb /srv/m "+s.secrets; s.secrets == "" || got != want {
			t.Errorf("%s, want %s", got, want)
		}
		if got, want := strings.Join(u.Writes, " "), s.dir+" "+c.cacheDir()+" /srv/o"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
		s.end()
		if left, err := os.ReadDir(h.cfg.Secrets); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
	h.clean()
}

// Where all kernels are root's, the one that runs is there to be read.
func TestKernel(t *testing.T) {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	version := strings.TrimSpace(string(release))
	h := newHost(t)
	h.cfg.Kernels, h.cfg.Confine.UID = t.TempDir(), 65533
	c := New(h.cfg)
	if env, err := c.kernel(); len(env) != 0 || err != nil {
		t.Errorf("none is there: %q, %v", env, err)
	}
	kernel := filepath.Join(h.cfg.Kernels, "vmlinuz-"+version)
	for _, text := range []string{"one", "another"} { // an update puts another in its place
		if err := os.WriteFile(kernel, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			env, err := c.kernel()
			if err != nil || len(env) != 3 || env[2] != "SUPERMIN_MODULES=/lib/modules/"+version {
				t.Fatalf("%q, %v", env, err)
			}
			copied := strings.TrimPrefix(env[0], "SUPERMIN_KERNEL=")
			got, err := os.ReadFile(copied)
			st, err2 := os.Stat(copied)
			if string(got) != text || errors.Join(err, err2) != nil || st.Mode() != 0o644 {
				t.Errorf("%q, %v, %v", got, st, err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(h.cfg.Kernels, "vmlinuz-0"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if env, err := c.kernel(); len(env) != 0 || err != nil {
		t.Errorf("one can be read: %q, %v", env, err)
	}
}

const asPackaged = "GPUVIRT_TEST_AS_PACKAGED"

// What the daemon does with files of who the programs run as, it can with the capabilities
// of the packaged unit.
func TestAsPackaged(t *testing.T) {
	if os.Getenv(asPackaged) == "" {
		if os.Geteuid() != 0 {
			t.Skip("only root gives files away")
		}
		unit, err := os.ReadFile("../../packaging/systemd/gpuvirtd.service")
		if err != nil {
			t.Fatal(err)
		}
		_, caps, _ := strings.Cut(string(unit), "\nCapabilityBoundingSet=")
		caps, _, _ = strings.Cut(caps, "\n")
		set := "-all"
		for _, name := range strings.Fields(caps) {
			set += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
		}
		cmd := exec.CommandContext(t.Context(), "setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set="+set, os.Args[0], "-test.run=^TestAsPackaged$", "-test.v")
		cmd.Env = append(os.Environ(), asPackaged+"="+t.TempDir())
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestAsPackaged") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	syscall.Umask(0o077)
	const user = 65533
	dir := os.Getenv(asPackaged)
	c := New(Config{Scratch: filepath.Join(dir, "scratch"), Confine: run.Confine{UID: user, GID: user}})
	s, err := c.scratch()
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(c.cfg.Scratch); err != nil || st.Mode().Perm() != 0o711 {
		t.Errorf("%v, %v", st, err)
	}
	if err := s.write("input.xml", []byte("x"), 0o644); err != nil {
		t.Error(err)
	}
	f, err := s.handover("messages")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// What a program leaves that does not want to be looked at.
	deep := filepath.Join(s.dir, "a", "b")
	if err := errors.Join(os.MkdirAll(deep, 0o700), os.WriteFile(filepath.Join(deep, "file"), nil, 0o600), os.Symlink("/etc", filepath.Join(deep, "link"))); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(deep, "file"), deep, filepath.Dir(deep)} {
		if err := errors.Join(os.Chmod(path, 0), os.Lchown(path, user, user)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(deep, "file")); err == nil {
		t.Fatal("it may write everywhere: the test shows nothing")
	}
	if err := c.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(c.cfg.Scratch, "run-*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
