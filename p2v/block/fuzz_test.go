package block

import (
	"bytes"
	"crypto/sha256"
	"io"
	"testing"
	"testing/synctest"
)

// Whatever an answer is: the puller ends, and what it wrote has the hash that it
// recorded.
func FuzzAnswer(f *testing.F) {
	good := noise(MinChunkSize, 1)
	raw := make([]byte, headSize)
	head{kind: frameRaw, length: MinChunkSize, hash: sha256.Sum256(good)}.put(raw)
	end := make([]byte, headSize)
	head{kind: frameEnd, pos: 4}.put(end)
	f.Add([]byte(okHead + string(raw) + string(good) + string(end)))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2c\r\n" + string(end) + "\r\n0\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
	f.Add([]byte(okHead + string(end)))
	f.Fuzz(func(t *testing.T, answer []byte) {
		synctest.Test(t, func(t *testing.T) {
			l := &liar{answer: func(w io.Writer) { _, _ = w.Write(answer) }}
			defer l.wg.Wait()
			m := newMem(t, 4*MinChunkSize)
			_, err := Pull(t.Context(), m.Mirror, "sda", Options{Dial: l.dial, Connections: 1})
			records, readErr := m.table.read(0, 4)
			if readErr != nil {
				t.Fatal(readErr)
			}
			missing := 0
			for i, h := range records {
				is := Hash(sha256.Sum256(m.data.view[m.offset(int64(i)):][:MinChunkSize]))
				switch h {
				case Hash{}:
					missing++
				case is:
				default:
					t.Errorf("the map lies about chunk %d", i)
				}
			}
			if missing > 0 && err == nil {
				t.Errorf("%d chunks are missing, and all is well", missing)
			}
		})
	})
}

// Whatever a map file begins with: it is opened as it was written, or refused.
func FuzzMapHeader(f *testing.F) {
	g, err := newGeometry(4*MinChunkSize, MinChunkSize)
	if err != nil {
		f.Fatal(err)
	}
	want := (&table{geometry: g, id: "wwn-1"}).header()
	f.Add(want)
	f.Add((&table{geometry: g, id: "wwn-2"}).header())
	f.Fuzz(func(t *testing.T, head []byte) {
		file := newMemFile(&plant{left: -1}, mapRecords+4*int64(recordBytes))
		head = append(head, make([]byte, mapHeader)...)[:mapHeader]
		copy(file.view, head)
		fresh, err := (&table{file: file, name: "map", geometry: g, id: "wwn-1"}).load()
		if (err == nil && !fresh) != bytes.Equal(head, want) || fresh != isZero(head) {
			t.Errorf("fresh %v, %v", fresh, err)
		}
	})
}

// Whatever is asked: the server answers chunks of the disk only.
func FuzzAsks(f *testing.F) {
	g, err := newGeometry(4*MinChunkSize+1, MinChunkSize)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(putAsks([]ask{{index: 0}, {index: 4, held: g.zeroLast}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		asks, err := parseAsks(b, g)
		if err == nil && !bytes.Equal(putAsks(asks), b) {
			t.Errorf("%d asks of %d bytes", len(asks), len(b))
		}
		for k, a := range asks {
			if a.index < 0 || a.index > 4 || k > 0 && a.index <= asks[k-1].index {
				t.Errorf("chunk %d", a.index)
			}
		}
	})
}
