package freeze

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWritten(t *testing.T) {
	for name, c := range map[string]struct {
		before, after func(root string)
		want          []Written
	}{
		"nothing": {nil, nil, nil},
		"a partition": {nil, func(root string) {
			counted(t, root, "sda", 8, 0)
			counted(t, root, "sda2", 8, 0)
			counted(t, root, "sdb1", 100, 0)
		}, []Written{{"sda2", 4096}}},
		"beside all partitions": {nil, func(root string) { counted(t, root, "sda", 8, 0) }, []Written{{"sda", 4096}}},
		"discarded":             {nil, func(root string) { counted(t, root, "sda1", 0, 2) }, []Written{{"sda1", 1024}}},
		"two, in order": {func(root string) { device(t, root, "8:10", "sda/sda10") }, func(root string) {
			counted(t, root, "sda2", 1, 0)
			counted(t, root, "sda10", 1, 0)
		}, []Written{{"sda2", 512}, {"sda10", 512}}},
		// dm-2 is swap on sda3, on which is more.
		"swap": {nil, func(root string) {
			counted(t, root, "sda", 80, 0)
			counted(t, root, "sda3", 80, 0)
			counted(t, root, "dm-0", 80, 0)
			counted(t, root, "dm-2", 80, 0)
		}, nil},
		"swap and more": {nil, func(root string) {
			counted(t, root, "sda", 81, 0)
			counted(t, root, "sda3", 81, 0)
			counted(t, root, "dm-2", 80, 0)
		}, []Written{{"sda3", 512}}},
		"a partition of swap": {func(root string) {
			write(t, root, "proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n")
		}, func(root string) {
			counted(t, root, "sda", 80, 0)
			counted(t, root, "sda2", 80, 0)
		}, nil},
		"no swap any more": {func(root string) {
			write(t, root, "proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n")
		}, func(root string) {
			write(t, root, "proc/swaps", "Filename Type Size Used Priority\n")
			counted(t, root, "sda2", 80, 0)
		}, []Written{{"sda2", 40960}}},
		"swap on RAID": {func(root string) {
			device(t, root, "9:0", "md0")
			upon(t, root, "md0", "sda2", "sdb1")
			write(t, root, "proc/swaps", "Filename Type Size Used Priority\n/dev/md0 partition 1 0 -2\n")
		}, func(root string) {
			counted(t, root, "sda2", 80, 0)
			counted(t, root, "md0", 80, 0)
		}, nil},
		// Which of two partitions took how much of it is not known: it is told.
		"swap upon two": {func(root string) {
			upon(t, root, "dm-0", "sda2")
			device(t, root, "253:3", "dm-3")
			upon(t, root, "dm-3", "sda2")
		}, func(root string) {
			counted(t, root, "sda3", 80, 0)
			counted(t, root, "dm-2", 80, 0)
		}, []Written{{"sda3", 40960}}},
	} {
		t.Run(name, func(t *testing.T) {
			root := aServer(t)
			if c.before != nil {
				c.before(root)
			}
			tree := treeOf(t, root)
			before, err := tree.count([]string{"sda"})
			if err != nil {
				t.Fatal(err)
			}
			if c.after != nil {
				c.after(root)
			}
			after, err := tree.count([]string{"sda"})
			if err != nil {
				t.Fatal(err)
			}
			got, err := after.since(before)
			if d := cmp.Diff(c.want, got); d != "" || err != nil {
				t.Error(err, d)
			}
		})
	}
}

// A disk of NVMe that could have several ways is counted by these, on older kernels.
func TestWrittenByWays(t *testing.T) {
	root := aServer(t)
	for number, at := range map[string]string{"259:0": "nvme1n1", "259:1": "nvme1n1/nvme1n1p1", "259:2": "nvme1n2", "0:0": "nvme1c3n1", "0:1": "nvme1c4n1", "0:2": "nvme1c3n2"} {
		device(t, root, number, at)
	}
	write(t, root, "sys/class/block/nvme1n1/queue/iostats", "0\n") // as those say of the disk
	tree := treeOf(t, root)
	before, err := tree.count([]string{"nvme1n1"})
	if err != nil {
		t.Fatal(err)
	}
	counted(t, root, "nvme1c3n1", 4, 0)
	counted(t, root, "nvme1c4n1", 4, 0)
	counted(t, root, "nvme1c3n2", 100, 0) // another disk's
	after, err := tree.count([]string{"nvme1n1"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := after.since(before)
	if d := cmp.Diff([]Written{{"nvme1n1", 4096}}, got); d != "" || err != nil {
		t.Error(err, d)
	}
	// A newer one counts with the disk, too; not twice.
	counted(t, root, "nvme1n1", 8, 0)
	counted(t, root, "nvme1n1p1", 8, 0)
	if after, err = tree.count([]string{"nvme1n1"}); err != nil {
		t.Fatal(err)
	}
	got, err = after.since(before)
	if d := cmp.Diff([]Written{{"nvme1n1p1", 4096}}, got); d != "" || err != nil {
		t.Error(err, d)
	}
	// One that counts with neither: what the disk says does not tell that it counts.
	write(t, root, "sys/class/block/nvme1n1/queue/iostats", "1\n")
	write(t, root, "sys/class/block/nvme1c4n1/queue/iostats", "0\n")
	if _, err := tree.count([]string{"nvme1n1"}); err == nil || !strings.Contains(err.Error(), "echo 1 >/sys/block/nvme1c4n1/queue/iostats") {
		t.Error(err)
	}
}

// What cannot be read is not nothing.
func TestNotCounted(t *testing.T) {
	for stat, want := range map[string]string{
		"":                                       "it has 0 counters",
		"1 2 3":                                  "it has 3 counters",
		"1 1 1 1 1 1 many 1 1 1":                 "invalid syntax",
		"1 1 1 1 1 1 -1 1 1 1":                   "invalid syntax",
		"1 1 1 1 1 1 18446744073709551615 1 1 1": "out of range",
	} {
		root := aServer(t)
		write(t, root, "sys/class/block/sda2/stat", stat)
		if _, err := treeOf(t, root).count([]string{"sda"}); err == nil || !strings.Contains(err.Error(), "cannot tell what is written to sda2: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", stat, err)
		}
	}
	root := aServer(t)
	counted(t, root, "sda2", 8, 0)
	tree := treeOf(t, root)
	before, err := tree.count([]string{"sda"})
	if err != nil {
		t.Fatal(err)
	}
	counted(t, root, "sda2", 7, 0)
	after, err := tree.count([]string{"sda"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := after.since(before); err == nil || !strings.Contains(err.Error(), "went backwards") {
		t.Error(err)
	}
	// Before Linux 4.18 there are eleven columns.
	write(t, root, "sys/class/block/sda2/stat", "1 0 8 0 1 0 8 0 0 0 0\n")
	if _, err := tree.count([]string{"sda"}); err != nil {
		t.Error(err)
	}
}
