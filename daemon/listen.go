package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// maxSocketPath is what fits the kernel's sockaddr_un with its final zero.
const maxSocketPath = 107

// listen returns the sockets that systemd passed, or one of its own, and what to
// do when they are no longer needed.
func (s *Server) listen(ctx context.Context) ([]net.Listener, func(), error) {
	passed, err := activation.Listeners()
	if err != nil {
		return nil, nil, fmt.Errorf("cannot use the sockets passed by systemd: %w", err)
	}
	if len(passed) == 0 {
		return s.listenUnix(ctx)
	}
	closeAll := func() {
		for _, l := range passed {
			if l != nil {
				_ = l.Close()
			}
		}
	}
	for _, l := range passed {
		// Nothing but a unix socket tells who is at the other end.
		if _, ok := l.(*net.UnixListener); !ok {
			closeAll()
			return nil, nil, errors.New("cannot use the sockets passed by systemd: one is not a unix stream socket")
		}
	}
	s.log.Info("using the sockets passed by systemd", "address", passed[0].Addr().String())
	return passed, closeAll, nil
}

// listenUnix makes the daemon's own socket. It is bound and given its mode and
// group in a folder that only we can enter, and then renamed to its place: nobody
// ever sees it with other permissions.
func (s *Server) listenUnix(ctx context.Context) ([]net.Listener, func(), error) {
	path := s.socketPath
	if len(path) > maxSocketPath {
		return nil, nil, fmt.Errorf("cannot listen on %q: the path is longer than %d bytes", path, maxSocketPath)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // the socket has its own mode
		return nil, nil, fmt.Errorf("cannot make the socket's folder: %w", err)
	}
	unlock, err := lockPath(path + ".lock")
	if err != nil {
		return nil, nil, err
	}
	l, err := s.bindUnix(ctx, path)
	if err != nil {
		unlock()
		return nil, nil, err
	}
	ours, err := os.Lstat(path)
	if err != nil {
		_ = l.Close()
		unlock()
		return nil, nil, fmt.Errorf("cannot listen on %q: %w", path, err)
	}
	cleanup := func() {
		_ = l.Close() // closed by the server before
		if now, err := os.Lstat(path); err == nil && os.SameFile(ours, now) {
			if err := os.Remove(path); err != nil {
				s.log.Warn("cannot remove the socket", "err", err)
			}
		}
		unlock()
	}
	s.log.Info("made the socket", "path", path)
	return []net.Listener{l}, cleanup, nil
}

func (s *Server) bindUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := checkStale(ctx, path); err != nil {
		return nil, err
	}
	private, err := os.MkdirTemp(filepath.Dir(path), ".")
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %q: %w", path, err)
	}
	defer os.RemoveAll(private) //nolint:errcheck // an empty folder that only we can enter
	temp := filepath.Join(private, "s")
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", temp)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %q: %w", path, err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // it will have moved
	}
	err = s.setOwner(temp)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("cannot listen on %q: %w", path, err)
	}
	return l, nil
}

// setOwner gives the socket its group and mode.
func (s *Server) setOwner(path string) error {
	if s.socketGroup != "" {
		g, err := user.LookupGroup(s.socketGroup)
		var unknown user.UnknownGroupError
		switch {
		case errors.As(err, &unknown):
			s.log.Warn("the socket's group does not exist: only the daemon's user can connect", "group", s.socketGroup)
		case err != nil:
			return err
		default:
			gid, err := strconv.Atoi(g.Gid)
			if err != nil {
				return fmt.Errorf("group %q has no numeric id: %w", s.socketGroup, err)
			}
			if err := os.Chown(path, -1, gid); err != nil {
				return err
			}
		}
	}
	return os.Chmod(path, 0o660) //nolint:gosec // the group is let in
}

// checkStale refuses to take the place of a file that is no socket, or of a
// socket that somebody answers on.
func checkStale(ctx context.Context, path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot listen: %w", err)
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("cannot listen on %q: there is a file that is not a socket", path)
	}
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("cannot listen on %q: another process answers there", path)
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil // nobody listens: left by a process that was killed
	}
	return fmt.Errorf("cannot listen on %q: cannot tell whether another process listens there: %w", path, err)
}

// lockPath keeps two starting daemons from taking each other's socket away.
func lockPath(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600) //nolint:gosec // the path is the administrator's
	if err != nil {
		return nil, fmt.Errorf("cannot lock the socket: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil { //nolint:gosec // a descriptor fits an int
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("cannot lock %q: another gpuvirtd runs", path)
		}
		return nil, fmt.Errorf("cannot lock %q: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}
