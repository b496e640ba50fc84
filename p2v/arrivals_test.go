package p2v_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
	"gpuvirt/p2v/virtp2v"
)

// A coming is a server that was started from virt-p2v and has come.
type coming struct {
	server    virtp2v.Server
	cut       context.CancelFunc
	over      chan error
	connected *atomic.Bool

	mu    sync.Mutex
	shown bytes.Buffer
}

func (c *coming) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shown.Write(b)
}

func (c *coming) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shown.String()
}

// virtp2v is the yard's machine, as virt-p2v tells of it. Its disks are exported by nbdkit.
func (y *yard) virtp2v(name string) virtp2v.Server {
	y.t.Helper()
	if _, err := exec.LookPath("nbdkit"); err != nil {
		y.t.Skip("nbdkit is not installed")
	}
	s := virtp2v.Server{Name: name, From: netip.MustParseAddr("192.0.2.7"), Networks: map[string]string{"02:00:00:00:00:07": "storage"}}
	s.Report = report.Report{
		Version: report.Version, Privileged: true, Hostname: name, Firmware: report.Firmware{Type: "bios"}, OS: report.OS{Arch: "x86_64"},
		CPU: report.CPU{Threads: 2}, Memory: report.Memory{TotalBytes: 2 << 30},
		NICs:   []report.NIC{{Name: "eth0", MAC: "02:00:00:00:00:07", Kind: "physical"}},
		GPUs:   []report.GPU{{Index: -1, PCI: "0000:41:00.0", Vendor: "nvidia", Model: "A100 PCIe 40GB"}},
		Unseen: []report.Unseen{{What: "os", Reason: "it does not run"}, {What: "boot", Reason: "it does not run"}},
	}
	for _, d := range y.machine.report().Disks {
		socket := filepath.Join(y.t.TempDir(), "s")
		cmd := exec.CommandContext(y.t.Context(), "nbdkit", "-f", "-r", "-U", socket, "file", y.disk(d.Name))
		cmd.WaitDelay = 10 * time.Second
		if err := cmd.Start(); err != nil {
			y.t.Fatal(err)
		}
		y.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		s.Disks = append(s.Disks, virtp2v.Disk{Name: d.Name, Size: int64(d.SizeBytes), Dial: func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", socket) }})
		s.Report.Disks = append(s.Report.Disks, report.Disk{Name: d.Name, SizeBytes: d.SizeBytes, BlockBytes: 512, Table: "gpt", Boots: len(s.Report.Disks) == 0})
	}
	s.Report.Clean()
	y.awaitDisks(s)
	return s
}

func (y *yard) disk(name string) string {
	for _, d := range y.machine.disks {
		if d.Name == name {
			return d.Path
		}
	}
	y.t.Fatalf("no disk %s", name)
	return ""
}

// awaitDisks waits until nbdkit listens.
func (y *yard) awaitDisks(s virtp2v.Server) {
	y.t.Helper()
	for _, d := range s.Disks {
		y.await("nbdkit listens", func() bool {
			conn, err := d.Dial(y.t.Context())
			if err == nil {
				_ = conn.Close()
			}
			return err == nil
		})
	}
}

func (y *yard) await(what string, is func() bool) {
	y.t.Helper()
	limit, tick := time.After(30*time.Second), time.NewTicker(2*time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-limit:
			y.t.Fatalf("it never is that %s", what)
		}
	}
}

func (y *yard) comes(s virtp2v.Server) *coming {
	y.t.Helper()
	ctx, cut := context.WithCancel(y.t.Context())
	c := &coming{server: s, cut: cut, over: make(chan error, 1), connected: &atomic.Bool{}}
	c.connected.Store(true)
	s.Connected = c.connected.Load
	// What it is reached by ends with its connection.
	for i, d := range s.Disks {
		dial := d.Dial
		s.Disks[i].Dial = func(at context.Context) (net.Conn, error) {
			conn, err := dial(at)
			if err == nil {
				context.AfterFunc(ctx, func() { _ = conn.Close() })
			}
			return conn, err
		}
	}
	go func() { c.over <- y.Arrive(ctx, s, c) }()
	y.t.Cleanup(cut)
	return c
}

func (c *coming) ended(t *testing.T) error {
	t.Helper()
	select {
	case err := <-c.over:
		return err
	case <-time.After(30 * time.Second):
		t.Fatalf("it is not over:\n%s", c.text())
		return nil
	}
}

func fromVirtP2V(s virtp2v.Server) (out []move.DiskFrom) {
	for _, d := range s.Disks {
		out = append(out, move.DiskFrom{Disk: d.Name, NBD: move.VirtP2V})
	}
	return out
}

// A move is begun before its server comes; it comes, is cut off in the middle, comes once more
// and becomes a VM. Who stands before it is told all the time.
func TestArrival(t *testing.T) {
	y := newYard(t, newMachine(t, 8*mib, 4*mib))
	y.carried()
	s := y.virtp2v("gpu7")
	w := y.wish()
	w.DisksFrom = fromVirtP2V(s)
	if err := y.Refusal(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if _, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{}); err != nil {
		t.Fatal(err)
	}
	y.until("waiting for it", func(v move.Migration) bool { return y.logged(v, "is not here: start the conversion in virt-p2v") })

	first := y.comes(s)
	y.until("ready", phase(move.PhaseReady))
	y.same()
	y.await("it is told", func() bool { return strings.Contains(first.text(), "migration gpu7 is ready") })
	if text := first.text(); !strings.Contains(text, "with 2 disks, 1 NICs and 1 GPUs. It is the server of the assessment of this name") || strings.Contains(text, "migrate start") {
		t.Errorf("%s", text)
	}

	first.cut()
	if err := first.ended(t); err == nil {
		t.Error("it was cut")
	}
	y.machine.write(1, 3*mib+7, "its system was started in between")
	if _, err := y.Sync("gpu7"); err != nil {
		t.Fatal(err)
	}
	second := y.comes(y.virtp2v("gpu7"))
	y.until("ready again", func(v move.Migration) bool {
		d := v.Disks[1]
		return d.Total > 1 && d.Passes[len(d.Passes)-1].Complete && v.Phase == move.PhaseReady
	})
	y.same()

	if _, err := y.CutOver(t.Context(), "gpu7", "tester", move.CutWish{SourceOff: true, Unrehearsed: "a test", Verify: true}); err != nil {
		t.Fatal(err)
	}
	y.told(second)
	second.connected.Store(false)
	y.answers.set(false)
	v := y.until("done", phase(move.PhaseDone))
	if a := v.Last(move.Cutover); a.State != move.Passed || a.Phase != "the source is off, as tester says: nothing answers at 192.0.2.7 any more" {
		t.Errorf("%+v", a)
	}
	y.same()
	if n := y.dialled(); n != 0 {
		t.Errorf("the server was called %d times", n)
	}
	if _, err := y.assessments.Assessment("gpu7"); err != nil {
		t.Errorf("an assessment of somebody's is gone: %v", err)
	}
}

// logged tells whether a step of a move has said something.
func (y *yard) logged(v move.Migration, what string) bool {
	op, err := y.engine.Get(v.Operation)
	if err != nil {
		return false
	}
	for _, s := range op.Steps {
		for _, l := range s.Log {
			if strings.Contains(l.Text, what) {
				return true
			}
		}
	}
	return false
}

// Of a server that nobody knew there is an assessment for as long as it is here, or a move rests
// on it.
func TestArrivalUnknown(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	s := y.virtp2v("new1")
	c := y.comes(s)
	y.await("it is told", func() bool { return strings.Contains(c.text(), "waiting until somebody begins") })
	rec, err := y.assessments.Assessment("new1")
	if err != nil || rec.Actor != "virt-p2v:192.0.2.7" || rec.State != report.StateDone || rec.Source != nil {
		t.Errorf("%+v, %v", rec, err)
	}
	if text := c.text(); !strings.Contains(text, "It is a new assessment") ||
		!strings.Contains(text, "gpuvirt migrate start new1 --assessment new1 --nbd nvme0n1=virt-p2v: --nic 02:00:00:00:00:07=network:storage --profile PROFILE\n") ||
		!strings.Contains(text, "GPU 0000:41:00.0: A100 PCIe 40GB.") {
		t.Errorf("%s", text)
	}
	plan, err := y.Plan(t.Context(), move.Wish{Name: "new1", Assessment: "new1", DisksFrom: fromVirtP2V(s)})
	if err != nil || len(plan.Verdict.Blockers) != 0 {
		t.Errorf("%+v, %v", plan.Verdict, err)
	}
	c.cut()
	if err := c.ended(t); err == nil {
		t.Error("it was cut")
	}
	if _, err := y.assessments.Assessment("new1"); gpu.CodeOf(err) != gpu.CodeNotFound {
		t.Errorf("it is still there: %v", err)
	}

	// With a move it stays, and the server may come once more.
	c = y.comes(y.virtp2v("new1"))
	y.await("it is told", func() bool { return strings.Contains(c.text(), "waiting until somebody begins") })
	w := move.Wish{Name: "gpu7", Assessment: "new1", DisksFrom: fromVirtP2V(s)}
	if _, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{}); err != nil {
		t.Fatal(err)
	}
	v := y.until("ready", phase(move.PhaseReady))
	if len(v.Disks) != 1 || v.Disks[0].ID == "" || v.Hostname != "new1" {
		t.Errorf("%+v", v.Disks)
	}
	y.same()
	again := y.comes(y.virtp2v("new1")) // its connection was cut, and we do not know it yet
	if err := c.ended(t); err == nil || !strings.Contains(err.Error(), "has come once more") {
		t.Errorf("got %v", err)
	}
	y.await("it is told", func() bool { return strings.Contains(again.text(), "migration gpu7 is ") })
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("rolled back", phase(move.PhaseRolledBack))
	y.await("it is told", func() bool {
		return strings.HasSuffix(strings.TrimSpace(again.text()), "waiting until somebody begins to move it")
	})
	again.cut()
	_ = again.ended(t)
	if _, err := y.assessments.Assessment("new1"); err != nil {
		t.Errorf("a move rested on it: %v", err)
	}
}

