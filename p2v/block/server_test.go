package block

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestServerNamesItsDisks(t *testing.T) {
	disk := randomDisk(t, 2*MinChunkSize+512, 1)
	if err := os.Chmod(disk, 0o400); err != nil {
		t.Fatal(err)
	}
	s, err := NewServer([]Disk{{Name: "nvme0n1", Path: disk, ID: "eui.1", Serial: "S1", Model: "M <&>"}}, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l, err := dial(t.Context(), newCrew(newMem(t, 1).Mirror, "", Options{Dial: dialUnix(listen(t, s))}).o, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	got, err := l.list()
	want := []Info{{Name: "nvme0n1", ID: "eui.1", Serial: "S1", Model: "M <&>", Size: 2*MinChunkSize + 512, BlockSize: 512, ReadOnly: true}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestServerRefusesDisks(t *testing.T) {
	disk := randomDisk(t, MinChunkSize, 1)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, disks := range map[string][]Disk{
		"a name is up to":           {{Name: "../etc/shadow", Path: disk}},
		"64 letters":                {{Name: "", Path: disk}},
		"given twice":               {{Name: "a", Path: disk}, {Name: "a", Path: disk}},
		"no such file":              {{Name: "a", Path: disk + "x"}},
		"neither a block device":    {{Name: "a", Path: t.TempDir()}},
		"a block device nor a file": {{Name: "a", Path: fifo}},
		"device nor a file":         {{Name: "a", Path: "/dev/zero"}},
		"longer than 256":           {{Name: "a", Path: disk, ID: strings.Repeat("i", 257)}},
	} {
		s, err := NewServer(disks, quiet())
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", disks, err)
		}
	}
}

func TestServerRefusesRequests(t *testing.T) {
	s := serve(t, randomDisk(t, 3*MinChunkSize, 1))
	ok := string(putAsks([]ask{{index: 0}, {index: 2}}))
	for _, c := range []struct {
		method, target, body string
		status               int
	}{
		{"POST", "/disks/sda/changed?chunk=65536", ok, 200},
		{"POST", "/disks/sdb/changed?chunk=65536", ok, 404},
		{"POST", "/disks/..%2Fsda/changed?chunk=65536", ok, 404},
		{"POST", "/disks/%2Fetc%2Fpasswd/changed?chunk=65536", ok, 404},
		{"POST", "/disks/sda/changed", ok, 400},
		{"POST", "/disks/sda/changed?chunk=1", ok, 400},
		{"POST", "/disks/sda/changed?chunk=65537", ok, 400},
		{"POST", "/disks/sda/changed?chunk=1073741824", ok, 400},
		{"POST", "/disks/sda/changed?chunk=65536", "", 400},
		{"POST", "/disks/sda/changed?chunk=65536", ok[1:], 400},
		{"POST", "/disks/sda/changed?chunk=65536", ok + ok, 400},
		{"POST", "/disks/sda/changed?chunk=65536", string(putAsks([]ask{{index: 3}})), 400},
		{"POST", "/disks/sda/changed?chunk=65536", string(putAsks([]ask{{index: -1}})), 400},
		{"POST", "/disks/sda/changed?chunk=65536", strings.Repeat(ok, maxAsk), 400},
		{"GET", "/disks/sda/changed?chunk=65536", "", 405},
		{"PUT", "/disks/sda", ok, 404},
		{"DELETE", "/disks/sda", "", 404},
		{"GET", "/disks/sda/hashes?chunk=65536&from=0&n=3", "", 200},
		{"GET", "/disks/sda/hashes?chunk=65536&from=0&n=4", "", 400},
		{"GET", "/disks/sda/hashes?chunk=65536&from=0&n=0", "", 400},
		{"GET", "/disks/sda/hashes?chunk=65536&from=-1&n=1", "", 400},
		{"GET", "/disks/sda/hashes?chunk=65536&from=9223372036854775807&n=1", "", 400},
		{"GET", "/disks/sda/hashes?chunk=65536&from=0&n=9223372036854775807", "", 400},
		{"GET", "/disks/sda/hashes?chunk=65536", "", 400},
		{"GET", "/", "", 404},
	} {
		conn, err := net.Dial("unix", s.socket)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", c.method, c.target, len(c.body), c.body)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != c.status {
			t.Errorf("%s %s with %d bytes: %s", c.method, c.target, len(c.body), resp.Status)
		}
		conn.Close()
	}
}

// A disk that cannot be read at one place is told with that place.
func TestReadErrorIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := newMemSource(t, ctx, 8*MinChunkSize)
		defer s.wg.Wait()
		defer cancel()
		for i := range int64(8) {
			s.fill(geometry{size: 8 * MinChunkSize, chunk: MinChunkSize}, i, 1)
		}
		const bad = 5*MinChunkSize + 3*align
		s.server.disks[0].reader = &badBlock{reader: s.memFile, at: bad}
		want := &SourceError{Disk: "sda", Offset: bad, Cause: "input/output error"}
		m := newMem(t, 8*MinChunkSize)
		o := Options{Dial: s.dial, Connections: 1}
		p, err := Pull(ctx, m.Mirror, "sda", o)
		got, _ := errors.AsType[*SourceError](err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("pull: %v (-want +got):\n%s", err, diff)
		}
		if held, err := m.Held(); held != 5 || p.Changed != 5 || err != nil {
			t.Errorf("%d chunks are held and %d written, %v", held, p.Changed, err)
		}
		_, err = Verify(ctx, m.Mirror, "sda", o)
		got, _ = errors.AsType[*SourceError](err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("verify: %v (-want +got):\n%s", err, diff)
		}
	})
}

