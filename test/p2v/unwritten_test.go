//go:build p2v

package p2v

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"gpuvirt/api"
	"gpuvirt/p2v/move"
)

// everyChange lists what is on the disks of a server with when the kernel has changed it last, its rights, owner and
// size: nobody sets that time, and whatever is done to a file or a folder but reading it does.
const everyChange = "findmnt -rno TARGET -t ext4,vfat,xfs | while read -r at; do find \"$at\" -xdev \\( -fstype ext4 -o -fstype vfat -o -fstype xfs \\) ! -path " + written +
	" -printf '%C@ %M %U:%G %s %p\\n'; done"

// own are the files that the server's own programs write at any time, and what ssh tells of who comes.
var own = regexp.MustCompile(`^(/var/log(/.*)?|/var/lib/(load|systemd)(/.*)?|/var/lib)$`)

// Nothing is written to a server that is assessed, copied, brought to rest and taken back: all that is on its disks
// is as it was, but for what its own programs write, and nothing else has come or gone.
func TestSourceIsNotWritten(t *testing.T) {
	m := begin(t, "bios")
	w := StartWriter(t, m.server)
	w.GoesOn(t)
	was := changesOf(m.on(everyChange))
	m.assess()
	m.start()
	m.GPUVirt(t, "migrate", "cutover", m.name, "--no-wait", "--unrehearsed", "a test")
	m.until("converting", func(at api.Migration) bool {
		a := at.Attempts[0]
		if a.Over() {
			t.Fatalf("it has ended: %+v\n%s", a, m.log())
		}
		return a.Phase == "converting"
	})
	m.GPUVirt(t, "migrate", "withdraw", m.name)
	if at := m.until("withdrawn", func(at api.Migration) bool { return at.Attempts[0].Over() }); at.Attempts[0].State != move.Withdrawn || at.Fence != "" {
		t.Errorf("it is %s: %+v", at.Phase, at.Attempts)
	}
	w.GoesOn(t)
	m.GPUVirt(t, "migrate", "rollback", m.name)
	if at := m.show(); at.Phase != string(move.PhaseRolledBack) {
		t.Errorf("it is %s: %s", at.Phase, at.Reason)
	}
	is := changesOf(m.on(everyChange))
	w.GoesOn(t)
	if len(was) < 3000 {
		t.Fatalf("%d things were on its disks: it is not looked at them", len(was))
	}
	var all []string
	for path := range was {
		all = append(all, path)
	}
	for path := range is {
		if _, there := was[path]; !there {
			all = append(all, path)
		}
	}
	slices.Sort(all)
	left := 0
	for _, path := range all {
		if was[path] == is[path] {
			left++
		} else if !own.MatchString(path) {
			t.Errorf("%s was %q, and is %q", path, was[path], is[path])
		}
	}
	t.Logf("%d things are as they were, of %d", left, len(all))
	if left := m.on("find /run /tmp /dev/shm -name '*[g]puvirt*' 2>/dev/null; pgrep -af '[g]puvirt'; true"); left != "" {
		t.Errorf("left there: %s", left)
	}
}

// changesOf are what everyChange has said, by path.
func changesOf(list string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(list) {
		said := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 5)
		if len(said) == 5 {
			out[said[4]] = strings.Join(said[:4], " ")
		}
	}
	return out
}
