package move

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"gpuvirt/p2v/report"
)

// DiskFrom says where a disk of a server is read that is off.
type DiskFrom struct {
	Disk string `json:"disk"` // as the server was inspected with: "nvme0n1"
	// One of these: the absolute path of a raw image or of a block device of this host, or the URI of
	// an export of NBD; VirtP2V is one, too.
	Image string `json:"image,omitempty"`
	NBD   string `json:"nbd,omitempty"`
}

// VirtP2V is the URI of a disk of the server that was started from virt-p2v and has come under the
// name of the assessment: as often as it comes, wherever it comes from.
const VirtP2V = "virt-p2v:"

// Comes tells whether the disk is that of a server that comes to us.
func (d DiskFrom) Comes() bool { return d.NBD == VirtP2V }

// Limits of what is asked for.
const (
	maxFrom  = 128  // disks
	maxWhere = 4096 // bytes of a path or a URI
)

// Comes reports whether disks are those of a server that comes to us.
func (r *Record) Comes() bool { return slices.ContainsFunc(r.DisksFrom, DiskFrom.Comes) }

// AtRest reports whether the server is off, and only its disks are read.
func (r *Record) AtRest() bool { return len(r.DisksFrom) > 0 }

// CheckFrom refuses what makes no sense by itself. The error says which field is wrong.
func CheckFrom(from []DiskFrom, certificates string) error {
	if len(from) > maxFrom {
		return fmt.Errorf("disks_from are %d, and %d at most", len(from), maxFrom)
	}
	secure := false
	for i, d := range from {
		wrong := func(format string, args ...any) error {
			return fmt.Errorf("disks_from[%d]"+format, append([]any{i}, args...)...)
		}
		switch {
		case d.Disk == "":
			return wrong(" names no disk")
		case slices.ContainsFunc(from[:i], func(o DiskFrom) bool { return o.Disk == d.Disk }):
			return wrong(" names %q once more", d.Disk)
		case (d.Image == "") == (d.NBD == ""):
			return wrong(" takes either image or nbd")
		case !shown(d.Disk) || !shown(d.Image) || !shown(d.NBD):
			return wrong(" has characters that cannot be shown, or more than %d bytes", maxWhere)
		case d.Image != "" && (!filepath.IsAbs(d.Image) || filepath.Clean(d.Image) != d.Image):
			return wrong(".image %q is no absolute path, or has . or .. in it", d.Image)
		}
		secure = secure || strings.HasPrefix(strings.ToLower(d.NBD), "nbds")
	}
	switch {
	case certificates != "" && !secure:
		return errors.New("certificates are for disks that come by nbds://, and none does")
	case certificates == "" && secure:
		return errors.New("certificates is missing: the name of a folder, in the host's folder of credentials, with the CA of who exports the disks")
	case certificates != "" && !report.Credential.MatchString(certificates):
		return fmt.Errorf("certificates %q is no name of a folder", certificates)
	}
	return nil
}

func shown(s string) bool {
	return len(s) <= maxWhere && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
