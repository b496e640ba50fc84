package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// cable passes connections on while there is no file of this path; when it comes, all of them
// end, and nobody answers until it has gone. It goes on until a signal ends it.
func cable(path, from, to string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	var plugged *plug
	for {
		_, err := os.Lstat(path)
		dead := !errors.Is(err, fs.ErrNotExist)
		switch {
		case dead && plugged != nil:
			plugged.pull()
			plugged = nil
		case !dead && plugged == nil:
			if plugged, err = plugIn(from, to); err != nil {
				return err
			}
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			if plugged != nil {
				plugged.pull()
			}
			return nil
		}
	}
}

// A plug is a cable that is plugged in.
type plug struct {
	listener net.Listener
	to       string
	passing  sync.WaitGroup
	mu       sync.Mutex
	conns    []net.Conn // nil: it was pulled
}

func plugIn(from, to string) (*plug, error) {
	l, err := net.Listen("tcp", from) //nolint:noctx // it is closed
	if err != nil {
		return nil, err
	}
	p := &plug{listener: l, to: to, conns: []net.Conn{}}
	p.passing.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.passing.Go(func() { p.pass(conn) })
		}
	})
	return p, nil
}

// keep reports whether a connection is one of the cable's, until it is pulled.
func (p *plug) keep(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns == nil {
		return false
	}
	p.conns = append(p.conns, conn)
	return true
}

func (p *plug) pass(near net.Conn) {
	defer near.Close()                //nolint:errcheck // it may have been by pull
	far, err := net.Dial("tcp", p.to) //nolint:noctx // of this machine
	if err != nil {
		return
	}
	defer far.Close() //nolint:errcheck // as well
	if !p.keep(near) || !p.keep(far) {
		return
	}
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(near, far)
		_ = near.Close()
	}()
	_, _ = io.Copy(far, near)
	_ = far.Close()
	<-back
}

func (p *plug) pull() {
	_ = p.listener.Close()
	p.mu.Lock()
	for _, c := range p.conns {
		_ = c.Close()
	}
	p.conns = nil
	p.mu.Unlock()
	p.passing.Wait()
}
