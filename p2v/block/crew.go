package block

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// How a crew works.
const (
	jobChunks    = 64                     // in one request: short enough to share work out, long enough to fill a link
	commitTime   = time.Second            // between syncs
	progressTime = 250 * time.Millisecond // between reports
	firstWait    = 100 * time.Millisecond // after a connection that settled nothing; doubled with each
	longestWait  = 10 * time.Second
	badTries     = 5 // bad answers to one request, with nothing settled in between
)

// ErrNoProgress says that connections were tried again until patience ended.
var ErrNoProgress = errors.New("nothing was settled for too long")

// A fatal error ends the call: a second try would not help.
type fatal struct{ error }

func (f fatal) Unwrap() error { return f.error }

// A job is the chunks that one request asks for, in ascending order.
type job struct {
	chunks []int64
	done   int // how many from the front are settled
}

// left are the chunks that are not settled.
func (j *job) left() []int64 { return j.chunks[j.done:] }

// A crew works jobs off over several connections.
type crew struct {
	m     *Mirror
	disk  string
	o     Options
	meter *meter

	mu   sync.Mutex
	left []Range // not in a job yet
}

func newCrew(m *Mirror, disk string, o Options) *crew {
	if o.Connections == 0 {
		o.Connections = DefaultConnections
	}
	if o.commitEvery == 0 {
		o.commitEvery = commitTime
	}
	if o.Stall == 0 {
		o.Stall = 2 * time.Minute
	}
	if o.Patience == 0 {
		o.Patience = 5 * time.Minute
	}
	c := &crew{m: m, disk: disk, o: o, meter: newMeter(0), left: []Range{{N: m.count()}}}
	if o.Only != nil {
		c.left = append([]Range(nil), o.Only...)
	}
	return c
}

// check refuses options that make no sense, and counts the bytes of the call.
func (c *crew) check() (total int64, err error) {
	if c.o.Connections < 1 || c.o.Connections > MaxConnections {
		return 0, fmt.Errorf("%d connections are not 1 to %d", c.o.Connections, MaxConnections)
	}
	next := int64(0)
	for _, r := range c.left {
		if r.From < next || r.N < 1 || r.N > c.m.count() || r.From > c.m.count()-r.N {
			return 0, fmt.Errorf("the chunks %d and %d after it are out of order, or not among the %d of the disk",
				r.From, r.N-1, c.m.count())
		}
		next = r.From + r.N
		total += c.m.bytes(r)
	}
	return total, nil
}

func (c *crew) next() *job {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := new(job)
	for len(c.left) > 0 && len(j.chunks) < jobChunks {
		r := &c.left[0]
		j.chunks = append(j.chunks, r.From)
		r.From, r.N = r.From+1, r.N-1
		if r.N == 0 {
			c.left = c.left[1:]
		}
	}
	if len(j.chunks) == 0 {
		return nil
	}
	return j
}

// advance settles the first n of what is left of a job, and returns their bytes.
func (c *crew) advance(j *job, n int) (bytes int64) {
	if n == 0 {
		return 0 // that is no progress
	}
	for _, i := range j.left()[:n] {
		bytes += int64(c.m.length(i))
	}
	j.done += n
	c.meter.settle(bytes)
	return bytes
}

// An exchange asks for what is left of a job, and settles it.
type exchange func(l *link, j *job, b *buffer) error

// run works all jobs off. commit is called now and then, and at the end.
func (c *crew) run(ctx context.Context, ex exchange, commit func() error) error {
	total, err := c.check()
	if err != nil {
		return err
	}
	c.meter = newMeter(total)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	var workers, helpers sync.WaitGroup
	ended := make(chan struct{})
	helpers.Go(func() { every(ended, c.o.commitEvery, func() { cancelOn(cancel, commit()) }) })
	if c.o.Progress != nil {
		c.o.Progress(c.meter.look()) // it has begun
		helpers.Go(func() { every(ended, progressTime, func() { c.o.Progress(c.meter.look()) }) })
	}
	for range c.o.Connections {
		workers.Go(func() { cancelOn(cancel, c.work(ctx, ex)) })
	}
	workers.Wait()
	close(ended)
	helpers.Wait()
	cancelOn(cancel, commit())
	if c.o.Progress != nil {
		c.o.Progress(c.meter.look())
	}
	return context.Cause(ctx)
}

func cancelOn(cancel context.CancelCauseFunc, err error) {
	if err != nil {
		cancel(err)
	}
}

func every(end <-chan struct{}, d time.Duration, do func()) {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			do()
		case <-end:
			return
		}
	}
}

// work does jobs over one connection after the other.
func (c *crew) work(ctx context.Context, ex exchange) error {
	var l *link
	defer func() {
		if l != nil {
			l.part(c.o.Keep)
		}
	}()
	b := newBuffer(c.m.chunk)
	bad, wait := 0, firstWait
	for j := c.next(); j != nil; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		before := j.done
		var err error
		if l == nil {
			l, err = c.connect(ctx)
		}
		if err == nil {
			err = ex(l, j, b)
		}
		if err == nil {
			j, bad, wait = c.next(), 0, firstWait
			continue
		}
		if l != nil {
			l.close()
			l = nil
		}
		moved := j.done > before
		if moved {
			bad, wait = 0, firstWait
		}
		if errors.Is(err, ErrBadData) {
			bad++
		}
		if err := c.giveUp(ctx, err, bad); err != nil {
			return err
		}
		if len(j.left()) == 0 { // only the end of the answer was lost
			j = c.next()
		}
		if !moved {
			pause(ctx, wait/2+rand.N(wait)) //nolint:gosec // G404: jitter is no secret.
			wait = min(2*wait, longestWait)
		}
	}
	return nil
}

func (c *crew) connect(ctx context.Context) (*link, error) {
	l, err := dial(ctx, c.o, c.meter.receive)
	if err != nil {
		return nil, err
	}
	// With each connection, as another disk may have its name by now.
	if err := l.check(c.m, c.disk); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// giveUp returns the error to end with, or nil if another try makes sense.
func (c *crew) giveUp(ctx context.Context, err error, bad int) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if f, ok := errors.AsType[fatal](err); ok {
		return f.error
	}
	_, source := errors.AsType[*SourceError](err)
	_, mismatch := errors.AsType[*MismatchError](err)
	_, refused := errors.AsType[*refusal](err)
	switch {
	case source || mismatch || refused:
		return err
	case bad >= badTries:
		return fmt.Errorf("%w, %d times in a row", err, bad)
	case c.meter.idle() > c.o.Patience:
		return fmt.Errorf("%w, %v: %w", ErrNoProgress, c.o.Patience, err)
	default:
		return nil
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
