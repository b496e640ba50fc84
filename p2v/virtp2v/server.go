package virtp2v

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/time/rate"
)

// Limits of who connects.
const (
	maxConns       = 512
	maxNew         = 32 // connections of who has not said yet who they are
	maxFromAddress = 96 // connections of one address: one for each disk, and three
	maxNewFrom     = 8  // of them those of who has not said who they are
	maxForwards    = 4  // of a connection; virt-p2v asks for one
	maxOpen        = 64 // channels of one forwarded port; a copy takes four
	maxFolders     = 2  // of a connection; virt-p2v makes one
	maxAllFolders  = 32
	maxSessions    = 4 // of a connection at once; virt-p2v begins one

	loginTime    = time.Minute // for the handshake and the password, which a person does not type
	wrongPause   = 2 * time.Second
	keepAlive    = 30 * time.Second
	warnings     = 10              // lines in the log of who comes to nothing, and then
	warnEvery    = 6 * time.Second // one
	answerWithin = time.Minute
)

// Options say who is let in, and what becomes of them.
type Options struct {
	HostKey ssh.Signer
	// Admit tells who is let in; it is asked at each login.
	Admit func() (Admission, error)
	// Arrive is called for each server whose conversion is asked for, and returns when it has no
	// need of the server any more: its error is told there. What is written is shown there. The
	// context ends when the server goes.
	Arrive func(ctx context.Context, s Server, show io.Writer) error
	Log    *slog.Logger
	Now    func() time.Time // nil: time.Now

	pause time.Duration // after a wrong password; zero: wrongPause
}

// An Admission is what lets somebody in: any of these. The user's name does not matter.
type Admission struct {
	Password string // empty: none does
	Keys     []ssh.PublicKey
}

// A Listener takes in servers.
type Listener struct {
	o        Options
	conf     *ssh.ServerConfig
	wg       sync.WaitGroup
	warnings *rate.Limiter

	mu       sync.Mutex
	conns    map[*conn]struct{}
	forwards map[uint32]*forward // by the port that the client was told
	next     uint32
	folders  map[string]*folder
}

// New returns a listener; nobody is listened to yet.
func New(o Options) *Listener {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.pause == 0 {
		o.pause = wrongPause
	}
	l := &Listener{o: o, warnings: rate.NewLimiter(rate.Every(warnEvery), warnings), conns: map[*conn]struct{}{}, forwards: map[uint32]*forward{}, folders: map[string]*folder{}, next: firstPort}
	l.conf = &ssh.ServerConfig{
		ServerVersion: "SSH-2.0-gpuvirt", MaxAuthTries: 6,
		PasswordCallback: func(_ ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) { return nil, l.password(password) },
		PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			a, err := l.o.Admit()
			if err == nil && !slices.ContainsFunc(a.Keys, func(k ssh.PublicKey) bool { return slices.Equal(k.Marshal(), key.Marshal()) }) {
				err = errors.New("nobody is let in with this key")
			}
			return nil, err
		},
	}
	l.conf.AddHostKey(o.HostKey)
	return l
}

// password lets somebody in, or lets them wait: nobody guesses faster than that.
func (l *Listener) password(said []byte) error {
	a, err := l.o.Admit()
	x, y := sha256.Sum256(said), sha256.Sum256([]byte(a.Password))
	if err == nil && a.Password != "" && subtle.ConstantTimeCompare(x[:], y[:]) == 1 {
		return nil
	}
	<-time.After(l.o.pause)
	return errors.Join(err, errors.New("the password is wrong"))
}

// Serve takes servers in until the context ends, and closes the socket. All that were taken in are
// gone when it returns.
func (l *Listener) Serve(ctx context.Context, socket net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer l.wg.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = socket.Close() })()
	for {
		raw, err := socket.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // no descriptors, a connection that was gone at once
			l.o.Log.WarnContext(ctx, "cannot take a connection of virt-p2v", "err", err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			continue
		}
		c, err := l.add(raw)
		if err != nil {
			l.warn(ctx, raw.RemoteAddr().String(), err)
			_ = raw.Close()
			continue
		}
		l.wg.Go(func() {
			defer l.remove(c)
			if err := c.serve(ctx); err != nil && ctx.Err() == nil {
				l.warn(ctx, c.from.String(), err)
			}
		})
	}
}

