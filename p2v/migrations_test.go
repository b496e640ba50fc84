package p2v_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/block"
	"gpuvirt/p2v/guest"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/nbd"
	"gpuvirt/p2v/report"
	"gpuvirt/p2v/track"
	"gpuvirt/store"
)

const mib = 1 << 20

// A machine of the test: a server with disks that are files, which it really serves.
type machine struct {
	t     *testing.T
	disks []block.Disk
	*server

	blind   error  // why it does not track
	forgot  error  // why it does not know what was written
	says    string // of its disks; empty: which they are
	works   int    // services that it says it has
	rest    *rester
	marks   sync.Mutex
	written map[string][]block.Range // in ascending order, as the test writes
	up      *up                      // since it was started last
	since   time.Duration            // how long ago that is when it answers again
	gate    atomic.Pointer[gate]     // of what is sent of the disks; nil: there is none

	serving sync.WaitGroup
	end     context.CancelFunc
	ctx     context.Context
}

// An up is from one start of a machine to the next.
type up struct {
	ctx  context.Context // ends when it goes down
	down context.CancelFunc
	boot string
	time time.Duration // since it was started, as it says
	// rest is what brings it to rest, which thaws when it ends.
	rest sync.WaitGroup
	// left are the bytes that come until its disks do not answer any more, which closes stalled; where there is
	// a then, that is called, and they answer on.
	left    atomic.Int64
	stalled chan struct{}
	then    atomic.Pointer[func()]
	once    sync.Once
}

func newMachine(t *testing.T, sizes ...int) *machine {
	m := &machine{t: t, server: &server{placed: map[string]bool{}}, written: map[string][]block.Range{}, rest: &rester{}, since: time.Minute}
	m.ctx, m.end = context.WithCancel(context.Background())
	m.start(boot, 24*time.Hour)
	for i, size := range sizes {
		name := "nvme" + string(rune('0'+i)) + "n1"
		path := filepath.Join(t.TempDir(), name)
		data := make([]byte, size)
		random := rand.NewChaCha8([32]byte{byte(i)})
		_, _ = random.Read(data[:size/2]) // the other half is zeros
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		m.disks = append(m.disks, block.Disk{Name: name, Path: path, ID: "wwn:" + name})
	}
	if err := m.rest.plant(t.TempDir(), m.disks); err != nil {
		t.Fatal(err)
	}
	m.rest.gone, m.rest.end = m.gone, m.ctx.Done()
	t.Cleanup(func() { m.end(); m.serving.Wait() })
	m.there()
	return m
}

// start begins an up.
func (m *machine) start(boot string, since time.Duration) {
	u := &up{boot: boot, time: since, stalled: make(chan struct{})}
	u.left.Store(1 << 60)
	u.ctx, u.down = context.WithCancel(m.ctx)
	m.marks.Lock()
	defer m.marks.Unlock()
	m.up, m.written = u, map[string][]block.Range{}
}

// reboot starts the machine again: all connections to it end, and what was frozen is not any more. What
// is changed meanwhile no tracker tells of.
func (m *machine) reboot(change func()) {
	m.t.Helper()
	m.gone()
	m.up.down()
	m.up.rest.Wait()
	if frozen, off := m.rest.is(); frozen || off {
		m.t.Errorf("it is started again, and frozen: %v, off: %v", frozen, off)
	}
	change()
	id := uuid.NewString()
	if err := os.WriteFile(filepath.Join(m.rest.tree, "proc/sys/kernel/random/boot_id"), []byte(id+"\n"), 0o600); err != nil {
		m.t.Fatal(err)
	}
	m.start(id, m.since)
	m.there()
}

// swap gives two disks the names of one another.
func (m *machine) swap(a, b int) {
	m.marks.Lock()
	defer m.marks.Unlock()
	m.disks = slices.Clone(m.disks)
	m.disks[a].Name, m.disks[b].Name = m.disks[b].Name, m.disks[a].Name
}

