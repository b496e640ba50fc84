package nbd

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"gpuvirt/gpu"
)

// Options are how a server is reached. The zero value of each is right, but that TLS takes
// Certificates.
type Options struct {
	// Certificates is a folder with ca-cert.pem, the CA of the server's certificate, and
	// client-cert.pem and client-key.pem where the server wants to know who we are. The key is
	// readable for its owner only.
	Certificates string
	// Insecure lets a URI without TLS lead to another host: whoever is in between reads the
	// disk, and can change what is read.
	Insecure bool
	// Connections is how many are used at most, where the server takes several. Default 4.
	Connections int
	// Connect is how long a server may take until it lets us in. Default 20 s.
	Connect time.Duration
	// Answer is how long a read of up to 4 MiB may take. Default 100 s: a disk that tries to
	// read a bad block again and again takes a minute.
	Answer time.Duration

	// Dial connects to who exports, over something that is secure by itself; nil: as the URI says.
	Dial func(ctx context.Context) (net.Conn, error)

	dial func(ctx context.Context, network, address string) (net.Conn, error) // of tests
}

// leaveTime is how long a server may take to hear that we go.
const leaveTime = time.Second

// A Client reads one export. Its methods may be called concurrently. A connection that was cut
// is made again by the next read.
type Client struct {
	uri    URI
	o      Options
	tls    *tls.Config
	export export

	ctx   context.Context // ends with Close
	stop  context.CancelCauseFunc
	slots chan struct{} // one for each connection that there may be

	probing sync.Mutex // held by who takes all slots

	mu     sync.Mutex
	closed bool
	idle   []*conn
	live   map[*conn]struct{} // idle ones, too
	cuts   int
}

// Dial connects to a server and asks for the export. The kind of its error is
// gpu.CodeUnavailable where it may pass by itself, gpu.CodeUnauthorized where the server is
// not the one of the URI or does not accept us, gpu.CodeInvalid where it cannot be used,
// gpu.CodeNotFound where there is no such export.
func Dial(ctx context.Context, uri string, o Options) (*Client, error) {
	u, err := ParseURI(uri)
	if err != nil {
		return nil, err
	}
	o.Connections, o.Connect, o.Answer = cmp.Or(o.Connections, 4), cmp.Or(o.Connect, 20*time.Second), cmp.Or(o.Answer, 100*time.Second)
	switch {
	case o.Dial != nil:
		o.Insecure = true
		o.dial = func(ctx context.Context, _, _ string) (net.Conn, error) { return o.Dial(ctx) }
	case o.dial == nil:
		o.dial = (&net.Dialer{}).DialContext
	}
	if o.Connections < 1 {
		return nil, gpu.Errorf(gpu.CodeInvalid, "cannot read %s over %d connections", u, o.Connections)
	}
	c := &Client{uri: u, o: o, live: map[*conn]struct{}{}}
	switch {
	case u.TLS:
		if c.tls, err = tlsConfig(o.Certificates, u.ServerName); err != nil {
			return nil, err
		}
	case !u.local() && !o.Insecure:
		return nil, gpu.Errorf(gpu.CodeInvalid, "cannot read %s: without TLS anybody in between can read the disk, and change what is read", u).
			WithHint("start the server with --tls=require and use nbds://, or an ssh tunnel and nbd://localhost")
	}
	c.ctx, c.stop = context.WithCancelCause(context.Background())
	first, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	c.export = first.export
	n := 1
	if c.export.multiConn {
		n = o.Connections
	}
	c.slots = make(chan struct{}, n)
	c.idle = []*conn{first}
	return c, nil
}

// URI is what is read.
func (c *Client) URI() URI { return c.uri }

// Size is that of the export, in bytes.
func (c *Client) Size() int64 { return c.export.size }

// ReadOnly tells whether the server lets nobody write to the export.
func (c *Client) ReadOnly() bool { return c.export.readOnly }

// Cuts counts the connections that have ended otherwise than by Close. Who remembers the
// number knows by it whether the server could have been started again since.
func (c *Client) Cuts() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cuts
}

// ReadAt is that of io.ReaderAt. The kind of its errors is gpu.CodeUnavailable where the server
// is not reached, and another where it was: what is there cannot be read then.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, gpu.Errorf(gpu.CodeInternal, "cannot read %s at byte %d", c.uri, off)
	}
	if err := c.enter(c.ctx); err != nil {
		return 0, err
	}
	defer func() { <-c.slots }()
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= c.export.size {
			return done, io.EOF
		}
		n, err := c.piece(p[done:], at)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// enter waits until there may be a connection more.
func (c *Client) enter(ctx context.Context) error {
	select {
	case c.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return gpu.Wrap(context.Cause(ctx), gpu.CodeUnavailable, "cannot read %s", c.uri)
	case <-c.ctx.Done():
		return gpu.Wrap(context.Cause(c.ctx), gpu.CodeUnavailable, "cannot read %s", c.uri)
	}
}

