package host_test

import (
	"slices"
	"testing"
	"time"

	"gpuvirt/gpu"
	"gpuvirt/operation"
)

// A driver that is late at boot is none that lacks mixed sizes or a scheduler: these are
// restored when it has come, and so is every vGPU (T05).
func TestSharingBehindALateDriver_T05(t *testing.T) {
	for name, tc := range map[string]struct {
		mdev bool
		want gpu.VGPUWish
	}{
		"mixed sizes": {want: mixedSize(true)}, "mixed sizes of mdevs": {mdev: true, want: mixedSize(true)},
		"scheduler": {want: scheduler(gpu.EqualShare, 0)}, "scheduler of mdevs": {mdev: true, want: scheduler(gpu.EqualShare, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newShareLab(t, tc.mdev)
			l.mustSet(l40s, tc.want)
			addVMs(t, l, 8)
			words := []string{"a=vm1:L40S-24Q"}
			if tc.want.MixedSize != nil {
				words = append(words, "b=vm2:L40S-2Q")
			}
			if op := l.apply(words...); op.Status != operation.Done {
				t.Fatalf("%+v", op.Problem)
			}
			want := l.vgpusOn(l40s)
			if err := l.sim.Reboot(); err != nil {
				t.Fatal(err)
			}
			if err := l.sim.SetLoaded("nvidia", false); err != nil {
				t.Fatal(err)
			}
			loaded := make(chan error)
			go func() {
				<-time.After(4500 * time.Millisecond)
				loaded <- l.sim.SetLoaded("nvidia", true)
			}()
			_, err := l.restore(8 * time.Second)
			if err := <-loaded; err != nil {
				t.Fatal(err)
			}
			if got := l.vgpusOn(l40s); err != nil || !slices.Equal(got, want) || l.degraded(l40s) != "" {
				t.Errorf("%q, %v, %q", got, err, l.degraded(l40s))
			}
		})
	}
}
