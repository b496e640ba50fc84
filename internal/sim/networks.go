package sim

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	"gpuvirt/gpu"
)

// A network is one of libvirt's that is up. A new host has "default".
type network struct {
	Name       string `json:"name"`
	UUID       string `json:"uuid"`
	Persistent bool   `json:"persistent,omitempty"`
}

// CreateNetwork starts a network that is gone when it is stopped, or the host is. One of
// that name and UUID is fine.
func (l *Libvirt) CreateNetwork(ctx context.Context, doc string) error {
	return l.update(ctx, "create a network", func(s *state) error {
		var n libvirtxml.Network
		if err := n.Unmarshal(doc); err != nil {
			return gpu.Errorf(gpu.CodeInvalid, "cannot parse the definition: %w", err)
		}
		if n.Name == "" || n.UUID == "" {
			return gpu.Errorf(gpu.CodeInvalid, "the definition lacks a name or a UUID")
		}
		id := strings.ToLower(n.UUID)
		switch have := s.network(n.Name); {
		case have == nil:
			s.Networks = append(s.Networks, network{Name: n.Name, UUID: id})
		case have.UUID != id:
			return gpu.Errorf(gpu.CodeConflict, "network '%s' is already defined with uuid %s", n.Name, have.UUID)
		}
		return nil
	})
}

// DestroyNetwork stops a network of CreateNetwork; one that is gone is fine. VMs that are
// on it stay there, as with libvirt, without one.
func (l *Libvirt) DestroyNetwork(ctx context.Context, name string) error {
	return l.update(ctx, fmt.Sprintf("destroy network %q", name), func(s *state) error {
		have := s.network(name)
		if have != nil && have.Persistent {
			return gpu.Errorf(gpu.CodeConflict, "it is a permanent one")
		}
		s.Networks = slices.DeleteFunc(s.Networks, func(n network) bool { return n.Name == name })
		return nil
	})
}

func (s *state) network(name string) *network {
	for i := range s.Networks {
		if s.Networks[i].Name == name {
			return &s.Networks[i]
		}
	}
	return nil
}
