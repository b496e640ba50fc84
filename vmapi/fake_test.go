package vmapi

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"gpuvirt/gpu"
)

const (
	uuidA = "c7a5fdbd-edaf-9455-926a-d65c16db1809"
	uuidB = "0d9bd5a5-3c2d-4b1f-8a0e-111111111111"
	mdev1 = "c2177883-f1bb-47f0-914d-32a22e3a8804"
	mdev2 = "c2177883-f1bb-47f0-914d-32a22e3a8805"
)

// fakeLibvirt is a libvirt with QEMU that keeps the rules which matter: what it
// checks, what it refuses and with which error, that a guest is asked to let go
// of a device and answers later, or refuses, or does not answer.
type fakeLibvirt struct {
	mu      sync.Mutex
	vms     []*fakeVM
	refuse  error // of opening a connection
	opens   int
	conns   []*fakeConn
	calls   []string
	hang    map[string]chan struct{} // a call with this name waits for its channel
	fail    map[string]error         // a call with this name fails
	noAlias bool                     // an old libvirt without DetachDeviceAlias
	lies    bool                     // attaching and defining succeed and do nothing

	networks   []fakeNetwork
	interfaces map[string]string // kinds, by name
	can        string            // what domains can have
}

// How a guest answers when it shall let go of a device.
type guest int

const (
	guestPrompt   guest = iota
	guestRefuses        // DEVICE_REMOVAL_FAILED some time later
	guestRejects        // the call itself fails
	guestSilent         // no answer, ever
	guestNoEvent        // lets go, but the event is lost
	guestStops          // shuts down instead
	guestVanishes       // destroyed and transient: the domain is gone
)

type fakeVM struct {
	uuid, name         string
	running, transient bool
	autostart          bool
	state              runState
	guest              guest
	live, config       []libvirtxml.DomainHostdev
	pending            map[string]bool // aliases that the guest was asked for

	doc   string                               // as it was defined; empty: nothing but devices
	trial string                               // what runs, if that is not doc
	agent func(command string) (string, error) // nil: not connected
	hangs bool                                 // its process does not end
}

type fakeConn struct {
	lv     *fakeLibvirt
	event  func(gpu.VMEvent)
	lost   func(error)
	closed bool
}

