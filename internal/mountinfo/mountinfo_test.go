package mountinfo

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	got := Parse(`25 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw,errors=remount-ro
31 25 0:27 /@home /mnt/my\040disk rw,noatime shared:12 master:3 - btrfs /dev/mapper/vg-a\134b rw,subvol=/@home
no row at all
x 25 8:1 / /boot rw - ext4 /dev/sda1 rw
40 25 0:5 / /dev rw,nosuid - devtmpfs udev rw
41 25 8:1 / /cut rw - ext4
`)
	want := []Mount{
		{25, "8:2", "/", "/", "rw,relatime", "rw,errors=remount-ro", "ext4", "/dev/sda2"},
		{31, "0:27", "/@home", "/mnt/my disk", "rw,noatime", "rw,subvol=/@home", "btrfs", `/dev/mapper/vg-a\b`},
		{40, "0:5", "/", "/dev", "rw,nosuid", "rw", "devtmpfs", "udev"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{`a\040b`: "a b", `a\04`: `a\04`, `a\049`: `a\049`, `\134`: `\`, `a\x`: `a\x`, "": ""} {
		if got := Unescape(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
