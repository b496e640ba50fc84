package freeze

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// guardGrace is how much later than we the guard acts: it is for when we hang.
	guardGrace = 5 * time.Second
	// guardAnswer is how long it may take to answer.
	guardAnswer = 10 * time.Second
	// offGrace is how long we may take to power off.
	offGrace = 10 * time.Second
	maxNote  = 64 << 10 // bytes
	guardFD  = 3        // that of its connection
)

// What a guard is told, in packets on a socket.
const (
	noteArm      = "arm"      // for how long at most something is frozen; answered
	noteStopped  = "stopped"  // units, to be started again; none: they are
	noteFreezing = "freezing" // a filesystem, whose file comes with it
	noteClear    = "clear"    // it is not frozen, or not by us
	noteOff      = "off"      // to power off is acknowledged: it is not to thaw; answered
	noteOn       = "on"       // not any more
	noteDone     = "done"     // all is as it was
)

type note struct {
	Do      string   `json:"do"`
	LimitMS int64    `json:"limit_ms,omitempty"`
	Index   int      `json:"index,omitempty"`
	Units   []string `json:"units,omitempty"`
	// Stay is for noteOn: the client was told that the server powers off, and may have ended. It
	// stays frozen until the time is over.
	Stay bool `json:"stay,omitempty"`
}

type reply struct {
	Error string `json:"error,omitempty"`
}

// A guard is the process that thaws where we are killed. A nil one does nothing.
type guard struct {
	conn    *net.UnixConn
	cmd     *exec.Cmd
	replies chan reply
	gone    chan struct{} // closed when it has ended, or is about to
	ended   chan struct{} // closed when it has ended
}

// startGuard starts this program once more, as a guard. It is ready when it returns.
func startGuard(args []string, limit time.Duration) (*guard, error) {
	if len(args) == 0 {
		return nil, nil
	}
	g, err := newGuard(args)
	if err != nil {
		return nil, fmt.Errorf("cannot start the guard: %w", err)
	}
	if err := g.ask(note{Do: noteArm, LimitMS: limit.Milliseconds()}); err != nil {
		g.end(false)
		return nil, fmt.Errorf("cannot start the guard: %w", err)
	}
	return g, nil
}

func newGuard(args []string) (*guard, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	far := os.NewFile(uintptr(fds[1]), "guard")
	defer far.Close()
	conn, err := unixConn(os.NewFile(uintptr(fds[0]), "guard"))
	if err != nil {
		return nil, err
	}
	// The same program whatever has become of its file. It gets no part of the connection, which
	// would not end with us then, and none of the signals that a terminal sends us.
	cmd := exec.Command("/proc/self/exe", args...) //nolint:forbidigo,gosec // it is this program, and is to outlive us
	cmd.Args[0] = "gpuvirt"
	cmd.ExtraFiles, cmd.SysProcAttr = []*os.File{far}, &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	g := &guard{conn: conn, cmd: cmd, replies: make(chan reply, 1), gone: make(chan struct{}), ended: make(chan struct{})}
	go g.listen()
	return g, nil
}

// unixConn makes a connection of a socket, and closes the file.
func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, is := c.(*net.UnixConn)
	if !is {
		return nil, errors.Join(errors.New("it is not a unix socket"), c.Close())
	}
	return u, nil
}

// listen hears replies until the guard has ended.
func (g *guard) listen() {
	buf := make([]byte, maxNote)
	for {
		n, err := g.conn.Read(buf)
		var r reply
		if err != nil || json.Unmarshal(buf[:n], &r) != nil {
			break
		}
		select {
		case g.replies <- r:
		default: // nobody asked
		}
	}
	close(g.gone)
	_ = g.cmd.Wait() // it may have been killed
	close(g.ended)
}

// tell tells the guard something, with a file of its own of what f has open.
func (g *guard) tell(n note, f *os.File) error {
	if g == nil {
		return nil
	}
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	send := func(rights []byte) error {
		_ = g.conn.SetWriteDeadline(time.Now().Add(guardAnswer)) // it never fails on a socket
		_, _, err := g.conn.WriteMsgUnix(text, rights, nil)
		return err
	}
	if f == nil {
		err = send(nil)
	} else {
		err = onFile(f, func(fd int) error { return send(unix.UnixRights(fd)) })
	}
	if err != nil {
		return fmt.Errorf("the guard is gone: %w", err)
	}
	return nil
}

// ask tells the guard something and waits for its reply.
func (g *guard) ask(n note) error {
	if g == nil {
		return nil
	}
	if err := g.tell(n, nil); err != nil {
		return err
	}
	late := time.NewTimer(guardAnswer)
	defer late.Stop()
	select {
	case r := <-g.replies:
		if r.Error != "" {
			return fmt.Errorf("the guard says: %s", r.Error)
		}
		return nil
	case <-g.gone:
		return errors.New("the guard is gone")
	case <-late.C:
		return fmt.Errorf("the guard did not answer within %s", guardAnswer)
	}
}

// lone is closed when the guard has gone.
func (g *guard) lone() <-chan struct{} {
	if g == nil {
		return nil
	}
	return g.gone
}

// end lets the guard go and waits for it. Where all is not clean it tries what it can.
func (g *guard) end(clean bool) {
	if g == nil {
		return
	}
	if clean {
		_ = g.tell(note{Do: noteDone}, nil)
	}
	_ = g.conn.CloseWrite()
	late := time.NewTimer(startLimit + guardAnswer)
	defer late.Stop()
	select {
	case <-g.ended:
	case <-late.C:
		_ = g.cmd.Process.Kill()
		<-g.ended
	}
	_ = g.conn.Close()
}

// A noted is what a guard heard.
type noted struct {
	note

	file *os.File
}

// hearNotes hears what the guard on this connection is told. The channel is closed with it.
func hearNotes(conn *net.UnixConn) <-chan noted {
	out := make(chan noted)
	go func() {
		defer close(out)
		buf, oob := make([]byte, maxNote), make([]byte, unix.CmsgSpace(4))
		for {
			n, rights, _, _, err := conn.ReadMsgUnix(buf, oob)
			if err != nil {
				return
			}
			var h noted
			if err := json.Unmarshal(buf[:n], &h.note); err != nil {
				return
			}
			if rights > 0 {
				if h.file, err = received(oob[:rights]); err != nil {
					return
				}
			}
			out <- h
		}
	}()
	return out
}

func received(oob []byte) (*os.File, error) {
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return nil, err
		}
		if i := slices.IndexFunc(fds, func(fd int) bool { return fd >= 0 }); i >= 0 {
			return os.NewFile(uintptr(fds[i]), "filesystem"), nil
		}
	}
	return nil, errors.New("there is no file in it")
}
