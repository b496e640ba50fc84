package p2v_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/move"
)

// rebootYard is one whose daemon soon notices that a connection is of no use any more.
func rebootYard(t *testing.T, m *machine) *yard {
	y := newYard(t, m)
	y.stop()
	y.patience.Cut = 50 * time.Millisecond
	y.start()
	return y
}

// sent is how much came of all disks.
func sent(v move.Migration) (n uint64) {
	for _, d := range v.Disks {
		for _, p := range d.Passes {
			n += p.Sent
		}
	}
	return n
}

// A source is started again in the middle of a move, and is copied on: also what it has written while nobody
// looked, and also where its disks have changed their names by that.
func TestSourceRebooted(t *testing.T) {
	for name, swapped := range map[string]bool{"with its names": false, "with other names": true} {
		t.Run(name, func(t *testing.T) {
			for at, test := range map[string]func(t *testing.T, y *yard, reboot func()){
				"syncing": rebootsSyncing, "ready": rebootsReady, "rehearsing": rebootsRehearsing,
				"the last pass of a rehearsal": func(t *testing.T, y *yard, reboot func()) { rebootsAtRest(t, y, move.Rehearsal, reboot) },
				"the last pass of a cut-over":  func(t *testing.T, y *yard, reboot func()) { rebootsAtRest(t, y, move.Cutover, reboot) },
				"converting":                   rebootsConverting,
			} {
				t.Run(at, func(t *testing.T) {
					t.Parallel()
					m := newMachine(t, 8*mib, 8*mib)
					y := rebootYard(t, m)
					test(t, y, func() {
						m.reboot(func() {
							m.write(1, 7*mib, "written when it was started")
							if swapped {
								m.swap(0, 1)
							}
						})
					})
					y.until("ready since it was started", func(v move.Migration) bool {
						return v.Phase == move.PhaseReady && v.SeenIn == m.up.boot && v.Pending() == nil && len(y.ahead()) == 0
					})
					y.awake()
					y.same()
					if len(y.overlays()) != 0 || y.vms.started != 0 {
						t.Errorf("left: %q, started %d times", y.overlays(), y.vms.started)
					}
					m.write(0, 3*mib, "it goes on")
					y.cutOver()
					y.until("done", phase(move.PhaseDone))
					y.same()
				})
			}
		})
	}
}

// It is in the middle of the first pass: what has come is not sent again.
func rebootsSyncing(t *testing.T, y *yard, reboot func()) {
	m := y.machine
	m.up.left.Store(5 * mib / 2)
	y.begin()
	<-m.up.stalled
	reboot()
	v := y.until("ready", phase(move.PhaseReady))
	if n := sent(v); n > 11*mib {
		t.Errorf("%d bytes came, and the disks hold 8 MiB: %+v", n, v.Disks)
	}
}

func rebootsReady(t *testing.T, y *yard, reboot func()) {
	y.begin()
	total := y.until("ready", phase(move.PhaseReady)).Disks[1].Total
	reboot()
	if _, err := y.Sync("gpu7"); err != nil {
		t.Fatal(err)
	}
	v := y.until("copied again", func(v move.Migration) bool { return v.Phase == move.PhaseReady && v.Disks[1].Total > total })
	var last []move.Pass
	for _, d := range v.Disks {
		last = append(last, d.Passes[len(d.Passes)-1])
	}
	if last[0].Written != 0 || last[1].Written != mib || last[1].Tracked || last[1].Bytes != 8*mib {
		t.Errorf("the passes after it: %+v", last)
	}
}

// A rehearsal has all that it needs, and is not concerned.
func rebootsRehearsing(t *testing.T, y *yard, reboot func()) {
	y.begin()
	r := rehearsingYard(t, y)
	reboot()
	if _, err := y.Sync("gpu7"); err != nil {
		t.Fatal(err)
	}
	y.until("told why no pass is made", func(v move.Migration) bool { return v.Attempts[0].CopyWaits != "" })
	r.goOn()
	if a := y.over(1); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
}

