package block

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// A limit of a tenth of the disk a second makes a pass of ten seconds, and one
// that is changed on the way counts from then on.
func TestLimitIsKept(t *testing.T) {
	const size = 64 * MinChunkSize
	for _, connections := range []int{1, 4} {
		for _, c := range []struct {
			name        string
			limit, then int64 // the second one after five seconds
			least, most time.Duration
		}{
			{"kept", size / 10, size / 10, 9900 * time.Millisecond, 10200 * time.Millisecond},
			{"raised", size / 10, size / 2, 5900 * time.Millisecond, 6200 * time.Millisecond},
			{"lowered", size / 10, size / 100, 54 * time.Second, 58 * time.Second},
			{"lifted", size / 10, 0, 5 * time.Second, 5100 * time.Millisecond},
			{"raised from next to nothing", 1, size, 5900 * time.Millisecond, 6200 * time.Millisecond},
		} {
			t.Run(fmt.Sprint(c.name, connections), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ctx, cancel := context.WithCancel(t.Context())
					s := newMemSource(t, ctx, size)
					defer s.wg.Wait()
					defer cancel()
					m := newMem(t, size)
					for i := range m.count() {
						s.fill(m.geometry, i, 1)
					}
					var limit Limit
					limit.Set(c.limit)
					change := time.AfterFunc(5*time.Second, func() { limit.Set(c.then) })
					defer change.Stop()
					p, err := Pull(ctx, m.Mirror, "sda", Options{Dial: s.dial, Connections: connections, Limit: &limit})
					if err != nil || p.Duration < c.least || p.Duration > c.most {
						t.Errorf("%v, %v", p.Duration, err)
					}
				})
			})
		}
	}
}

// Progress is told a few times a second, with a rate of late and what is left.
func TestProgress(t *testing.T) {
	const size = 64 * MinChunkSize
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := newMemSource(t, ctx, size)
		defer s.wg.Wait()
		defer cancel()
		m := newMem(t, size)
		for i := range m.count() {
			s.fill(m.geometry, i, 1)
		}
		var limit Limit
		limit.Set(size / 64)
		began := time.Now()
		var all []Progress
		_, err := Pull(ctx, m.Mirror, "sda", Options{Dial: s.dial, Connections: 1, Limit: &limit, Progress: func(p Progress) {
			if at := time.Since(began); at == 30*time.Second {
				limit.Set(size / 32)
			} else if at == 25*time.Second || at == 45*time.Second {
				all = append(all, p)
			}
			if p.Done == p.Total {
				all = append(all, p)
			}
		}})
		if err != nil || len(all) < 3 {
			t.Fatal(all, err)
		}
		want := []Progress{
			{Done: 24 * MinChunkSize, Total: size, Rate: MinChunkSize, Remaining: 40 * time.Second},
			{Done: 59 * MinChunkSize, Total: size, Rate: 2 * MinChunkSize, Remaining: 2500 * time.Millisecond},
			{Done: size, Total: size, Rate: 2 * MinChunkSize},
		}
		about := cmp.Options{
			cmpopts.IgnoreFields(Progress{}, "Sent"),
			cmpopts.EquateApprox(.1, 0), // a chunk more or less
			cmp.Comparer(func(a, b int64) bool { return max(a-b, b-a) <= MinChunkSize }),
			cmp.Comparer(func(a, b time.Duration) bool { return (a - b).Abs() <= time.Second }),
		}
		got := []Progress{all[0], all[1], all[len(all)-1]}
		if diff := cmp.Diff(want, got, about); diff != "" {
			t.Errorf("after 25 s, 45 s and all (-want +got):\n%s", diff)
		}
		if last := all[len(all)-1]; last.Sent < size || last.Sent > size+size/100 {
			t.Errorf("%d bytes sent of %d", last.Sent, size)
		}
	})
}

// A source that only answers "settled" for long is not given up.
func TestLongQuietPass(t *testing.T) {
	const size = 64 * MinChunkSize
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := newMemSource(t, ctx, size)
		defer s.wg.Wait()
		defer cancel()
		m := newMem(t, size)
		for i := range m.count() {
			s.fill(m.geometry, i, 1)
		}
		o := Options{Dial: s.dial, Connections: 1}
		if _, err := Pull(ctx, m.Mirror, "sda", o); err != nil {
			t.Fatal(err)
		}
		s.server.disks[0].reader = slow{s.memFile}
		p, err := Pull(ctx, m.Mirror, "sda", o)
		if err != nil || p.Duration < 10*time.Minute || s.dials != 2 {
			t.Errorf("%+v, %d connections, %v", p, s.dials, err)
		}
	})
}

// A slow disk takes a minute for a chunk.
type slow struct{ reader }

func (s slow) read(b *buffer, off int64, n int) ([]byte, error) {
	<-time.After(time.Minute)
	return s.reader.read(b, off, n)
}

// A bit that rots on the mirror's disk is found, told, and mended by a pass over
// what was told.
func TestVerify(t *testing.T) {
	const size = 200*MinChunkSize + 5
	disk := randomDisk(t, size, 9)
	s := serve(t, disk)
	dir := t.TempDir()
	m := mirrorOf(t, dir, disk, MinChunkSize)
	defer m.Close()
	o := Options{Dial: dialUnix(s.socket)}
	verify := func(only []Range) Verification {
		t.Helper()
		o.Only = only
		v, err := Verify(t.Context(), m, "sda", o)
		if err != nil {
			t.Fatal(err)
		}
		v.Started, v.Duration = time.Time{}, 0
		return v
	}
	if _, err := Pull(t.Context(), m, "sda", o); err != nil {
		t.Fatal(err)
	}
	got := []Verification{verify(nil)}
	for _, at := range []int64{70*MinChunkSize + 1, 71 * MinChunkSize, 130*MinChunkSize - 1, size - 1} {
		poke(t, filepath.Join(dir, "0.raw"), at, 0x77)
	}
	got = append(got, verify([]Range{{From: 0, N: 70}, {From: 200, N: 1}}), verify(nil))
	o.Only = got[2].Differ
	p, err := Pull(t.Context(), m, "sda", o)
	if err != nil || p.Changed != 4 {
		t.Errorf("%+v, %v", p, err)
	}
	got = append(got, verify(nil))
	want := []Verification{
		{Chunks: 201, Bytes: size},
		{Chunks: 71, Bytes: 70*MinChunkSize + 5, Differ: []Range{{From: 200, N: 1}}},
		{Chunks: 201, Bytes: size, Differ: []Range{{From: 70, N: 2}, {From: 129, N: 1}, {From: 200, N: 1}}},
		{Chunks: 201, Bytes: size},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	sameFiles(t, disk, filepath.Join(dir, "0.raw"))
}