// Who comes under the name of another is told, and nothing is changed.
func TestArrivalRefused(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	first := y.virtp2v("new1")
	c := y.comes(first)
	y.await("it is told", func() bool { return strings.Contains(c.text(), "waiting until somebody begins") })
	for name, tc := range map[string]struct {
		change func(*virtp2v.Server)
		want   string
	}{
		"no name":       {func(s *virtp2v.Server) { s.Name = "" }, "give it a name in virt-p2v's window"},
		"a path":        {func(s *virtp2v.Server) { s.Name = "../gpu7" }, "give it a name in virt-p2v's window"},
		"odd":           {func(s *virtp2v.Server) { s.Name = "gpu 7\x1b[2J" }, "give it a name in virt-p2v's window"},
		"long":          {func(s *virtp2v.Server) { s.Name = strings.Repeat("x", 5000) }, "give it a name in virt-p2v's window"},
		"another disk":  {func(s *virtp2v.Server) { s.Name = "gpu7"; s.Disks[0].Name = "sdx" }, "there is an assessment gpu7 of another server (that one has no disk sdx)"},
		"another size":  {func(s *virtp2v.Server) { s.Name = "gpu7"; s.Disks[0].Size++ }, "has 4194304 bytes, and of this one 4194305"},
		"another NIC":   {func(s *virtp2v.Server) { s.Report.NICs = []report.NIC{{MAC: "02:00:00:00:00:08"}} }, "another server is here as new1"},
		"no NIC":        {func(s *virtp2v.Server) { s.Report.NICs = nil }, "another server is here as new1"},
		"another place": {func(s *virtp2v.Server) { s.From = netip.MustParseAddr("192.0.2.8") }, "another server is here as new1"},
	} {
		s := first
		s.Disks = append([]virtp2v.Disk{}, first.Disks...)
		tc.change(&s)
		if err := y.comes(s).ended(t); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if all, err := y.assessments.Assessments(); err != nil || len(all) != 2 {
		t.Errorf("%+v, %v", all, err)
	}
	if strings.Contains(c.text(), "once more") {
		t.Errorf("%s", c.text())
	}
}

// answers tells whether the machine answers that has come.
type answers struct {
	mu  sync.Mutex
	not bool
	at  []netip.Addr // which were asked
}

func (a *answers) is(_ context.Context, at netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at = append(a.at, at)
	return !a.not
}

func (a *answers) set(is bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.not = !is
}

func (a *answers) asked() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.at)
}

