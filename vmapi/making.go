package vmapi

import (
	"encoding/xml"
	"strings"

	"libvirt.org/go/libvirt"
)

func (c *connection) Define(xml string) error {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.leave()
	dom, err := c.conn.DomainDefineXML(xml)
	if err != nil {
		return err
	}
	_ = dom.Free()
	return nil
}

// undefineFlags are what to remove with a definition, least first: a libvirt that does not
// know the last ones keeps nothing of that kind, or removes it anyway.
var undefineFlags = []libvirt.DomainUndefineFlagsValues{
	libvirt.DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.DOMAIN_UNDEFINE_SNAPSHOTS_METADATA,
	libvirt.DOMAIN_UNDEFINE_NVRAM,                // not the test driver
	libvirt.DOMAIN_UNDEFINE_CHECKPOINTS_METADATA, // 5.6
	libvirt.DOMAIN_UNDEFINE_TPM,                  // 8.9; before, the state goes with the definition
}

func (c *connection) Undefine(uuid string) error {
	return c.with(uuid, func(dom *libvirt.Domain) (err error) {
		for n := len(undefineFlags); n > 0; n-- {
			var flags libvirt.DomainUndefineFlagsValues
			for _, f := range undefineFlags[:n] {
				flags |= f
			}
			if err = dom.UndefineFlags(flags); !unknownFlag(err) {
				return err
			}
		}
		return err
	})
}

// unknownFlag reports whether libvirt has refused a call for a flag that it does not know.
func unknownFlag(err error) bool {
	return isCode(err, libvirt.ERR_INVALID_ARG) && strings.Contains(err.Error(), "unsupported flags")
}

func (c *connection) Inactive(uuid string) (doc string, err error) {
	err = c.with(uuid, func(dom *libvirt.Domain) (err error) {
		doc, err = dom.GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE | libvirt.DOMAIN_XML_SECURE)
		return err
	})
	return doc, err
}

func (c *connection) Start(uuid string) error {
	return c.with(uuid, func(dom *libvirt.Domain) error { return dom.Create() })
}

func (c *connection) Create(xml string) error {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.leave()
	dom, err := c.conn.DomainCreateXML(xml, 0)
	if err != nil {
		return err
	}
	_ = dom.Free()
	return nil
}

func (c *connection) Destroy(uuid string) error {
	return c.with(uuid, func(dom *libvirt.Domain) error {
		return dom.DestroyFlags(libvirt.DOMAIN_DESTROY_GRACEFUL)
	})
}

func (c *connection) Agent(uuid, request string, seconds int) (answer string, err error) {
	err = c.with(uuid, func(dom *libvirt.Domain) (err error) {
		answer, err = dom.QemuAgentCommand(request, libvirt.DomainQemuAgentCommandTimeout(seconds), 0)
		return err
	})
	return answer, err
}

func (c *connection) Network(name string) (n network, err error) {
	err = c.withNetwork(name, func(net *libvirt.Network) (err error) {
		if n.uuid, err = net.GetUUIDString(); err != nil {
			return err
		}
		if n.active, err = net.IsActive(); err != nil {
			return err
		}
		n.persistent, err = net.IsPersistent()
		return err
	})
	return n, err
}

// Interface asks a driver of its own, which may be missing, as a daemon of its own on some hosts: all
// it answers but that there is none says nothing of the rest of libvirt.
func (c *connection) Interface(name string) (string, error) {
	if err := c.enter(); err != nil {
		return "", err
	}
	defer c.leave()
	at, err := c.conn.LookupInterfaceByName(name)
	if isCode(err, libvirt.ERR_NO_INTERFACE) {
		return "", err
	}
	if err != nil {
		return "", nil //nolint:nilerr // it is not known
	}
	defer func() { _ = at.Free() }()
	doc, err := at.GetXMLDesc(0)
	if err != nil {
		return "", nil //nolint:nilerr // as above
	}
	var is struct {
		Type string `xml:"type,attr"`
	}
	if err := xml.Unmarshal([]byte(doc), &is); err != nil {
		return "", err
	}
	return is.Type, nil
}

func (c *connection) Capabilities(arch, machine, kind string) (string, error) {
	if err := c.enter(); err != nil {
		return "", err
	}
	defer c.leave()
	return c.conn.GetDomainCapabilities("", arch, machine, kind, 0)
}

func (c *connection) CreateNetwork(xml string) error {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.leave()
	net, err := c.conn.NetworkCreateXML(xml)
	if err != nil {
		return err
	}
	_ = net.Free()
	return nil
}

func (c *connection) DestroyNetwork(name string) error {
	return c.withNetwork(name, func(net *libvirt.Network) error { return net.Destroy() })
}

// withNetwork calls f with the network of a name.
func (c *connection) withNetwork(name string, f func(*libvirt.Network) error) error {
	if err := c.enter(); err != nil {
		return err
	}
	defer c.leave()
	net, err := c.conn.LookupNetworkByName(name)
	if err != nil {
		return err
	}
	defer func() { _ = net.Free() }()
	return f(net)
}