// rebootsAtRest has it go down while the last pass is copied.
func rebootsAtRest(t *testing.T, y *yard, kind move.AttemptKind, reboot func()) {
	m := y.machine
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	stalled := m.stall()
	y.try(kind)
	<-stalled
	m.rest.set(func(r *rester) { r.still = nil })
	reboot()
	if a := y.over(1); a.State != move.Failed || a.Problem == "" {
		t.Errorf("%+v", a)
	}
}

// It goes down when all was copied: the cut-over has its disks, and is of no use.
func rebootsConverting(t *testing.T, y *yard, reboot func()) {
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	there, on := make(chan struct{}), make(chan struct{})
	y.makers.set(func(what string, _ convert.Job) {
		if what == "convert" {
			close(there)
			<-on
		}
	})
	y.cutOver()
	<-there
	y.makers.set(nil)
	reboot()
	close(on)
	if a := y.over(1); a.State != move.Failed {
		t.Errorf("%+v", a)
	}
	if v := y.until("known", func(move.Migration) bool { return true }); v.Fence != move.FenceNone {
		t.Errorf("fence %q", v.Fence)
	}
}

// Whatever works with a disk on the source is told the name that it has there now.
func TestSourceSwapped(t *testing.T) {
	m := newMachine(t, 4*mib, 6*mib)
	y := rebootYard(t, m)
	w := y.wish()
	w.Plan.Disks = []string{"nvme0n1"}
	if _, err := y.Create(t.Context(), "tester", w, gpu.Idempotency{}); err != nil {
		t.Fatal(err)
	}
	y.until("ready", phase(move.PhaseReady))
	m.reboot(func() { m.swap(0, 1) })
	if _, err := y.Sync("gpu7"); err != nil {
		t.Fatal(err)
	}
	v := y.until("copied again", func(v move.Migration) bool { return v.Phase == move.PhaseReady && v.Disks[0].Total > 1 && passes(2)(v) })
	if p := v.Disks[0].Passes[len(v.Disks[0].Passes)-1]; p.Written != 0 || p.Bytes != 4*mib || v.Disks[0].Name != "nvme0n1" {
		t.Errorf("%+v", v.Disks[0])
	}
	if !y.logged(v, "nvme0n1 is nvme1n1 there now") {
		t.Error("nobody is told of the other name")
	}
	m.write(0, 2*mib, "seen by the tracker")
	if a := y.rehearse(move.CutWish{Verify: true}); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
	v = y.until("ready", phase(move.PhaseReady))
	if p := v.Disks[0].Passes[len(v.Disks[0].Passes)-1]; !p.Tracked {
		t.Errorf("%+v", p)
	}
	seen := map[string]bool{}
	ran := m.server.runs()
	for i, args := range slices.Backward(ran) {
		if slices.Contains(args, "disks") {
			ran = ran[i:] // since it was asked last
			break
		}
	}
	for _, args := range ran {
		for _, verb := range []string{"serve", "track", "freeze"} {
			if slices.Contains(args, verb) {
				seen[verb] = true
				if got := named(args); !slices.Equal(got, []string{"nvme1n1"}) {
					t.Errorf("%s is run for %q", verb, got)
				}
			}
		}
	}
	if len(seen) != 3 {
		t.Errorf("run: %v", seen)
	}
	want, err1 := os.ReadFile(m.disks[0].Path)
	got, err2 := os.ReadFile(filepath.Join(y.storage, "gpu7", "nvme0n1.raw"))
	if err := errors.Join(err1, err2); err != nil || string(want) != string(got) {
		t.Errorf("the mirror is not as the disk is (%v)", err)
	}
}

