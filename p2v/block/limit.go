package block

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// piece is how much is read at once: what a limit is counted in.
const piece = 64 << 10

// A Limit bounds the bytes a second that come from sources. One may be shared
// by any number of passes, and it can be changed while they run. The zero value
// and nil bound nothing.
type Limit struct {
	mu      sync.Mutex
	bucket  *rate.Limiter // nil: no bound
	changed chan struct{} // closed when the bucket is another
}

// Set changes the limit, in bytes a second; 0 lifts it. Who waits, waits by the
// new one.
func (l *Limit) Set(bytesPerSecond int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bucket = nil
	if bytesPerSecond > 0 {
		l.bucket = rate.NewLimiter(rate.Limit(bytesPerSecond), piece)
		l.bucket.AllowN(time.Now(), piece) // full buckets would let each change through
	}
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// wait returns when n bytes, at most a piece, are within the limit.
func (l *Limit) wait(ctx context.Context, n int) error {
	if l == nil {
		return nil
	}
	for {
		l.mu.Lock()
		if l.bucket == nil {
			l.mu.Unlock()
			return nil
		}
		turn := l.bucket.ReserveN(time.Now(), n)
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		changed := l.changed
		l.mu.Unlock()
		delay := turn.Delay()
		if delay == 0 {
			return nil
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
			return nil
		case <-changed:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			turn.Cancel()
			return context.Cause(ctx)
		}
	}
}
