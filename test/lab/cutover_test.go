//go:build lab

package lab

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gpuvirt/api"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/verify"
	"gpuvirt/test/machine"
)

// A server becomes a VM of the host that it is moved to, with a partition of a GPU, and keeps
// its address. On the way its partition is held for it, it is rehearsed, and what fails before
// the server is off leaves it running as if nothing had been; and a move that is taken back
// leaves nothing.
//
// It takes five minutes, which is more than CI has. So it is only run where it is asked for. On an emulator of two
// processors its server was seen to stand still, its CPU busy, and to begin anew without a word; on one
// processor neither. server.registers has where the CPU was, should it.
func TestCutover(t *testing.T) {
	take(t)
	if os.Getenv("GPUVIRT_LAB_LONG") == "" {
		t.Skip("GPUVIRT_LAB_LONG=1 runs it")
	}
	ctx := begin(t, 25*time.Minute, "mtty")
	// Others have all of the ports but one.
	run(ctx, t, "cd /sys/class/mdev_bus/mtty/mdev_supported_types && for n in 2 2 2 2 2 2 2 2 2 2 2 1; do cat /proc/sys/kernel/random/uuid >mtty-$n/create; done")
	others := mdevs(ctx, t)
	if left := available(ctx, t, "mtty-1"); left != "1" {
		t.Fatalf("%s ports are left, want 1", left)
	}
	s := startServer(ctx, t)
	run(ctx, t, "gpuvirt assessment create srv --source root@"+serverAddress+" --credential srv --host-key "+s.hostKey)
	wish := "gpuvirt migrate start srv --assessment srv --profile mtty-1 --memory 512Mi --threads 1 --downtime 15m --every 1h --no-wait " +
		"--convert none --vm moved --bridge " + serverBridge + ` --check model="sha256sum -c /srv/sums"`

	testTakenBack(ctx, t, s, wish, others)

	run(ctx, t, wish)
	s.phase(ctx, t, "ready")
	held := get[api.Assignment](ctx, t, "/v1/assignments/srv")
	if held.Profile != "mtty-1" || held.GPU != "mtty" || !slices.Contains(mdevs(ctx, t), held.Partition) {
		t.Fatalf("assignment %+v, mdevs %q", held, mdevs(ctx, t))
	}
	refusesRival := func() {
		t.Helper()
		call(ctx, t, http.MethodPut, "/v1/assignments/rival", api.AssignmentRequest{VM: "rival", Profile: "mtty-1"}).
			problem(t, http.StatusInsufficientStorage, "no-capacity")
	}
	_, err := hypervisor.DefineGuest(ctx, "rival", GuestOptions{})
	must(t, err)
	refusesRival()

	testRehearsal(ctx, t, s)
	if now := get[api.Assignment](ctx, t, "/v1/assignments/srv"); now.Partition != held.Partition {
		t.Errorf("the partition was %s, and is %s", held.Partition, now.Partition)
	}
	refusesRival()
	testFailsBeforeTheEdge(ctx, t, s)
	testEdge(ctx, t, s, held.Partition)
}

// A move that is taken back while it copies leaves no VM, no partition and no disk.
func testTakenBack(ctx context.Context, t *testing.T, s *server, wish string, others []string) {
	t.Helper()
	run(ctx, t, wish+" --bandwidth 1M")
	eventually(ctx, t, "gpuvirt assignment list -o name; virsh domstate moved", "srv\nshut off")
	s.phase(ctx, t, "syncing")
	run(ctx, t, "gpuvirt migrate rollback srv --yes")
	if m := s.phase(ctx, t, "rolled-back"); m.Reason != "" {
		t.Errorf("%+v", m)
	}
	if left := run(ctx, t, "virsh list --all --name; virsh net-list --all --name | grep gpuvirt; gpuvirt assignment list -o name; ls -A /var/lib/libvirt/images/gpuvirt; "+
		"ls -d /run/.gpuvirt-* /tmp/.gpuvirt-* 2>/dev/null || true"); left != "" {
		t.Errorf("left here: %s", left)
	}
	if left := mdevs(ctx, t); !slices.Equal(left, others) {
		t.Errorf("mdevs %q, want %q", left, others)
	}
	if left := s.in(ctx, t, "ls -d /dev/shm/.gpuvirt-* 2>/dev/null || true"); left != "" {
		t.Errorf("left on the server: %s", left)
	}
	if journal := run(ctx, t, "journalctl -u gpuvirtd -b -o cat"); strings.Contains(journal, "PRIVATE") {
		t.Error("the journal holds a key")
	}
	run(ctx, t, "gpuvirt migrate delete srv --yes")
}

