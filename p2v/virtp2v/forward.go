package virtp2v

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/crypto/ssh"
)

// Ports that nobody listens on: they are names, and no port of this host is looked at.
const (
	firstPort = 20000
	lastPort  = 65535
)

// A forward is a port that a client would have reached on this host.
type forward struct {
	conn    *conn
	address string // as the client asked for it
	port    uint32
	open    int // channels that the client has not ended, too; under l.mu
}

// request answers what is asked of a connection.
func (c *conn) request(r *ssh.Request) {
	var at struct {
		Address string
		Port    uint32
	}
	var answer []byte
	done := false
	switch r.Type {
	case "tcpip-forward":
		// virt-p2v lets the server choose.
		if ssh.Unmarshal(r.Payload, &at) == nil && at.Port == 0 {
			if port, ok := c.l.forward(c, at.Address); ok {
				answer, done = ssh.Marshal(struct{ Port uint32 }{port}), true
			}
		}
	case "cancel-tcpip-forward":
		if ssh.Unmarshal(r.Payload, &at) == nil {
			done = c.l.unforward(c, at.Port)
		}
	}
	if r.WantReply {
		_ = r.Reply(done, answer) // who does not hear it has gone
	}
}

func (l *Listener) forward(c *conn, address string) (uint32, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(c.forwards) >= maxForwards {
		return 0, false
	}
	for l.forwards[l.next] != nil { // of far fewer connections than there are ports
		l.next = following(l.next)
	}
	f := &forward{conn: c, address: address, port: l.next}
	l.forwards[f.port], c.forwards[f.port] = f, f
	l.next = following(l.next)
	return f.port, true
}

func following(port uint32) uint32 {
	if port == lastPort {
		return firstPort
	}
	return port + 1
}

func (l *Listener) unforward(c *conn, port uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.forwards[port] == nil {
		return false
	}
	delete(l.forwards, port)
	delete(c.forwards, port)
	return true
}

// find is a port that a connection may name: one of the same machine.
func (l *Listener) find(c *conn, port uint32) *forward {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.forwards[port]; f != nil && f.conn.from == c.from {
		return f
	}
	return nil
}

// enter counts a channel, if there may be one more, until leave: what a client does not end is kept, with
// what came by it.
func (f *forward) enter() bool {
	f.conn.l.mu.Lock()
	defer f.conn.l.mu.Unlock()
	if f.open >= maxOpen {
		return false
	}
	f.open++
	return true
}

func (f *forward) leave() {
	f.conn.l.mu.Lock()
	defer f.conn.l.mu.Unlock()
	f.open--
}

// dial connects to what the client reaches by the port.
func (f *forward) dial(ctx context.Context) (net.Conn, error) {
	if !f.enter() {
		return nil, fmt.Errorf("the server does not end connections to its disk: there are %d", maxOpen)
	}
	type result struct {
		ch  ssh.Channel
		err error
	}
	opened := make(chan result, 1)
	go func() { // ends with the connection, if nothing else
		ch, requests, err := f.conn.ssh.OpenChannel("forwarded-tcpip", ssh.Marshal(struct {
			Address    string
			Port       uint32
			Origin     string
			OriginPort uint32
		}{f.address, f.port, "127.0.0.1", firstPort}))
		opened <- result{ch, err}
		if err == nil {
			ssh.DiscardRequests(requests) // until it has ended
		}
		f.leave()
	}()
	select {
	case r := <-opened:
		if r.err != nil {
			return nil, r.err
		}
		return piped(r.ch), nil
	case <-ctx.Done():
		go func() {
			if r := <-opened; r.err == nil {
				_ = r.ch.Close()
			}
		}()
		return nil, context.Cause(ctx)
	}
}

// piped is a channel as a connection that has deadlines.
func piped(ch ssh.Channel) net.Conn {
	near, far := net.Pipe()
	end := func() { _ = errors.Join(ch.Close(), far.Close()) }
	go func() {
		_, _ = io.Copy(ch, far)
		end()
	}()
	go func() {
		_, _ = io.Copy(far, ch)
		end()
	}()
	return near
}
