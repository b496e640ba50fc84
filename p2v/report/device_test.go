package report

import "testing"

func TestKernelName(t *testing.T) {
	for device, want := range map[string]bool{
		"/dev/sda3": true, "/dev/nvme0n1p3": true, "/dev/vdb": true, "/dev/cciss/c0d0p1": true, "/dev/disk/by-path/pci-0000:00:1f.2-ata-1": true,
		"/dev/disk/by-id/nvme-SAMSUNG_1234-part3": true, "/dev/disk/by-id/wwn-0x5000": true,
		"UUID=aaaa": false, "PARTUUID=x": false, "LABEL=/dev/sda": false, "/dev/mapper/vg0-root": false, "/dev/vg0/root": false, "/dev/md0": false,
		"/dev/disk/by-uuid/aaaa": false, "/dev/disk/by-id/dm-name-vg0-root": false, "/dev/disk/by-id/md-uuid-x": false, "/dev/disk/by-id/lvm-pv-uuid-x": false, "": false, "nas:/x": false,
	} {
		if got := KernelName(device); got != want {
			t.Errorf("%s: %t", device, got)
		}
	}
}