// The rehearsal finds the VM as it should be, and the server has hardly noticed.
func testRehearsal(ctx context.Context, t *testing.T, s *server) {
	t.Helper()
	before := s.numbers(ctx, t)
	t.Log(run(ctx, t, "gpuvirt migrate rehearse srv 2>&1 || gpuvirt migrate show srv"))
	m := s.phase(ctx, t, "ready")
	a := m.Attempts[len(m.Attempts)-1]
	if a.Kind != move.Rehearsal || a.State != move.Passed || a.Report == nil || a.Report.Verdict != verify.StateOK {
		t.Fatalf("the rehearsal: %+v", a)
	}
	wellOf(t, a)
	after := s.goesOn(ctx, t)
	// The clock of the server has whole seconds.
	if gap := longest(after); a.Rest > 30 || gap > a.Rest+3 {
		t.Errorf("the server was at rest for %.1f s, and wrote nothing for %.0f s", a.Rest, gap)
	}
	t.Logf("at rest for %.1f s; %d numbers were written meanwhile and after", a.Rest, len(after)-len(before))
	if state := run(ctx, t, "virsh domstate moved; virsh net-list --all --name | grep gpuvirt || true"); state != "shut off" {
		t.Errorf("left of the rehearsal: %s", state)
	}
}

// wellOf wants what matters to be known and well.
func wellOf(t *testing.T, a move.Attempt) {
	t.Helper()
	want := []string{"boot", "agent", "hostname", "mounts", "devices", "check:model"}
	if a.Kind == move.Cutover {
		want = append(want, "network")
	}
	for _, r := range a.Report.Results {
		if r.State == verify.StateOK {
			want = slices.DeleteFunc(want, func(id string) bool { return id == r.ID })
		}
	}
	if len(want) > 0 {
		t.Errorf("%s: %q are not well: %+v", a.Kind, want, a.Report.Results)
	}
}

// What fails while the server is at rest has it go on: its time is over, or the daemon dies.
func testFailsBeforeTheEdge(ctx context.Context, t *testing.T, s *server) {
	t.Helper()
	fails := func(why string) {
		t.Helper()
		m := s.phase(ctx, t, "ready")
		if a := m.Attempts[len(m.Attempts)-1]; a.Kind != move.Cutover || a.State != move.Failed || !strings.Contains(a.Problem, why) {
			t.Fatalf("the attempt: %+v", a)
		}
		s.goesOn(ctx, t)
		if state := run(ctx, t, "virsh domstate moved; ls /var/lib/libvirt/images/gpuvirt/srv/*.qcow2 2>/dev/null || true"); state != "shut off" {
			t.Errorf("left of the attempt: %s", state)
		}
	}
	// The pass before was quick enough. Now the copy is bounded, and the last pass, of about as
	// much, takes twice the limit.
	before := get[api.Migration](ctx, t, "/v1/migrations/srv")
	limit := max(5, int(math.Ceil(before.Forecast.RestSeconds))+1)
	passes := before.Disks[0].Passes
	run(ctx, t, fmt.Sprintf("gpuvirt migrate set srv --bandwidth %d", max(64<<10, int(passes[len(passes)-1].Sent)/(2*limit))))
	run(ctx, t, fmt.Sprintf("! gpuvirt migrate cutover srv --yes --limit %ds", limit))
	fails("limit")

	run(ctx, t, "gpuvirt migrate cutover srv --yes --no-wait")
	must(t, machine.WaitFor(ctx, 300*time.Millisecond, func() (bool, error) {
		m := get[api.Migration](ctx, t, "/v1/migrations/srv")
		a := m.Attempts[len(m.Attempts)-1]
		if a.Over() {
			t.Fatalf("it is over: %+v", a)
		}
		return a.Phase == "last pass", nil
	}))
	run(ctx, t, "systemctl kill -s KILL gpuvirtd")
	s.goesOn(ctx, t)
	must(t, hypervisor.WaitReady(ctx))
	run(ctx, t, "gpuvirt migrate set srv --bandwidth 0")
	fails("broken off")
}

