// Package uevent hears what the kernel says when devices come, go and change. An
// event is a reason to look again, never the truth itself: some are lost.
package uevent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
)

// An Event is one message of the kernel.
type Event struct {
	// Missed says that messages were lost before this one; nothing else is set then.
	Missed    bool
	Action    string // add, remove, change, bind, unbind, move, …
	DevPath   string // below sysfs: "/devices/pci0000:00/0000:00:02.0"
	Subsystem string // "pci", "mdev", …
	Seq       uint64
	Vars      map[string]string // all KEY=VALUE of the message
}

// Name returns the name of the device, empty for a Missed event.
func (e Event) Name() string {
	if e.DevPath == "" {
		return ""
	}
	return path.Base(e.DevPath)
}

// Parse reads a message: "add@/devices/…", then KEY=VALUE, each ended by a zero.
func Parse(msg []byte) (Event, error) {
	head, rest, ok := bytes.Cut(msg, []byte{0})
	action, devPath, at := strings.Cut(string(head), "@")
	if !ok || !at || action == "" || !strings.HasPrefix(devPath, "/") {
		return Event{}, fmt.Errorf("cannot read uevent: it begins with %.100q", msg)
	}
	e := Event{Action: action, DevPath: devPath, Vars: map[string]string{}}
	for _, field := range strings.Split(string(rest), "\x00") {
		if key, value, ok := strings.Cut(field, "="); ok && key != "" {
			e.Vars[key] = value
		}
	}
	for key, want := range map[string]string{"ACTION": action, "DEVPATH": devPath} {
		if got, ok := e.Vars[key]; !ok || got != want {
			return Event{}, fmt.Errorf("cannot read uevent: %s is %.100q and not %.100q", key, got, want)
		}
	}
	seq, err := strconv.ParseUint(e.Vars["SEQNUM"], 10, 64)
	if err != nil {
		return Event{}, fmt.Errorf("cannot read uevent: number %.100q", e.Vars["SEQNUM"])
	}
	e.Subsystem, e.Seq = e.Vars["SUBSYSTEM"], seq
	return e, nil
}

// A Source delivers messages as they come.
type Source interface {
	// Receive waits for a message and returns its length and whether the kernel sent
	// it. syscall.ENOBUFS says that messages were lost.
	Receive(buf []byte) (n int, kernel bool, err error)
	// Close makes Receive fail.
	Close() error
}

// Listen hears the kernel's events until ctx ends. The channel is closed when the
// listener has ended: whoever started it reads until then. A reader that is too
// slow gets a Missed event for what was lost.
func Listen(ctx context.Context) (<-chan Event, error) {
	src, err := openNetlink()
	if err != nil {
		return nil, fmt.Errorf("cannot listen for uevents: %w", err)
	}
	return ListenTo(ctx, src), nil
}

// ListenTo is Listen on another source, which it closes. If the source fails, the
// last event is a Missed one and the channel is closed before ctx has ended.
func ListenTo(ctx context.Context, src Source) <-chan Event {
	out := make(chan Event, 64)
	stop := context.AfterFunc(ctx, func() { _ = src.Close() })
	go func() {
		defer close(out)
		defer func() {
			if stop() {
				_ = src.Close()
			}
		}()
		send := func(e Event) bool {
			select {
			case out <- e:
				return true
			case <-ctx.Done():
				return false
			}
		}
		buf := make([]byte, 64<<10)
		for {
			n, kernel, err := src.Receive(buf)
			switch {
			case errors.Is(err, syscall.ENOBUFS):
				if !send(Event{Missed: true}) {
					return
				}
				continue
			case err != nil:
				send(Event{Missed: true})
				return
			case !kernel:
				continue // anybody may send; only the kernel is believed
			}
			e, err := Parse(buf[:n])
			if err != nil {
				continue // not a device event
			}
			if !send(e) {
				return
			}
		}
	}()
	return out
}

// Devices tells the names of the PCI functions, mdevs and mdev parents that the
// kernel says have changed; an empty name says that some were missed. It ends as
// Listen does.
func Devices(ctx context.Context) (<-chan string, error) {
	events, err := Listen(ctx)
	if err != nil {
		return nil, err
	}
	return names(ctx, events), nil
}

func names(ctx context.Context, events <-chan Event) <-chan string {
	out := make(chan string)
	go func() {
		defer close(out)
		for e := range events {
			_, parent := e.Vars["MDEV_STATE"]
			if !e.Missed && !parent && e.Subsystem != "pci" && e.Subsystem != "mdev" {
				continue
			}
			select {
			case out <- e.Name():
			case <-ctx.Done(): // and the events end soon
			}
		}
	}()
	return out
}

// netlink is the kernel as a Source.
type netlink struct{ f *os.File }

const (
	kernelGroup = 1 // udev sends its own on group 2
	bufferBytes = 4 << 20
)

func openNetlink() (*netlink, error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, syscall.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// Past the limit if we may, as udev does; it is only a buffer.
	if syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, bufferBytes) != nil {
		_ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUF, bufferBytes)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK, Groups: kernelGroup}); err != nil {
		return nil, errors.Join(os.NewSyscallError("bind", err), syscall.Close(fd))
	}
	return &netlink{f: os.NewFile(uintptr(fd), "uevents")}, nil
}

// Receive reads one message. The sender's port is 0 for the kernel alone.
func (n *netlink) Receive(buf []byte) (size int, kernel bool, err error) {
	conn, err := n.f.SyscallConn()
	if err != nil {
		return 0, false, err
	}
	rerr := conn.Read(func(fd uintptr) bool {
		var from syscall.Sockaddr
		for {
			size, from, err = syscall.Recvfrom(int(fd), buf, 0)
			if !errors.Is(err, syscall.EINTR) {
				break
			}
		}
		sender, ok := from.(*syscall.SockaddrNetlink)
		kernel = ok && sender.Pid == 0
		return !errors.Is(err, syscall.EAGAIN)
	})
	if rerr != nil {
		return 0, false, rerr
	}
	return size, kernel, err
}

// Close makes Receive fail.
func (n *netlink) Close() error { return n.f.Close() }
