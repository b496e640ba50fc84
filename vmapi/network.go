package vmapi

import (
	"context"
	"encoding/xml"
	"strings"

	"libvirt.org/go/libvirt"

	"gpuvirt/gpu"
)

// CreateNetwork starts a network of libvirt from a definition (XML) with a name and a UUID;
// it is gone when it is stopped. One of that name and UUID that runs is fine; one of that
// name with another UUID is gpu.CodeConflict. If libvirt does not answer, the error is
// gpu.CodeUnavailable and the outcome unknown: it can be asked again.
func (c *Client) CreateNetwork(ctx context.Context, doc string) error {
	var want struct {
		Name string `xml:"name"`
		UUID string `xml:"uuid"`
	}
	err := xml.Unmarshal([]byte(doc), &want)
	if err != nil {
		return gpu.Errorf(gpu.CodeInvalid, "cannot create a network: cannot parse the definition: %w", err)
	}
	if want.Name == "" {
		return gpu.Errorf(gpu.CodeInvalid, "cannot create a network: it has no name")
	}
	if want.UUID, err = parseUUID(strings.TrimSpace(want.UUID)); err != nil {
		return gpu.Errorf(gpu.CodeInvalid, "cannot create the network %q: its UUID: %w", want.Name, err)
	}
	there, found, err := c.network(ctx, want.Name)
	switch {
	case err != nil:
		return fault(err, "cannot create the network %q", want.Name)
	case found && there.uuid != want.UUID:
		return gpu.Errorf(gpu.CodeConflict, "cannot create the network %q: there is another of that name, %s", want.Name, there.uuid)
	case found && there.active:
		return nil
	}
	if err := c.change(ctx, "create a network", "", func(hv hypervisor) error { return hv.CreateNetwork(doc) }); err != nil {
		return fault(err, "cannot create the network %q", want.Name)
	}
	c.log.InfoContext(ctx, "created a network", "network", want.Name)
	return nil
}

// DestroyNetwork stops a network that CreateNetwork has started. One that is gone is fine;
// one that libvirt keeps the definition of is gpu.CodeConflict, as it is somebody else's.
// If libvirt does not answer, the error is gpu.CodeUnavailable and the outcome unknown.
func (c *Client) DestroyNetwork(ctx context.Context, name string) error {
	there, found, err := c.network(ctx, name)
	switch {
	case err != nil:
		return fault(err, "cannot destroy the network %q", name)
	case !found:
		return nil
	case there.persistent:
		return gpu.Errorf(gpu.CodeConflict, "cannot destroy the network %q: it is a permanent one, which gpuvirt does not make", name)
	}
	err = c.change(ctx, "destroy a network", "", func(hv hypervisor) error { return hv.DestroyNetwork(name) })
	if err != nil && !isCode(err, libvirt.ERR_NO_NETWORK) {
		return fault(err, "cannot destroy the network %q", name)
	}
	c.log.InfoContext(ctx, "destroyed a network", "network", name)
	return nil
}

// network finds a network.
func (c *Client) network(ctx context.Context, name string) (n network, found bool, err error) {
	n, err = call(ctx, c, request{what: "find a network"}, func(hv hypervisor) (network, error) {
		return hv.Network(name)
	})
	if isCode(err, libvirt.ERR_NO_NETWORK) {
		return n, false, nil
	}
	return n, err == nil, err
}
