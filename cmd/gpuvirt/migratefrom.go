package main

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"gpuvirt/api"
)

// fromFlags say where the disks of a server are read that is off.
type fromFlags struct {
	images, exports []string
	certificates    string
}

func (f *fromFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&f.images, "image", nil, "where a disk of a server that is off is read on the daemon's host, a raw image or a block device, as `disk=path`; more than once for several")
	flags.StringArrayVar(&f.exports, "nbd", nil, "where one is read by NBD, as `disk=uri`, or disk=virt-p2v: for a server that comes by virt-p2v; more than once for several")
	flags.StringVar(&f.certificates, "certificates", "", "the `folder` of the daemon's credentials with the certificates for NBD")
}

// request is what was asked for, empty: the server runs.
func (f *fromFlags) request(cmd *cobra.Command) (out []api.DiskFromRequest, err error) {
	add := func(flag, text string, made func(disk, where string) api.DiskFromRequest) {
		disk, where, found := strings.Cut(text, "=")
		if !found || disk == "" || where == "" {
			err = &usageError{message: fmt.Sprintf("--%s %q: it takes a disk of the server and where it is read, as nvme0n1=…", flag, text), command: cmd.CommandPath()}
		}
		out = append(out, made(disk, where))
	}
	for _, text := range f.images {
		add("image", text, func(disk, where string) api.DiskFromRequest { return api.DiskFromRequest{Disk: disk, Image: where} })
	}
	for _, text := range f.exports {
		add("nbd", text, func(disk, where string) api.DiskFromRequest { return api.DiskFromRequest{Disk: disk, NBD: where} })
	}
	return out, err
}

// fromWhere is how the source of a migration is reached, for people.
func fromWhere(m api.Migration) string {
	switch {
	case len(m.DisksFrom) > 0:
		return "off; its disks are read"
	case m.Source == nil:
		return ""
	}
	return m.Source.User + "@" + net.JoinHostPort(m.Source.Address, strconv.Itoa(m.Source.Port))
}

// fromRows list where disks are read.
func fromRows(m api.Migration) (rows [][]string) {
	for _, d := range m.DisksFrom {
		rows = append(rows, []string{d.Disk, d.Image + d.NBD})
	}
	return rows
}