// now are its disks as they are named now, each with what it says of itself, and since when.
func (m *machine) now() ([]block.Disk, *up) {
	m.marks.Lock()
	defer m.marks.Unlock()
	disks := slices.Clone(m.disks)
	for i, d := range disks {
		if d.ID == "" {
			disks[i].ID = report.Disk{Name: d.Name, SizeBytes: m.size(d)}.Identity()
		}
	}
	return disks, m.up
}

func (m *machine) size(d block.Disk) uint64 {
	info, err := os.Stat(d.Path)
	if err != nil {
		m.t.Error(err)
		return 0
	}
	return uint64(info.Size())
}

// there has the machine answer from now on.
func (m *machine) there() {
	_, u := m.now()
	m.server.mu.Lock()
	defer m.server.mu.Unlock()
	m.visits = []visit{{serve: func(ctx context.Context, args []string) (io.ReadWriteCloser, error) {
		if u.ctx.Err() != nil {
			return nil, away
		}
		return m.serveDisks(ctx, args)
	}}}
}

func (m *machine) gone() {
	m.server.mu.Lock()
	defer m.server.mu.Unlock()
	m.visits = []visit{{dial: away}}
}

// named are the disks that a program is called for.
func named(args []string) []string {
	var names []string
	for i, word := range args[1:] {
		if args[i] == "--disk" {
			names = append(names, word)
		}
	}
	return names
}

func (m *machine) serveDisks(_ context.Context, args []string) (io.ReadWriteCloser, error) {
	disks, u := m.now()
	names := named(args)
	if slices.Contains(args, "freeze") {
		return m.serveRest(u, names), nil
	}
	near, far := net.Pipe()
	m.serving.Go(func() {
		<-u.ctx.Done()
		_ = far.Close()
	})
	if slices.Contains(args, "disks") {
		p := report.Present{Version: report.Version, BootID: u.boot, Up: uint64(u.time.Seconds())}
		for _, d := range disks {
			p.Disks = append(p.Disks, report.Here{Name: d.Name, ID: d.ID, SizeBytes: m.size(d)})
		}
		m.serving.Go(func() {
			if m.says != "" {
				_, _ = io.WriteString(far, m.says)
			} else {
				_ = p.Write(far)
			}
			_ = far.Close()
		})
		return near, nil
	}
	served := slices.DeleteFunc(slices.Clone(disks), func(d block.Disk) bool { return !slices.Contains(names, d.Name) })
	switch {
	case len(served) != len(names):
		return near, far.Close() // it ends at once
	case slices.Contains(args, "track"):
		m.serving.Go(func() {
			_ = track.Serve(far, m, block.DefaultChunkSize, m.blind)
			_ = far.Close()
		})
		return near, nil
	}
	m.serving.Go(func() { _ = block.Serve(u.ctx, far, served, slog.New(slog.DiscardHandler)) })
	return held{&stalling{ReadWriteCloser: near, up: u, closed: make(chan struct{})}, &m.gate}, nil
}

// A stalling connection brings as much as its machine has left.
type stalling struct {
	io.ReadWriteCloser
	up     *up
	once   sync.Once
	closed chan struct{}
}

func (s *stalling) Close() error {
	s.once.Do(func() { close(s.closed) })
	return s.ReadWriteCloser.Close()
}

func (s *stalling) Read(b []byte) (int, error) {
	n, err := s.ReadWriteCloser.Read(b)
	if s.up.left.Add(-int64(n)) > 0 {
		return n, err
	}
	if then := s.up.then.Load(); then != nil {
		s.up.once.Do(*then)
		return n, err
	}
	s.up.once.Do(func() { close(s.up.stalled) })
	select {
	case <-s.up.ctx.Done():
	case <-s.closed:
	}
	return 0, io.ErrUnexpectedEOF
}

// Take is that of a tracker of what the test writes.
func (m *machine) Take(disk string) ([]block.Range, error) {
	m.marks.Lock()
	defer m.marks.Unlock()
	out := m.written[disk]
	delete(m.written, disk)
	return out, m.forgot
}

