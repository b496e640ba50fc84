package vmapi

import (
	"errors"
	"fmt"
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
	_, err = dom.GetXMLDesc(0)
	errs = append(errs, err)
	_, _, err = dom.GetState()
	errs = append(errs, err)
	_, err = dom.IsPersistent()
	errs = append(errs, err)
	_, err = dom.GetAutostart()
	errs = append(errs, err,
		dom.AttachDeviceFlags("", 0), dom.DetachDeviceFlags("", 0), dom.DetachDeviceAlias("", 0), dom.Free())
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

func (c *connection) Domains() ([]string, error) {
	if err := c.enter(); err != nil {
		return nil, err
	}
	defer c.leave()
	doms, err := c.conn.ListAllDomains(0)
	if err != nil {
		return nil, err
	}
	ids := make([]string, 0, len(doms))
	var errs []error
	for i := range doms {
		id, err := doms[i].GetUUIDString()
		ids, errs = append(ids, id), append(errs, err)
		_ = doms[i].Free()
	}
	return ids, errors.Join(errs...)
}

func (c *connection) Lookup(name string) (string, error) {
	if err := c.enter(); err != nil {
		return "", err
	}
	defer c.leave()
	dom, err := c.conn.LookupDomainByName(name)
	if err != nil {
		return "", err
	}
	defer func() { _ = dom.Free() }()
	return dom.GetUUIDString()
}

// with calls f with the domain of a UUID.
func (c *connection) with(uuid string, f func(*libvirt.Domain) error) error {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.leave()
	dom, err := c.conn.LookupDomainByUUIDString(uuid)
	if err != nil {
		return err
	}
	defer func() { _ = dom.Free() }()
	return f(dom)
}

func (c *connection) Read(uuid string, brief bool) (def definition, err error) {
	err = c.with(uuid, func(dom *libvirt.Domain) (err error) {
		def, err = readDomain(dom, brief)
		return err
	})
	return def, err
}

func readDomain(dom *libvirt.Domain, brief bool) (def definition, err error) {
	doc, err := dom.GetXMLDesc(0)
	if err != nil {
		return def, err
	}
	if isActive(doc) {
		def.live = doc
		if def.persistent, err = dom.IsPersistent(); err != nil {
			return def, err
		}
		if def.persistent {
			// Of a transient domain this would be the live definition once more.
			if def.config, err = dom.GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE); err != nil {
				return def, err
			}
		}
	} else {
		def.config, def.persistent = doc, true // nothing else is left of a transient domain
	}
	if brief {
		return def, nil
	}
	state, reason, err := dom.GetState()
	if err != nil {
		return def, err
	}
	def.state = runStateOf(state, reason)
	if def.persistent {
		def.autostart, err = dom.GetAutostart()
	}
	return def, err
}

// runStateOf reduces libvirt's states to those that matter.
func runStateOf(state libvirt.DomainState, reason int) runState {
	crashed := state == libvirt.DOMAIN_SHUTOFF &&
		libvirt.DomainShutoffReason(reason) == libvirt.DOMAIN_SHUTOFF_CRASHED
	switch {
	case state == libvirt.DOMAIN_CRASHED, crashed:
		return stateCrashed
	case state == libvirt.DOMAIN_PAUSED, state == libvirt.DOMAIN_PMSUSPENDED:
		return statePaused
	default:
		return stateOther
	}
}

func (c *connection) Attach(uuid, xml string, scope gpu.Scope) (def definition, err error) {
	err = c.with(uuid, func(dom *libvirt.Domain) error {
		if err := dom.AttachDeviceFlags(xml, modifyFlags(scope)); err != nil {
			return err
		}
		if def, err = readScope(dom, scope); err != nil {
			return &unseenError{err}
		}
		return nil
	})
	return def, err
}

// readScope reads the definitions in scope. The live one is empty if the domain does
// not run (any more); that there is a persistent one is for the caller to know.
func readScope(dom *libvirt.Domain, scope gpu.Scope) (def definition, err error) {
	if scope.Live {
		doc, err := dom.GetXMLDesc(0)
		if err != nil {
			return def, err
		}
		if isActive(doc) {
			def.live = doc
		} else {
			def.config, def.persistent = doc, true
		}
	}
	if scope.Config && def.config == "" {
		def.persistent = true
		def.config, err = dom.GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE)
	}
	return def, err
}

func (c *connection) DetachAlias(uuid, alias string, scope gpu.Scope) error {
	return c.with(uuid, func(dom *libvirt.Domain) error {
		return dom.DetachDeviceAlias(alias, modifyFlags(scope))
	})
}

func (c *connection) Detach(uuid, xml string, scope gpu.Scope) error {
	return c.with(uuid, func(dom *libvirt.Domain) error {
		return dom.DetachDeviceFlags(xml, modifyFlags(scope))
	})
}

func modifyFlags(scope gpu.Scope) libvirt.DomainDeviceModifyFlags {
	var flags libvirt.DomainDeviceModifyFlags
	if scope.Live {
		flags |= libvirt.DOMAIN_DEVICE_MODIFY_LIVE
	}
	if scope.Config {
		flags |= libvirt.DOMAIN_DEVICE_MODIFY_CONFIG
	}
	return flags
}

func (c *connection) Versions() (v versions, err error) {
	if err := c.enter(); err != nil {
		return v, err
	}
	defer c.leave()
	if v.driver, err = c.conn.GetType(); err != nil {
		return v, err
	}
	lib, err := c.conn.GetLibVersion()
	if err != nil {
		return v, err
	}
	v.library = dotted(lib)
	hyp, err := c.conn.GetVersion()
	switch {
	case err == nil:
		v.hypervisor = dotted(hyp)
	case isLoss(err):
		return v, err
	} // else there is no QEMU on this host, which is no fault of the connection
	return v, nil
}

// dotted prints libvirt's version numbers, 1000000*major + 1000*minor + release.
func dotted(n uint32) string {
	return fmt.Sprintf("%d.%d.%d", n/1000000, n/1000%1000, n%1000)
}
