package mig

import (
	"context"
	"sync"

	"gpuvirt/gpu"
)

// A Gate is a Library that can be shut. While there is a session NVIDIA's driver counts as
// used, and is not taken off a GPU: for turning virtual functions on, our own sessions end
// first, and none begins until that is done (T33).
type Gate struct {
	lib Library

	mu       sync.Mutex
	sessions int
	shut     int           // how many have shut it and not opened it again
	idle     chan struct{} // closed where the last session ends
}

// NewGate returns a gate, open, before a library.
func NewGate(lib Library) *Gate {
	idle := make(chan struct{})
	close(idle)
	return &Gate{lib: lib, idle: idle}
}

// Open begins a session. While the gate is shut it fails with gpu.CodeUnavailable.
func (g *Gate) Open() (Session, error) {
	g.mu.Lock()
	if g.shut > 0 {
		g.mu.Unlock()
		return nil, gpu.Errorf(gpu.CodeUnavailable, "NVIDIA's driver is not asked anything while the virtual functions of a gpu change")
	}
	if g.sessions == 0 {
		g.idle = make(chan struct{})
	}
	g.sessions++
	g.mu.Unlock()
	s, err := g.lib.Open()
	if err != nil {
		g.leave()
		return nil, err
	}
	return &gatedSession{Session: s, gate: g}, nil
}

func (g *Gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.sessions--; g.sessions == 0 {
		close(g.idle)
	}
}

// Shut lets no session begin until open is called, and returns when there is none.
func (g *Gate) Shut(ctx context.Context) (open func(), err error) {
	g.mu.Lock()
	g.shut++
	idle := g.idle
	g.mu.Unlock()
	open = sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.shut--
	})
	select {
	case <-idle:
		return open, nil
	case <-ctx.Done():
		open()
		return nil, gpu.Errorf(gpu.CodeUnavailable, "cannot end our sessions with NVIDIA's library: %w", context.Cause(ctx))
	}
}

// gatedSession is a session that the gate counts.
type gatedSession struct {
	Session
	gate *Gate
	once sync.Once
}

// Close ends the session.
func (s *gatedSession) Close() error {
	err := s.Session.Close()
	s.once.Do(s.gate.leave)
	return err
}
