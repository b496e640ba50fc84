package vmapi

import (
	"errors"
	"fmt"

	"libvirt.org/go/libvirt"

	"gpuvirt/gpu"
)

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

func (c *connection) Lookup(name string) (id string, err error) {
	err = c.find(func() (*libvirt.Domain, error) { return c.conn.LookupDomainByName(name) }, func(dom *libvirt.Domain) (err error) {
		id, err = dom.GetUUIDString()
		return err
	})
	return id, err
}

// with calls f with the domain of a UUID.
func (c *connection) with(uuid string, f func(*libvirt.Domain) error) error {
	return c.find(func() (*libvirt.Domain, error) { return c.conn.LookupDomainByUUIDString(uuid) }, f)
}

// find calls f with the domain that lookup finds.
func (c *connection) find(lookup func() (*libvirt.Domain, error), f func(*libvirt.Domain) error) error {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.leave()
	dom, err := lookup()
	if err != nil {
		return err
	}
	defer func() { _ = dom.Free() }()
	return f(dom)
}

func (c *connection) Head(uuid, name string) (head gpu.VMHead, err error) {
	lookup := func() (*libvirt.Domain, error) { return c.conn.LookupDomainByUUIDString(uuid) }
	if name != "" {
		lookup = func() (*libvirt.Domain, error) { return c.conn.LookupDomainByName(name) }
	}
	err = c.find(lookup, func(dom *libvirt.Domain) (err error) {
		// These three ask nobody: the answer to the lookup had them, and an id only
		// if the domain runs.
		if head.UUID, err = dom.GetUUIDString(); err != nil {
			return err
		}
		if head.Name, err = dom.GetName(); err != nil {
			return err
		}
		_, idErr := dom.GetID()
		head.Active = idErr == nil
		head.Persistent, err = dom.IsPersistent()
		return err
	})
	return head, err
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
