package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"gpuvirt/gpu"
)

// Whatever is read of whatever disk, it is what is there, in requests as the server wants them.
func TestReadAt(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := newFake(t, rapid.IntRange(1, 64<<10).Draw(rt, "size"))
		minimum := int64(1) << rapid.IntRange(0, 12).Draw(rt, "minimum")
		most := minimum * rapid.Int64Range(1, 5).Draw(rt, "most")
		f.blocks = &blockSizeInfo{uint32(minimum), 4096, uint32(most)}
		c := dialled(t, f, Options{})
		if c.Size() != int64(len(f.disk)) || !c.ReadOnly() {
			rt.Fatalf("it has %d bytes, %v", c.Size(), c.ReadOnly())
		}
		off := rapid.IntRange(0, len(f.disk)+3).Draw(rt, "off")
		p := make([]byte, rapid.IntRange(0, len(f.disk)+3).Draw(rt, "n"))
		n, err := c.ReadAt(p, int64(off))
		want, wantErr := bytes.NewReader(f.disk).ReadAt(p, int64(off))
		if len(p) == 0 {
			wantErr = nil // either is right
		}
		if n != want || !errors.Is(err, wantErr) || !bytes.Equal(p[:n], f.disk[min(off, len(f.disk)):][:n]) {
			rt.Fatalf("%d bytes at %d: %d, %v", len(p), off, n, err)
		}
		for _, q := range f.asked {
			end := int64(q.Offset) + int64(q.Length)
			if int64(q.Offset)%minimum != 0 || end%minimum != 0 && end != c.Size() || int64(q.Length) > most || q.Length == 0 {
				rt.Fatalf("%d bytes at %d were asked for, of blocks of %d to %d", q.Length, q.Offset, minimum, most)
			}
		}
		_ = c.Close()
	})
}

// A server that takes one connection gets one, and one that takes several gets several.
func TestConnections(t *testing.T) {
	for _, several := range []bool{false, true} {
		f := newFake(t, 8<<10)
		if !several {
			f.flags &^= flagMultiConn
		}
		want := 1
		if several {
			want = 3
		}
		waiting, enough := make(chan struct{}, 100), make(chan struct{})
		f.answer = func(c net.Conn, q request) {
			waiting <- struct{}{}
			<-enough
			say(c, reply{magicSimple, 0, q.Handle}, f.disk[q.Offset:q.Offset+uint64(q.Length)])
		}
		c := dialled(t, f, Options{Connections: 3})
		var wg sync.WaitGroup
		for i := range int64(8) {
			wg.Go(func() {
				p := make([]byte, 1024)
				if _, err := c.ReadAt(p, 1024*i); err != nil || !bytes.Equal(p, f.disk[1024*i:1024*(i+1)]) {
					t.Errorf("what was read at %d is not what is there: %v", 1024*i, err)
				}
			})
		}
		for range want { // so many at once
			<-waiting
		}
		close(enough)
		wg.Wait()
		if n := int(f.dials.Load()); n != want {
			t.Errorf("several %v: %d connections", several, n)
		}
	}
}

// What a server says of a read is told, with its kind, and the connection is used again.
func TestDiskErrors(t *testing.T) {
	f := newFake(t, 8<<10)
	var number unix.Errno
	f.answer = func(c net.Conn, q request) { say(c, reply{magicSimple, uint32(number), q.Handle}) }
	c := dialled(t, f, Options{})
	for no, want := range map[unix.Errno]gpu.Code{
		unix.EIO: gpu.CodeConflict, unix.EPERM: gpu.CodeForbidden, unix.ESHUTDOWN: gpu.CodeUnavailable, unix.ENOMEM: gpu.CodeUnavailable, 99999: gpu.CodeConflict,
	} {
		number = no
		if n, err := c.ReadAt(make([]byte, 512), 1024); n != 0 || gpu.CodeOf(err) != want || !strings.Contains(err.Error(), "512 bytes at byte 1024") {
			t.Errorf("%d: %d bytes, %v", no, n, err)
		}
	}
	if n := f.dials.Load(); n != 1 || c.Cuts() != 0 {
		t.Errorf("%d connections, %d cuts", n, c.Cuts())
	}
}

