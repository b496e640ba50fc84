package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"gpuvirt/gpu"
)

// A Stream is a program that runs on the server: what is written is its standard input, what
// is read its standard output.
type Stream struct {
	program string
	session *ssh.Session
	in      io.WriteCloser
	out     io.Reader
	said    *tail

	over    chan struct{} // closed when it has ended
	exit    error         // how it ended, if not well; after over
	once    sync.Once
	closing chan struct{} // closed by Close
	ended   error         // of Close
}

// Open starts a program on the server and returns when it is running. The context is for
// the start only; the program ends with Close, or with the connection. It is a *Stream.
func (c *Conn) Open(ctx context.Context, program string, args ...string) (io.ReadWriteCloser, error) {
	words := append([]string{program}, args...)
	for _, w := range words {
		if !word.MatchString(w) {
			return nil, gpu.Errorf(gpu.CodeInternal, "cannot run %q on the server: %q could mean something else to its shell", program, w)
		}
	}
	type result struct {
		s   *Stream
		err error
	}
	started := make(chan result, 1)
	// What x/crypto reads and writes knows no context. The connection ends it, if nothing else.
	c.done.Go(func() {
		s, err := c.open(program, strings.Join(words, " "))
		started <- result{s, err}
	})
	select {
	case r := <-started:
		if r.err != nil {
			return nil, r.err
		}
		return r.s, nil
	case <-ctx.Done():
		c.done.Go(func() {
			if r := <-started; r.s != nil {
				_ = r.s.Close()
			}
		})
		return nil, context.Cause(ctx)
	}
}

func (c *Conn) open(program, command string) (*Stream, error) {
	cannot := func(err error) error {
		if cause := context.Cause(c.ctx); cause != nil {
			err = cause
		}
		return gpu.Errorf(gpu.CodeUnavailable, "cannot run %q on %s: %w", program, name(c.source), err)
	}
	session, err := c.client.NewSession()
	if err != nil {
		return nil, cannot(err)
	}
	s := &Stream{program: program, session: session, said: &tail{}, closing: make(chan struct{}), over: make(chan struct{})}
	session.Stderr = s.said
	s.in, err = session.StdinPipe()
	if err == nil {
		s.out, err = session.StdoutPipe()
	}
	if err == nil {
		err = session.Start(command)
	}
	if err != nil {
		return nil, errors.Join(cannot(err), session.Close())
	}
	c.done.Go(func() {
		defer close(s.over)
		if exit := exitOf(program, session.Wait(), s.said); exit != nil {
			s.exit = fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, exit)
		}
	})
	c.done.Go(func() {
		select {
		case <-s.closing:
			c.cut(program, s.over)
		case <-s.over:
		}
	})
	return s, nil
}

// Read reads what the program writes. Where that has ended, the error says how the program
// did, if not well.
func (s *Stream) Read(b []byte) (int, error) {
	n, err := s.out.Read(b)
	if n > 0 || !errors.Is(err, io.EOF) {
		return n, err
	}
	<-s.over
	return 0, cmp.Or(s.exit, io.EOF)
}

// Write writes to the program.
func (s *Stream) Write(b []byte) (int, error) { return s.in.Write(b) }

// Close has the program end, and ends a Read and a Write that wait: where the program does
// not end within the grace, with the whole connection.
func (s *Stream) Close() error {
	s.once.Do(func() {
		close(s.closing)
		_ = s.session.Signal(ssh.SIGTERM)
		s.ended = s.session.Close()
		if errors.Is(s.ended, io.EOF) {
			s.ended = nil // it had ended by itself
		}
	})
	return s.ended
}