// Disks that say nothing of themselves, and are alike, may have changed their names when their server is started
// again: nobody knows, and nothing is copied over a mirror.
func TestSourceWithoutIdentities(t *testing.T) {
	for name, c := range map[string]struct {
		sizes  [2]int
		change func(m *machine)
		says   string // why it does not go on; empty: it does
	}{
		"alike":                    {sizes: [2]int{4 * mib, 4 * mib}, says: "nothing but the name tells nvme0n1 and nvme1n1 apart"},
		"of two sizes":             {sizes: [2]int{4 * mib, 6 * mib}},
		"of two sizes and swapped": {sizes: [2]int{4 * mib, 6 * mib}, change: func(m *machine) { m.swap(0, 1) }, says: "is not on the source"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, c.sizes[:]...)
			for i := range m.disks {
				m.disks[i].ID = ""
			}
			y := rebootYard(t, m)
			y.begin()
			y.until("ready", phase(move.PhaseReady))

			// A connection that is cut swaps no names.
			m.up.down()
			m.up.rest.Wait()
			m.start(boot, time.Hour)
			m.there()
			if _, err := y.Sync("gpu7"); err != nil {
				t.Fatal(err)
			}
			y.until("copied again", func(v move.Migration) bool { return v.Phase == move.PhaseReady && passes(2)(v) })

			m.since = time.Hour
			m.reboot(func() {
				if c.change != nil {
					c.change(m)
				}
			})
			if _, err := y.Sync("gpu7"); err != nil {
				t.Fatal(err)
			}
			if c.says == "" {
				y.until("copied again", func(v move.Migration) bool { return v.Phase == move.PhaseReady && passes(3)(v) })
				y.same()
				return
			}
			for range 2 {
				v := y.until("waiting", phase(move.PhaseWaiting))
				if !strings.Contains(v.Reason, c.says) {
					t.Errorf("%q", v.Reason)
				}
				y.same() // as they were
				if _, err := y.Retry("gpu7"); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := y.Rollback("gpu7"); err != nil {
				t.Fatal(err)
			}
			y.until("rolled back", phase(move.PhaseRolledBack))
			y.gone4good()
		})
	}
}

// A disk that is not there just after a start may come yet.
func TestSourceDiskComesLate(t *testing.T) {
	m := newMachine(t, 4*mib, 4*mib)
	y := rebootYard(t, m)
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	all := slices.Clone(m.disks)
	m.reboot(func() {
		m.marks.Lock()
		defer m.marks.Unlock()
		m.disks = slices.Clone(all[1:])
		m.disks[0].Name = all[0].Name
	})
	if _, err := y.Sync("gpu7"); err != nil {
		t.Fatal(err)
	}
	v := y.until("missed", func(v move.Migration) bool {
		op, err := y.engine.Get(v.Operation)
		return err == nil && v.Forecast == nil && strings.Contains(fmt.Sprint(op), "may have it yet")
	})
	if v.Phase != move.PhaseSyncing {
		t.Errorf("%s: %s", v.Phase, v.Reason)
	}
	m.marks.Lock()
	m.disks = slices.Clone(all)
	m.disks[0].Name, m.disks[1].Name = all[1].Name, all[0].Name
	m.marks.Unlock()
	y.until("ready", phase(move.PhaseReady))
	y.same()

	// One that does not come is another matter.
	m.since = time.Hour
	m.reboot(func() { m.disks[0].ID = "wwn:other" })
	if _, err := y.Sync("gpu7"); err != nil {
		t.Fatal(err)
	}
	if v := y.until("waiting", phase(move.PhaseWaiting)); !strings.Contains(v.Reason, `"wwn:nvme0n1"`) || !strings.Contains(v.Reason, `"wwn:other"`) {
		t.Errorf("%q", v.Reason)
	}
}

// What a source says of its disks is not believed where nobody would say it.
func TestSourceSaysNonsense(t *testing.T) {
	for name, c := range map[string]struct{ says, want string }{
		"nothing":          {"\n", "EOF"},
		"another version":  {`{"version":99,"boot_id":"","up_seconds":1,"disks":[]}` + "\n", "version is 99"},
		"a terminal's":     {`{"version":1,"boot_id":"","up_seconds":1,"disks":[{"name":"sda","id":"\u001b[2J","size_bytes":1}]}` + "\n", "cannot be shown"},
		"an unknown field": {`{"version":1,"boots":1}` + "\n", "unknown field"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, 2*mib)
			m.says = c.says
			y := newYard(t, m)
			y.begin()
			if v := y.until("waiting", phase(move.PhaseWaiting)); !strings.Contains(v.Reason, "cannot tell which disks the source has") || !strings.Contains(v.Reason, c.want) {
				t.Errorf("%q", v.Reason)
			}
		})
	}
}