func (m *machine) write(disk int, at int64, data string) {
	m.t.Helper()
	f, err := os.OpenFile(m.disks[disk].Path, os.O_WRONLY, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // of the test
	if _, err := f.WriteAt([]byte(data), at); err != nil {
		m.t.Fatal(err)
	}
	m.marks.Lock()
	defer m.marks.Unlock()
	name := m.disks[disk].Name
	m.written[name] = append(m.written[name], block.Range{From: at / mib, N: (at+int64(len(data))-1)/mib - at/mib + 1})
}

// report is what the inspector says of it: no GPU, nothing in the way.
func (m *machine) report() *report.Report {
	r := report.Report{
		Version: report.Version, Privileged: true, Hostname: "gpu7", Firmware: report.Firmware{Type: "bios"},
		OS:     report.OS{ID: "debian", VersionID: "12", Arch: "x86_64", Kernel: "6.1.0-28-amd64", Kernels: []string{"6.1.0-28-amd64"}, MachineID: "4c1f0a7d5e0b4a3fa2d9c1b7e6f50312"},
		CPU:    report.CPU{Vendor: "GenuineIntel", Sockets: 1, Cores: 2, Threads: 2},
		Memory: report.Memory{TotalBytes: 2 << 30, AvailableBytes: 1 << 30},
		Boot:   report.Boot{Loader: "grub", Initramfs: "initramfs-tools", Modules: "most"},
		Filesystems: []report.Filesystem{{
			Source: "nvme0n1p1", Type: "ext4", Mount: "/", UUID: "x", SizeBytes: 4 << 30, UsedBytes: 1 << 30, Inodes: 100000, FreeInodes: 50000,
		}},
	}
	for i, d := range m.disks {
		r.Disks = append(r.Disks, report.Disk{
			Name: d.Name, WWN: strings.TrimPrefix(d.ID, "wwn:"), SizeBytes: m.size(d), BlockBytes: 512, Transport: "nvme", Table: "gpt", Boots: i == 0,
			Partitions: []report.Partition{{Name: d.Name + "p1", Number: 1, StartBytes: mib, SizeBytes: m.size(d) - mib, Content: "ext4"}},
		})
	}
	for i := range m.works {
		r.Services = append(r.Services, report.Service{Unit: fmt.Sprintf("work%d.service", i), State: "active", Role: "workload"})
	}
	r.Clean()
	return &r
}

type host struct{ *holders }

func (h host) GPUs(context.Context) ([]gpu.GPU, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.gpus), nil
}

// Profiles are those that there are, of which each that is held takes one.
func (h host) Profiles(context.Context, gpu.ID) ([]gpu.Profile, error, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := slices.Clone(h.profiles)
	for i := range out {
		out[i].Available = max(0, out[i].Available-len(h.held))
	}
	return out, nil, nil
}

// A yard is a daemon with a machine to move.
type yard struct {
	t       *testing.T
	machine *machine
	store   *store.Store
	life    *life // of the daemon
	storage string
	engine  *operation.Engine
	*p2v.Migrations
	assessments *p2v.Assessments
	patience    p2v.Patience
	budget      float64 // for the downtime, seconds; 0: none is given
	vms         *vms
	makers      *makers
	holders     *holders
	clock       atomic.Int64 // how far the daemon's clock is ahead, ns
	events      events
	lease       time.Duration // where nobody says
	leasing     sync.WaitGroup
	credentials map[string]string
	guest       guest.Options // what an operator brings
	images      []string      // folders
	rescue      nbd.Options
	policy      assess.Policy          // of plans and assessments
	tools       assess.HostTools       // of the host
	drivers     assess.Drivers         // that are known
	answers     answers                // at the address of who came
	onDial      func()                 // called when the disks of one that is off were opened
	writing     func([]operation.Row)  // called before something of a migration is written
	listing     sync.RWMutex           // while it is held nobody is told of all migrations
	asked       atomic.Pointer[func()] // called when an assessment is read
	looked      func()                 // called when an assessment has looked what rests on it
}