// The server is off, and the VM is what it was to the last byte.
func testEdge(ctx context.Context, t *testing.T, s *server, partition string) {
	t.Helper()
	sums := s.in(ctx, t, sumAll)
	marker := "written before the edge " + s.hostKey
	s.in(ctx, t, "echo '"+marker+"' >/srv/marker && sync /srv/marker")
	t.Log(run(ctx, t, "gpuvirt migrate cutover srv --yes 2>&1 || gpuvirt migrate show srv"))
	m := s.phase(ctx, t, "done")
	a := m.Attempts[len(m.Attempts)-1]
	if a.Report == nil || a.Report.Verdict != verify.StateOK {
		t.Fatalf("the cut-over: %+v", a)
	}
	wellOf(t, a)
	t.Logf("at rest for %.1f s, down for %.1f s", a.Rest, a.Downtime)

	if end := run(ctx, t, "cat "+serverEnd); end != "success 0" {
		t.Errorf("the server has not powered off: %q", end)
	}
	run(ctx, t, "cmp "+serverDisk+" /var/lib/libvirt/images/gpuvirt/srv/nvme0n1.raw")
	if state := run(ctx, t, "virsh domstate moved"); state != "running" {
		t.Errorf("the VM is %s", state)
	}
	if doc := run(ctx, t, "virsh dumpxml moved"); !strings.Contains(doc, "<address uuid='"+partition+"'/>") {
		t.Errorf("the VM has not the partition %s:\n%s", partition, doc)
	}
	// It answers where the server did, as the server did: its address, its key.
	if got := s.in(ctx, t, "cat /srv/marker"); got != marker {
		t.Errorf("the marker: %q", got)
	}
	if got := s.in(ctx, t, sumAll); got != sums {
		t.Errorf("files are not what they were:\n%s\n%s", sums, got)
	}
	if got := s.in(ctx, t, "cat /sys/bus/pci/devices/*/uevent"); !strings.Contains(got, "PCI_ID="+MTTY) {
		t.Errorf("the VM does not see the partition:\n%s", got)
	}
	if s.in(ctx, t, "ls /dev/nvme0n1 2>/dev/null || echo /dev/vda1") != "/dev/vda1" {
		t.Error("the VM has the server's disk")
	}
	s.goesOn(ctx, t)
	run(ctx, t, "gpuvirt migrate delete srv --yes")
	if state := run(ctx, t, "virsh domstate moved"); state != "running" {
		t.Errorf("the VM is %s after its move is forgotten", state)
	}
}

// sumAll tells of all files of the server, save those that are written all the time.
const sumAll = "find / -xdev -type f ! -path /srv/numbers ! -path /srv/marker ! -path /var/log/boots -print0 | sort -z | xargs -0 sha256sum | sha256sum"

// Where the server is, and what of it is on the hypervisor.
const (
	serverBridge  = "lab77"
	serverAddress = "10.77.0.15"
	serverDisk    = "/var/tmp/server.raw"
	serverEnd     = "/run/lab-server.end"
	serverMonitor = "4444" // a port
	serverSSH     = "ssh -q -i /etc/gpuvirt/credentials/srv -o BatchMode=yes -o UserKnownHostsFile=/run/lab-server.hosts -o StrictHostKeyChecking=yes root@" + serverAddress + " "
)

var serverUp = regexp.MustCompile(`^SERVER up$`)

// A server is a small physical one, which nobody has made as a VM of libvirt's: an emulated
// machine with an NVMe disk, on a bridge of the hypervisor.
type server struct{ hostKey string }

