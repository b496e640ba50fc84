package block

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func sameFiles(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Errorf("%s and %s differ", a, b)
	}
}

// Three passes over a real file: all, nothing, what changed; then some chunks only.
func TestPasses(t *testing.T) {
	const size = 20*MinChunkSize + 777
	for _, compress := range []bool{false, true} {
		disk := randomDisk(t, size, 1)
		s := serve(t, disk)
		dir := t.TempDir()
		o := Options{Dial: dialUnix(s.socket), Compress: compress}
		var got []Pass
		pull := func(only []Range) {
			t.Helper()
			m := mirrorOf(t, dir, disk, MinChunkSize)
			defer m.Close()
			o.Only = only
			p, err := Pull(t.Context(), m, "sda", o)
			if err != nil {
				t.Fatal(err)
			}
			if p.Duration <= 0 || p.Sent < p.Chunks || p.Started.IsZero() {
				t.Errorf("%+v", p)
			}
			got = append(got, p)
		}
		pull(nil)
		sameFiles(t, disk, filepath.Join(dir, "0.raw"))
		pull(nil)
		poke(t, disk, 5*MinChunkSize+9, 'x')
		poke(t, disk, size-1, 'x')
		pull(nil)
		sameFiles(t, disk, filepath.Join(dir, "0.raw"))
		poke(t, disk, 2*MinChunkSize, 'y')
		poke(t, disk, 7*MinChunkSize, 'y')
		pull([]Range{{From: 1, N: 4}, {From: 9, N: 1}})
		pull([]Range{})
		pull([]Range{{From: 7, N: 1}, {From: 20, N: 1}})
		sameFiles(t, disk, filepath.Join(dir, "0.raw"))
		want := []Pass{
			{Chunks: 21, Bytes: size, Changed: 21, Written: size},
			{Chunks: 21, Bytes: size},
			{Chunks: 21, Bytes: size, Changed: 2, Written: MinChunkSize + 777},
			{Chunks: 5, Bytes: 5 * MinChunkSize, Changed: 1, Written: MinChunkSize},
			{},
			{Chunks: 2, Bytes: MinChunkSize + 777, Changed: 1, Written: MinChunkSize},
		}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Pass{}, "Started", "Duration", "Sent")); diff != "" {
			t.Errorf("compress %v: passes (-want +got):\n%s", compress, diff)
		}
	}
}

// Dirty chunks all over a disk are asked for together.
func TestScatteredChunksShareRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := newMemSource(t, ctx, 400*MinChunkSize)
		defer s.wg.Wait()
		defer cancel()
		var only []Range
		for i := int64(0); i < 400; i += 4 {
			only = append(only, Range{From: i, N: 1})
		}
		asked := 0
		m := newMem(t, 400*MinChunkSize)
		p, err := Pull(ctx, m.Mirror, "sda", Options{Connections: 1, Only: only, Dial: func(ctx context.Context) (io.ReadWriteCloser, error) {
			c, err := s.dial(ctx)
			return &listening{ReadWriteCloser: c, heard: func(b []byte) { asked += bytes.Count(b, []byte("POST ")) }}, err
		}})
		if err != nil || p.Chunks != 100 || asked != 2 {
			t.Errorf("%d requests, %+v, %v", asked, p, err)
		}
	})
}

type listening struct {
	io.ReadWriteCloser
	heard func([]byte)
}

func (l *listening) Write(b []byte) (int, error) {
	l.heard(b)
	return l.ReadWriteCloser.Write(b)
}

