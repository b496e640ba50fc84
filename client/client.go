// Package client speaks gpuvirt's REST interface. It owns what a caller should
// not have to think about: the unix socket, pages, keys that make a repeated
// request harmless, and waiting across a restart of the daemon.
//
// A refusal of the daemon is an *api.Problem, a daemon that cannot be reached an
// *UnreachableError; both are found with errors.As.
package client

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// DefaultSocket is where gpuvirtd listens unless it is told otherwise.
const DefaultSocket = "/run/gpuvirt/gpuvirtd.sock"

// Limits of what a client takes and how long it waits.
const (
	maxBody         = 16 << 20         // of a JSON answer, in bytes
	maxEvent        = 1 << 20          // of one event, in bytes
	answerTimeout   = time.Minute      // for an answer that nothing long stands behind
	dialTimeout     = 10 * time.Second // to reach the socket
	defaultPatience = time.Minute      // for a daemon that restarts
	firstPause      = 50 * time.Millisecond
	longestPause    = time.Second
	longestWait     = 30 * time.Second       // of one request for an operation's end
	progressWait    = 300 * time.Millisecond // the same, where a caller follows the progress
)

// Options say how to reach a daemon. The zero value means the usual socket.
type Options struct {
	// Socket is the path of the daemon's unix socket; DefaultSocket if empty.
	Socket string
	// HTTPClient sends the requests instead, if it is set: Socket is then only a
	// name for messages.
	HTTPClient *http.Client
	// BaseURL is where HTTPClient finds the daemon: "http://gpuvirt" if empty.
	BaseURL string
	// Patience is how long a request that can be repeated without harm is repeated
	// when its connection breaks, and how long waiting goes on without a daemon;
	// a minute if zero.
	Patience time.Duration
	// UserAgent names the program in the daemon's log.
	UserAgent string
}

// A Client sends requests to one daemon. It may be used by many goroutines.
type Client struct {
	http     *http.Client
	base     string
	name     string // of the daemon, in messages
	agent    string
	patience time.Duration
}

// New returns a client. It connects with the first request.
func New(o Options) *Client {
	c := &Client{
		http: o.HTTPClient, base: strings.TrimSuffix(o.BaseURL, "/"), name: o.Socket,
		agent: o.UserAgent, patience: o.Patience,
	}
	if c.base == "" {
		c.base = "http://gpuvirt"
	}
	if c.name == "" {
		c.name = DefaultSocket
		if c.http != nil {
			c.name = c.base
		}
	}
	if c.agent == "" {
		c.agent = "gpuvirt-client"
	}
	if c.patience == 0 {
		c.patience = defaultPatience
	}
	if c.http == nil {
		c.http = &http.Client{Transport: unixTransport(c.name)}
	}
	own := *c.http
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.http = &own
	return c
}

// Close lets go of idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func unixTransport(socket string) *http.Transport {
	dialer := net.Dialer{Timeout: dialTimeout}
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
	}
}

// An UnreachableError says that no answer came from the daemon.
type UnreachableError struct {
	Daemon string // the socket's path, or the URL
	Err    error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("cannot reach gpuvirtd at %q: %v", e.Daemon, e.Err)
}

// Unwrap returns the cause.
func (e *UnreachableError) Unwrap() error { return e.Err }
