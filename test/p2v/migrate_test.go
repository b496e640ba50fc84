//go:build p2v

package p2v

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuvirt/api"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/verify"
	"gpuvirt/test/machine"
)

// A Migration is the move of one server to a host, as a person makes it.
type Migration struct {
	*Host
	t      *testing.T
	server *Server
	name   string
	began  time.Time
}

// begin has a server that runs, and that the host reaches.
func begin(t *testing.T, firmware string) *Migration {
	t.Helper()
	dir := t.TempDir()
	server, err := Prepare(dir, firmware)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Kill)
	m := &Migration{Host: StartHost(t), t: t, server: server, name: "metal1", began: time.Now()}
	if err := server.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(server.Key)
	if err == nil {
		err = os.WriteFile(m.path("credentials/"+m.name), key, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.lap("the server and the host are up")
	return m
}

func (m *Migration) lap(what string) {
	m.t.Helper()
	m.t.Logf("%5.1f s  %s", time.Since(m.began).Seconds(), what)
	m.began = time.Now()
}

// on runs a command on the server.
func (m *Migration) on(command string) string {
	m.t.Helper()
	out, err := m.server.SSH(m.t.Context(), command)
	if err != nil {
		m.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func (m *Migration) assess() api.Assessment {
	m.t.Helper()
	from, err := image()
	if err != nil {
		m.t.Fatal(err)
	}
	key, err := output(exec.Command("ssh-keygen", "-l", "-f", filepath.Join(from, "host_key.pub")))
	if err != nil {
		m.t.Fatal(err)
	}
	m.GPUVirt(m.t, "assessment", "create", m.name, "--source", fmt.Sprintf("root@127.0.0.1:%d", m.server.Port),
		"--credential", m.name, "--host-key", strings.Fields(key)[1])
	m.lap("the server is assessed")
	return Show[api.Assessment](m.t, m.Host, "assessment", m.name)
}

// wish is what is asked of the plan. Emulated, a conversion and a boot take many minutes, and all of that is downtime.
func (m *Migration) wish(more ...string) []string {
	return append([]string{"--assessment", m.name, "--memory", "768Mi", "--downtime", "40m"}, more...)
}

// start begins to copy, and waits until the server can be cut over.
func (m *Migration) start(more ...string) {
	m.t.Helper()
	m.GPUVirt(m.t, slices.Concat([]string{"migrate", "start", m.name, "--no-wait", "--every", "20s", "--bridge", "lan", "--emulated", "--cpu", "maximum"}, m.wish(more...))...)
	m.ready()
	m.lap("what it has is copied")
}

func (m *Migration) show() api.Migration {
	m.t.Helper()
	return Show[api.Migration](m.t, m.Host, "migrate", m.name)
}

// until waits until the move is as somebody wants it.
func (m *Migration) until(what string, is func(api.Migration) bool) (at api.Migration) {
	m.t.Helper()
	ctx, cancel := context.WithTimeoutCause(m.t.Context(), 10*time.Minute, errors.New("it does not come to "+what))
	defer cancel()
	err := machine.WaitFor(ctx, time.Second, func() (bool, error) {
		at = m.show()
		return is(at), nil
	})
	if err != nil {
		m.t.Fatalf("%v: it is %s: %s: %+v\n%s", err, at.Phase, at.Reason, at.Attempts, m.log())
	}
	return at
}

func (m *Migration) ready() {
	m.t.Helper()
	if at := m.until("ready", func(at api.Migration) bool {
		return !slices.Contains([]string{"planned", "reserved", "syncing"}, at.Phase)
	}); at.Phase != "ready" {
		m.t.Fatalf("it is %s: %s\n%s", at.Phase, at.Reason, m.log())
	}
}

// read has a person read of the move, keeps what that is in the folder out, and looks for
// words in it.
func (m *Migration) read(file string, args []string, words ...string) {
	m.t.Helper()
	text := m.GPUVirt(m.t, args...)
	for _, word := range words {
		if !strings.Contains(text, word) {
			m.t.Errorf("%q is not in what %q says:\n%s", word, args, text)
		}
	}
	at := m.path(file)
	if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
		m.t.Error(err)
	}
	keep(at, file)
}

// last is the last attempt.
func (m *Migration) last() move.Attempt {
	m.t.Helper()
	all := m.show().Attempts
	if len(all) == 0 {
		m.t.Fatal("nothing was tried")
	}
	return all[len(all)-1]
}

// breakOff begins to rehearse or cut over, and kills the daemon while it converts. The daemon
// that comes up then has cleared up, and the server goes on.
func (m *Migration) breakOff(w *Writer, verb string, args ...string) {
	m.t.Helper()
	m.GPUVirt(m.t, append([]string{"migrate", verb, m.name, "--no-wait"}, args...)...)
	m.until("converting", func(at api.Migration) bool {
		a := at.Attempts[len(at.Attempts)-1]
		if a.Over() {
			m.t.Fatalf("it has ended: %+v\n%s", a, m.log())
		}
		return a.Phase == "converting"
	})
	m.KillDaemon()
	w.GoesOn(m.t)
	m.StartDaemon(m.t)
	at := m.until("an end", func(at api.Migration) bool { return at.Attempts[len(at.Attempts)-1].Over() })
	if a := at.Attempts[len(at.Attempts)-1]; a.State != move.Failed || !strings.Contains(a.Problem, "broken off") || at.Fence != "" {
		m.t.Errorf("a %s that was broken off: %+v", verb, at)
	}
	m.ready() // what it had put up is taken down before anything is copied
	m.nothingRuns()
	w.GoesOn(m.t)
	m.lap("a " + verb + " was broken off, and the copy has caught up")
}

// nothingRuns makes sure that there is no trial: no VM that runs, no network, no disk of one.
func (m *Migration) nothingRuns() {
	m.t.Helper()
	if out := m.Virsh(m.t, "list", "--name"); out != "" {
		m.t.Errorf("VMs that run: %q", out)
	}
	if out := m.Virsh(m.t, "net-list", "--all", "--name"); out != "" {
		m.t.Errorf("networks: %q", out)
	}
	if left := append(glob(filepath.Join(m.Mirrors, m.name, "*.qcow2*")), glob(m.path("scratch/run-*"))...); len(left) > 0 {
		m.t.Errorf("left: %q", left)
	}
	if left := processes(m.t, m.path("scratch/run-")); len(left) > 0 {
		m.t.Errorf("programs go on: %q", left)
	}
}

// The move of a server with BIOS, from the first look to the VM that has taken its place, by the
// built daemon and command, the real virt-v2v, the real libvirt and the guest's agent. The
// daemon is killed while it rehearses and while it cuts over, and the server goes on.
func TestMigrateBIOS(t *testing.T) {
	m := begin(t, "bios")
	found := m.assess()
	var concerns []string
	for _, c := range found.Findings.Concerns {
		concerns = append(concerns, c.ID)
	}
	for _, want := range []string{"fabric-manager", "pins", "persistence-daemon", "nic-names", "static-addresses", "built-engines", "bios-boot"} {
		if !slices.Contains(concerns, want) {
			t.Errorf("not found of the server: %s; but %q", want, concerns)
		}
	}
	var plan api.MigrationPlan
	if err := json.Unmarshal([]byte(m.GPUVirt(t, append([]string{"migrate", "plan", "-o", "json"}, m.wish()...)...)), &plan); err != nil {
		t.Fatal(err)
	}
	if plan.Verdict.State == assess.Blocked || len(plan.Verdict.Blockers) > 0 || plan.Problem != nil {
		t.Fatalf("the plan: %+v %v", plan.Verdict, plan.Problem)
	}

	w := StartWriter(t, m.server)
	m.start("--check", "model=test -s /srv/models/resnet/1/model.plan", "--check", "service=systemctl is-active model-server")
	w.GoesOn(t)
	m.breakOff(w, "rehearse")

	w.Pause()
	m.GPUVirt(t, "migrate", "rehearse", m.name)
	a := m.last()
	passed(t, a, "system", "hostname", "mounts", "service:model-server.service", "check:model", "check:service")
	if a.Kind != move.Rehearsal || a.State != move.Passed {
		t.Errorf("the rehearsal: %+v", a)
	}
	// The server was at rest for the last pass, and not for the conversion.
	took, pause := a.Ended.Sub(a.Began), w.Pause()
	if pause > took/2 {
		t.Errorf("nothing could be written for %s, of %s that the rehearsal took", pause, took)
	}
	// It was copied on meanwhile: there is nothing to catch up with.
	at, beside := m.show(), -1 // the last pass before it
	for _, p := range at.Disks[0].Passes {
		if p.Complete && p.Started.After(a.AtRest) && p.Started.Before(a.Ended) {
			beside++
		}
	}
	if beside < 1 || at.Phase != "ready" {
		t.Errorf("it is %s, and %d passes were made beside the rehearsal: %+v", at.Phase, beside, at.Disks[0].Passes)
	}
	w.GoesOn(t)
	m.nothingRuns()
	m.lap(fmt.Sprintf("%d passes were made beside it", beside))
	m.lap(fmt.Sprintf("it is rehearsed; nothing could be written for %.1f s", pause.Seconds()))
	m.ready()

	m.breakOff(w, "cutover")
	m.cutOver(w)
}

// passed makes sure that what was looked at in a VM was as it should be.
func passed(t *testing.T, a move.Attempt, ids ...string) {
	t.Helper()
	if a.Report == nil {
		t.Fatalf("nobody has looked at the VM: %+v", a)
	}
	if a.Report.Verdict != verify.StateOK {
		t.Errorf("the VM is %s: %+v", a.Report.Verdict, a.Report.Results)
	}
	for _, id := range ids {
		if i := slices.IndexFunc(a.Report.Results, func(r verify.Result) bool { return r.ID == id }); i < 0 || a.Report.Results[i].State != verify.StateOK {
			t.Errorf("%s: %+v", id, a.Report.Results)
		}
	}
}

// cutOver carries the move out, and looks at all that must be true then.
func (m *Migration) cutOver(w *Writer, args ...string) {
	m.t.Helper()
	t := m.t
	const files = "cd /srv && find . -type f -exec sha256sum {} + | sort"
	marker := fmt.Sprintf("written-%d", time.Now().UnixNano())
	before := m.on("echo " + marker + " >/root/marker && sync /root/marker && " + files)
	all := m.on(everyFile)
	mirrors := m.mirrors()
	m.read("cutover.txt", append([]string{"migrate", "cutover", m.name}, args...), "cutover, passed", "Downtime:")
	acknowledged := w.Last()
	at, a := m.show(), m.last()
	passed(t, a, "system", "hostname", "mounts", "network", "service:model-server.service")
	if at.Phase != string(move.PhaseDone) || at.Fence != string(move.FenceOff) || a.Kind != move.Cutover || a.State != move.Passed || a.Downtime <= 0 || a.Downtime < a.Rest {
		t.Errorf("it is %s, the fence is %q, the cut-over %+v", at.Phase, at.Fence, a)
	}
	m.lap(fmt.Sprintf("it is cut over, with a downtime of %.0f s", a.Downtime))

	select {
	case <-m.server.Off():
	default:
		t.Fatal("the server runs")
	}
	for i, disk := range m.server.Disks {
		if at, err := differ(disk, mirrors[i]); err != nil || at >= 0 {
			t.Errorf("the server's disk %d and its mirror differ at byte %d: %v", i, at, err)
		}
	}
	// What was written last, as the file system of the mirrors has it.
	numbers, err := output(exec.Command("debugfs", "-R", "cat "+written, m.root(mirrors)))
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Fields(numbers); len(lines) < acknowledged || len(lines) > acknowledged+1 || lines[len(lines)-1] != fmt.Sprint(len(lines)) {
		t.Errorf("%d numbers were on the disk, %d in the mirror, of which the last is %s", acknowledged, len(lines), lines[len(lines)-1])
	}
	for script, want := range map[string]string{
		"cat /root/marker":                 marker,
		files:                              before,
		"cat " + written:                   strings.TrimSpace(numbers),
		"systemctl is-active model-server": "active",
		"systemctl is-active nvidia-fabricmanager":                    "inactive",
		"systemctl is-active nvidia-persistenced":                     "inactive",
		"cat /sys/class/net/" + serverNIC + "/address":                serverMAC,
		"ip -4 -o addr show dev " + serverNIC + " | awk '{print $4}'": "10.0.2.15/24",
		"findmnt -no SOURCE /":                                        m.server.Layout.Root,
	} {
		if got := m.inVM(script); got != want {
			t.Errorf("%s in the VM: %q, want %q", script, got, want)
		}
	}
	m.untouched(all, m.inVM(everyFile))
	m.lap("the VM is what the server was")
}

// everyFile lists the files of a system with the beginning of their checksums; one that is written to all
// the time is read by itself.
const everyFile = "find / -xdev -type f ! -path " + written + " -exec sha256sum {} + 2>/dev/null | awk '{h = substr($1, 1, 16); sub(/^[^ ]+ +/, \"\"); print h, $0}' | sort -k 2"

// changes are the files that may be others in the VM than on the server, or missing, or new: what its programs write
// while they run, and what a conversion is about.
var changes = []struct{ what, files string }{
	{"what runs writes it", `/var/log/.*|/var/lib/(load|systemd)/.*|/var/cache/ldconfig/.*`},
	{"kernels start with drivers for the VM's disks", `/boot/(initrd|grub/).*|/etc/default/grub.*|/etc/initramfs-tools/modules.*`},
	{"disks and NICs are called otherwise", `/etc/(fstab|crypttab).*|/etc/systemd/network/10-gpuvirt-.*\.link`},
	{"modules of bare metal are not loaded, and services of it do not start", `/etc/mod(probe|ules-load)\.d/.*|/etc/systemd/system/.*`},
	{"packages come", `/var/lib/dpkg/.*|/etc/ld\.so\.cache`},
	{"the guest agent", `/etc/init\.d/qemu-guest-agent|/etc/qemu/.*|/usr/sbin/qemu-ga|/usr/lib/(systemd/system/|udev/rules\.d/60-)qemu-guest-agent\..*`},
	{"what that needs", `/usr/lib/x86_64-linux-gnu/(glib-2\.0/.*|lib(gio|glib|gmodule|gobject|gthread|numa|uring)[-.].*)|/usr/share/lintian/overrides/.*`},
}

// untouched wants all files to be in the VM as they were on the server, but for those that are changed for it.
func (m *Migration) untouched(before, after string) {
	m.t.Helper()
	sums := func(list string) map[string]string {
		out := map[string]string{}
		for line := range strings.Lines(list) {
			sum, path, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			out[path] = sum
		}
		return out
	}
	was, is := sums(before), sums(after)
	if len(was) < 3000 || len(is) < 3000 {
		m.t.Fatalf("%d files were on the server, %d are in the VM: it is not looked at them", len(was), len(is))
	}
	why := func(path string) string {
		for _, c := range changes {
			if regexp.MustCompile("^(" + c.files + ")$").MatchString(path) {
				return c.what
			}
		}
		return ""
	}
	var differ []string
	for path := range was {
		if is[path] != was[path] {
			differ = append(differ, path)
		}
	}
	for path := range is {
		if was[path] == "" {
			differ = append(differ, path)
		}
	}
	slices.Sort(differ)
	for _, path := range differ {
		if because := why(path); because != "" {
			m.t.Logf("%s is changed: %s", path, because)
		} else {
			m.t.Errorf("%s: %q on the server, %q in the VM", path, was[path], is[path])
		}
	}
	m.t.Logf("%d files are as they were, %d are not", len(was)-len(differ), len(differ))
}

// mirrors are the copies of the server's disks, in their order. Which name a disk has is the
// kernel's choice.
func (m *Migration) mirrors() (out []string) {
	m.t.Helper()
	for i := range m.server.Disks {
		name := m.on("grep -l " + serial(i) + " /sys/block/nvme?n1/device/serial | cut -d/ -f4")
		out = append(out, filepath.Join(m.Mirrors, m.name, name+".raw"))
	}
	return out
}

// root puts the root file system together, out of its pieces on disks.
func (m *Migration) root(disks []string) string {
	m.t.Helper()
	file, length := filepath.Join(m.t.TempDir(), "root.img"), 0
	for _, p := range m.server.Layout.Pieces {
		_, err := output(exec.Command("dd", "if="+disks[p.Disk], "of="+file, "bs=1M", "conv=sparse,notrunc", "status=none",
			fmt.Sprintf("skip=%d", p.Start), fmt.Sprintf("count=%d", p.Length), fmt.Sprintf("seek=%d", length)))
		if err != nil {
			m.t.Fatal(err)
		}
		length += p.Length
	}
	if err := os.Truncate(file, int64(length)<<20); err != nil {
		m.t.Fatal(err)
	}
	return file
}

// differ returns where two files begin to differ, -1: they do not.
func differ(one, other string) (int64, error) {
	a, err := os.Open(one)
	if err != nil {
		return 0, err
	}
	defer a.Close()
	b, err := os.Open(other)
	if err != nil {
		return 0, err
	}
	defer b.Close()
	const chunk = 1 << 20
	left, right := make([]byte, chunk), make([]byte, chunk)
	for at := int64(0); ; at += chunk {
		n, err1 := io.ReadFull(a, left)
		k, err2 := io.ReadFull(b, right)
		if n != k || !bytes.Equal(left[:n], right[:k]) {
			return at, nil
		}
		switch {
		case err1 == io.EOF || err1 == io.ErrUnexpectedEOF:
			return -1, nil
		case err1 != nil || err2 != nil:
			return at, errors.Join(err1, err2)
		}
	}
}

// inVM runs a command of a shell in the VM, by the guest's agent, and returns what it prints.
func (m *Migration) inVM(script string) string {
	m.t.Helper()
	ask := func(execute string, arguments map[string]any, answer any) {
		m.t.Helper()
		text, err := json.Marshal(map[string]any{"execute": execute, "arguments": arguments})
		if err == nil {
			err = json.Unmarshal([]byte(m.Virsh(m.t, "qemu-agent-command", m.name, string(text))), answer)
		}
		if err != nil {
			m.t.Fatal(err)
		}
	}
	var begun struct {
		Return struct{ PID int }
	}
	ask("guest-exec", map[string]any{"path": "/bin/sh", "arg": []string{"-c", script}, "capture-output": true}, &begun)
	var end struct {
		Return struct {
			Exited bool
			Out    []byte `json:"out-data"`
		}
	}
	ctx, cancel := context.WithTimeout(m.t.Context(), 5*time.Minute)
	defer cancel()
	err := machine.WaitFor(ctx, 200*time.Millisecond, func() (bool, error) {
		ask("guest-exec-status", map[string]any{"pid": begun.Return.PID}, &end)
		return end.Return.Exited, nil
	})
	if err != nil {
		m.t.Fatalf("%s in the VM: %v", script, err)
	}
	return strings.TrimSpace(string(end.Return.Out))
}

// A server with UEFI, and LVM over two disks, from which also its loader reads: its move is
// taken back when it could be cut over, and nothing of it is left, here and there. Then it is
// moved all the same.
func TestMigrateUEFI(t *testing.T) {
	m := begin(t, "uefi")
	found := m.assess()
	concerned := func(id string) bool {
		return slices.ContainsFunc(found.Findings.Concerns, func(c assess.Concern) bool { return c.ID == id })
	}
	// The driver is one by its packages only.
	unseen := slices.ContainsFunc(found.Findings.Concerns, func(c assess.Concern) bool {
		return c.ID == "unseen" && (len(c.Evidence) != 1 || !strings.HasPrefix(c.Evidence[0], `"driver": `))
	})
	if !concerned("several-disks") || unseen || concerned("bios-boot") {
		t.Errorf("found of the server: %+v", found.Findings.Concerns)
	}
	m.read("plan.txt", append([]string{"migrate", "plan"}, m.wish()...), "Ready", `2 disks ("nvme0n1", "nvme1n1")`, "several-disks")
	w := StartWriter(t, m.server)
	m.start()
	for _, d := range m.show().Disks {
		if d.Passes[0].Sent < 64<<20 {
			t.Errorf("%s holds next to nothing: %d bytes were sent of it", d.Name, d.Passes[0].Sent)
		}
	}
	m.read("ready.txt", []string{"migrate", "show", m.name}, "nvme0n1", "nvme1n1", "Last pass:")
	m.GPUVirt(t, "migrate", "rollback", m.name)
	if at := m.show(); at.Phase != string(move.PhaseRolledBack) {
		t.Errorf("it is %s: %s", at.Phase, at.Reason)
	}
	m.nothingRuns()
	if out := m.Virsh(t, "list", "--all", "--name"); out != "" {
		t.Errorf("VMs: %q", out)
	}
	if left := glob(filepath.Join(m.Mirrors, "*")); len(left) > 0 {
		t.Errorf("left here: %q", left)
	}
	if left := m.on("ls -d /dev/shm/.gpuvirt-* /run/.gpuvirt-* /tmp/.gpuvirt-* 2>/dev/null; pgrep -af '[p]2v serve'; true"); left != "" {
		t.Errorf("left there: %s", left)
	}
	m.GPUVirt(t, "migrate", "delete", m.name)
	w.GoesOn(t)
	m.lap("it was taken back")

	m.start()
	m.cutOver(w, "--unrehearsed", "the same system was, with BIOS")
	m.read("done.txt", []string{"migrate", "show", m.name}, "cutover  passed", "Verdict:")
	// LVM has found all that it had, and not what is below the overlays.
	if got := m.inVM("vgs --noheadings --options pv_count,missing_pv_count system | xargs"); got != "2 0" {
		t.Errorf("disks of the volume group in the VM, and missing ones: %q", got)
	}
}
