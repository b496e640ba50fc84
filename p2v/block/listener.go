package block

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// errServed ends a server whose only connection is closed.
var errServed = errors.New("the connection is closed")

// A listener hands out one connection, and ends when that is closed.
type listener struct {
	conn   *watchedConn
	handed sync.Once
}

type watchedConn struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func newListener(c net.Conn) *listener {
	return &listener{conn: &watchedConn{Conn: c, closed: make(chan struct{})}}
}

func (l *listener) Accept() (c net.Conn, err error) {
	l.handed.Do(func() { c = l.conn })
	if c != nil {
		return c, nil
	}
	<-l.conn.closed
	return nil, errServed
}

func (l *listener) Close() error   { return nil }
func (l *listener) Addr() net.Addr { return stdioAddr{} }

func (c *watchedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.closed) })
	return err
}

// Stdio makes a connection of a program's standard input and output, as ssh
// gives it to the command that it runs. They must be pipes or sockets, so that
// reads and writes can have a time limit. The connection is theirs from then on:
// both files are closed.
func Stdio(in, out *os.File) (net.Conn, error) {
	r, err := pollable(in)
	if err != nil {
		return nil, err
	}
	w, err := pollable(out)
	if err != nil {
		r.Close()
		return nil, err
	}
	in.Close()
	out.Close()
	return &stdio{r: r, w: w}, nil
}

func pollable(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot take over %q: %w", f.Name(), err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot take over %q: %w", f.Name(), err), unix.Close(fd))
	}
	p := os.NewFile(uintptr(fd), f.Name())
	if err := p.SetDeadline(time.Time{}); err != nil {
		p.Close()
		return nil, fmt.Errorf("cannot speak on %q, it must be a pipe or a socket: %w", f.Name(), err)
	}
	return p, nil
}

type stdio struct{ r, w *os.File }

// Read and Write give errors as a network does: the server tells a deadline from
// a cut by net.Error, which a PathError is not.
func (s *stdio) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	return n, unwrapPath(err)
}

func (s *stdio) Write(b []byte) (int, error) {
	n, err := s.w.Write(b)
	return n, unwrapPath(err)
}

func (s *stdio) Close() error                       { return errors.Join(s.r.Close(), s.w.Close()) }
func (s *stdio) LocalAddr() net.Addr                { return stdioAddr{} }
func (s *stdio) RemoteAddr() net.Addr               { return stdioAddr{} }
func (s *stdio) SetReadDeadline(t time.Time) error  { return s.r.SetReadDeadline(t) }
func (s *stdio) SetWriteDeadline(t time.Time) error { return s.w.SetWriteDeadline(t) }
func (s *stdio) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

type stdioAddr struct{}

func (stdioAddr) Network() string { return "stdio" }
func (stdioAddr) String() string  { return "stdio" }
