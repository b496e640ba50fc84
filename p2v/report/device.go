package report

import "strings"

// KernelName tells whether a device is named by the order or the place of this machine's disks, as
// "/dev/sda3" is and "UUID=…" and "/dev/mapper/vg0-root" are not. A copy of the disk elsewhere
// has another name.
func KernelName(device string) bool {
	for _, prefix := range []string{"/dev/disk/by-id/dm-", "/dev/disk/by-id/md-", "/dev/disk/by-id/lvm-"} {
		if strings.HasPrefix(device, prefix) {
			return false // of what is written on the disk
		}
	}
	for _, prefix := range []string{"/dev/sd", "/dev/hd", "/dev/vd", "/dev/xvd", "/dev/nvme", "/dev/mmcblk", "/dev/disk/by-path/", "/dev/disk/by-id/", "/dev/cciss/"} {
		if strings.HasPrefix(device, prefix) {
			return true
		}
	}
	return false
}
