package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"gpuvirt/access"
	"gpuvirt/gpu"
)

// Limits of what comes over the network, beside those of the socket.
const (
	networkTimeout   = 10 * time.Second // for the handshake, and for a request's header
	networkMaxHeader = 16 << 10         // bytes of a request's line and header
	maxConnections   = 1024
	maxFromAddress   = 128 // connections: a proxy may stand before many clients
	listenAgain      = 5 * time.Second
	expiresSoon      = 14 * 24 * time.Hour
)

// TLS is how to serve over the network. Files are read when it is given to SetTLS.
type TLS struct {
	Certificate, Key string
	ClientCA         string // empty: no client is known by a certificate
	Clients          access.Clients
}

// A network is the port on the network, and who is let in there.
type network struct {
	address  string // empty: there is none
	failures *access.Failures
	timeout  time.Duration // networkTimeout, but in tests
	again    time.Duration // listenAgain, but in tests

	setting sync.Mutex // one change at a time; before mu
	mu      sync.Mutex
	wanted  TLS
	pair    *tls.Certificate
	pool    *x509.CertPool // nil: no client is known by a certificate
	clients access.Clients
	config  *tls.Config    // of both
	changed chan struct{}  // closed when other clients are let in
	files   error          // why the newest files are not in use
	port    error          // why the port is not open
	bound   net.Addr       // nil: it is not open
	streams map[string]int // long requests, by actor
	closed  chan struct{}
}

func newNetwork(address string) *network {
	return &network{
		address: address, failures: access.NewFailures(), timeout: networkTimeout, again: listenAgain,
		streams: map[string]int{}, changed: make(chan struct{}), closed: make(chan struct{}),
	}
}

// SetTLS has the network served in another way, from the next connection on: nobody is cut
// off but those who are not let in any more. Of files that cannot be used the error tells,
// and so does GET /v1 until they are mended; what they replace stays in use.
func (s *Server) SetTLS(t TLS) error {
	s.network.setting.Lock()
	defer s.network.setting.Unlock()
	return s.setTLS(t)
}

func (s *Server) setTLS(t TLS) error {
	pair, errPair := access.LoadPair(t.Certificate, t.Key, time.Now())
	var pool *x509.CertPool
	var errPool error
	if t.ClientCA != "" {
		pool, errPool = access.LoadCA(t.ClientCA, time.Now())
	}
	n := s.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if errPair == nil {
		n.pair = pair
	}
	if errPool == nil {
		n.pool = pool
	}
	n.wanted, n.clients = t, t.Clients
	n.config = tlsConfig(n.pair, n.pool)
	close(n.changed)
	n.changed = make(chan struct{})
	n.files = errors.Join(errPair, errPool)
	return n.files
}

func tlsConfig(pair *tls.Certificate, pool *x509.CertPool) *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS12,
		CipherSuites: []uint16{ // of TLS 1.2: forward secrecy and authenticated encryption
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		NextProtos: []string{"http/1.1"},
		// A resumed session would be one of who was let in then.
		SessionTicketsDisabled: true,
	}
	if pair != nil {
		c.Certificates = []tls.Certificate{*pair}
	}
	if pool != nil {
		c.ClientAuth, c.ClientCAs = tls.VerifyClientCertIfGiven, pool
	}
	return c
}

// identify is who shows a certificate. It is verified anew for each request: a connection
// may be older than who is let in now, and last longer than the certificate.
func (n *network) identify(state *tls.ConnectionState, now time.Time) (Identity, error) {
	n.mu.Lock()
	pool, clients, changed := n.pool, n.clients, n.changed
	n.mu.Unlock()
	leaf := state.PeerCertificates[0]
	name := access.NameOf(leaf)
	if pool == nil {
		return Identity{}, gpu.Errorf(gpu.CodeUnauthorized, "cannot tell whether this is %s: no client is known by a certificate here", name)
	}
	between := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		between.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return Identity{}, gpu.Errorf(gpu.CodeUnauthorized, "cannot tell whether this is %s: its certificate is not valid here any more", name)
	}
	return Identity{Actor: "cert:" + name, Role: clients.RoleOf(leaf), Expires: leaf.NotAfter, gone: changed, again: func() (Identity, error) {
		return n.identify(state, time.Now())
	}}, nil
}

// beginStream counts a long request of an actor, unless that has too many.
func (n *network) beginStream(actor string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.streams[actor] >= maxStreamsOf || n.allStreams() >= maxStreamsNet {
		return false
	}
	n.streams[actor]++
	return true
}

// allStreams counts the long requests of all actors. The caller holds mu.
func (n *network) allStreams() (all int) {
	for _, of := range n.streams {
		all += of
	}
	return all
}

func (n *network) endStream(actor string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.streams[actor]--; n.streams[actor] == 0 {
		delete(n.streams, actor)
	}
}

