package block

import (
	"sync"
	"time"
)

// A Progress is how far a pass is.
type Progress struct {
	Done  int64 // bytes of the disk that are settled, by copying or as equal
	Total int64 // bytes of the disk that the pass is about
	Sent  int64 // bytes that came over the connections, of all tries
	// Rate is in bytes a second: what was done of late, of Done.
	Rate float64
	// Remaining is what is left at that rate, negative when it is not known yet.
	Remaining time.Duration
}

// window is what "of late" means for a rate.
const window = 10 * time.Second

// A meter counts, and knows what it counted of late.
type meter struct {
	mu      sync.Mutex
	total   int64
	done    int64
	sent    int64
	last    time.Time // when something was settled
	samples []sample  // of the window, oldest first
}

type sample struct {
	at   time.Time
	done int64
}

func newMeter(total int64) *meter {
	now := time.Now()
	return &meter{total: total, last: now, samples: []sample{{at: now}}}
}

func (m *meter) settle(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += bytes
	m.last = time.Now()
}

func (m *meter) receive(bytes int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sent += int64(bytes)
}

// idle is how long nothing was settled.
func (m *meter) idle() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.last)
}

// look takes a sample and tells where things are.
func (m *meter) look() Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.samples = append(m.samples, sample{at: now, done: m.done})
	for len(m.samples) > 2 && now.Sub(m.samples[1].at) >= window {
		m.samples = m.samples[1:]
	}
	p := Progress{Done: m.done, Total: m.total, Sent: m.sent, Remaining: -1}
	first := m.samples[0]
	if t := now.Sub(first.at).Seconds(); t > 0 {
		p.Rate = float64(m.done-first.done) / t
	}
	if left := m.total - m.done; left == 0 {
		p.Remaining = 0
	} else if p.Rate > 0 {
		// A rate near nothing must not run over what a Duration can hold.
		p.Remaining = time.Duration(min(float64(left)/p.Rate, (1000*24*time.Hour).Seconds()) * float64(time.Second))
	}
	return p
}
