package vmapi

import (
	"errors"
	"sync"
	"time"

	"libvirt.org/go/libvirt"

	"gpuvirt/gpu"
)

// libvirt has one event loop per process, to be registered before the first
// connection is opened. It runs until the process ends: libvirt has no call that
// ends it, and connections die without it.
var loop struct {
	sync.Mutex
	running bool
}

// startLoop starts libvirt's event loop unless it runs. If that fails, the next
// connection tries again.
func startLoop() error {
	loop.Lock()
	defer loop.Unlock()
	if loop.running {
		return nil
	}
	if err := libvirt.EventRegisterDefaultImpl(); err != nil {
		return err
	}
	resolve()
	loop.running = true
	go func() {
		for {
			if err := libvirt.EventRunDefaultImpl(); err != nil {
				<-time.After(time.Second) // poll(2) failed: do not spin
			}
		}
	}()
	return nil
}

// resolve makes every function that is called from several goroutines known to
// the binding: it looks a function up in libvirt.so at its first call, and two
// first calls at once can make one of them fail. libvirt refuses the empty
// handles given here without looking further.
func resolve() {
	var conn libvirt.Connect
	var dom libvirt.Domain
	_, err := conn.ListAllDomains(0)
	errs := []error{err}
	_, err = conn.LookupDomainByName("")
	errs = append(errs, err)
	_, err = conn.LookupDomainByUUIDString("")
	errs = append(errs, err)
	_, err = dom.GetUUIDString()
	errs = append(errs, err)
	_, err = dom.GetName()
	errs = append(errs, err)
	_, err = dom.GetID()
	errs = append(errs, err)
	_, err = dom.GetXMLDesc(0)
	errs = append(errs, err)
	_, _, err = dom.GetState()
	errs = append(errs, err)
	_, err = dom.IsPersistent()
	errs = append(errs, err)
	_, err = dom.GetAutostart()
	errs = append(errs, err,
		dom.AttachDeviceFlags("", 0), dom.DetachDeviceFlags("", 0), dom.DetachDeviceAlias("", 0), dom.Free())
	_, err = conn.DomainDefineXML("")
	errs = append(errs, err, dom.UndefineFlags(0), dom.Create(), dom.DestroyFlags(0))
	_, err = conn.DomainCreateXML("", 0)
	errs = append(errs, err)
	_, err = dom.QemuAgentCommand("", 0, 0)
	errs = append(errs, err)
	_, err = conn.LookupNetworkByName("")
	errs = append(errs, err)
	_, err = conn.NetworkCreateXML("")
	errs = append(errs, err)
	var net libvirt.Network
	_, err = net.GetUUIDString()
	errs = append(errs, err)
	_, err = net.IsActive()
	errs = append(errs, err)
	_, err = net.IsPersistent()
	errs = append(errs, err, net.Destroy(), net.Free())
	_ = errors.Join(errs...) // each is "invalid pointer", as intended
}

// A connection is a hypervisor through the C library. Handles of domains never
// leave a method, so that a call left behind by its caller keeps what it uses.
type connection struct {
	conn    *libvirt.Connect
	handles []int // of event callbacks

	mu     sync.Mutex
	calls  int
	closed bool
}

var _ opener = openLibvirt

// openLibvirt connects and registers for events.
func openLibvirt(uri string, event func(gpu.VMEvent), lost func(error)) (hypervisor, error) {
	if err := startLoop(); err != nil {
		return nil, err
	}
	conn, err := libvirt.NewConnect(uri)
	if err != nil {
		return nil, err
	}
	c := &connection{conn: conn}
	if err := c.register(event, lost); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *connection) register(event func(gpu.VMEvent), lost func(error)) error {
	// Drivers inside this process have nobody to keep alive.
	if err := c.conn.SetKeepAlive(5, 3); err != nil && !isCode(err, libvirt.ERR_NO_SUPPORT) {
		return err
	}
	err := c.conn.RegisterCloseCallback(func(_ *libvirt.Connect, reason libvirt.ConnectCloseReason) {
		lost(closeReason(reason))
	})
	if err != nil && !isCode(err, libvirt.ERR_NO_SUPPORT) {
		return err
	}
	emit := func(d *libvirt.Domain, kind, alias string) {
		id, err := d.GetUUIDString() // asks nobody: the handle knows it
		if err != nil {
			id = "" // look again at everything
		}
		event(gpu.VMEvent{UUID: id, Kind: kind, Alias: alias})
	}
	for _, register := range []func() (int, error){
		func() (int, error) {
			return c.conn.DomainEventLifecycleRegister(nil,
				func(_ *libvirt.Connect, d *libvirt.Domain, _ *libvirt.DomainEventLifecycle) {
					emit(d, kindLifecycle, "")
				})
		},
		func() (int, error) {
			return c.conn.DomainEventDeviceAddedRegister(nil,
				func(_ *libvirt.Connect, d *libvirt.Domain, e *libvirt.DomainEventDeviceAdded) {
					emit(d, kindAdded, e.DevAlias)
				})
		},
		func() (int, error) {
			return c.conn.DomainEventDeviceRemovedRegister(nil,
				func(_ *libvirt.Connect, d *libvirt.Domain, e *libvirt.DomainEventDeviceRemoved) {
					emit(d, kindRemoved, e.DevAlias)
				})
		},
		func() (int, error) {
			return c.conn.DomainEventDeviceRemovalFailedRegister(nil,
				func(_ *libvirt.Connect, d *libvirt.Domain, e *libvirt.DomainEventDeviceRemovalFailed) {
					emit(d, kindRemovalFailed, e.DevAlias)
				})
		},
	} {
		h, err := register()
		if err != nil {
			return err
		}
		c.handles = append(c.handles, h)
	}
	return nil
}

// closeReason is the error that a lost connection answers with.
func closeReason(reason libvirt.ConnectCloseReason) error {
	msg := "the connection was closed"
	switch reason {
	case libvirt.CONNECT_CLOSE_REASON_ERROR:
		msg = "the connection failed"
	case libvirt.CONNECT_CLOSE_REASON_EOF:
		msg = "libvirt closed the connection"
	case libvirt.CONNECT_CLOSE_REASON_KEEPALIVE:
		msg = "libvirt does not answer (keepalive timeout)"
	case libvirt.CONNECT_CLOSE_REASON_CLIENT:
	}
	return libvirt.Error{Code: libvirt.ERR_NO_CONNECT, Message: msg}
}

// enter begins a call; the connection is not torn down before leave.
func (c *connection) enter() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return libvirt.Error{Code: libvirt.ERR_INVALID_CONN, Message: "the connection is closed"}
	}
	c.calls++
	return nil
}

func (c *connection) leave() {
	c.mu.Lock()
	c.calls--
	last := c.closed && c.calls == 0
	c.mu.Unlock()
	if last {
		c.teardown()
	}
}

// Close closes the connection when the last call has returned.
func (c *connection) Close() {
	c.mu.Lock()
	last := !c.closed && c.calls == 0
	c.closed = true
	c.mu.Unlock()
	if last {
		c.teardown()
	}
}

// teardown undoes register, because callbacks keep a reference on the connection.
// Errors are those of a connection that is dead already.
func (c *connection) teardown() {
	for _, h := range c.handles {
		_ = c.conn.DomainEventDeregister(h)
	}
	_ = c.conn.UnregisterCloseCallback()
	_, _ = c.conn.Close()
}
