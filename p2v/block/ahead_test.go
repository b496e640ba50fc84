package block

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"
)

// A pair is a mirror and what is ahead of it, on files that lose power together.
type pair struct {
	game
	ahead *memMirror
}

func newPair(t *testing.T, ctx context.Context, chunks int64) *pair { //nolint:revive // A test comes first.
	p := &pair{game: game{memMirror: newMem(t, chunks*MinChunkSize), source: newMemSource(t, ctx, chunks*MinChunkSize), seen: map[Hash]bool{}}}
	a := newMem(t, chunks*MinChunkSize)
	a.data.plant, a.records.plant = p.data.plant, p.data.plant
	p.ahead = a
	a.below = p.table
	return p
}

func (p *pair) fill(contents ...byte) {
	for i, c := range contents {
		p.source.memFile.fill(p.geometry, int64(i), c)
	}
	p.look()
}

func (p *pair) pull(ctx context.Context, into *memMirror) (Pass, error) {
	return Pull(ctx, into.Mirror, "sda", Options{Dial: p.source.dial, Connections: 2})
}

// crash loses power, and opens both again.
func (p *pair) crash(seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 0))
	for _, f := range []*memFile{p.data, p.records, p.ahead.data, p.ahead.records} {
		f.crash(r)
	}
	p.data.plant.set(-1)
	var err1, err2 error
	p.memMirror, err1 = openMem(p.data, p.records, p.geometry)
	p.ahead, err2 = openMem(p.ahead.data, p.ahead.records, p.geometry)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	p.ahead.below = p.table
	return nil
}

// honestAll says that neither map lies.
func (p *pair) honestAll() error {
	ahead := game{memMirror: p.ahead, seen: p.seen}
	return errors.Join(p.honest(p.data.view), ahead.honest(p.ahead.data.view))
}

// Power is lost at each write of a pass ahead, and at each of the fold, in turn: neither map ever
// lies, the mirror is not written to before the fold, and what was pulled ahead is in it after.
func TestAheadAnyCrashEndsEqual(t *testing.T) {
	for n := range 60 {
		for seed := range uint64(6) {
			synctest.Test(t, func(t *testing.T) {
				if err := crashAhead(t, n, seed); err != nil {
					t.Fatalf("power failed at operation %d, seed %d: %v", n, seed, err)
				}
			})
		}
	}
}

func crashAhead(t *testing.T, n int, seed uint64) error {
	ctx, cancel := context.WithCancel(t.Context())
	p := newPair(t, ctx, 5)
	defer p.source.wg.Wait()
	defer cancel()
	p.fill(1, 2, 0, 3, 4)
	if _, err := p.pull(ctx, p.memMirror); err != nil {
		return err
	}
	was, records := slices.Clone(p.data.view), slices.Clone(p.records.view)
	p.fill(11, 0, 12, 3, 14) // chunk 3 stays as it is

	p.data.plant.set(n)
	if _, err := p.pull(ctx, p.ahead); err != nil && !errors.Is(err, errPower) {
		return err
	}
	if err := p.crash(seed); err != nil {
		return err
	}
	if err := p.honestAll(); err != nil {
		return fmt.Errorf("in a pass ahead: %w", err)
	}
	if !bytes.Equal(was, p.data.view) || !bytes.Equal(records, p.records.view) {
		return errors.New("the mirror was written to")
	}
	pass, err := p.pull(ctx, p.ahead)
	if err != nil || pass.Changed > 4 {
		return fmt.Errorf("a pass ahead again: %+v, %w", pass, err)
	}
	p.fill(1, 0, 12, 3, 14) // and one that is again what it was
	if pass, err = p.pull(ctx, p.ahead); err != nil || pass.Changed != 1 {
		return fmt.Errorf("a second pass ahead looked at %d chunks, and changed %d: %w", pass.Chunks, pass.Changed, err)
	}
	want := slices.Clone(p.source.memFile.view)

	p.data.plant.set(n)
	f, err := fold(ctx, p.Mirror, p.ahead.Mirror, 4, nil)
	if err != nil && !errors.Is(err, errPower) || f.Lost {
		return fmt.Errorf("folded: %+v: %w", f, err)
	}
	if err := p.crash(seed + 1); err != nil {
		return err
	}
	if err := p.honestAll(); err != nil {
		return fmt.Errorf("in a fold: %w", err)
	}
	if f, err := fold(ctx, p.Mirror, p.ahead.Mirror, 4, nil); err != nil || f.Lost {
		return fmt.Errorf("folded again: %+v: %w", f, err)
	}
	if !bytes.Equal(p.data.durable, want) || !bytes.Equal(p.records.durable, p.records.view) {
		return errors.New("the mirror is not what was pulled ahead")
	}
	if held, err := p.ahead.Held(); err != nil || held != 0 {
		return fmt.Errorf("%d chunks are ahead still: %w", held, err)
	}
	if pass, err := p.pull(ctx, p.memMirror); err != nil || pass.Changed != 0 {
		return fmt.Errorf("there was left to pull: %+v: %w", pass, err)
	}
	v, err := Verify(ctx, p.Mirror, "sda", Options{Dial: p.source.dial})
	if err != nil || len(v.Differ) > 0 {
		return fmt.Errorf("%+v: %w", v, err)
	}
	return p.honestAll()
}

