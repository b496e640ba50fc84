package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"gpuvirt/gpu"
)

// A conn is one connection, with one request at a time.
type conn struct {
	net.Conn

	raw    net.Conn // below TLS
	export export
	last   uint64 // handle
}

// A diskError is what a server says of a read that it could not do. The connection is as
// good as before.
type diskError struct{ number uint32 }

func (e *diskError) Error() string {
	name := unix.ErrnoName(unix.Errno(e.number))
	if name == "" {
		return fmt.Sprintf("the server says that it cannot be read: error %d", e.number)
	}
	return fmt.Sprintf("the server says that it cannot be read: %s (%s)", unix.Errno(e.number).Error(), name)
}

// code is the kind of error that it is here. The numbers are NBD's own, which are Linux's.
func (e *diskError) code() gpu.Code {
	switch unix.Errno(e.number) { //nolint:exhaustive // NBD has few
	case unix.EPERM:
		return gpu.CodeForbidden
	case unix.ENOMEM, unix.ESHUTDOWN:
		return gpu.CodeUnavailable
	}
	return gpu.CodeConflict
}

// open begins to speak on a connection, until reads are answered. It closes it with an error.
func open(ctx context.Context, raw net.Conn, u URI, conf *tls.Config) (*conn, error) {
	// What is read and written knows no context.
	unblock := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	c := &conn{Conn: raw, raw: raw}
	err := c.open(ctx, u, conf)
	if !unblock() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return c, nil
}

func (c *conn) open(ctx context.Context, u URI, conf *tls.Config) (err error) {
	if err := greet(c); err != nil {
		return cutOff(err)
	}
	if u.TLS {
		if err := startTLS(c); err != nil {
			return cutOff(err)
		}
		secured := tls.Client(c.raw, conf)
		if err := secured.HandshakeContext(ctx); err != nil {
			return distrust(err)
		}
		c.Conn = secured
	}
	c.export, err = begin(c, u.Export)
	if u.TLS && ended(err) {
		// With TLS 1.3 a server refuses our certificate after the handshake. GnuTLS, which
		// nbdkit and QEMU have, says nothing then.
		return gpu.Errorf(gpu.CodeUnauthorized, "the server closed the connection as soon as it knew who we are").WithHint(hintClient)
	}
	return distrust(err)
}

const hintClient = "client-cert.pem must be there, and of a CA that the server knows"

// cutOff says what the end of a connection is, where nothing else is said.
func cutOff(err error) error {
	if ended(err) {
		return errors.New("the server closed the connection")
	}
	return err
}

func ended(err error) bool {
	return slices.ContainsFunc([]error{io.EOF, io.ErrUnexpectedEOF, unix.ECONNRESET, unix.EPIPE}, func(end error) bool { return errors.Is(err, end) })
}

// distrust tells the errors that are about who the server is, or who we are.
func distrust(err error) error {
	if err == nil {
		return nil
	}
	_, unverified := errors.AsType[*tls.CertificateVerificationError](err)
	said, is := errors.AsType[*net.OpError](err)
	record, isRecord := errors.AsType[tls.RecordHeaderError](err)
	switch {
	case unverified:
		return gpu.Errorf(gpu.CodeUnauthorized, "the server is not the one that was meant: %w", err).
			WithHint("its certificate must be of the CA in ca-cert.pem, and of this name")
	case is && said.Op == "remote error": // an alert
		return gpu.Errorf(gpu.CodeUnauthorized, "the server does not accept us: %w", said.Err).
			WithHint(hintClient)
	case isRecord:
		return broken("what should be TLS is none: %s", record.Msg)
	}
	return cutOff(err)
}

// read reads what is at a place, all or an error, within a time. place and length are as the
// export wants them.
func (c *conn) read(p []byte, at int64, within time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	c.last++
	q := request{Magic: magicRequest, Type: cmdRead, Handle: c.last, Offset: uint64(at), Length: uint32(len(p))} //nolint:gosec // G115: ReadAt and check bound them
	if err := binary.Write(c, binary.BigEndian, q); err != nil {
		return err
	}
	var r reply
	if err := binary.Read(c, binary.BigEndian, &r); err != nil {
		return err
	}
	switch {
	case r.Magic != magicSimple:
		return broken("a reply begins with %#x", r.Magic)
	case r.Handle != q.Handle:
		return broken("a reply to request %d, and none but %d is waiting", r.Handle, q.Handle)
	case r.Error != 0:
		return &diskError{r.Error}
	}
	_, err := io.ReadFull(c, p)
	return err
}

// leave says that we go, and goes.
func (c *conn) leave(within time.Duration) error {
	_ = c.SetDeadline(time.Now().Add(within))
	c.last++
	_ = binary.Write(c, binary.BigEndian, request{Magic: magicRequest, Type: cmdDisc, Handle: c.last}) // it may have gone itself
	return c.raw.Close()
}
