package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"gpuvirt/gpu"
)

// scripted connects to a server that does what a test says.
func scripted(t testing.TB, script func(c net.Conn)) Options {
	t.Helper()
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	return Options{dial: func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		wg.Go(func() {
			defer far.Close()
			script(far)
		})
		return near, nil
	}}
}

// after greets, hears GO, and says these.
func after(says func(c net.Conn)) func(net.Conn) {
	return func(c net.Conn) {
		if greeted(c) {
			heardOption(c)
			says(c)
		}
	}
}

func info(kind uint16, values ...any) func(net.Conn) {
	return after(func(c net.Conn) {
		replyTo(c, optGo, repInfo, append([]any{kind}, values...)...)
		replyTo(c, optGo, repACK)
	})
}

// with is an export of 8 KiB with blocks of these sizes.
func with(b blockSizeInfo) func(net.Conn) {
	return after(func(c net.Conn) {
		replyTo(c, optGo, repInfo, uint16(infoExport), exportInfo{8 << 10, flagHasFlags})
		replyTo(c, optGo, repInfo, uint16(infoBlockSize), b)
		replyTo(c, optGo, repACK)
	})
}

// Whatever a server says before reads are answered, it is an error of its kind, and short.
func TestHostileHandshake(t *testing.T) {
	for name, c := range map[string]struct {
		script func(net.Conn)
		code   gpu.Code
		want   string
	}{
		"nothing":             {func(net.Conn) {}, gpu.CodeUnavailable, "the server closed the connection"},
		"HTTP":                {func(c net.Conn) { say(c, []byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }, gpu.CodeConflict, "begins with 0x48545450"},
		"the old style":       {func(c net.Conn) { say(c, hello{magicHello, magicOldStyle, 0}) }, gpu.CodeConflict, "old style"},
		"another style":       {func(c net.Conn) { say(c, hello{magicHello, 7, 1}) }, gpu.CodeConflict, "0x7"},
		"not fixed":           {func(c net.Conn) { say(c, hello{magicHello, magicOption, flagNoZeroes}) }, gpu.CodeConflict, "fixed"},
		"cut in the greeting": {func(c net.Conn) { say(c, uint64(magicHello)) }, gpu.CodeUnavailable, "closed the connection"},
		"another magic":       {after(func(c net.Conn) { say(c, optionReply{1, optGo, repACK, 0}) }), gpu.CodeConflict, "0x1 to option 7"},
		"another option":      {after(func(c net.Conn) { say(c, optionReply{magicReply, 3, repACK, 0}) }), gpu.CodeConflict, "answers option 3"},
		"4 GiB of a reply":    {after(func(c net.Conn) { say(c, optionReply{magicReply, optGo, repInfo, math.MaxUint32}) }), gpu.CodeConflict, "4294967295 bytes"},
		"another reply":       {after(func(c net.Conn) { replyTo(c, optGo, 2) }), gpu.CodeConflict, "reply 2"},
		"an ACK with data":    {after(func(c net.Conn) { replyTo(c, optGo, repACK, uint8(1)) }), gpu.CodeConflict, "with 1 bytes to GO"},
		"an ACK and no more":  {after(func(c net.Conn) { replyTo(c, optGo, repACK) }), gpu.CodeConflict, "empty"},
		"an empty export":     {info(infoExport, exportInfo{0, 1}), gpu.CodeConflict, "empty"},
		"a vast export":       {info(infoExport, exportInfo{1 << 63, 1}), gpu.CodeConflict, "9223372036854775808 bytes"},
		"too short":           {info(infoExport, uint16(1)), gpu.CodeConflict, "4 bytes on kind 0"},
		"too long":            {info(infoExport, exportInfo{1 << 20, 1}, uint8(1)), gpu.CodeConflict, "13 bytes on kind 0"},
		"no kind":             {after(func(c net.Conn) { replyTo(c, optGo, repInfo, uint8(1)) }), gpu.CodeConflict, "1 bytes"},
		"blocks of nothing":   {with(blockSizeInfo{0, 4096, 4096}), gpu.CodeConflict, "blocks of 0 bytes"},
		"odd blocks":          {with(blockSizeInfo{513, 4096, 4096}), gpu.CodeConflict, "blocks of 513 bytes"},
		"large blocks":        {with(blockSizeInfo{128 << 10, 128 << 10, 1 << 20}), gpu.CodeConflict, "blocks of 131072 bytes"},
		"less than a block":   {with(blockSizeInfo{4096, 4096, 512}), gpu.CodeConflict, "at least 4096 and at most 512"},
		"no such export":      {after(func(c net.Conn) { replyTo(c, optGo, repErr|6) }), gpu.CodeNotFound, "no such export"},
		"it wants TLS":        {after(func(c net.Conn) { replyTo(c, optGo, repErr|5) }), gpu.CodeInvalid, "wants TLS"},
		"policy":              {after(func(c net.Conn) { replyTo(c, optGo, repErr|2, []byte("no\x1b[2J\xff")) }), gpu.CodeForbidden, `no\x1b[2J\xff`},
		"shutdown":            {after(func(c net.Conn) { replyTo(c, optGo, repErr|7) }), gpu.CodeUnavailable, "shut down"},
		"an unknown refusal":  {after(func(c net.Conn) { replyTo(c, optGo, repErr|1234, bytes.Repeat([]byte("x"), 8000)) }), gpu.CodeConflict, "error 1234"},
		"told without end": {after(func(c net.Conn) {
			for range maxReplies + 1 {
				replyTo(c, optGo, repInfo, uint16(1))
			}
		}), gpu.CodeConflict, "more than 64 replies"},
	} {
		t.Run(name, func(t *testing.T) {
			before := allocated()
			_, err := Dial(t.Context(), local, scripted(t, c.script))
			if gpu.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 5000 || strings.ContainsAny(err.Error(), "\x1b\n") || !utf8.ValidString(err.Error()) {
				t.Errorf("%s: %v", gpu.CodeOf(err), err)
			}
			if grown := allocated() - before; grown > 8<<20 {
				t.Errorf("%d MiB were allocated", grown>>20)
			}
		})
	}
}

// What is no answer to the read is not taken for what is on the disk.
func TestHostileReads(t *testing.T) {
	for name, c := range map[string]struct {
		says func(c net.Conn, q request)
		code gpu.Code
		want string
	}{
		"another handle":   {func(c net.Conn, q request) { say(c, reply{magicSimple, 0, q.Handle + 1}, make([]byte, 512)) }, gpu.CodeConflict, "none but 1 is waiting"},
		"a magic":          {func(c net.Conn, q request) { say(c, reply{1, 0, q.Handle}, make([]byte, 512)) }, gpu.CodeConflict, "begins with 0x1"},
		"structured":       {func(c net.Conn, q request) { say(c, uint32(0x668e33ef), uint16(1), uint16(1), q.Handle, uint32(1<<31)) }, gpu.CodeConflict, "begins with 0x668e33ef"},
		"too little":       {func(c net.Conn, q request) { say(c, reply{magicSimple, 0, q.Handle}, make([]byte, 511)); _ = c.Close() }, gpu.CodeUnavailable, "closed the connection"},
		"a head cut short": {func(c net.Conn, q request) { say(c, uint32(magicSimple)); _ = c.Close() }, gpu.CodeUnavailable, "closed the connection"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, 8<<10)
			f.answer = c.says
			client := dialled(t, f, Options{})
			n, err := client.ReadAt(make([]byte, 512), 0)
			if n != 0 || gpu.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%d bytes, %s: %v", n, gpu.CodeOf(err), err)
			}
			if client.Cuts() == 0 {
				t.Error("the connection is used again")
			}
		})
	}
}