// What rotted while it was ahead does not come into the mirror, which then says that it lacks it.
func TestFoldRot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := newPair(t, ctx, 3)
		defer p.source.wg.Wait()
		defer cancel()
		p.fill(1, 2, 3)
		_, err1 := p.pull(ctx, p.memMirror)
		p.fill(11, 12, 3)
		_, err2 := p.pull(ctx, p.ahead)
		p.ahead.data.view[MinChunkSize+7] ^= 1
		f, err3 := fold(ctx, p.Mirror, p.ahead.Mirror, 2, nil)
		if err := errors.Join(err1, err2, err3); err != nil || !f.Lost || f.Chunks != 2 {
			t.Errorf("%+v, %v", f, err)
		}
		if held, err := p.Held(); held != 2 || err != nil {
			t.Errorf("%d of 3 chunks are held, %v", held, err)
		}
		pass, err := p.pull(ctx, p.memMirror)
		if err != nil || pass.Changed != 1 || !bytes.Equal(p.data.view, p.source.memFile.view) {
			t.Errorf("%+v, %v", pass, err)
		}
	})
}

// A write that the disk has lost: what is ahead reads as what the mirror holds, which is older.
func TestFoldLostWrite(t *testing.T) {
	for name, was := range map[string]byte{"zero": 0, "data": 2} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				p := newPair(t, ctx, 3)
				defer p.source.wg.Wait()
				defer cancel()
				p.fill(1, was, 3)
				_, err1 := p.pull(ctx, p.memMirror)
				p.fill(11, 12, 3)
				_, err2 := p.pull(ctx, p.ahead)
				copy(p.ahead.data.view[MinChunkSize:2*MinChunkSize], p.data.view[MinChunkSize:])
				f, err3 := fold(ctx, p.Mirror, p.ahead.Mirror, 2, nil)
				if err := errors.Join(err1, err2, err3); err != nil || !f.Lost {
					t.Errorf("%+v, %v", f, err)
				}
				pass, err := p.pull(ctx, p.memMirror)
				if err != nil || pass.Changed != 1 || !bytes.Equal(p.data.view, p.source.memFile.view) {
					t.Errorf("%+v, %v", pass, err)
				}
			})
		})
	}
}

// A fold for which there is no room tells so, and goes on when there is.
func TestFoldFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := newPair(t, ctx, 3)
		defer p.source.wg.Wait()
		defer cancel()
		p.fill(1, 0, 0)
		_, err1 := p.pull(ctx, p.memMirror)
		p.fill(1, 2, 3)
		_, err2 := p.pull(ctx, p.ahead)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		p.data.room = 2*MinChunkSize + 5*align
		_, err := fold(ctx, p.Mirror, p.ahead.Mirror, 2, nil)
		if _, is := errors.AsType[*SpaceError](err); !is {
			t.Fatalf("got %v", err)
		}
		p.data.room = 0
		if err := p.crash(1); err != nil {
			t.Fatal(err)
		}
		f, err := fold(ctx, p.Mirror, p.ahead.Mirror, 2, nil)
		if err != nil || f.Lost || !bytes.Equal(p.data.view, p.source.memFile.view) || len(p.ahead.data.stored) > 0 {
			t.Errorf("%+v, %v; %d pages are not given back", f, err, len(p.ahead.data.stored))
		}
	})
}

// aheadOf is a mirror on a real filesystem, of 200 chunks: several parts of a fold.
func aheadOf(t *testing.T) (spec Spec, disk string, pull func(m *Mirror, err error) Pass) {
	t.Helper()
	const size = 200 * MinChunkSize
	disk = randomDisk(t, size, 9)
	s, dir := serve(t, disk), t.TempDir()
	spec = Spec{Path: filepath.Join(dir, "0.raw"), Map: filepath.Join(dir, "0.map"), ID: "wwn-1", Size: size, ChunkSize: MinChunkSize}
	pull = func(m *Mirror, err error) Pass {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		p, err := Pull(t.Context(), m, "sda", Options{Dial: dialUnix(s.socket)})
		if err = errors.Join(err, m.Close()); err != nil {
			t.Fatal(err)
		}
		return p
	}
	pull(OpenMirror(spec))
	return spec, disk, pull
}

