package access

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// How many failures are put up with: some at once, then a few a minute, of one address
// and of all together.
const (
	burst        = 10
	every        = 6 * time.Second
	burstOfAll   = 200
	everyOfAll   = 100 * time.Millisecond
	maxAddresses = 4096
)

// Failures counts who failed to say who they are. It refuses nobody: who comes with the
// right thing is never asked whether others from there came with wrong ones.
type Failures struct {
	mu  sync.Mutex
	by  map[netip.Prefix]*rate.Limiter
	all *rate.Limiter
}

// NewFailures returns a count of none.
func NewFailures() *Failures {
	return &Failures{by: map[netip.Prefix]*rate.Limiter{}, all: rate.NewLimiter(rate.Every(everyOfAll), burstOfAll)}
}

// Add counts a failure, and reports whether there were too many, and after which time that
// will be otherwise.
func (f *Failures) Add(from netip.Addr, now time.Time) (retry time.Duration, tooMany bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := Network(from)
	l := f.by[key]
	if l == nil {
		if len(f.by) >= maxAddresses {
			f.forget(now)
		}
		l = rate.NewLimiter(rate.Every(every), burst)
		f.by[key] = l
	}
	switch {
	case !l.AllowN(now, 1):
		return every, true
	case !f.all.AllowN(now, 1):
		return time.Second, true
	}
	return 0, false
}

// forget makes room for a quarter: those that have not failed for a while go first, else any.
func (f *Failures) forget(now time.Time) {
	for key, l := range f.by {
		if l.TokensAt(now) >= burst {
			delete(f.by, key)
		}
	}
	for key := range f.by {
		if len(f.by) <= maxAddresses*3/4 {
			return
		}
		delete(f.by, key)
	}
}

// Network is who an address belongs to: of IPv6 one customer has 64 bits and more.
func Network(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
