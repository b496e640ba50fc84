package freeze

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A count is what has been written to disks since the server started, in bytes.
type count struct {
	disks []diskCount
	swaps map[string]uint64 // of volumes that are swap
	// swap has the partitions and disks that are swap as a whole.
	swap map[string]bool
	// on has the partition, or disk, of each of these volumes that lies on only one.
	on map[string]string
}

type diskCount struct {
	name string
	// all is what was written to it anywhere, parts what to each of its partitions.
	all   uint64
	parts map[string]uint64
}

// count reads the counters.
func (t *tree) count(disks []string) (count, error) {
	c := count{swaps: map[string]uint64{}, swap: map[string]bool{}, on: map[string]string{}}
	// First of the whole, then of its parts: what is written meanwhile then never looks as if it
	// was written beside them.
	for _, disk := range disks {
		d := diskCount{name: disk, parts: map[string]uint64{}}
		var err error
		if d.all, err = t.written(disk); err != nil {
			return c, err
		}
		for _, p := range t.partitions(disk) {
			if d.parts[p], err = t.sectors(p); err != nil {
				return c, err
			}
		}
		c.disks = append(c.disks, d)
	}
	return c, t.countSwap(&c, disks)
}

// countSwap adds what is swap.
func (t *tree) countSwap(c *count, disks []string) error {
	swaps := t.swaps()
	for _, name := range swaps {
		leaves := t.leaves(name, disks)
		if len(leaves) != 1 || leaves[0] == name {
			continue
		}
		n, err := t.sectors(name)
		if err != nil {
			return err
		}
		c.swaps[name], c.on[name] = n, leaves[0]
	}
	for _, d := range c.disks {
		for p := range d.parts {
			c.swap[p] = t.onlySwap(p, swaps, 0)
		}
		c.swap[d.name] = t.onlySwap(d.name, swaps, 0)
	}
	return nil
}

// swaps returns the devices that are swap. A file that is swap is not one.
func (t *tree) swaps() []string {
	text, _ := t.text("proc/swaps") // a kernel without swap has none
	var out []string
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == "partition" {
			if name := t.named(f[0]); name != "" {
				out = append(out, name)
			}
		}
	}
	return out
}

// onlySwap tells whether a device is swap, or all that lies on it is.
func (t *tree) onlySwap(name string, swaps []string, deep int) bool {
	if slices.Contains(swaps, name) {
		return true
	}
	holders := t.names(sysBlock(name, "holders"))
	return len(holders) > 0 && deep < deepest && !slices.ContainsFunc(holders, func(h string) bool { return !t.onlySwap(h, swaps, deep+1) })
}

var nvmeHead = regexp.MustCompile(`^nvme([0-9]+)n([0-9]+)$`)

// written returns what was written to a disk, as it or its ways tell. Where it could have
// several ways, as those of NVMe can, Linux before 6.4 counts with them and never with the disk
// or its partitions, and says so of the disk.
func (t *tree) written(disk string) (uint64, error) {
	ways := t.ways(disk)
	counted := ways
	if len(ways) == 0 {
		counted = []string{disk}
	}
	for _, name := range counted {
		if on, _ := t.text(sysBlock(name, "queue/iostats")); on == "0" {
			return 0, fmt.Errorf("cannot tell what is written to %s: the kernel is told not to count it; echo 1 >/sys/block/%s/queue/iostats", disk, name)
		}
	}
	all, err := t.sectors(disk)
	if err != nil {
		return 0, err
	}
	var sum uint64
	for _, name := range ways {
		n, err := t.sectors(name)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return max(all, sum), nil
}

// ways returns those to a disk of NVMe, by name; none: the disk is its only one.
func (t *tree) ways(disk string) []string {
	m := nvmeHead.FindStringSubmatch(disk)
	if m == nil {
		return nil
	}
	way := regexp.MustCompile(`^nvme` + m[1] + `c[0-9]+n` + m[2] + `$`)
	return slices.DeleteFunc(t.names("sys/class/block"), func(name string) bool { return !way.MatchString(name) })
}

// sectors returns the bytes that were written to a device or discarded from it.
func (t *tree) sectors(name string) (uint64, error) {
	text, err := t.text(sysBlock(name, "stat"))
	if err != nil {
		return 0, fmt.Errorf("cannot tell what is written to %s: %w", name, err)
	}
	const written, discarded, size = 6, 13, 512
	f := strings.Fields(text)
	if len(f) <= written {
		return 0, fmt.Errorf("cannot tell what is written to %s: it has %d counters", name, len(f))
	}
	f = append(f, make([]string, discarded)...) // before Linux 4.18 discards are not counted
	var sum uint64
	for _, column := range []int{written, discarded} {
		if f[column] == "" {
			continue
		}
		n, err := strconv.ParseUint(f[column], 10, 53)
		if err != nil {
			return 0, fmt.Errorf("cannot tell what is written to %s: %w", name, err)
		}
		sum += n * size
	}
	return sum, nil
}

// since tells what was written between two counts.
func (c count) since(before count) ([]Written, error) {
	var out []Written
	swapped := map[string]uint64{}
	for name, n := range c.swaps {
		if was, found := before.swaps[name]; found && n > was {
			swapped[c.on[name]] += n - was
		}
	}
	tell := func(name string, bytes uint64) {
		swap := c.swap[name] && before.swap[name]
		if bytes -= min(bytes, swapped[name]); bytes > 0 && !swap {
			out = append(out, Written{Device: name, Bytes: bytes})
		}
	}
	for i, d := range c.disks {
		was := before.disks[i]
		if d.all < was.all {
			return nil, fmt.Errorf("cannot tell what was written to %s: its counter went backwards", d.name)
		}
		beside := d.all - was.all
		for _, p := range slices.SortedFunc(maps.Keys(d.parts), byNumber) {
			if d.parts[p] < was.parts[p] {
				return nil, fmt.Errorf("cannot tell what was written to %s: its counter went backwards", p)
			}
			n := d.parts[p] - was.parts[p]
			beside -= min(beside, n)
			tell(p, n)
		}
		tell(d.name, beside)
	}
	return out, nil
}

// byNumber has sda2 before sda10.
func byNumber(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b)) }

// checkDisks refuses what is not the name of a disk of this server.
func (t *tree) checkDisks(disks []string) error {
	if len(disks) == 0 {
		return errors.New("cannot freeze: no disk is named")
	}
	for _, d := range disks {
		if d == "" || d != path.Base(d) || d == ".." || d == "." || t.exists(sysBlock(d, "partition")) || !t.exists(sysBlock(d, "stat")) {
			return fmt.Errorf("cannot freeze what lies on %q: this server has no such disk", d)
		}
	}
	return nil
}