// startServer switches the server on, and waits until it is up and its writer writes.
func startServer(ctx context.Context, t *testing.T) *server {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if t.Failed() { // where its CPU is, some times: the kernel is at home in guest-vmlinux
			run(ctx, t, "exec 3<>/dev/tcp/127.0.0.1/"+serverMonitor+" && for n in 1 2 3 4 5; do echo info registers; sleep 1; done >&3 && echo info lapic >&3; "+
				"timeout 5 cat <&3 >"+guestLogs+"/server.registers; true")
		}
		run(ctx, t, "systemctl stop lab-server; virsh -q destroy moved; ip link del "+serverBridge+"; ip link del labsrv; rm -f "+serverDisk+" "+serverEnd+
			" /run/lab-server.hosts /etc/gpuvirt/credentials/srv; true")
	})
	run(ctx, t, `set -e
cp --sparse=always `+guestFiles+`/server.img `+serverDisk+`
install -m 600 `+guestFiles+`/server_key /etc/gpuvirt/credentials/srv
echo "`+serverAddress+` $(cat `+guestFiles+`/server_host.pub)" >/run/lab-server.hosts
rm -f `+serverEnd+`
ip link add `+serverBridge+` type bridge
ip address add 10.77.0.1/24 dev `+serverBridge+`
ip link set `+serverBridge+` up
ip tuntap add labsrv mode tap
ip link set labsrv master `+serverBridge+` up
systemd-run -q --unit lab-server -p ExecStopPost='/bin/sh -c "echo $SERVICE_RESULT $EXIT_STATUS >`+serverEnd+`"' \
	qemu-system-x86_64 -nodefaults -no-user-config -display none -machine q35 -accel kvm -cpu host -smp 1 -m 512 \
	-bios `+guestFiles+`/guest-bios -kernel `+guestFiles+`/guest-vmlinux -initrd `+guestFiles+`/server-initrd -append "$(cat `+guestFiles+`/server-cmdline)" \
	-drive file=`+serverDisk+`,format=raw,if=none,id=disk,cache=none -device nvme,drive=disk,serial=LABSRV1 \
	-netdev tap,id=net,ifname=labsrv,script=no,downscript=no -device virtio-net-pci,netdev=net,romfile=,mac=52:54:00:77:00:15 \
	-monitor tcp:127.0.0.1:`+serverMonitor+`,server=on,wait=off -serial file:`+guestLog("server"))
	began := time.Now()
	_, err := hypervisor.WaitGuestLine(ctx, "server", serverUp)
	must(t, err)
	s := &server{hostKey: run(ctx, t, "ssh-keygen -l -f "+guestFiles+"/server_host.pub | cut -d' ' -f2")}
	eventually(ctx, t, serverSSH+"true && echo yes", "yes")
	t.Logf("the server is up after %.0f s", time.Since(began).Seconds())
	s.in(ctx, t, "sha256sum /srv/model-* >/srv/sums && sync")
	s.goesOn(ctx, t)
	return s
}

// in runs a command on the server, or on the VM that it has become.
func (s *server) in(ctx context.Context, t *testing.T, command string) string {
	t.Helper()
	return run(ctx, t, serverSSH+quote(command))
}

// phase waits until the move is in a phase, and fails where a person would have to act.
func (s *server) phase(ctx context.Context, t *testing.T, want string) (m api.Migration) {
	t.Helper()
	must(t, machine.WaitFor(ctx, time.Second, func() (bool, error) {
		m = get[api.Migration](ctx, t, "/v1/migrations/srv")
		if m.Phase != want && (m.Phase == "waiting" || m.Phase == "failed") {
			t.Fatalf("it is %s: %s\n%+v", m.Phase, m.Reason, m.Attempts)
		}
		return m.Phase == want, fmt.Errorf("it is %s", m.Phase)
	}))
	return m
}

// numbers are the times at which the server's writer has written: one after the other, and
// none is missing.
func (s *server) numbers(ctx context.Context, t *testing.T) []int {
	t.Helper()
	var times []int
	for i, line := range strings.Split(s.in(ctx, t, "cat /srv/numbers"), "\n") {
		number, at, _ := strings.Cut(line, " ")
		when, err := strconv.Atoi(at)
		if number != strconv.Itoa(i+1) || err != nil {
			t.Fatalf("line %d of the writer's is %q", i+1, line)
		}
		times = append(times, when)
	}
	return times
}

// goesOn wants the writer to write, and nothing of it to be missing.
func (s *server) goesOn(ctx context.Context, t *testing.T) []int {
	t.Helper()
	have := func() string { return s.in(ctx, t, "wc -l </srv/numbers") }
	before := have()
	must(t, machine.WaitFor(ctx, time.Second, func() (bool, error) { return have() != before, nil }))
	return s.numbers(ctx, t)
}

// longest is the longest time between two numbers, in seconds.
func longest(times []int) (gap float64) {
	for i := 1; i < len(times); i++ {
		gap = max(gap, float64(times[i]-times[i-1]))
	}
	return gap
}