func newYard(t *testing.T, m *machine) *yard {
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "db"), store.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	y := &yard{
		t: t, machine: m, store: db, storage: filepath.Join(t.TempDir(), "migrations"),
		drivers: assess.BuiltInDrivers(), vms: newVMs(), makers: &makers{}, holders: &holders{held: map[string]gpu.Assignment{}, begun: map[string]string{}, making: map[string]string{}},
	}
	there := assess.Found(nil)
	y.tools = assess.HostTools{Converter: there, UEFI: there, SecureBoot: there, TPM: there}
	y.patience = p2v.Patience{Pause: 10 * time.Millisecond, First: time.Minute, Later: time.Minute, Sync: time.Minute, Cut: 30 * time.Second, Boot: time.Second, Settle: time.Second, Off: time.Second, Leave: time.Minute, Lease: 5 * time.Millisecond}
	rec := report.AssessmentRecord{Name: "gpu7", Source: ssh(), State: report.StateDone, Report: m.report()}
	if err := db.Apply(operation.Put(report.RecordAssessment, "gpu7", rec)); err != nil {
		t.Fatal(err)
	}
	y.start()
	t.Cleanup(func() { y.stop() })
	return y
}

// stop ends the daemon.
func (y *yard) stop() {
	y.engine.Stop()
	y.life.end()
	y.leasing.Wait()
}

func (y *yard) now() time.Time { return time.Now().Add(time.Duration(y.clock.Load())) }

// later puts the daemon's clock ahead.
func (y *yard) later(d time.Duration) { y.clock.Add(int64(d)) }

// events are what everybody was told.
type events struct {
	mu  sync.Mutex
	all []string
	why []string // the reasons among them
}

func (e *events) tell(typ, object string, detail map[string]string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if detail["reason"] != "" {
		e.why = append(e.why, detail["reason"])
	}
	e.all = append(e.all, strings.Join([]string{typ, object, detail["state"] + detail["phase"], detail["attempt"], detail["attempt_state"]}, " "))
}

func (e *events) reasons() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.why)
}

// told are those that begin as given, without that.
func (e *events) told(begin string) (out []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, text := range e.all {
		if rest, is := strings.CutPrefix(text, begin); is {
			out = append(out, strings.TrimSpace(rest))
		}
	}
	return out
}

func (y *yard) start() {
	y.life = newLife(y.t)
	db := mortalStore{y.store, y.life}
	var migrations *p2v.Migrations
	changed := func(op operation.Operation) { migrations.OperationChanged(op) }
	y.engine = operation.New(operation.Config{Store: db, Log: slog.New(slog.DiscardHandler), Problem: problem, Now: time.Now, Changed: changed})
	cfg := p2v.Config{
		Store: db, Engine: y.engine, Log: slog.New(slog.DiscardHandler), Now: y.now, Dial: y.life.dials(y.machine.dial),
		Open:       func() (p2v.Inspector, error) { return program{strings.NewReader("#!")}, nil },
		DialAtRest: y.dialAtRest, Arrivals: p2v.NewArrivals(), Answers: y.answers.is,
		Host: host{y.holders}, Facts: func() assess.HostState {
			return assess.HostState{MemoryBytes: 64 << 30, DiskBytes: 1 << 40, Threads: 16, Tools: y.tools}
		},
		Storage: y.storage, Patience: y.patience, VMs: mortalVMs{y.vms, y.life}, Converter: y.makers, Assignments: y.holders, NewUUID: uuid.NewString,
		Mark:  func(doc, mark string) (string, error) { return doc + "<!--" + mark + "-->", nil },
		Lease: func() time.Duration { return y.lease }, Tell: y.events.tell,
		Guest:  func(report.OS, assess.Wish) (guest.Options, error) { return y.guest, nil },
		Policy: func() assess.Policy { return y.policy }, Drivers: func() assess.Drivers { return y.drivers },
		Secret: func(name string) ([]byte, error) {
			if text, there := y.credentials[name]; there {
				return []byte(text), nil
			}
			return nil, os.ErrNotExist
		},
	}
	looks := cfg
	looks.Store = lookedStore{db, y}
	y.assessments = p2v.New(looks)
	cfg.Store = writtenStore{db, y}
	migrations = p2v.NewMigrations(cfg, y.assessments)
	y.Migrations = migrations
	y.holders.handle(y.engine)
	if err := y.engine.Start(context.WithoutCancel(y.t.Context())); err != nil {
		y.t.Fatal(err)
	}
	life := y.life
	y.leasing.Go(func() { migrations.Run(life.ctx) })
}

