package p2v_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/move"
)

// A tmpfs is a folder of mirrors that can be made full.
type tmpfs struct{ y *yard }

// tmpfs mounts one in place of the yard's folder.
func (y *yard) tmpfs(size string) tmpfs {
	y.t.Helper()
	if err := os.MkdirAll(y.storage, 0o755); err != nil {
		y.t.Fatal(err)
	}
	if err := unix.Mount("none", y.storage, "tmpfs", 0, "size="+size); err != nil {
		y.t.Skip("cannot mount a tmpfs: ", err)
	}
	y.t.Cleanup(func() {
		y.engine.Stop()
		if err := unix.Unmount(y.storage, 0); err != nil {
			y.t.Error(err)
		}
	})
	return tmpfs{y}
}

func (d tmpfs) resize(size string) {
	d.y.t.Helper()
	if err := unix.Mount("none", d.y.storage, "tmpfs", unix.MS_REMOUNT, "size="+size); err != nil {
		d.y.t.Error(err)
	}
}

// fill leaves room for so many bytes, as somebody does who fills it.
func (d tmpfs) fill(left int64) {
	d.y.t.Helper()
	var now unix.Statfs_t
	if err := unix.Statfs(d.y.storage, &now); err != nil {
		d.y.t.Error(err)
	}
	d.resize(fmt.Sprint(int64(now.Blocks-now.Bfree)*now.Bsize + left))
}

// A copy for which there is no room, from its beginning or since its middle, waits for a person, who is told where
// and how much is missing. It goes on when there is, and what has come is not copied again.
func TestCopyWithoutRoom(t *testing.T) {
	for name, c := range map[string]struct {
		before func(y *yard, d tmpfs) // the move begins
		path   string                 // that is told, in the folder of the move
	}{
		"from the beginning": {path: "nvme0n1.raw", before: func(_ *yard, d tmpfs) { d.resize("1028m") }},
		"not even for a map": {path: "nvme0n1.map", before: func(y *yard, d tmpfs) {
			d.resize("4096")
			if err := os.WriteFile(filepath.Join(y.storage, "other"), make([]byte, 4096), 0o600); err != nil {
				y.t.Error(err)
			}
		}},
		"since its middle": {path: "nvme0n1.raw", before: func(y *yard, d tmpfs) {
			then := func() { d.fill(128 << 10) }
			y.machine.up.then.Store(&then)
			y.machine.up.left.Store(3 * mib)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			y := newYard(t, newMachine(t, 8*mib, 4*mib))
			d := y.tmpfs("1200m")
			y.stop()
			c.before(y, d)
			y.start()
			y.begin()
			for range 2 { // a retry without room says so again
				v := y.until("waiting", phase(move.PhaseWaiting))
				if !strings.Contains(v.Reason, filepath.Join(y.storage, "gpu7", c.path)) || !strings.Contains(v.Reason, " are missing") {
					t.Errorf("%q", v.Reason)
				}
				if _, err := y.Retry("gpu7"); err != nil {
					t.Fatal(err)
				}
			}
			y.until("waiting", phase(move.PhaseWaiting))
			if err := os.Remove(filepath.Join(y.storage, "other")); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
			d.resize("1200m")
			if _, err := y.Retry("gpu7"); err != nil {
				t.Fatal(err)
			}
			v := y.until("ready", phase(move.PhaseReady))
			y.same()
			if n := sent(v); n > 9*mib {
				t.Errorf("%d bytes came, and the disks hold 6 MiB: %+v", n, v.Disks)
			}
		})
	}
}

// A pass beside a rehearsal that fills the folder in its middle does not concern the rehearsal, says what is missing, and
// is made again when there is room.
func TestPassBesideWithoutRoom(t *testing.T) {
	m := newMachine(t, 8*mib)
	y := newYard(t, m)
	d := y.tmpfs("1200m")
	y.begin()
	r := rehearsingYard(t, y)
	for at := range int64(6) {
		m.write(0, at*mib, "written while it is rehearsed")
	}
	then := func() { d.fill(128 << 10) }
	m.up.then.Store(&then)
	m.up.left.Store(3 * mib)
	if _, err := y.Sync("gpu7"); err != nil {
		t.Fatal(err)
	}
	v := y.until("held up", func(v move.Migration) bool { return v.Attempts[0].CopyWaits != "" })
	if why := v.Attempts[0].CopyWaits; !strings.Contains(why, filepath.Join(y.storage, "gpu7")) || !strings.Contains(why, " are missing") || v.Phase != move.PhaseRehearsing {
		t.Errorf("%s: %q", v.Phase, why)
	}
	d.resize("1200m")
	if p := r.pass(); p.Bytes == 0 || !p.Complete {
		t.Errorf("with room: %+v", p)
	}
	r.goOn()
	if a := y.over(1); a.State != move.Passed {
		t.Errorf("%+v", a)
	}
	y.until("ready", func(v move.Migration) bool { return v.Phase == move.PhaseReady && len(y.ahead()) == 0 })
	y.same()
}

