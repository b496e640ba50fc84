package block

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
)

// maxHead is how long the head of an answer may be, in bytes.
const maxHead = 16 << 10

// A link is one connection to a source. It is used by one goroutine, and is
// closed after the first error: what comes next on it cannot be understood.
type link struct {
	ctx     context.Context //nolint:containedctx // A link lives as long as the call that has it.
	conn    io.ReadWriteCloser
	in      io.LimitedReader // of conn, so that a head has an end
	buf     *bufio.Reader
	body    io.ReadCloser // of the answer that is being read
	stall   time.Duration
	limit   *Limit
	receive func(int) // told of bytes that came
	unpack  *zstd.Decoder

	stalled  atomic.Bool
	watchdog *time.Timer // closes conn when nothing comes for too long
	release  func() bool // from ctx
}

// dial connects. Whatever a peer does, each read and write ends with ctx, or
// when nothing moved for the stall time.
func dial(ctx context.Context, o Options, receive func(int)) (*link, error) {
	short, cancel := context.WithTimeout(ctx, o.Stall)
	defer cancel()
	conn, err := o.Dial(short)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to the source: %w", err)
	}
	l := &link{ctx: ctx, conn: conn, stall: o.Stall, limit: o.Limit, receive: receive}
	l.in.R = conn
	l.buf = bufio.NewReader(&l.in)
	l.watchdog = time.AfterFunc(math.MaxInt64, func() {
		l.stalled.Store(true)
		hangUp(conn)
	})
	l.release = context.AfterFunc(ctx, func() { hangUp(conn) })
	l.unpack, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxMemory(MaxChunkSize), zstd.WithDecoderMaxWindow(MaxChunkSize))
	if err != nil {
		l.close()
		return nil, fmt.Errorf("cannot prepare decompression: %w", err)
	}
	return l, nil
}

func (l *link) close() {
	l.watchdog.Stop()
	l.release()
	hangUp(l.conn)
	if l.unpack != nil {
		l.unpack.Close()
	}
}

// part ends a link between two answers. Its connection goes to keep, if that is not nil.
func (l *link) part(keep func(io.ReadWriteCloser)) {
	l.watchdog.Stop()
	if keep == nil || !l.release() || l.stalled.Load() || l.buf.Buffered() > 0 {
		l.close()
		return
	}
	l.unpack.Close()
	keep(l.conn)
}

// hangUp closes a connection that is of no use any more, whatever it says of that.
func hangUp(c io.Closer) { _ = c.Close() }

// ask sends a request and reads the head of the answer. Its data comes by read.
func (l *link) ask(method, target string, body []byte) error {
	req, err := http.NewRequestWithContext(l.ctx, method, "http://source"+target, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("cannot ask the source: %w", err)
	}
	l.watchdog.Reset(l.stall)
	defer l.watchdog.Stop()
	if err := req.Write(l.conn); err != nil {
		return l.cut(err)
	}
	l.in.N = maxHead
	resp, err := http.ReadResponse(l.buf, req)
	l.in.N = math.MaxInt64
	if err != nil {
		return l.cut(err)
	}
	l.body = resp.Body
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(l.body, 256)) // it is only told
		return &refusal{status: resp.StatusCode, text: strings.TrimSpace(string(text))}
	}
	return nil
}

// A refusal is an answer that no second try changes.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("the source refuses with status %d: %q", r.status, r.text)
}

// read fills b with data of the answer, within the limit. Each piece has the
// stall time to come.
func (l *link) read(b []byte) error {
	for len(b) > 0 {
		n, err := l.some(b[:min(len(b), piece)])
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (l *link) some(b []byte) (int, error) {
	l.watchdog.Reset(l.stall)
	n, err := io.ReadFull(l.body, b)
	l.watchdog.Stop()
	l.receive(n)
	if err != nil {
		return n, l.cut(err)
	}
	return n, l.limit.wait(l.ctx, n)
}

// end reads the end of an answer, which must be there.
func (l *link) end() error {
	var one [1]byte
	l.watchdog.Reset(l.stall)
	defer l.watchdog.Stop()
	n, err := l.body.Read(one[:])
	switch {
	case n > 0:
		return badData("an answer goes on after its end")
	case errors.Is(err, io.EOF):
		return l.body.Close()
	default:
		return l.cut(err)
	}
}

// cut says why a connection is of no use any more.
func (l *link) cut(err error) error {
	switch {
	case l.ctx.Err() != nil:
		return context.Cause(l.ctx)
	case l.stalled.Load():
		return fmt.Errorf("the source said nothing for %v", l.stall)
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	default:
		return err
	}
}

// list asks which disks are served.
func (l *link) list() ([]Info, error) {
	if err := l.ask(http.MethodGet, "/disks", nil); err != nil {
		return nil, err
	}
	l.watchdog.Reset(l.stall)
	defer l.watchdog.Stop()
	b, err := io.ReadAll(io.LimitReader(l.body, maxList+1))
	if err != nil {
		return nil, l.cut(err)
	}
	l.receive(len(b))
	if len(b) > maxList {
		return nil, badData("a list of disks of more than %d bytes", maxList)
	}
	var infos []Info
	if err := json.Unmarshal(b, &infos); err != nil {
		return nil, badData("a list of disks that cannot be read: %w", err)
	}
	return infos, nil
}

// check makes sure that the source's disk is the one that is mirrored.
func (l *link) check(m *Mirror, disk string) error {
	infos, err := l.list()
	if err != nil {
		return err
	}
	where := fmt.Sprintf("mirror %q", m.name)
	for _, i := range infos {
		switch {
		case i.Name != disk:
			continue
		case i.ID != m.id:
			return &MismatchError{Where: where, What: "disk", Have: fmt.Sprintf("%q", m.id), Want: fmt.Sprintf("%q", i.ID)}
		case i.Size != m.size:
			return sizeMismatch(where, m.size, i.Size)
		default:
			return nil
		}
	}
	return &refusal{status: http.StatusNotFound, text: fmt.Sprintf("disk %q is not served", disk)}
}

// frame reads the head of a frame.
func (l *link) frame(chunk int) (head, error) {
	var b [headSize]byte
	if err := l.read(b[:]); err != nil {
		return head{}, err
	}
	h, err := parseHead(b[:], chunk)
	if err != nil || h.kind != frameError {
		return h, err
	}
	text := make([]byte, h.length)
	if err := l.read(text); err != nil {
		return h, err
	}
	return h, parseMessage(text)
}