// told waits until one that came has heard that it is done.
func (y *yard) told(c *coming) {
	y.t.Helper()
	if err := c.ended(y.t); err != nil || !strings.Contains(c.text(), "Power this server off: then its VM starts") {
		y.t.Errorf("%v\n%s", err, c.text())
	}
}

// copied is a server that came, and can be cut over.
func (y *yard) copied() *coming {
	y.t.Helper()
	y.carried()
	s := y.virtp2v("gpu7")
	c := y.comes(s)
	w := y.wish()
	w.DisksFrom = fromVirtP2V(s)
	if _, err := y.Create(y.t.Context(), "tester", w, gpu.Idempotency{}); err != nil {
		y.t.Fatal(err)
	}
	y.until("ready", phase(move.PhaseReady))
	return c
}

// leaving is one that is cut over until it has heard that it is done.
func (y *yard) leaving() *coming {
	y.t.Helper()
	c := y.copied()
	y.cutOff()
	y.told(c)
	return c
}

func (y *yard) cutOff() {
	y.t.Helper()
	if _, err := y.CutOver(y.t.Context(), "gpu7", "tester", move.CutWish{SourceOff: true, Unrehearsed: "a test"}); err != nil {
		y.t.Fatal(err)
	}
}

// waits waits until a migration says what it waits for, and its VM does not run.
func (y *yard) waits(p move.Phase, reason string) {
	y.t.Helper()
	v := y.until(reason, func(v move.Migration) bool { return v.Phase == p && strings.Contains(v.Reason, reason) })
	if y.started() != 0 {
		y.t.Errorf("its VM was started: %+v", v)
	}
}

