package daemon

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"gpuvirt/access"
)

// A Role is what somebody may do: see package access.
type Role = access.Role

// The roles.
const (
	Nobody   = access.Nobody
	Viewer   = access.Viewer
	Operator = access.Operator
	Admin    = access.Admin
)

// An Identity is who sent a request.
type Identity struct {
	Actor string // for operations and the log: "root", "uid:1000", "token:ci", "cert:CN=alice,O=Bank"
	UID   uint32
	PID   int32 // when it connected
	Role  Role

	From    string    // address, over the network
	Token   string    // id of the token that says so; empty: none
	Expires time.Time // when that stops being so; zero: never
	// gone is closed when it stops being so before; nil: it does not.
	gone <-chan struct{}
	// again tells who it is after that; nil: nobody any more.
	again func() (Identity, error)
}

// next is who an identity is once its gone is closed; false: nobody who may do as much.
func (who Identity) next() (Identity, bool) {
	if who.again == nil {
		return who, false
	}
	next, err := who.again()
	return next, err == nil && next.Role >= who.Role
}

type identityKey struct{}

// WithIdentity returns a context whose requests come from who.
func WithIdentity(ctx context.Context, who Identity) context.Context {
	return context.WithValue(ctx, identityKey{}, who)
}

func identityOf(ctx context.Context) (Identity, bool) {
	who, ok := ctx.Value(identityKey{}).(Identity)
	return who, ok
}

// ConnContext identifies the process at the other end of a unix socket; it is
// meant for http.Server. Who cannot be identified is nobody. Over TLS each request has to
// say who it is from.
func (s *Server) ConnContext(ctx context.Context, c net.Conn) context.Context {
	if _, ok := c.(*tls.Conn); ok {
		return overNetwork(ctx, c.RemoteAddr())
	}
	cred, err := peerCredentials(c)
	if err != nil {
		s.log.Warn("cannot tell who connected", "err", err)
		return ctx
	}
	return WithIdentity(ctx, s.identify(cred))
}

// identify is the whole role model.
func (s *Server) identify(cred *unix.Ucred) Identity {
	who := Identity{Actor: fmt.Sprintf("uid:%d", cred.Uid), UID: cred.Uid, PID: cred.Pid, Role: Operator}
	if role, ok := s.roles[cred.Uid]; ok {
		who.Role = role
	}
	if cred.Uid == uint32(os.Getuid()) { //nolint:gosec // a uid has 32 bits
		who.Role = Admin
	}
	if cred.Uid == 0 {
		who.Actor, who.Role = "root", Admin
	}
	return who
}

// peerCredentials asks the kernel who connected: the credentials are those at the
// time of connect(2), so a socket that is passed on keeps its first owner's.
func peerCredentials(c net.Conn) (*unix.Ucred, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("cannot read peer credentials of a %T", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("cannot read peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) //nolint:gosec // a descriptor fits an int
	}); err != nil {
		return nil, fmt.Errorf("cannot read peer credentials: %w", err)
	}
	if credErr != nil {
		return nil, fmt.Errorf("cannot read peer credentials: %w", credErr)
	}
	return cred, nil
}
