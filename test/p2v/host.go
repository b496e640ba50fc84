//go:build p2v

package p2v

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gpuvirt/test/machine"
)

// A Host is one that servers move to: the built daemon, and a libvirtd that it talks to.
// It has no GPU. What is on it ends with the test.
type Host struct {
	// Mirrors is where the daemon has its copies of disks, and VMs their disks.
	Mirrors string

	dir, bin        string
	more            []string // of the daemon's command line
	libvirt, daemon *machine.Process
}

// StartHost starts one. Its logs are kept in the folder out when the test ends.
func StartHost(t *testing.T) *Host {
	t.Helper()
	h := newHost(t)
	if err := h.bringAgent(); err != nil {
		t.Fatal(err)
	}
	h.startLibvirt(t)
	h.StartDaemon(t)
	return h
}

func newHost(t *testing.T) *Host {
	t.Helper()
	repo, err := machine.RepoRoot()
	if err != nil {
		t.Fatal(err)
	}
	// Short, as there are sockets in it; and everybody passes, as QEMU and the converter do.
	dir, err := machine.RunFolder("gpuvirt-p2v-")
	if err != nil {
		t.Fatal(err)
	}
	h := &Host{dir: dir, bin: filepath.Join(repo, "bin"), Mirrors: filepath.Join(dir, "mirrors")}
	t.Cleanup(h.close)
	err = os.Chmod(dir, 0o711)
	for _, name := range []string{"mirrors", "scratch"} {
		err = errors.Join(err, os.Mkdir(filepath.Join(dir, name), 0o711))
	}
	for _, name := range []string{"credentials", "libvirt", "state"} {
		err = errors.Join(err, os.Mkdir(filepath.Join(dir, name), 0o700))
	}
	err = errors.Join(err, os.WriteFile(h.path("daemon.log"), nil, 0o600), os.WriteFile(h.path("gpuvirtd.yaml"), []byte("{}\n"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *Host) startLibvirt(t *testing.T) {
	t.Helper()
	var err error
	h.libvirt, err = machine.Start(exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
		filepath.Join(filepath.Dir(h.bin), "test", "p2v", "libvirtd.sh"), h.path("libvirt")))
	if err != nil {
		t.Fatalf("cannot start libvirtd: %v; test/p2v/deps.sh installs it", err)
	}
	// What libvirt finds out of QEMU once, with a /dev/kvm of no use, takes it some minutes.
	ctx, cancel := context.WithTimeoutCause(t.Context(), bootLimit, errors.New("libvirtd does not come up"))
	defer cancel()
	err = machine.WaitFor(ctx, time.Second, func() (bool, error) {
		if h.libvirt.Ended() {
			t.Fatalf("libvirtd has ended: %s", h.libvirt.Said())
		}
		_, err := h.virsh(ctx, "domcapabilities", "--virttype", "qemu", "--machine", "q35")
		return err == nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// bringAgent puts QEMU's guest agent where the daemon looks for packages for guests.
func (h *Host) bringAgent() error {
	from, err := image()
	if err != nil {
		return err
	}
	to := h.path("guests/debian-12/agent")
	err = os.MkdirAll(to, 0o755)
	for _, file := range glob(filepath.Join(from, "agent", "*.deb")) {
		err = errors.Join(err, copySparse(file, filepath.Join(to, filepath.Base(file))))
	}
	return err
}

func (h *Host) path(name string) string { return filepath.Join(h.dir, name) }

func (h *Host) libvirtURI() string {
	return "qemu+unix:///system?socket=" + h.path("libvirt/run/libvirt-sock")
}

// StartDaemon starts the daemon, and waits until it serves.
func (h *Host) StartDaemon(t *testing.T) {
	t.Helper()
	// Its log goes on over its death.
	args := []string{
		"-c", `log=$1; shift; exec "$@" 2>>"$log"`, "sh", h.path("daemon.log"), filepath.Join(h.bin, "gpuvirtd"),
		"--config", h.path("gpuvirtd.yaml"), "--state-dir", h.path("state"), "--socket", h.path("gpuvirtd.sock"), "--libvirt-uri", h.libvirtURI(),
		"--credentials", h.path("credentials"), "--inspector", filepath.Join(h.bin, "gpuvirt"),
		"--mirrors", h.Mirrors, "--scratch", h.path("scratch"), "--convert-user", "nobody",
		"--guest-files", h.path("guests"),
	}
	args = append(args, h.more...)
	var err error
	if h.daemon, err = machine.Start(exec.Command("sh", args...)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("the daemon does not serve"))
	defer cancel()
	err = machine.WaitFor(ctx, 200*time.Millisecond, func() (bool, error) {
		_, err := h.try(ctx, "migrate", "list")
		return err == nil || h.daemon.Ended(), err
	})
	if err == nil && h.daemon.Ended() {
		err = errors.New("the daemon has ended")
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, h.log())
	}
}

// KillDaemon ends the daemon as nothing that it could answer does.
func (h *Host) KillDaemon() { h.daemon.Kill() }

// GPUVirt runs the command gpuvirt, and returns what it has printed.
func (h *Host) GPUVirt(t *testing.T, args ...string) string {
	t.Helper()
	out, err := h.try(t.Context(), args...)
	if err != nil {
		t.Fatalf("%v\n%s\nthe daemon's log:\n%s", err, out, h.log())
	}
	return out
}

func (h *Host) try(ctx context.Context, args ...string) (string, error) {
	return output(exec.CommandContext(ctx, filepath.Join(h.bin, "gpuvirt"), append([]string{"--yes", "--timeout", "20m", "--socket", h.path("gpuvirtd.sock")}, args...)...))
}

// Show returns one of the things that the command gpuvirt shows.
func Show[T any](t *testing.T, h *Host, kind, name string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(h.GPUVirt(t, kind, "show", name, "-o", "json")), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// Virsh runs virsh against the host's libvirt.
func (h *Host) Virsh(t *testing.T, args ...string) string {
	t.Helper()
	out, err := h.virsh(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func (h *Host) virsh(ctx context.Context, args ...string) (string, error) {
	return output(exec.CommandContext(ctx, "virsh", append([]string{"--quiet", "--connect", h.libvirtURI()}, args...)...))
}

func output(cmd *exec.Cmd) (string, error) {
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("cannot run %q: %w: %s", cmd.Args[1:], err, strings.TrimSpace(errs.String()))
	}
	return string(out), err
}

// log is the end of what the daemon has said.
func (h *Host) log() string {
	text, _ := os.ReadFile(h.path("daemon.log"))
	return string(text[max(0, len(text)-6000):])
}

func (h *Host) close() {
	for _, p := range []*machine.Process{h.daemon, h.libvirt} {
		if p != nil {
			p.Kill()
		}
	}
	// What a daemon that was killed has not ended, as the test had failed by then.
	for _, file := range glob("/proc/[0-9]*/cmdline") {
		line, _ := os.ReadFile(file)
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && bytes.Contains(line, []byte(h.dir+"/")) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	keep(h.path("daemon.log"), "gpuvirtd.log")
	if h.libvirt != nil {
		keep(h.path("libvirt/log/libvirtd.log"), "libvirtd.log")
	}
	for _, log := range glob(filepath.Join(h.Mirrors, "*", "console.log")) {
		keep(log, filepath.Base(filepath.Dir(log))+"-vm.log")
	}
	if err := os.RemoveAll(h.dir); err != nil {
		fmt.Fprintln(os.Stderr, "p2v: cannot remove the host:", err)
	}
}

func glob(pattern string) []string {
	all, _ := filepath.Glob(pattern)
	return all
}