func (y *yard) started() (n int) {
	y.vms.set(func(v *vms) { n = v.started })
	return n
}

// The VM of a server that came starts when that is off: while virt-p2v is connected, and while its
// system answers, the migration says what it waits for.
func TestArrivalLeaves(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	c := y.leaving()
	y.waits(move.PhaseCuttingOver, "Power the server off: its virt-p2v is still connected")
	for _, act := range []func() (move.Migration, error){
		func() (move.Migration, error) { return y.Fenced("gpu7", "boss") },
		func() (move.Migration, error) { return y.Withdraw("gpu7", "boss") },
	} {
		if _, err := act(); gpu.CodeOf(err) != gpu.CodeConflict {
			t.Errorf("got %v", err)
		}
	}
	c.connected.Store(false)
	y.waits(move.PhaseCuttingOver, "Power the server off: it still answers at 192.0.2.7")
	asked := y.answers.asked()
	y.await("it is asked again", func() bool { return y.answers.asked() > asked+2 })
	if n := y.started(); n != 0 {
		t.Errorf("started %d times", n)
	}
	c.connected.Store(true) // silent is not enough
	y.answers.set(false)
	y.waits(move.PhaseCuttingOver, "its virt-p2v is still connected")
	c.connected.Store(false)
	v := y.until("done", phase(move.PhaseDone))
	if a := v.Last(move.Cutover); y.started() != 1 || v.Fence != move.FenceOff || a.State != move.Passed || a.Ended.IsZero() || v.CameFrom != c.server.From {
		t.Errorf("started %d times: %+v, %+v", y.started(), v.Record, a)
	}
}

