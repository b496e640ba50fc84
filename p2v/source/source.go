// Package source reaches a physical server by ssh: it knows the server by the fingerprint of
// its key, shows itself with a key that lies on this host, and runs programs there. Nothing
// is installed: a program that is brought along lies in the server's memory while it runs.
//
// The server is not trusted: what it sends is bounded, and it gets nothing of this host's.
package source

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"gpuvirt/gpu"
	"gpuvirt/p2v/report"
)

// Options are how servers are reached. The zero value of each but Credentials is right.
type Options struct {
	// Credentials is the folder with the private keys.
	Credentials string
	// Connect is how long a server may take until it lets us in. Default 20 s.
	Connect time.Duration
	// Alive is between two questions whether the server is still there; after three
	// without an answer the connection is cut. Default 15 s.
	Alive time.Duration
	// Grace is how long a program that is asked to end may take. One that is deaf, or a
	// server that does not let go of it, costs the connection then. Default 10 s.
	Grace time.Duration
}

// missed is how many questions may go without an answer.
const missed = 3

// A Conn is a connection to a server. Its methods may be called concurrently.
type Conn struct {
	client *ssh.Client
	source report.Source
	grace  time.Duration
	stop   context.CancelCauseFunc
	ctx    context.Context // ends with the connection; its cause says why
	done   sync.WaitGroup
}

// Dial connects to a server. The kind of its error is gpu.CodeUnavailable where it may pass
// by itself, and gpu.CodeUnauthorized where the server is another, or does not let us in.
// report.ErrSilent is in it where nobody took the connection.
func Dial(ctx context.Context, s report.Source, o Options) (*Conn, error) {
	if o.Connect == 0 {
		o.Connect = 20 * time.Second
	}
	if o.Alive == 0 {
		o.Alive = 15 * time.Second
	}
	if o.Grace == 0 {
		o.Grace = 10 * time.Second
	}
	key, err := credential(o.Credentials, s.Credential)
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, o.Connect)
	defer cancel()
	client, err := dial(limited, s, key)
	switch {
	case ctx.Err() != nil:
		return nil, gpu.Errorf(gpu.CodeUnavailable, "cannot reach %s: %w", name(s), silentAs(err, context.Cause(ctx)))
	case err != nil && limited.Err() != nil:
		return nil, gpu.Errorf(gpu.CodeUnavailable, "cannot reach %s: %w", name(s), silentAs(err, fmt.Errorf("no answer within %s", o.Connect)))
	case err != nil:
		return nil, err
	}
	c := &Conn{client: client, source: s, grace: o.Grace}
	c.ctx, c.stop = context.WithCancelCause(context.WithoutCancel(ctx))
	c.done.Go(func() { c.watch(o.Alive) })
	c.done.Go(func() {
		err := client.Wait()
		if err == nil {
			err = errors.New("the connection was closed")
		}
		c.stop(err)
	})
	return c, nil
}

// name is a server as messages have it.
func name(s report.Source) string {
	return fmt.Sprintf("server %q", net.JoinHostPort(s.Address, strconv.Itoa(s.Port)))
}

// families are the kinds of host key, and the algorithms of each, the best first.
func families() [][]string {
	return [][]string{
		{ssh.KeyAlgoED25519},
		{ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521},
		{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256},
	}
}

// An otherKeyError says that a server showed a key that is not the one it is known by.
type otherKeyError struct{ shown string }

func (e *otherKeyError) Error() string { return "its key is " + e.shown }

