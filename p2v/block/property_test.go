package block

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"
)

// A move is one thing that happens to a source and its mirror.
type move struct {
	kind    string
	chunk   int64
	content byte
	n       int // operations until power fails, bytes until a cut
	seed    uint64
	zstd    bool
	conns   int
}

func drawMoves(t *rapid.T, chunks int64) []move {
	one := rapid.Custom(func(t *rapid.T) move {
		return move{
			kind:  rapid.SampledFrom([]string{"write", "write", "write", "pull", "cut", "crash", "crash", "rot"}).Draw(t, "kind"),
			chunk: rapid.Int64Range(0, chunks-1).Draw(t, "chunk"),
			// Few contents, so that a chunk comes back to one that it had.
			content: rapid.SampledFrom([]byte{0, 1, 2, 101}).Draw(t, "content"),
			n:       rapid.IntRange(0, 60).Draw(t, "n"),
			seed:    rapid.Uint64().Draw(t, "seed"),
			zstd:    rapid.Bool().Draw(t, "zstd"),
			conns:   rapid.IntRange(1, 4).Draw(t, "conns"),
		}
	})
	return rapid.SliceOfN(one, 1, 25).Draw(t, "moves")
}

// Whatever was written, cut and lost: the map says nothing that is not so, and
// one more pass makes the mirror equal to the source.
func TestAnySequenceEndsEqual(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.Int64Range(1, 12*MinChunkSize).Draw(rt, "size")
		moves := drawMoves(rt, (size+MinChunkSize-1)/MinChunkSize)
		var err error
		synctest.Test(t, func(t *testing.T) { err = play(t, size, moves) })
		if err != nil {
			rt.Fatal(err)
		}
	})
}

type game struct {
	*memMirror
	source *memSource
	seen   map[Hash]bool // what any chunk of the source ever was
}

func play(t *testing.T, size int64, moves []move) error {
	ctx, cancel := context.WithCancel(t.Context())
	g := &game{memMirror: newMem(t, size), source: newMemSource(t, ctx, size), seen: map[Hash]bool{}}
	defer g.source.wg.Wait()
	defer cancel()
	g.look()
	for k, m := range moves {
		if err := g.move(ctx, m); err != nil {
			return fmt.Errorf("move %d, %+v: %w", k, m, err)
		}
		if err := g.honest(g.view(m)); err != nil {
			return fmt.Errorf("after move %d, %+v: %w", k, m, err)
		}
	}
	// What rotted is found and mended, then all is equal.
	o := Options{Dial: g.source.dial}
	g.source.cut = nil
	if _, err := Pull(ctx, g.Mirror, "sda", o); err != nil {
		return err
	}
	if v, err := Verify(ctx, g.Mirror, "sda", o); err != nil {
		return err
	} else if len(v.Differ) > 0 {
		o.Only = v.Differ
		if _, err := Pull(ctx, g.Mirror, "sda", o); err != nil {
			return err
		}
	}
	if !bytes.Equal(g.data.durable, g.source.memFile.view) {
		return errors.New("the mirror is not as the source")
	}
	if !bytes.Equal(g.records.durable, g.records.view) {
		return errors.New("a pass returned before its records were durable")
	}
	return nil
}

// view is what is held against the map: rot is nobody's fault.
func (g *game) view(m move) []byte {
	if m.kind == "rot" {
		return nil
	}
	return g.data.view
}

func (g *game) move(ctx context.Context, m move) error {
	o := Options{Dial: g.source.dial, Compress: m.zstd, Connections: m.conns}
	g.source.cut = nil
	switch m.kind {
	case "write":
		g.source.fill(g.geometry, m.chunk, m.content)
		g.look()
	case "rot":
		return g.rot(ctx, m, o)
	case "cut":
		g.source.cut = func(n int) int64 {
			if n%3 == 0 {
				return 0
			}
			return int64(n+m.n) * 3000
		}
		fallthrough
	case "pull":
		p, err := Pull(ctx, g.Mirror, "sda", o)
		if err == nil && p.Chunks != g.count() {
			return fmt.Errorf("looked at %d of %d chunks", p.Chunks, g.count())
		}
		return err
	case "crash":
		return g.crash(ctx, m, o)
	}
	return nil
}

// crash loses power in the middle of a pass, and opens the mirror again.
func (g *game) crash(ctx context.Context, m move, o Options) error {
	g.data.plant.set(m.n)
	if _, err := Pull(ctx, g.Mirror, "sda", o); err != nil && !errors.Is(err, errPower) {
		return err
	}
	r := rand.New(rand.NewPCG(m.seed, 0))
	g.data.crash(r)
	g.records.crash(r)
	g.data.plant.set(-1)
	var err error
	g.memMirror, err = openMem(g.data, g.records, g.geometry)
	return err
}

// rot flips a bit of the mirror, which must be found, and mends it.
func (g *game) rot(ctx context.Context, m move, o Options) error {
	if _, err := Pull(ctx, g.Mirror, "sda", o); err != nil {
		return err
	}
	at := g.offset(m.chunk) + int64(m.seed%uint64(g.length(m.chunk)))
	g.data.view[at] ^= 1 << (m.n % 8)
	v, err := Verify(ctx, g.Mirror, "sda", o)
	if err != nil {
		return err
	}
	if want := (Range{From: m.chunk, N: 1}); len(v.Differ) != 1 || v.Differ[0] != want {
		return fmt.Errorf("a bit of %v flipped, found was %v", want, v.Differ)
	}
	_, err = Pull(ctx, g.Mirror, "sda", o)
	return err
}

// look remembers what the source is.
func (g *game) look() {
	for i := range g.count() {
		g.seen[sha256.Sum256(g.source.memFile.view[g.offset(i):][:g.length(i)])] = true
	}
}

// honest says that each record with a hash that the source ever had is the hash
// of what is on the disk. A torn record has a hash that nothing has.
func (g *game) honest(data []byte) error {
	if data == nil {
		return nil
	}
	records, err := g.table.read(0, int(g.count()))
	if err != nil {
		return err
	}
	for i, have := range records {
		is := Hash(sha256.Sum256(data[g.offset(int64(i)):][:g.length(int64(i))]))
		if g.seen[have] && have != is {
			return fmt.Errorf("the map lies about chunk %d", i)
		}
	}
	return nil
}

// The check of the check: files that say they are synced and are not make maps lie.
func TestLyingDiskIsFoundOut(t *testing.T) {
	lied := false
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			g := &game{memMirror: newMem(t, 8*MinChunkSize), source: newMemSource(t, ctx, 8*MinChunkSize), seen: map[Hash]bool{}}
			defer g.source.wg.Wait()
			defer cancel()
			for i := range g.count() {
				g.source.fill(g.geometry, i, 1)
			}
			g.look()
			g.data.lie = true
			if err := g.crash(ctx, move{n: 30, seed: seed}, Options{Dial: g.source.dial}); err != nil {
				t.Fatal(err)
			}
			lied = lied || g.honest(g.data.view) != nil
		})
	}
	if !lied {
		t.Error("no crash of 50 made the map lie on a disk that does not sync")
	}
}
