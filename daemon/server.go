package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/gorilla/mux"

	"gpuvirt/api"
)

// Limits of the server that are nobody's business to configure.
const (
	maxBody       int64 = 1 << 20          // bytes of a request's body
	maxDrain            = 16 << 20         // bytes of a refused request's body that are read to be polite
	maxHeader           = 64 << 10         // bytes of a request's line and header
	maxStreams          = 256              // event streams, waits and backups at a time
	maxStreamsOf        = 64               // of them of one actor over the network
	maxStreamsNet       = 192              // of them over the network: some are left for the socket
	readTimeout         = 30 * time.Second // for a request's header, and again for its body
	writeTimeout        = 30 * time.Second // for a response, and for each piece of a stream
	// strangerTimeout is for what is still sent of a body that nobody wants.
	strangerTimeout = 2 * time.Second
	idleTimeout     = 2 * time.Minute // of a connection between requests
	lingerTimeout   = 5 * time.Second // for handlers whose connection was closed
)

// Config is what a Server is made of. Host, Operations, Tokens, Assessments, Migrations and Log must be given.
type Config struct {
	Host       Host
	Operations Operations
	Tokens     Tokens
	// Assessments are the looks at physical servers.
	Assessments Assessments
	// Migrations are their moves into VMs.
	Migrations Migrations
	Log        *slog.Logger
	Version    string // of the daemon, for GET /v1
	// Settings tells the configuration that holds; nil: there is none.
	Settings func() api.Settings

	// Metrics writes what GET /metrics answers, as Prometheus reads it; nil: there is nothing.
	Metrics func(ctx context.Context, w io.Writer) error

	// TLSListen is an address and port to serve on with TLS, too, as soon as SetTLS has said
	// with which certificate; empty: on the socket only.
	TLSListen string
	// SocketPath is where to listen if systemd passed no socket.
	SocketPath string
	// SocketGroup is the group that may connect to the socket; empty, or a group
	// that this host does not have: only the owner may.
	SocketGroup string
	// Roles are those of users who are neither root nor the daemon's own; who is
	// not listed, but was let through by the socket's permissions, is an Operator.
	Roles map[uint32]Role

	// DrainTimeout is how long requests may go on after the end; default 15 s.
	DrainTimeout time.Duration
	// Heartbeat is how often an idle event stream gives a sign of life; default 15 s.
	Heartbeat time.Duration
	// Exit ends the process after a panic in a handler, which may have left a lock
	// behind: systemd starts it again and operations resume. Default os.Exit.
	Exit func(code int)
}

// A Server answers the REST interface.
type Server struct {
	host        Host
	ops         Operations
	tokens      Tokens
	assessments Assessments
	migrations  Migrations
	metrics     func(context.Context, io.Writer) error
	network     *network
	log         *slog.Logger
	version     string
	settings    func() api.Settings
	socketPath  string
	socketGroup string
	roles       map[uint32]Role
	drain       time.Duration
	heartbeat   time.Duration
	exit        func(code int)

	router    *mux.Router
	resources map[string]*resource // by path template
	locks     keyedLocks           // one write to an object at a time
	streams   chan struct{}        // slots for long requests
	ready     chan struct{}        // closed when listening
	closing   chan struct{}        // closed when long requests must end
	closeOnce sync.Once
	gate      gate // counts requests
}

// New makes a server.
func New(c Config) *Server {
	s := &Server{
		host: c.Host, ops: c.Operations, tokens: c.Tokens, assessments: c.Assessments, migrations: c.Migrations, metrics: c.Metrics, network: newNetwork(c.TLSListen), log: c.Log, version: c.Version, settings: c.Settings,
		socketPath: c.SocketPath, socketGroup: c.SocketGroup, roles: c.Roles,
		drain: c.DrainTimeout, heartbeat: c.Heartbeat, exit: c.Exit,
		streams: make(chan struct{}, maxStreams),
		gate:    gate{empty: make(chan struct{})},
		ready:   make(chan struct{}),
		closing: make(chan struct{}),
	}
	if s.socketPath == "" {
		s.socketPath = "/run/gpuvirt/gpuvirtd.sock"
	}
	if s.drain == 0 {
		s.drain = 15 * time.Second
	}
	if s.heartbeat == 0 {
		s.heartbeat = 15 * time.Second
	}
	if s.exit == nil {
		s.exit = os.Exit
	}
	if s.settings == nil {
		s.settings = func() api.Settings { return api.Settings{Files: []string{}, Items: []api.Setting{}} }
	}
	s.addRoutes(routes())
	return s
}

// Handler returns the REST interface as a handler. The connections it serves
// must have passed ConnContext, or nobody is known and only open routes answer.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serveHTTP) }

// Ready is closed as soon as the server listens.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run listens and serves until ctx ends. Then it lets requests finish, ends
// streams and waits, and removes the socket if it made it. A server runs once.
func (s *Server) Run(ctx context.Context) error {
	listeners, cleanup, err := s.listen(ctx)
	if err != nil {
		return err
	}
	defer cleanup()

	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	server := &http.Server{
		Handler:           s.Handler(),
		ConnContext:       s.ConnContext,
		BaseContext:       func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,

		DisableGeneralOptionsHandler: true, // "OPTIONS *" goes through all checks as well
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	secure := s.networkServer(base)
	var serving sync.WaitGroup
	failed := make(chan error, len(listeners)+1)
	for _, l := range listeners {
		serving.Go(func() {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				failed <- err
			}
		})
	}
	if s.network.address != "" {
		opened := s.openNetwork(ctx)
		serving.Go(func() {
			if err := s.serveNetwork(ctx, secure, opened); !errors.Is(err, http.ErrServerClosed) {
				failed <- err
			}
		})
	}
	close(s.ready)
	s.log.Info("listening", "sockets", len(listeners))

	select {
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("cannot accept connections: %w", err)
	}
	return errors.Join(err, s.shutdown([]*http.Server{server, secure}, cancel, &serving))
}

// shutdown drains the servers and waits for all that Run started.
func (s *Server) shutdown(servers []*http.Server, cancel context.CancelFunc, serving *sync.WaitGroup) error {
	s.closeOnce.Do(func() { close(s.closing) })
	ctx, stop := context.WithTimeout(context.Background(), s.drain)
	defer stop()
	var ending sync.WaitGroup
	for _, server := range servers {
		ending.Go(func() {
			if err := server.Shutdown(ctx); err != nil {
				s.log.Warn("closing connections with requests under way", "err", err)
				if err := server.Close(); err != nil {
					s.log.Warn("cannot close connections", "err", err)
				}
			}
		})
	}
	ending.Wait()
	s.network.close()
	serving.Wait()
	cancel()

	select {
	case <-s.gate.close():
		return nil
	case <-time.After(lingerTimeout):
		return errors.New("cannot stop: a request does not end")
	}
}