// waivers are for what is not known of the test's machine and does not matter here.
func (y *yard) wish() move.Wish { return y.wishWith() }

func (y *yard) wishWith(keys ...move.Key) move.Wish {
	w := move.Wish{Keys: keys, Name: "gpu7", Assessment: "gpu7", Copy: move.Copy{Connections: 2}, Plan: assess.Wish{DowntimeSeconds: y.budget}}
	if y.budget > 0 {
		w.Plan.Waivers = waived("downtime")
	}
	plan, err := y.Plan(y.t.Context(), w)
	if err != nil {
		y.t.Fatal(err)
	}
	for _, c := range plan.Verdict.Blockers {
		y.t.Errorf("the test's machine is blocked: %s: %s", c.ID, c.Title)
	}
	return w
}

func (y *yard) begin() move.Migration {
	y.t.Helper()
	if _, err := y.Create(y.t.Context(), "tester", y.wish(), gpu.Idempotency{}); err != nil {
		y.t.Fatal(err)
	}
	v, err := y.Migration("gpu7")
	if err != nil {
		y.t.Fatal(err)
	}
	return v
}

// until waits until a migration is as wanted.
func (y *yard) until(what string, is func(move.Migration) bool) move.Migration {
	y.t.Helper()
	limit, tick := time.After(30*time.Second), time.NewTicker(2*time.Millisecond)
	defer tick.Stop()
	for {
		v, err := y.Migration("gpu7")
		if err != nil {
			y.t.Fatal(err)
		}
		if is(v) {
			return v
		}
		select {
		case <-tick.C:
		case <-limit:
			op, _ := y.engine.Get(v.Operation)
			for _, s := range op.Steps {
				for _, l := range s.Log {
					y.t.Logf("%s: %s", s.Kind, l.Text)
				}
			}
			y.t.Fatalf("it never is %s: %s %q\n%+v", what, v.Phase, v.Reason, v.Record)
		}
	}
}

func passes(n int) func(move.Migration) bool {
	return func(v move.Migration) bool {
		return v.Forecast != nil && !slices.ContainsFunc(v.Disks, func(d move.Disk) bool {
			return len(slices.DeleteFunc(slices.Clone(d.Passes), func(p move.Pass) bool { return !p.Complete })) < n
		})
	}
}

func phase(p move.Phase) func(move.Migration) bool {
	return func(v move.Migration) bool { return v.Phase == p }
}

// same checks that the mirrors are as the disks are.
func (y *yard) same() {
	y.t.Helper()
	for _, d := range y.machine.disks {
		name := filepath.Base(d.Path) // as it was called when it was assessed
		want, err1 := os.ReadFile(d.Path)
		got, err2 := os.ReadFile(filepath.Join(y.storage, "gpu7", name+".raw"))
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(want, got) {
			y.t.Errorf("%s: the mirror is not as the disk is (%v)", name, err)
		}
	}
}

// clean checks that nothing of a move is left, here and there.
func (y *yard) clean() {
	y.t.Helper()
	if left, err := os.ReadDir(y.storage); err != nil || len(left) != 0 {
		y.t.Errorf("left: %v %v", left, err)
	}
	y.machine.server.mu.Lock()
	defer y.machine.server.mu.Unlock()
	if len(y.machine.placed) != 0 || y.machine.open != 0 {
		y.t.Errorf("left there: %v, open connections: %d", y.machine.placed, y.machine.open)
	}
}

