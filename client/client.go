// Package client speaks gpuvirt's REST interface. It owns what a caller should
// not have to think about: the unix socket, pages, keys that make a repeated
// request harmless, and waiting across a restart of the daemon.
//
// A refusal of the daemon is an *api.Problem, a daemon that cannot be reached an
// *UnreachableError, and one with which there is no trust an *UntrustedError; all are
// found with errors.As.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
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
	// URL is where the daemon is on the network, "https://host:8443"; empty: it is asked at
	// its socket. Proxies are those of the environment, as net/http has it.
	URL string
	// TLS is how to speak to URL: whose certificates to trust, and which to show; nil: the
	// system's, and none.
	TLS *tls.Config
	// Token is sent to URL with each request, if it is not empty.
	Token string
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
	token    string
	patience time.Duration
}

// New returns a client. It connects with the first request.
func New(o Options) *Client {
	c := &Client{
		http: o.HTTPClient, base: strings.TrimSuffix(o.BaseURL, "/"), name: o.Socket,
		agent: o.UserAgent, patience: o.Patience,
	}
	if o.URL != "" && c.http == nil {
		c.base = strings.TrimSuffix(o.URL, "/")
		c.name, c.token = c.base, o.Token
		c.http = &http.Client{Transport: networkTransport(o.TLS)}
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

func networkTransport(config *tls.Config) *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    dialTimeout,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
	}
}

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

// CheckURL says what is wrong with the URL of a daemon, for Options.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return fmt.Errorf("%q is no URL, such as https://host:8443", text)
	case u.Scheme != "https":
		return fmt.Errorf("%q does not begin with https://", text)
	case u.Hostname() == "":
		return fmt.Errorf("%q names no host", text)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("the URL of %q holds more than a host, a port and a path", u.Hostname())
	}
	return nil
}

// An UntrustedError says that there is a daemon, or something else, that does not have the
// certificate of the one that was meant, or that does not accept ours.
type UntrustedError struct {
	Daemon string // the URL
	Err    error  // of crypto/tls or crypto/x509
}

func (e *UntrustedError) Error() string {
	return fmt.Sprintf("there is no trust between this and the daemon at %q: %s", e.Daemon, strings.TrimPrefix(e.Err.Error(), "tls: "))
}

// Unwrap returns the cause.
func (e *UntrustedError) Unwrap() error { return e.Err }

// untrusted reports whether an error is one that another try does not mend: of certificates,
// or of something that speaks no TLS.
func untrusted(err error) bool {
	var verification *tls.CertificateVerificationError
	var header tls.RecordHeaderError
	var op *net.OpError
	return errors.As(err, &verification) || errors.As(err, &header) || errors.Is(err, http.ErrSchemeMismatch) ||
		errors.As(err, &op) && op.Op == "remote error" // an alert of TLS
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
