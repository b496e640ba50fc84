package assess

import (
	"fmt"

	"gpuvirt/p2v/report"
)

// networkRules are about network devices.
func networkRules() []rule {
	return []rule{
		{
			Rule{
				ID: "nic-names", Severity: Warning, Subject: "network", Title: "Network devices get other names",
				Why:    "A name such as enp65s0 comes from the slot, which is another in the VM: the configuration finds no device and the VM stays without network.",
				Remedy: "The plan keeps the MAC addresses and lays a .link file for each name.",
			},
			func(l *look) []hit {
				return each(l.NICs, func(n report.NIC) string {
					if n.Kind != "physical" || n.Config == "" && len(n.Addresses) == 0 && !l.under(n.Name) {
						return ""
					}
					return quote(n.Name) + " with MAC " + quote(n.MAC)
				})
			},
		},
		{
			Rule{
				ID: "static-addresses", Severity: Warning, Subject: "network", Title: "The source has addresses that go with it",
				Why:    "The VM's network has to carry them, and source and VM must never be up with one address at once.",
				Remedy: "Say which network or bridge each NIC is plugged into (--nic, --network, --bridge); a cut-over takes the source off the network first.",
			},
			func(l *look) []hit {
				return each(l.NICs, func(n report.NIC) string {
					if len(n.Addresses) == 0 {
						return ""
					}
					return quote(n.Name) + " has " + quotes(n.Addresses)
				})
			},
		},
		{
			Rule{
				ID: "built-networks", Severity: Warning, Subject: "network", Title: "Network devices are built of others",
				Why:    "A bond of virtual adapters has no use, and a VLAN needs a network that carries its tag.",
				Remedy: "Plug the NICs in where these networks are (--nic): one of a bond, and for a VLAN a bridge that carries its tag. What is built of them is changed in the VM.",
			},
			func(l *look) []hit {
				return each(l.NICs, func(n report.NIC) string {
					if n.Kind != "bond" && n.Kind != "vlan" && n.Kind != "bridge" {
						return ""
					}
					return fmt.Sprintf("%s %s on %s", n.Kind, quote(n.Name), quotes(n.On))
				})
			},
		},
		{
			Rule{
				ID: "rdma-nic", Severity: Warning, Subject: "network", Title: "A network adapter does RDMA",
				Why:    "A virtio adapter does not: what speaks RDMA (NCCL over InfiniBand or RoCE, storage) falls back to TCP or fails.",
				Remedy: "Give the VM a function of such an adapter, or accept TCP and measure.",
			},
			func(l *look) []hit {
				return each(l.NICs, func(n report.NIC) string {
					if !n.RDMA {
						return ""
					}
					return quote(n.Name) + " with driver " + quote(n.Driver)
				})
			},
		},
		{
			Rule{
				ID: "jumbo-frames", Severity: Warning, Subject: "network", Title: "Large frames are in use",
				Why:    "Where the host's bridge or switch port has a smaller MTU, large packets vanish while small ones go through.",
				Remedy: "Set the same MTU on the host's bridge, and on the VM's network.",
			},
			func(l *look) []hit {
				return each(l.NICs, func(n report.NIC) string {
					if n.MTU <= 1500 || n.MTU > 9999 {
						return ""
					}
					return fmt.Sprintf("%s has MTU %d", quote(n.Name), n.MTU)
				})
			},
		},
	}
}

// under tells whether a network device is built on this one.
func (l *look) under(name string) bool {
	for _, n := range l.NICs {
		for _, on := range n.On {
			if on == name {
				return true
			}
		}
	}
	return false
}
