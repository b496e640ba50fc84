package inspect

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/p2v/report"
)

// Of each volume of crypttab it is told what it lies on, whether that is a name that only this
// machine gives, and what it is called wherever the disk is. No key is.
func TestCrypttab(t *testing.T) {
	s := newServer(t)
	s.files(`
-- etc/crypttab --
# name device key options
root_crypt UUID=cccc none luks
 data	/dev/nvme0n1p3  /etc/keys/data.key luks,discard
swap /dev/sda2 /dev/urandom swap,cipher=aes-xts-plain64
path /dev/disk/by-path/pci-0000:01:00.0-nvme-1-part3 none luks
mapped /dev/vg0/secret none luks
stable /dev/disk/by-id/dm-name-vg0-x none luks
gone /dev/sdz9 none luks
odd /dev/sdz8 none luks,password=PLANTED-SECRET
short /dev/sda1
-- dev/disk/by-path/pci-0000:01:00.0-nvme-1-part3 -> ../../nvme0n1p3 --
-- sys/class/block/nvme0n1p3/dev --
259:3
-- run/udev/data/b259:3 --
E:ID_FS_TYPE=crypto_LUKS
E:ID_FS_UUID=0b8c7d52-1d9b-4a3c-9d7e-3f0f6a0d1c11
E:ID_PART_ENTRY_UUID=7f6e1f0a-0000-4000-8000-000000000003
-- sys/class/block/sda2/dev --
8:2
-- run/udev/data/b8:2 --
E:ID_FS_TYPE=swap
E:ID_FS_UUID=11111111-2222-3333-4444-555555555555
E:ID_PART_ENTRY_UUID=7f6e1f0a-0000-4000-8000-000000000002
`)
	sc := &scene{Inspector: s.inspector(nil), ctx: t.Context()}
	const luks, part = "UUID=0b8c7d52-1d9b-4a3c-9d7e-3f0f6a0d1c11", "PARTUUID=7f6e1f0a-0000-4000-8000-000000000002"
	b := sc.boot()
	if diff := cmp.Diff([]report.CryptRow{
		{Name: "root_crypt", Source: "UUID=cccc"},
		{Name: "data", Source: "/dev/nvme0n1p3", KernelName: true, Stable: luks, Line: " data\t/dev/nvme0n1p3  /etc/keys/data.key luks,discard"},
		{Name: "swap", Source: "/dev/sda2", KernelName: true, Stable: part, Line: "swap /dev/sda2 /dev/urandom swap,cipher=aes-xts-plain64"},
		{Name: "path", Source: "/dev/disk/by-path/pci-0000:01:00.0-nvme-1-part3", KernelName: true, Stable: luks, Line: "path /dev/disk/by-path/pci-0000:01:00.0-nvme-1-part3 none luks"},
		{Name: "mapped", Source: "/dev/vg0/secret"},
		{Name: "stable", Source: "/dev/disk/by-id/dm-name-vg0-x"},
		{Name: "gone", Source: "/dev/sdz9", KernelName: true, Line: "gone /dev/sdz9 none luks"},
		{Name: "odd", Source: "/dev/sdz8", KernelName: true},
		{Name: "short", Source: "/dev/sda1", KernelName: true, Line: "short /dev/sda1"},
	}, b.CryptRows); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"root_crypt", "data", "swap", "path", "mapped", "stable", "gone", "odd", "short"}, b.Crypttab); diff != "" {
		t.Error(diff)
	}
}