func change(t *testing.T, disk string, seed uint64) {
	t.Helper()
	b, err := os.ReadFile(disk)
	if err == nil {
		for off := 0; off < len(b); off += 2 * MinChunkSize {
			copy(b[off:], noise(100, seed))
		}
		err = os.WriteFile(disk, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func equalFiles(t *testing.T, one, other string) bool {
	t.Helper()
	a, err1 := os.ReadFile(one)
	b, err2 := os.ReadFile(other)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(a, b)
}

// On a real filesystem: whoever has the mirror's file for himself keeps it as it was, until the fold,
// which is broken off after each of its parts.
func TestAheadOfAFile(t *testing.T) {
	spec, disk, pull := aheadOf(t)
	var before, now unix.Stat_t
	stat := func(st *unix.Stat_t) {
		t.Helper()
		if err := unix.Stat(spec.Path, st); err != nil {
			t.Fatal(err)
		}
	}
	stat(&before)
	if err := os.Rename(spec.Path, spec.Path+".away"); err != nil { // it is not even opened
		t.Fatal(err)
	}
	change(t, disk, 1)
	if p := pull(OpenAhead(spec)); p.Changed != 100 {
		t.Errorf("the first pass ahead: %+v", p)
	}
	change(t, disk, 2)
	if p := pull(OpenAhead(spec)); p.Changed != 100 {
		t.Errorf("the second pass ahead: %+v", p)
	}
	if p := pull(OpenAhead(spec)); p.Changed != 0 {
		t.Errorf("one without changes: %+v", p)
	}
	if err := os.Rename(spec.Path+".away", spec.Path); err != nil {
		t.Fatal(err)
	}
	if stat(&now); now.Mtim != before.Mtim {
		t.Error("the mirror was written to")
	}
	if _, err := OpenMirror(spec); !errors.Is(err, ErrAhead) {
		t.Errorf("it can be opened, and what is ahead would be forgotten: %v", err)
	}
	a, err := OpenAhead(spec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Fold(t.Context(), spec, nil); !errors.Is(err, ErrBusy) {
		t.Errorf("it is folded while it is written: %v", err)
	}
	if _, err := Verify(t.Context(), a, "sda", Options{}); !errors.Is(err, ErrAhead) {
		t.Errorf("verified: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	parts, broken := 0, errors.New("broken off for the test")
	for ; ; parts++ {
		ctx, cancel := context.WithCancelCause(t.Context())
		f, err := Fold(ctx, spec, func(int64, int64) { cancel(broken) })
		cancel(nil)
		if f.Lost || err != nil && !errors.Is(err, broken) {
			t.Fatalf("%+v, %v", f, err)
		}
		if err == nil {
			break
		}
	}
	if parts != 3 {
		t.Errorf("it was broken off %d times", parts)
	}
	if !equalFiles(t, disk, spec.Path) {
		t.Error("the mirror is not what was pulled ahead")
	}
	if left, _ := filepath.Glob(spec.Map + ".*"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if p := pull(OpenMirror(spec)); p.Changed != 0 {
		t.Errorf("there was left to pull: %+v", p)
	}
}

// What is ahead and is of no use is dropped, and whoever asks is told that the mirror is older.
func TestFoldDrops(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, a Spec)
		lost  bool
	}{
		"data without a map":    {func(t *testing.T, a Spec) { t.Helper(); remove(t, a.Map) }, false},
		"a map without data":    {func(t *testing.T, a Spec) { t.Helper(); remove(t, a.Path) }, true},
		"short data":            {func(t *testing.T, a Spec) { t.Helper(); truncate(t, a.Path, 5) }, true},
		"a damaged map":         {func(t *testing.T, a Spec) { t.Helper(); poke(t, a.Map, 300, 1) }, true},
		"a map that was begun":  {func(t *testing.T, a Spec) { t.Helper(); truncate(t, a.Map, 0) }, false},
		"a map of another disk": {func(t *testing.T, a Spec) { t.Helper(); poke(t, a.Map, 26, 'x') }, true},
	} {
		t.Run(name, func(t *testing.T) {
			spec, disk, pull := aheadOf(t)
			change(t, disk, 1)
			pull(OpenAhead(spec))
			c.spoil(t, spec.Ahead())
			f, err := Fold(t.Context(), spec, nil)
			if err != nil || f.Lost != c.lost || f.Chunks != 0 {
				t.Errorf("%+v, %v", f, err)
			}
			if left, _ := filepath.Glob(spec.Map + ".*"); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
			if p := pull(OpenMirror(spec)); p.Changed != 100 || !equalFiles(t, disk, spec.Path) {
				t.Errorf("%+v", p)
			}
		})
	}
}

// Data that a fold has left behind without its map is not taken for what is ahead now.
func TestAheadBeginsAnew(t *testing.T) {
	spec, disk, pull := aheadOf(t)
	change(t, disk, 1)
	if err := os.WriteFile(spec.Ahead().Path, noise(3*MinChunkSize, 1), 0o600); err != nil {
		t.Fatal(err)
	}
	pull(OpenAhead(spec))
	if f, err := Fold(t.Context(), spec, nil); err != nil || f.Lost || f.Chunks != 100 || !equalFiles(t, disk, spec.Path) {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestAheadOfNothing(t *testing.T) {
	dir := t.TempDir()
	spec := Spec{Path: filepath.Join(dir, "0.raw"), Map: filepath.Join(dir, "0.map"), ID: "wwn-1", Size: MinChunkSize, ChunkSize: MinChunkSize}
	if m, err := OpenAhead(spec); err == nil {
		t.Error("ahead of a mirror that is not there")
		m.Close()
	}
	if f, err := Fold(t.Context(), spec, nil); err != nil || f != (Folded{}) {
		t.Errorf("%+v, %v", f, err)
	}
}
