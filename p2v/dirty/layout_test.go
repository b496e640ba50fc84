package dirty

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestLayOut(t *testing.T) {
	const tib = 1 << 40
	l, err := layOut([]int64{16 * tib, 1<<30 + 1}, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if l.chunkShift != 20 || l.slots[0].chunks != 16<<20 || l.slots[1].chunks != 1025 {
		t.Errorf("%+v", l)
	}
	// The chunks, a quarter of them, and so on: a third more than the first level.
	if bytes := int(l.pages) * pageBytes; bytes < 21<<20 || bytes > 23<<20 {
		t.Errorf("the marks of 16 TiB in chunks of 1 MiB take %d bytes", bytes)
	}
	for _, c := range []struct {
		disks []int64
		chunk int64
		want  string
	}{
		{nil, 1 << 20, "0 disks"},
		{make([]int64, maxDisks+1), 1 << 20, "512 disks"},
		{[]int64{1}, 3 << 20, "power of two"},
		{[]int64{1}, 2048, "power of two"},
		{[]int64{1}, maxRequestBytes * 2, "power of two"},
		{[]int64{16 * tib}, 4096, "more than"},
	} {
		if _, err := layOut(c.disks, c.chunk); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%d disks of %d: %v", len(c.disks), c.chunk, err)
		}
	}
}

// The levels of all disks lie apart, and a level is aligned.
func TestLevelsLieApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOfN(rapid.Int64Range(1, 1<<36), 1, 5).Draw(t, "sizes")
		l, err := layOut(sizes, 1<<rapid.IntRange(16, 32).Draw(t, "chunk"))
		if err != nil {
			t.Fatal(err)
		}
		end := int64(pageBytes)
		for i, s := range l.slots {
			if s.flags < flagBytes || s.flags+flagBytes > pageBytes || i > 0 && s.flags < l.slots[i-1].flags+flagBytes {
				t.Fatalf("flags at %d", s.flags)
			}
			if len(s.base) > maxLevels {
				t.Fatalf("%d levels", len(s.base))
			}
			for level, base := range s.base {
				if int64(base) < end || base%8 != 0 {
					t.Fatalf("a level begins at %d, the one before ends at %d", base, end)
				}
				end = int64(base) + (s.chunks-1)>>(fanBits*level) + 1
			}
		}
		if end > int64(l.pages)*pageBytes {
			t.Fatalf("%d bytes in %d pages", end, l.pages)
		}
	})
}

// The longest request finds a level where eight marks are enough, wherever it begins.
func TestLevelsSuffice(t *testing.T) {
	for chunk := int64(minChunkBytes); chunk <= maxRequestBytes; chunk *= 2 {
		shift := fanBits * (levelsFor(chunk) - 1)
		if levelsFor(chunk) > maxLevels {
			t.Errorf("chunks of %d: %d levels", chunk, levelsFor(chunk))
		}
		for _, first := range []int64{0, 1, 1<<shift - 1} {
			last := first + maxRequestBytes/chunk
			if n := last>>shift - first>>shift + 1; n > maxRun {
				t.Errorf("chunks of %d: %d marks on level %d", chunk, n, levelsFor(chunk))
			}
		}
	}
}

func TestCollectClearsWhatItTells(t *testing.T) {
	const chunk = 1 << 20
	l, err := layOut([]int64{100 * chunk, 90*chunk + 1}, chunk)
	if err != nil {
		t.Fatal(err)
	}
	m := make(marks, int(l.pages)*pageBytes)
	second := l.slots[1]
	m[second.base[0]+3] = 1
	m[second.base[1]+2] = 1   // 8 to 11
	m[second.base[2]+5] = 1   // 80 to 95, of which the disk has 80 to 90
	m[l.slots[0].base[0]] = 1 // another disk's
	m[second.flags+uint32(reasonBeyond)] = 1
	m[uint32(reasonPath)] = 1

	c := NewChunks(90*chunk+1, chunk)
	m.collect(second, c)
	var got []int64
	for i := range c.Len() {
		if c.Has(i) {
			got = append(got, i)
		}
	}
	want := []int64{3, 8, 9, 10, 11, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 90}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	again := NewChunks(90*chunk+1, chunk)
	if m.collect(second, again); again.Count() != 0 {
		t.Errorf("%d chunks are told twice", again.Count())
	}
	other := NewChunks(100*chunk, chunk)
	if m.collect(l.slots[0], other); !other.Has(0) || other.Count() != 1 {
		t.Errorf("the other disk has %d chunks", other.Count())
	}
	if diff := cmp.Diff([]reason{reasonBeyond}, m.reasons(second.flags)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]reason{reasonPath}, m.reasons(0)); diff != "" {
		t.Error(diff)
	}
	if slices.Contains(m, 1) {
		t.Error("a mark is left")
	}
}

// What a Take costs by the size of the disk, where nothing was written.
func BenchmarkCollect16TiB(b *testing.B) {
	const size, chunk = 16 << 40, 1 << 20
	l, err := layOut([]int64{size}, chunk)
	if err != nil {
		b.Fatal(err)
	}
	m, c := make(marks, int(l.pages)*pageBytes), NewChunks(size, chunk)
	for b.Loop() {
		m.collect(l.slots[0], c)
	}
}