// A read goes on over a new connection where those that there were have been cut, and that
// they were is known.
func TestCut(t *testing.T) {
	f := newFake(t, 8<<10)
	c := dialled(t, f, Options{})
	p := make([]byte, 8<<10)
	if _, err := c.ReadAt(p, 0); err != nil || c.Cuts() != 0 {
		t.Fatal(err, c.Cuts())
	}
	f.cut()
	if _, err := c.ReadAt(p, 0); err != nil || c.Cuts() != 1 || !bytes.Equal(p, f.disk) {
		t.Error(err, c.Cuts())
	}
	if err := c.Probe(t.Context()); err != nil || c.Cuts() != 1 {
		t.Error(err, c.Cuts())
	}
	f.cut()
	if err := c.Probe(t.Context()); err != nil || c.Cuts() != 2 {
		t.Error(err, c.Cuts())
	}
	if err := c.Ready(t.Context()); err != nil || f.dials.Load() != 3 {
		t.Error(err, f.dials.Load())
	}
	// A server that comes back with another disk is none that is gone on with.
	f.cut()
	f.disk = f.disk[:4<<10]
	if _, err := c.ReadAt(p, 0); gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), "it has 4096 bytes, and had 8192 before") {
		t.Error(err)
	}
	f.disk, f.flags = f.disk[:8<<10], flagHasFlags
	if _, err := c.ReadAt(p, 0); gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), "otherwise than before") {
		t.Error(err)
	}
	f.refuses = 7
	if err := c.Ready(t.Context()); gpu.CodeOf(err) != gpu.CodeUnavailable {
		t.Error(err)
	}
}

// An export is compared over a new connection, and never over one more than there may be. A server
// that lets in one is left alone; one that was started again is still seen to have been.
func TestCompare(t *testing.T) {
	for name, c := range map[string]struct {
		connections, dials int
		single             bool
	}{"room": {3, 3, false}, "full": {2, 3, false}, "single": {3, 1, true}} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, 8<<10)
			if c.single {
				f.flags &^= flagMultiConn
			}
			client := dialled(t, f, Options{Connections: c.connections})
			for range 2 {
				if err := client.Compare(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if n := int(f.dials.Load()); n != c.dials || client.Cuts() != 0 {
				t.Errorf("%d connections, %d cuts", n, client.Cuts())
			}
			if err := client.Probe(t.Context()); err != nil || client.Cuts() != 0 {
				t.Error(err, client.Cuts())
			}
			f.mu.Lock()
			f.disk = append(f.disk, 0)
			f.mu.Unlock()
			err := client.Compare(t.Context())
			if !c.single && (gpu.CodeOf(err) != gpu.CodeConflict || !strings.Contains(err.Error(), "it has 8193 bytes, and had 8192 before")) || c.single && err != nil {
				t.Error(err)
			}
			f.disk = f.disk[:8<<10]
			f.cut()
			if err := client.Compare(t.Context()); err != nil {
				t.Error(err)
			}
			if err := client.Probe(t.Context()); err != nil || client.Cuts() == 0 {
				t.Error(err, client.Cuts())
			}
		})
	}
}

// Each read that is cut in its middle is an error once, and not tried for ever.
func TestCutInTheMiddle(t *testing.T) {
	f := newFake(t, 8<<10)
	f.answer = func(c net.Conn, q request) {
		say(c, reply{magicSimple, 0, q.Handle}, f.disk[:100])
		_ = c.Close()
	}
	c := dialled(t, f, Options{})
	_, err := c.ReadAt(make([]byte, 512), 0)
	if gpu.CodeOf(err) != gpu.CodeUnavailable || !strings.Contains(err.Error(), "the server closed the connection") {
		t.Error(err)
	}
	if n := f.dials.Load(); n != 2 { // the first one was idle, and may have been cut long before
		t.Errorf("%d connections", n)
	}
}

