package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// A lender is a disk of another host: one that is away now and then, or bad at one place.
type lender struct {
	io.ReaderAt

	reads, away atomic.Int64 // away: of so many reads none is answered
	bad         int64        // place of a bad block, bytes
	why         error
}

func (l *lender) ReadAt(b []byte, off int64) (int, error) {
	l.reads.Add(1)
	if off%align != 0 {
		return 0, fmt.Errorf("a read at byte %d", off)
	}
	if l.away.Add(-1) >= 0 {
		return 0, fmt.Errorf("no answer: %w", ErrAway)
	}
	if l.why != nil && off <= l.bad && l.bad < off+int64(len(b)) {
		return 0, l.why
	}
	return l.ReaderAt.ReadAt(b, off)
}

// pullLent copies a disk that is lent, and returns how it went and how many connections it took.
func pullLent(t *testing.T, d Disk, m *Mirror) (dials int, err error) {
	t.Helper()
	s, err := NewServer([]Disk{d}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	_, err = Pull(ctx, m, "sda", Options{Connections: 1, Dial: func(context.Context) (io.ReadWriteCloser, error) {
		near, far := net.Pipe()
		dials++
		wg.Go(func() {
			if err := s.Serve(ctx, far); err != nil {
				t.Error(err)
			}
		})
		return near, nil
	}})
	cancel()
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	return dials, err
}

// A disk of another host is copied as one of this host is; that it is away for a while costs
// connections, and is never taken for a block that cannot be read.
func TestLent(t *testing.T) {
	path := randomDisk(t, 5*MinChunkSize+512, 1)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := &lender{ReaderAt: f}
	l.away.Store(2)
	dir := t.TempDir()
	m := mirrorOf(t, dir, path, MinChunkSize)
	defer m.Close()
	dials, err := pullLent(t, Disk{Name: "sda", ID: "wwn-1", Reader: l, Size: 5*MinChunkSize + 512}, m)
	if err != nil || dials < 2 {
		t.Errorf("%d connections, %v", dials, err)
	}
	sameFiles(t, path, dir+"/0.raw")
}

func TestLentBadBlock(t *testing.T) {
	path := randomDisk(t, 5*MinChunkSize, 1)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for want, l := range map[string]*lender{
		"at byte 143360: EIO": {ReaderAt: f, bad: 143360 + 7, why: errors.New("EIO")},
		"the disk ends at":    {ReaderAt: io.NewSectionReader(f, 0, 4*MinChunkSize)},
	} {
		m := mirrorOf(t, t.TempDir(), path, MinChunkSize)
		defer m.Close()
		_, err := pullLent(t, Disk{Name: "sda", ID: "wwn-1", Reader: l, Size: 5 * MinChunkSize}, m)
		if _, is := errors.AsType[*SourceError](err); !is || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestLentRefused(t *testing.T) {
	for _, d := range []Disk{
		{Name: "sda", Reader: strings.NewReader("x")},
		{Name: "sda", Reader: strings.NewReader("x"), Size: 1, Path: "/dev/zero"},
	} {
		if s, err := NewServer([]Disk{d}, quiet()); err == nil {
			s.Close()
			t.Errorf("%+v is served", d)
		}
	}
}
