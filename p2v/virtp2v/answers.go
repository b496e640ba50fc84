package virtp2v

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// Answers tells whether a machine answers at an address: its kernel refuses a connection that no
// program takes. It is asked until the context ends, if need be. Where it cannot be asked, as this
// host's own network is down, it is taken to answer.
func Answers(ctx context.Context, at netip.Addr) bool {
	const ssh = "22" // a port that firewalls let through
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(at.String(), ssh))
	if err == nil {
		_ = conn.Close()
		return true
	}
	return answered(err)
}

// answered tells a connection that was refused from one that nobody has heard of.
func answered(err error) bool {
	failed, is := errors.AsType[net.Error](err)
	return !errors.Is(err, syscall.EHOSTUNREACH) && (!is || !failed.Timeout())
}
