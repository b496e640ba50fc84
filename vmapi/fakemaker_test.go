package vmapi

import (
	"encoding/xml"
	"slices"

	"libvirt.org/go/libvirt"

	"gpuvirt/gpu"
)

// makes are the calls of a maker that change something.
var makes = []string{"define", "undefine", "start", "create", "destroy", "create-network", "destroy-network"}

type fakeNetwork struct {
	name string
	network
}

// identity is what a definition says of who it is.
type identity struct {
	Name string `xml:"name"`
	UUID string `xml:"uuid"`
}

// place finds the VM that a definition is of, as libvirt does. The lock is held.
func (lv *fakeLibvirt) place(doc string) (id identity, vm *fakeVM, err error) {
	if err := xml.Unmarshal([]byte(doc), &id); err != nil {
		return id, nil, virError(libvirt.ERR_XML_DETAIL, "%s", err)
	}
	for _, v := range lv.vms {
		switch {
		case v.uuid == id.UUID && v.name == id.Name:
			return id, v, nil
		case v.uuid == id.UUID:
			return id, nil, virError(libvirt.ERR_OPERATION_FAILED, "operation failed: domain '%s' is already defined with uuid %s", v.name, v.uuid)
		case v.name == id.Name:
			return id, nil, virError(libvirt.ERR_OPERATION_FAILED, "operation failed: domain '%s' already exists with uuid %s", v.name, v.uuid)
		}
	}
	return id, nil, nil
}

func (c *fakeConn) Define(doc string) error {
	return c.make("define", func(lv *fakeLibvirt) (string, error) {
		id, vm, err := lv.place(doc)
		if err != nil || lv.lies {
			return "", err
		}
		if vm == nil {
			vm = &fakeVM{uuid: id.UUID, name: id.Name}
			lv.vms = append(lv.vms, vm)
		}
		vm.doc, vm.config, vm.transient = doc, nil, false
		return id.UUID, nil
	})
}

func (c *fakeConn) Undefine(uuid string) error {
	return c.on("undefine", uuid, func(vm *fakeVM) error {
		vm.transient, vm.config = true, nil
		if !vm.running {
			c.lv.vms = slices.DeleteFunc(c.lv.vms, func(v *fakeVM) bool { return v == vm })
		}
		return nil
	})
}

func (c *fakeConn) Inactive(uuid string) (doc string, err error) {
	err = c.with("inactive "+uuid, uuid, func(vm *fakeVM) error {
		doc = vm.xml(vm.doc, vm.config, "")
		return nil
	})
	return doc, err
}

func (c *fakeConn) Start(uuid string) error {
	return c.on("start", uuid, func(vm *fakeVM) error {
		if vm.running {
			return virError(libvirt.ERR_OPERATION_INVALID, "Requested operation is not valid: domain is already running")
		}
		vm.running, vm.trial, vm.live = true, "", slices.Clone(vm.config)
		return nil
	})
}

func (c *fakeConn) Create(doc string) error {
	return c.make("create", func(lv *fakeLibvirt) (string, error) {
		id, vm, err := lv.place(doc)
		if err != nil {
			return "", err
		}
		if vm == nil {
			vm = &fakeVM{uuid: id.UUID, name: id.Name, transient: true}
			lv.vms = append(lv.vms, vm)
		}
		if vm.running {
			return "", virError(libvirt.ERR_OPERATION_INVALID, "Requested operation is not valid: domain '%s' is already active", vm.name)
		}
		vm.running, vm.trial = true, doc
		return id.UUID, nil
	})
}

func (c *fakeConn) Destroy(uuid string) error {
	return c.on("destroy", uuid, func(vm *fakeVM) error {
		if !vm.running {
			return virError(libvirt.ERR_OPERATION_INVALID, "Requested operation is not valid: domain is not running")
		}
		if vm.hangs {
			return virError(libvirt.ERR_SYSTEM_ERROR, "Failed to terminate process 4711 with SIGTERM: Device or resource busy")
		}
		vm.running, vm.trial, vm.live = false, "", nil
		return nil
	})
}

func (c *fakeConn) Agent(uuid, command string, _ int) (answer string, err error) {
	err = c.with("agent "+command, uuid, func(vm *fakeVM) error {
		switch {
		case !vm.running:
			return virError(libvirt.ERR_OPERATION_INVALID, "Requested operation is not valid: domain is not running")
		case vm.agent == nil:
			return virError(libvirt.ERR_AGENT_UNRESPONSIVE, "Guest agent is not responding: QEMU guest agent is not connected")
		}
		answer, err = vm.agent(command)
		return err
	})
	return answer, err
}

func (c *fakeConn) Network(name string) (n network, err error) {
	if err := c.enter("network"); err != nil {
		return n, err
	}
	c.lv.mu.Lock()
	defer c.lv.mu.Unlock()
	for _, have := range c.lv.networks {
		if have.name == name {
			return have.network, nil
		}
	}
	return n, virError(libvirt.ERR_NO_NETWORK, "Network not found: no network with matching name '%s'", name)
}

func (c *fakeConn) Interface(name string) (string, error) {
	if err := c.enter("interface"); err != nil {
		return "", err
	}
	c.lv.mu.Lock()
	defer c.lv.mu.Unlock()
	kind, there := c.lv.interfaces[name]
	if !there {
		return "", virError(libvirt.ERR_NO_INTERFACE, "Interface not found: couldn't find interface named '%s'", name)
	}
	return kind, nil
}

func (c *fakeConn) Capabilities(arch, machine, kind string) (string, error) {
	if err := c.enter("capabilities " + arch + " " + machine + " " + kind); err != nil {
		return "", err
	}
	c.lv.mu.Lock()
	defer c.lv.mu.Unlock()
	return c.lv.can, nil
}

func (c *fakeConn) CreateNetwork(doc string) error {
	return c.make("create-network", func(lv *fakeLibvirt) (string, error) {
		var id identity
		if err := xml.Unmarshal([]byte(doc), &id); err != nil {
			return "", virError(libvirt.ERR_XML_DETAIL, "%s", err)
		}
		lv.networks = append(lv.networks, fakeNetwork{id.Name, network{uuid: id.UUID, active: true}})
		return "", nil
	})
}

func (c *fakeConn) DestroyNetwork(name string) error {
	return c.make("destroy-network", func(lv *fakeLibvirt) (string, error) {
		lv.networks = slices.DeleteFunc(lv.networks, func(n fakeNetwork) bool { return n.name == name })
		return "", nil
	})
}

// make runs f under the lock, and tells of the VM that it returns.
func (c *fakeConn) make(name string, f func(*fakeLibvirt) (uuid string, err error)) error {
	if err := c.enter(name); err != nil {
		return err
	}
	var uuid string
	var err error
	c.lv.set(func() { uuid, err = f(c.lv) })
	if uuid != "" {
		c.lv.emit(gpu.VMEvent{UUID: uuid, Kind: kindLifecycle})
	}
	return err
}

// on is with for what changes a VM.
func (c *fakeConn) on(name, uuid string, f func(*fakeVM) error) error {
	err := c.with(name+" "+uuid, uuid, f)
	if err == nil {
		c.lv.emit(gpu.VMEvent{UUID: uuid, Kind: kindLifecycle})
	}
	return err
}
