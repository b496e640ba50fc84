package inspect

import (
	"encoding/hex"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gpuvirt/p2v/report"
)

var pciAddress = regexp.MustCompile(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

// nics returns the network devices with hardware behind them, and those that are built of
// such: not those of containers and VMs.
func (s *scene) nics() []report.NIC {
	all := map[string]report.NIC{}
	names, err := s.tree.list("sys/class/net")
	if err != nil {
		s.miss("nics", "%s", cause(err))
	}
	for _, name := range names {
		if name != "lo" {
			all[name] = s.nic(name)
		}
	}
	var real func(name string, deep int) bool
	real = func(name string, deep int) bool {
		n, there := all[name]
		return there && deep < 8 && (n.Kind == "physical" || slices.ContainsFunc(n.On, func(on string) bool { return real(on, deep+1) }))
	}
	var out []report.NIC
	for _, name := range names {
		if !real(name, 0) {
			continue
		}
		n := all[name]
		if n.Addresses, err = s.o.Addresses(name); err != nil {
			s.miss("nics."+name+".addresses", "%s", cause(err))
		}
		n.Learned = s.learned(name, n.Addresses)
		n.Config = s.configuredBy(n)
		out = append(out, n)
	}
	return out
}

// learned are the addresses of a network device that the kernel keeps for a while only. It tells that
// of IPv6.
func (s *scene) learned(nic string, all []string) (out []string) {
	const permanent = 0x80 // IFA_F_PERMANENT
	for line := range strings.Lines(s.tree.text("proc/net/if_inet6")) {
		f := strings.Fields(line) // address, index, length, scope, flags, device
		if len(f) != 6 || f[5] != nic {
			continue
		}
		raw, err := hex.DecodeString(f[0])
		flags, errFlags := strconv.ParseUint(f[4], 16, 32)
		ip, ok := netip.AddrFromSlice(raw)
		if err != nil || errFlags != nil || !ok || flags&permanent != 0 {
			continue
		}
		for _, a := range all {
			if p, err := netip.ParsePrefix(a); err == nil && p.Addr() == ip {
				out = append(out, a)
			}
		}
	}
	return out
}

func (s *scene) nic(name string) report.NIC {
	dir := path.Join("sys/class/net", name)
	n := report.NIC{
		Name: name, MAC: s.tree.text(dir + "/address"), MTU: int(min(number(s.tree.text(dir+"/mtu")), 1<<20)), //nolint:gosec // bounded
		Up: s.tree.text(dir+"/operstate") == "up", Kind: "other",
	}
	if mbit, err := strconv.Atoi(s.tree.text(dir + "/speed")); err == nil && mbit > 0 {
		n.SpeedMbit = mbit
	}
	for _, sub := range s.tree.names(dir) {
		if lower, found := strings.CutPrefix(sub, "lower_"); found {
			n.On = append(n.On, lower)
		}
	}
	switch {
	case s.tree.exists(dir + "/device"):
		n.Kind = "physical"
		n.Driver = s.tree.base(dir + "/device/driver")
		n.RDMA = s.tree.exists(dir + "/device/infiniband")
		for at := s.tree.real(dir + "/device"); at != "." && at != ""; at = path.Dir(at) {
			if pciAddress.MatchString(path.Base(at)) { // virtio devices hang below theirs
				n.PCI = path.Base(at)
				break
			}
		}
		// A permanent address is what names are given by; one of a bond changes with it.
		if own := s.tree.text(dir + "/bonding_slave/perm_hwaddr"); own != "" {
			n.MAC = own
		}
	case s.tree.exists(dir + "/bonding"):
		n.Kind = "bond"
	case s.tree.exists(dir + "/bridge"):
		n.Kind = "bridge"
	case strings.Contains(s.tree.text(dir+"/uevent"), "DEVTYPE=vlan"):
		n.Kind = "vlan"
	}
	return n
}

// configuredBy tells who sets a network device up.
func (s *scene) configuredBy(n report.NIC) string {
	names := func(text string) bool {
		return strings.Contains(text, n.Name) || n.MAC != "" && strings.Contains(strings.ToLower(text), strings.ToLower(n.MAC))
	}
	for _, file := range s.configDir("etc/netplan", ".yaml") {
		if names(s.tree.text(file)) {
			return "netplan"
		}
	}
	for _, file := range append([]string{"etc/network/interfaces"}, s.configDir("etc/network/interfaces.d", "")...) {
		for line := range strings.Lines(s.tree.text(file)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "iface" && f[1] == n.Name {
				return "ifupdown"
			}
		}
	}
	if s.tree.exists("etc/sysconfig/network-scripts/ifcfg-"+n.Name) || s.tree.exists("etc/sysconfig/network/ifcfg-"+n.Name) {
		return "ifcfg"
	}
	for _, dir := range []string{"etc/NetworkManager/system-connections", "run/NetworkManager/system-connections"} {
		for _, file := range s.configDir(dir, ".nmconnection") {
			for line := range strings.Lines(s.tree.text(file)) { // it may hold secrets: only these lines are looked at
				key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
				if (key == "interface-name" || key == "mac-address") && names(value) {
					return "networkmanager"
				}
			}
		}
	}
	index := s.tree.text(path.Join("sys/class/net", n.Name, "ifindex"))
	if link := s.tree.text("run/systemd/netif/links/" + index); strings.Contains(link, "NETWORK_FILE=/") {
		return "networkd"
	}
	if device := s.tree.text("run/NetworkManager/devices/" + index); strings.Contains(device, "managed=true") {
		return "networkmanager"
	}
	return ""
}
