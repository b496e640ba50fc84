package assess

import (
	"fmt"
	"slices"
	"strings"

	"gpuvirt/p2v/report"
)

// raidModels are parts of the names that hardware RAID controllers give their disks.
var raidModels = []string{"perc", "megaraid", "mr9", "logical volume", "smart array", "serveraid", "raid", "virtualdisk", "virtual disk", "msa p"}

// diskRules are about disks and volumes.
func diskRules() []rule {
	return []rule{
		{
			Rule{
				ID: "several-disks", Severity: Warning, Subject: "disk", Title: "The system lies on several disks",
				Why:    "They belong together: all are copied to one point in time, and the VM gets all in the same order.",
				Remedy: "Move all of them: where disks are named (--disk), name each.",
			},
			func(l *look) []hit {
				used := l.systemDisks()
				return when(len(used) > 1, "boot loader, file systems and swap are on "+quotes(used))
			},
		},
		{
			Rule{
				ID: "multipath", Severity: Warning, Subject: "disk", Title: "A disk is reached over several paths",
				Why:    "In the VM it is one virtual disk; multipath over it hides it from the boot.",
				Remedy: "Move one of its paths (--disk), and not the others; the plan turns multipathd off.",
			},
			func(l *look) []hit { return l.volumeHits("multipath") },
		},
		{
			Rule{
				ID: "san-disk", Severity: Warning, Subject: "disk", Title: "A disk comes from a storage network",
				Why:    "It needs no copy if the host can reach it, and it must never be written by both at once.",
				Remedy: "Copy it, or leave it out (--disk names the others) and give it to the VM after the cut-over (virsh attach-disk); unmap it from the source then.",
			},
			func(l *look) []hit {
				return each(l.Disks, func(d report.Disk) string {
					if d.Transport != "iscsi" && d.Transport != "fc" {
						return ""
					}
					return disk(d) + " by " + quote(d.Transport)
				})
			},
		},
		{
			Rule{
				ID: "hardware-raid", Severity: Info, Subject: "disk", Title: "A disk is made by a RAID controller",
				Why:    "Its monitoring programs find no controller in the VM.",
				Remedy: "Turn them off; the host has its own.",
			},
			func(l *look) []hit {
				return each(l.Disks, func(d report.Disk) string {
					model := strings.ToLower(d.Model)
					if !slices.ContainsFunc(raidModels, func(part string) bool { return strings.Contains(model, part) }) {
						return ""
					}
					return disk(d) + ", " + quote(d.Model)
				})
			},
		},
		{
			Rule{
				ID: "md-raid", Severity: Warning, Subject: "disk", Title: "Disks are joined by Linux' md",
				Why:    "Every member is copied, a mirror twice, and all have to be of one point in time, or the array starts degraded.",
				Remedy: "Copy all members; the plan turns the monitor off. A mirror can be taken apart in the VM later.",
			},
			func(l *look) []hit { return l.volumeHits("md") },
		},
		{
			Rule{
				ID: "zfs", Severity: Blocker, Subject: "disk", Title: "Data lies on ZFS",
				Why:    "virt-v2v cannot look into it: where the system is on it, nothing is converted.",
				Remedy: "For a system on ZFS, install anew and send the datasets. For data, export the pool before the last pass and waive this.",
			},
			func(l *look) []hit {
				return slices.Concat(l.typeHits("zfs"), l.contentHits("zfs_member"))
			},
		},
		{
			Rule{
				ID: "btrfs-devices", Severity: Warning, Subject: "disk", Title: "btrfs may span several devices",
				Why:    "One device of it alone does not mount; all have to be of one point in time.",
				Remedy: "Copy all of them together.",
			},
			func(l *look) []hit {
				hits := l.contentHits("btrfs")
				uuids := map[string]bool{}
				for _, f := range l.Filesystems {
					if f.Type == "btrfs" {
						uuids[f.UUID] = true
					}
				}
				if len(hits) <= max(1, len(uuids)) {
					return nil
				}
				return hits
			},
		},
		{
			Rule{
				ID: "removable-disk", Severity: Warning, Subject: "disk", Title: "A disk is removable or hangs on USB",
				Why:    "It is not copied unless it is asked for, and may be a licence's dongle or a backup.",
				Remedy: "Take it off before the move, or name it (--disk) beside all others that are moved.",
			},
			func(l *look) []hit {
				var out []hit
				system := l.systemDisks()
				for _, d := range l.Disks {
					if !d.Removable && d.Transport != "usb" {
						continue
					}
					h := hit{evidence: disk(d)}
					if !slices.Contains(system, d.Name) {
						h.severity = Info
					}
					out = append(out, h)
				}
				return out
			},
		},
		{
			Rule{
				ID: "read-only-disk", Severity: Info, Subject: "disk", Title: "A disk is read-only",
				Why:    "In the VM it can be written.",
				Remedy: "Find out why it is: a disk that fails goes read-only too.",
			},
			func(l *look) []hit {
				return each(l.Disks, func(d report.Disk) string {
					if !d.ReadOnly {
						return ""
					}
					return disk(d)
				})
			},
		},
		{
			Rule{
				ID: "large-sectors", Severity: Blocker, Subject: "disk", Title: "A disk has sectors that are not 512 bytes long",
				Why:    "Its partition table and file systems are only read with sectors of the same length, and the VM's disks have 512 bytes: what the system uses of it is not found there. Of a disk that it does not use this is a warning.",
				Remedy: "Leave a disk of data out (--disk names the others) and waive this, and copy its files in the VM. A system on such a disk is not found by the conversion: install it anew.",
			},
			func(l *look) []hit {
				var out []hit
				system := l.systemDisks()
				for _, d := range l.Disks {
					if d.BlockBytes == 0 || d.BlockBytes == 512 {
						continue
					}
					h := hit{evidence: fmt.Sprintf("%s: %d bytes", disk(d), d.BlockBytes)}
					if !slices.Contains(system, d.Name) {
						h.severity = Warning
					}
					out = append(out, h)
				}
				return out
			},
		},
		{
			Rule{
				ID: "network-storage", Severity: Warning, Subject: "disk", Title: "File systems are mounted over the network",
				Why:    "They are not copied. The VM has to reach the same servers, and be allowed there by its address.",
				Remedy: "See that the VM's network reaches them; a rehearsal on an isolated network does without.",
			},
			func(l *look) []hit {
				return each(l.Filesystems, func(f report.Filesystem) string {
					if !network(f) {
						return ""
					}
					return quote(f.Mount) + " from " + quote(f.Source)
				})
			},
		},
	}
}

