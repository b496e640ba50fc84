package inspect

import (
	"cmp"
	"context"
	"path"
	"slices"
	"strconv"
	"strings"

	"gpuvirt/p2v/report"
)

const sector = 512 // what sysfs counts in, whatever the disk has

// udev returns what udev's database says of a device.
func (t *tree) udev(number string) map[string]string {
	out := map[string]string{}
	text, err := t.read("run/udev/data/b"+number, small)
	if err != nil || number == "" {
		return out
	}
	for line := range strings.Lines(text) {
		if entry, found := strings.CutPrefix(strings.TrimSpace(line), "E:"); found {
			key, value, _ := strings.Cut(entry, "=")
			out[key] = unhex(value)
		}
	}
	return out
}

// unhex undoes "\x20".
func unhex(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return strings.TrimSpace(b.String())
}

// Present tells which disks the server has now, and in which boot.
func (i *Inspector) Present() report.Present {
	up, _, _ := strings.Cut(i.tree.text("proc/uptime"), ".")
	p := report.Present{Version: report.Version, BootID: report.CleanString(i.tree.text(bootID)), Up: number(up), Disks: []report.Here{}}
	for _, d := range i.Disks() {
		p.Disks = append(p.Disks, report.Here{Name: d.Name, ID: d.Identity(), SizeBytes: d.SizeBytes})
	}
	return p
}

// noDisks are devices that hold nothing of their own, or are built of others.
var noDisks = []string{"loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd", "drbd", "bcache", "zd", "rbd"}

// Disks tells which disks the server has, as Inspect does, and nothing else.
func (i *Inspector) Disks() []report.Disk {
	r := report.Report{Disks: (&scene{Inspector: i, ctx: context.Background()}).disks()}
	r.Clean() // what an inspection would say of them, to the letter
	return r.Disks
}

func (s *scene) disks() []report.Disk {
	var out []report.Disk
	names, err := s.tree.list("sys/block")
	if err != nil {
		s.miss("disks", "%s", cause(err))
	}
	for _, name := range names {
		is := func(prefix string) bool { return strings.HasPrefix(name, prefix) }
		if slices.ContainsFunc(noDisks, is) {
			continue
		}
		dir := path.Join("sys/block", name)
		size := number(s.tree.text(dir+"/size")) * sector
		if size == 0 || s.tree.text(dir+"/hidden") == "1" { // an empty reader; one path of several
			continue
		}
		out = append(out, s.disk(name, dir, size))
	}
	return out
}

func (s *scene) disk(name, dir string, size uint64) report.Disk {
	devno := s.tree.text(dir + "/dev")
	db := s.tree.udev(devno)
	d := report.Disk{
		Name: name, SizeBytes: size, BlockBytes: uint32(min(number(s.tree.text(dir+"/queue/logical_block_size")), 1<<20)), //nolint:gosec // bounded
		Model:      cmp.Or(s.tree.text(dir+"/device/model"), db["ID_MODEL"]),
		Serial:     cmp.Or(s.tree.text(dir+"/device/serial"), s.tree.text(dir+"/serial"), db["ID_SERIAL_SHORT"]),
		WWN:        cmp.Or(s.tree.text(dir+"/wwid"), s.tree.text(dir+"/device/wwid"), db["ID_WWN"]),
		Transport:  s.transport(dir, db),
		Rotational: s.tree.text(dir+"/queue/rotational") == "1", ReadOnly: s.tree.text(dir+"/ro") == "1",
		Removable: s.tree.text(dir+"/removable") == "1", Table: tableOf(db["ID_PART_TABLE_TYPE"]),
	}
	for _, sub := range s.tree.names(dir) {
		at := path.Join(dir, sub)
		if n := number(s.tree.text(at + "/partition")); n > 0 {
			d.Partitions = append(d.Partitions, s.partition(sub, at, int(min(n, 1<<16)))) //nolint:gosec // bounded
		}
	}
	slices.SortFunc(d.Partitions, func(a, b report.Partition) int { return cmp.Compare(a.Number, b.Number) })
	if d.Table == "" && db["ID_FS_TYPE"] == "" {
		s.readTable(&d, devno) // a system without udev, or one that did not look
	}
	if d.Table == "" {
		d.Content = db["ID_FS_TYPE"]
	}
	return d
}

func tableOf(udev string) string {
	if udev == "dos" {
		return "mbr"
	}
	return udev
}

func (s *scene) partition(name, dir string, n int) report.Partition {
	db := s.tree.udev(s.tree.text(dir + "/dev"))
	p := report.Partition{
		Name: name, Number: n, StartBytes: number(s.tree.text(dir+"/start")) * sector, SizeBytes: number(s.tree.text(dir+"/size")) * sector,
		Type: db["ID_PART_ENTRY_TYPE"], UUID: db["ID_PART_ENTRY_UUID"], Content: db["ID_FS_TYPE"],
		Label: cmp.Or(db["ID_FS_LABEL_ENC"], db["ID_FS_LABEL"], db["ID_PART_ENTRY_NAME"]),
	}
	return p
}

// transport tells how a disk is reached, by where it hangs in the tree of devices.
func (s *scene) transport(dir string, db map[string]string) string {
	if strings.HasPrefix(path.Base(dir), "nvme") {
		switch t := s.tree.text(dir + "/device/transport"); t {
		case "", "pcie":
			return "nvme"
		default:
			return "nvme-" + t
		}
	}
	real := s.tree.real(dir) + "/"
	for _, known := range []struct{ part, name string }{
		{"/usb", "usb"}, {"/virtio", "virtio"}, {"/session", "iscsi"}, {"/rport-", "fc"}, {"/ata", "sata"}, {"/end_device-", "sas"}, {"/xen", "xen"},
	} {
		if strings.Contains(real, known.part) {
			return known.name
		}
	}
	return db["ID_BUS"]
}

func (s *scene) volumes() []report.Volume {
	var out []report.Volume
	for _, name := range s.tree.names("sys/block") {
		if !strings.HasPrefix(name, "dm-") && !strings.HasPrefix(name, "md") {
			continue
		}
		dir := path.Join("sys/block", name)
		v := report.Volume{
			Name: name, Label: s.tree.text(dir + "/dm/name"), Kind: "dm", SizeBytes: number(s.tree.text(dir+"/size")) * sector,
			On: s.tree.names(dir + "/slaves"),
		}
		uuid := s.tree.text(dir + "/dm/uuid")
		switch {
		case strings.HasPrefix(name, "md"):
			db := s.tree.udev(s.tree.text(dir + "/dev"))
			v.Kind, v.Level, v.Label = "md", s.tree.text(dir+"/md/level"), cmp.Or(db["MD_DEVNAME"], name)
		case strings.HasPrefix(uuid, "LVM-"):
			v.Kind = "lvm"
		case strings.HasPrefix(uuid, "CRYPT-"):
			v.Kind = "crypt"
			v.TPM = s.keyInTPM(v)
		case strings.HasPrefix(uuid, "mpath-"):
			v.Kind = "multipath"
		}
		if v.SizeBytes > 0 {
			out = append(out, v)
		}
	}
	return out
}

// number of a block device, by its name.
func (s *scene) devno(name string) string {
	return s.tree.text(path.Join("sys/class/block", name, "dev"))
}
