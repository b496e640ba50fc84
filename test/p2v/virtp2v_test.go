//go:build p2v

package p2v

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"gpuvirt/api"
	"gpuvirt/internal/sim"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/verify"
	"gpuvirt/test/machine"
)

// A metal is a server that was started from virt-p2v's image: a network of its own with a NIC, whose
// cable ends here.
type metal struct{ name string }

const (
	metalMAC = "02:fc:00:00:36:02"
	metalIP  = "198.51.100.2"
	hostIP   = "198.51.100.1" // at the other end
)

func newMetal(t *testing.T) *metal {
	t.Helper()
	s := &metal{fmt.Sprintf("p2v%d", os.Getpid())}
	t.Cleanup(func() {
		_ = exec.Command("ip", "link", "delete", s.name).Run()
		_ = exec.Command("ip", "netns", "delete", s.name).Run()
	})
	for _, line := range []string{
		"netns add NAME", "link add NAME type veth peer name eth0 address " + metalMAC + " netns NAME",
		"address add " + hostIP + "/30 dev NAME", "link set NAME up",
		"-n NAME address add " + metalIP + "/30 dev eth0", "-n NAME link set lo up", "-n NAME link set eth0 up",
	} {
		if _, err := output(exec.Command("ip", strings.Fields(strings.ReplaceAll(line, "NAME", s.name))...)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// off powers it off: nobody answers there any more.
func (s *metal) off(t *testing.T) {
	t.Helper()
	if _, err := output(exec.Command("ip", "-n", s.name, "link", "set", "eth0", "down")); err != nil {
		t.Fatal(err)
	}
}

// virtP2V runs the real virt-p2v as its image does: it exports a disk, and asks a port of this
// machine to convert it. What it says goes to a file.
func (s *metal) virtP2V(t *testing.T, port int, name, disk, log string) *machine.Process {
	t.Helper()
	packed, err := filepath.Glob("/usr/lib/*/virt-p2v/virt-p2v.xz")
	if err != nil || len(packed) == 0 {
		t.Fatal("virt-p2v is not installed; test/p2v/deps.sh installs it")
	}
	dir := t.TempDir()
	program, err := exec.Command("xz", "-dc", packed[0]).Output()
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "virt-p2v"), program, 0o755)
	}
	// ssh is to leave root's known hosts alone; the server has a card.
	for name, script := range map[string]string{
		"ssh":   `exec /usr/bin/ssh -o UserKnownHostsFile="${0%/*}/known" "$@"`,
		"scp":   `exec /usr/bin/scp -o UserKnownHostsFile="${0%/*}/known" "$@"`,
		"lspci": `echo "41:00.0 3D controller: NVIDIA Corporation TU104GL [Tesla T4] (rev a1)"`,
	} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	// What it has started ends with it, as it would wait for ssh for ever.
	p, err := machine.Start(exec.Command("ip", "netns", "exec", s.name, "unshare", "--pid", "--fork", "--kill-child", "env", "PATH="+dir+":/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-c", `log=$1; shift; "$@" >"$log" 2>&1; echo "exit status $?" >>"$log"`, "sh", log,
		filepath.Join(dir, "virt-p2v"), fmt.Sprintf("--cmdline=p2v.server=%s p2v.port=%d p2v.username=root p2v.password=correct-horse-battery p2v.name=%s "+
			"p2v.vcpu.cores=1 p2v.memory=768M p2v.disks=%s p2v.o=libvirt p2v.network=lan p2v.post=", hostIP, port, name, disk)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Kill(); keep(log, filepath.Base(log)) })
	return p
}

// said waits until virt-p2v has said something.
func (m *Migration) said(log, what string) string {
	m.t.Helper()
	ctx := m.t.Context()
	var text []byte
	limit := time.Now().Add(2 * time.Minute)
	err := machine.WaitFor(ctx, 300*time.Millisecond, func() (bool, error) {
		text, _ = os.ReadFile(log)
		if time.Now().After(limit) {
			return false, errors.New("virt-p2v does not say it")
		}
		return bytes.Contains(text, []byte(what)), nil
	})
	if err != nil {
		m.t.Fatalf("%v: %q\n%s\n%s", err, what, text[max(0, len(text)-2000):], m.log())
	}
	return string(text)
}