func disk(d report.Disk) string { return "disk " + quote(d.Name) + " of " + size(d.SizeBytes) }

func (l *look) volumeHits(kind string) []hit {
	return each(l.Volumes, func(v report.Volume) string {
		if v.Kind != kind {
			return ""
		}
		out := "volume " + quote(v.Name)
		if v.Level != "" {
			out += " (" + quote(v.Level) + ")"
		}
		return out + " on " + quotes(v.On)
	})
}

func (l *look) typeHits(kind string) []hit {
	return each(l.Filesystems, func(f report.Filesystem) string {
		if f.Type != kind {
			return ""
		}
		return quote(f.Mount) + " is " + kind
	})
}

// contentHits are the disks and partitions that hold something.
func (l *look) contentHits(content string) []hit {
	var out []hit
	for _, d := range l.Disks {
		out = append(out, when(d.Content == content, "disk "+quote(d.Name)+" holds "+content)...)
		for _, p := range d.Partitions {
			out = append(out, when(p.Content == content, "partition "+quote(p.Name)+" holds "+content)...)
		}
	}
	return out
}

// systemDisks are the disks that the system starts from and lives on, in their order: those
// that boot, and those under mounted file systems and swap that fstab names.
func (l *look) systemDisks() []string {
	under, on := map[string]bool{}, map[string][]string{}
	for _, v := range l.Volumes {
		on[v.Name] = append(on[v.Name], v.On...)
		if v.Label != "" && v.Label != v.Name {
			on[v.Label] = append(on[v.Label], v.On...)
		}
	}
	var mark func(name string, depth int)
	mark = func(name string, depth int) {
		if under[name] || depth > 16 {
			return
		}
		under[name] = true
		for _, below := range on[name] {
			mark(below, depth+1)
		}
	}
	for _, f := range l.Filesystems {
		if !network(f) && !readOnlyType(f.Type) {
			mark(strings.TrimPrefix(strings.TrimPrefix(f.Source, "/dev/"), "mapper/"), 0)
		}
	}
	var swaps []string
	for _, row := range l.Boot.Fstab {
		if row.Type == "swap" {
			swaps = append(swaps, row.Spec)
		}
	}
	var out []string
	for _, d := range l.Disks {
		part := func(p report.Partition) bool {
			return under[p.Name] || slices.Contains(swaps, "/dev/"+p.Name) || p.UUID != "" && slices.Contains(swaps, "PARTUUID="+p.UUID)
		}
		if d.Boots || under[d.Name] || slices.ContainsFunc(d.Partitions, part) {
			out = append(out, d.Name)
		}
	}
	return out
}