// Where there is no room for a VM's disks that is told before the source is brought to rest; where there is none any
// more in the middle of a conversion the source goes on. Both say where and how much, and the next try is as good as any.
func TestConversionWithoutRoom(t *testing.T) {
	for _, kind := range []move.AttemptKind{move.Rehearsal, move.Cutover} {
		t.Run(string(kind), func(t *testing.T) {
			m := newMachine(t, 4*mib)
			m.write(0, 2*mib, strings.Repeat("x", 2*mib)) // so that its mirror has all it needs
			y := newYard(t, m)
			d := y.tmpfs("1200m")
			y.begin()
			y.until("ready", phase(move.PhaseReady))
			fails := func(n int, says ...string) {
				t.Helper()
				y.try(kind)
				a := y.over(n)
				for _, text := range says {
					if a.State != move.Failed || !strings.Contains(a.Problem, text) {
						t.Errorf("%s: %q", a.State, a.Problem)
					}
				}
				y.awake()
				y.until("ready", phase(move.PhaseReady))
				if len(y.overlays()) != 0 || y.vms.started != 0 {
					t.Errorf("left: %q, started %d times", y.overlays(), y.vms.started)
				}
			}
			d.fill(512 << 20)
			fails(1, filepath.Join(y.storage, "gpu7"), "512 MiB are missing")
			if m.rest.froze != 0 {
				t.Errorf("the source was brought to rest %d times", m.rest.froze)
			}
			d.resize("1200m")
			y.makers.set(func(what string, _ convert.Job) {
				if what == "convert" {
					d.fill(64 << 10)
				}
			})
			y.makers.fail("convert", fmt.Errorf("cannot finish virt-v2v: %w", unix.ENOSPC))
			fails(2, "no space left on device", filepath.Join(y.storage, "gpu7"), "has room for 65536 bytes")
			y.makers.set(nil)
			y.makers.fail("convert", nil)
			d.resize("1200m")
			y.try(kind)
			if a := y.over(3); a.State == move.Failed {
				t.Errorf("%+v", a)
			}
		})
	}
}

// A cut-over whose pass before it has no room is not begun: a person is asked, and asks for it again.
func TestCutoverWithoutRoom(t *testing.T) {
	m := newMachine(t, 4*mib)
	y := newYard(t, m)
	d := y.tmpfs("1200m")
	y.begin()
	y.until("ready", phase(move.PhaseReady))
	d.fill(512 << 20)
	y.try(move.Cutover)
	// Where it is asked for just as a pass has ended there is none before it, and its disks have no room.
	if v := y.until("held up", func(v move.Migration) bool { return v.Phase == move.PhaseWaiting || v.Pending() == nil }); v.Phase != move.PhaseWaiting {
		if _, err := y.Sync("gpu7"); err != nil {
			t.Fatal(err)
		}
	}
	if v := y.until("waiting", phase(move.PhaseWaiting)); !strings.Contains(v.Reason, filepath.Join(y.storage, "gpu7", "nvme0n1.raw")) || !strings.Contains(v.Reason, " are missing") || m.rest.froze != 0 {
		t.Errorf("%q, at rest %d times", v.Reason, m.rest.froze)
	}
	d.resize("1200m")
	if _, err := y.Retry("gpu7"); err != nil {
		t.Fatal(err)
	}
	v := y.until("ready", func(v move.Migration) bool {
		return v.Phase == move.PhaseReady && v.Pending() == nil && v.Forecast != nil
	})
	if v.Attempts[0].State != move.Failed || v.Fence != move.FenceNone || m.rest.froze != 0 {
		t.Errorf("at rest %d times: %+v", m.rest.froze, v.Attempts)
	}
	y.try(move.Cutover)
	y.until("done", phase(move.PhaseDone))
	y.same()
}