// dial asks for each kind of key in turn: a server has several and shows one, and a
// fingerprint does not tell which kind it is of.
func dial(ctx context.Context, s report.Source, key ssh.Signer) (*ssh.Client, error) {
	var shown []string
	for _, algorithms := range families() {
		client, err := dialWith(ctx, s, key, algorithms)
		other, isOther := errors.AsType[*otherKeyError](err)
		_, lacks := errors.AsType[*ssh.AlgorithmNegotiationError](err)
		switch {
		case err == nil:
			return client, nil
		case ctx.Err() != nil:
			return nil, gpu.Errorf(gpu.CodeUnavailable, "cannot reach %s: %w", name(s), silentAs(err, ctx.Err()))
		case isOther:
			shown = append(shown, other.shown)
		case lacks && strings.Contains(err.Error(), "host key"):
		case strings.Contains(err.Error(), "unable to authenticate"):
			return nil, gpu.Errorf(gpu.CodeUnauthorized, "cannot reach %s: it does not let %q in with the key %q", name(s), s.User, s.Credential).
				WithHint("add the public key to ~%s/.ssh/authorized_keys there", s.User)
		default:
			return nil, gpu.Errorf(gpu.CodeUnavailable, "cannot reach %s: %w", name(s), err)
		}
	}
	if len(shown) == 0 {
		return nil, gpu.Errorf(gpu.CodeUnavailable, "cannot reach %s: it has no host key of a kind that is secure: ed25519, ECDSA or RSA with SHA-2", name(s))
	}
	return nil, gpu.Errorf(gpu.CodeUnauthorized, "cannot trust %s: its key is %s, and not the one that was given: %s", name(s), strings.Join(shown, " or "), s.HostKey).
		WithHint("compare with what ssh-keygen -l prints on the server itself: somebody may be in between")
}

func dialWith(ctx context.Context, s report.Source, key ssh.Signer, algorithms []string) (*ssh.Client, error) {
	address := net.JoinHostPort(s.Address, strconv.Itoa(s.Port))
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, silence(err)
	}
	// What x/crypto reads and writes knows no context.
	unblock := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer unblock()
	conf := &ssh.ClientConfig{
		User: s.User, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyAlgorithms: slices.Clone(algorithms),
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			if shown := ssh.FingerprintSHA256(key); shown != s.HostKey {
				return &otherKeyError{shown}
			}
			return nil
		},
	}
	conn, channels, requests, err := ssh.NewClientConn(raw, address, conf)
	if err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	if !unblock() {
		return nil, errors.Join(ctx.Err(), conn.Close())
	}
	return ssh.NewClient(conn, channels, requests), nil
}

// silentError is report.ErrSilent with why.
type silentError struct{ error }

func (e silentError) Unwrap() []error { return []error{e.error, report.ErrSilent} }

// silence tells a server that does not answer from one that cannot be asked.
func silence(err error) error {
	if _, name := errors.AsType[*net.DNSError](err); name {
		return err
	}
	if failed, is := errors.AsType[net.Error](err); is && failed.Timeout() || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) {
		return silentError{err}
	}
	return err
}

// silentAs is another error, of a server as silent as in the first.
func silentAs(was, err error) error {
	if errors.Is(was, report.ErrSilent) {
		return silentError{err}
	}
	return err
}

// watch cuts the connection when the server answers no more: a cable that was pulled says
// nothing.
func (c *Conn) watch(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	answered := make(chan struct{}, 1)
	asked, silent := false, 0
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-answered:
			asked, silent = false, 0
		case <-tick.C:
			if asked {
				if silent++; silent == missed {
					c.stop(fmt.Errorf("no answer for %s", missed*every))
					_ = c.client.Close()
					return
				}
				continue
			}
			asked = true
			c.done.Go(func() {
				if _, _, err := c.client.SendRequest("keepalive@openssh.com", true, nil); err == nil {
					answered <- struct{}{}
				}
			})
		}
	}
}

// cut gives the connection up where a program has not ended in time: what waits for it
// knows no context.
func (c *Conn) cut(program string, ended <-chan struct{}) {
	late := time.NewTimer(c.grace)
	defer late.Stop()
	select {
	case <-ended:
	case <-c.ctx.Done():
	case <-late.C:
		c.stop(fmt.Errorf("%q did not end within %s", program, c.grace))
		_ = c.client.Close()
	}
}

// Close ends the connection and what runs over it.
func (c *Conn) Close() error {
	c.stop(net.ErrClosed)
	err := c.client.Close()
	c.done.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