// piece reads as much from a place on as one request may ask for.
func (c *Client) piece(p []byte, at int64) (int, error) {
	mask := c.export.minimum - 1
	start := at &^ mask
	end := min(at+int64(len(p)), start+c.export.most, c.export.size)
	whole := min((end+mask)&^mask, c.export.size)
	n := int(end - at)
	block := p[:n]
	if start != at || whole != end {
		block = make([]byte, whole-start)
	}
	if err := c.fetch(block, start); err != nil {
		return 0, err
	}
	if start != at || whole != end {
		copy(p[:n], block[at-start:])
	}
	return n, nil
}

// fetch reads over any connection. Those that were idle may have been cut long ago, which only
// shows now.
func (c *Client) fetch(p []byte, at int64) error {
	for {
		n, fresh, err := c.take(c.ctx)
		if err != nil {
			return err
		}
		err = n.read(p, at, c.o.Answer)
		c.put(n, err)
		switch {
		case err == nil:
			return nil
		case c.ctx.Err() != nil:
			return gpu.Wrap(context.Cause(c.ctx), gpu.CodeUnavailable, "cannot read %s", c.uri)
		case fresh || !wasCut(err):
			return c.failed(err, len(p), at)
		}
	}
}

// wasCut tells whether the same may be asked on another connection at once.
func wasCut(err error) bool {
	_, disk := errors.AsType[*diskError](err)
	_, lies := errors.AsType[*brokenError](err)
	return !disk && !lies && !errors.Is(err, os.ErrDeadlineExceeded)
}

func (c *Client) failed(err error, n int, at int64) error {
	code := gpu.CodeUnavailable
	if disk, is := errors.AsType[*diskError](err); is {
		code = disk.code()
	} else if _, is := errors.AsType[*brokenError](err); is {
		code = gpu.CodeConflict
	} else if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("no answer within %s", c.o.Answer)
	}
	return gpu.Wrap(cutOff(err), code, "cannot read %d bytes at byte %d of %s", n, at, c.uri)
}

// Ready makes sure that there is a connection, as far as that is known without asking.
func (c *Client) Ready(ctx context.Context) error {
	if err := c.enter(ctx); err != nil {
		return err
	}
	defer func() { <-c.slots }()
	n, _, err := c.take(ctx)
	if err != nil {
		return err
	}
	c.put(n, nil)
	return nil
}

// Probe asks over each connection whether the server is there, and makes one where none is.
// Connections that were cut are counted then, also those of which nothing was heard. It waits for
// reads that are under way.
func (c *Client) Probe(ctx context.Context) error {
	c.probing.Lock() // of two with half of the slots each, none would get on
	defer c.probing.Unlock()
	entered := 0
	defer func() {
		for range entered {
			<-c.slots
		}
	}()
	for ; entered < cap(c.slots); entered++ {
		if err := c.enter(ctx); err != nil {
			return err
		}
	}
	c.mu.Lock()
	idle := c.idle
	c.idle = nil
	c.mu.Unlock()
	for _, n := range idle {
		c.put(n, c.ask(ctx, n))
	}
	n, _, err := c.take(ctx)
	if err != nil {
		return err
	}
	c.put(n, nil)
	return nil
}

// ask finds out whether a connection that is idle lasts still.
func (c *Client) ask(ctx context.Context, n *conn) error {
	stop := context.AfterFunc(ctx, func() { _ = n.raw.Close() })
	err := n.read(make([]byte, min(c.export.minimum, c.export.size)), 0, c.o.Connect)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	return err
}

// Compare asks for the export once more, over a connection of its own, and answers with
// gpu.CodeConflict where it is not as long as it was, or is otherwise another. A server that lets only one
// connection in is not asked: to leave it would let it be started again unseen.
func (c *Client) Compare(ctx context.Context) error {
	if cap(c.slots) == 1 {
		return nil
	}
	if err := c.enter(ctx); err != nil {
		return err
	}
	defer func() { <-c.slots }()
	c.mu.Lock()
	var oldest *conn // makes room for it: as we have a slot, one of so many is idle
	if len(c.live) >= cap(c.slots) && len(c.idle) > 0 {
		oldest, c.idle = c.idle[0], c.idle[1:]
	}
	c.mu.Unlock()
	if oldest != nil {
		if err := c.ask(ctx, oldest); err != nil { // one that was cut is counted
			c.put(oldest, err)
		} else {
			c.mu.Lock()
			delete(c.live, oldest)
			c.mu.Unlock()
			_ = oldest.leave(leaveTime)
		}
	}
	n, err := c.connect(ctx)
	if err == nil {
		c.put(n, nil)
	}
	return err
}

// Close ends all connections, and the reads that wait.
func (c *Client) Close() error {
	c.stop(net.ErrClosed)
	c.mu.Lock()
	idle := c.idle
	c.closed, c.idle = true, nil
	for _, n := range idle {
		delete(c.live, n)
	}
	for n := range c.live {
		_ = n.raw.Close() // it is in the middle of something
	}
	clear(c.live)
	c.mu.Unlock()
	var errs []error
	for _, n := range idle {
		errs = append(errs, n.leave(leaveTime))
	}
	if err := errors.Join(errs...); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
