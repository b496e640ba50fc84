package host_test

import (
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/mig"
	"gpuvirt/operation"
)

// A crash at any moment of a change leaves what was there before or what was asked
// for, once the daemon has run again; what stays is the very same, whoever made it, and
// the other card is never touched.
func TestCrashDuringLayout(t *testing.T) {
	for name, c := range map[string]struct {
		on          gpu.ID
		first, then string
		stays       []string // slots
		foreign     string   // slot of a 1g.5gb that somebody else has made beforehand
	}{
		"from nothing":      {hopper, "", "3g.40gb 1g.10gb 2g.20gb:1c,1c", nil, ""},
		"some stay":         {ampere, "2g.10gb@0 1g.5gb@2 3g.20gb@4", "1g.5gb@0 1g.5gb@2 3g.20gb@4:1c,2c", []string{"2"}, ""},
		"one is another's":  {ampere, "2g.10gb@0 1g.5gb@2 3g.20gb@4", "1g.5gb@0 1g.5gb@1 1g.5gb@2 1g.5gb@3 3g.20gb@4", []string{"2", "3", "4"}, "3"},
		"everything goes":   {ampere, "2g.10gb@0 3g.20gb@4", "7g.40gb", nil, ""},
		"to nothing at all": {ampere, "2g.10gb@0 3g.20gb@4", "-", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			l := newMIGLab(t)
			other := map[gpu.ID]gpu.ID{hopper: ampere, ampere: hopper}[c.on]
			l.mustLay(other, "3g."+map[gpu.ID]string{ampere: "20gb", hopper: "40gb"}[other])
			if c.first != "" {
				l.mustLay(c.on, c.first)
			}
			if c.foreign != "" {
				theirs := mig.NewBackend(l.sim.NVML, l.sim.Sysfs, mig.Options{})
				if _, err := theirs.Make(t.Context(), gpu.Partition{ID: mig.PartitionID(c.on, c.foreign), GPU: c.on, Profile: "1g.5gb", Slot: c.foreign}); err != nil {
					t.Fatal(err)
				}
			}
			before, beside, stayed := show(l.layout(c.on)), l.layout(other), l.identities(c.on, c.stays)
			if len(stayed) != len(c.stays) {
				t.Fatalf("%v stays", stayed)
			}
			var images []string
			l.sim.NVML.OnCall(func(sim.Call) { images = append(images, l.image()) })
			want := cut(c.then)
			if c.then == "-" {
				want = gpu.Layout{}
			}
			if op := l.lay(c.on, want); op.Status != operation.Done {
				t.Fatalf("%+v", op.Problem)
			}
			l.sim.NVML.OnCall(nil)
			after := show(l.layout(c.on))
			if len(images) < 4 {
				t.Fatalf("%d images", len(images))
			}
			for i, dir := range images {
				l := openLab(t, dir)
				l.settled()
				s := l.layout(c.on)
				if got := show(s); got != before && got != after || !s.Equal || s.Mode.Current != s.Mode.Pending {
					t.Errorf("image %d of %d: %q, want %q or %q: %+v", i, len(images), got, before, after, s)
				}
				if diff := cmp.Diff(beside, l.layout(other)); diff != "" {
					t.Errorf("image %d: the other card:\n%s", i, diff)
				}
				if diff := cmp.Diff(stayed, l.identities(c.on, c.stays)); diff != "" {
					t.Errorf("image %d: what stays:\n%s", i, diff)
				}
			}
		})
	}
}

// identities are the driver's ids and UUIDs of the instances in some slots.
func (l *lab) identities(id gpu.ID, slots []string) map[string][]string {
	l.t.Helper()
	out := map[string][]string{}
	for _, p := range l.layout(id).Partitions {
		if !slices.Contains(slots, p.Slot) {
			continue
		}
		out[p.Slot] = []string{p.Instance}
		for _, c := range p.Compute {
			out[p.Slot] = append(out[p.Slot], c.UUID)
		}
	}
	return out
}

// image is a copy of all that outlives a crash now.
func (l *lab) image() string {
	l.t.Helper()
	dir := l.t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(l.dir)); err != nil {
		l.t.Error(err)
	}
	return dir
}

// settled waits until no operation runs any more.
func (l *lab) settled() {
	l.t.Helper()
	ops, err := l.engine.List()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, op := range ops {
		if op, err = l.engine.Wait(l.t.Context(), op.ID); err != nil || op.Status == operation.Failed {
			l.t.Errorf("%+v, %v", op, err)
		}
	}
}
