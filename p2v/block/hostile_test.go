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
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"
)

// A liar is a source that answers what a test wants.
type liar struct {
	wg     sync.WaitGroup
	list   string // answer to the list of disks; empty: a good one
	answer func(w io.Writer)
}

func (l *liar) dial(context.Context) (io.ReadWriteCloser, error) {
	near, far := net.Pipe()
	l.wg.Go(func() {
		defer far.Close()
		r := bufio.NewReader(far)
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
			if req.URL.Path != "/disks" {
				l.answer(far)
				return
			}
			list := l.list
			if list == "" {
				list = fmt.Sprintf(`[{"name":"sda","id":"wwn-1","size":%d}]`, 4*MinChunkSize)
			}
			fmt.Fprintf(far, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(list), list)
		}
	})
	return near, nil
}

const okHead = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"

// frames answers with frames and what follows each.
func frames(parts ...any) func(io.Writer) {
	return func(w io.Writer) {
		var b bytes.Buffer
		b.WriteString(okHead)
		for _, p := range parts {
			switch p := p.(type) {
			case head:
				h := make([]byte, headSize)
				p.put(h)
				b.Write(h)
			case []byte:
				b.Write(p)
			}
		}
		_, _ = b.WriteTo(w)
	}
}

// Whatever a source sends, nothing of it is written that does not have the hash
// that was told, memory is bounded, and the pass ends with an error.
func TestHostileSource(t *testing.T) {
	g, err := newGeometry(4*MinChunkSize, MinChunkSize)
	if err != nil {
		t.Fatal(err)
	}
	good := noise(MinChunkSize, 1)
	hash, _ := g.hash(0, good)
	raw := head{kind: frameRaw, length: MinChunkSize, hash: hash}
	flipped := bytes.Clone(good)
	flipped[777] ^= 1
	pack, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	packed := func(b []byte) (head, []byte) {
		p := pack.EncodeAll(b, nil)
		return head{kind: frameZstd, length: len(p), hash: hash}, p
	}
	bombHead, bomb := packed(make([]byte, 64<<20))
	shortHead, short := packed(good[:100])
	change := func(f func(*head)) head { h := raw; f(&h); return h }

	for _, c := range []struct {
		name string
		liar *liar
		want error  // nil: any
		text string // a part of the error
	}{
		{"a flipped bit", &liar{answer: frames(raw, flipped)}, ErrBadData, "does not have the hash"},
		{"a hash of something else", &liar{answer: frames(change(func(h *head) { h.hash[3]++ }), good)}, ErrBadData, "does not have the hash"},
		{"zeros that are none", &liar{answer: frames(head{kind: frameZero, hash: hash})}, ErrBadData, "does not have the hash"},
		{"too long", &liar{answer: frames(change(func(h *head) { h.length = 1 << 31 }), good)}, ErrBadData, "length"},
		{"longer than the chunk", &liar{answer: frames(change(func(h *head) { h.length++ }), good, []byte{1})}, ErrBadData, "length"},
		{"shorter than the chunk", &liar{answer: frames(change(func(h *head) { h.length-- }), good)}, ErrBadData, "65535 bytes for chunk 0"},
		{"out of the request", &liar{answer: frames(change(func(h *head) { h.pos = 4 }), good)}, ErrBadData, "position 4"},
		{"far out of the request", &liar{answer: frames(change(func(h *head) { h.pos = 1<<32 - 1 }), good)}, ErrBadData, "position"},
		{"a chunk left out", &liar{answer: frames(change(func(h *head) { h.pos = 1 }), good)}, ErrBadData, "chunk 0 is left out"},
		{"all settled", &liar{answer: frames(head{kind: frameSame, pos: 4}, head{kind: frameEnd, pos: 4})}, ErrBadData, "left out"},
		{"nothing", &liar{answer: frames(head{kind: frameEnd, pos: 4})}, ErrBadData, "left out"},
		{"an early end", &liar{answer: frames(head{kind: frameEnd})}, ErrBadData, "position 0"},
		{"settled for ever", &liar{answer: endless(head{kind: frameSame})}, ErrBadData, "position 0"},
		{"a hash", &liar{answer: frames(head{kind: frameHash, hash: hash})}, ErrBadData, "kind 4"},
		{"an unknown kind", &liar{answer: frames(head{kind: 99})}, ErrBadData, "unknown kind 99"},
		{"a bomb", &liar{answer: frames(bombHead, bomb)}, ErrBadData, "unpacked"},
		{"a packed part", &liar{answer: frames(shortHead, short)}, ErrBadData, "100 unpacked bytes"},
		{"packed noise", &liar{answer: frames(change(func(h *head) { h.kind = frameZstd }), good)}, ErrBadData, "unpacked"},
		{"an endless error", &liar{answer: frames(head{kind: frameError, length: maxMessage + 1}, good)}, ErrBadData, "length"},
		{"an error that is none", &liar{answer: frames(head{kind: frameError, length: 9}, good)}, ErrBadData, "cannot be read"},
		{"an endless head", &liar{answer: func(w io.Writer) {
			fmt.Fprint(w, "HTTP/1.1 200 OK\r\n")
			forever(w, []byte("X-A: b\r\n"))
		}}, ErrNoProgress, ""},
		{"no HTTP", &liar{answer: func(w io.Writer) { forever(w, noise(1000, 1)) }}, ErrNoProgress, ""},
		{"a refusal without end", &liar{answer: func(w io.Writer) {
			fmt.Fprint(w, "HTTP/1.1 500 No\r\n\r\n")
			forever(w, []byte("no "))
		}}, nil, `status 500: "no no`},
		{"a list without end", &liar{list: "[" + strings.Repeat("{},", maxList) + "{}]"}, ErrBadData, "a list of disks of more"},
		{"a list that is none", &liar{list: "{"}, ErrBadData, "a list of disks that cannot be read"},
		{"a chunk cut short each time", &liar{answer: frames(raw, good[1:])}, ErrNoProgress, "unexpected EOF"},
		{"silence", &liar{answer: func(w io.Writer) { fmt.Fprint(w, okHead); untilClosed(w) }}, ErrNoProgress, "said nothing for"},
		{"a slow drip", &liar{answer: func(w io.Writer) {
			fmt.Fprint(w, okHead)
			tick := time.NewTicker(time.Minute)
			defer tick.Stop()
			for range tick.C {
				if _, err := w.Write(make([]byte, 1)); err != nil {
					return
				}
			}
		}}, ErrNoProgress, "said nothing for"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				defer c.liar.wg.Wait()
				m := newMem(t, 4*MinChunkSize)
				before := allocated()
				_, err := Pull(t.Context(), m.Mirror, "sda", Options{Dial: c.liar.dial, Connections: 1})
				if grown := allocated() - before; grown > 64<<20 {
					t.Errorf("%d MiB were allocated", grown>>20)
				}
				if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
					t.Errorf("got %v, want %v, %q", err, c.want, c.text)
				}
				if held, err := m.Held(); held != 0 || err != nil || !isZero(m.data.view) {
					t.Errorf("something was written: %d held, %v", held, err)
				}
				if len(errString(err)) > 1000 {
					t.Errorf("the error has %d bytes", len(errString(err)))
				}
			})
		})
	}
}

