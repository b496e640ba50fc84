package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"

	"gpuvirt/gpu"
)

// connect makes one connection more.
func (c *Client) connect(ctx context.Context) (*conn, error) {
	limited, cancel := context.WithTimeout(ctx, c.o.Connect)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	made, err := c.secure(limited)
	switch {
	case err == nil:
		return made, c.add(made)
	case c.ctx.Err() != nil:
		err = context.Cause(c.ctx)
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case limited.Err() != nil:
		err = fmt.Errorf("no answer within %s", c.o.Connect)
	}
	code := gpu.CodeUnavailable
	if _, is := errors.AsType[*brokenError](err); is {
		code = gpu.CodeConflict
	}
	return nil, gpu.Wrap(err, code, "cannot reach %s", c.uri)
}

func (c *Client) secure(ctx context.Context) (*conn, error) {
	raw, err := c.o.dial(ctx, c.uri.Network, c.uri.Address)
	if err != nil {
		return nil, err
	}
	// What a name stands for, localhost too, is known now.
	if at, isTCP := raw.RemoteAddr().(*net.TCPAddr); isTCP && !at.IP.IsLoopback() && !c.uri.TLS && !c.o.Insecure {
		return nil, errors.Join(gpu.Errorf(gpu.CodeInvalid, "%s is not this host, and there is no TLS", at.IP), raw.Close())
	}
	return open(ctx, raw, c.uri, c.tls)
}

// add counts a connection among those that Close closes. Each is of the same export.
func (c *Client) add(n *conn) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	switch {
	case c.closed:
		err = gpu.Wrap(net.ErrClosed, gpu.CodeUnavailable, "cannot read %s", c.uri)
	case c.slots != nil && n.export.size != c.export.size:
		err = gpu.Errorf(gpu.CodeConflict, "cannot go on with %s: it has %d bytes, and had %d before", c.uri, n.export.size, c.export.size)
	case c.slots != nil && n.export != c.export:
		err = gpu.Errorf(gpu.CodeConflict, "cannot go on with %s: the server exports it otherwise than before", c.uri)
	default:
		c.live[n] = struct{}{}
		return nil
	}
	return errors.Join(err, n.raw.Close())
}

// take hands out a connection that is idle; without one it makes one, which is fresh.
func (c *Client) take(ctx context.Context) (n *conn, fresh bool, err error) {
	c.mu.Lock()
	if last := len(c.idle) - 1; last >= 0 {
		n, c.idle = c.idle[last], c.idle[:last]
		c.mu.Unlock()
		return n, false, nil
	}
	c.mu.Unlock()
	n, err = c.connect(ctx)
	return n, true, err
}

// put takes a connection back. One that has failed is closed.
func (c *Client) put(n *conn, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = n.raw.Close()
		return
	}
	if _, whole := errors.AsType[*diskError](err); err == nil || whole {
		c.idle = append(c.idle, n)
		return
	}
	delete(c.live, n)
	c.cuts++
	_ = n.raw.Close()
}
