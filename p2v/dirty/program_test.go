package dirty

import (
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"
)

// A tried is the program with maps and a request of its own.
type tried struct {
	*machine
	f              fields
	l              layout
	marks          marks
	request, queue []byte
	disk           []byte
}

const (
	fdDisks = 100 + iota
	fdMarks
	fdNames
)

// try makes a kernel of one kind with disks of so many bytes, numbered 8:0, 8:16 and so on.
// With paths, "nvme0c1n1" leads to the first, and "nvme7n1" is known as another's.
func try(t failer, f fields, paths bool, chunkBytes int64, sizes ...int64) *tried {
	t.Helper()
	l, err := layOut(sizes, chunkBytes)
	if err != nil {
		t.Fatal(err)
	}
	maps := mapFDs{disks: fdDisks, marks: fdMarks, names: -1}
	if paths {
		maps.names = fdNames
	}
	k := &tried{
		machine: newMachine(t, program(f, l, maps)), f: f, l: l, marks: make(marks, int(l.pages)*pageBytes),
		request: make([]byte, 256), queue: make([]byte, 256), disk: make([]byte, 64),
	}
	store := k.add(k.marks)
	k.maps[fdMarks] = func(key uint64) uint64 {
		page := k.load(key, 4)
		if page >= uint64(l.pages) {
			return 0
		}
		return store + page*pageBytes
	}
	var slots []uint64
	for _, s := range append(l.slots, slot{}) {
		b, err := binary.Append(nil, binary.LittleEndian, s.value())
		if err != nil {
			t.Fatal(err)
		}
		slots = append(slots, k.add(b))
	}
	k.maps[fdDisks] = func(key uint64) uint64 {
		major, minor := k.load(key, 4), k.load(key+4, 4)
		if major != 8 || minor%16 != 0 || minor/16 >= uint64(len(sizes)) {
			return 0
		}
		return slots[minor/16]
	}
	k.maps[fdNames] = func(key uint64) uint64 {
		path, err1 := nameKey("nvme0c1n1")
		other, err2 := nameKey("nvme7n1")
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		switch [diskNameBytes]byte(k.at(key, diskNameBytes)) {
		case path:
			return slots[0]
		case other:
			return slots[len(sizes)]
		}
		return 0
	}
	disk := k.add(k.disk)
	if f.diskInRequest {
		put(k.request, f.rqDisk, disk)
	} else {
		put(k.request, f.rqQueue, k.add(k.queue))
		put(k.queue, f.queueDisk, disk)
	}
	k.number(8, 0)
	return k
}

func put[T uint32 | uint64](b []byte, at int16, v T) {
	if _, err := binary.Encode(b[at:], binary.LittleEndian, v); err != nil {
		panic(err)
	}
}

func (k *tried) number(major, minor uint32) {
	put(k.disk, k.f.diskMajor, major)
	put(k.disk, k.f.diskMinor, minor)
}

func (k *tried) name(name string) {
	copy(k.disk[k.f.diskName:][:diskNameBytes], make([]byte, diskNameBytes))
	copy(k.disk[k.f.diskName:], name)
}

// A place is what a request, or a part of one, writes: sectors of 512 bytes.
type place struct{ sector, count uint64 }

// do has the program see one request. The parts are a discard's.
func (k *tried) do(op uint32, whole place, parts ...place) int {
	put(k.request, k.f.rqFlags, op|0xabcd00) // flags are above the operation
	put(k.request, k.f.rqSector, whole.sector)
	put(k.request, k.f.rqLen, uint32(whole.count*sectorBytes)) //nolint:gosec // a request's
	var next uint64
	for i := len(parts) - 1; i >= 0; i-- {
		bio := make([]byte, 64)
		put(bio, k.f.bioNext, next)
		put(bio, k.f.bioSector, parts[i].sector)
		put(bio, k.f.bioLen, uint32(parts[i].count*sectorBytes)) //nolint:gosec // a request's
		next = k.add(bio)
	}
	put(k.request, k.f.rqBio, next)
	return k.run(k.add(k.request))
}

// taken are the chunks of a disk that were marked, and the flags of it and of all.
func (k *tried) taken(disk int, size, chunkBytes int64) (*Chunks, []reason) {
	c := NewChunks(size, chunkBytes)
	k.marks.collect(k.l.slots[disk], c)
	return c, append(k.marks.reasons(0), k.marks.reasons(k.l.slots[disk].flags)...)
}

func kernels(t *testing.T) map[string]fields {
	t.Helper()
	all := map[string]fields{}
	for name, old := range map[string]bool{"new": false, "old": true} {
		f, err := read(t, describe(old, nil))
		if err != nil {
			t.Fatal(err)
		}
		all[name] = f
	}
	return all
}

