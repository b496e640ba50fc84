package block

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"sync"
	"time"
)

// flushTime is how long small frames wait for company.
const flushTime = 500 * time.Millisecond

// workers is how many chunks one request reads and hashes at once. It is small:
// the source has other work, and the puller other connections.
func workers() int { return min(4, runtime.GOMAXPROCS(0)) }

// A reply is what became of one position of a request.
type reply struct {
	head  head
	frame []byte // room for the head and the data behind it; nil for a head alone
	err   error  // a *SourceError, or ErrAway
	buf   *buffer
}

// stream answers a request of n positions with frames. do is called for many
// positions at once; the frames leave in order. A frame that says "settled" is
// sent when nothing else was for a while.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, d served, g geometry, n int, do func(int, *buffer) reply) {
	w.Header().Set("Content-Type", "application/octet-stream")
	out := frameWriter{w: w, rc: http.NewResponseController(w), flushed: time.Now()}
	err := out.rc.Flush() // the head, so that the puller knows of us before the first read
	if err == nil {
		err = inOrder(r.Context(), g.chunk, n, do, out.send)
	}
	if bad, ok := errors.AsType[*SourceError](err); ok {
		s.log.WarnContext(r.Context(), "cannot read a disk", "disk", d.Name, "offset", bad.Offset, "err", bad.Cause)
		err = out.message(bad)
	} else if errors.Is(err, ErrAway) {
		s.log.WarnContext(r.Context(), "cannot read a disk", "disk", d.Name, "err", err)
		return // without an end: the puller takes it for a cut
	} else if err == nil {
		err = out.write(head{kind: frameEnd, pos: n}, make([]byte, headSize))
	}
	if err != nil {
		s.log.DebugContext(r.Context(), "the puller has gone", "err", err)
	}
}

// inOrder calls do for all positions below n, a few at once, and send with what
// each returned, in order. It stops at the first error.
func inOrder(ctx context.Context, chunk, n int, do func(int, *buffer) reply, send func(reply) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	busy := min(workers(), n)
	free := make(chan *buffer, busy+1)
	for range busy + 1 {
		free <- nil // made by the worker that needs it
	}
	turns := make(chan chan reply, busy+1) // as many as there are buffers
	wg.Go(func() {
		defer close(turns)
		for pos := range n {
			var b *buffer
			select {
			case b = <-free:
			case <-ctx.Done():
				return
			}
			turn := make(chan reply, 1)
			turns <- turn
			wg.Go(func() {
				if b == nil {
					b = newBuffer(chunk)
				}
				r := do(pos, b)
				r.buf = b
				turn <- r
			})
		}
	})
	for turn := range turns {
		r := <-turn
		if r.err != nil {
			return r.err
		}
		if err := send(r); err != nil {
			return err
		}
		free <- r.buf
	}
	return context.Cause(ctx)
}

// A frameWriter puts frames into an answer.
type frameWriter struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	flushed time.Time
	small   [headSize]byte
}

func (f *frameWriter) send(r reply) error {
	late := time.Since(f.flushed) > flushTime
	if r.head.kind == frameSame && !late {
		return nil // a later frame says it too
	}
	b := r.frame
	if b == nil {
		b = f.small[:]
	}
	if err := f.write(r.head, b); err != nil {
		return err
	}
	if !late {
		return nil
	}
	f.flushed = time.Now()
	return f.rc.Flush()
}

func (f *frameWriter) write(h head, frame []byte) error {
	h.put(frame)
	if err := f.rc.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return err
	}
	_, err := f.w.Write(frame)
	return err
}

func (f *frameWriter) message(e *SourceError) error {
	m := e.message()
	return f.write(head{kind: frameError, length: len(m)}, append(make([]byte, headSize), m...))
}
