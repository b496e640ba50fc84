package block

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

var errPower = errors.New("the power is gone")

// A power plant fails after so many operations on the files that it feeds.
type plant struct {
	mu   sync.Mutex
	left int // operations until it fails; negative: it does not
}

func (p *plant) use() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left == 0 {
		return errPower
	}
	p.left--
	return nil
}

func (p *plant) set(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = n
}

// A memFile is a file whose writes may get lost until they are synced.
type memFile struct {
	plant *plant
	room  int64 // bytes that may be stored, 0: any

	mu      sync.Mutex
	view    []byte // what is read
	durable []byte // what was there at the last sync
	writes  []memWrite
	stored  map[int64]bool // pages
	lie     bool           // Sync does nothing, and says that all is well
	written func()         // called after each write, if not nil
}

type memWrite struct {
	off  int64
	data []byte
}

func newMemFile(p *plant, size int64) *memFile {
	return &memFile{plant: p, view: make([]byte, size), durable: make([]byte, size), stored: map[int64]bool{}}
}

func (f *memFile) ReadAt(b []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if off >= int64(len(f.view)) {
		return 0, io.EOF
	}
	n := copy(b, f.view[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// read makes a memFile a disk that is read.
func (f *memFile) read(b *buffer, off int64, n int) ([]byte, error) {
	_, err := f.ReadAt(b.data()[:n], off)
	return b.data()[:n], err
}

func (f *memFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.plant.use(); err != nil {
		return 0, err
	}
	if err := f.writeAt(b, off); err != nil {
		return 0, err
	}
	if f.written != nil {
		f.written()
	}
	return len(b), nil
}

func (f *memFile) writeAt(b []byte, off int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for page := off / align; page*align < off+int64(len(b)); page++ {
		if f.room > 0 && !f.stored[page] && int64(len(f.stored)+1)*align > f.room {
			return unix.ENOSPC
		}
		f.stored[page] = true
	}
	f.apply(b, off)
	return nil
}

func (f *memFile) apply(b []byte, off int64) {
	copy(f.view[off:], b)
	f.writes = append(f.writes, memWrite{off: off, data: slices.Clone(b)})
}

func (f *memFile) Zero(off, n int64) error {
	if err := f.plant.use(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for page := off / align; (page+1)*align <= off+n; page++ {
		delete(f.stored, page)
	}
	f.apply(make([]byte, n), off)
	return nil
}

func (f *memFile) Sync() error {
	if err := f.plant.use(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.lie {
		f.durable, f.writes = slices.Clone(f.view), nil
	}
	return nil
}

func (f *memFile) Room() (stored, free int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	stored = int64(len(f.stored)) * align
	return stored, f.room - stored, nil
}

func (f *memFile) Close() error { return nil }

// crash loses what was not synced, apart from what had come to the disk by
// itself: any sectors of any writes, and of a write the last may be torn.
func (f *memFile) crash(r *rand.Rand) {
	const sector = 512
	f.mu.Lock()
	defer f.mu.Unlock()
	keep := r.Float64() * 1.2 // also none and all
	for _, w := range f.writes {
		for off := 0; off < len(w.data); off += sector {
			end := min(off+sector, len(w.data))
			if r.Float64() > keep {
				continue
			}
			if r.IntN(8) == 0 {
				end = off + r.IntN(end-off)
			}
			copy(f.durable[w.off+int64(off):], w.data[off:end])
		}
	}
	f.view, f.writes = slices.Clone(f.durable), nil
}

// A memSource is a disk in memory, served over pipes.
type memSource struct {
	*memFile
	server *Server
	ctx    context.Context
	wg     sync.WaitGroup
	// cut makes the n-th connection end after so many bytes, if that is not 0.
	cut   func(n int) int64
	dials int
}

func newMemSource(t testing.TB, ctx context.Context, size int64) *memSource { //nolint:revive // A test comes first.
	s, err := newServer(quiet())
	if err != nil {
		t.Fatal(err)
	}
	m := &memSource{memFile: newMemFile(&plant{left: -1}, size), server: s, ctx: ctx}
	s.disks = []served{{Info: Info{Name: "sda", ID: "wwn-1", Size: size}, reader: m.memFile}}
	return m
}

func (s *memSource) dial(context.Context) (io.ReadWriteCloser, error) {
	near, far := net.Pipe()
	s.wg.Go(func() { _ = s.server.Serve(s.ctx, far) })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dials++
	if s.cut == nil || s.cut(s.dials) == 0 {
		return near, nil
	}
	return &cutConn{Conn: near, left: s.cut(s.dials)}, nil
}

// A cutConn ends after so many bytes were read.
type cutConn struct {
	net.Conn
	left int64
}

func (c *cutConn) Read(b []byte) (int, error) {
	if c.left <= 0 {
		c.Close()
		return 0, io.ErrUnexpectedEOF
	}
	n, err := c.Conn.Read(b[:min(int64(len(b)), c.left)])
	c.left -= int64(n)
	return n, err
}

// A memMirror is a mirror in memory.
type memMirror struct {
	*Mirror
	data, records *memFile
}

// openMem opens a mirror on the two files, which are as a crash left them.
func openMem(data, records *memFile, g geometry) (*memMirror, error) {
	t := &table{file: records, name: "map", geometry: g, id: "wwn-1"}
	fresh, err := t.load()
	if err != nil {
		return nil, err
	}
	if fresh {
		if err := t.create(); err != nil {
			return nil, err
		}
	}
	return &memMirror{Mirror: newMirror(data, t, data), data: data, records: records}, nil
}

func newMem(t testing.TB, size int64) *memMirror {
	t.Helper()
	g, err := newGeometry(size, MinChunkSize)
	if err != nil {
		t.Fatal(err)
	}
	p := &plant{left: -1}
	m, err := openMem(newMemFile(p, size), newMemFile(p, (&table{geometry: g}).end()), g)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// fill writes chunk i of a disk: content 0 is zeros, 1 to 99 cannot be
// compressed, from 100 on it can.
func (f *memFile) fill(g geometry, i int64, content byte) {
	b := make([]byte, g.length(i))
	switch {
	case content >= 100:
		for k := range b {
			b[k] = content * byte(k/100)
		}
		b[0] = content
	case content > 0:
		b = noise(int64(len(b)), uint64(content)<<8|uint64(i))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	copy(f.view[g.offset(i):], b)
}