// The disks are copied while the server runs, what changes comes again, and a roll back
// leaves nothing.
func TestMigrationSyncs(t *testing.T) {
	y := newYard(t, newMachine(t, 8*mib, 4*mib))
	v := y.begin()
	on := []move.Phase{move.PhasePlanned, move.PhaseReserved, move.PhaseSyncing, move.PhaseReady} // as far as it is by now
	if !slices.Contains(on, v.Phase) || v.Hostname != "gpu7" || len(v.Disks) != 2 {
		t.Errorf("%+v", v)
	}
	v = y.until("ready", phase(move.PhaseReady))
	y.same()
	if p := v.Disks[0].Passes[0]; p.Bytes != 8*mib || p.Sent > 5*mib || !p.Complete {
		t.Errorf("%+v", p)
	}
	y.machine.write(1, 3*mib+5, "written while it was copied")
	if _, err := y.Sync("gpu7"); err != nil {
		t.Fatal(err)
	}
	v = y.until("synced again", passes(2))
	y.same()
	if p := v.Disks[1].Passes[1]; p.Written != mib || p.Bytes != mib || !p.Tracked {
		t.Errorf("%+v", p)
	}
	if p := v.Disks[0].Passes[1]; p.Bytes != mib || p.Written != 0 || !p.Tracked || !p.Complete {
		t.Errorf("nothing was written: %+v", p)
	}
	// It is held, and its server is.
	if _, err := y.Delete(t.Context(), "gpu7"); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Errorf("got %v", err)
	}
	again := y.wish()
	again.Name = "other"
	if _, err := y.Create(t.Context(), "tester", again, gpu.Idempotency{}); gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), "migration gpu7 moves this server") {
		t.Errorf("the same server under another name: %v", err)
	}
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("rolled back", phase(move.PhaseRolledBack))
	y.clean()
	for range 2 {
		if _, err := y.Rollback("gpu7"); err != nil {
			t.Errorf("one that is rolled back: %v", err)
		}
	}
	if _, err := y.Delete(t.Context(), "gpu7"); err != nil {
		t.Fatal(err)
	}
	if all, err := y.Migrations.Migrations(); err != nil || len(all) != 0 {
		t.Errorf("%v %v", all, err)
	}
}

// A source that does not track is read as a whole each time, and so is one whose tracker has
// missed something; after that it tells again.
func TestMigrationReadsAll(t *testing.T) {
	for name, c := range map[string]struct {
		blind, forgot error
	}{
		"it does not track": {blind: errors.New("the kernel is too old")},
		"it missed writes":  {forgot: errors.New("writes were missed")},
	} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, newMachine(t, 4*mib))
			y.machine.blind = c.blind
			y.begin()
			y.until("ready", phase(move.PhaseReady))
			y.machine.write(0, 2*mib, "unseen")
			y.machine.marks.Lock()
			y.machine.forgot = c.forgot
			clear(y.machine.written)
			y.machine.marks.Unlock()
			if _, err := y.Sync("gpu7"); err != nil {
				t.Fatal(err)
			}
			v := y.until("synced again", passes(2))
			if p := v.Disks[0].Passes[1]; p.Bytes != 4*mib || p.Written != mib || p.Tracked {
				t.Errorf("%+v", p)
			}
			y.same()
			if c.forgot == nil {
				return
			}
			y.machine.marks.Lock()
			y.machine.forgot = nil
			y.machine.marks.Unlock()
			y.machine.write(0, 3*mib, "seen")
			if _, err := y.Sync("gpu7"); err != nil {
				t.Fatal(err)
			}
			v = y.until("synced again", passes(3))
			if p := v.Disks[0].Passes[2]; p.Bytes != mib || !p.Tracked {
				t.Errorf("%+v", p)
			}
			y.same()
		})
	}
}

// A daemon that ends in the middle is not held up, and the next goes on: nothing that is
// there is copied again.
func TestMigrationGoesOn(t *testing.T) {
	y := newYard(t, newMachine(t, 8*mib))
	y.begin()
	y.until("synced", passes(1))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	y.engine.Drain(ctx)
	if ctx.Err() != nil {
		t.Error("the daemon's end was held up")
	}
	y.stop()
	y.start()
	v := y.until("synced again", passes(2))
	if p := v.Disks[0].Passes[1]; p.Written != 0 || p.Bytes != 8*mib || p.Tracked {
		t.Errorf("what was written while nobody tracked is not known: %+v", p)
	}
	y.same()
}