func virError(code libvirt.ErrorNumber, format string, args ...any) error {
	return libvirt.Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

func (lv *fakeLibvirt) open(_ string, event func(gpu.VMEvent), lost func(error)) (hypervisor, error) {
	if err := lv.enter("open"); err != nil {
		return nil, err
	}
	lv.mu.Lock()
	defer lv.mu.Unlock()
	lv.opens++
	if lv.refuse != nil {
		return nil, lv.refuse
	}
	c := &fakeConn{lv: lv, event: event, lost: lost}
	lv.conns = append(lv.conns, c)
	return c, nil
}

// enter notes a call, and lets it hang or fail.
func (lv *fakeLibvirt) enter(name string) error {
	lv.mu.Lock()
	lv.calls = append(lv.calls, name)
	hang, err := lv.hang[name], lv.fail[name]
	lv.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return err
}

// changes returns the calls that changed something, or would have.
func (lv *fakeLibvirt) changes() []string {
	lv.mu.Lock()
	defer lv.mu.Unlock()
	var out []string
	for _, c := range lv.calls {
		name, _, _ := strings.Cut(c, " ")
		if strings.HasPrefix(name, "attach") || strings.HasPrefix(name, "detach") || slices.Contains(makes, name) {
			out = append(out, c)
		}
	}
	return out
}

// die ends all connections, and what is asked meanwhile.
func (lv *fakeLibvirt) die() {
	lv.mu.Lock()
	var conns []*fakeConn
	for _, c := range lv.conns {
		if !c.closed {
			conns = append(conns, c)
		}
		c.closed = true
	}
	lv.mu.Unlock()
	for _, c := range conns {
		c.lost(virError(libvirt.ERR_NO_CONNECT, "libvirt closed the connection"))
	}
}

func (lv *fakeLibvirt) set(change func()) {
	lv.mu.Lock()
	defer lv.mu.Unlock()
	change()
}

// emit tells all open connections; the lock is not held.
func (lv *fakeLibvirt) emit(e gpu.VMEvent) {
	lv.mu.Lock()
	var to []func(gpu.VMEvent)
	for _, c := range lv.conns {
		if !c.closed {
			to = append(to, c.event)
		}
	}
	lv.mu.Unlock()
	for _, f := range to {
		f(e)
	}
}

func (c *fakeConn) enter(name string) error {
	c.lv.mu.Lock()
	closed := c.closed
	c.lv.mu.Unlock()
	if closed {
		return virError(libvirt.ERR_INTERNAL_ERROR, "internal error: client socket is closed")
	}
	return c.lv.enter(name)
}

// with runs f on a VM, under the lock.
func (c *fakeConn) with(name, uuid string, f func(vm *fakeVM) error) error {
	if err := c.enter(name); err != nil {
		return err
	}
	c.lv.mu.Lock()
	defer c.lv.mu.Unlock()
	for _, vm := range c.lv.vms {
		if vm.uuid == uuid {
			return f(vm)
		}
	}
	return virError(libvirt.ERR_NO_DOMAIN, "Domain not found: no domain with matching uuid '%s'", uuid)
}

func (c *fakeConn) Domains() ([]string, error) {
	if err := c.enter("list"); err != nil {
		return nil, err
	}
	c.lv.mu.Lock()
	defer c.lv.mu.Unlock()
	var ids []string
	for _, vm := range c.lv.vms {
		ids = append(ids, vm.uuid)
	}
	return ids, nil
}

func (c *fakeConn) Lookup(name string) (string, error) {
	if err := c.enter("lookup"); err != nil {
		return "", err
	}
	c.lv.mu.Lock()
	defer c.lv.mu.Unlock()
	for _, vm := range c.lv.vms {
		if vm.name == name {
			return vm.uuid, nil
		}
	}
	return "", virError(libvirt.ERR_NO_DOMAIN, "Domain not found: no domain with matching name '%s'", name)
}

func (c *fakeConn) Head(uuid, name string) (head gpu.VMHead, err error) {
	if name != "" {
		if uuid, err = c.Lookup(name); err != nil {
			return head, err
		}
	}
	err = c.with("find "+uuid, uuid, func(vm *fakeVM) error {
		head = gpu.VMHead{UUID: vm.uuid, Name: vm.name, Active: vm.running, Persistent: !vm.transient}
		return nil
	})
	return head, err
}

func (c *fakeConn) Read(uuid string, brief bool) (def definition, err error) {
	err = c.with("read "+uuid, uuid, func(vm *fakeVM) error {
		def = vm.definition(both)
		if !brief {
			def.state, def.autostart = vm.state, vm.autostart
		}
		return nil
	})
	return def, err
}

// definition is what libvirt says of the definitions in scope.
func (vm *fakeVM) definition(scope gpu.Scope) definition {
	def := definition{persistent: !vm.transient}
	if vm.running && scope.Live {
		def.live = vm.xml(cmp.Or(vm.trial, vm.doc), vm.live, " id='7'")
	}
	if !vm.transient && (scope.Config || !vm.running) {
		def.config = vm.xml(vm.doc, vm.config, "")
	}
	return def
}

// xml is a definition with the devices that it has by now.
func (vm *fakeVM) xml(doc string, devs []libvirtxml.DomainHostdev, id string) string {
	var b strings.Builder
	for _, d := range devs {
		s, _ := d.Marshal()
		b.WriteString(s)
	}
	if doc == "" {
		doc = fmt.Sprintf("<domain type='kvm'><name>%s</name><uuid>%s</uuid><devices></devices></domain>", vm.name, vm.uuid)
	}
	doc = strings.Replace(doc, "<domain", "<domain"+id, 1)
	return strings.Replace(doc, "</devices>", b.String()+"</devices>", 1)
}

func source(d libvirtxml.DomainHostdev) gpu.Handle {
	dev, _, _ := readHostdev(&d)
	return dev.Handle
}

func (c *fakeConn) Attach(uuid, doc string, scope gpu.Scope) (def definition, err error) {
	if err := c.attach(uuid, doc, scope); err != nil {
		return def, err
	}
	err = c.with("look back", uuid, func(vm *fakeVM) error {
		def = vm.definition(scope)
		return nil
	})
	if err != nil {
		return def, &unseenError{err}
	}
	return def, nil
}

func (c *fakeConn) attach(uuid, doc string, scope gpu.Scope) error {
	return c.with("attach "+scopeName(scope), uuid, func(vm *fakeVM) error {
		var dev libvirtxml.DomainHostdev
		if err := dev.Unmarshal(doc); err != nil {
			return virError(libvirt.ERR_XML_DETAIL, "%s", err)
		}
		if c.lv.lies {
			return nil
		}
		if err := c.lv.mayChange(vm, scope); err != nil {
			return err
		}
		check := func(devs []libvirtxml.DomainHostdev) error {
			for _, d := range devs {
				if d.Alias.Name == dev.Alias.Name {
					return virError(libvirt.ERR_CONFIG_UNSUPPORTED, "unsupported configuration: non unique alias detected: %s", d.Alias.Name)
				}
				if source(d) == source(dev) {
					return virError(libvirt.ERR_OPERATION_INVALID, "Requested operation is not valid: device is already in the domain configuration")
				}
			}
			return nil
		}
		if scope.Config {
			if err := check(vm.config); err != nil {
				return err
			}
		}
		if scope.Live {
			if err := check(vm.live); err != nil {
				return err
			}
			for _, other := range c.lv.vms {
				for _, d := range other.live {
					if other != vm && source(d) == source(dev) {
						return virError(libvirt.ERR_OPERATION_INVALID,
							"Requested operation is not valid: mediated device %s is in use by driver QEMU, domain %s",
							source(d).MdevUUID, other.name)
					}
				}
			}
			vm.live = append(vm.live, dev)
		}
		if scope.Config {
			vm.config = append(vm.config, dev)
		}
		return nil
	})
}

// mayChange refuses what libvirt refuses.
func (lv *fakeLibvirt) mayChange(vm *fakeVM, scope gpu.Scope) error {
	if scope.Live && !vm.running {
		return virError(libvirt.ERR_OPERATION_INVALID, "Requested operation is not valid: domain is not running")
	}
	if scope.Config && vm.transient {
		return virError(libvirt.ERR_OPERATION_INVALID,
			"Requested operation is not valid: transient domains do not have any persistent config")
	}
	return nil
}

func (c *fakeConn) DetachAlias(uuid, alias string, scope gpu.Scope) error {
	return c.with("detach "+scopeName(scope), uuid, func(vm *fakeVM) error {
		if c.lv.noAlias {
			return virError(libvirt.ERR_RPC, "unknown procedure: 402")
		}
		return c.detach(vm, scope, func(d libvirtxml.DomainHostdev) bool { return d.Alias.Name == alias })
	})
}

func (c *fakeConn) Detach(uuid, doc string, scope gpu.Scope) error {
	return c.with("detach-xml "+scopeName(scope), uuid, func(vm *fakeVM) error {
		var dev libvirtxml.DomainHostdev
		if err := dev.Unmarshal(doc); err != nil {
			return virError(libvirt.ERR_XML_DETAIL, "%s", err)
		}
		return c.detach(vm, scope, func(d libvirtxml.DomainHostdev) bool { return source(d) == source(dev) })
	})
}

func (c *fakeConn) detach(vm *fakeVM, scope gpu.Scope, match func(libvirtxml.DomainHostdev) bool) error {
	if err := c.lv.mayChange(vm, scope); err != nil {
		return err
	}
	if scope.Config {
		i := slices.IndexFunc(vm.config, match)
		if i < 0 {
			return virError(libvirt.ERR_DEVICE_MISSING, "device not found")
		}
		vm.config = slices.Delete(vm.config, i, i+1)
	}
	if !scope.Live {
		return nil
	}
	i := slices.IndexFunc(vm.live, match)
	if i < 0 {
		return virError(libvirt.ERR_DEVICE_MISSING, "device not found")
	}
	alias := vm.live[i].Alias.Name
	if vm.pending[alias] {
		return virError(libvirt.ERR_INTERNAL_ERROR,
			"internal error: unable to execute QEMU command 'device_del': Device %s is already in the process of unplug", alias)
	}
	if vm.guest == guestRejects {
		return virError(libvirt.ERR_OPERATION_FAILED, "operation failed: unplug of device was rejected by the guest")
	}
	if vm.pending == nil {
		vm.pending = map[string]bool{}
	}
	vm.pending[alias] = true
	if vm.guest != guestSilent {
		time.AfterFunc(100*time.Millisecond, func() { c.lv.answer(vm, alias) })
	}
	return nil
}

// answer is what the guest does some time after it was asked.
func (lv *fakeLibvirt) answer(vm *fakeVM, alias string) {
	event := gpu.VMEvent{UUID: vm.uuid, Kind: kindRemoved, Alias: alias}
	lv.set(func() {
		delete(vm.pending, alias)
		switch vm.guest {
		case guestRefuses, guestRejects:
			event.Kind = kindRemovalFailed
		case guestStops:
			vm.running, vm.live = false, nil
			event.Kind, event.Alias = kindLifecycle, ""
		case guestVanishes:
			lv.vms = slices.DeleteFunc(lv.vms, func(v *fakeVM) bool { return v == vm })
			event.Kind, event.Alias = kindLifecycle, ""
		case guestNoEvent:
			event.Kind = ""
			fallthrough
		case guestPrompt, guestSilent:
			vm.live = slices.DeleteFunc(vm.live, func(d libvirtxml.DomainHostdev) bool { return d.Alias.Name == alias })
		}
	})
	if event.Kind != "" {
		lv.emit(event)
	}
}

func (c *fakeConn) Versions() (versions, error) {
	return versions{"QEMU", "11.3.0", "10.0.0"}, c.enter("versions")
}

func (c *fakeConn) Close() {
	c.lv.mu.Lock()
	defer c.lv.mu.Unlock()
	c.closed = true
}

func scopeName(s gpu.Scope) string {
	switch s {
	case gpu.Scope{Live: true, Config: true}:
		return "both"
	case gpu.Scope{Live: true}:
		return "live"
	default:
		return "config"
	}
}
