package block

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// A chunk that is written twice between two syncs is not recorded with its
// first hash, wherever the power fails.
func TestTwoWritesAndNoSync(t *testing.T) {
	for n := range 30 {
		for seed := range uint64(20) {
			m := newMem(t, 4*MinChunkSize)
			s := newMemFile(&plant{left: -1}, 4*MinChunkSize)
			g := &game{memMirror: m, seen: map[Hash]bool{}}
			put := func(i int64, content byte) error {
				s.fill(m.geometry, i, content)
				data := s.view[m.offset(i):][:m.length(i)]
				h, _ := m.hash(i, data)
				g.seen[h] = true
				return m.put(i, data, h)
			}
			m.data.plant.set(n)
			err := errors.Join(put(0, 1), put(1, 1), m.commit(), put(0, 2), put(2, 1), put(0, 3), put(2, 2), m.commit())
			if err != nil && !errors.Is(err, errPower) {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(seed, 0))
			m.data.crash(r)
			m.records.crash(r)
			if err := g.honest(m.data.view); err != nil {
				t.Fatalf("power failed at operation %d, seed %d: %v", n, seed, err)
			}
		}
	}
}

// The same, where another writer syncs just after the second content came.
func TestSyncBetweenTwoWrites(t *testing.T) {
	m := newMem(t, MinChunkSize)
	for content := range byte(3) {
		data := noise(MinChunkSize, uint64(content))
		h, _ := m.hash(0, data)
		m.data.written = func() {
			if err := m.commit(); err != nil {
				t.Error(err)
			}
			if held, err := m.Held(); held != 0 || err != nil {
				t.Errorf("a chunk is recorded while it is written, %v", err)
			}
		}
		if err := m.put(0, data, h); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.commit(); err != nil {
		t.Fatal(err)
	}
	if held, err := m.Held(); held != 1 || err != nil {
		t.Errorf("%d chunks are held, %v", held, err)
	}
}

// After a sync that failed the kernel may say that the next one is fine.
func TestNothingIsRecordedAfterAFailedSync(t *testing.T) {
	m := newMem(t, 4*MinChunkSize)
	data := make([]byte, MinChunkSize)
	data[0] = 1
	h, _ := m.hash(0, data)
	if err := m.put(0, data, h); err != nil {
		t.Fatal(err)
	}
	m.data.plant.set(0)
	if err := m.commit(); !errors.Is(err, errPower) {
		t.Fatal("the sync did not fail:", err)
	}
	m.data.plant.set(-1)
	for what, err := range map[string]error{
		"a second sync": m.commit(),
		"a write":       m.put(1, data, h),
		"a clearing":    m.forget(2),
	} {
		if !errors.Is(err, errPower) {
			t.Errorf("%s after a failed sync: %v", what, err)
		}
	}
	if held, err := m.Held(); held != 0 || err != nil {
		t.Errorf("%d chunks are recorded, %v", held, err)
	}
}

func TestOpenRefusesWhatIsNotItsOwn(t *testing.T) {
	good := Spec{ID: "wwn-1", Size: 10 * MinChunkSize, ChunkSize: MinChunkSize}
	held := func(t *testing.T, s Spec) {
		m, err := OpenMirror(s)
		if err != nil {
			t.Fatal(err)
		}
		data := newBuffer(MinChunkSize).data()
		data[5] = 1
		h, _ := m.hash(3, data)
		if err := errors.Join(m.put(3, data, h), m.commit(), m.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name   string
		change func(*testing.T, *Spec)
		want   string // a part of the error; empty: it opens
	}{
		{"the same", func(*testing.T, *Spec) {}, ""},
		{"another disk", func(_ *testing.T, s *Spec) { s.ID = "wwn-2" }, `the disk is "wwn-1" there, and "wwn-2" is wanted`},
		{"a disk that grew", func(_ *testing.T, s *Spec) { s.Size++ }, "the size of the disk, which grew, is 655360 bytes there, and 655361 bytes is wanted"},
		{"a disk that shrank", func(_ *testing.T, s *Spec) { s.Size-- }, "which shrank"},
		{"another chunk size", func(_ *testing.T, s *Spec) { s.ChunkSize *= 2 }, "the chunk size is 65536 there, and 131072 is wanted"},
		{"a chunk size of its own", func(_ *testing.T, s *Spec) { s.ChunkSize = 100000 }, "is not a power of two"},
		{"no identity", func(_ *testing.T, s *Spec) { s.ID = "" }, "identity"},
		{"an endless identity", func(_ *testing.T, s *Spec) { s.ID = strings.Repeat("x", MaxID+1) }, "identity"},
		{"another version", func(t *testing.T, s *Spec) { poke(t, s.Map, 11, 9) }, "the version is 9 there, and 1 is wanted"},
		{"a flipped bit in the header", func(t *testing.T, s *Spec) { poke(t, s.Map, 300, 1) }, "its header is damaged"},
		{"something else", func(t *testing.T, s *Spec) { poke(t, s.Map, 0, 'X') }, "no map of gpuvirt"},
		{"no data", func(t *testing.T, s *Spec) { remove(t, s.Path) }, "it is gone, and map"},
		{"short data", func(t *testing.T, s *Spec) { truncate(t, s.Path, 5) }, "it has 5 bytes"},
		{"no map", func(t *testing.T, s *Spec) { remove(t, s.Map) }, "the file is there and has no map"},
		{"neither", func(t *testing.T, s *Spec) { remove(t, s.Map); remove(t, s.Path) }, ""},
		{"a folder", func(t *testing.T, s *Spec) { s.Path = t.TempDir() }, "is a directory"},
		{"a device of characters", func(_ *testing.T, s *Spec) { s.Path = "/dev/null" }, "neither a file nor a block device"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := good
			s.Path, s.Map = filepath.Join(t.TempDir(), "0.raw"), filepath.Join(t.TempDir(), "0.map")
			held(t, s)
			c.change(t, &s)
			for range 2 { // the first try changes nothing
				m, err := OpenMirror(s)
				if err == nil {
					m.Close()
				}
				if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
					t.Errorf("got %v, want %q", err, c.want)
				}
			}
		})
	}
}

