package p2v

import "sync"

// signals are flags by name that somebody may wait for.
type signals struct {
	mu     sync.Mutex
	byName map[string]chan struct{}
}

func newSignals() *signals { return &signals{byName: map[string]chan struct{}{}} }

// raised is closed when the signal is raised; done forgets it.
func (s *signals) raised(name string) (ch <-chan struct{}, done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.channel(name), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.byName, name)
	}
}

func (s *signals) raise(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ch := s.channel(name)
	select {
	case <-ch:
	default:
		close(ch)
	}
}

func (s *signals) channel(name string) chan struct{} {
	ch, there := s.byName[name]
	if !there {
		ch = make(chan struct{})
		s.byName[name] = ch
	}
	return ch
}
