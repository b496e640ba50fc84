package nbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// A fake is a server of NBD that does as it has to, but for what a test changes.
type fake struct {
	disk    []byte
	name    string // of the export
	flags   uint16 // of the export
	blocks  *blockSizeInfo
	tls     *tls.Config
	noTLS   bool                        // it refuses TLS
	refuses uint32                      // GO, with this error
	answer  func(c net.Conn, q request) // of a read; nil: what is on the disk
	dials   atomic.Int32
	serving sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn // its ends
	asked []request
}

// newFake serves a disk with random bytes.
func newFake(t *testing.T, size int) *fake {
	t.Helper()
	f := &fake{disk: make([]byte, size), name: "sda", flags: flagHasFlags | flagReadOnly | flagMultiConn}
	_, _ = rand.NewChaCha8([32]byte{1}).Read(f.disk)
	t.Cleanup(func() { f.cut(); f.serving.Wait() })
	return f
}

// cut ends all connections.
func (f *fake) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		_ = c.Close()
	}
	f.conns = nil
}

// pipe is a connection to it.
func (f *fake) pipe(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	f.serve(far)
	return near, nil
}

func (f *fake) serve(c net.Conn) {
	f.dials.Add(1)
	f.mu.Lock()
	f.conns = append(f.conns, c)
	f.mu.Unlock()
	f.serving.Go(func() {
		defer c.Close()
		f.speak(c)
	})
}

// listen serves on a port of this host, and returns HOST:PORT.
func (f *fake) listen(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.serve(c)
		}
	}()
	return l.Addr().String()
}

func say(w io.Writer, values ...any) {
	var b bytes.Buffer
	for _, v := range values {
		if err := binary.Write(&b, binary.BigEndian, v); err != nil {
			panic(err)
		}
	}
	_, _ = w.Write(b.Bytes())
}

// heardOption reads an option.
func heardOption(r io.Reader) (opt uint32, data []byte) {
	var o option
	if binary.Read(r, binary.BigEndian, &o) != nil {
		return 0, nil
	}
	data = make([]byte, o.Length)
	_, _ = io.ReadFull(r, data)
	return o.Option, data
}

func replyTo(w io.Writer, opt, kind uint32, values ...any) {
	var b bytes.Buffer
	say(&b, values...)
	say(w, optionReply{magicReply, opt, kind, uint32(b.Len())}, b.Bytes())
}

// hello greets, and hears the greeting.
func greeted(c net.Conn) bool {
	say(c, hello{magicHello, magicOption, flagFixed | flagNoZeroes})
	var flags uint32
	return binary.Read(c, binary.BigEndian, &flags) == nil && flags == flagFixed|flagNoZeroes
}

func (f *fake) speak(c net.Conn) {
	if !greeted(c) {
		return
	}
	for secured := false; ; {
		opt, data := heardOption(c)
		switch {
		case opt == 0:
			return
		case opt == optStartTLS && f.noTLS:
			replyTo(c, opt, repErr|1)
		case opt == optStartTLS:
			replyTo(c, opt, repACK)
			c, secured = tls.Server(c, f.tls), true
		case f.tls != nil && !secured:
			replyTo(c, opt, repErr|5, []byte("TLS first"))
		case f.refuses != 0:
			replyTo(c, opt, repErr|f.refuses, []byte("because \x1b[2J"))
		case string(data[4:len(data)-4]) != f.name:
			replyTo(c, opt, repErr|6)
		default:
			replyTo(c, opt, repInfo, uint16(1), []byte("a name that nobody has asked for"))
			replyTo(c, opt, repInfo, uint16(infoExport), exportInfo{uint64(len(f.disk)), f.flags})
			if f.blocks != nil {
				replyTo(c, opt, repInfo, uint16(infoBlockSize), *f.blocks)
			}
			replyTo(c, opt, repACK)
			f.read(c)
			return
		}
	}
}

// read answers requests.
func (f *fake) read(c net.Conn) {
	for {
		var q request
		if binary.Read(c, binary.BigEndian, &q) != nil || q.Magic != magicRequest || q.Type != cmdRead {
			return
		}
		f.mu.Lock()
		f.asked = append(f.asked, q)
		f.mu.Unlock()
		if f.answer != nil {
			f.answer(c, q)
			continue
		}
		say(c, reply{magicSimple, 0, q.Handle}, f.disk[q.Offset:q.Offset+uint64(q.Length)])
	}
}

const local = "nbd+unix:///sda?socket=/run/nbd"

func dial(t *testing.T, f *fake, o Options) (*Client, error) {
	t.Helper()
	o.dial = f.pipe
	c, err := Dial(t.Context(), local, o)
	if err == nil {
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return c, err
}

func dialled(t *testing.T, f *fake, o Options) *Client {
	t.Helper()
	c, err := dial(t, f, o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
