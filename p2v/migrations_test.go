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
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"gpuvirt/gpu"
	"gpuvirt/operation"
	"gpuvirt/p2v"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/block"
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

	blind   error // why it does not track
	forgot  error // why it does not know what was written
	works   int   // services that it says it has
	rest    *rester
	marks   sync.Mutex
	written map[string][]block.Range // in ascending order, as the test writes

	serving sync.WaitGroup
	end     context.CancelFunc
	ctx     context.Context
}

func newMachine(t *testing.T, sizes ...int) *machine {
	m := &machine{t: t, server: &server{placed: map[string]bool{}}, written: map[string][]block.Range{}, rest: &rester{}}
	m.ctx, m.end = context.WithCancel(context.Background())
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

// there has the machine answer from now on.
func (m *machine) there() {
	m.server.mu.Lock()
	defer m.server.mu.Unlock()
	m.visits = []visit{{serve: m.serveDisks}}
}

func (m *machine) gone() {
	m.server.mu.Lock()
	defer m.server.mu.Unlock()
	m.visits = []visit{{dial: away}}
}

func (m *machine) serveDisks(_ context.Context, args []string) (io.ReadWriteCloser, error) {
	if slices.Contains(args, "freeze") {
		return m.serveRest(), nil
	}
	near, far := net.Pipe()
	if slices.Contains(args, "track") {
		m.serving.Go(func() {
			_ = track.Serve(far, m, block.DefaultChunkSize, m.blind)
			_ = far.Close()
		})
		stop := context.AfterFunc(m.ctx, func() { _ = far.Close() })
		m.serving.Go(func() { <-m.ctx.Done(); stop() })
		return near, nil
	}
	m.serving.Go(func() { _ = block.Serve(m.ctx, far, m.disks, slog.New(slog.DiscardHandler)) })
	return near, nil
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
		info, err := os.Stat(d.Path)
		if err != nil {
			m.t.Fatal(err)
		}
		r.Disks = append(r.Disks, report.Disk{
			Name: d.Name, WWN: d.Name, SizeBytes: uint64(info.Size()), BlockBytes: 512, Transport: "nvme", Table: "gpt", Boots: i == 0,
			Partitions: []report.Partition{{Name: d.Name + "p1", Number: 1, StartBytes: mib, SizeBytes: uint64(info.Size()) - mib, Content: "ext4"}},
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

func (host) Profiles(context.Context, gpu.ID) ([]gpu.Profile, error, error) { return nil, nil, nil }

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
	images      []string // folders
	rescue      nbd.Options
}

func newYard(t *testing.T, m *machine) *yard {
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "db"), store.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	y := &yard{
		t: t, machine: m, store: db, storage: filepath.Join(t.TempDir(), "migrations"),
		vms: newVMs(), makers: &makers{}, holders: &holders{held: map[string]gpu.Assignment{}, begun: map[string]string{}},
	}
	y.patience = p2v.Patience{Pause: 10 * time.Millisecond, First: time.Minute, Later: time.Minute, Sync: time.Minute, Boot: time.Second, Settle: time.Second, Off: time.Second}
	rec := report.AssessmentRecord{Name: "gpu7", Source: ssh(), State: report.StateDone, Report: m.report()}
	if err := db.Apply(operation.Put(report.RecordAssessment, "gpu7", rec)); err != nil {
		t.Fatal(err)
	}
	y.start()
	t.Cleanup(func() { y.engine.Stop() })
	return y
}

func (y *yard) start() {
	y.life = newLife(y.t)
	db := mortalStore{y.store, y.life}
	y.engine = operation.New(operation.Config{Store: db, Log: slog.New(slog.DiscardHandler), Problem: problem, Now: time.Now})
	cfg := p2v.Config{
		Store: db, Engine: y.engine, Log: slog.New(slog.DiscardHandler), Now: time.Now, Dial: y.life.dials(y.machine.dial),
		Open:       func() (p2v.Inspector, error) { return program{strings.NewReader("#!")}, nil },
		DialAtRest: y.dialAtRest,
		Host:       host{y.holders}, Facts: func() assess.HostState {
			return assess.HostState{MemoryBytes: 64 << 30, DiskBytes: 1 << 40, Threads: 16}
		},
		Storage: y.storage, Patience: y.patience, VMs: mortalVMs{y.vms, y.life}, Converter: y.makers, Assignments: y.holders, NewUUID: uuid.NewString,
		Mark: func(doc, mark string) (string, error) { return doc + "<!--" + mark + "-->", nil },
	}
	y.assessments, y.Migrations = p2v.New(cfg), p2v.NewMigrations(cfg)
	y.holders.handle(y.engine)
	if err := y.engine.Start(context.WithoutCancel(y.t.Context())); err != nil {
		y.t.Fatal(err)
	}
}

// waivers are for what is not known of the test's machine and does not matter here.
func (y *yard) wish() move.Wish {
	w := move.Wish{Name: "gpu7", Assessment: "gpu7", Copy: move.Copy{Connections: 2}, Plan: assess.Wish{DowntimeSeconds: y.budget}}
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
		want, err1 := os.ReadFile(d.Path)
		got, err2 := os.ReadFile(filepath.Join(y.storage, "gpu7", d.Name+".raw"))
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(want, got) {
			y.t.Errorf("%s: the mirror is not as the disk is (%v)", d.Name, err)
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
	if v.Phase != move.PhasePlanned && v.Phase != move.PhaseSyncing || v.Hostname != "gpu7" || len(v.Disks) != 2 {
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
	var held *operation.ConflictError
	if _, err := y.Create(t.Context(), "tester", again, gpu.Idempotency{}); !errors.As(err, &held) || held.Holder != v.Operation {
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
	y.engine.Stop()
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
	y.engine.Stop()
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
	var held *operation.ConflictError
	if err := y.Refusal(t.Context(), other); !errors.As(err, &held) {
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
	if !strings.Contains(v.Reason, "not empty") {
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