// listening has the host's daemon await virt-p2v, with more on its command line.
func (h *Host) listening(t *testing.T, more ...string) (port int) {
	t.Helper()
	port, err := machine.FreePort()
	if err == nil {
		err = os.WriteFile(h.path("credentials/virt-p2v.password"), []byte("correct-horse-battery\n"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	h.more = append([]string{"--p2v-listen", fmt.Sprintf("%s:%d", hostIP, port)}, more...)
	return port
}

// comes has virt-p2v come twice: it is cut off in the middle of the copy. The log is of the
// second time.
func (m *Migration) comes(s *metal, port int, disk string, start ...string) (virtp2v *machine.Process, log string) {
	m.t.Helper()
	log = filepath.Join(m.t.TempDir(), "virt-p2v-1.log")
	first := s.virtP2V(m.t, port, m.name, disk, log)
	text := m.said(log, "waiting until somebody begins")
	for _, want := range []string{"with 1 disks", "1 GPUs. It is a new assessment", "--nbd sda=virt-p2v:", "=network:lan", "--profile PROFILE", "GPU 0000:41:00.0: Tesla T4."} {
		if !strings.Contains(text, want) {
			m.t.Errorf("virt-p2v does not show %q:\n%s", want, text)
		}
	}
	if seen := Show[api.Assessment](m.t, m.Host, "assessment", m.name); seen.CreatedBy != "virt-p2v:"+metalIP || seen.Hostname != m.name {
		m.t.Errorf("%+v", seen)
	}
	m.lap("virt-p2v has come")
	m.GPUVirt(m.t, append([]string{"migrate", "start", m.name, "--assessment", m.name, "--nbd", "sda=virt-p2v:", "--bandwidth", "2M", "--no-wait"}, start...)...)
	m.said(log, "is syncing")
	first.Kill()
	m.lap("it was cut off")
	log = filepath.Join(m.t.TempDir(), "virt-p2v-2.log")
	second := s.virtP2V(m.t, port, m.name, disk, log)
	m.GPUVirt(m.t, "migrate", "set", m.name, "--bandwidth", "0")
	m.ready()
	m.said(log, "is ready")
	m.lap("the disk is copied")
	if out, err := exec.Command("cmp", filepath.Join(m.Mirrors, m.name, "sda.raw"), disk).CombinedOutput(); err != nil {
		m.t.Errorf("the mirror is not as the disk: %s", out)
	}
	return second, log
}

// A server that was started from virt-p2v's image comes by itself, is cut off in the middle of the
// copy, comes once more, and its VM has its NIC and memory and a vGPU of this host, which is a
// simulated one. Taken back, nothing of it is left, and the server waits. Moved once more, it hears
// that all is done, and its VM starts when it is off.
func TestVirtP2V(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "server.raw")
	m := &Migration{Host: newHost(t), t: t, name: "metal1", began: time.Now()}
	simulated, err := sim.Open(m.path("sim"), sim.T4("0000:41:00.0", 0))
	if err == nil {
		err = errors.Join(simulated.Close(), makeDisk(disk))
	}
	if err != nil {
		t.Fatal(err)
	}
	server := newMetal(t)
	port := m.listening(t, "--sim", m.path("sim"))
	m.StartDaemon(t)
	m.GPUVirt(t, "gpu", "manage", "0000:41:00.0")
	p, log := m.comes(server, port, disk, "--network", "default", "--profile", "T4-2Q", "--guest-driver", "535.183.06", "--licence-token")
	at := m.show()
	if at.VM == nil || len(at.VM.Slices) != 1 || at.VM.Slices[0].Profile != "T4-2Q" || at.Disks[0].Size != diskBytes || at.Source != nil {
		t.Errorf("%+v", at)
	}
	definition := ""
	var state struct{ VMs []struct{ Name, Doc string } }
	known, err := os.ReadFile(m.path("sim/host.json"))
	if err == nil {
		err = json.Unmarshal(known, &state)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, vm := range state.VMs {
		if vm.Name == m.name {
			definition = vm.Doc
		}
	}
	for _, want := range []string{metalMAC, `<source network="default">`, `<memory unit="MiB">768</memory>`, `>1</vcpu>`} {
		if !strings.Contains(definition, want) {
			t.Errorf("the VM has no %s:\n%s", want, definition)
		}
	}
	m.GPUVirt(t, "migrate", "rollback", m.name)
	m.until("rolled back", func(at api.Migration) bool { return at.Phase == string(move.PhaseRolledBack) })
	if left := glob(filepath.Join(m.Mirrors, "*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if p.Ended() {
		text, _ := os.ReadFile(log)
		t.Errorf("virt-p2v has ended: %s", text[max(0, len(text)-500):])
	}
	m.lap("it was taken back")

	m.GPUVirt(t, "migrate", "delete", m.name)
	m.GPUVirt(t, "migrate", "start", m.name, "--assessment", m.name, "--nbd", "sda=virt-p2v:", "--bridge", "lan", "--profile", "T4-2Q", "--guest-driver", "535.183.06", "--licence-token",
		"--convert", "none", "--no-wait")
	m.ready()
	m.GPUVirt(t, "migrate", "cutover", m.name, "--source-off", "--unrehearsed", "a test", "--no-wait")
	m.said(log, "Power this server off: then its VM starts")
	m.said(log, "exit status 0")
	// virt-p2v has ended, and with it its connections; the system that it runs in has not.
	m.until("waiting for it", func(at api.Migration) bool { return at.Reason == "Power the server off: it still answers at "+metalIP })
	if at := m.show(); at.Phase != string(move.PhaseCuttingOver) || at.Fence != string(move.FenceAsked) {
		t.Errorf("%+v", at)
	}
	m.lap("it is told, and still on")
	server.off(t)
	m.until("started", func(at api.Migration) bool { return at.Phase == string(move.PhaseVerifying) })
	if a, want := m.last(), "the source is off, as "; a.State != move.Moved || !strings.HasPrefix(a.Phase, want) || !strings.HasSuffix(a.Phase, "nothing answers at "+metalIP+" any more") {
		t.Errorf("%+v", a)
	}
	m.lap("it is off, and its VM runs")
	m.GPUVirt(t, "migrate", "rollback", m.name)
	if at := m.until("rolled back", func(at api.Migration) bool { return at.Phase == string(move.PhaseRolledBack) }); at.Reason != "the source is off: start it again" {
		t.Errorf("%q", at.Reason)
	}
}

const diskBytes = 64 << 20

// makeDisk makes a disk with a GPT and ext4, on which most is not zero.
func makeDisk(path string) error {
	noise := make([]byte, 20<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	files := path + ".files"
	err := errors.Join(os.Mkdir(files, 0o755), os.WriteFile(filepath.Join(files, "noise"), noise, 0o644))
	for _, words := range [][]string{
		{"truncate", "-s", strconv.Itoa(diskBytes), path},
		{"sgdisk", "--new=1:2048:0", "--typecode=1:8300", path},
		{"mke2fs", "-q", "-F", "-t", "ext4", "-d", files, "-E", "offset=1048576", path, "62M"},
	} {
		if err == nil {
			_, err = output(exec.Command(words[0], words[1:]...))
		}
	}
	return err
}

// The same to its end: the disk is that of a system, virt-v2v converts it, libvirt starts the VM,
// and virt-p2v hears that all went well. Nobody has looked into the system before, so that no agent
// was brought for it, and a person takes the VM as it is.
func TestVirtP2VBecomesVM(t *testing.T) {
	server, err := Prepare(t.TempDir(), "bios")
	if err != nil {
		t.Fatal(err)
	}
	m := &Migration{Host: StartHost(t), t: t, server: server, name: "metal1", began: time.Now()}
	metal := newMetal(t)
	port := m.listening(t)
	m.KillDaemon()
	m.StartDaemon(t)
	m.lap("the host is up")
	p, log := m.comes(metal, port, server.Disks[0], "--bridge", "lan", "--emulated", "--cpu", "maximum")
	over := make(chan error, 1)
	go func() {
		_, err := m.try(t.Context(), "migrate", "cutover", m.name, "--source-off", "--unrehearsed", "a test")
		over <- err
	}()
	if err := machine.WaitFor(t.Context(), time.Second, func() (bool, error) { return p.Ended() || len(over) > 0, nil }); err != nil {
		t.Fatal(err)
	}
	metal.off(t) // as it does with p2v.post=poweroff
	err = <-over
	if err == nil || !strings.Contains(err.Error(), "The guest agent answers") {
		t.Fatalf("%v\n%s", err, m.log())
	}
	m.said(log, "Power this server off")
	m.said(log, "exit status 0")
	if !p.Ended() {
		t.Error("virt-p2v goes on")
	}
	a := m.last()
	if at := m.show(); at.Phase != string(move.PhaseWaiting) || a.State != move.Moved || a.Kind != move.Cutover || a.Report == nil {
		t.Fatalf("%s: %+v", at.Phase, a)
	}
	if r := a.Report.Results[0]; r.ID != "boot" || r.State != verify.StateOK {
		t.Errorf("%+v", a.Report.Results)
	}
	m.lap("the VM runs")
	m.GPUVirt(t, "migrate", "accept", m.name, "--reason", "the console asks for a login")
	m.until("done", func(at api.Migration) bool { return at.Phase == string(move.PhaseDone) })
}
