package p2v

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"
)

// storage is the folder of mirrors, as somebody sees it who cannot wait for it: a file server that is gone
// answers never, and each question to it would hold a thread.
type storage struct {
	path     string
	patience time.Duration
	stat     func(string) (fs.FileInfo, error)
	mu       sync.Mutex
	asked    *question // the one under way, or the last
}

// storageAnswers is how long the folder of mirrors has for an answer: after it, who asks is told at once
// that there is none.
const storageAnswers = 5 * time.Second

type question struct {
	asked    time.Time
	answered chan struct{}
	err      error // once it is answered
}

func newStorage(path string, patience time.Duration) *storage {
	return &storage{path: path, patience: patience, stat: os.Stat}
}

// usable says why the folder cannot be used, or nil. It need not be there.
func (s *storage) usable(ctx context.Context) error {
	q := s.ask()
	ctx, stop := context.WithDeadline(ctx, q.asked.Add(s.patience))
	defer stop()
	err := errors.New("it does not answer")
	select {
	case <-q.answered:
		err = q.err
	case <-ctx.Done():
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("the folder of mirrors, %q, cannot be used: %w", s.path, err)
}

// ask has the question asked, unless it is already.
func (s *storage) ask() *question {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked != nil {
		select {
		case <-s.asked.answered:
		default:
			return s.asked
		}
	}
	q := &question{asked: time.Now(), answered: make(chan struct{})}
	s.asked = q
	go func() {
		defer close(q.answered)
		info, err := s.stat(s.path)
		switch at, is := errors.AsType[*fs.PathError](err); {
		case err == nil && !info.IsDir():
			q.err = syscall.ENOTDIR
		case errors.Is(err, fs.ErrNotExist):
		case is:
			q.err = at.Err // it is named
		default:
			q.err = err
		}
	}()
	return q
}
