package p2v

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/p2v/assess"
	"gpuvirt/p2v/move"
	"gpuvirt/p2v/report"
)

// A disk of a move is found by what it says of itself, whatever it is called now; where that is not
// enough nobody guesses.
func TestNamesOf(t *testing.T) {
	const size, other = 100, 200
	disk := func(name, id string) move.Disk { return move.Disk{Name: name, ID: id, Size: size} }
	here := func(name, id string) report.Here { return report.Here{Name: name, ID: id, SizeBytes: size} }
	sda, sdb := "name:sda:100", "name:sdb:100"
	for name, c := range map[string]struct {
		disks []move.Disk
		now   []report.Here
		up    uint64 // seconds; 0: an hour
		same  bool   // it was not started since
		want  map[string]string
		code  gpu.Code
		says  string
	}{
		"as they were": {
			disks: []move.Disk{disk("sda", "wwn:a"), disk("sdb", "wwn:b")}, now: []report.Here{here("sda", "wwn:a"), here("sdb", "wwn:b")},
			want: map[string]string{"sda": "sda", "sdb": "sdb"},
		},
		"swapped": {
			disks: []move.Disk{disk("sda", "wwn:a"), disk("sdb", "serial:m:b")}, now: []report.Here{here("sda", "serial:m:b"), here("sdb", "wwn:a")},
			want: map[string]string{"sda": "sdb", "sdb": "sda"},
		},
		"one of several":          {disks: []move.Disk{disk("sda", "wwn:a")}, now: []report.Here{here("sda", "wwn:b"), here("sdc", "wwn:a")}, want: map[string]string{"sda": "sdc"}},
		"two ways":                {disks: []move.Disk{disk("sda", "wwn:a")}, now: []report.Here{here("sdc", "wwn:a"), here("sdd", "wwn:a")}, want: map[string]string{"sda": "sdc"}},
		"two ways, both moved":    {disks: []move.Disk{disk("sda", "wwn:a"), disk("sdb", "wwn:a")}, now: []report.Here{here("sdb", "wwn:a"), here("sdc", "wwn:a")}, want: map[string]string{"sda": "sdc", "sdb": "sdb"}},
		"two ways, one is left":   {disks: []move.Disk{disk("sda", "wwn:a"), disk("sdb", "wwn:a")}, now: []report.Here{here("sdb", "wwn:a")}, code: gpu.CodeConflict, says: `sda "wwn:a" is not on the source`},
		"gone":                    {disks: []move.Disk{disk("sda", "wwn:a")}, now: []report.Here{here("sda", "wwn:b")}, code: gpu.CodeConflict, says: `which has sda "wwn:b"`},
		"all are gone":            {disks: []move.Disk{disk("sda", "wwn:a")}, code: gpu.CodeConflict, says: "which has none"},
		"not there yet":           {disks: []move.Disk{disk("sda", "wwn:a")}, now: []report.Here{here("sda", "wwn:b")}, up: 20, code: gpu.CodeUnavailable, says: "may have it yet"},
		"a name that is none":     {disks: []move.Disk{disk("sda", "wwn:a")}, now: []report.Here{here("sda;reboot", "wwn:a")}, code: gpu.CodeConflict, says: "is not on the source"},
		"serial twice":            {disks: []move.Disk{disk("sda", "serial:m:a")}, now: []report.Here{here("sda", "serial:m:a"), here("sdb", "serial:m:a")}, code: gpu.CodeConflict, says: "nothing but the name tells sda and sdb apart"},
		"serial twice, same boot": {disks: []move.Disk{disk("sda", "serial:m:a")}, now: []report.Here{here("sda", "serial:m:a"), here("sdb", "serial:m:a")}, same: true, want: map[string]string{"sda": "sda"}},
		"serial twice, other names": {
			disks: []move.Disk{disk("sda", "serial:m:a")}, now: []report.Here{here("sdb", "serial:m:a"), here("sdc", "serial:m:a")}, same: true, code: gpu.CodeConflict, says: "nothing but the name",
		},
		"anonymous":       {disks: []move.Disk{disk("sda", sda)}, now: []report.Here{here("sda", sda), here("sdb", "wwn:b")}, want: map[string]string{"sda": "sda"}},
		"anonymous twins": {disks: []move.Disk{disk("sda", sda), disk("sdb", sdb)}, now: []report.Here{here("sda", sda), here("sdb", sdb)}, code: gpu.CodeConflict, says: "nothing but the name tells sda and sdb apart"},
		"a twin stays":    {disks: []move.Disk{disk("sda", sda)}, now: []report.Here{here("sda", sda), here("sdb", sdb)}, code: gpu.CodeConflict, says: "assessed again"},
		"a twin is gone": {
			disks: []move.Disk{{Name: "sda", ID: sda, Size: size, Twins: 1}}, now: []report.Here{here("sda", sda)}, code: gpu.CodeConflict, says: "nothing but the name told it from 1 others",
		},
		"a twin is gone, same boot": {disks: []move.Disk{{Name: "sda", ID: sda, Size: size, Twins: 1}}, now: []report.Here{here("sda", sda)}, same: true, want: map[string]string{"sda": "sda"}},
		"a WWN of two sizes": {
			disks: []move.Disk{disk("sda", "wwn:a")}, now: []report.Here{{Name: "sda", ID: "wwn:a", SizeBytes: other}, here("sdb", "wwn:a")}, want: map[string]string{"sda": "sdb"},
		},
		"serial of two sizes": {
			disks: []move.Disk{disk("sda", "serial:m:a")}, now: []report.Here{{Name: "sda", ID: "serial:m:a", SizeBytes: other}, here("sdb", "serial:m:a")}, want: map[string]string{"sda": "sdb"},
		},
		"it has grown":         {disks: []move.Disk{disk("sda", "wwn:a")}, now: []report.Here{{Name: "sda", ID: "wwn:a", SizeBytes: other}}, want: map[string]string{"sda": "sda"}},
		"twins, same boot":     {disks: []move.Disk{disk("sda", sda)}, now: []report.Here{here("sda", sda), here("sdb", sdb)}, same: true, want: map[string]string{"sda": "sda"}},
		"anonymous, two sizes": {disks: []move.Disk{disk("sda", sda)}, now: []report.Here{here("sda", sda), {Name: "sdb", ID: "name:sdb:200", SizeBytes: other}}, want: map[string]string{"sda": "sda"}},
		"anonymous, exchanged": {
			disks: []move.Disk{disk("sda", sda)}, now: []report.Here{{Name: "sda", ID: "name:sda:200", SizeBytes: other}, here("sdb", sdb)}, code: gpu.CodeConflict, says: `sda "name:sda:100" is not on the source`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			now := report.Present{Version: report.Version, BootID: "now", Up: 3600, Disks: c.now}
			if c.up > 0 {
				now.Up = c.up
			}
			seen := "before"
			if c.same {
				seen = "now"
			}
			got, err := namesOf(c.disks, now, seen)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
			if (c.says == "") != (err == nil) || err != nil && (gpu.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("%v", err)
			}
		})
	}
	// Of a move that a version before has begun nobody knows since when its disks are called so.
	if _, err := namesOf([]move.Disk{disk("sda", sda)}, report.Present{BootID: "now", Disks: []report.Here{here("sda", sda), here("sdb", sdb)}}, ""); err != nil {
		t.Error(err)
	}
}

// How many others of a server are only told from a disk by their names is known when its move begins.
func TestTwins(t *testing.T) {
	r := report.Report{Disks: []report.Disk{
		{Name: "sda", SizeBytes: 100},
		{Name: "sdb", SizeBytes: 100},
		{Name: "sdc", SizeBytes: 200},
		{Name: "sdd", SizeBytes: 100, Model: "m", Serial: "1"},
		{Name: "sde", SizeBytes: 300, Model: "m", Serial: "1"},
		{Name: "sdf", SizeBytes: 100, WWN: "a"},
		{Name: "sdg", SizeBytes: 100, WWN: "a"},
	}}
	disks, err := disksOf(r, assess.Wish{Disks: []string{"sda", "sdb", "sdc", "sdd", "sde", "sdf", "sdg"}})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, d := range disks {
		got[d.Name] = d.Twins
	}
	if diff := cmp.Diff(map[string]int{"sda": 1, "sdb": 1, "sdc": 0, "sdd": 0, "sde": 0, "sdf": 0, "sdg": 0}, got); diff != "" {
		t.Error(diff)
	}
}