// One that is not powered off in time is a person's to look at.
func TestArrivalStays(t *testing.T) {
	for _, act := range []string{"fenced", "retried", "rolled back", "comes again"} {
		t.Run(act, func(t *testing.T) {
			y := newYard(t, newMachine(t, 4*mib))
			y.stop()
			y.patience.Leave = 20 * time.Millisecond
			y.start()
			c := y.leaving()
			y.waits(move.PhaseWaiting, "it is not known whether the source is off: its virt-p2v is still connected. Make sure that it is")
			c.connected.Store(false)
			switch act {
			case "fenced": // a person's word counts, whoever answers there
				y.later(time.Hour)
				if _, err := y.Fenced("gpu7", "boss"); err != nil {
					t.Fatal(err)
				}
				v := y.until("done", phase(move.PhaseDone))
				if a := v.Last(move.Cutover); a.Phase != "the source is off, as boss says" || y.started() != 1 {
					t.Errorf("started %d times: %+v", y.started(), a)
				}
			case "retried": // it has gone unseen
				if _, err := y.Retry("gpu7"); err != nil {
					t.Fatal(err)
				}
				y.waits(move.PhaseWaiting, "it is not known whether the source is off: it still answers at 192.0.2.7.")
				y.answers.set(false)
				if _, err := y.Retry("gpu7"); err != nil {
					t.Fatal(err)
				}
				y.waits(move.PhaseWaiting, "it is not known whether the source is off: it was not seen to go.")
			case "rolled back":
				if _, err := y.Rollback("gpu7"); err != nil {
					t.Fatal(err)
				}
				if v := y.until("rolled back", phase(move.PhaseRolledBack)); v.Reason != "the source is off: start it again" {
					t.Errorf("%q", v.Reason)
				}
				y.gone4good()
			case "comes again": // and is copied on
				again := y.comes(y.virtp2v("gpu7"))
				y.await("it is told", func() bool {
					return strings.Contains(again.text(), "does not start its VM while it is here; it is not known")
				})
				y.machine.write(0, 3*mib+7, "its system ran in between")
				if _, err := y.Retry("gpu7"); err != nil {
					t.Fatal(err)
				}
				if a := y.over(1); a.State != move.Failed || !strings.Contains(a.Problem, "its virt-p2v is still connected") {
					t.Errorf("%+v", a)
				}
				y.until("ready", phase(move.PhaseReady))
				y.same()
				if n := len(y.overlays()); n != 0 {
					t.Errorf("%d disks of the VM are left", n)
				}
				y.stop()
				y.patience.Leave = time.Minute
				before := y.until("ready", phase(move.PhaseReady)).Disks[0].Total
				y.start()
				third := y.comes(y.virtp2v("gpu7"))
				y.until("ready once more", func(v move.Migration) bool { return v.Disks[0].Total > before && v.Phase == move.PhaseReady })
				y.cutOff()
				y.told(third)
				third.connected.Store(false)
				y.answers.set(false)
				y.until("done", phase(move.PhaseDone))
				y.same()
			}
		})
	}
}