// warn tells of strangers, of whom there may be many.
func (l *Listener) warn(ctx context.Context, from string, err error) {
	if l.warnings.Allow() {
		l.o.Log.WarnContext(ctx, "a connection for virt-p2v has come to nothing", "from", from, "err", err)
	}
}

// add counts a connection, if there is room for it.
func (l *Listener) add(raw net.Conn) (*conn, error) {
	at, err := netip.ParseAddrPort(raw.RemoteAddr().String())
	if err != nil {
		return nil, err
	}
	c := &conn{l: l, raw: raw, from: at.Addr().Unmap(), forwards: map[uint32]*forward{}, folders: map[string]*folder{}}
	l.mu.Lock()
	defer l.mu.Unlock()
	fresh, same, both := 0, 0, 0
	for o := range l.conns {
		if !o.known {
			fresh++
		}
		if o.from == c.from {
			same++
		}
		if !o.known && o.from == c.from {
			both++
		}
	}
	switch {
	case len(l.conns) >= maxConns:
		return nil, fmt.Errorf("there are %d connections", maxConns)
	case fresh >= maxNew || both >= maxNewFrom:
		return nil, fmt.Errorf("%d have not said who they are, %d from there", fresh, both)
	case same >= maxFromAddress:
		return nil, fmt.Errorf("there are %d connections from there", maxFromAddress)
	}
	l.conns[c] = struct{}{}
	return c, nil
}

func (l *Listener) remove(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	for port := range c.forwards {
		delete(l.forwards, port)
	}
	for name := range c.folders {
		delete(l.folders, name)
	}
}

func (l *Listener) connected(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		if c.from == from {
			return true
		}
	}
	return false
}

// A conn is one connection by ssh: a server has several.
type conn struct {
	l    *Listener
	raw  net.Conn
	from netip.Addr
	ssh  *ssh.ServerConn

	known    bool // who it is; under l.mu, as is the rest
	sessions int
	// What ends with it.
	forwards map[uint32]*forward
	folders  map[string]*folder
}

func (c *conn) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer c.raw.Close() //nolint:errcheck // it is over
	defer context.AfterFunc(ctx, func() { _ = c.raw.Close() })()
	if err := c.raw.SetDeadline(time.Now().Add(loginTime)); err != nil {
		return err
	}
	made, channels, requests, err := ssh.NewServerConn(c.raw, c.l.conf)
	if err != nil {
		return err
	}
	if err := c.raw.SetDeadline(time.Time{}); err != nil {
		return err
	}
	c.l.mu.Lock()
	c.ssh, c.known = made, true
	c.l.mu.Unlock()
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	all.Go(func() { c.alive(ctx) })
	all.Go(func() {
		for r := range requests {
			c.request(r)
		}
	})
	for opened := range channels {
		if opened.ChannelType() != "session" {
			_ = opened.Reject(ssh.UnknownChannelType, "only virt-p2v is served here")
			continue
		}
		if !c.l.enter(c) {
			_ = opened.Reject(ssh.ResourceShortage, "there are too many")
			continue
		}
		ch, asked, err := opened.Accept()
		if err != nil {
			return err
		}
		all.Go(func() { c.session(ctx, ch, asked) })
	}
	return nil // it has gone
}

// enter counts a session, if there may be one more, until leave.
func (l *Listener) enter(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.sessions >= maxSessions {
		return false
	}
	c.sessions++
	return true
}

func (l *Listener) leave(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.sessions--
}

// alive closes a connection whose other end is not there any more.
func (c *conn) alive(ctx context.Context) {
	tick := time.NewTicker(keepAlive)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		late := time.AfterFunc(answerWithin, func() { _ = c.raw.Close() })
		_, _, err := c.ssh.SendRequest("keepalive@openssh.com", true, nil)
		late.Stop()
		if err != nil {
			return
		}
	}
}
