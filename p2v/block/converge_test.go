package block

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// world makes the passes of a source that changes at a rate, in bytes a second.
func world(n int, disk int64, scan time.Duration, copied, dirty float64) []Pass {
	var passes []Pass
	at, changed := time.Unix(0, 0), float64(disk)
	for range n {
		took := scan + time.Duration(changed/copied*float64(time.Second))
		passes = append(passes, Pass{Started: at, Duration: took, Bytes: disk, Written: int64(changed)})
		at = at.Add(took)
		changed = min(dirty*took.Seconds(), float64(disk))
	}
	return passes
}

func TestProject(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		name             string
		passes           []Pass
		fits, converges  bool
		least, most      time.Duration // of Final
		neverGetsShorter bool
	}{
		{name: "nothing known", least: -1, most: -1, neverGetsShorter: true},
		{
			name: "after the first pass", passes: world(1, 100*gib, 50*time.Second, gib, 0),
			least: 150 * time.Second, most: 150 * time.Second, neverGetsShorter: true,
		},
		{
			name: "a quiet source", passes: world(2, 100*gib, 20*time.Second, gib, gib/1000),
			fits: true, converges: true, least: 20 * time.Second, most: 21 * time.Second,
		},
		{
			// 120 s, then 20 + 36 s of which come from 120 s: a third pass is within it.
			name: "a busy source", passes: world(2, 100*gib, 20*time.Second, gib, .3*gib),
			converges: true, least: 35 * time.Second, most: 38 * time.Second,
		},
		{
			name: "the same, a pass later", passes: world(4, 100*gib, 20*time.Second, gib, .3*gib),
			fits: true, converges: true, least: 28 * time.Second, most: 30 * time.Second,
		},
		{
			name: "too slow a disk", passes: world(5, 100*gib, 60*time.Second, gib, 0),
			least: 60 * time.Second, most: 60 * time.Second,
		},
		{
			name: "more changes than can be moved", passes: world(5, 1000*gib, 20*time.Second, gib, 1.2*gib),
			least: 1020 * time.Second, most: 1020 * time.Second, neverGetsShorter: true,
		},
	} {
		f := Project(c.passes, 30*time.Second)
		if f.Fits != c.fits || f.Converges != c.converges || f.Final < c.least || f.Final > c.most || (f.Settled < 0) != c.neverGetsShorter {
			t.Errorf("%s: %+v", c.name, f)
		}
	}
}

// What is forecast is what comes, as long as the world stays as it is.
func TestProjectComesTrue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		scan := time.Duration(rapid.IntRange(1, 120).Draw(t, "scan")) * time.Second
		speed := rapid.Float64Range(1e6, 3e9).Draw(t, "speed")
		dirty := speed * rapid.Float64Range(0, .4).Draw(t, "dirty")
		passes := world(rapid.IntRange(3, 12).Draw(t, "n"), 1<<40, scan, speed, dirty)
		n := len(passes) - 1
		f, want := Project(passes[:n], time.Minute), passes[n].Duration
		if diff := (f.Final - want).Abs(); diff > want/50 {
			t.Errorf("forecast %v, came %v", f.Final, want)
		}
	})
}

func TestProjectTakesAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		passes := rapid.SliceOf(rapid.Custom(func(t *rapid.T) Pass {
			return Pass{
				Started:  time.Unix(rapid.Int64Range(0, 1000).Draw(t, "started"), 0),
				Duration: time.Duration(rapid.Int64Range(0, 1<<62).Draw(t, "duration")),
				Bytes:    rapid.Int64Range(0, 1<<62).Draw(t, "bytes"),
				Written:  rapid.Int64Range(0, 1<<62).Draw(t, "written"),
			}
		})).Draw(t, "passes")
		f := Project(passes, time.Minute)
		if f.Fits && (f.Final < 0 || f.Final > time.Minute) || f.Converges && f.Settled < 0 {
			t.Errorf("%+v", f)
		}
	})
}
