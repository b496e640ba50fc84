package block

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// Options say how to speak to a source.
type Options struct {
	// Dial makes a connection on which Serve answers. It is called for each of
	// Connections, and again after a cut. The context is of the dialing only.
	// Close must end a Read that waits.
	Dial func(context.Context) (io.ReadWriteCloser, error)
	// Keep is given connections that are of use to a later call, in place of their end; it is called
	// by several at once. nil: they end.
	Keep func(io.ReadWriteCloser)
	// Connections is how many are used at once, up to MaxConnections; 0: DefaultConnections.
	Connections int
	// Limit bounds what comes from the source; nil bounds nothing.
	Limit *Limit
	// Compress asks the source to compress what that makes smaller. It costs the
	// source a core for each 200 MB/s or so of such data, and nothing for others:
	// worth it over links that are slower than that.
	Compress bool
	// Only restricts the call to these chunks, in ascending order and apart; nil
	// means the whole disk.
	Only []Range
	// Progress is called now and then, a few times a second at most, and at the
	// end, never twice at once. It may be nil.
	Progress func(Progress)
	// Stall is how long 64 KiB of an answer may take, the wait for a Limit apart,
	// before a connection is given up; 0 means two minutes. A disk that tries to
	// read a bad block again and again takes one.
	Stall time.Duration
	// Patience is how long connections are tried again while nothing at all is
	// settled; 0 means five minutes.
	Patience time.Duration

	commitEvery time.Duration // 0 means commitTime
}

// DefaultConnections is how many connections one call uses where nobody says: with two a pass was closest to
// nbdcopy, and a busy source has its processors for itself.
const DefaultConnections = 2

// MaxConnections is how many connections one call uses at most.
const MaxConnections = 64

// A Pass is what came of one.
type Pass struct {
	Started  time.Time
	Duration time.Duration
	Chunks   int64 // looked at
	Bytes    int64 // of these chunks
	Changed  int64 // chunks that were written
	Written  int64 // bytes of these chunks, zeros included
	Sent     int64 // bytes that came from the source, of all tries
}

// Pull makes one pass: afterwards the mirror holds each chunk as it was when
// the source read it. It keeps on through cut connections while something is
// settled now and then. What arrived is durable when it returns, also with an
// error, and is not sent again by the next call.
//
// Errors: MismatchError, SourceError, SpaceError, ErrBadData, ErrNoProgress,
// the cause of ctx.
func Pull(ctx context.Context, m *Mirror, disk string, o Options) (Pass, error) {
	p := &puller{crew: newCrew(m, disk, o)}
	p.target = fmt.Sprintf("/disks/%s/changed?chunk=%d", url.PathEscape(disk), m.chunk)
	if o.Compress {
		p.target += "&zstd=1"
	}
	started := time.Now()
	err := p.run(ctx, p.exchange, func() error { return m.commit() })
	if err != nil {
		err = fmt.Errorf("cannot pull disk %q: %w", disk, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pass.Started, p.pass.Duration, p.pass.Sent = started, time.Since(started), p.meter.look().Sent
	return p.pass, err
}

type puller struct {
	*crew
	target string
	pass   Pass // under mu
}

// exchange asks for the rest of a job and takes in the answer.
func (p *puller) exchange(l *link, j *job, b *buffer) error {
	asks, err := p.asks(j)
	if err != nil {
		return fatal{err}
	}
	if err := l.ask(http.MethodPost, p.target, putAsks(asks)); err != nil {
		return err
	}
	for done := 0; ; {
		h, err := l.frame(p.m.chunk)
		if err != nil {
			return err
		}
		if !fits(h, done, len(asks)) {
			return badData("a frame of kind %d at position %d", h.kind, h.pos)
		}
		for _, a := range asks[done:h.pos] {
			if a.held == (Hash{}) {
				return badData("chunk %d is left out, though nothing is held of it", a.index)
			}
		}
		p.settle(j, h.pos-done, false)
		done = h.pos
		switch h.kind {
		case frameSame:
		case frameEnd:
			return l.end()
		case frameZero, frameRaw, frameZstd:
			if err := p.take(l, h, asks[h.pos], b); err != nil {
				return err
			}
			p.settle(j, 1, true)
			done++
		default:
			return badData("a frame of kind %d in a list of chunks", h.kind)
		}
	}
}

// asks are the chunks that are left of a job, with what is held of each.
func (p *puller) asks(j *job) ([]ask, error) {
	asks := make([]ask, 0, len(j.left()))
	for _, i := range j.left() {
		held, err := p.m.heldOf(i)
		if err != nil {
			return nil, err
		}
		asks = append(asks, ask{index: i, held: held})
	}
	return asks, nil
}

// fits tells whether a frame may come next in the answer to a request of n
// positions, of which so many are done: each moves on, and only the end stands
// behind the last.
func fits(h head, done, n int) bool {
	switch h.kind {
	case frameSame:
		return h.pos > done && h.pos <= n
	case frameEnd:
		return h.pos == n
	default:
		return h.pos >= done && h.pos < n
	}
}

// take reads a chunk, proves that it has the hash that was told, and writes it.
func (p *puller) take(l *link, h head, a ask, b *buffer) error {
	if h.hash == a.held {
		return badData("chunk %d, which was said to be held", a.index)
	}
	data, err := p.receive(l, h, a, b)
	if err != nil {
		return err
	}
	hash, zero := p.m.hash(a.index, data)
	if zero {
		data = nil
	}
	if h.kind == frameZero {
		hash = p.m.zeroHash(a.index)
	}
	if hash != h.hash {
		return badData("chunk %d, which does not have the hash that was told", a.index)
	}
	if err := p.m.put(a.index, data, hash); err != nil {
		return fatal{err}
	}
	return nil
}

func (p *puller) receive(l *link, h head, a ask, b *buffer) ([]byte, error) {
	want := p.m.length(a.index)
	switch h.kind {
	case frameRaw:
		if h.length != want {
			return nil, badData("%d bytes for chunk %d, which has %d", h.length, a.index, want)
		}
		data := b.data()[:want]
		return data, l.read(data)
	case frameZstd:
		if h.length > want {
			return nil, badData("%d packed bytes for chunk %d, which has %d", h.length, a.index, want)
		}
		if b.packed == nil {
			b.packed = make([]byte, p.m.chunk)
		}
		packed := b.packed[:h.length]
		if err := l.read(packed); err != nil {
			return nil, err
		}
		data, err := l.unpack.DecodeAll(packed, b.data()[:0:want])
		if err != nil {
			return nil, badData("chunk %d cannot be unpacked: %w", a.index, err)
		}
		if len(data) != want {
			return nil, badData("%d unpacked bytes for chunk %d, which has %d", len(data), a.index, want)
		}
		return data, nil
	default: // zeros
		return nil, nil
	}
}

// settle moves a job on by n chunks, which were written, or else were as held.
func (p *puller) settle(j *job, n int, written bool) {
	bytes := p.advance(j, n)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pass.Chunks += int64(n)
	p.pass.Bytes += bytes
	if written {
		p.pass.Changed += int64(n)
		p.pass.Written += bytes
	}
}