// Whatever is written, all of it is marked, and little else; whatever a discard is put
// together of, each part is.
func TestProgramMarksWhatIsWritten(t *testing.T) {
	all := kernels(t)
	rapid.Check(t, func(t *rapid.T) {
		f := all[rapid.SampledFrom([]string{"new", "old"}).Draw(t, "kernel")]
		chunkBytes := int64(1) << rapid.IntRange(12, 24).Draw(t, "chunk")
		size := rapid.Int64Range(1, 1<<36/sectorBytes).Draw(t, "sectors") * sectorBytes
		if chunkBytes < 1<<14 {
			size = min(size, 1<<32)
		}
		k := try(t, f, rapid.Bool().Draw(t, "paths"), chunkBytes, size, 1<<30)
		draw := func(name string) place {
			count := min(1<<rapid.IntRange(0, 22).Draw(t, name+" about"), uint64(size)/sectorBytes)
			count = rapid.Uint64Range(max(1, count/2), count).Draw(t, name+" sectors")
			return place{rapid.Uint64Range(0, uint64(size)/sectorBytes-count).Draw(t, name+" at"), count}
		}
		var places []place
		op := rapid.SampledFrom([]uint32{1, 3, 5, 9}).Draw(t, "op")
		if op == 3 && rapid.Bool().Draw(t, "merged") {
			for range rapid.IntRange(1, 5).Draw(t, "parts") {
				places = append(places, draw("part"))
			}
			k.do(op, place{places[0].sector, 1}, places...)
		} else {
			places = []place{draw("whole")}
			k.do(op, places[0])
		}
		c, why := k.taken(0, size, chunkBytes)
		if len(why) > 0 {
			t.Fatalf("lost: %v", why)
		}
		var most int64
		for _, p := range places {
			first := int64(p.sector) * sectorBytes / chunkBytes
			last := (int64(p.sector+p.count)*sectorBytes - 1) / chunkBytes
			for i := first; i <= last; i++ {
				if !c.Has(i) {
					t.Fatalf("chunk %d of %d to %d is not marked", i, first, last)
				}
			}
			n := last - first + 1
			if n > maxRun {
				n += n * 115 / 100
			}
			most += n
		}
		if c.Count() > most {
			t.Fatalf("%d chunks are marked, want %d at most", c.Count(), most)
		}
		if other, why := k.taken(1, 1<<30, chunkBytes); other.Count() > 0 || len(why) > 0 {
			t.Fatalf("another disk: %d chunks, %v", other.Count(), why)
		}
	})
}

func TestProgramFlagsWhatItCannotPlace(t *testing.T) {
	const size, chunkBytes = 1 << 30, 1 << 20
	end := uint64(size / sectorBytes)
	many := make([]place, maxRanges+1)
	for i := range many {
		many[i] = place{uint64(i), 1}
	}
	for kernel, f := range kernels(t) {
		for _, c := range []struct {
			name  string
			op    uint32
			whole place
			parts []place
			disk  func(*tried)
			count int64
			why   []reason
		}{
			{name: "read", op: 0, whole: place{0, 8}},
			{name: "flush", op: 2},
			{name: "empty write", op: 1},
			{name: "passthrough in", op: 34, whole: place{0, 8}},
			{name: "passthrough out", op: 35, whole: place{0, 8}, why: []reason{reasonPassthrough}},
			{name: "passthrough without data", op: 35},
			{name: "the last sector", op: 1, whole: place{end - 1, 1}, count: 1},
			{name: "beyond", op: 1, whole: place{end - 1, 2}, why: []reason{reasonBeyond}},
			{name: "far beyond", op: 1, whole: place{1 << 60, 2}, why: []reason{reasonBeyond}},
			{name: "no place", op: 1, whole: place{^uint64(0), 1}, why: []reason{reasonBeyond}},
			{name: "as many ranges as are looked at", op: 3, whole: place{0, 1}, parts: many[1:], count: 1},
			{name: "more ranges", op: 3, whole: place{0, 1}, parts: many, count: 1, why: []reason{reasonRanges}},
			{name: "a part without length", op: 3, whole: place{0, 1}, parts: []place{{0, 0}}, why: []reason{reasonBeyond}},
			{name: "another disk", op: 1, whole: place{0, 8}, disk: func(k *tried) { k.number(9, 0) }},
			{name: "a path", op: 1, whole: place{0, 8}, disk: func(k *tried) { k.number(259, 0); k.name("nvme0c1n1") }, count: 1},
			{name: "another's", op: 1, whole: place{0, 8}, disk: func(k *tried) { k.number(259, 0); k.name("nvme7n1") }},
			{name: "a new path", op: 1, whole: place{0, 8}, disk: func(k *tried) { k.number(259, 0); k.name("nvme0c2n1") }, why: []reason{reasonPath}},
			{name: "read on a new path", op: 0, whole: place{0, 8}, disk: func(k *tried) { k.number(259, 0); k.name("nvme0c2n1") }},
			{name: "no disk", op: 1, whole: place{0, 8}, disk: func(k *tried) {
				if f.diskInRequest {
					put(k.request, f.rqDisk, uint64(0))
				} else {
					put(k.queue, f.queueDisk, uint64(0))
				}
			}},
		} {
			k := try(t, f, true, chunkBytes, size)
			if c.disk != nil {
				c.disk(k)
			}
			k.do(c.op, c.whole, c.parts...)
			chunks, why := k.taken(0, size, chunkBytes)
			if len(why) != len(c.why) || len(why) > 0 && why[0] != c.why[0] || chunks.Count() != c.count {
				t.Errorf("%s kernel, %s: %d chunks, %v; want %d, %v", kernel, c.name, chunks.Count(), why, c.count, c.why)
			}
		}
	}
	// Only old kernels leave it open whose a command is.
	old := try(t, kernels(t)["old"], false, chunkBytes, size)
	put(old.request, old.f.rqDisk, uint64(0))
	old.do(33, place{0, 8})
	if _, why := old.taken(0, size, chunkBytes); len(why) != 1 || why[0] != reasonNoDisk {
		t.Errorf("a command to nobody: %v", why)
	}
}