// One that comes once more before its VM has started is not met by it.
func TestArrivalReturns(t *testing.T) {
	t.Run("before it is off", func(t *testing.T) {
		y := newYard(t, newMachine(t, 4*mib))
		c := y.leaving()
		y.waits(move.PhaseCuttingOver, "its virt-p2v is still connected")
		again := y.comes(y.virtp2v("gpu7"))
		y.waits(move.PhaseWaiting, "it is not known whether the source is off: it has come once more.")
		c.connected.Store(false)
		y.answers.set(false)
		y.await("it is told", func() bool { return strings.Contains(again.text(), "does not start its VM while it is here") })
		// What somebody says is seen not to be so.
		if _, err := y.Fenced("gpu7", "boss"); err != nil {
			t.Fatal(err)
		}
		y.waits(move.PhaseWaiting, "the source answers again")
		again.cut()
		_ = again.ended(t)
		if _, err := y.Retry("gpu7"); err != nil {
			t.Fatal(err)
		}
		y.until("done", phase(move.PhaseDone))
	})
	t.Run("when it was off", func(t *testing.T) {
		y := newYard(t, newMachine(t, 4*mib))
		c := y.leaving()
		y.vms.fail("start", gpu.Errorf(gpu.CodeUnavailable, "libvirt is away"))
		c.connected.Store(false)
		y.answers.set(false)
		y.until("off", func(v move.Migration) bool { return v.Fence == move.FenceOff })
		again := y.comes(y.virtp2v("gpu7"))
		y.waits(move.PhaseWaiting, "the source answers again")
		y.vms.fail("start", nil)
		again.cut()
		_ = again.ended(t)
		y.later(time.Hour)
		y.answers.set(true) // its own system, at the same address
		asked := y.answers.asked()
		if _, err := y.Retry("gpu7"); err != nil {
			t.Fatal(err)
		}
		y.await("it is asked", func() bool { return y.answers.asked() > asked })
		y.waits(move.PhaseWaiting, "the source answers again")
		y.answers.set(false)
		if _, err := y.Retry("gpu7"); err != nil {
			t.Fatal(err)
		}
		y.until("done", phase(move.PhaseDone))
		// Its VM runs: it is told to go.
		last := y.comes(y.virtp2v("gpu7"))
		if err := last.ended(t); err != nil || !strings.Contains(last.text(), "the VM of migration gpu7 runs") {
			t.Errorf("%v\n%s", err, last.text())
		}
	})
	t.Run("while its disks are made", func(t *testing.T) {
		y := newYard(t, newMachine(t, 4*mib))
		c := y.copied()
		y.makers.set(func(what string, _ convert.Job) {
			if what == "convert" {
				c.cut()
				_ = c.ended(t)
				again := y.comes(y.virtp2v("gpu7"))
				y.await("it is here", func() bool { return again.text() != "" })
			}
		})
		y.cutOff()
		if a := y.over(1); a.State != move.Failed || !strings.Contains(a.Problem, "or the server that exports it was away") {
			t.Errorf("%+v", a)
		}
		if v := y.until("ready", phase(move.PhaseReady)); v.Fence != move.FenceNone || y.started() != 0 || len(y.overlays()) != 0 {
			t.Errorf("%+v, started %d times, %q", v.Record, y.started(), y.overlays())
		}
	})
}

// One that was cut off before it was told that it is done cannot have powered itself off.
func TestArrivalCutLate(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	c := y.copied()
	y.answers.set(false)
	var once sync.Once
	y.writing = func(rows []operation.Row) {
		if bytes.Contains(rows[0].Value, []byte(`"fence":"asked"`)) {
			once.Do(func() { c.connected.Store(false); c.cut(); _ = c.ended(t) })
		}
	}
	y.cutOff()
	y.waits(move.PhaseWaiting, "it is not known whether the source is off: its connection has ended before it was told that it is done. Make sure")
	if _, err := y.Fenced("gpu7", "boss"); err != nil {
		t.Fatal(err)
	}
	y.until("done", phase(move.PhaseDone))
}

