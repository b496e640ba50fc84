package inspect

import (
	"context"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gpuvirt/internal/mountinfo"
	"gpuvirt/p2v/report"
)

// statLimit is how long one file system is waited for: one on a server that is gone blocks.
const statLimit = 2 * time.Second

// A mount is a row of mountinfo.
type mount struct {
	number, root, at, options, kind, source string
}

// Kinds of file system that lie elsewhere.
var networkKinds = []string{
	"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "afs", "9p", "virtiofs", "ocfs2", "gfs2", "wekafs",
	"fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "fuse.s3fs", "fuse.juicefs", "fuse.rclone", "fuse.gcsfuse", "fuse.goofys", "fuse.mount-s3",
}

func (m mount) network() bool { return slices.Contains(networkKinds, m.kind) }

func (s *scene) mounts() []mount {
	text, err := s.tree.read("proc/self/mountinfo", large)
	if err != nil {
		s.miss("filesystems", "%s", cause(err))
	}
	return parseMounts(text)
}

func parseMounts(text string) []mount {
	var out []mount
	for _, m := range mountinfo.Parse(text) {
		out = append(out, mount{
			number: m.Number, root: m.Root, at: m.At, options: joined(m.Options, m.Super), kind: m.Type, source: m.Source,
		})
	}
	return out
}

// joined puts the options of a mount and of its file system together, each once.
func joined(a, b string) string {
	var out []string
	for o := range strings.SplitSeq(a+","+b, ",") {
		if !slices.Contains(out, o) {
			out = append(out, o)
		}
	}
	return strings.Join(out, ",")
}

// kept reports whether a mount is one that the report has: from a block device or from the
// network.
func (m mount) kept() bool {
	switch {
	case m.kind == "squashfs" || m.kind == "iso9660" || m.kind == "overlay" || m.kind == "autofs":
		return false
	case m.network() || m.kind == "zfs" || m.kind == "btrfs":
		return true
	}
	return strings.HasPrefix(m.source, "/dev/") && !strings.HasPrefix(m.number, "0:")
}

func (s *scene) filesystems(mounts []mount) []report.Filesystem {
	var out []report.Filesystem
	first := map[string]bool{}
	// The whole of a file system before parts of it that are mounted elsewhere.
	slices.SortStableFunc(mounts, func(a, b mount) int {
		switch {
		case a.root == "/" && b.root != "/":
			return -1
		case b.root == "/" && a.root != "/":
			return 1
		}
		return 0
	})
	for _, m := range mounts {
		key := m.number
		if m.kind == "btrfs" || m.network() {
			key = m.source + " " + m.root
		}
		if !m.kept() || first[key] {
			continue
		}
		first[key] = true
		f := report.Filesystem{Source: s.source(m), Type: m.kind, Mount: m.at, Options: maskOptions(m.options)}
		f.UUID = s.tree.udev(s.devno(f.Source))["ID_FS_UUID"]
		st, err := within(s.ctx, statLimit, func(context.Context) (unix.Statfs_t, error) { return s.tree.statfs(m.at) })
		if err != nil {
			s.miss("filesystems."+m.at, "%s", cause(err))
		} else {
			unit := uint64(max(st.Bsize, 0)) //nolint:gosec // not negative
			f.SizeBytes, f.UsedBytes = st.Blocks*unit, (st.Blocks-min(st.Blocks, st.Bfree))*unit
			f.Inodes, f.FreeInodes = st.Files, st.Ffree
		}
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b report.Filesystem) int { return strings.Compare(a.Mount, b.Mount) })
	return out
}

// source is what a file system lies on, as the kernel calls it.
func (s *scene) source(m mount) string {
	if !strings.HasPrefix(m.source, "/dev/") {
		return maskLine(m.source)
	}
	if real := s.tree.base(path.Join("sys/dev/block", m.number)); real != "" {
		return real
	}
	if real := s.tree.base(m.source); real != "" {
		return real
	}
	return strings.TrimPrefix(m.source, "/dev/")
}

// placeFilesystems notes where mounted file systems lie, and from which disk the machine
// started, as far as that tells.
func placeFilesystems(r *report.Report) {
	content := map[string]string{}
	for _, f := range r.Filesystems {
		content[f.Source] = f.Type
	}
	for d := range r.Disks {
		if r.Disks[d].Content == "" && r.Disks[d].Table == "" {
			r.Disks[d].Content = content[r.Disks[d].Name]
		}
		for p := range r.Disks[d].Partitions {
			part := &r.Disks[d].Partitions[p]
			if part.Content == "" {
				part.Content = content[part.Name]
			}
		}
	}
	for _, at := range []string{"/boot/efi", "/efi", "/boot", "/"} {
		i := slices.IndexFunc(r.Filesystems, func(f report.Filesystem) bool { return f.Mount == at })
		if i < 0 {
			continue
		}
		for d := range r.Disks {
			r.Disks[d].Boots = liesOn(r, r.Filesystems[i].Source, r.Disks[d], 0)
		}
		return
	}
}

func liesOn(r *report.Report, source string, d report.Disk, deep int) bool {
	if source == d.Name || slices.ContainsFunc(d.Partitions, func(p report.Partition) bool { return p.Name == source }) {
		return true
	}
	const deepest = 8 // a file system on LVM on LUKS on md on multipath has five
	for _, v := range r.Volumes {
		if v.Name == source && deep < deepest && slices.ContainsFunc(v.On, func(on string) bool { return liesOn(r, on, d, deep+1) }) {
			return true
		}
	}
	return false
}
