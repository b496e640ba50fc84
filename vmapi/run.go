package vmapi

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"gpuvirt/gpu"
)

// drainTimeout is how long Run waits, when it ends, for calls inside libvirt.
const drainTimeout = 5 * time.Second

// Run connects to libvirt, and again whenever the connection is lost, until ctx
// ends. It returns an error only if it runs already. Calls that libvirt does not
// answer are waited for a few seconds at the end and then left behind: nothing
// can interrupt them.
func (c *Client) Run(ctx context.Context) error {
	c.mu.Lock()
	again := c.running
	c.running = true
	c.mu.Unlock()
	if again {
		return errors.New("cannot run the libvirt client: it runs already")
	}
	var wg sync.WaitGroup
	wg.Go(func() { c.feed.run(ctx) })
	c.keepConnected(ctx)
	wg.Wait()
	c.drain()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running = false
	return nil
}

// keepConnected is the life of the connection.
func (c *Client) keepConnected(ctx context.Context) {
	failures := 0
	for ctx.Err() == nil {
		lost := make(chan error, 1)
		hv, err := c.connect(ctx, lost)
		if err == nil {
			began := time.Now()
			c.serve(ctx, hv, lost)
			if time.Since(began) > c.cfg.MaxBackoff {
				failures = 0
			}
		} else if ctx.Err() == nil {
			c.failed(err, failures == 0)
		}
		if ctx.Err() != nil {
			return
		}
		select {
		case <-time.After(c.backoff(failures)):
		case <-ctx.Done():
		}
		failures++
	}
}

// backoff returns how long to wait after so many failures in a row: twice as long
// each time, half of it by chance, so that the daemons of many hosts do not
// return all at once.
func (c *Client) backoff(failures int) time.Duration {
	d := c.cfg.MinBackoff
	for range failures {
		if d *= 2; d >= c.cfg.MaxBackoff {
			d = c.cfg.MaxBackoff
			break
		}
	}
	return d/2 + rand.N(d/2+1)
}

// connect opens a connection. That can hang, so it stops waiting when ctx ends.
func (c *Client) connect(ctx context.Context, lost chan<- error) (hypervisor, error) {
	type result struct {
		hv  hypervisor
		err error
	}
	done := make(chan result)
	c.work.Go(func() {
		hv, err := c.open(c.cfg.URI, c.feed.put, func(err error) {
			select {
			case lost <- err:
			default:
			}
		})
		select {
		case done <- result{hv, err}:
		case <-ctx.Done():
			if err == nil {
				hv.Close()
			}
		}
	})
	select {
	case r := <-done:
		return r.hv, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// serve lets calls use a connection until it is lost or ctx ends.
func (c *Client) serve(ctx context.Context, hv hypervisor, lost chan error) {
	c.mu.Lock()
	c.hv, c.lost, c.down, c.since = hv, lost, nil, time.Now()
	c.mu.Unlock()
	c.log.InfoContext(ctx, "connected to libvirt", "uri", c.cfg.URI)
	c.feed.put(gpu.VMEvent{Kind: kindConnected})

	var down *gpu.Error
	select {
	case err := <-lost:
		down = unreachable(c.cfg.URI, err)
		c.log.WarnContext(ctx, "lost the connection to libvirt", "err", down)
	case <-ctx.Done():
		down = unreachable(c.cfg.URI, errors.New("gpuvirtd is stopping"))
	}
	c.mu.Lock()
	c.hv, c.lost, c.down, c.since = nil, nil, down, time.Now()
	c.mu.Unlock()
	c.feed.put(gpu.VMEvent{Kind: kindDisconnected})
	c.work.Go(hv.Close) // says goodbye to libvirt, which may not listen
}

// failed keeps why there is no connection, and logs it once per outage.
func (c *Client) failed(err error, first bool) {
	down := unreachable(c.cfg.URI, err)
	c.mu.Lock()
	c.down = down
	c.mu.Unlock()
	if first {
		c.log.Warn("waiting for libvirt", "err", down, "hint", down.Hint)
	}
}

// unreachable makes the error of all calls while there is no connection. Whatever
// keeps us from libvirt, the answer is not known.
func unreachable(uri string, err error) *gpu.Error {
	e := fault(err, "cannot reach libvirt at %q", uri)
	e.Code = gpu.CodeUnavailable
	return e
}

// drop tells Run that a connection is of no use any more.
func (c *Client) drop(hv hypervisor, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hv != hv {
		return
	}
	select {
	case c.lost <- err:
	default:
	}
}

// drain waits for the calls inside libvirt.
func (c *Client) drain() {
	idle := make(chan struct{})
	go func() {
		c.work.Wait()
		close(idle)
	}()
	select {
	case <-idle:
	case <-time.After(drainTimeout):
		c.log.Warn("leaving calls behind that libvirt does not answer")
	}
}