// One whose move is taken back before it was told that it is done is not told that, and stays.
func TestArrivalTakenBack(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	c := y.copied()
	y.vms.fail("undefine", gpu.Errorf(gpu.CodeUnavailable, "libvirt is away"))
	// From the moment in which it is to go until that is taken back nobody looks what becomes of it.
	var goes, stays sync.Once
	y.writing = func(rows []operation.Row) {
		if bytes.Contains(rows[0].Value, []byte(`"fence":"asked"`)) {
			goes.Do(y.listing.Lock)
		}
		if bytes.Contains(rows[0].Value, []byte("Power the server off")) {
			stays.Do(func() {
				if _, err := y.Rollback("gpu7"); err != nil {
					t.Error(err)
				}
				y.listing.Unlock()
			})
		}
	}
	y.cutOff()
	y.until("rolling back", func(v move.Migration) bool { return v.Phase == move.PhaseRollingBack && v.Fence == move.FenceAsked })
	y.await("it is told, or sees it", func() bool { return len(c.over) > 0 || strings.Contains(c.text(), "is rolling-back") })
	y.vms.fail("undefine", nil)
	y.until("rolled back", phase(move.PhaseRolledBack))
	y.await("it waits", func() bool { return strings.HasSuffix(strings.TrimSpace(c.text()), waitsForAll) })
	select {
	case err := <-c.over:
		t.Errorf("it is over: %v\n%s", err, c.text())
	default:
	}
	if y.started() != 0 {
		t.Error("its VM was started")
	}
}

const waitsForAll = "waiting until somebody begins to move it"

// A daemon that ends while a server is to be powered off did not see it go, and neither does the next
// one: a person says so. Nobody waits for the daemon's end.
func TestArrivalLeavesUnseen(t *testing.T) {
	for _, how := range []string{"drained", "killed"} {
		t.Run(how, func(t *testing.T) {
			y := newYard(t, newMachine(t, 4*mib))
			y.leaving()
			y.waits(move.PhaseCuttingOver, "its virt-p2v is still connected")
			if how == "drained" {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				y.engine.Drain(ctx)
				if ctx.Err() != nil {
					t.Error("the daemon's end was held up")
				}
			}
			y.stop()
			y.answers.set(false)
			y.start()
			y.waits(move.PhaseWaiting, "it is not known whether the source is off: it was not seen to go. Make sure")
			if _, err := y.Fenced("gpu7", "boss"); err != nil {
				t.Fatal(err)
			}
			v := y.until("done", phase(move.PhaseDone))
			if a := v.Last(move.Cutover); a.State != move.Passed || a.Phase != "the source is off, as boss says" {
				t.Errorf("%+v", a)
			}
		})
	}
}

// A writtenStore tells before something of a migration is written.
type writtenStore struct {
	mortalStore
	y *yard
}

func (s writtenStore) Apply(rows ...operation.Row) error {
	if s.y.writing != nil {
		s.y.writing(rows)
	}
	return s.mortalStore.Apply(rows...)
}

func (s writtenStore) MigrationRecords() ([]move.Record, error) {
	s.y.listing.RLock()
	defer s.y.listing.RUnlock()
	return s.mortalStore.MigrationRecords()
}

// A lookedStore tells when an assessment is read, and when it has looked what rests on it.
type lookedStore struct {
	mortalStore
	y *yard
}

func (s lookedStore) AssessmentRecord(name string) (report.AssessmentRecord, error) {
	if f := s.y.asked.Load(); f != nil {
		(*f)()
	}
	return s.mortalStore.AssessmentRecord(name)
}

func (s lookedStore) MigrationRecords() ([]move.Record, error) {
	out, err := s.mortalStore.MigrationRecords()
	if s.y.looked != nil {
		s.y.looked()
	}
	return out, err
}

// An assessment that somebody deletes while a migration of it is begun: one of the two is refused.
func TestAssessmentDeletedMeanwhile(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	from := y.fromImages()
	w := y.wish()
	w.DisksFrom = from
	rec, err := y.assessments.Assessment("gpu7")
	if err != nil {
		t.Fatal(err)
	}
	y.carried()
	begin := func() error {
		_, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{})
		return err
	}
	y.onDial = func() { // the plan is made
		y.onDial = nil
		if _, err := y.assessments.Delete("gpu7"); err != nil {
			t.Error(err)
		}
	}
	if err := begin(); gpu.CodeOf(err) != gpu.CodeNotFound {
		t.Errorf("it rests on nothing: %v", err)
	}
	// There is another one of this name since.
	again := func() {
		rec.Created = rec.Created.Add(time.Second)
		if err := y.store.Apply(operation.Put(report.RecordAssessment, "gpu7", rec)); err != nil {
			t.Fatal(err)
		}
	}
	again()
	y.onDial = func() { y.onDial = nil; again() }
	if err := begin(); gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), "is another now") {
		t.Errorf("got %v", err)
	}
	if all, err := y.Migrations.Migrations(); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	// Nothing rests on it, when who deletes it looks.
	begun := make(chan error, 1)
	y.looked = func() {
		y.looked = nil
		go func() { begun <- begin() }()
		select {
		case err := <-begun:
			begun <- err
		case <-time.After(100 * time.Millisecond): // it waits, as it has to
		}
	}
	_, deleted := y.assessments.Delete("gpu7")
	if err := <-begun; (err == nil) == (deleted == nil) {
		t.Errorf("begun: %v, deleted: %v", err, deleted)
	}
}