// problems says what is wrong with serving over the network, if that is wanted.
func (n *network) problems() (out []string) {
	if n.address == "" {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, err := range []error{n.files, n.port} {
		if err != nil {
			out = append(out, err.Error())
		}
	}
	if n.pair != nil && n.files == nil && endsSoon(n.pair.Leaf, time.Now()) {
		out = append(out, "the certificate that is shown over the network expires at "+n.pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return out
}

// endsSoon reports whether a certificate should have been renewed by now: those that live
// for days are renewed later than those that live for a year.
func endsSoon(c *x509.Certificate, now time.Time) bool {
	soon := min(expiresSoon, c.NotAfter.Sub(c.NotBefore)/10)
	return c.NotAfter.Sub(now) < soon
}

// NetworkAddr is where the network is served; nil: it is not.
func (s *Server) NetworkAddr() net.Addr {
	s.network.mu.Lock()
	defer s.network.mu.Unlock()
	return s.network.bound
}

// CertificateExpires is when the certificate that is shown over the network ends; zero:
// none is.
func (s *Server) CertificateExpires() time.Time {
	n := s.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.bound == nil || n.pair == nil {
		return time.Time{}
	}
	return n.pair.Leaf.NotAfter
}

func (s *Server) networkServer(base context.Context) *http.Server {
	var http1 http.Protocols
	http1.SetHTTP1(true)
	return &http.Server{
		Handler:           s.Handler(),
		ConnContext:       s.ConnContext,
		BaseContext:       func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: s.network.timeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    networkMaxHeader,

		DisableGeneralOptionsHandler: true,
		Protocols:                    &http1,
		// Handshakes that failed: somebody may be trying certificates.
		ErrorLog: slog.NewLogLogger(sparing{s.log.Handler(), rate.NewLimiter(1, 20)}, slog.LevelInfo),
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS12,
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
				s.network.mu.Lock()
				defer s.network.mu.Unlock()
				return s.network.config, nil
			},
		},
	}
}

// serveNetwork opens the port as soon as there is a certificate to show and the port can be
// had, unless it is open, and serves it until the server is shut down. The socket is served
// meanwhile, whatever keeps the port closed.
func (s *Server) serveNetwork(ctx context.Context, server *http.Server, l net.Listener) error {
	for l == nil {
		select {
		case <-time.After(s.network.again):
		case <-s.network.closed:
			return http.ErrServerClosed
		}
		s.lookAgain()
		l = s.openNetwork(ctx)
	}
	return server.ServeTLS(newGuarded(l), "", "")
}

// lookAgain reads the files anew while there is no certificate to show: they may come later
// than the daemon at a boot, and so may the right time, without which none is valid.
func (s *Server) lookAgain() {
	s.network.setting.Lock()
	defer s.network.setting.Unlock()
	s.network.mu.Lock()
	t, missing := s.network.wanted, s.network.pair == nil
	s.network.mu.Unlock()
	if missing {
		_ = s.setTLS(t) // GET /v1 tells
	}
}

// openNetwork opens the port, or returns nil and notes why it could not.
func (s *Server) openNetwork(ctx context.Context) net.Listener {
	n := s.network
	n.mu.Lock()
	missing := n.pair == nil
	n.mu.Unlock()
	if missing {
		return nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", n.address)
	if err != nil {
		err = fmt.Errorf("cannot listen on %s: %w%s", n.address, err, listenHint(err))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		if n.port == nil || n.port.Error() != err.Error() {
			s.log.Error("the network is not served, and that is tried again", "err", err)
		}
		n.port = err
		return nil
	}
	n.port, n.bound = nil, l.Addr()
	s.log.Info("listening on the network", "address", l.Addr().String())
	return l
}

func listenHint(err error) string {
	switch {
	case errors.Is(err, syscall.EAFNOSUPPORT), errors.Is(err, syscall.EPERM):
		return " (RestrictAddressFamilies= in a drop-in of gpuvirtd.service may forbid it)"
	case errors.Is(err, syscall.EACCES):
		return " (ports below 1024 take CAP_NET_BIND_SERVICE)"
	}
	return ""
}

// close ends what waits for the port to be opened.
func (n *network) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.closed)
}

// sparing is a log that drops what comes too fast.
type sparing struct {
	slog.Handler

	limit *rate.Limiter
}

func (h sparing) Handle(ctx context.Context, r slog.Record) error {
	if !h.limit.Allow() {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// guarded is a listener that has so many connections at a time, and so many from one
// address: others are closed at once.
type guarded struct {
	net.Listener

	mu    sync.Mutex
	total int
	from  map[netip.Prefix]int
}

func newGuarded(l net.Listener) *guarded {
	return &guarded{Listener: l, from: map[netip.Prefix]int{}}
}

func (g *guarded) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil && !errors.Is(err, net.ErrClosed) {
			return nil, passing{err}
		}
		if err != nil {
			return nil, err
		}
		addr, _ := netip.ParseAddrPort(c.RemoteAddr().String())
		if give, ok := g.take(addr.Addr()); ok {
			return &guardedConn{Conn: c, give: give}, nil
		}
		_ = c.Close()
	}
}

// passing is an error of accept(2) after which the server tries again: a firewall or an
// interface that is down ends nothing but the one connection.
type passing struct{ error }

func (passing) Timeout() bool   { return false }
func (passing) Temporary() bool { return true }

func (g *guarded) take(addr netip.Addr) (give func(), ok bool) {
	from := access.Network(addr.Unmap())
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.total >= maxConnections || g.from[from] >= maxFromAddress {
		return nil, false
	}
	g.total++
	g.from[from]++
	return sync.OnceFunc(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.total--
		if g.from[from]--; g.from[from] == 0 {
			delete(g.from, from)
		}
	}), true
}

type guardedConn struct {
	net.Conn

	give func()
}

func (c *guardedConn) Close() error {
	c.give()
	return c.Conn.Close()
}