// A source that is away is waited for; after a long time a person is asked, and can go on.
func TestMigrationSourceAway(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.stop()
	y.patience.Sync = 200 * time.Millisecond
	y.start()
	y.machine.gone()
	y.begin()
	v := y.until("waiting", phase(move.PhaseWaiting))
	if !strings.Contains(v.Reason, "the source has not been heard of since") || !strings.Contains(v.Reason, "no route to host") {
		t.Errorf("%q", v.Reason)
	}
	if _, err := y.Sync("gpu7"); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Errorf("got %v", err)
	}
	y.machine.there()
	if _, err := y.Retry("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("synced", passes(1))
	y.same()
}

// A disk that is another than was assessed is not copied over the mirror: a person is asked.
func TestMigrationOtherDisk(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.machine.disks[0].ID = "wwn:other"
	y.begin()
	v := y.until("waiting", phase(move.PhaseWaiting))
	if !strings.Contains(v.Reason, `"wwn:other"`) {
		t.Errorf("%q", v.Reason)
	}
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("rolled back", phase(move.PhaseRolledBack))
	y.clean()
}

// A disk that is exchanged while a tracker says that nothing was written is noticed all the
// same.
func TestMigrationExchangedDisk(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	y.machine.disks[0].ID = "wwn:other"
	if _, err := y.Sync("gpu7"); err != nil {
		t.Fatal(err)
	}
	v := y.until("waiting", phase(move.PhaseWaiting))
	if !strings.Contains(v.Reason, `"wwn:other"`) {
		t.Errorf("%q", v.Reason)
	}
}

// The same request under an Idempotency-Key begins one move, and another is refused.
func TestMigrationOnce(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	idem := gpu.Idempotency{Key: "k", Request: "r"}
	first, err := y.Create(t.Context(), "tester", y.wish(), idem)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := y.Create(t.Context(), "tester", y.wish(), idem); err != nil || again.ID != first.ID {
		t.Errorf("%+v %v", again, err)
	}
	if _, err := y.Create(t.Context(), "tester", y.wish(), gpu.Idempotency{Key: "k", Request: "other"}); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Errorf("got %v", err)
	}
	if err := y.Refusal(t.Context(), y.wish()); err == nil || !strings.Contains(err.Error(), "of this name") {
		t.Errorf("got %v", err)
	}
	other := y.wish()
	other.Name = "other"
	if err := y.Refusal(t.Context(), other); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Errorf("a dry run of a second move of the server: %v", err)
	}
}