// Close ends a read that waits, one that waits for its turn, and a dial.
func TestClose(t *testing.T) {
	f := newFake(t, 8<<10)
	f.flags &^= flagMultiConn
	asked := make(chan struct{}, 2)
	f.answer = func(c net.Conn, _ request) {
		asked <- struct{}{}
		_, _ = io.Copy(io.Discard, c)
	}
	c := dialled(t, f, Options{})
	ended := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := c.ReadAt(make([]byte, 512), 0)
			ended <- err
		}()
	}
	<-asked
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-ended; gpu.CodeOf(err) != gpu.CodeUnavailable || !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}
	for _, err := range []error{c.Ready(t.Context()), c.Probe(t.Context()), c.Close()} {
		if err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}
	if _, err := c.ReadAt(make([]byte, 1), 0); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// A server that says nothing, or little at a time, is not waited for for ever, whenever it
// stops.
func TestSilence(t *testing.T) {
	for name, silent := range map[string]func(c net.Conn){
		"from the beginning": func(net.Conn) {},
		"after the greeting": func(c net.Conn) { greeted(c) },
		"a drip": func(c net.Conn) {
			tick := time.NewTicker(2 * time.Second)
			defer tick.Stop()
			for range tick.C {
				if _, err := c.Write([]byte("N")); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				var wg sync.WaitGroup
				wg.Go(func() { silent(far); _, _ = io.Copy(io.Discard, far) })
				_, err := Dial(t.Context(), local, Options{dial: func(context.Context, string, string) (net.Conn, error) { return near, nil }})
				if gpu.CodeOf(err) != gpu.CodeUnavailable || !strings.Contains(err.Error(), "no answer within 20s") {
					t.Error(err)
				}
				wg.Wait()
			})
		})
	}
	t.Run("in a read", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(t, 8<<10)
			f.answer = func(c net.Conn, q request) { say(c, reply{magicSimple, 0, q.Handle}, f.disk[:100]) }
			c := dialled(t, f, Options{})
			began := time.Now()
			_, err := c.ReadAt(make([]byte, 512), 0)
			if gpu.CodeOf(err) != gpu.CodeUnavailable || !strings.Contains(err.Error(), "no answer within 1m40s") || time.Since(began) > 2*time.Minute {
				t.Error(err, time.Since(began))
			}
			_ = c.Close()
			f.cut()
			f.serving.Wait()
		})
	})
	t.Run("a dial that is given up", func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("enough"))
		_, err := Dial(ctx, local, Options{dial: func(context.Context, string, string) (net.Conn, error) { return near, nil }})
		if err == nil || !strings.Contains(err.Error(), "enough") {
			t.Error(err)
		}
	})
}

// A read that does not end keeps nobody who probes longer than he wants.
func TestProbeIsGivenUp(t *testing.T) {
	f := newFake(t, 8<<10)
	asked := make(chan struct{}, 1)
	f.answer = func(c net.Conn, _ request) { asked <- struct{}{}; _, _ = io.Copy(io.Discard, c) }
	c := dialled(t, f, Options{})
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Probe(ctx) }()
	<-asked
	cancel(errors.New("enough"))
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "enough") {
		t.Error(err)
	}
}

