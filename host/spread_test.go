package host_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/internal/sim"
	"gpuvirt/operation"
)

const shared12 = "DC-1-12QGFX" // two on each of four instances

// newSpreadLab has a card whose vGPUs can share instances, and whose driver takes the
// emptiest or the first of those with room.
func newSpreadLab(t *testing.T, emptiest bool) *lab {
	t.Helper()
	l := newInstanceLab(t, sim.RTXPro6000(string(hopper), 0), 48)
	if err := l.sim.Change(string(hopper), func(c *sim.Card) { c.VGPU.Emptiest = emptiest }); err != nil {
		t.Fatal(err)
	}
	addVMs(t, l, 8)
	return l
}

// on are how many vGPUs stand on each instance, the most first.
func (l *lab) on(id gpu.ID) (out []int) {
	l.t.Helper()
	ps, err := l.Partitions(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	n := map[string]int{}
	for _, p := range ps {
		if p.GPU == id && p.Kind == gpu.KindMIG {
			n[p.Instance] += 0
		} else if p.GPU == id {
			n[p.Instance]++
		}
	}
	for _, k := range n {
		out = append(out, k)
	}
	slices.Sort(out)
	slices.Reverse(out)
	return out
}

func (l *lab) placementOn(id gpu.ID, p gpu.Placement) {
	l.t.Helper()
	g, _, err := l.PatchGPU(l.t.Context(), "test", id, gpu.GPUPatch{Placement: &p}, false)
	if err != nil || g.Placement != p {
		l.t.Fatalf("%+v, %v", g, err)
	}
}

// vGPUs that share instances fill one after the other when they are packed, and have each
// their own as long as that fits when they are spread (T35). Who says so is the wish, else the
// GPU, else the host.
func TestPackAndSpreadOnInstances_T35(t *testing.T) {
	packed := [][]int{{1}, {2}, {2, 1}, {2, 2}, {2, 2, 1}}
	spread := [][]int{{1}, {1, 1}, {1, 1, 1}, {1, 1, 1, 1}, {2, 1, 1, 1}}
	for name, tc := range map[string]struct {
		host, gpu, wish gpu.Placement
		want            [][]int
	}{
		"nobody says":  {want: packed},
		"the host":     {host: gpu.Spread, want: spread},
		"the gpu":      {gpu: gpu.Spread, want: spread},
		"gpu and host": {host: gpu.Spread, gpu: gpu.Pack, want: packed},
		"the wish":     {gpu: gpu.Pack, wish: gpu.Spread, want: spread},
		"against it":   {host: gpu.Spread, gpu: gpu.Spread, wish: gpu.Pack, want: packed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newSpreadLab(t, true)
			if tc.host != "" {
				l.SetPlacement(tc.host)
			}
			if tc.gpu != "" {
				l.placementOn(hopper, tc.gpu)
			}
			for i, want := range tc.want {
				vm := "vm" + string(rune('1'+i))
				w := gpu.Wish{VM: vm, Profile: shared12, Placement: tc.wish}
				plan, err := l.PlanAssignment(t.Context(), vm, w)
				before := len(l.on(hopper))
				l.attach(vm, w)
				if got := l.on(hopper); err != nil || !slices.Equal(got, want) || len(plan.Steps) != 2+len(got)-before {
					t.Errorf("%d: %v, planned %+v", i, got, plan.Steps)
				}
			}
			for i := range tc.want {
				l.detach("vm" + string(rune('1'+i)))
			}
			if got := show(l.layout(hopper)); got != "" {
				t.Errorf("left: %s", got)
			}
		})
	}
}