type badBlock struct {
	reader
	at int64
}

func (r *badBlock) read(b *buffer, off int64, n int) ([]byte, error) {
	if off <= r.at && r.at < off+int64(n) {
		return nil, syscall.EIO
	}
	return r.reader.read(b, off, n)
}

// What a source says ends on terminals.
func TestSourceErrorIsPlain(t *testing.T) {
	err := parseMessage([]byte(`{"disk":"a\u001b[2J","cause":"b\n` + strings.Repeat("c", 1000) + `"}`))
	if s := err.Error(); len(s) > 500 || strings.ContainsAny(s, "\x1b\n") {
		t.Errorf("%q", s)
	}
}

// No descriptor of the source's disk can write.
func TestSourceIsOpenedForReadingOnly(t *testing.T) {
	disk := randomDisk(t, 2*MinChunkSize, 1)
	s := serve(t, disk)
	m := mirrorOf(t, t.TempDir(), disk, MinChunkSize)
	defer m.Close()
	looked := 0
	_, err := Pull(t.Context(), m, "sda", Options{Dial: func(ctx context.Context) (io.ReadWriteCloser, error) {
		looked += readOnlyDescriptors(t, disk)
		return dialUnix(s.socket)(ctx)
	}, Connections: 1})
	if looked += readOnlyDescriptors(t, disk); err != nil || looked != 2 {
		t.Errorf("saw %d descriptors, %v", looked, err)
	}
	if n := readOnlyDescriptors(t, disk); n != 1 {
		t.Errorf("%d descriptors", n)
	}
}

func readOnlyDescriptors(t *testing.T, path string) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err != nil || to != path {
			continue
		}
		info, err := os.ReadFile("/proc/self/fdinfo/" + fd.Name())
		if err != nil {
			t.Fatal(err)
		}
		_, flags, _ := strings.Cut(string(info), "flags:\t")
		flags, _, _ = strings.Cut(flags, "\n")
		mode, err := strconv.ParseUint(flags, 8, 32)
		if err != nil || mode&unix.O_ACCMODE != unix.O_RDONLY {
			t.Errorf("descriptor %s has flags %s, %v", fd.Name(), flags, err)
		}
		n++
	}
	return n
}

// Serve ends with the context, with the peer, and when nobody asks for long.
func TestServeEnds(t *testing.T) {
	disk := randomDisk(t, MinChunkSize, 1)
	for name, end := range map[string]func(cancel func(), peer net.Conn){
		"context": func(cancel func(), _ net.Conn) { cancel() },
		"peer":    func(_ func(), peer net.Conn) { peer.Close() },
		"idle":    func(func(), net.Conn) {},
		"mute": func(_ func(), peer net.Conn) {
			fmt.Fprintf(peer, "POST /disks/sda/changed?chunk=65536 HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n")
			_, _ = io.Copy(io.Discard, peer)
		},
		"nobody reads": func(_ func(), peer net.Conn) {
			fmt.Fprintf(peer, "GET /disks/sda/hashes?chunk=65536&from=0&n=1 HTTP/1.1\r\nHost: x\r\n\r\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				near, far := net.Pipe()
				began := time.Now()
				var wg sync.WaitGroup
				wg.Go(func() {
					if err := Serve(ctx, far, []Disk{{Name: "sda", Path: disk}}, quiet()); err != nil {
						t.Error(err)
					}
				})
				end(cancel, near)
				wg.Wait()
				near.Close()
				if took := time.Since(began); took > idleTime+writeTime {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

func TestStdio(t *testing.T) {
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	inR.Fd() // blocking, as a program finds it
	outW.Fd()
	conn, err := Stdio(inR, outW)
	if err != nil {
		t.Fatal(err)
	}
	disk := randomDisk(t, 3*MinChunkSize, 7)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := Serve(t.Context(), conn, []Disk{{Name: "sda", Path: disk, ID: "wwn-1"}}, quiet()); err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	m := mirrorOf(t, dir, disk, MinChunkSize)
	defer m.Close()
	_, err = Pull(t.Context(), m, "sda", Options{Connections: 1, Dial: func(context.Context) (io.ReadWriteCloser, error) {
		return &stdio{r: outR, w: inW}, nil
	}})
	if err != nil {
		t.Error(err)
	}
	wg.Wait()
	sameFiles(t, disk, filepath.Join(dir, "0.raw"))

	file, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Stdio(file, file); err == nil || !strings.Contains(err.Error(), "pipe or a socket") {
		t.Error("a file is taken for a connection:", err)
	}
}

func TestIsZero(t *testing.T) {
	for _, n := range []int{0, 1, 4095, 4096, 4097, 3 * 4096} {
		b := make([]byte, n)
		if !isZero(b) {
			t.Errorf("%d zeros are not", n)
		}
		for _, at := range []int{0, n / 2, n - 1} {
			if n == 0 {
				continue
			}
			c := bytes.Clone(b)
			c[at] = 1
			if isZero(c) {
				t.Errorf("%d bytes with one at %d are zeros", n, at)
			}
		}
	}
}
