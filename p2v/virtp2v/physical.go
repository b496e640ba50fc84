package virtp2v

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"

	"gpuvirt/p2v/report"
)

// Limits of physical.xml. That of a server with 100 disks and 32 NICs has some 50 KiB.
const (
	maxPhysical = 256 << 10 // bytes
	maxDepth    = 12        // of elements in one another
	maxDisks    = 64
	maxNICs     = 128
	maxMemory   = 1 << 36 // KiB: 64 TiB
	maxVCPUs    = 1 << 14
)

var diskName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,31}$`)

// physical is what physical.xml says: a server as a person has set it in virt-p2v's window.
type physical struct {
	XMLName xml.Name `xml:"domain"`
	Type    string   `xml:"type,attr"`
	Name    string   `xml:"name"`
	Memory  struct {
		Unit string `xml:"unit,attr"`
		KiB  uint64 `xml:",chardata"`
	} `xml:"memory"`
	VCPUs int `xml:"vcpu"`
	CPU   struct {
		Vendor   string `xml:"vendor"`
		Model    string `xml:"model"`
		Topology struct {
			Sockets int `xml:"sockets,attr"`
			Cores   int `xml:"cores,attr"`
			Threads int `xml:"threads,attr"`
		} `xml:"topology"`
	} `xml:"cpu"`
	OS struct {
		Type struct {
			Arch string `xml:"arch,attr"`
		} `xml:"type"`
	} `xml:"os"`
	Disks []struct {
		Type   string `xml:"type,attr"`
		Device string `xml:"device,attr"`
		Driver struct {
			Type string `xml:"type,attr"`
		} `xml:"driver"`
		Source struct {
			Protocol string `xml:"protocol,attr"`
			Host     struct {
				Name string `xml:"name,attr"`
				Port uint16 `xml:"port,attr"`
			} `xml:"host"`
		} `xml:"source"`
		Target struct {
			Dev string `xml:"dev,attr"`
		} `xml:"target"`
	} `xml:"devices>disk"`
	NICs []struct {
		Source struct {
			Network string `xml:"network,attr"`
		} `xml:"source"`
		Target struct {
			Dev string `xml:"dev,attr"`
		} `xml:"target"`
		MAC struct {
			Address string `xml:"address,attr"`
		} `xml:"mac"`
	} `xml:"devices>interface"`
}

// exported is a disk of the server, and the port that stands for it on the connection that exports it.
type exported struct {
	Name string
	Port uint32
}

// readPhysical reads physical.xml, and refuses what no virt-p2v writes.
func readPhysical(data []byte) (p physical, disks []exported, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot read physical.xml: %w", err)
		}
	}()
	if len(data) > maxPhysical {
		return p, nil, fmt.Errorf("it has more than %d bytes", maxPhysical)
	}
	if err := plainXML(data); err != nil {
		return p, nil, err
	}
	if err := xml.Unmarshal(data, &p); err != nil {
		return p, nil, err
	}
	switch {
	case p.Type != "physical":
		return p, nil, fmt.Errorf("it describes a domain of type %q, and not of a physical server", p.Type)
	case p.Memory.Unit != "KiB" || p.Memory.KiB == 0 || p.Memory.KiB > maxMemory:
		return p, nil, fmt.Errorf("%d %s of memory are none", p.Memory.KiB, p.Memory.Unit)
	case p.VCPUs < 1 || p.VCPUs > maxVCPUs:
		return p, nil, fmt.Errorf("%d processors are none", p.VCPUs)
	case len(p.NICs) > maxNICs:
		return p, nil, fmt.Errorf("it has %d NICs, more than %d", len(p.NICs), maxNICs)
	}
	disks, err = p.exports()
	return p, disks, err
}

// plainXML refuses what a decoder would have to expand or to recurse into.
func plainXML(data []byte) error {
	in := xml.NewDecoder(bytes.NewReader(data))
	for depth := 0; ; {
		token, err := in.RawToken()
		switch token.(type) {
		case xml.StartElement:
			depth++
		case xml.EndElement:
			depth--
		case xml.Directive:
			return errors.New("it declares a type of document, which virt-p2v does not")
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case depth > maxDepth:
			return fmt.Errorf("its elements are nested deeper than %d", maxDepth)
		}
	}
}

// exports are the disks that are to be moved. What is removable comes without a source.
func (p physical) exports() ([]exported, error) {
	var out []exported
	for _, d := range p.Disks {
		if d.Device != "disk" {
			continue
		}
		at := d.Source.Host
		switch {
		case !diskName.MatchString(d.Target.Dev):
			return nil, fmt.Errorf("%q is no name of a disk", d.Target.Dev)
		case d.Type != "network" || d.Source.Protocol != "nbd" || d.Driver.Type != "raw" || at.Name != "localhost" || at.Port == 0:
			return nil, fmt.Errorf("disk %s is not exported by NBD over this connection", d.Target.Dev)
		case slices.ContainsFunc(out, func(o exported) bool { return o.Name == d.Target.Dev || o.Port == uint32(at.Port) }):
			return nil, fmt.Errorf("disk %s is there twice", d.Target.Dev)
		case len(out) == maxDisks:
			return nil, fmt.Errorf("it has more than %d disks", maxDisks)
		}
		out = append(out, exported{d.Target.Dev, uint32(at.Port)})
	}
	if len(out) == 0 {
		return nil, errors.New("it has no disk that is to be moved")
	}
	return out, nil
}

// nics are those that a person has chosen, and the network of libvirt that was named for each.
func (p physical) nics() (out []report.NIC, networks map[string]string) {
	networks = map[string]string{}
	for _, n := range p.NICs {
		mac, err := net.ParseMAC(strings.TrimSpace(n.MAC.Address))
		if err != nil || len(mac) != 6 {
			continue // the VM could not have it
		}
		out = append(out, report.NIC{Name: n.Target.Dev, MAC: mac.String(), Kind: "physical", Up: true})
		networks[mac.String()] = n.Source.Network
	}
	return out, networks
}
