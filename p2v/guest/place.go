package guest

import (
	"slices"
	"strings"

	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/report"
)

// place finds out what of the server the VM has: disks, and GPUs with their numbers.
func (m *maker) place() {
	m.moved = map[string]bool{}
	for _, d := range assess.Disks(m.Report, m.plan.Wish) {
		m.moved[d.Name] = true
		for _, p := range d.Partitions {
			m.moved[p.Name] = true
		}
	}
	// Volumes lie on others: as often as one more is found to be moved.
	for more := true; more; {
		more = false
		for _, v := range m.Volumes {
			if !m.moved[v.Name] && len(v.On) > 0 && !slices.ContainsFunc(v.On, func(on string) bool { return !m.moved[on] }) {
				m.moved[v.Name], more = true, true
			}
		}
	}
}

// there tells whether a file is at hand while the guest is edited: the guest's root is, and
// what its fstab mounts, as far as it is moved.
func (m *maker) there(file string) bool {
	mount := ""
	for _, f := range m.Filesystems {
		if len(f.Mount) > len(mount) && (f.Mount == "/" || strings.HasPrefix(file, f.Mount+"/")) {
			mount = f.Mount
		}
	}
	if mount == "" {
		return true // the inspection knows nothing of file systems
	}
	listed := func(r report.FstabRow) bool {
		return r.Mount == mount && !slices.Contains(strings.Split(r.Options, ","), "noauto")
	}
	if mount != "/" && !slices.ContainsFunc(m.Boot.Fstab, listed) {
		return false
	}
	return !slices.ContainsFunc(m.Filesystems, func(f report.Filesystem) bool { return f.Mount == mount && !m.moved[f.Source] })
}