func TestOneProcessHasAMirror(t *testing.T) {
	dir := t.TempDir()
	disk := randomDisk(t, MinChunkSize, 1)
	m := mirrorOf(t, dir, disk, MinChunkSize)
	again := func() error {
		m, err := OpenMirror(Spec{
			Path: filepath.Join(dir, "0.raw"), Map: filepath.Join(dir, "0.map"),
			ID: "wwn-1", Size: MinChunkSize, ChunkSize: MinChunkSize,
		})
		if err == nil {
			err = m.Close()
		}
		return err
	}
	if err := again(); !errors.Is(err, ErrBusy) {
		t.Error("opened twice:", err)
	}
	m.Close()
	if err := again(); err != nil {
		t.Error("not free after Close:", err)
	}
}

func TestFullFilesystem(t *testing.T) {
	t.Run("in memory", func(t *testing.T) {
		m := newMem(t, 10*MinChunkSize)
		m.data.room = 3*MinChunkSize + 5*align
		testFull(t, m.Mirror, func() { m.data.room = 0 })
	})
	t.Run("tmpfs", func(t *testing.T) {
		dir := t.TempDir()
		if err := unix.Mount("none", dir, "tmpfs", 0, "size=256k"); err != nil {
			t.Skip("cannot mount a tmpfs: ", err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Error(err)
			}
		})
		m, err := OpenMirror(Spec{
			Path: filepath.Join(dir, "0.raw"), Map: filepath.Join(t.TempDir(), "0.map"),
			ID: "wwn-1", Size: 10 * MinChunkSize, ChunkSize: MinChunkSize,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		testFull(t, m, func() {
			if err := unix.Mount("none", dir, "tmpfs", unix.MS_REMOUNT, "size=4m"); err != nil {
				t.Fatal(err)
			}
		})
	})
}

func testFull(t *testing.T, m *Mirror, makeRoom func()) {
	s := newMemSource(t, t.Context(), m.Size())
	t.Cleanup(s.wg.Wait)
	for i := range m.Chunks() {
		s.fill(m.geometry, i, 1)
	}
	s.fill(m.geometry, 1, 0)
	full, ok := errors.AsType[*SpaceError](m.CheckSpace())
	if !ok || full.Need != 10*MinChunkSize || full.Free > 4*MinChunkSize {
		t.Errorf("before: %v", full)
	}
	o := Options{Dial: s.dial, Connections: 1}
	_, err := Pull(t.Context(), m, "sda", o)
	full, ok = errors.AsType[*SpaceError](err)
	if !ok || full.Need <= full.Free || !strings.Contains(err.Error(), "are missing") {
		t.Fatalf("into a full filesystem: %v", err)
	}
	held, err := m.Held()
	if held < 3 || err != nil {
		t.Errorf("%d chunks held, %v", held, err)
	}
	makeRoom()
	p, err := Pull(t.Context(), m, "sda", o)
	if err != nil || p.Changed != 10-held {
		t.Errorf("with room: %+v, %v, want %d chunks", p, err, 10-held)
	}
	if v, err := Verify(t.Context(), m, "sda", o); err != nil || v.Differ != nil {
		t.Errorf("after: %+v, %v", v, err)
	}
}

func TestZerosTakeNoRoom(t *testing.T) {
	const size = 16 * MinChunkSize
	disk := writeFile(t, make([]byte, size))
	s := serve(t, disk)
	m := mirrorOf(t, t.TempDir(), disk, MinChunkSize)
	defer m.Close()
	o := Options{Dial: dialUnix(s.socket)}
	stored := func() int64 {
		if _, err := Pull(t.Context(), m, "sda", o); err != nil {
			t.Fatal(err)
		}
		n, _, err := m.data.Room()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	var got []bool
	got = append(got, stored() > 0)
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i)
	}
	if err := os.WriteFile(disk, b, 0o600); err != nil {
		t.Fatal(err)
	}
	got = append(got, stored() > 0)
	if err := os.WriteFile(disk, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	got = append(got, stored() > 0)
	if diff := cmp.Diff([]bool{false, true, false}, got); diff != "" {
		t.Errorf("room taken for zeros, data, zeros (-want +got):\n%s", diff)
	}
}

func poke(t *testing.T, path string, off int64, b byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte{b}, off)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, path string, n int64) {
	t.Helper()
	if err := os.Truncate(path, n); err != nil {
		t.Fatal(err)
	}
}