// What a server says behind an answer is not the answer to the next read: it has to know the
// handle, and is found out.
func TestBabble(t *testing.T) {
	f := newFake(t, 8<<10)
	f.answer = func(c net.Conn, q request) {
		say(c, reply{magicSimple, 0, q.Handle}, f.disk[:512], reply{magicSimple, 0, q.Handle}, make([]byte, 512))
	}
	c, err := Dial(t.Context(), "nbd://"+f.listen(t)+"/sda", Options{}) // where what is not read lies in between
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := make([]byte, 512)
	if _, err := c.ReadAt(p, 0); err != nil || !bytes.Equal(p, f.disk[:512]) {
		t.Fatal(err)
	}
	if _, err := c.ReadAt(p, 0); gpu.CodeOf(err) != gpu.CodeConflict {
		t.Errorf("it is taken for an answer: %v", err)
	}
}

// Whatever a server says, we end, with little memory, and say so in a line.
func FuzzServer(f *testing.F) {
	var good bytes.Buffer
	say(&good, hello{magicHello, magicOption, flagFixed})
	replyTo(&good, optGo, repInfo, uint16(infoExport), exportInfo{1024, 1})
	replyTo(&good, optGo, repInfo, uint16(infoBlockSize), blockSizeInfo{512, 4096, 1 << 20})
	replyTo(&good, optGo, repACK)
	say(&good, reply{magicSimple, 0, 1}, make([]byte, 1024))
	f.Add(good.Bytes())
	f.Add(good.Bytes()[:30])
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\n"))
	f.Fuzz(func(t *testing.T, says []byte) {
		o := scripted(t, func(c net.Conn) {
			go func() { _, _ = io.Copy(io.Discard, c) }()
			_, _ = c.Write(says)
		})
		began := time.Now()
		defer func() {
			if took := time.Since(began); took > time.Minute {
				t.Errorf("it took %s", took)
			}
		}()
		c, err := Dial(t.Context(), local, o)
		if err == nil {
			p := make([]byte, min(c.Size(), 1024))
			var n int
			if n, err = c.ReadAt(p, 0); err == nil && n != len(p) {
				t.Errorf("%d of %d bytes, and no error", n, len(p))
			}
			_ = c.Close()
		}
		if err == nil {
			return
		}
		if _, is := errors.AsType[*gpu.Error](err); !is || len(err.Error()) > 10000 || strings.ContainsAny(err.Error(), "\x1b\n") {
			t.Errorf("got %q", err)
		}
	})
}

func FuzzURI(f *testing.F) {
	f.Add(local)
	f.Add("nbds://[::1]:1/%41?tls-hostname=a")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := ParseURI(text)
		if err != nil {
			return
		}
		if again, err := ParseURI(u.String()); err != nil || again != u {
			t.Errorf("%q is written as %q: %+v, %v", text, u, again, err)
		}
		if !u.TLS && u.Network == "tcp" && u.local() && !strings.HasPrefix(u.Address, "localhost:") {
			if host, _, err := net.SplitHostPort(u.Address); err != nil || !net.ParseIP(host).IsLoopback() {
				t.Errorf("%q stays here", text)
			}
		}
	})
}

func allocated() uint64 {
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.TotalAlloc
}

// The structs are as long as they are on the wire.
func TestSizes(t *testing.T) {
	for _, c := range []struct {
		v    any
		want int
	}{{hello{}, 18}, {option{}, 16}, {optionReply{}, 20}, {exportInfo{}, 10}, {blockSizeInfo{}, 12}, {request{}, 28}, {reply{}, 16}} {
		if n := binary.Size(c.v); n != c.want {
			t.Errorf("%T has %d bytes", c.v, n)
		}
	}
}