// A bit that flips on the wire costs one more request.
func TestFlippedBitIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := newMemSource(t, ctx, 4*MinChunkSize)
		defer s.wg.Wait()
		defer cancel()
		for i := range int64(4) {
			s.memFile.view[i*MinChunkSize] = 1
		}
		flips := 0
		m := newMem(t, 4*MinChunkSize)
		_, err := Pull(ctx, m.Mirror, "sda", Options{Connections: 1, Dial: func(ctx context.Context) (io.ReadWriteCloser, error) {
			c, err := s.dial(ctx)
			flips++
			return &flipper{ReadWriteCloser: c, at: flips * 50_000, on: flips <= 3}, err
		}})
		if err != nil || flips < 4 {
			t.Errorf("%d connections, %v", flips, err)
		}
		if !bytes.Equal(s.memFile.view, m.data.durable) {
			t.Error("the mirror is not as the source")
		}
	})
}

// A flipper flips a bit of the byte at a position.
type flipper struct {
	io.ReadWriteCloser
	at int
	on bool
}

func (f *flipper) Read(b []byte) (int, error) {
	n, err := f.ReadWriteCloser.Read(b)
	if f.on && f.at >= 0 && f.at < n {
		b[f.at] ^= 4
	}
	f.at -= n
	return n, err
}

func endless(h head) func(io.Writer) {
	return func(w io.Writer) {
		frames(h)(w)
		b := make([]byte, headSize)
		h.put(b)
		forever(w, b)
	}
}

func forever(w io.Writer, b []byte) {
	for {
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}

func untilClosed(w io.Writer) { _, _ = io.Copy(io.Discard, w.(io.Reader)) }

func allocated() uint64 {
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.TotalAlloc
}

func errString(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