// A server that is moved once more is not taken for one that was: its first move has ended, and is still
// listed.
func TestArrivalAgain(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.carried()
	s := y.virtp2v("gpu7")
	before := move.Record{Name: "before", Assessment: "gpu7", DisksFrom: fromVirtP2V(s), Fence: move.FenceOff, Ended: move.PhaseDone}
	if err := y.store.Apply(operation.Put(move.RecordMigration, before.Name, before)); err != nil {
		t.Fatal(err)
	}
	w := y.wish()
	w.DisksFrom = fromVirtP2V(s)
	if _, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{}); err != nil {
		t.Fatal(err)
	}
	c := y.comes(s)
	y.until("ready", phase(move.PhaseReady))
	y.await("it is told", func() bool { return strings.Contains(c.text(), "migration gpu7 is ready") })
	if text := c.text(); strings.Contains(text, "Power this server off") {
		t.Errorf("%s", text)
	}
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	if err := c.ended(t); err != nil || !strings.Contains(c.text(), "the VM of migration before runs") {
		t.Errorf("%v\n%s", err, c.text())
	}
}

// Of a server that comes under the name of another not a byte is read before it is known to be that one.
func TestArrivalIsReadLater(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.carried()
	s := y.virtp2v("gpu7")
	s.Disks[0].Size++
	w := y.wish()
	w.DisksFrom = fromVirtP2V(s)
	if _, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{}); err != nil {
		t.Fatal(err)
	}
	y.until("waiting for it", func(v move.Migration) bool { return y.logged(v, "is not here") })
	asked, carry := make(chan struct{}), make(chan struct{})
	asks := sync.OnceFunc(func() { close(asked); <-carry })
	y.asked.Store(&asks)
	over := make(chan error, 1)
	go func() { over <- y.Arrive(t.Context(), s, io.Discard) }()
	<-asked
	<-time.After(300 * time.Millisecond)
	close(carry)
	if err := <-over; err == nil || !strings.Contains(err.Error(), "of another server") {
		t.Errorf("got %v", err)
	}
	if v := y.until("", func(move.Migration) bool { return true }); v.Disks[0].Total != 0 || !v.Heard.IsZero() {
		t.Errorf("it was read: %+v", v.Disks)
	}
}

// Nor before it was looked what is to be told to it: it would take its own cut-over for one from before it came.
func TestArrivalIsToldOfItsOwn(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.carried()
	s := y.virtp2v("gpu7")
	w := y.wish()
	w.DisksFrom = fromVirtP2V(s)
	if _, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{}); err != nil {
		t.Fatal(err)
	}
	y.until("waiting for it", func(v move.Migration) bool { return y.logged(v, "is not here") })
	y.listing.Lock()
	c := y.comes(s)
	<-time.After(300 * time.Millisecond)
	v := y.until("", func(move.Migration) bool { return true })
	y.listing.Unlock()
	if v.Disks[0].Total != 0 || !v.Heard.IsZero() {
		t.Errorf("it was read: %+v", v.Disks)
	}
	y.until("ready", phase(move.PhaseReady))
	y.cutOff()
	y.told(c)
}
