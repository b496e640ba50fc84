package block

import (
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// quiet is a log that nobody reads.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// A source is a server on a unix socket, as many connections as come.
type source struct {
	server *Server
	socket string
}

// serve answers for one disk called "sda" until the test ends.
func serve(t testing.TB, path string) *source {
	t.Helper()
	s, err := NewServer([]Disk{{Name: "sda", Path: path, ID: "wwn-1"}}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &source{server: s, socket: listen(t, s)}
}

func listen(t testing.TB, s *Server) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				if err := s.Serve(ctx, c); err != nil {
					t.Error(err)
				}
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		wg.Wait()
	})
	return socket
}

func dialUnix(socket string) func(context.Context) (io.ReadWriteCloser, error) {
	return func(ctx context.Context) (io.ReadWriteCloser, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
}

// randomDisk makes a file of random bytes with a third of it zeros.
func randomDisk(t testing.TB, size int64, seed uint64) string {
	t.Helper()
	b := noise(size, seed)
	for off := 0; off < len(b); off += 3 * MinChunkSize {
		clear(b[off:min(off+MinChunkSize, len(b))])
	}
	return writeFile(t, b)
}

// noise makes bytes that cannot be compressed.
func noise(size int64, seed uint64) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

func writeFile(t testing.TB, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// mirrorOf opens a mirror of a file in a folder of its own.
func mirrorOf(t testing.TB, dir, disk string, chunk int) *Mirror {
	t.Helper()
	st, err := os.Stat(disk)
	if err != nil {
		t.Fatal(err)
	}
	m, err := OpenMirror(Spec{
		Path: filepath.Join(dir, "0.raw"), Map: filepath.Join(dir, "0.map"),
		ID: "wwn-1", Size: st.Size(), ChunkSize: chunk,
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}