func TestURI(t *testing.T) {
	for text, want := range map[string]URI{
		"nbds://gpu7.bank.example/sda":                    {TLS: true, Network: "tcp", Address: "gpu7.bank.example:10809", Export: "sda", ServerName: "gpu7.bank.example"},
		"nbds://[2001:db8::7]:10810":                      {TLS: true, Network: "tcp", Address: "[2001:db8::7]:10810", ServerName: "2001:db8::7"},
		"nbds://10.0.0.7/a/b%20c":                         {TLS: true, Network: "tcp", Address: "10.0.0.7:10809", Export: "a/b c", ServerName: "10.0.0.7"},
		"nbds://localhost?tls-hostname=gpu7":              {TLS: true, Network: "tcp", Address: "localhost:10809", ServerName: "gpu7"},
		"nbd://127.0.0.1:1/":                              {Network: "tcp", Address: "127.0.0.1:1"},
		"nbd+unix:///sda?socket=/run/nbd":                 {Network: "unix", Address: "/run/nbd", Export: "sda"},
		"nbds+unix:///?socket=/run/nbd&tls-hostname=gpu7": {TLS: true, Network: "unix", Address: "/run/nbd", ServerName: "gpu7"},
	} {
		got, err := ParseURI(text)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
		if again, err := ParseURI(got.String()); err != nil || again != want {
			t.Errorf("%s is written as %s: %+v, %v", text, got, again, err)
		}
	}
	for _, text := range []string{
		"", "sda", "/dev/sda", "http://gpu7/", "nbds:gpu7", "nbds:///sda", "nbds://root@gpu7/", "nbds://root:secret@gpu7/", "nbds://gpu7/#x", "nbds://gpu7:0/", "nbds://gpu7:65536/",
		"nbds://gpu7:x/", "nbds://gpu7/%00", "nbds://gpu7/%1b[2J", "nbds://gpu7/\x1b", "nbds://gpu7/%ff", "nbds://gpu7/?tls-verify-peer=false", "nbds://gpu7/?tls-certificates=/etc",
		"nbd://gpu7/?tls-hostname=gpu8", "nbds://gpu7/?tls-hostname=", "nbds://gpu7/?tls-hostname=a&tls-hostname=b", "nbd://gpu7/?socket=/run/nbd", "nbd+unix:///", "nbd+unix:///?socket=run/nbd",
		"nbd+unix://gpu7/?socket=/run/nbd", "nbds+unix:///?socket=/run/nbd", "nbd+unix:///?socket=/" + strings.Repeat("x", 200), "nbds://gpu7/" + strings.Repeat("x", 5000), "nbds://gpu7/?a;b", "nbds://::",
		"nbds://gpu7%20/", "nbds://-gpu7/", "nbds://[::1%25\x1b]/",
	} {
		if u, err := ParseURI(text); gpu.CodeOf(err) != gpu.CodeInvalid {
			t.Errorf("%q is %+v, %v", text, u, err)
		}
	}
}

// Without TLS nothing is read from another host, whatever it is called, unless somebody says so.
func TestWithoutTLS(t *testing.T) {
	f := newFake(t, 8<<10)
	_, port, err := net.SplitHostPort(f.listen(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"10.0.0.7", "gpu7.bank.example", "localhost.bank.example", "127.0.0.1.bank.example", "[2001:db8::7]", "0.0.0.0"} {
		if _, err := Dial(t.Context(), fmt.Sprintf("nbd://%s:%s/sda", host, port), Options{}); gpu.CodeOf(err) != gpu.CodeInvalid {
			t.Errorf("%s: %v", host, err)
		}
	}
	if f.dials.Load() != 0 {
		t.Error("somebody was asked")
	}
	for _, host := range []string{"127.0.0.1", "localhost"} {
		c, err := Dial(t.Context(), fmt.Sprintf("nbd://%s:%s/sda", host, port), Options{})
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		_ = c.Close()
	}
	c, err := Dial(t.Context(), fmt.Sprintf("nbd://0.0.0.0:%s/sda", port), Options{Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	// A name can stand for anything.
	elsewhere := func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		f.serve(far)
		return elsewhereConn{near}, nil
	}
	if _, err := Dial(t.Context(), "nbd://localhost/sda", Options{dial: elsewhere}); gpu.CodeOf(err) != gpu.CodeInvalid || !strings.Contains(err.Error(), "192.0.2.7 is not this host") {
		t.Error(err)
	}
}

type elsewhereConn struct{ net.Conn }

func (elsewhereConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP("192.0.2.7")} }

func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if _, err := Dial(t.Context(), "nbd://"+l.Addr().String()+"/sda", Options{}); gpu.CodeOf(err) != gpu.CodeUnavailable {
		t.Error(err)
	}
	if _, err := Dial(t.Context(), local, Options{Connections: -1}); gpu.CodeOf(err) != gpu.CodeInvalid {
		t.Error(err)
	}
}