func TestCompressionSendsLess(t *testing.T) {
	sent := func(b []byte, compress bool) int64 {
		disk := writeFile(t, b)
		s := serve(t, disk)
		m := mirrorOf(t, t.TempDir(), disk, MinChunkSize)
		defer m.Close()
		p, err := Pull(t.Context(), m, "sda", Options{Dial: dialUnix(s.socket), Compress: compress})
		if err != nil {
			t.Fatal(err)
		}
		return p.Sent
	}
	text := bytes.Repeat([]byte("all work and no play "), 20*MinChunkSize/21)
	if plain, packed := sent(text, false), sent(text, true); packed > plain/10 {
		t.Errorf("%d bytes became %d", plain, packed)
	}
	hard := noise(20*MinChunkSize, 1)
	if plain, packed := sent(hard, false), sent(hard, true); packed > plain {
		t.Errorf("%d bytes that cannot be compressed became %d", plain, packed)
	}
}

func TestPullRefusesBadOptions(t *testing.T) {
	m := newMem(t, 10*MinChunkSize)
	for _, o := range []Options{
		{Connections: -1},
		{Connections: MaxConnections + 1},
		{Only: []Range{{From: -1, N: 1}}},
		{Only: []Range{{From: 0, N: 0}}},
		{Only: []Range{{From: 0, N: 11}}},
		{Only: []Range{{From: 10, N: 1}}},
		{Only: []Range{{From: 1 << 62, N: 1 << 62}}},
		{Only: []Range{{From: 3, N: 2}, {From: 4, N: 1}}},
	} {
		if _, err := Pull(t.Context(), m.Mirror, "sda", o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

// A carrier forwards connections to a socket and cuts each after so many bytes.
type carrier struct {
	socket string
	bytes  atomic.Int64 // that came from the source
	cuts   atomic.Int64 // of connections that had not ended before
}

func carry(t testing.TB, to string, cut func() int64) *carrier {
	t.Helper()
	c := &carrier{socket: filepath.Join(t.TempDir(), "c")}
	l, err := net.Listen("unix", c.socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", to)
			if err != nil {
				near.Close()
				continue
			}
			wg.Go(func() { _, _ = io.Copy(far, near); far.Close() })
			wg.Go(func() {
				if _, err := io.CopyN(&counting{near, &c.bytes}, far, cut()); err == nil {
					c.cuts.Add(1)
				}
				near.Close()
				far.Close()
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return c
}

type counting struct {
	io.Writer
	n *atomic.Int64
}

func (c *counting) Write(b []byte) (int, error) {
	n, err := c.Writer.Write(b)
	c.n.Add(int64(n))
	return n, err
}

// A connection that is cut at any byte costs the chunk that it fell into. That is tried at ten
// random bytes of a copy, and more: what all of them let through is less than the disk has that is not
// zero.
func TestCutConnections(t *testing.T) {
	const size, cuts, least, talk = 160 * MinChunkSize, 25, 10, 16 << 10
	for _, connections := range []int{1, 4} {
		disk := randomDisk(t, size, 2)
		s := serve(t, disk)
		left := atomic.Int64{}
		left.Store(cuts)
		c := carry(t, s.socket, func() int64 {
			if left.Add(-1) < 0 {
				return 1 << 60
			}
			return 1 + rand.Int64N(4*MinChunkSize)
		})
		dir := t.TempDir()
		m := mirrorOf(t, dir, disk, MinChunkSize)
		p, err := Pull(t.Context(), m, "sda", Options{Dial: dialUnix(c.socket), Connections: connections})
		m.Close()
		if err != nil {
			t.Fatal(err)
		}
		sameFiles(t, disk, filepath.Join(dir, "0.raw"))
		if left.Load() > 0 || c.cuts.Load() < least {
			t.Errorf("%d connections: %d cuts happened, of %d", connections, c.cuts.Load(), cuts)
		}
		if most := int64(size + cuts*(MinChunkSize+talk) + talk); c.bytes.Load() > most {
			t.Errorf("%d connections: %d bytes came, no more than %d are needed", connections, c.bytes.Load(), most)
		}
		if p.Changed != 160 || p.Sent > c.bytes.Load() {
			t.Errorf("%+v, and %d bytes came", p, c.bytes.Load())
		}
	}
}

// Cut within each head and end of the answers to a small disk.
func TestCutAtManyBytes(t *testing.T) {
	cuts := func(t *testing.T, at int64) (dials int) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			const size = 3 * MinChunkSize
			s := newMemSource(t, ctx, size)
			defer s.wg.Wait()
			defer cancel()
			s.fill(geometry{size: size, chunk: MinChunkSize}, 1, 101) // it packs well
			m := newMem(t, size)
			s.cut = func(n int) int64 {
				if n == 1 {
					return at
				}
				return 0
			}
			p, err := Pull(ctx, m.Mirror, "sda", Options{Dial: s.dial, Connections: 1, Compress: true})
			if err != nil || p.Changed != 3 || p.Chunks != 3 || !bytes.Equal(s.memFile.view, m.data.durable) {
				t.Errorf("cut at %d: %+v, %v", at, p, err)
			}
			dials = s.dials
		})
		return dials
	}
	at := int64(1)
	for dials := 2; dials > 1; at += 5 {
		dials = cuts(t, at)
	}
	if at < 500 || at > 5000 {
		t.Errorf("the answers have %d bytes", at)
	}
	for end := at - 60; end < at; end++ {
		cuts(t, end)
	}
}

func TestCancelKeepsWhatCame(t *testing.T) {
	const size = 64 * MinChunkSize
	disk := randomDisk(t, size, 3)
	s := serve(t, disk)
	m := mirrorOf(t, t.TempDir(), disk, MinChunkSize)
	defer m.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the admin paused it")
	var limit Limit
	limit.Set(2 * size)
	p, err := Pull(ctx, m, "sda", Options{Dial: func(ctx context.Context) (io.ReadWriteCloser, error) {
		c, err := dialUnix(s.socket)(ctx)
		return &tripwire{ReadWriteCloser: c, left: size / 8, trip: func() { cancel(why) }}, err
	}, Connections: 2, Limit: &limit})
	if !errors.Is(err, why) {
		t.Fatal("not cancelled:", err)
	}
	held, err := m.Held()
	if err != nil || held != p.Changed || held == 0 || held == 64 {
		t.Errorf("%d chunks are held, %d were written, %v", held, p.Changed, err)
	}
}

// A tripwire acts after so many bytes were read.
type tripwire struct {
	io.ReadWriteCloser
	left int
	trip func()
}

func (c *tripwire) Read(b []byte) (int, error) {
	n, err := c.ReadWriteCloser.Read(b)
	if c.left -= n; c.left < 0 {
		c.trip()
	}
	return n, err
}

// A source that went and does not come back ends the pass when patience does.
func TestPatienceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMem(t, MinChunkSize)
		gone := errors.New("no route to host")
		_, err := Pull(t.Context(), m.Mirror, "sda", Options{
			Dial: func(context.Context) (io.ReadWriteCloser, error) { return nil, gone },
		})
		if !errors.Is(err, ErrNoProgress) || !errors.Is(err, gone) {
			t.Error(err)
		}
	})
}

func TestAnotherDiskBehindTheName(t *testing.T) {
	disk := randomDisk(t, 4*MinChunkSize, 4)
	s := serve(t, disk)
	for _, c := range []struct {
		disk, id string
		size     int64
		want     string
	}{
		{"sda", "wwn-2", 4 * MinChunkSize, `the disk is "wwn-2" there, and "wwn-1" is wanted`},
		{"sda", "wwn-1", 3 * MinChunkSize, "which grew"},
		{"sdb", "wwn-1", 4 * MinChunkSize, "is not served"},
	} {
		m, err := OpenMirror(Spec{
			Path: filepath.Join(t.TempDir(), "raw"), Map: filepath.Join(t.TempDir(), "map"),
			ID: c.id, Size: c.size, ChunkSize: MinChunkSize,
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Pull(t.Context(), m, c.disk, Options{Dial: dialUnix(s.socket)}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
		if held, err := m.Held(); held != 0 || err != nil {
			t.Errorf("%+v: %d chunks were written, %v", c, held, err)
		}
		m.Close()
	}
}
