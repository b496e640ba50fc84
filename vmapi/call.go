package vmapi

import (
	"context"
	"fmt"
	"time"

	"gpuvirt/gpu"
)

// maxCalls bounds the calls under way on the connection. libvirtd takes five
// requests per client at a time unless configured otherwise; past them even its
// keepalive answers can be late, and the connection would be given up.
const maxCalls = 4

// A request is a call to be made.
type request struct {
	what   string // "read", "attach"
	vm     string // UUID, empty if the call is for none
	change bool   // changes the VM, so it can be slow: VFIO pins the guest's memory

	began    time.Time
	returned bool // under Client.mu
}

// call runs f on the connection and waits for it as long as ctx and our patience
// last. libvirt cannot be interrupted: past that the call goes on and nobody
// knows what it will have done (T50), so that further changes of its VM are
// refused until it has returned.
func call[T any](ctx context.Context, c *Client, r request, f func(hypervisor) (T, error)) (T, error) {
	var zero T
	patience := c.cfg.CallTimeout
	if r.change {
		patience = c.cfg.ChangeTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience,
		fmt.Errorf("libvirt has not answered for %s: %w", patience, context.DeadlineExceeded))
	defer cancel()

	if _, err := c.connected(); err != nil {
		return zero, err
	}
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return zero, gpu.Errorf(gpu.CodeUnavailable,
			"libvirt is busy with %d earlier calls: %w", maxCalls, context.Cause(ctx))
	}
	hv, err := c.begin(&r)
	if err != nil {
		<-c.slots
		return zero, err
	}
	type answer struct {
		value T
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		defer c.work.Done()
		v, err := f(hv)
		<-c.slots
		if isLoss(err) {
			c.drop(hv, err)
		}
		done <- answer{v, err}
		c.end(&r, err)
	}()
	select {
	case a := <-done:
		return a.value, a.err
	case <-ctx.Done():
	}
	if !c.abandon(&r) {
		a := <-done // it came after all
		return a.value, a.err
	}
	if r.change {
		return zero, gpu.Errorf(gpu.CodeUnavailable, "%w; the call goes on, and its outcome is not known", context.Cause(ctx)).
			WithHint("look at the VM before trying again")
	}
	return zero, gpu.Errorf(gpu.CodeUnavailable, "%w", context.Cause(ctx))
}

// connected returns the connection, or why there is none.
func (c *Client) connected() (hypervisor, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hv == nil {
		return nil, c.down
	}
	return c.hv, nil
}

// begin accounts for a call, unless it would only queue behind a lost one.
func (c *Client) begin(r *request) (hypervisor, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hv == nil {
		return nil, c.down
	}
	r.began = time.Now()
	for l := range c.late {
		if l.vm != r.vm || r.vm == "" {
			continue
		}
		if age := r.began.Sub(l.began); (l.change && r.change) || age >= c.cfg.CallTimeout {
			return nil, gpu.Errorf(gpu.CodeUnavailable,
				"libvirt has not yet answered an earlier call (%s) on this VM, begun %s ago", l.what, age.Round(time.Second)).
				WithHint("see whether the VM's hypervisor process hangs")
		}
	}
	c.work.Add(1)
	return c.hv, nil
}

// end accounts for the return of a call.
func (c *Client) end(r *request, err error) {
	c.mu.Lock()
	r.returned = true
	_, late := c.late[r]
	delete(c.late, r)
	c.mu.Unlock()
	if late {
		if err != nil {
			err = fault(err, "cannot %s", r.what)
		}
		c.log.Warn("libvirt answered after its caller had gone",
			"call", r.what, "vm", r.vm, "after", time.Since(r.began), "err", err)
	}
}

// abandon leaves a call behind. It reports false if the call has returned.
func (c *Client) abandon(r *request) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.returned {
		return false
	}
	c.late[r] = struct{}{}
	return true
}
