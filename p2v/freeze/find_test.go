package freeze

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func treeOf(t testing.TB, root string) *tree {
	t.Helper()
	r, err := os.OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return &tree{r}
}

func TestFind(t *testing.T) {
	for name, c := range map[string]struct {
		change func(root string)
		disks  []string
		want   []Filesystem
	}{
		"the other disk": {nil, []string{"sdb"}, []Filesystem{{"/data", "ext4", "/dev/sdb1", true}}},
		"both": {nil, []string{"sda", "sdb"}, []Filesystem{
			{"/img", "ext4", "/dev/loop0", true}, {"/boot/efi", "vfat", "/dev/sda1", false}, {"/data", "ext4", "/dev/sdb1", true}, {"/boot", "xfs", "/dev/sda2", true}, {"/", "ext4", "/dev/mapper/vg-root", true},
		}},
		// Its number is no device's, and it may lie on several of which only one is told.
		"btrfs": {func(root string) {
			write(t, root, "proc/self/mountinfo", "22 1 0:25 /@ / rw - btrfs /dev/sdb1 rw\n23 22 0:25 /@home /home rw - btrfs /dev/sdb1 rw\n24 22 0:26 /@ /other rw - btrfs /dev/sdb rw\n")
			write(t, root, "sys/fs/btrfs/features/x", "")
			write(t, root, "sys/fs/btrfs/0b21/devices/sdb1", "->../../../../class/block/sdb1")
			write(t, root, "sys/fs/btrfs/0b21/devices/dm-1", "->../../../../class/block/dm-1")
		}, []string{"sda"}, []Filesystem{{"/", "btrfs", "/dev/sdb1", true}}},
		"btrfs by a link": {func(root string) {
			write(t, root, "proc/self/mountinfo", "22 1 0:25 / / rw - btrfs /dev/vg/root rw\n23 22 0:26 / /b rw - btrfs /dev/mapper/vg-swap rw\n24 22 0:27 / /c rw - bcachefs /dev/sdb:/dev/sda2 rw\n")
		}, []string{"sda"}, []Filesystem{{"/c", "bcachefs", "/dev/sdb:/dev/sda2", true}, {"/b", "btrfs", "/dev/mapper/vg-swap", true}, {"/", "btrfs", "/dev/vg/root", true}}},
		// Unknown is not elsewhere.
		"no such device": {func(root string) {
			write(t, root, "proc/self/mountinfo", "22 1 0:25 / / rw - btrfs /dev/root rw\n23 22 99:1 / /x rw - ext4 /dev/gone rw\n24 22 0:40 / /tmp rw - tmpfs tmpfs rw\n25 22 0:41 / /tank rw - zfs tank rw\n")
		}, []string{"sda"}, []Filesystem{{"/x", "ext4", "/dev/gone", true}, {"/tank", "zfs", "tank", false}, {"/", "btrfs", "/dev/root", true}}},
		// Of a container that has a volume of its own, and the host's root as well.
		"a container": {func(root string) {
			write(t, root, "proc/7/ns/mnt", "->mnt:[1]")
			write(t, root, "proc/7/mountinfo", "1 1 8:2 / /never/asked rw - xfs /dev/sda2 rw\n")
			write(t, root, "proc/8/ns/mnt", "->mnt:[2]")
			write(t, root, "proc/8/mountinfo", "")
			write(t, root, "proc/9/ns/mnt", "->mnt:[2]")
			write(t, root, "proc/9/mountinfo", "90 1 0:60 / / rw - overlay overlay rw\n91 90 253:1 /etc/hosts /etc/hosts rw - ext4 /dev/mapper/vg-root rw\n92 90 8:3 / /vol rw - ext4 /dev/sda3 rw\n")
			write(t, root, "proc/self/mountinfo", "22 1 253:1 / / rw,relatime - ext4 /dev/mapper/vg-root rw\n")
		}, []string{"sda"}, []Filesystem{{"/proc/9/root/vol", "ext4", "/dev/sda3", true}, {"/", "ext4", "/dev/mapper/vg-root", true}}},
		"a circle": {func(root string) {
			upon(t, root, "dm-0", "dm-1")
		}, []string{"sdb"}, []Filesystem{{"/data", "ext4", "/dev/sdb1", true}}},
		"RAID": {func(root string) {
			device(t, root, "9:0", "md0")
			device(t, root, "259:0", "md0/md0p1")
			upon(t, root, "md0", "sda2", "sdb1")
			write(t, root, "proc/self/mountinfo", "22 1 259:0 / / rw - ext4 /dev/md0p1 rw\n")
		}, []string{"sdb"}, []Filesystem{{"/", "ext4", "/dev/md0p1", true}}},
	} {
		t.Run(name, func(t *testing.T) {
			root := aServer(t)
			if c.change != nil {
				c.change(root)
			}
			found, err := treeOf(t, root).find(c.disks)
			if err != nil {
				t.Fatal(err)
			}
			var got []Filesystem
			for _, f := range found {
				got = append(got, f.Filesystem)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// The places of a filesystem: the whole of it first, and its mount to tell it from others.
func TestPlaces(t *testing.T) {
	root := aServer(t)
	write(t, root, "proc/self/mountinfo", "31 1 8:2 /part /a/part rw - xfs /dev/sda2 rw\n32 1 8:2 / /b rw - xfs /dev/sda2 rw\n33 1 8:2 / /c rw - xfs /dev/sda2 rw\n")
	found, err := treeOf(t, root).find([]string{"sda"})
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	if d := cmp.Diff([]place{{"/b", 32}, {"/a/part", 31}, {"/c", 33}}, found[0].places, cmp.AllowUnexported(place{})); d != "" || found[0].Mount != "/b" {
		t.Error(d, found[0].Mount)
	}
}
