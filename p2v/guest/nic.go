package guest

import (
	"cmp"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"

	"gpuvirt/p2v/convert"
	"gpuvirt/p2v/report"
)

// A card is a NIC of the server that the VM has, or why it has not.
type card struct {
	report.NIC // its MAC address in small letters
	why        string
}

// cards are the NICs of the server with hardware behind them, by name as people count: eth2
// before eth10. The VM has those with an Ethernet address of their own and a cable.
func cards(r report.Report) []card {
	var out []card
	for _, n := range r.NICs {
		if n.Kind == "physical" {
			out = append(out, card{NIC: n})
		}
	}
	slices.SortStableFunc(out, func(a, b card) int {
		return cmp.Or(cmp.Compare(len(a.Name), len(b.Name)), cmp.Compare(a.Name, b.Name), cmp.Compare(a.MAC, b.MAC))
	})
	seen := map[string]bool{}
	for i := range out {
		n := &out[i]
		mac, err := net.ParseMAC(n.MAC)
		switch {
		case strings.HasPrefix(n.Name, "wl") || strings.HasPrefix(n.Name, "ww"):
			n.why = "a VM has no wireless network"
		case err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() == "00:00:00:00:00:00":
			n.why = "it has no Ethernet address that a VM could have"
		case seen[mac.String()]:
			n.why = "another has the same Ethernet address, and the VM has that one"
		default:
			n.MAC = mac.String()
			seen[n.MAC] = true
		}
	}
	return out
}

// nicName is what udev gives as a name: not a number, and nothing that it reads as more.
var nicName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,14}$`)

// nicNames lays a .link file for each NIC. It matches the driver too: bonds, bridges and
// VLANs have the address of what they are built of, and must keep their own names.
func (m *maker) nicNames() {
	for _, n := range cards(m.Report) {
		item := n.Name + " " + n.MAC
		switch {
		case n.why != "":
			m.leave(ByPerson, n.why, item)
			continue
		case !nicName.MatchString(n.Name):
			m.leave(ByPerson, "its name is none that udev gives", item)
			continue
		}
		file := "/etc/systemd/network/10-gpuvirt-" + n.Name + ".link"
		m.add(convert.Edit{
			Kind: convert.EditWrite, Path: file,
			What: "Keep the name " + n.Name + " for the NIC " + n.MAC + ".", Undo: "Remove " + file + ".",
			Content: fmt.Appendf(nil, "# Of the move to a VM: the NIC keeps its name.\n[Match]\nDriver=virtio_net\nMACAddress=%s\n\n[Link]\nName=%s\n", n.MAC, n.Name),
		}, item)
	}
}
