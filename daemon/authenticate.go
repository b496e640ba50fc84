package daemon

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"time"

	"gpuvirt/access"
	"gpuvirt/gpu"
)

type networkKey struct{}

// overNetwork returns a context whose requests come from an address.
func overNetwork(ctx context.Context, from net.Addr) context.Context {
	addr, _ := netip.ParseAddrPort(from.String())
	return context.WithValue(ctx, networkKey{}, addr.Addr().Unmap())
}

// authenticate finds out who sent a request. A token that is sent counts, whatever else
// there is, and one that is not valid is a refusal, so that nobody is taken for somebody
// else than they meant to be. Else it is the certificate, or on the socket what the kernel
// said. Over the network nothing is answered to who is unknown.
func (s *Server) authenticate(q *request) error {
	who, _ := identityOf(q.Context())
	from, remote := q.Context().Value(networkKey{}).(netip.Addr)
	text, err := access.ParseBearer(q.Header.Values("Authorization"))
	switch {
	case err != nil:
		err = gpu.Errorf(gpu.CodeUnauthorized, "cannot tell who asks: %w", err)
	case text != "":
		who, err = s.identifyToken(text, who)
	case remote && q.TLS != nil && len(q.TLS.PeerCertificates) > 0:
		who, err = s.network.identify(q.TLS, time.Now())
	case remote:
		err = gpu.Errorf(gpu.CodeUnauthorized, "cannot tell who asks: there is neither a token nor a certificate").
			WithHint("send a token, or show a certificate that the host lets in")
	}
	if remote {
		who.From = from.String()
	}
	if err != nil {
		return s.refuseStranger(q, from, remote, err)
	}
	q.who = who
	if remote {
		if err := http.NewCrossOriginProtection().Check(q.Request); err != nil {
			return gpu.Errorf(gpu.CodeForbidden, "cannot do this for a page of another site: %w", err)
		}
	}
	return nil
}

// identifyToken is who holds a token.
func (s *Server) identifyToken(text string, on Identity) (Identity, error) {
	t, gone, err := s.tokens.Check(text)
	if err != nil {
		return Identity{}, err
	}
	role, err := access.ParseRole(t.Role)
	if err != nil {
		return Identity{}, gpu.Errorf(gpu.CodeUnauthorized, "the token %q has a role that this version does not know", t.Name)
	}
	return Identity{
		Actor: "token:" + t.Name, UID: on.UID, PID: on.PID, Role: role, Token: t.ID, Expires: t.Expires, gone: gone,
	}, nil
}

// refuseStranger answers who is unknown. Failures are counted after the fact, so that
// nobody is kept out by those of others.
func (s *Server) refuseStranger(q *request, from netip.Addr, remote bool, err error) error {
	e, ok := errors.AsType[*gpu.Error](err)
	if !ok {
		return err
	}
	if remote {
		q.stranger = true
		q.who.From = from.String()
		if after, many := s.network.failures.Add(from, time.Now()); many {
			q.muted = true
			return tooManyFailures(after)
		}
	}
	s.logFailed(q.Request, q.who.From, e)
	return unauthorized(e)
}

// over says why an identity that held when its request came does not any more; nil: it does.
func (who Identity) over() error {
	select {
	case <-who.gone:
		if next, still := who.next(); still {
			return next.over()
		}
		return unauthorized(gpu.Errorf(gpu.CodeUnauthorized, "%s is not let in any more", who.Actor))
	default:
	}
	if !who.Expires.IsZero() && !time.Now().Before(who.Expires) {
		return unauthorized(gpu.Errorf(gpu.CodeUnauthorized, "what says that this is %s has expired", who.Actor))
	}
	return nil
}

// untilEnd calls cancel when the server ends, or who asked is not let in any more, unless
// stop is called before.
func (s *Server) untilEnd(q *request, cancel func()) (stop func()) {
	return until(s.closing, q.who, cancel)
}

// untilOver is untilEnd for what the server's end does not end.
func (s *Server) untilOver(q *request, cancel func()) (stop func()) {
	return until(nil, q.who, cancel)
}

func until(closing <-chan struct{}, who Identity, cancel func()) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		var expired <-chan time.Time
		if !who.Expires.IsZero() {
			timer := time.NewTimer(time.Until(who.Expires))
			defer timer.Stop()
			expired = timer.C
		}
		for {
			select {
			case <-who.gone:
				next, still := who.next()
				if still {
					who = next
					continue
				}
				cancel()
			case <-closing:
				cancel()
			case <-expired:
				cancel()
			case <-done:
			}
			return
		}
	}()
	return func() { close(done); <-ended }
}
