package virtp2v

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"unicode"

	"gpuvirt/p2v/nbd"
	"gpuvirt/p2v/report"
)

// A Server is one that was started from virt-p2v, and whose disks are read as long as it is here.
type Server struct {
	Name   string // as a person has named it there; not checked
	From   netip.Addr
	Report report.Report
	Disks  []Disk
	// Networks are those of libvirt that were named for its NICs, by the NIC's Ethernet address.
	Networks map[string]string
	// Connected tells whether any connection is left of the address that it came from.
	Connected func() bool
}

// A Disk of a server.
type Disk struct {
	Name string // of virt-p2v's kernel: "sda"
	Size int64  // bytes
	// Dial connects to what exports it by NBD; the connection ends when the server goes.
	Dial func(ctx context.Context) (net.Conn, error)

	head []byte // its beginning
}

// headBytes has a partition table, also of blocks of 4096 bytes.
const headBytes = 6 * 4096

func (c *conn) arrive(ctx context.Context, show io.Writer, folder string) error {
	files := c.l.take(c, folder)
	if files == nil {
		return errors.New("it was not told what is to be moved: physical.xml did not come")
	}
	p, exports, err := readPhysical(files[filePhysical])
	if err != nil {
		return err
	}
	s := Server{Name: p.Name, From: c.from, Connected: func() bool { return c.l.connected(c.from) }}
	_, s.Networks = p.nics()
	for _, e := range exports {
		d, err := c.open(ctx, e)
		if err != nil {
			return fmt.Errorf("cannot read disk %s: %w", e.Name, err)
		}
		s.Disks = append(s.Disks, d)
	}
	s.Report = reportOf(p, files, s.Disks, c.l.o.Now())
	if err := s.Report.Check(); err != nil {
		return err
	}
	c.l.o.Log.InfoContext(ctx, "a server has come by virt-p2v", "from", c.from.String(), "name", shown(s.Name), "disks", len(s.Disks))
	return c.l.o.Arrive(ctx, s, show)
}

// URI is what a disk is called where it is read; its host is no name that anybody looks up.
const URI = "nbd://virt-p2v/"

// open looks at a disk that a port stands for.
func (c *conn) open(ctx context.Context, e exported) (Disk, error) {
	f := c.l.find(c, e.Port)
	if f == nil {
		return Disk{}, fmt.Errorf("there is no forwarded port %d from there", e.Port)
	}
	d := Disk{Name: e.Name, Dial: f.dial}
	client, err := nbd.Dial(ctx, URI, nbd.Options{Connections: 1, Dial: d.Dial})
	if err != nil {
		return d, err
	}
	defer client.Close() //nolint:errcheck // it was only read
	d.Size = client.Size()
	d.head = make([]byte, min(headBytes, d.Size))
	_, err = client.ReadAt(d.head, 0)
	return d, err
}

// shown makes harmless what comes from there.
func shown(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