// What somebody else put beside the mirrors is not removed, and a person is told.
func TestMigrationForeignFile(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.begin()
	y.until("synced", passes(1))
	foreign := filepath.Join(y.storage, "gpu7", "notes.txt")
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := y.Rollback("gpu7"); err != nil {
		t.Fatal(err)
	}
	v := y.until("failed", phase(move.PhaseFailed))
	if !strings.Contains(v.Reason, `"notes.txt" in `) {
		t.Errorf("%q", v.Reason)
	}
	if err := os.Remove(foreign); err != nil {
		t.Fatal(err)
	}
	if _, err := y.Retry("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("rolled back", phase(move.PhaseRolledBack))
	y.clean()
}

// The pace can be changed while a move is under way, and is kept.
func TestMigrationSetCopy(t *testing.T) {
	y := newYard(t, newMachine(t, 4*mib))
	y.begin()
	y.until("synced", passes(1))
	want := move.Copy{Bandwidth: 10 * mib, Interval: 3600, Connections: 1}
	if _, err := y.SetCopy("gpu7", want); err != nil {
		t.Fatal(err)
	}
	v := y.until("synced again", passes(2))
	if diff := cmp.Diff(want, v.Copy); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []move.Copy{{Bandwidth: 1}, {Interval: 1}, {Connections: 17}, {Connections: -1}} {
		if _, err := y.SetCopy("gpu7", bad); gpu.CodeOf(err) != gpu.CodeInvalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func waived(id string) []assess.Waiver { return []assess.Waiver{{ID: id, Reason: "x", By: "x"}} }

func TestMigrationRefuses(t *testing.T) {
	m := newMachine(t, 4*mib)
	y := newYard(t, m)
	put := func(name string, change func(*report.AssessmentRecord)) {
		t.Helper()
		rec := report.AssessmentRecord{Name: name, Source: ssh(), State: report.StateDone, Report: m.report()}
		change(&rec)
		if err := y.store.Apply(operation.Put(report.RecordAssessment, name, rec)); err != nil {
			t.Fatal(err)
		}
	}
	put("unseen", func(r *report.AssessmentRecord) { r.Report, r.State = nil, report.StateInspecting })
	put("watched", func(r *report.AssessmentRecord) { r.State = report.StateWatching })
	put("carried", func(r *report.AssessmentRecord) { r.Source = nil })
	for name, disk := range map[string]report.Disk{
		"climbing": {Name: "../../../etc/cron.d/x", SizeBytes: 1 << 20}, "dotted": {Name: "..", SizeBytes: 1 << 20}, "endless": {Name: "sda", SizeBytes: 1 << 63},
	} {
		put(name, func(r *report.AssessmentRecord) { r.Report.Disks = []report.Disk{disk} })
	}
	put("twins", func(r *report.AssessmentRecord) { r.Report.Disks = append(r.Report.Disks, r.Report.Disks[0]) })
	put("diskless", func(r *report.AssessmentRecord) { r.Report.Disks = nil })
	for name, c := range map[string]struct {
		w    move.Wish
		code gpu.Code
		text string
	}{
		"no assessment":             {move.Wish{Assessment: "none"}, gpu.CodeNotFound, "there is no record of it"},
		"unseen":                    {move.Wish{Assessment: "unseen"}, gpu.CodeConflict, "nothing was seen"},
		"watched":                   {move.Wish{Assessment: "watched"}, gpu.CodeConflict, "still watching"},
		"carried":                   {move.Wish{Assessment: "carried"}, gpu.CodeConflict, "how the server is reached"},
		"another disk":              {move.Wish{Assessment: "gpu7", Plan: assess.Wish{Disks: []string{"sdz"}}}, gpu.CodeConflict, "Blocked"},
		"a disk that is a path":     {move.Wish{Assessment: "climbing"}, gpu.CodeInvalid, "no name of a disk"},
		"a disk that is the folder": {move.Wish{Assessment: "dotted"}, gpu.CodeInvalid, "no name of a disk"},
		"a disk beyond any measure": {move.Wish{Assessment: "endless", Plan: assess.Wish{Waivers: waived("disk-room")}}, gpu.CodeInvalid, "which none has"},
		"two disks of one name":     {move.Wish{Assessment: "twins"}, gpu.CodeInvalid, "two disks"},
		"diskless":                  {move.Wish{Assessment: "diskless"}, gpu.CodeInvalid, "no disk that could be moved"},
		"bandwidth":                 {move.Wish{Assessment: "gpu7", Copy: move.Copy{Bandwidth: 5}}, gpu.CodeInvalid, "bandwidth_bytes_per_second 5"},
		"no such profile": {
			move.Wish{Assessment: "gpu7", Plan: assess.Wish{Partitions: []assess.WishPartition{{Profile: "H100-1-10C"}}}}, gpu.CodeConflict, "Blocked",
		},
	} {
		c.w.Name = "new"
		_, err := y.Create(t.Context(), "tester", c.w, gpu.Idempotency{})
		if gpu.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
		// A dry run tells the same: in its plan, or beside it.
		if told := y.Refusal(t.Context(), c.w); c.text != "Blocked" && (told == nil || told.Error() != err.Error()) {
			t.Errorf("%s: a dry run says %v", name, told)
		}
	}
	if all, err := y.Migrations.Migrations(); err != nil || len(all) != 0 {
		t.Errorf("%v %v", all, err)
	}
}

// What copies a disk where nobody says is what is measured against nbdcopy.
func TestDefaultConnections(t *testing.T) {
	if n := (move.Copy{}).Complete().Connections; n != block.DefaultConnections {
		t.Errorf("%d connections, and %d are measured", n, block.DefaultConnections)
	}
}