// A batch spreads as well; where one is there with nothing on it that is used first.
func TestSpreadBatch_T35(t *testing.T) {
	l := newSpreadLab(t, true)
	l.placementOn(hopper, gpu.Spread)
	l.mustLay(hopper, "1g.24gb+gfx")
	if op := l.apply("a=vm1:"+shared12, "b=vm2:"+shared12, "c=vm3:"+shared12); op.Status != operation.Done || len(op.Steps) != 8 {
		t.Fatalf("%+v, %+v", op, op.Problem)
	}
	if got := l.on(hopper); !slices.Equal(got, []int{1, 1, 1}) {
		t.Errorf("%v", got)
	}
	// One more instance for two, and one more on each of the three (T35).
	if c, err := l.Capacity(t.Context(), shared12); err != nil || c[0].Available != 5 {
		t.Errorf("%+v, %v", c, err)
	}
	if op := l.apply("d=vm4:"+shared12, "e=vm5:"+shared12, "f=vm6:"+shared12, "g=vm7:"+shared12, "h=vm8:"+shared12); op.Status != operation.Done {
		t.Fatalf("%+v", op.Problem)
	}
	if got := l.on(hopper); !slices.Equal(got, []int{2, 2, 2, 2}) {
		t.Errorf("%v", got)
	}
}

// Where the driver takes the first instance with room and not the new one, at most one is
// there for nothing, and all go with their vGPUs.
func TestSpreadAgainstTheDriver(t *testing.T) {
	l := newSpreadLab(t, false)
	l.placementOn(hopper, gpu.Spread)
	for i, want := range [][]int{{1}, {2, 0}, {2, 1}, {2, 2, 0}} {
		vm := "vm" + string(rune('1'+i))
		l.attach(vm, gpu.Wish{VM: vm, Profile: shared12})
		if got := l.on(hopper); !slices.Equal(got, want) {
			t.Errorf("%d: %v", i, got)
		}
	}
	for _, vm := range []string{"vm4", "vm2", "vm1", "vm3"} {
		l.detach(vm)
	}
	if got := show(l.layout(hopper)); got != "" {
		t.Errorf("left: %s", got)
	}
}

// The placement of a GPU is kept, and what it is already is not written.
func TestPlacementOfGPU(t *testing.T) {
	l := newSpreadLab(t, true)
	l.placementOn(hopper, gpu.Spread)
	l.restart()
	if g, err := l.GPU(t.Context(), hopper); err != nil || g.Placement != gpu.Spread {
		t.Errorf("%+v, %v", g, err)
	}
	p := gpu.Spread
	if _, plan, err := l.PatchGPU(t.Context(), "test", hopper, gpu.GPUPatch{Placement: &p}, true); err != nil || plan.Changes {
		t.Errorf("%+v, %v", plan, err)
	}
	p = ""
	_, plan, err := l.PatchGPU(t.Context(), "test", hopper, gpu.GPUPatch{Placement: &p}, true)
	if err != nil || !plan.Changes || !strings.HasSuffix(plan.Steps[0].Summary, "to that of the host") {
		t.Errorf("%+v, %v", plan, err)
	}
	l.placementOn(hopper, "")
}

// At boot all instances are there before the first vGPU, and the driver chooses: whichever it
// takes, none of one size takes the instance that one of another needs.
func TestSizesOnInstancesAfterReboot_T10(t *testing.T) {
	for _, emptiest := range []bool{true, false} {
		l := newSpreadLab(t, emptiest)
		for i, profile := range []string{shared12, shared12, "DC-1-8QGFX", "DC-1-8QGFX"} {
			vm := "vm" + string(rune('1'+i))
			l.attach(vm, gpu.Wish{VM: vm, Profile: profile})
		}
		want := l.on(hopper)
		if err := l.sim.Reboot(); err != nil {
			t.Fatal(err)
		}
		if done, err := l.restore(10 * time.Second); err != nil || len(done) != 6 {
			t.Errorf("emptiest %t: %+v, %v", emptiest, done, err)
		}
		if got := l.on(hopper); !slices.Equal(got, want) || len(want) != 2 {
			t.Errorf("emptiest %t: %v, were %v", emptiest, got, want)
		}
	}
}
